"""Several keys and addresses are used as one: by who has room, and without who fails."""

import asyncio
import logging
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from click.testing import CliRunner

from tests.integration.tools.bench import calling, toolbox_of
from tests.support.driving import (
    SHARD,
    Hand,
    ended,
    fleet,
    limiter_on,
    requests,
    run_again,
    run_next,
    settings_for,
    user,
)
from tests.support.driving import hand as open_hand
from tests.support.wait import wait_until
from turnline.contracts import TurnClient, TurnCompleted, TurnFailed
from turnline.contracts.keys import conversation_keys
from turnline.ops.cli.app import turnline
from turnline.ops.simulator import Simulator, SimulatorConfig
from turnline.worker.errors import StartFailed
from turnline.worker.main import make_fleet
from turnline.worker.pool import Member
from turnline.worker.provider_limits import Caller
from turnline.worker.store.limiter import RateLimiter
from turnline.worker.tools import tool
from turnline.worker.turn.plan import Planner

KEYS = ("xai-one", "xai-two")
C = conversation_keys("{s0}", "c")


@asynccontextmanager
async def opened(
    redis_url: str, sim: Simulator, client: TurnClient, **environ: str
) -> AsyncIterator[Hand]:
    """A worker moved by hand, with two keys if nothing else is said."""
    async with open_hand(redis_url, sim, {"api_key": ",".join(KEYS), **environ}) as worker:
        worker.client, worker.sim = client, sim
        yield worker


@pytest.fixture
async def hand(redis_url: str, sim: Simulator, client: TurnClient) -> AsyncIterator[Hand]:
    """A worker moved by hand, with two keys."""
    async with opened(redis_url, sim, client) as worker:
        yield worker


def asked(sim: Simulator) -> list[str]:
    """By which keys replies were asked for, in order."""
    marks = {f"{zlib.crc32(key.encode()):08x}": key for key in KEYS}
    posts = (it for it in sim.ledger.entries() if it.method == "POST")
    return [marks[it.key] for it in posts]


def members(hand: Hand, conversation: str = "c") -> list[Member]:
    """In the order in which a conversation prefers them."""
    return list(hand.pool.order(conversation))


def keys(hand: Hand, conversation: str = "c") -> list[str]:
    """Their keys."""
    return [KEYS[it.number] for it in members(hand, conversation)]


# -- which one ------------------------------------------------------------------------------------


async def test_a_conversation_stays_with_one_key(hand: Hand) -> None:
    """So its prompt is cached; conversations are spread over all keys."""
    names = [f"c{n}" for n in range(12)]
    for _ in range(3):
        for name in names:
            await hand.client.submit(user(conversation=name))
            await run_next(hand)

    expected = [keys(hand, name)[0] for name in names]
    assert asked(hand.sim) == expected * 3
    assert set(expected) == set(KEYS)


@pytest.fixture
async def limited(hand: Hand) -> AsyncIterator[list[RateLimiter]]:
    """Each key allows one call a minute."""
    limiters = [limiter_on(hand.batcher, "*=1rpm", key=key) for key in KEYS]
    hand.limiters = [*limiters]
    yield limiters
    for it in limiters:
        await it.aclose()


async def in_line(hand: Hand) -> int:
    """How many wait for any limit."""
    keys = await hand.redis.execute_command("KEYS", "*:line")
    return sum([await hand.redis.execute_command("ZCARD", it) for it in keys])


async def test_who_is_let_through_by_one_key_waits_in_no_line_of_another(
    hand: Hand, limited: list[RateLimiter]
) -> None:
    """It stood in the line of the second, whose time would have come first."""
    first, second = (limited[it.number] for it in members(hand))
    await second.reserve("grok-4.3", Caller("another"), int, None)
    before = await hand.redis.execute_command("KEYS", "*:limit:*")
    await first.reserve("grok-4.3", Caller("another"), int, None)
    await hand.client.submit(user())
    assert await run_next(hand) is not None
    assert await in_line(hand) == 1
    for key in await hand.redis.execute_command("KEYS", "*:limit:*"):
        if key.removesuffix(b":line").removesuffix(b":due").removesuffix(b":shares") not in before:
            await hand.redis.execute_command("DEL", key)  # the first has room again

    assert await run_again(hand) is None
    await wait_until(lambda: no_line(hand), "the line of the second is left")
    assert asked(hand.sim) == keys(hand)[:1]


async def no_line(hand: Hand) -> bool:
    return await in_line(hand) == 0


@pytest.mark.usefixtures("limited")
async def test_a_call_goes_to_whoever_has_room(hand: Hand) -> None:
    """The preferred key has none: the other one; both have none: the turn waits in one line."""
    for _ in range(2):
        receipt = await hand.client.submit(user())
        assert await run_next(hand) is None
        await ended(hand.client, receipt, TurnCompleted)
    assert asked(hand.sim) == keys(hand)
    assert await in_line(hand) == 0

    await hand.client.submit(user())
    parked = await run_next(hand)
    assert parked is not None
    assert parked.why == "limit"
    assert 10_000 < parked.defer_ms < 62_000
    assert len(asked(hand.sim)) == 2
    assert await in_line(hand) == 1


async def test_a_turn_that_thinks_stays_with_its_key(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """Another one cannot read its thoughts: between its tools it waits, though there is room."""

    @tool
    async def look() -> str:
        """Look."""
        return "nothing"

    sim.inject(calling("look"))
    async with opened(redis_url, sim, client, wire="responses", model="grok-4.7") as hand:
        limiters = [limiter_on(hand.batcher, "*=1rpm", key=key) for key in KEYS]
        hand.limiters, hand.planner = [*limiters], Planner(toolbox_of(look))
        await client.submit(user())
        assert await run_next(hand) is not None  # for longer than it would in its slot
        parked = await run_again(hand)
        for it in limiters:
            await it.aclose()

        assert parked is not None
        assert parked.why == "limit"
        assert asked(sim) == keys(hand)[:1]


# -- who fails ------------------------------------------------------------------------------------


@pytest.mark.promise("P10", "P12")
@pytest.mark.parametrize(
    ("scenario", "code"),
    [("bad-key", "auth"), ("no-credentials", "auth"), ("credits", "credits")],
)
async def test_a_key_that_fails_is_left_out(
    hand: Hand, caplog: pytest.LogCaptureFixture, scenario: str, code: str
) -> None:
    """The turn goes on with another one at once, later turns begin with it; it is said once."""
    first, second = keys(hand)
    hand.sim.inject(scenario, key=first, times=None)
    receipt = await hand.client.submit(user())
    parked = await run_next(hand)
    assert parked is not None
    assert parked.defer_ms == 1
    assert await run_again(hand) is None
    end = await ended(hand.client, receipt, TurnCompleted)
    assert end.attempt == 2

    for n in range(3):
        receipt = await hand.client.submit(user(conversation=f"c{n}"))
        await run_next(hand)
        await ended(hand.client, receipt, TurnCompleted)

    assert asked(hand.sim) == [first, *[second] * 4]
    (said,) = (it for it in caplog.records if it.message == "provider.left_out")
    assert (vars(said)["provider"], vars(said)["code"]) == (members_name(hand, first), code)
    assert not any(key in caplog.text for key in KEYS)


def members_name(hand: Hand, key: str) -> str:
    """What a member is called where people see it."""
    return f"{hand.sim.base_url} (key {KEYS.index(key) + 1})"


@pytest.mark.promise("P12")
async def test_if_every_key_fails_the_turn_fails_by_name(hand: Hand) -> None:
    """Each is asked once in a turn, also when all are left out already."""
    hand.sim.inject("credits", times=None)
    for _ in range(2):
        receipt = await hand.client.submit(user())
        assert await run_next(hand) is not None
        assert await run_again(hand) is None
        await ended(hand.client, receipt, TurnFailed, "credits")

    assert sorted(asked(hand.sim)) == sorted(KEYS * 2)


async def test_a_key_that_is_told_to_wait_long_has_another_one_asked(hand: Hand) -> None:
    """It is not left out: later turns begin with it, or with whoever has room."""
    first, second = keys(hand)
    hand.sim.inject("rate-limit;retry_after=60", key=first)
    receipt = await hand.client.submit(user())
    assert await run_next(hand) is not None
    assert await run_again(hand) is None

    await ended(hand.client, receipt, TurnCompleted)
    assert asked(hand.sim) == [first, second]
    assert len(members(hand)) == 2


async def test_a_failing_address_does_not_lead_to_a_key_without_credits(
    redis_url: str, client: TurnClient
) -> None:
    """The turn waits for the address, as it would with one key."""
    async with two_addresses(redis_url, client) as (hand, spare):
        hand.pool.leave_out(members(hand)[1], "credits")
        hand.sim.inject("status=503")
        receipt = await client.submit(user())
        assert await run_next(hand) is not None
        steps = await hand.redis.execute_command("LRANGE", C.steps, 0, -1)
        assert not any(it[:1] == b"f" for it in steps)
        assert await run_again(hand) is None

        await ended(client, receipt, TurnCompleted)
        assert (len(requests(hand.sim)), len(requests(spare))) == (2, 0)


async def test_a_failing_address_is_no_reason_for_another_key_there(hand: Hand) -> None:
    """The turn waits, and the same key is asked again."""
    hand.sim.inject("status=503")
    receipt = await hand.client.submit(user())
    assert await run_next(hand) is not None
    assert await run_again(hand) is None

    await ended(hand.client, receipt, TurnCompleted)
    assert asked(hand.sim) == keys(hand)[:1] * 2


async def test_what_is_wrong_with_the_request_is_not_tried_elsewhere(hand: Hand) -> None:
    """Content, parameters, models: no other key mends them."""
    hand.sim.inject("safety", times=None)
    receipt = await hand.client.submit(user())
    assert await run_next(hand) is None

    await ended(hand.client, receipt, TurnFailed, "safety")
    assert len(asked(hand.sim)) == 1


@asynccontextmanager
async def two_addresses(
    redis_url: str, client: TurnClient, **environ: str
) -> AsyncIterator[tuple[Hand, Simulator]]:
    """A worker with one key at two addresses; its `sim` is the one that `c` prefers."""
    async with Simulator() as one, Simulator() as other:
        urls = {it.base_url: it for it in (one, other)}
        async with opened(
            redis_url, one, client, api_key="xai-one", base_url=",".join(urls), **environ
        ) as hand:
            hand.sim, spare = (urls[it.base_url] for it in members(hand))
            yield hand, spare


@pytest.mark.parametrize("scenario", ["accept-close", "status=503", "capacity", "model-not-found"])
async def test_an_address_that_fails_has_another_one_asked(
    redis_url: str, client: TurnClient, scenario: str
) -> None:
    """At once; what fails with a key is no matter of the address."""
    async with two_addresses(redis_url, client) as (hand, spare):
        hand.sim.inject(scenario, times=None)
        receipt = await client.submit(user())
        assert await run_next(hand) is not None
        assert await run_again(hand) is None

        await ended(client, receipt, TurnCompleted)
        assert (len(requests(hand.sim)), len(requests(spare))) == (1, 1)


@pytest.mark.parametrize("scenario", ["accept-close", "status=503"])
async def test_where_all_addresses_failed_they_are_asked_in_turn(
    redis_url: str, client: TurnClient, scenario: str
) -> None:
    """The one that failed first is the next, after a wait: it may be back, and the other not."""
    async with two_addresses(redis_url, client) as (hand, spare):
        hand.sim.inject(scenario, times=2)
        spare.inject(scenario, times=None)
        receipt = await client.submit(user())
        waits = [await run_next(hand), *[await run_again(hand) for _ in range(3)]]
        assert await run_again(hand) is None

        await ended(client, receipt, TurnCompleted)
        assert (len(requests(hand.sim)), len(requests(spare))) == (3, 2)
        first_ms, *later_ms = [it.defer_ms for it in waits if it is not None]
        assert first_ms == 1
        assert len(later_ms) == 3
        assert sum(later_ms) > 3


async def test_where_all_failed_each_model_is_asked_for_at_each_address(
    redis_url: str, client: TurnClient
) -> None:
    """One after the other: it may be that one address serves but one of them."""
    async with two_addresses(redis_url, client, model="grok-4.3,grok-4.7") as (hand, spare):
        for it in (hand.sim, spare):
            it.inject("status=503", times=None)
        await client.submit(user())
        assert await run_next(hand) is not None
        for _ in range(8):
            await hand.redis.execute_command("DEL", SHARD.breakers)
            assert await run_again(hand) is not None
        entries = ((name, it) for name in (hand.sim, spare) for it in name.ledger.entries())
        made = sorted(entries, key=lambda it: it[1].received_at_ms)
        asked_for = [
            ("ab"[sim is spare], msgspec.json.decode(it.body)["model"][-1]) for sim, it in made
        ]

        first, later = asked_for[:3], asked_for[3:]
        assert first == [("a", "3"), ("b", "3"), ("b", "7")]
        assert len(set(later[:4])) == 4
        assert later[4:] == later[:2]


async def test_whose_key_failed_is_not_asked_again_when_all_have_failed(
    redis_url: str, client: TurnClient
) -> None:
    """The address whose key is refused is out for this turn, on whatever worker."""
    async with two_addresses(redis_url, client) as (hand, spare):
        spare.inject("credits", times=None)
        hand.sim.inject("status=503", times=3)
        receipt = await client.submit(user())
        assert await run_next(hand) is not None
        for _ in range(3):
            for it in hand.pool.members:
                hand.pool.works(it)  # as another worker sees it
            assert await run_again(hand) is not None
        assert await run_again(hand) is None

        await ended(client, receipt, TurnCompleted)
        assert (len(requests(hand.sim)), len(requests(spare))) == (4, 1)


async def test_an_open_breaker_has_another_address_asked(
    redis_url: str, client: TurnClient
) -> None:
    """Without a call at the one that fails."""
    async with two_addresses(redis_url, client) as (hand, spare):
        for n in range(10):
            await hand.breakers.failed(f"{hand.sim.base_url} grok-4.3", f"x{n}")
        receipt = await client.submit(user())
        assert await run_next(hand) is None

        await ended(client, receipt, TurnCompleted)
        assert (len(requests(hand.sim)), len(requests(spare))) == (0, 1)


# -- thoughts -------------------------------------------------------------------------------------


def thoughts(sim: Simulator) -> list[int]:
    """How many items of reasoning each request has."""
    return [sum(it.get("type") == "reasoning" for it in body["input"]) for body in requests(sim)]


@pytest.mark.promise("P13")
async def test_each_key_gets_the_thoughts_that_it_can_read(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """Away and back again: none is refused, none is lost."""
    async with opened(redis_url, sim, client, wire="responses", model="grok-4.7") as hand:
        first, second = keys(hand)

        async def turn(attempts: int = 1) -> None:
            receipt = await client.submit(user())
            for _ in range(attempts):
                await hand.make_due("c")
                await run_next(hand)
            await ended(client, receipt, TurnCompleted)

        await turn()
        await turn()
        sim.inject("credits", key=first)
        await turn(attempts=2)
        await turn()
        hand.pool.works(members_of(hand, first))
        await turn()

    assert asked(sim) == [first, first, first, second, second, first]
    assert thoughts(sim) == [0, 1, 2, 0, 1, 2]
    assert [it.status for it in sim.ledger.entries()].count(400) == 0


def members_of(hand: Hand, key: str) -> Member:
    """The member with this key."""
    return hand.pool.members[KEYS.index(key)]


# -- whole workers --------------------------------------------------------------------------------


async def test_a_worker_starts_with_the_keys_that_are_accepted(
    redis_url: str, client: TurnClient, caplog: pytest.LogCaptureFixture
) -> None:
    """It says which one is not, and answers every turn; with none it does not start."""
    caplog.set_level(logging.WARNING)
    async with Simulator(SimulatorConfig(api_keys=("xai-two",))) as sim:
        async with fleet(redis_url, sim, api_key=",".join(KEYS)):
            receipts = [await client.submit(user(conversation=f"c{n}")) for n in range(6)]
            for it in receipts:
                await ended(client, it, TurnCompleted)
        assert set(asked(sim)) == {"xai-two"}
        said = [it for it in caplog.records if it.message == "provider.left_out"]
        assert [vars(it)["provider"] for it in said] == [f"{sim.base_url} (key 1)"]

        none = make_fleet(settings_for(redis_url, sim, api_key="xai-three,xai-four"))
        try:
            with pytest.raises(StartFailed, match="refuses the key"):
                await none.check()
        finally:
            await none.close()


async def test_operators_see_which_key_it_was(redis_url: str, client: TurnClient) -> None:
    """In traces, and with the limits of each; by its number."""
    async with (
        Simulator(SimulatorConfig(requests_per_second=50)) as sim,
        fleet(redis_url, sim, api_key=",".join(KEYS)),
    ):
        receipt = await client.submit(user())
        await ended(client, receipt, TurnCompleted)
        name = f"{sim.base_url} (key {KEYS.index(asked(sim)[0]) + 1})"

        async def says(*words: str) -> bool:
            command = [*words, "--json", "--redis", redis_url]
            shown = await asyncio.to_thread(CliRunner().invoke, turnline, command)
            assert not any(key in shown.output for key in KEYS)
            return f'"{name}"' in shown.output

        await wait_until(lambda: says("trace", "--last"), "the trace names the key")
        await wait_until(lambda: says("queue"), "the limits name the key")
