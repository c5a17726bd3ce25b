"""Crash drills of turns with tools: what finished is never run again, all is counted once."""

import asyncio
import contextlib
from collections import Counter
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from tests.integration.tools.bench import Bench, calling, context
from tests.integration.worker.test_crash_boundaries import Killed, MortalStore
from tests.support.driving import Hand, ended, requests, user
from tests.support.keys import assert_keys_expire
from tests.support.wait import wait_until
from turnline.contracts import TurnClient, TurnCompleted, TurnInterrupted
from turnline.contracts.conversation import FunctionDefinition, ToolDefinition
from turnline.contracts.keys import conversation_keys
from turnline.contracts.protocol import TextAssembler
from turnline.contracts.replies import TERMINAL, ToolCallFinished
from turnline.ops.simulator import Simulator
from turnline.worker.errors import LeaseLost
from turnline.worker.tools import ToolContext, tool

KEYS = conversation_keys("{s0}", "c")
SERIAL_BOUNDARIES = 30
"""load; emit (turn started), checkpoint (response), emit, checkpoint (result), emit, twice; emit,
text, commit: each before and after. Events that travel together make fewer."""
PARALLEL_BOUNDARIES = 24


class Shop:
    """Services behind tools, with a ledger of what was executed."""

    def __init__(self) -> None:
        self.executed: Counter[str] = Counter()

        @tool(retry_safe=True)
        async def find(context: ToolContext[None], number: int = 0) -> dict[str, int]:
            """Find an order."""
            self.executed[context.call_id] += 1
            return {"found": number}

        @tool(retry_safe=True)
        async def ship(context: ToolContext[None], number: int = 0) -> str:
            """Ship an order."""
            self.executed[context.call_id] += 1
            return f"shipped {number}"

        self.tools = (find, ship)


async def die(hand: Hand, dies_at: int) -> None:
    """Run until the worker dies at the n-th boundary."""
    lease = await hand.must_claim()
    store = MortalStore(hand.store, dies_at)
    with contextlib.suppress(Killed, asyncio.CancelledError):
        await hand.driver(store).run(lease)
    await hand.expire(lease)


async def finished_calls(redis: Redis) -> set[str]:
    """Calls whose results are safe."""
    steps = await redis.lrange(KEYS.steps, 0, -1)
    return {msgspec.json.decode(step[1:])["call_id"] for step in steps if step[:1] == b"r"}


async def assert_all_is_right(
    redis: Redis, client: TurnClient, sim: Simulator, receipt: Any
) -> TurnCompleted:
    result = await ended(client, receipt, TurnCompleted)
    events = [event async for event in client.events(receipt)]
    shown = TextAssembler()
    for event in events[:-1]:
        shown.feed(event)
    assert shown.text == result.text
    assert sum(isinstance(event, TERMINAL) for event in events) == 1
    finished = Counter(e.call_id for e in events if isinstance(e, ToolCallFinished))
    assert all(count == 1 for count in finished.values())
    totals = await client.usage("c")
    assert totals.turns == 1
    assert totals.usage == result.usage
    assert totals.calls - len(requests(sim)) in {0, 1}  # noted, but died before it was sent
    assert await redis.exists("turnline:{s0}:queue") == 0
    await assert_keys_expire(redis)
    return result


@pytest.mark.promise("P3", "P7")
@pytest.mark.parametrize("dies_at", range(SERIAL_BOUNDARIES))
async def test_serial_calls(bench: Bench, redis: Redis, dies_at: int) -> None:
    """Two rounds of one call each, then the answer; one crash anywhere."""
    shop = Shop()
    async with bench.hand(*shop.tools) as hand:
        receipt = await bench.client.submit(user("find and ship"))
        script_serial(bench.sim)
        await die(hand, dies_at)
        safe = await finished_calls(redis)
        before = Counter(shop.executed)
        script_serial(bench.sim, rounds_done=await rounds_done(redis))
        await hand.run_due()

    assert all(shop.executed[call_id] == before[call_id] == 1 for call_id in safe)
    await assert_all_is_right(redis, bench.client, bench.sim, receipt)
    assert [what for _, what in await context(bench.client)][:5] == [
        *("find and ship", ("find",), '{"found": 1}', ("ship",), "shipped 1")
    ]


def script_serial(sim: Simulator, *, rounds_done: int = 0) -> None:
    """Let the model find, then ship, then answer, from a round on."""
    sim.rules.clear()
    for number, name in enumerate(("find", "ship")[rounds_done:], 1):
        sim.inject(calling(name, {"number": 1}, loop="1"), nth=number, times=1)


async def rounds_done(redis: Redis) -> int:
    steps = await redis.lrange(KEYS.steps, 0, -1)
    return sum(step[:1] == b"m" for step in steps)


@pytest.mark.promise("P3", "P7")
@pytest.mark.parametrize("dies_at", range(PARALLEL_BOUNDARIES))
async def test_parallel_calls(bench: Bench, redis: Redis, dies_at: int) -> None:
    """Two calls of one response; one crash anywhere."""
    shop = Shop()
    bench.sim.inject("tools", times=None)
    async with bench.hand(*shop.tools) as hand:
        receipt = await bench.client.submit(user("both"))
        await die(hand, dies_at)
        safe = await finished_calls(redis)
        before = Counter(shop.executed)
        await hand.run_due()

    assert all(shop.executed[call_id] == before[call_id] == 1 for call_id in safe)
    await assert_all_is_right(redis, bench.client, bench.sim, receipt)
    assert [role for role, _ in await context(bench.client)] == [
        *("user", "assistant", "tool", "tool", "assistant")
    ]


@pytest.mark.parametrize("retry_safe", [True, False])
async def test_a_tool_that_runs_when_its_worker_dies(bench: Bench, retry_safe: bool) -> None:
    """Run again under the same key if it says it may be; else the model hears of it."""
    running, keys = asyncio.Event(), list[str]()

    @tool(retry_safe=retry_safe)
    async def pay(context: ToolContext[None]) -> str:
        """Pay."""
        keys.append(context.idempotency_key)
        if len(keys) == 1:
            running.set()
            await asyncio.Event().wait()
        return "paid"

    @tool
    async def quick() -> str:
        """Be done."""
        keys.append("quick")
        return "quick"

    bench.sim.inject("tools", times=None)
    async with bench.hand(pay, quick) as hand:
        receipt = await bench.client.submit(user("pay"))
        lease = await hand.must_claim()
        store = Dying(hand.store)
        attempt = asyncio.create_task(hand.driver(store).run(lease))
        await running.wait()
        await wait_until(lambda: store.checkpoints == 2, "the other call's result is safe")
        store.is_dead = True
        attempt.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await attempt
        await hand.expire(lease)
        await hand.run_due()

    result = await ended(bench.client, receipt, TurnCompleted)
    assert result.attempt == 2
    told = [text for role, text in await context(bench.client) if role == "tool"]
    assert keys.count("quick") == 1
    if retry_safe:
        assert told == ["paid", "quick"]
        assert keys.count(keys[0]) == 2
    else:
        assert "was interrupted. Whether it took effect is unknown" in told[0]
        assert keys.count(keys[0]) == 1
    assert (await bench.client.usage("c")).calls == 2


class Dying:
    """The store of a worker that is gone from one moment on."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.is_dead = False
        self.checkpoints = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            if self.is_dead:
                raise LeaseLost("the process is gone")
            result = await method(*args, **kwargs)
            self.checkpoints += name == "checkpoint"
            return result

        return call


async def test_a_hand_over_keeps_what_finished(bench: Bench) -> None:
    """SIGTERM while the model speaks after its tools: no tool again, the cut call's spend kept."""
    shop = Shop()
    bench.sim.inject(calling("find", {"number": 1}), times=1)
    bench.sim.inject("pace;itl_ms=100", nth=2, times=1)
    async with bench.hand(*shop.tools) as hand:
        receipt = await bench.client.submit(user("find"))
        lease = await hand.must_claim()
        attempt = asyncio.create_task(hand.driver().run(lease))
        await wait_until(lambda: len(requests(bench.sim)) == 2, "the model runs on the result")
        attempt.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await attempt
        await hand.expire(lease)
        await hand.run_due()

    result = await ended(bench.client, receipt, TurnCompleted)
    assert set(shop.executed.values()) == {1}
    totals = await bench.client.usage("c")
    assert (totals.calls, totals.usage) == (3, result.usage)
    reported = [entry for entry in bench.sim.ledger.entries() if entry.usage_reported]
    assert result.usage.total_tokens == sum(entry.usage.total_tokens for entry in reported)


ELSEWHERE_BOUNDARIES = 14


@pytest.mark.parametrize("dies_at", range(ELSEWHERE_BOUNDARIES))
async def test_a_call_elsewhere_is_sent_once_and_answered_while_nobody_lives(
    bench: Bench, redis: Redis, dies_at: int
) -> None:
    """One crash anywhere on the way out, one anywhere on the way back."""
    schemas = (ToolDefinition(function=FunctionDefinition(name="ask_manager")),)
    bench.sim.inject(calling("ask_manager"), times=None)
    receipt = await bench.client.submit(user("may I?"))
    async with bench.hand(schemas=schemas) as hand:
        await die(hand, dies_at)
        await hand.run_due()
    sent = await redis.xlen("turnline:{s0}:tool-calls")
    async for call in bench.client.tool_calls("managers", "one"):
        await bench.client.answer(call, "yes")
        break
    async with bench.hand(schemas=schemas) as hand:
        await die(hand, dies_at)
        await hand.run_due()

    assert sent == 1
    await assert_all_is_right(redis, bench.client, bench.sim, receipt)
    assert (await context(bench.client))[2] == ("tool", "yes")


async def test_an_interrupt_keeps_what_a_dead_attempt_said_behind_its_calls(bench: Bench) -> None:
    """What was shown before and after the call stands in the interrupted reply, once."""
    shop = Shop()
    bench.sim.inject(calling("find", {"number": 1}, say="Let%20me%20look"), times=1)
    bench.sim.inject("pace;itl_ms=100", nth=2, times=1)
    async with bench.hand(*shop.tools) as hand:
        receipt = await bench.client.submit(user("find"))
        lease = await hand.must_claim()
        running = asyncio.create_task(hand.driver().run(lease))
        shown = TextAssembler()
        async with asyncio.timeout(5):
            async for event in bench.client.events(receipt):
                shown.feed(event)
                if len(requests(bench.sim)) == 2 and len(shown.text) > len("Let me look") + 4:
                    break
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await hand.expire(lease)
        await bench.client.interrupt("c")

        await hand.run_due()

    result = await ended(bench.client, receipt, TurnInterrupted)
    assert result.text == shown.text
    assert result.text.count("Let me look") == 1
