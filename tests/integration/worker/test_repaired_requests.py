"""Requests whose earlier reasoning the model refuses: mended once, and nothing else changes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.support.driving import Hand, ended, user
from tests.support.driving import hand as open_hand
from turnline.contracts import TurnClient, TurnCompleted
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
