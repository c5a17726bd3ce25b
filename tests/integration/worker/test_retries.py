"""Retries, deadlines and breakers: waiting without a slot, and not for ever."""

import asyncio
import time
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.driving import Hand, ended, requests, user
from tests.support.driving import hand as open_hand
from turnline.contracts import TurnClient, TurnCompleted, TurnFailed, TurnInterrupted, UserMessage
from turnline.contracts.keys import conversation_keys
from turnline.ops.simulator import Simulator
from turnline.worker.outcome import Parked

KEYS = conversation_keys("{s0}", "c")


async def run(hand: Hand) -> Parked | None:
    """Run what is due as the queue does; return how it is parked, if it is."""
    outcome = await hand.run_lease(await hand.must_claim())
    return outcome if isinstance(outcome, Parked) else None


@pytest.mark.promise("P3", "P7")
@pytest.mark.parametrize(
    "scenario",
    [
        *("status=500", "status=503", "status=529", "rate-limit", "capacity", "html=522"),
        *("ok-json", "ok-html", "ok-empty", "eof;at=tokens:2", "fin;at=tokens:2"),
        *("rst;at=before-finish", "error-frame;at=tokens:1", "truncated-json;at=tokens:1"),
        *("accept-close", "done-first", "bad-chunk-size;at=tokens:2", "odd-frame;value=null"),
    ],
)
async def test_what_may_pass_is_tried_again_and_counted_once(hand: Hand, scenario: str) -> None:
    """Each retryable failure: the turn waits, a second attempt answers, the first is kept apart."""
    hand.sim.inject(scenario)
    receipt = await hand.client.submit(user("Hello"))

    parked = await run(hand)
    result = None
    if parked is not None:
        assert parked.why == "backoff"
        await hand.make_due("c")
        await run(hand)
        result = await hand.client.result(receipt, timeout_s=5)
        assert result.attempt == 2

    result = result or await hand.client.result(receipt, timeout_s=5)
    assert isinstance(result, TurnCompleted), scenario
    totals = await hand.client.usage("c")
    assert totals.calls == len(requests(hand.sim))
    assert totals.usage == result.usage
    assert totals.turns == 1


async def test_retry_after_is_honoured(hand: Hand) -> None:
    """The provider says when; jitter comes on top."""
    hand.sim.inject("rate-limit;retry_after=7")
    await hand.client.submit(user("Hello"))

    parked = await run(hand)

    assert parked is not None
    assert 7_000 <= parked.defer_ms <= 8_000


@pytest.mark.promise("P12")
@pytest.mark.parametrize("scenario", ["credits", "credits;code=403", "no-credits", "bad-key"])
async def test_out_of_credits_is_never_retried(hand: Hand, scenario: str) -> None:
    """Whatever its status."""
    hand.sim.inject(scenario, times=None)
    receipt = await hand.client.submit(user("Hello"))

    assert await run(hand) is None

    await ended(hand.client, receipt, TurnFailed)
    assert len(requests(hand.sim)) == 1


@pytest.mark.promise("P12")
async def test_a_model_that_is_gone_is_asked_for_once(hand: Hand) -> None:
    """A conversation whose own model was retired: the turn fails by name, the next one runs."""
    await hand.client.configure("c", model="grok-code-fast-1")
    receipt = await hand.client.submit(user("Hello"))

    await hand.run_due()
    await ended(hand.client, receipt, TurnFailed, "model_not_found")
    assert len(requests(hand.sim)) == 1

    await hand.client.configure("c", model="grok-4.7")
    receipt = await hand.client.submit(user("Hello"))
    await hand.run_due()
    await ended(hand.client, receipt, TurnCompleted)


@pytest.mark.promise("P12")
async def test_a_turn_is_not_tried_beyond_its_budget(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """When waiting would outlast the budget the turn fails by the name of what went wrong."""
    sim.inject("status=503;retry_after=60", times=None)
    async with open_hand(redis_url, sim, turn_budget_s=30.0) as hand:
        receipt = await client.submit(user("Hello"))
        await run(hand)

    await ended(client, receipt, TurnFailed, "server_error")
    assert (await client.usage("c")).calls == 1


@pytest.mark.promise("P12")
async def test_a_deadline_that_has_passed_costs_no_call(hand: Hand) -> None:
    """`deadline_at_ms`: an answer of no use is not asked for."""
    receipt = await hand.client.submit(user("Hello", deadline_at_ms=int(time.time() * 1000) - 1))

    await run(hand)

    assert (await hand.client.result(receipt, timeout_s=5)).code == "deadline_exceeded"
    assert len(requests(hand.sim)) == 0


async def test_a_message_does_not_end_a_backoff_but_an_interrupt_does(
    redis: Redis, hand: Hand
) -> None:
    """What was shown before is kept as the partial reply."""
    hand.sim.inject("rst;at=tokens:4", times=None)
    receipt = await hand.client.submit(user("Hello"))
    lease = await hand.must_claim()
    running = asyncio.create_task(hand.driver().run(lease))
    shown = [text async for text in _first(hand.client.text(receipt))]
    await hand.release(lease, await running)
    await redis.zadd("turnline:{s0}:queue", {"{s0}:c": 2**45}, xx=True)  # a long deferral
    await hand.client.submit(user("another"))
    assert await hand.claim() is None

    await hand.client.interrupt("c")
    await run(hand)

    result = await ended(hand.client, receipt, TurnInterrupted)
    assert result.text.startswith(shown[0].strip())
    history = await hand.client.history("c")
    assert [m.content for m in history.messages][:2] == ["Hello", result.text]


async def _first(texts: Any):
    async for text in texts:
        yield text
        return


@pytest.mark.promise("P12")
async def test_an_outage_opens_the_breaker_for_all_and_a_probe_closes_it(
    redis: Redis, redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """Ten failures in a row: turns wait without calling; one call tries; then all go on."""
    rule = sim.inject("status=503", times=None)
    async with open_hand(redis_url, sim) as one, open_hand(redis_url, sim) as other:
        driver_one, driver_other = one.driver(), other.driver()
        for n in range(12):
            await client.submit(UserMessage(conversation_id=f"c{n}", text="Hello"))
        for _ in range(12):
            lease = await one.must_claim()
            await one.release(lease, await driver_one.run(lease))
        assert len(requests(sim)) == 10
        name = next(iter(await redis.hkeys("turnline:{s0}:breakers"))).rpartition(b"|")[0]

        await client.submit(UserMessage(conversation_id="late", text="Hello"))
        lease = await other.must_claim()
        outcome = await driver_other.run(lease)  # looks at the fleet's view beside its first call
        assert isinstance(outcome, Parked)
        await other.release(lease, outcome)
        await other.make_due("late")
        lease = await other.must_claim()
        outcome = await driver_other.run(lease)
        assert isinstance(outcome, Parked)
        await other.release(lease, outcome)
        assert len(requests(sim)) == 11

        sim.rules.remove(rule)
        await redis.hset("turnline:{s0}:breakers", name + b"|until", 0)
        for n in range(12):
            await one.make_due(f"c{n}")
            lease = await one.must_claim()
            outcome = await driver_one.run(lease)
            assert not isinstance(outcome, Parked)
        assert len(requests(sim)) == 11 + 12
        assert await redis.exists("turnline:{s0}:breakers") == 0
