"""A worker with tools, moved by hand, and what tests look at."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

from tests.support.driving import Hand
from tests.support.driving import hand as open_hand
from turnline.contracts import TurnClient
from turnline.contracts.conversation import ToolDefinition
from turnline.ops.simulator import Simulator
from turnline.worker.tools import Tool
from turnline.worker.tools.description import describe
from turnline.worker.tools.loader import LoadedTool, LoadedTools
from turnline.worker.tools.runner import Toolbox
from turnline.worker.turn.plan import AgentsFile, Planner, ToolLimits


def toolbox_of(*tools: Tool[Any, Any], schemas: Sequence[ToolDefinition] = ()) -> Toolbox:
    """Tools of this test alone."""
    loaded = tuple(LoadedTool("test", tool, describe(tool)) for tool in tools)
    return Toolbox(LoadedTools(loaded, (), tuple(schemas), ()))


@asynccontextmanager
async def tool_hand(
    redis_url: str,
    sim: Simulator,
    *tools: Tool[Any, Any],
    schemas: Sequence[ToolDefinition] = (),
    agents: AgentsFile | None = None,
    limits: ToolLimits | None = None,
) -> AsyncIterator[Hand]:
    """Open a worker with these tools."""
    async with open_hand(redis_url, sim) as hand:
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
