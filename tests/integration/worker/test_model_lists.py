"""A turn falls back to the next model of a list by named codes only, and says which answered."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from tests.integration.tools.bench import calling, tool_hand
from tests.support.driving import Hand, ended, fleet, requests, run_again, run_next, user
from tests.support.driving import hand as open_hand
from turnline.contracts import TurnClient, TurnCompleted, TurnFailed
from turnline.contracts.conversation import CallEntry
from turnline.contracts.keys import conversation_keys
from turnline.ops.simulator import Simulator
from turnline.worker.tools import tool
from turnline.worker.turn.plan import AgentsFile, Planner

FIRST, SECOND = "grok-4.7", "grok-4.3"
LIST = {"model": f"{FIRST},{SECOND}"}
SILENT = "pace;ttft_ms=60000,keepalive_s=0.02"
"""The model is at work, and says nothing."""
KEYS = conversation_keys("{s0}", "c")
decode = msgspec.json.Decoder(CallEntry).decode


@asynccontextmanager
async def opened(
    redis_url: str, sim: Simulator, client: TurnClient, environ: dict[str, str], **more: Any
) -> AsyncIterator[Hand]:
    """A worker moved by hand, with this list."""
    async with open_hand(redis_url, sim, environ, **more) as worker:
        worker.client, worker.sim = client, sim
        yield worker


@pytest.fixture
async def hand(redis_url: str, sim: Simulator, client: TurnClient) -> AsyncIterator[Hand]:
    """A worker moved by hand, with two models."""
    async with opened(redis_url, sim, client, LIST) as worker:
        yield worker


def asked(sim: Simulator) -> list[str]:
    """The models that were asked, in order."""
    return [it["model"] for it in requests(sim)]


# -- which failures -------------------------------------------------------------------------------


@pytest.mark.promise("P3", "P7")
@pytest.mark.parametrize("wire", ["chat", "responses"])
@pytest.mark.parametrize(
    ("scenario", "code"),
    [
        ("model-not-found", "model_not_found"),
        ("model-no-access", "model_not_found"),
        ("end-of-life", "model_not_found"),
        ("capacity", "overloaded"),
        ("status=503", "server_error"),
        ("ok-json", "stream_error"),
        ("rate-limit;retry_after=60", "rate_limited"),
    ],
)
async def test_a_failure_that_names_the_model_has_the_next_one_answer(
    redis_url: str,
    redis: Redis,
    sim: Simulator,
    client: TurnClient,
    scenario: str,
    code: str,
    wire: str,
) -> None:
    """At once, and event, ledger and spend say which model it was."""
    async with opened(redis_url, sim, client, {**LIST, "wire": wire}) as hand:
        sim.inject(scenario, model=FIRST, times=None)
        receipt = await client.submit(user())

        parked = await run_next(hand)
        assert parked is not None
        assert (parked.why, parked.defer_ms) == ("backoff", 1)
        assert await run_again(hand) is None

    end = await ended(client, receipt, TurnCompleted)
    assert asked(sim) == [FIRST, SECOND]
    assert (end.model, end.attempt) == (SECOND, 2)
    record = await client.record(receipt)
    assert record is not None
    assert record.attempts == 2
    calls = [decode(it) for it in await redis.lrange(KEYS.calls, 0, -1)]
    assert [(it.model, it.error, it.abandoned) for it in calls] == [
        (FIRST, code, True),
        (SECOND, None, False),
    ]
    spend = {it.model: it.usage for it in await client.spend(by=["model"])}
    assert spend[SECOND] == end.usage == (await client.usage("c")).usage
    assert spend[FIRST].cost_usd_ticks == 0


@pytest.mark.promise("P12")
@pytest.mark.parametrize(
    "scenario",
    [
        *("bad-key", "no-credentials", "credits", "no-credits", "safety"),
        *("context-length", "effort", "bad-schema", "status=403"),
    ],
)
async def test_what_no_other_model_mends_fails_at_once(hand: Hand, scenario: str) -> None:
    """Keys, money, content and requests that are wrong: nobody else is asked."""
    hand.sim.inject(scenario, model=FIRST, times=None)
    receipt = await hand.client.submit(user())

    assert await run_next(hand) is None

    await ended(hand.client, receipt, TurnFailed)
    assert asked(hand.sim) == [FIRST]


@pytest.mark.parametrize(
    "scenario",
    [
        "rate-limit",
        "rate-limit;retry_after=9",
        "accept-close",
        "ok-empty",
        "error-frame;at=tokens:3",
    ],
)
async def test_other_failures_are_tried_again_with_the_same_model(
    hand: Hand, scenario: str
) -> None:
    """Limits that pass, lost connections, unusable replies, replies of which a part was seen."""
    hand.sim.inject(scenario, model=FIRST)
    receipt = await hand.client.submit(user())

    parked = await run_next(hand)
    assert parked is not None
    await run_again(hand)

    end = await ended(hand.client, receipt, TurnCompleted)
    assert asked(hand.sim) == [FIRST, FIRST]
    assert end.model == FIRST


async def test_a_model_that_says_nothing_is_left_for_the_next_one(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """Also if it was at work all the time: the next one may be faster."""
    sim.inject(SILENT, model=FIRST, times=None)
    environ = {**LIST, "first_token_timeout_s": "2"}
    async with opened(redis_url, sim, client, environ) as hand:
        receipt = await client.submit(user())
        await run_next(hand)
        await run_again(hand)

    end = await ended(client, receipt, TurnCompleted)
    assert asked(sim) == [FIRST, SECOND]
    assert end.model == SECOND


# -- a whole turn ---------------------------------------------------------------------------------


@pytest.mark.promise("P6")
async def test_a_turn_goes_on_with_another_model_behind_its_tools(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """The model fails when it is asked again: nothing is run or said a second time."""
    ran: list[int] = []

    @tool
    async def count() -> str:
        """Count."""
        ran.append(1)
        return "1"

    sim.inject(calling("count", say="Let%20me%20see."), nth=1)
    sim.inject("capacity", model=FIRST, nth=2)
    async with tool_hand(redis_url, sim, count, environ=LIST) as hand:
        receipt = await client.submit(user())
        await run_next(hand)
        await run_again(hand)

    end = await ended(client, receipt, TurnCompleted)
    assert (asked(sim), ran) == ([FIRST, FIRST, SECOND], [1])
    assert end.text.count("Let me see.") == 1
    assert end.model == SECOND
    assert [it async for it in client.text(receipt)][-1] == end.text


async def test_the_list_is_kept_through_a_crash(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """A worker that goes on asks the next model, not the one that failed."""
    sim.inject("model-not-found", model=FIRST, times=None)
    async with opened(redis_url, sim, client, LIST) as one:
        receipt = await client.submit(user())
        await run_next(one)
        await one.make_due("c")
        await one.expire(await one.must_claim())  # and is never heard of again
    async with opened(redis_url, sim, client, LIST) as other:
        assert await run_next(other) is None

    await ended(client, receipt, TurnCompleted)
    assert asked(sim) == [FIRST, SECOND]


async def test_where_all_fail_the_first_is_asked_again_after_a_wait(hand: Hand) -> None:
    """Backing off as with one model; without a slot."""
    hand.sim.inject("status=503", times=2)
    receipt = await hand.client.submit(user())

    first = await run_next(hand)
    assert first is not None
    assert first.defer_ms == 1
    second = await run_again(hand)
    assert second is not None
    assert second.why == "backoff"
    await run_again(hand)

    end = await ended(hand.client, receipt, TurnCompleted)
    assert asked(hand.sim) == [FIRST, SECOND, FIRST]
    assert end.model == FIRST


async def test_where_no_model_is_served_the_turn_fails_by_name(hand: Hand) -> None:
    """Each is asked once."""
    hand.sim.inject("model-not-found", times=None)
    receipt = await hand.client.submit(user())
    await run_next(hand)
    assert await run_again(hand) is None

    await ended(hand.client, receipt, TurnFailed, "model_not_found")
    assert asked(hand.sim) == [FIRST, SECOND]


async def test_a_model_that_is_not_served_is_not_asked_again(hand: Hand) -> None:
    """The other one failed for a moment: it alone is tried again."""
    hand.sim.inject("model-not-found", model=FIRST, times=None)
    hand.sim.inject("status=503", model=SECOND)
    receipt = await hand.client.submit(user())
    await run_next(hand)
    await run_again(hand)
    await run_again(hand)

    await ended(hand.client, receipt, TurnCompleted)
    assert asked(hand.sim) == [FIRST, SECOND, SECOND]


@pytest.mark.promise("P12")
@pytest.mark.parametrize(
    ("attempts", "models", "code"),
    [(1, [FIRST], "attempts_exhausted"), (5, [FIRST, SECOND], "first_token_timeout")],
)
async def test_the_bounds_of_a_turn_hold_whatever_model_is_asked(
    redis_url: str, sim: Simulator, client: TurnClient, attempts: int, models: list[str], code: str
) -> None:
    """Calls that have to be paid for count, and the last model is no reason to begin anew."""
    sim.inject(SILENT, times=None)
    environ = {**LIST, "first_token_timeout_s": "0.1"}
    async with opened(redis_url, sim, client, environ, turn_attempts=attempts) as hand:
        receipt = await client.submit(user())
        for _ in models[1:]:
            assert await run_next(hand) is not None
            await hand.make_due("c")
        assert await run_next(hand) is None

    await ended(client, receipt, TurnFailed, code)
    assert asked(sim) == models


# -- breakers -------------------------------------------------------------------------------------


async def open_breaker(hand: Hand, *models: str) -> None:
    """Have ten calls of different conversations fail."""
    for model in models:
        for n in range(10):
            await hand.breakers.failed(f"{hand.sim.base_url} {model}", f"x{n}")


async def test_an_open_breaker_has_the_next_model_asked(hand: Hand) -> None:
    """That of the first says nothing of the second."""
    await open_breaker(hand, FIRST)
    receipt = await hand.client.submit(user())
    assert await run_next(hand) is None

    end = await ended(hand.client, receipt, TurnCompleted)
    assert (asked(hand.sim), end.model, end.attempt) == ([SECOND], SECOND, 1)


async def test_what_was_passed_over_counts_as_failed(hand: Hand) -> None:
    """So a turn does not go in circles while one breaker is open and the other model fails."""
    await open_breaker(hand, FIRST)
    hand.sim.inject("status=503", model=SECOND, times=None)
    await hand.client.submit(user())
    parked = await run_next(hand)
    assert parked is not None
    steps = await hand.redis.execute_command("LRANGE", KEYS.steps, 0, -1)
    assert [it for it in steps if it[:1] == b"f"] == [
        b'f{"model":"grok-4.7","code":"provider_unavailable"}',
        b'f{"model":"grok-4.3","code":"server_error"}',
    ]


async def test_where_all_breakers_are_open_turns_wait(hand: Hand) -> None:
    """As with one model."""
    await open_breaker(hand, FIRST, SECOND)
    await hand.client.submit(user())

    parked = await run_next(hand)
    assert parked is not None
    assert parked.why == "backoff"
    assert asked(hand.sim) == []


# -- whose list -----------------------------------------------------------------------------------

AGENTS = """
[careful]
model = ["grok-4.5", "grok-4.6"]

[plain]
model = "grok-4.6"

[usual]
temperature = 0.5
"""


@pytest.mark.parametrize(
    ("settings", "agent", "models"),
    [
        ({}, None, [FIRST, SECOND]),
        ({}, "usual", [FIRST, SECOND]),
        ({}, "careful", ["grok-4.5", "grok-4.6"]),
        ({"agent": "careful"}, None, ["grok-4.5", "grok-4.6"]),
        ({"agent": "careful", "model": "grok-4.3"}, None, ["grok-4.3"]),
        ({"model": "grok-4.3"}, "careful", ["grok-4.5", "grok-4.6"]),
        ({"model": "grok-4.3"}, "plain", ["grok-4.6"]),
        ({"agent": "plain"}, None, ["grok-4.6"]),
    ],
)
async def test_whoever_says_the_model_says_the_list(
    hand: Hand, tmp_path: Path, settings: dict[str, str], agent: str | None, models: list[str]
) -> None:
    """A message's profile, the conversation, its agent, the worker; lists do not mix."""
    path = tmp_path / "agents.toml"
    path.write_text(AGENTS)
    hand.planner = Planner(agents=AgentsFile(path, []))
    if settings:
        await hand.client.configure("c", **settings)
    hand.sim.inject("model-not-found", times=None)
    receipt = await hand.client.submit(user(agent=agent) if agent else user())
    while await run_next(hand) is not None:
        await hand.make_due("c")

    await ended(hand.client, receipt, TurnFailed, "model_not_found")
    assert asked(hand.sim) == models


async def test_a_fleet_answers_though_its_first_model_is_gone(
    redis_url: str, client: TurnClient
) -> None:
    """It starts, says so, and every turn is answered by the one that is served."""
    async with Simulator() as sim, fleet(redis_url, sim, model="grok-99,grok-4.3"):
        receipts = [await client.submit(user(conversation=f"c{n}")) for n in range(5)]
        ends = [await ended(client, it, TurnCompleted) for it in receipts]

    assert {it.model for it in ends} == {SECOND}
    assert asked(sim).count("grok-99") == 5
