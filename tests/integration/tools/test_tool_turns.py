"""Turns with tools: run, checkpointed, bounded, interrupted, and shown to readers in order."""

import asyncio
import json
import threading
from typing import Any

import msgspec
import pytest

from tests.integration.tools.bench import Bench, calling, context, tool_hand
from tests.support.driving import ended, requests, user
from tests.support.wait import wait_until
from turnline.contracts import TurnClient, TurnCompleted, TurnFailed, TurnInterrupted
from turnline.contracts.conversation import SettingsChange
from turnline.contracts.messages import Configure
from turnline.contracts.protocol import TextAssembler
from turnline.contracts.replies import TextDelta, ToolCallFinished, ToolCallStarted, TurnStarted
from turnline.ops.simulator import Simulator
from turnline.worker.tools import ToolContext, ToolFailed, tool
from turnline.worker.turn.plan import ToolLimits


@tool
async def weather(city: str) -> dict[str, str]:
    """Tell the weather."""
    return {"city": city, "sky": "clear"}


async def events_of(client: TurnClient, receipt: Any) -> list[Any]:
    return [event async for event in client.events(receipt)]


async def test_a_call_runs_and_the_model_goes_on(bench: Bench) -> None:
    """Context, events, text and usage of a turn with one tool call."""
    bench.sim.inject(calling("weather", {"city": "Łódź"}, say="Let%20me%20look."), times=None)
    receipt = await bench.turn(user("How is the weather?"), weather)

    result = await ended(bench.client, receipt, TurnCompleted)
    assert await context(bench.client) == [
        ("user", "How is the weather?"),
        ("assistant", ("weather",)),
        ("tool", '{"city": "Łódź", "sky": "clear"}'),
        ("assistant", result.text.removeprefix("Let me look.\n\n")),
    ]
    assert result.text.startswith("Let me look.\n\n")
    events = await events_of(bench.client, receipt)
    kinds = [type(event) for event in events if not isinstance(event, TextDelta)]
    assert kinds == [TurnStarted, ToolCallStarted, ToolCallFinished, TurnCompleted]
    shown = TextAssembler()
    for event in events[:-1]:
        shown.feed(event)
    assert shown.text == result.text
    totals = await bench.client.usage("c")
    assert (totals.calls, totals.turns) == (2, 1)
    assert totals.usage == result.usage
    assert result.usage.total_tokens == sum(
        e.usage.total_tokens for e in bench.sim.ledger.entries()
    )


async def test_parallel_calls_make_one_message_in_call_order(bench: Bench) -> None:
    """Results come in any order; the context has them in that of the calls."""
    second_done = asyncio.Event()

    @tool
    async def slow() -> str:
        """Wait for the other."""
        await second_done.wait()
        return "slow"

    @tool
    async def quick() -> list[str]:
        """Go first."""
        second_done.set()
        return []

    bench.sim.inject("tools", times=None)
    await bench.turn(user("both"), slow, quick)

    roles = await context(bench.client)
    assert roles[1:4] == [("assistant", ("slow", "quick")), ("tool", "slow"), ("tool", "[]")]
    assert len(requests(bench.sim)) == 2


async def test_arguments_are_validated_and_the_model_told(bench: Bench) -> None:
    """What does not fit the annotations is the call's result, and the tool does not run."""
    bench.sim.inject(calling("weather", {"city": 7}), times=None)
    await bench.turn(user("hi"), weather)

    (_, told) = (await context(bench.client))[2]
    assert json.loads(told) == {
        "error": "The arguments do not fit: Expected `str`, got `int` - at `$.city`"
    }


@pytest.mark.parametrize("words", ["raised", "told", "timed_out", "no_json"])
async def test_every_call_gets_a_result(bench: Bench, words: str) -> None:
    """Whatever a tool does, the model hears of it and the turn completes; nothing foreign leaks."""

    @tool(timeout_s=0.01)
    async def subject() -> object:
        """Misbehave."""
        match words:
            case "raised":
                raise RuntimeError("secret")
            case "told":
                raise ToolFailed("Ask again tomorrow.")
            case "timed_out":
                await asyncio.Event().wait()
            case _:
                pass
        return object()

    bench.sim.inject(calling("subject"), times=None)
    receipt = await bench.turn(user("hi"), subject)

    await ended(bench.client, receipt, TurnCompleted)
    (_, told) = (await context(bench.client))[2]
    expected = {
        "raised": "The function subject failed.",
        "told": "Ask again tomorrow.",
        "timed_out": "The function subject did not answer in time.",
        "no_json": "The tool returned something that is not JSON.",
    }
    assert json.loads(told) == {"error": expected[words]}


async def test_plain_functions_run_in_threads_and_know_their_call(bench: Bench) -> None:
    """A function that is not async does not block; the context has a stable key."""
    seen: list[ToolContext[None]] = []
    threads: list[bool] = []

    @tool
    def plain(context: ToolContext[None], count: int = 2) -> int:
        """Do something slow."""
        seen.append(context)
        threads.append(threading.current_thread() is threading.main_thread())
        return count

    bench.sim.inject(calling("plain", {}), times=None)
    receipt = await bench.turn(user("hi"), plain)

    assert threads == [False]
    assert seen[0].idempotency_key == f"c/{receipt.turn_id}/{seen[0].call_id}"
    assert (await context(bench.client))[2] == ("tool", "2")


async def test_a_tool_runs_no_more_often_at_once_than_it_may(bench: Bench) -> None:
    """`max_concurrency` holds over all conversations of a worker."""
    running: list[int] = []
    most: list[int] = []

    @tool(max_concurrency=1)
    async def narrow() -> str:
        """Allow one at a time."""
        running.append(1)
        most.append(len(running))
        await asyncio.sleep(0)
        running.pop()
        return "ok"

    bench.sim.inject(calling("narrow", n="3"), times=None)
    await bench.turn(user("hi"), narrow)

    assert most == [1, 1, 1]


@pytest.mark.promise("P12")
async def test_more_rounds_than_allowed_fail_the_turn(bench: Bench) -> None:
    """`max_tool_rounds` model calls; the tools of the last one are not run."""
    counted: list[int] = []

    @tool
    async def count(number: int) -> int:
        """Count."""
        counted.append(number)
        return number

    async with bench.hand(count, limits=ToolLimits(max_tool_rounds=4)) as hand:
        for n in range(10):
            bench.sim.inject(calling("count", {"number": n}, loop="1"), nth=n + 1, times=1)
        receipt = await bench.client.submit(user("hi"))
        await hand.run_due()

    await ended(bench.client, receipt, TurnFailed, "too_many_tool_rounds")
    assert len(requests(bench.sim)) == 4
    assert len(counted) == 3
    totals = await bench.client.usage("c")
    assert (totals.calls, totals.usage.total_tokens) == (4, 0)
    assert totals.abandoned.total_tokens > 0
    assert await context(bench.client) == []


@pytest.mark.promise("P12")
async def test_the_same_call_again_and_again_is_told_then_failed(bench: Bench) -> None:
    """The third time it is not run any more; the fourth ends the turn."""
    runs: list[str] = []

    @tool
    async def again(city: str) -> str:
        """Repeat."""
        runs.append(city)
        return city

    bench.sim.inject(calling("again", {"city": "x"}, loop="1"), times=None)
    receipt = await bench.turn(user("hi"), again)

    await ended(bench.client, receipt, TurnFailed, "tool_loop")
    assert runs == ["x", "x"]
    told = requests(bench.sim)[3]["messages"][-1]["content"]
    assert "the same call" in told


@pytest.mark.promise("P12")
@pytest.mark.parametrize("shape", ["deep", "long-names"])
async def test_calls_that_cannot_be_run_are_paid_for_twice_at_most(
    bench: Bench, shape: str
) -> None:
    """The model is told once; with the second such response in a row the turn fails by name."""

    @tool
    async def find(city: str) -> str:
        """Find."""
        return city

    bench.sim.inject(f"odd-reply;shape={shape},size=3000000", times=None)
    receipt = await bench.turn(user("hi"), find)

    await ended(bench.client, receipt, TurnFailed, "unusable_calls")
    assert len(requests(bench.sim)) == 2


async def test_a_long_result_is_cut_with_a_note(bench: Bench) -> None:
    """The model gets the beginning, and hears that it is not all."""

    @tool
    async def long() -> str:
        """Say much."""
        return "ü" * 1_000

    bench.sim.inject(calling("long"), times=None)
    await bench.turn(user("hi"), long, limits=ToolLimits(result_bytes=400))

    (_, told) = (await context(bench.client))[2]
    assert len(told.encode()) <= 400
    assert told.endswith("[cut: 2000 bytes, of which these are the first]")


async def test_a_demanded_tool_is_demanded_once(bench: Bench) -> None:
    """`tool_choice` counts until tools were called: else a turn would never end."""
    async with bench.hand(weather) as hand:
        await bench.client.submit(
            Configure(conversation_id="c", settings=SettingsChange(tool_choice="required"))
        )
        receipt = await bench.client.submit(user("hi"))
        await hand.run_due()

    await ended(bench.client, receipt, TurnCompleted)
    assert [body["tool_choice"] for body in requests(bench.sim)] == ["required", "auto"]


@pytest.mark.parametrize("act", ["interrupt", "rollback"])
async def test_an_interruption_cancels_what_it_may(
    redis_url: str, sim: Simulator, client: TurnClient, act: str
) -> None:
    """A cancellable call is cancelled, another one's result is kept; the model is not run on it."""
    started, proceed = asyncio.Event(), asyncio.Event()
    ends: list[str] = []

    @tool
    async def dropped() -> str:
        """Be cancelled."""
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("dropped")
        return ""

    @tool(cancel_on_interruption=False)
    async def kept() -> str:
        """Finish."""
        started.set()
        await proceed.wait()
        ends.append("kept")
        return "paid"

    sim.inject("tools", times=1)
    async with tool_hand(redis_url, sim, dropped, kept) as hand:
        receipt = await client.submit(user("do both"))
        lease = await hand.must_claim()
        running = asyncio.create_task(hand.run_lease(lease))
        await started.wait()
        if act == "interrupt":
            await client.interrupt("c")
        else:
            other = await client.submit(user("rather not", when_busy="rollback"))
        lease.notify()
        await wait_until(lambda: ends, "the one is cancelled")
        proceed.set()
        await running
        await hand.run_due()

    assert ends == ["dropped", "kept"]
    if act == "interrupt":
        await ended(client, receipt, TurnInterrupted)
        assert await context(client) == [
            ("user", "do both"),
            ("assistant", ("dropped", "kept")),
            ("tool", "CANCELLED"),
            ("tool", "paid"),
        ]
        assert len(requests(sim)) == 1
    else:
        result = await client.result(other, timeout_s=5)
        assert await context(client) == [("user", "do both rather not"), ("assistant", result.text)]
        totals = await client.usage("c")
        assert totals.calls == 2
        assert totals.usage == result.usage
        assert totals.abandoned.total_tokens > 0


@pytest.mark.parametrize("heeds", [True, False])
async def test_a_tool_without_a_limit_ends_with_the_turns_budget(bench: Bench, heeds: bool) -> None:
    """Whether or not it heeds its cancellation; the conversation goes on."""
    over = asyncio.Event()

    @tool(timeout_s=None)
    async def endless() -> str:
        """Never end."""
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                if heeds:
                    raise
        return ""

    bench.sim.inject(calling("endless"))
    async with bench.hand(endless) as hand:
        hand.settings = msgspec.structs.replace(hand.settings, turn_budget_s=0.1)
        receipt = await bench.client.submit(user("go"))
        async with asyncio.timeout(10):
            await hand.run_due()
        await ended(bench.client, receipt, TurnFailed, "turn_budget_exceeded")
        hand.settings = msgspec.structs.replace(hand.settings, turn_budget_s=60.0)
        following = await bench.client.submit(user("and now?"))
        await hand.run_due()
        over.set()

    await ended(bench.client, following, TurnCompleted)
