"""A worker with tools, moved by hand, and what tests look at."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

from tests.support.driving import SHARD, Hand, settings_for
from turnline.contracts import TurnClient, UserMessage
from turnline.contracts.connection import open_async
from turnline.contracts.conversation import ToolDefinition
from turnline.ops.simulator import Simulator
from turnline.worker.lease import Lease
from turnline.worker.main import GrokServices
from turnline.worker.outcome import Outcome
from turnline.worker.store.breakers import Breakers
from turnline.worker.tools import Tool
from turnline.worker.tools.description import describe
from turnline.worker.tools.loader import LoadedTool, LoadedTools
from turnline.worker.tools.runner import Toolbox
from turnline.worker.turn.driver import ConversationDriver
from turnline.worker.turn.plan import AgentsFile, Planner, ToolLimits


def toolbox_of(*tools: Tool[Any, Any], schemas: Sequence[ToolDefinition] = ()) -> Toolbox:
    """Tools of this test alone."""
    loaded = tuple(LoadedTool("test", tool, describe(tool)) for tool in tools)
    return Toolbox(LoadedTools(loaded, (), tuple(schemas), ()))


class ToolHand(Hand):
    """A worker moved by hand that has tools."""

    planner: Planner

    def driver(self, store: Any = None) -> ConversationDriver:
        """Build the driver, with the tools."""
        return ConversationDriver(
            store or self.store,
            self.services,
            Breakers(self.redis, self.batcher, SHARD),
            SHARD,
            self.settings,
            planner=self.planner,
        )

    async def run_due(self) -> list[Outcome]:
        """Run what is due, as the queue does, until nothing is."""
        outcomes: list[Outcome] = []
        while (lease := await self.claim()) is not None:
            outcomes.append(await self.run_lease(lease))
        return outcomes

    async def run_lease(self, lease: Lease, store: Any = None) -> Outcome:
        """Run one conversation and leave it as the queue does."""
        outcome = await self.driver(store).run(lease)
        if not lease.released:
            await self.release(lease, outcome)
        return outcome


@asynccontextmanager
async def tool_hand(
    redis_url: str,
    sim: Simulator,
    *tools: Tool[Any, Any],
    schemas: Sequence[ToolDefinition] = (),
    agents: AgentsFile | None = None,
    limits: ToolLimits | None = None,
) -> AsyncIterator[ToolHand]:
    """Open a worker with these tools."""
    redis = open_async(redis_url, retries=0)
    services = GrokServices(settings_for(redis_url, sim))
    try:
        hand = ToolHand(redis, services)
        hand.planner = Planner(toolbox_of(*tools, schemas=schemas), agents, limits)
        yield hand
    finally:
        await redis.aclose()
        await services.client.close()


def user(text: str, **more: Any) -> UserMessage:
    """A message to the conversation of all these tests."""
    return UserMessage(conversation_id="c", text=text, **more)


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


def requests(sim: Simulator) -> list[dict[str, Any]]:
    """Bodies of the requests that the model got."""
    return [
        json.loads(bytes(entry.body))
        for entry in sim.ledger.entries()
        if entry.path.endswith("completions")
    ]
