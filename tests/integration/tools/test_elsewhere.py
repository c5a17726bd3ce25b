"""Tools that run elsewhere: calls go out, the turn waits without a slot, results bring it back."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from tests.integration.tools.bench import Bench, calling, context, tool_hand
from tests.support.driving import Hand, ended, requests, user
from tests.support.keys import assert_keys_expire
from tests.support.wait import wait_until
from turnline.contracts import (
    ConversationBusy,
    Interrupt,
    Receipt,
    SyncTurnClient,
    ToolRequest,
    ToolResult,
    TurnClient,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
)
from turnline.contracts.conversation import FunctionDefinition, SettingsChange, ToolDefinition
from turnline.contracts.keys import conversation_keys, shard_keys
from turnline.contracts.messages import Configure
from turnline.contracts.protocol import TextAssembler
from turnline.contracts.replies import TERMINAL, ToolCallFinished, ToolCallStarted
from turnline.ops.simulator import Simulator
from turnline.worker.outcome import Parked
from turnline.worker.tools import tool
from turnline.worker.turn.plan import ToolLimits

KEYS = conversation_keys("{s0}", "c")
REFUND = ToolDefinition(
    function=FunctionDefinition(
        name="refund",
        description="Pay money back.",
        parameters={"type": "object", "properties": {"amount": {"type": "integer"}}},
    )
)
SCHEMAS = (REFUND,)


async def next_calls(client: TurnClient, count: int, **more: Any) -> list[ToolRequest]:
    """Take so many calls, as a service does."""
    taken: list[ToolRequest] = []
    async with asyncio.timeout(5):
        async for call in client.tool_calls("service", "one", **more):
            taken.append(call)
            if len(taken) == count:
                break
    return taken


async def wait_for_refund(hand: Hand, client: TurnClient, sim: Simulator) -> ToolRequest:
    """Bring a turn to where it waits for a refund."""
    sim.inject(calling("refund", {"amount": 5}, say="One%20moment."), times=1)
    outcomes = await hand.run_due()
    assert isinstance(outcomes[-1], Parked)
    (call,) = await next_calls(client, 1)
    return call


@contextlib.asynccontextmanager
async def asking(bench: Bench, **more: Any) -> AsyncIterator[tuple[Hand, Receipt, ToolRequest]]:
    """A worker, the turn that it left where it waits for a refund, and the call."""
    receipt = await bench.client.submit(user("my money"))
    async with bench.hand(schemas=SCHEMAS, **more) as hand:
        yield hand, receipt, await wait_for_refund(hand, bench.client, bench.sim)


async def test_a_call_goes_out_and_its_result_brings_the_turn_back(
    redis: Redis, redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """No lease and no slot while it waits; the result resumes it on a worker that knows nothing."""
    receipt = await client.submit(user("my money"))
    async with tool_hand(redis_url, sim, schemas=SCHEMAS) as hand:
        call = await wait_for_refund(hand, client, sim)

    assert await redis.exists(KEYS.in_progress) == 0
    assert (call.name, json.loads(bytes(call.arguments))) == ("refund", {"amount": 5})
    assert call.idempotency_key == f"c/{receipt.turn_id}/{call.call_id}"
    await client.answer(call, {"paid": 5})
    await client.answer(call, {"paid": 6})  # too late: the first answer counts

    async with tool_hand(redis_url, sim, schemas=SCHEMAS) as other:
        await other.run_due()

    result = await ended(client, receipt, TurnCompleted)
    assert (await context(client))[1:3] == [("assistant", ("refund",)), ("tool", '{"paid": 5}')]
    assert result.text.startswith("One moment.\n\n")
    events = [event async for event in client.events(receipt)]
    shown = TextAssembler()
    for event in events[:-1]:
        shown.feed(event)
    assert shown.text == result.text
    tools = [event for event in events if isinstance(event, ToolCallStarted | ToolCallFinished)]
    assert [type(event) for event in tools] == [ToolCallStarted, ToolCallFinished]
    assert sum(isinstance(event, TERMINAL) for event in events) == 1
    answered = await client.result(await client.submit(call.result({"paid": 5})), timeout_s=5)
    assert isinstance(answered, TurnCompleted)
    totals = await client.usage("c")
    assert (totals.calls, totals.usage) == (2, result.usage)
    assert await redis.exists("turnline:{s0}:queue") == 0
    await assert_keys_expire(redis)


async def test_an_answer_while_the_turn_still_runs_is_not_missed(bench: Bench) -> None:
    """Also one that comes between the last look and the release."""
    receipt = await bench.client.submit(user("my money"))
    bench.sim.inject(calling("refund"), times=None)
    async with bench.hand(schemas=SCHEMAS) as hand:
        lease = await hand.must_claim()
        parked = await hand.driver().run(lease)
        assert isinstance(parked, Parked)
        (call,) = await next_calls(bench.client, 1)
        await bench.client.answer(call, "paid")
        await hand.release(lease, parked)
        await hand.run_due()

    await ended(bench.client, receipt, TurnCompleted)


async def test_a_turn_that_fails_after_an_answer_is_one_dead_letter(
    bench: Bench, redis: Redis
) -> None:
    """The user's message is kept to be replayed; the answer did what it was for."""
    async with asking(bench) as (hand, receipt, call):
        await bench.client.answer(call, {"paid": 5})
        bench.sim.inject("safety", times=1)
        await hand.run_due()

    await ended(bench.client, receipt, TurnFailed)
    letters = [fields for _, fields in await redis.xrange(shard_keys(0).dead)]
    assert [letter[b"t"].decode() for letter in letters] == [receipt.turn_id]


async def test_silence_becomes_an_error_at_the_deadline(bench: Bench) -> None:
    """The model is told that nobody answered; what comes later makes no dead letter."""
    async with asking(bench, limits=ToolLimits(wait_s=1.0)) as (hand, receipt, call):
        await wait_until(hand.run_due, "the deadline makes it due")
        late = await bench.client.answer(call, "paid")
        await hand.run_due()

        await ended(bench.client, receipt, TurnCompleted)
        (_, told) = (await context(bench.client))[2]
        assert json.loads(told) == {"error": "The function refund did not answer in time."}
        await ended(bench.client, late, TurnFailed, "unknown_call")
        assert await hand.redis.execute_command("XLEN", "turnline:{s0}:dead") == 0
        assert await bench.client.history("c")


async def test_an_error_result_is_told(bench: Bench) -> None:
    """A person who refuses, for instance."""
    async with asking(bench) as (hand, receipt, call):
        await bench.client.answer(call, "The manager said no.", is_error=True)
        await hand.run_due()

    (_, told) = (await context(bench.client))[2]
    assert json.loads(told) == {"error": "The manager said no."}
    finished = [e async for e in bench.client.events(receipt) if isinstance(e, ToolCallFinished)]
    assert [event.ok for event in finished] == [False]


async def test_calls_here_and_elsewhere_in_one_response(bench: Bench) -> None:
    """What runs here is finished at once and never again; the model runs when all are answered."""
    runs: list[int] = []

    @tool
    async def here() -> str:
        """Run here."""
        runs.append(1)
        return "done here"

    two = (REFUND, ToolDefinition(function=FunctionDefinition(name="invoice")))
    receipt = await bench.client.submit(user("all of it"))
    bench.sim.inject("tools;n=3", times=None)
    async with bench.hand(here, schemas=two) as hand:
        await hand.run_due()
        calls = await next_calls(bench.client, 2)
        for call in reversed(calls):
            assert len(requests(bench.sim)) == 1
            await bench.client.answer(call, call.name)
            await hand.run_due()

    await ended(bench.client, receipt, TurnCompleted)
    assert runs == [1]
    assert (await context(bench.client))[1:5] == [
        ("assistant", ("here", "refund", "invoice")),
        ("tool", "done here"),
        ("tool", "refund"),
        ("tool", "invoice"),
    ]
    assert len(requests(bench.sim)) == 2


async def test_a_message_waits_behind_the_call(bench: Bench) -> None:
    """`enqueue`: the turn goes on first, also where many messages stand before the result."""
    async with asking(bench) as (hand, first, call):
        later = [await bench.client.submit(user(f"hello {n}")) for n in range(70)]
        await hand.run_due()
        assert (await bench.client.record(later[0])).state == "accepted"
        await bench.client.answer(call, "paid")
        await hand.run_due()

    await ended(bench.client, first, TurnCompleted)
    await ended(bench.client, later[-1], TurnCompleted)
    roles = await context(bench.client)
    assert roles[2] == ("tool", "paid")
    assert roles[4] == ("user", "hello 0")


@pytest.mark.parametrize("when_busy", ["interrupt", "rollback", "reject"])
async def test_when_busy_decides_while_it_waits(bench: Bench, when_busy: str) -> None:
    """As for a turn that runs: stopped, taken back, or the newcomer is refused."""
    async with asking(bench) as (hand, first, call):
        newer = user("never mind", when_busy=when_busy)
        if when_busy == "reject":
            with pytest.raises(ConversationBusy):
                await bench.client.submit(newer)
            await bench.client.answer(call, "paid")
            await hand.run_due()
            await ended(bench.client, first, TurnCompleted)
            return
        bench.sim.inject("text;say=Fine.", times=None)
        second = await bench.client.submit(newer)
        await hand.run_due()
        await bench.client.answer(call, "paid")
        await hand.run_due()

    result = await ended(bench.client, second, TurnCompleted)
    totals = await bench.client.usage("c")
    assert totals.calls == len(requests(bench.sim)) == 2
    if when_busy == "interrupt":
        stopped = await ended(bench.client, first, TurnInterrupted)
        assert stopped.text == "One moment."
        assert [text for _, text in await context(bench.client)] == [
            *("my money", ("refund",), "CANCELLED", "never mind", "Fine.")
        ]
        assert totals.abandoned.total_tokens == 0
    else:
        assert [text for _, text in await context(bench.client)] == ["my money never mind", "Fine."]
        assert totals.abandoned.total_tokens > 0
        assert totals.usage == result.usage


async def test_a_turn_that_is_interrupted_while_it_waits(bench: Bench) -> None:
    """What was said is kept; the call is closed."""
    async with asking(bench) as (hand, first, _):
        await bench.client.submit(Interrupt(conversation_id="c"))
        await hand.run_due()

    await ended(bench.client, first, TurnInterrupted)
    assert (await context(bench.client))[2] == ("tool", "CANCELLED")


async def test_the_producers_deadline_ends_the_wait(bench: Bench) -> None:
    """A turn nobody needs any more fails by name, however long its call may take."""
    receipt = await bench.client.submit(user("x", deadline_at_ms=int(time.time() * 1000) + 1_500))
    async with bench.hand(schemas=SCHEMAS) as hand:
        await wait_for_refund(hand, bench.client, bench.sim)
        await wait_until(hand.run_due, "the deadline makes it due")

    await ended(bench.client, receipt, TurnFailed, "deadline_exceeded")


async def test_a_conversation_declares_its_own_tools(bench: Bench) -> None:
    """By `configure`; what the model is offered has no field of ours."""
    definition = msgspec.structs.replace(REFUND, timeout_s=30.0)
    await bench.client.submit(
        Configure(conversation_id="c", settings=SettingsChange(tools=(definition,)))
    )
    await bench.client.submit(user("my money"))
    bench.sim.inject(calling("refund"), times=None)
    async with bench.hand() as hand:
        await hand.run_due()
        (call,) = await next_calls(bench.client, 1)

    (offered,) = requests(bench.sim)[0]["tools"]
    assert offered == {"function": msgspec.to_builtins(REFUND.function), "type": "function"}
    sent_at_ms = (
        await bench.client.record(await bench.client.submit(call.result()))
    ).accepted_at_ms
    assert abs(call.deadline_at_ms - sent_at_ms - 30_000) < 5_000


async def test_a_service_takes_its_own_tools_and_what_it_left_again(bench: Bench) -> None:
    """Groups see all calls; a consumer that died before acknowledging gets its call again."""
    async with asking(bench) as (_, _, call):
        pass

    (again,) = await next_calls(bench.client, 1, names={"refund", "other"})
    assert again == call
    with SyncTurnClient.connect(bench.redis_url) as sync:
        other = next(iter(sync.tool_calls("audit", "one")))
        assert other == call
        assert sync.answer(other, "paid").accepted
        assert not sync.answer(other, "paid twice").accepted


async def test_a_result_for_an_unknown_call_fails_by_name(bench: Bench) -> None:
    """It makes no dead letter and leaves the conversation alone."""
    receipt = await bench.client.submit(ToolResult(conversation_id="c", call_id="nobody", result=1))
    async with bench.hand() as hand:
        await hand.run_due()
        assert await hand.redis.execute_command("XLEN", "turnline:{s0}:dead") == 0

    await ended(bench.client, receipt, TurnFailed, "unknown_call")


async def test_forget_takes_the_calls_with_it(bench: Bench, redis: Redis) -> None:
    """Also the copy in the stream that services read."""
    async with asking(bench) as _:
        pass

    assert await redis.xlen("turnline:{s0}:tool-calls") == 1
    assert await bench.client.forget("c")
    assert await redis.xlen("turnline:{s0}:tool-calls") == 0
