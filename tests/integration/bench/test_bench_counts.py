"""What a turn costs in numbers that do not depend on the machine: a guard against regressions.

The bounds are today's figures and a little more. Who makes a turn cheaper lowers them; who has to
raise one says why in the change.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.driving import fleet
from tests.support.wait import wait_until
from turnline.contracts import ContextAppend, TurnClient, UserMessage
from turnline.contracts.conversation import AssistantEntry, UserEntry
from turnline.ops.bench.measuring import RedisWork, redis_work
from turnline.ops.simulator import Simulator

TURNS = 10
COMMANDS = 126
"""Redis commands per turn of 20 chunks, those inside scripts included.

For each batch of events, two tell readers, who then need no command of their own. Eight count what
is spent, within the commit. Nine at most enter a conversation in the index, once.
"""
LATER_COMMANDS = 106.5
"""Of a turn soon after others of its conversation, whose keys have got their time just now.

Three of them change its line in the index.
"""
REQUESTS = 7.5
"""Reads from sockets per turn: round trips of producer and worker."""
BYTES = 11_100
"""Received and sent per turn; some 130 are names and marks for the index."""
QUIET = {
    "lease_s": "90",
    "heartbeat_s": "30",
    "stall_s": "60",
    "poll_s": "30",
    "coalesce_ms": "60000",
    "coalesce_bytes": "1000000",
}
"""Nothing happens by the clock meanwhile, however slow the machine."""


class Bench:
    """A worker, a model that answers in 20 chunks, and what Redis does for them."""

    def __init__(self, client: TurnClient, one: Any, redis: Any) -> None:
        self._client = client
        self._worker = one.workers[0]
        self._traces = one.parts.telemetry._stores[0]
        self._redis = redis
        self._runs = 0

    async def run(self, messages: Sequence[UserMessage | ContextAppend]) -> None:
        """Submit each when nothing is left to do for the one before."""
        for message in messages:
            await self._client.submit(message)
            self._runs += 1
            await wait_until(self._is_at_rest, "the conversation is released, its trace written")

    def _is_at_rest(self) -> bool:
        worker = self._worker
        is_idle = worker.jobs_complete == self._runs and worker.job_counter == 0
        return is_idle and not self._traces._waiting and self._traces._writer is None

    async def cost(self, messages: Sequence[UserMessage]) -> RedisWork:
        """Return what Redis did for these turns, nobody reading their events."""
        first = await redis_work(self._redis)
        before = await redis_work(self._redis)
        await self.run(messages)
        return (await redis_work(self._redis)).since(before.plus(before.since(first)))


@asynccontextmanager
async def bench(redis_url: str, redis: Any) -> AsyncIterator[Bench]:
    """Run a whole worker whose first turn, which opens connections, is over."""
    async with Simulator() as sim, TurnClient.connect(redis_url) as client:
        sim.inject("chunks;n=20", times=None)
        async with fleet(redis_url, sim, **QUIET) as (one,):
            await wait_until(lambda: one.workers, "the worker runs")
            made = Bench(client, one, redis)
            await made.run([said("first")])
            yield made


def said(conversation_id: str) -> UserMessage:
    """A user's message."""
    return UserMessage(conversation_id=conversation_id, text="a table for two, please")


def history(conversation_id: str, messages: int) -> ContextAppend:
    """Messages that came before."""
    entries = [
        UserEntry(content="a question") if n % 2 == 0 else AssistantEntry(content="an answer")
        for n in range(messages)
    ]
    return ContextAppend(conversation_id=conversation_id, messages=tuple(entries))


@pytest.mark.promise("P8")
async def test_a_turn_costs_so_much_of_redis(redis_url: str, redis: Any) -> None:
    """Commands, round trips and bytes of a turn of 20 chunks, traces kept, nobody reading."""
    async with bench(redis_url, redis) as made:
        spent = await made.cost([said(f"c-{n}") for n in range(TURNS)])

    assert spent.commands / TURNS <= COMMANDS
    assert spent.requests / TURNS <= REQUESTS
    assert spent.bytes / TURNS <= BYTES


@pytest.mark.promise("P8")
async def test_a_long_context_costs_redis_no_more(redis_url: str, redis: Any) -> None:
    """What a worker holds is not fetched again: not one command a turn more."""
    async with bench(redis_url, redis) as made:
        await made.run([history("short", 10), history("long", 1_000)])
        await made.run([said("short"), said("long")])
        short = await made.cost([said("short") for _ in range(TURNS)])
        long = await made.cost([said("long") for _ in range(TURNS)])

    assert short.commands / TURNS <= LATER_COMMANDS
    assert long.commands - short.commands < TURNS
    assert long.requests - short.requests < TURNS
    assert long.bytes - short.bytes < TURNS * 50
