"""What nobody counted is estimated or unknown, and never passes for what the provider reported."""

import asyncio
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from tests.integration.worker.test_failing_alike import run_to_the_end
from tests.support.driving import Hand
from turnline.contracts import (
    TurnClient,
    TurnCompleted,
    TurnInterrupted,
    UserMessage,
)
from turnline.contracts.conversation import CallEntry, Usage
from turnline.ops.cli import output
from turnline.ops.simulator import Simulator
from turnline.worker.pipeline.calls import estimated_tokens

pytestmark = pytest.mark.promise("P7")
LONG = "Tell me about the history of the lighthouse and of those who kept it. " * 40


def user(text: str = "Hello", **more: Any) -> UserMessage:
    return UserMessage(conversation_id="c", text=text, **more)


async def interrupted(hand: Hand, client: TurnClient, text: str) -> TurnInterrupted:
    """Run a turn until it says something, and interrupt it."""
    receipt = await client.submit(user(text))
    lease = await hand.must_claim()
    running = asyncio.create_task(hand.driver().run(lease))
    async for _ in client.text(receipt):
        break
    await client.interrupt("c")
    lease.notify()
    await running
    result = await client.result(receipt, timeout_s=5)
    assert isinstance(result, TurnInterrupted)
    return result


async def test_an_interrupted_call_has_its_prompt_estimated_and_its_cost_unknown(
    hand: Hand, client: TurnClient, sim: Simulator
) -> None:
    """Within a third of what the model counted; everywhere the cost is missing, not nothing."""
    sim.inject("pace;itl_ms=50", times=None)

    result = await interrupted(hand, client, LONG)

    (request,) = [it for it in sim.ledger.entries() if it.path.endswith("completions")]
    assert result.usage_state == "estimated"
    assert result.usage.prompt_tokens == pytest.approx(request.usage.prompt_tokens, rel=0.34)
    assert result.usage.total_tokens > result.usage.prompt_tokens
    assert result.usage.unpriced_calls == 1
    assert result.usage.cost_usd is None
    totals = await client.usage("c")
    assert totals.usage == result.usage
    assert output.dollars(totals.usage) == "unknown"


async def test_a_sum_says_what_is_missing_from_it(
    hand: Hand, client: TurnClient, sim: Simulator
) -> None:
    """One answer with its price and one without: the least that it cost, and what is missing."""
    receipt = await client.submit(user())
    await run_to_the_end(hand)
    answered = await client.result(receipt, timeout_s=5)
    assert isinstance(answered, TurnCompleted)
    assert answered.usage.unpriced_calls == 0
    sim.inject("pace;itl_ms=50", times=None)

    await interrupted(hand, client, "And then?")

    totals = await client.usage("c")
    assert totals.usage.cost_usd == answered.usage.cost_usd
    assert totals.usage.unpriced_calls == 1
    assert output.dollars(totals.usage).startswith("at least $")


@pytest.mark.parametrize(
    ("scenario", "unpriced"),
    [("status=503", 0), ("rate-limit", 0), ("ok-json", 0), ("rst;at=tokens:2", 1), ("ok-html", 1)],
)
async def test_a_refusal_costs_nothing_and_a_reply_cut_off_an_unknown_sum(
    hand: Hand, client: TurnClient, sim: Simulator, scenario: str, unpriced: int
) -> None:
    """Of a request that the provider did not take nothing is missing."""
    sim.inject(scenario)
    await client.submit(user())
    await run_to_the_end(hand)

    totals = await client.usage("c")
    assert totals.usage.unpriced_calls == 0
    assert totals.abandoned.unpriced_calls == unpriced
    assert bool(totals.abandoned.prompt_tokens) == bool(unpriced)


async def test_a_lost_workers_call_is_unknown_and_unpriced(
    redis: Redis, hand: Hand, client: TurnClient
) -> None:
    """Also where an older version left the note."""
    receipt = await client.submit(user())
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

    assert (await client.usage("c")).abandoned == Usage(unpriced_calls=1)


def test_images_count_as_images() -> None:
    """A picture of a megabyte in a request is no quarter of a million tokens."""
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    body = msgspec.json.encode({"messages": [{"role": "user", "content": [part]}]})

    assert 1_000 < estimated_tokens(body) < 2_000


@pytest.mark.parametrize("scenario", ["ticks-absent", "ticks-zero"])
async def test_a_model_without_prices_has_no_cost(
    hand: Hand, client: TurnClient, sim: Simulator, scenario: str
) -> None:
    """Reported tokens without a cost are reported, and the cost is unknown."""
    sim.inject(scenario, times=None)
    receipt = await client.submit(user())
    await run_to_the_end(hand)

    result = await client.result(receipt, timeout_s=5)
    assert isinstance(result, TurnCompleted)
    assert result.usage_state == "reported"
    assert result.usage.cost_usd is None
    assert result.usage.unpriced_calls == 1
