"""What nobody counted is estimated or unknown, and never passes for what the provider reported."""

import msgspec
import pytest
from redis.asyncio import Redis

from tests.integration.worker.test_failing_alike import run_to_the_end
from tests.support.driving import Hand, ended, user
from turnline.contracts import (
    TurnCompleted,
    TurnInterrupted,
)
from turnline.contracts.conversation import CallEntry, Usage
from turnline.ops.cli import output
from turnline.worker.pipeline.calls import estimated_tokens

pytestmark = pytest.mark.promise("P7")
LONG = "Tell me about the history of the lighthouse and of those who kept it. " * 40


async def interrupted(hand: Hand, text: str) -> TurnInterrupted:
    """Run a turn until it says something, and interrupt it."""
    turn = await hand.speaking(user(text))
    await hand.client.interrupt("c")
    await turn.notified()
    return await ended(hand.client, turn.receipt, TurnInterrupted)


async def test_an_interrupted_call_has_its_prompt_estimated_and_its_cost_unknown(
    hand: Hand,
) -> None:
    """Within a third of what the model counted; everywhere the cost is missing, not nothing."""
    hand.sim.inject("pace;itl_ms=50", times=None)

    result = await interrupted(hand, LONG)

    (request,) = [it for it in hand.sim.ledger.entries() if it.path.endswith("completions")]
    assert result.usage_state == "estimated"
    assert result.usage.prompt_tokens == pytest.approx(request.usage.prompt_tokens, rel=0.34)
    assert result.usage.total_tokens > result.usage.prompt_tokens
    assert result.usage.unpriced_calls == 1
    assert result.usage.cost_usd is None
    totals = await hand.client.usage("c")
    assert totals.usage == result.usage
    assert output.dollars(totals.usage) == "unknown"


async def test_a_sum_says_what_is_missing_from_it(hand: Hand) -> None:
    """One answer with its price and one without: the least that it cost, and what is missing."""
    receipt = await hand.client.submit(user())
    await run_to_the_end(hand)
    answered = await ended(hand.client, receipt, TurnCompleted)
    assert answered.usage.unpriced_calls == 0
    hand.sim.inject("pace;itl_ms=50", times=None)

    await interrupted(hand, "And then?")

    totals = await hand.client.usage("c")
    assert totals.usage.cost_usd == answered.usage.cost_usd
    assert totals.usage.unpriced_calls == 1
    assert output.dollars(totals.usage).startswith("at least $")


@pytest.mark.parametrize(
    ("scenario", "unpriced"),
    [("status=503", 0), ("rate-limit", 0), ("ok-json", 0), ("rst;at=tokens:2", 1), ("ok-html", 1)],
)
async def test_a_refusal_costs_nothing_and_a_reply_cut_off_an_unknown_sum(
    hand: Hand, scenario: str, unpriced: int
) -> None:
    """Of a request that the provider did not take nothing is missing."""
    hand.sim.inject(scenario)
    await hand.client.submit(user())
    await run_to_the_end(hand)

    totals = await hand.client.usage("c")
    assert totals.usage.unpriced_calls == 0
    assert totals.abandoned.unpriced_calls == unpriced
    assert bool(totals.abandoned.prompt_tokens) == bool(unpriced)


async def test_a_lost_workers_call_is_unknown_and_unpriced(redis: Redis, hand: Hand) -> None:
    """Also where an older version left the note."""
    receipt = await hand.client.submit(user())
    note = CallEntry(
        call_id="x/1/1",
        turn_id=receipt.turn_id,
        attempt=1,
        model="m",
        state="unknown",
        abandoned=True,
    )
    await redis.hset("turnline:{s0}:c:c:state", "call", msgspec.json.encode(note))
    await run_to_the_end(hand)

    assert (await hand.client.usage("c")).abandoned == Usage(unpriced_calls=1)


def test_images_count_as_images() -> None:
    """A picture of a megabyte in a request is no quarter of a million tokens."""
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    body = msgspec.json.encode({"messages": [{"role": "user", "content": [part]}]})

    assert 1_000 < estimated_tokens(body) < 2_000


@pytest.mark.parametrize("scenario", ["ticks-absent", "ticks-zero"])
async def test_a_model_without_prices_has_no_cost(hand: Hand, scenario: str) -> None:
    """Reported tokens without a cost are reported, and the cost is unknown."""
    hand.sim.inject(scenario, times=None)
    receipt = await hand.client.submit(user())
    await run_to_the_end(hand)

    result = await ended(hand.client, receipt, TurnCompleted)
    assert result.usage_state == "reported"
    assert result.usage.cost_usd is None
    assert result.usage.unpriced_calls == 1
