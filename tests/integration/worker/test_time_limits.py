"""How long a model is waited for: long while it thinks, not long where its connection is silent."""

import pytest

from tests.support.driving import Hand, ended, requests, user
from tests.support.driving import hand as open_hand
from turnline.contracts import TurnClient, TurnCompleted, TurnFailed
from turnline.contracts.conversation import ConversationSettings
from turnline.ops.simulator import Simulator
from turnline.worker.outcome import Parked

SILENCE_S = 0.3
QUICK = {"silence_timeout_s": f"{SILENCE_S}"}
THINKS = "stall;at=after-headers,keepalive=0.02,seconds={}"


async def run_out(hand: Hand) -> int:
    """Run the conversation until nothing of it waits, and return the number of attempts."""
    for attempts in range(1, 20):
        if not isinstance(await hand.run_lease(await hand.must_claim()), Parked):
            return attempts
        await hand.make_due("c")
    raise AssertionError("it is tried for ever")


@pytest.mark.promise("P12")
async def test_a_thought_is_waited_for(redis_url: str, sim: Simulator, client: TurnClient) -> None:
    """Keep-alives for several times as long as silence may last: one request, one answer."""
    sim.inject(THINKS.format(4 * SILENCE_S))
    async with open_hand(redis_url, sim, QUICK) as hand:
        receipt = await client.submit(user("Hello"))

        assert await run_out(hand) == 1
        await ended(client, receipt, TurnCompleted)

    assert len(requests(sim)) == 1


@pytest.mark.promise("P12")
async def test_a_model_at_work_is_not_asked_twice(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """Where an operator sets a limit that is too short, the same request would outlast it again."""
    sim.inject(THINKS.format(60), times=None)
    async with open_hand(redis_url, sim, {"first_token_timeout_s": "0.3"}) as hand:
        receipt = await client.submit(user("Hello"))

        assert await run_out(hand) == 1
        await ended(client, receipt, TurnFailed, "first_token_timeout")

    assert len(requests(sim)) == 1
    totals = await client.usage("c")
    assert (totals.calls, totals.estimated_calls) == (1, 1)
    assert totals.abandoned.prompt_tokens > 0


@pytest.mark.promise("P12")
@pytest.mark.parametrize("at", ["before-headers", "after-headers", "tokens:2"])
async def test_a_silent_connection_is_tried_again_once(
    redis_url: str, sim: Simulator, client: TurnClient, at: str
) -> None:
    """Not even a keep-alive: two requests, then the turn fails, and both stand in the ledger."""
    sim.inject(f"stall;at={at}", times=None)
    async with open_hand(redis_url, sim, QUICK) as hand:
        receipt = await client.submit(user("Hello"))

        assert await run_out(hand) == 2
        failed = await ended(client, receipt, TurnFailed, "silence_timeout")

    assert "2 times in this turn" in failed.message
    assert len(requests(sim)) == 2
    totals = await client.usage("c")
    assert (totals.calls, totals.estimated_calls) == (2, 2)
    assert totals.abandoned.prompt_tokens > 0
    assert totals.abandoned.unpriced_calls == 2


@pytest.mark.promise("P12")
async def test_what_the_stalled_call_cost_stands_beside_the_answer(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """One stall, one answer: the totals are the answer's, the stall's are kept apart."""
    sim.inject("stall;at=tokens:2")
    async with open_hand(redis_url, sim, QUICK) as hand:
        receipt = await client.submit(user("Hello"))

        assert await run_out(hand) == 2
        completed = await ended(client, receipt, TurnCompleted)

    totals = await client.usage("c")
    assert totals.usage == completed.usage
    assert (totals.calls, totals.estimated_calls) == (2, 1)
    assert totals.abandoned.total_tokens > 0


async def test_comments_that_end_are_silence(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """A model that thought and then died is found by its silence, and asked again."""
    sim.inject(f"{THINKS.format(2 * SILENCE_S)}|stall;at=tokens:1")
    async with open_hand(redis_url, sim, QUICK) as hand:
        receipt = await client.submit(user("Hello"))

        assert await run_out(hand) == 2
        await ended(client, receipt, TurnCompleted)


async def test_a_turns_budget_goes_by_model_and_effort(redis_url: str, sim: Simulator) -> None:
    """Half an hour where the model thinks; ten minutes where it does not, or nobody knows."""
    thoughts = [("grok-4.7", None), ("grok-4.3", None), ("grok-4.3", "high"), ("grok-4", None)]
    others = [("grok-4.3", "none"), ("grok-4.20-non-reasoning", None), ("gpt-9", "high")]
    async with open_hand(redis_url, sim) as hand:
        found = [
            hand.services.budget_s(ConversationSettings(model=model, reasoning_effort=effort))
            for model, effort in (*thoughts, *others)
        ]

    assert found == [1800.0] * len(thoughts) + [600.0] * len(others)


@pytest.mark.promise("P12")
async def test_a_budget_ends_a_thought(redis_url: str, sim: Simulator, client: TurnClient) -> None:
    """Keep-alives without end: one request, and the turn fails at the end of its budget."""
    sim.inject(THINKS.format(60), times=None)
    async with open_hand(redis_url, sim, turn_budget_s=0.5) as hand:
        receipt = await client.submit(user("Hello"))

        assert await run_out(hand) == 1
        await ended(client, receipt, TurnFailed, "total_timeout")

    assert len(requests(sim)) == 1
