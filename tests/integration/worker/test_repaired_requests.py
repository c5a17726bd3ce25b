"""Requests whose earlier reasoning the model refuses: mended once, and nothing else changes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from tests.support.driving import Hand, Running, ended, user
from tests.support.driving import hand as open_hand
from turnline.contracts import TurnClient, TurnCompleted, TurnInterrupted
from turnline.contracts.conversation import AssistantEntry
from turnline.ops.simulator import Simulator


@pytest.fixture
async def thinker(redis_url: str, sim: Simulator, client: TurnClient) -> AsyncIterator[Hand]:
    """A worker that speaks the wire of responses."""
    async with open_hand(redis_url, sim, {"wire": "responses"}) as worker:
        worker.client, worker.sim = client, sim
        yield worker


async def said(worker: Hand, text: str) -> TurnCompleted:
    """Have a turn, and return its end."""
    receipt = await worker.client.submit(user(text))
    await worker.run_one()
    return await ended(worker.client, receipt, TurnCompleted)


def asked(worker: Hand) -> list[tuple[int, list[Any]]]:
    """(status, what the model was sent) of each request."""
    return [
        (entry.status, msgspec.json.decode(entry.body)["input"])
        for entry in worker.sim.ledger.entries()
    ]


def thoughts(items: list[Any]) -> int:
    """How many of these items are reasoning."""
    return sum(item.get("type") == "reasoning" for item in items)


async def lose(worker: Hand, running: Running) -> None:
    """Have a worker die while the model speaks."""
    await worker.expire(running.lease)
    running.task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running.task


@pytest.mark.promise("P6", "P13")
async def test_a_mended_turn_says_what_it_said_and_no_more(thinker: Hand) -> None:
    """The context is written anew without reasoning; earlier answers are not the turn's text."""
    first, second = await said(thinker, "one"), await said(thinker, "two")
    thinker.sim.inject("decrypt")

    third = await said(thinker, "three")

    history = (await thinker.client.history("c")).messages
    answers = [first.text, second.text, third.text]
    assert [it.content for it in history if isinstance(it, AssistantEntry)] == answers
    assert third.usage_state == "reported"
    usage = await thinker.client.usage("c")
    assert (usage.calls, usage.reported_calls, usage.unknown_calls) == (4, 3, 1)
    assert third.usage.reasoning_tokens > 0


@pytest.mark.promise("P7")
async def test_a_refused_request_is_counted_whatever_becomes_of_the_mended_one(
    thinker: Hand,
) -> None:
    """The worker dies while the mended request is answered: both have their entries."""
    await said(thinker, "one")
    thinker.sim.inject("decrypt")
    thinker.sim.inject("stall;at=before-usage", nth=2)
    running = await thinker.speaking(user("two"))
    await thinker.expire(running.lease)

    await thinker.run_one()

    running.task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running.task
    end = await ended(thinker.client, running.receipt, TurnCompleted)
    assert end.attempt == 2
    assert len(thinker.sim.ledger.entries()) == 4
    usage = await thinker.client.usage("c")
    assert (usage.calls, usage.reported_calls, usage.unknown_calls) == (4, 2, 2)


@pytest.fixture
async def lost(thinker: Hand) -> Running:
    """A turn whose request was refused and mended; its worker died when the model spoke."""
    await said(thinker, "one")
    thinker.sim.inject("decrypt")
    thinker.sim.inject("stall;at=before-usage", nth=2)
    running = await thinker.speaking(user("two"))
    await lose(thinker, running)
    return running


@pytest.mark.promise("P13")
async def test_what_was_refused_is_not_sent_again_by_the_next_attempt(
    thinker: Hand, lost: Running
) -> None:
    """It asks as the mended request did, and the turn's commit keeps that."""
    await thinker.run_one()
    await ended(thinker.client, lost.receipt, TurnCompleted)
    await said(thinker, "three")

    (_, first), (refusal, refused), (_, mended), (_, again), (_, last) = asked(thinker)
    assert (refusal, thoughts(refused), thoughts(mended)) == (400, 1, 0)
    assert again == mended
    assert mended[: len(first)] == first
    assert (last[: len(again)], thoughts(last)) == (again, 1)


@pytest.mark.promise("P13")
@pytest.mark.parametrize("fault", ["", "bad-utf8;at=tokens:3"])
async def test_an_interrupt_behind_a_lost_attempt_keeps_the_mended_context(
    thinker: Hand, fault: str
) -> None:
    """The committed words answer the mended request, so the next request begins with that one."""
    await said(thinker, "one")
    thinker.sim.inject("decrypt")
    thinker.sim.inject(fault or "stall;at=before-usage", nth=2)
    if fault:
        receipt = await thinker.client.submit(user("two"))
        await thinker.run_due()  # it waits for its second attempt
    else:
        running = await thinker.speaking(user("two"))
        receipt = running.receipt
        await lose(thinker, running)
    await thinker.client.interrupt("c")
    await thinker.run_due()
    await ended(thinker.client, receipt, TurnInterrupted)

    await said(thinker, "three")

    _, (refusal, _), (_, mended), (_, last) = asked(thinker)
    assert refusal == 400
    assert (last[: len(mended)], thoughts(last)) == (mended, 0)


@pytest.mark.promise("P13")
async def test_a_rollback_behind_a_lost_attempt_does_not_ask_with_it_either(
    thinker: Hand, lost: Running
) -> None:
    """The turn leaves nothing but its spend: that tells what the model cannot read."""
    joined = await thinker.client.submit(user("three", when_busy="rollback"))
    await thinker.run_due()
    await ended(thinker.client, joined, TurnCompleted)

    statuses = [status for status, _ in asked(thinker)]
    _, items = asked(thinker)[-1]
    assert (statuses, thoughts(items)) == ([200, 400, 200, 200], 0)
    assert items[-1]["content"] == "two three"
