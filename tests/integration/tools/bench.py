"""A worker with tools, moved by hand, and what tests look at."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import quote

from tests.support.driving import Hand
from tests.support.driving import hand as open_hand
from turnline.contracts import Receipt, TurnClient, UserMessage
from turnline.contracts.conversation import ToolDefinition
from turnline.ops.simulator import Simulator
from turnline.worker.schema_checking import Checker
from turnline.worker.tools import Tool
from turnline.worker.tools.description import describe
from turnline.worker.tools.loader import LoadedTool, LoadedTools
from turnline.worker.tools.runner import Toolbox
from turnline.worker.turn.plan import AgentsFile, Planner, ToolLimits


def toolbox_of(*tools: Tool[Any, Any], schemas: Sequence[ToolDefinition] = ()) -> Toolbox:
    """Tools of this test alone."""
    loaded = tuple(LoadedTool("test", tool, describe(tool)) for tool in tools)
    return Toolbox(LoadedTools(loaded, (), tuple(schemas), ()), Checker())


@asynccontextmanager
async def tool_hand(
    redis_url: str,
    sim: Simulator,
    *tools: Tool[Any, Any],
    schemas: Sequence[ToolDefinition] = (),
    agents: AgentsFile | None = None,
    limits: ToolLimits | None = None,
    environ: Mapping[str, str] | None = None,
) -> AsyncIterator[Hand]:
    """Open a worker with these tools."""
    async with open_hand(redis_url, sim, environ) as hand:
        hand.planner = Planner(toolbox_of(*tools, schemas=schemas), agents, limits)
        yield hand


def calling(name: str, arguments: Any = None, **more: str) -> str:
    """A scenario: the model calls a tool, and answers once it has the result."""
    args = {"name": name, **more}
    if arguments is not None:
        args["arguments"] = quote(json.dumps(arguments))
    return "tool;" + ",".join(f"{key}={value}" for key, value in args.items())


async def context(client: TurnClient) -> list[tuple[str, Any]]:
    """(role, text or names of the calls) of each committed message."""
    shown: list[tuple[str, Any]] = []
    for message in (await client.history("c")).messages:
        role = message.__struct_config__.tag
        calls = getattr(message, "tool_calls", ())
        shown.append((role, tuple(c.function.name for c in calls) if calls else message.content))
    return shown


class Bench(NamedTuple):
    """What a test of tools has: a database, a provider, a producer, and workers as it likes."""

    redis_url: str
    sim: Simulator
    client: TurnClient

    def hand(self, *tools: Tool[Any, Any], **more: Any) -> AbstractAsyncContextManager[Hand]:
        """Open a worker with these tools."""
        return tool_hand(self.redis_url, self.sim, *tools, **more)

    async def turn(self, message: UserMessage, *tools: Tool[Any, Any], **more: Any) -> Receipt:
        """Submit a message, and run what is due on a worker with these tools."""
        async with self.hand(*tools, **more) as hand:
            receipt = await self.client.submit(message)
            await hand.run_due()
        return receipt
