"""A fleet stays within what its provider allows to all of it, without asking for every call."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from redis.asyncio import Redis

from tests.integration.tools.bench import calling
from tests.support.driving import (
    KEYS,
    Hand,
    batcher_on,
    ended,
    fleet,
    limiter_on,
    requests,
    user,
)
from tests.support.wait import wait_until
from turnline.contracts import Interrupt, TurnClient, TurnCompleted, TurnFailed, TurnInterrupted
from turnline.contracts.keys import shard_keys
from turnline.ops.cli.app import turnline
from turnline.ops.simulator import Simulator, SimulatorConfig
from turnline.ops.simulator.config import Pacing
from turnline.ops.simulator.request_ledger import Entry
from turnline.worker.outcome import Parked
from turnline.worker.pipeline.calls import LLMCall
from turnline.worker.pipeline.stream_events import ProviderUsage
from turnline.worker.provider_limits import Caller, Grant, LimitRules
from turnline.worker.store.limiter import RateLimiter
from turnline.worker.turn.grants import Unlimited

SHARD = shard_keys(0)
MODEL = "grok-4.3"


@asynccontextmanager
async def limiters(redis_url: str, rules: str, count: int = 1) -> AsyncIterator[list[RateLimiter]]:
    """Those of so many workers."""
    async with batcher_on(redis_url) as batcher:
        opened = [limiter_on(batcher, rules, f"w{n}") for n in range(count)]
        yield opened
        for it in opened:
            await it.aclose()


async def ask(
    limiter: RateLimiter,
    who: str = "a",
    tokens: int = 100,
    tenant: str = "",
    *,
    is_batch: bool = False,
) -> Grant | float:
    """Ask for a call whose reply has no tokens to speak of."""
    return await limiter.reserve(MODEL, Caller(who, tenant, is_batch), lambda: tokens, 1)


def used(tokens: int) -> LLMCall:
    """A call whose prompt had so many tokens."""
    usage = ProviderUsage(prompt_tokens=tokens, total_tokens=tokens)
    return LLMCall(number=1, model=MODEL, message_count=1, started_at=0, usage=usage)


async def scripts_run(redis: Redis) -> int:
    """How many scripts the server has run."""
    stats = await redis.info("commandstats")
    return sum(stats.get(f"cmdstat_{it}", {}).get("calls", 0) for it in ("eval", "evalsha"))


def calls(sim: Simulator) -> list[Entry]:
    """The requests for replies."""
    return [it for it in sim.ledger.entries() if it.path.endswith("completions")]


def statuses(sim: Simulator) -> list[int | None]:
    """What became of them."""
    return [it.status for it in calls(sim)]


def most_within(times_ms: Sequence[float], span_ms: float) -> int:
    """The most of these that lie within such a span."""
    return max(sum(t - span_ms < it <= t for it in times_ms) for t in times_ms)


@asynccontextmanager
async def lateness() -> AsyncIterator[list[float]]:
    """Times by which the event loop was late, s, where that may cost a refusal.

    It runs the provider, too: what it sends or hears late stands elsewhere in the windows.
    """
    late_s: list[float] = []

    async def watch() -> None:
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(0.005)
            if (took_s := time.monotonic() - before_s) > 0.012:
                late_s.append(took_s)

    watching = asyncio.create_task(watch())
    try:
        yield late_s
    finally:
        watching.cancel()


async def expire(redis: Redis) -> None:
    """Fail unless all that is kept of limits expires."""
    keys = [it async for it in redis.scan_iter(SHARD.limits[:-1] + "*")]
    assert keys
    assert all([await redis.pttl(it) > 0 for it in keys])


# -- a fleet --------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", ["by headers", "by settings"])
async def test_many_turns_at_once_go_as_fast_as_the_provider_allows(
    redis_url: str, client: TurnClient, told: str
) -> None:
    """Two workers, ten requests a second; hardly any is refused, and no time is wasted."""
    more = {"provider_limits": "*=10rps"} if told == "by settings" else {}
    async with (
        Simulator(SimulatorConfig(requests_per_second=10)) as sim,
        fleet(redis_url, sim, 2, **more),
        lateness() as late_s,
    ):
        began_s = time.monotonic()
        messages = [user(conversation=f"c{n}") for n in range(40)]
        receipts = await asyncio.gather(*map(client.submit, messages))
        ends = await asyncio.gather(*(client.result(it, timeout_s=30) for it in receipts))
        took_s = time.monotonic() - began_s

        assert all(isinstance(it, TurnCompleted) for it in ends)
        assert statuses(sim).count(429) <= 2 + len(late_s)
    assert 2.9 < took_s < 5.5 + sum(late_s)  # 3 s after the first ten; by backing off, 8 s


async def test_all_shards_share_one_budget(redis_url: str, redis: Redis) -> None:
    """It stands in shard 0, whatever shard a conversation is in."""
    async with (
        Simulator(SimulatorConfig(requests_per_second=10)) as sim,
        fleet(redis_url, sim, 2, shards="4", provider_limits="*=10rps"),
        TurnClient.connect(redis_url, shards=4) as client,
        lateness() as late_s,
    ):
        messages = [user(conversation=f"c{n}") for n in range(25)]
        receipts = await asyncio.gather(*map(client.submit, messages))
        for receipt in receipts:
            assert isinstance(await client.result(receipt, timeout_s=30), TurnCompleted)

        assert statuses(sim).count(429) <= 2 + len(late_s)
    keys = [it async for it in redis.scan_iter("*limit*")]
    assert keys
    assert all(b"{s0}" in it for it in keys)


async def test_a_fleet_that_knows_nothing_lets_one_call_find_out(
    redis_url: str, client: TurnClient
) -> None:
    """The others wait for the headers of its response, which tell all of them."""
    config = SimulatorConfig(requests_per_second=50, pacing=Pacing(ttft_ms=300))
    async with Simulator(config) as sim, fleet(redis_url, sim, 2):
        receipts = [await client.submit(user(conversation=f"c{n}")) for n in range(8)]
        for receipt in receipts:
            await ended(client, receipt, TurnCompleted)
        first, *others = calls(sim)

    assert len(others) == 7
    assert first.first_byte_ms is not None
    answered_ms = first.received_at_ms + first.first_byte_ms
    assert min(it.received_at_ms for it in others) >= answered_ms


async def test_a_first_call_without_a_response_holds_up_nobody(
    redis_url: str, client: TurnClient
) -> None:
    """Nothing is known then; the others go."""
    async with Simulator() as sim, fleet(redis_url, sim):
        sim.inject("rst;at=before-headers", nth=1)
        receipts = [await client.submit(user(conversation=f"c{n}")) for n in range(8)]
        for receipt in receipts:
            await ended(client, receipt, TurnCompleted)
        first, *others = calls(sim)

    assert min(it.received_at_ms for it in others) - first.received_at_ms < 1_000


async def test_without_limits_nothing_is_asked(
    redis_url: str, redis: Redis, client: TurnClient, sim: Simulator
) -> None:
    """After the first call that finds that out."""
    async with fleet(redis_url, sim):
        await ended(client, await client.submit(user()), TurnCompleted)
        (key,) = [it async for it in redis.scan_iter(SHARD.limit_prefix + "*")]
        await wait_until(lambda: redis.hexists(key, "seen"), "it is known")
        await redis.config_resetstat()
        await ended(client, await client.submit(user("again")), TurnCompleted)

        assert await redis.hget(key, "rs:sum") is None
        await expire(redis)
        assert await redis.exists(SHARD.limits) == 0


async def test_what_a_refusal_names_is_kept_to(
    redis_url: str, redis: Redis, client: TurnClient, sim: Simulator
) -> None:
    """By the whole fleet, though no header tells it."""
    sim.inject("rate-limit", times=1)
    async with fleet(redis_url, sim):
        await ended(client, await client.submit(user()), TurnCompleted)
    (place,) = (await redis.hgetall(SHARD.limits)).values()
    await expire(redis)
    assert place == f"{sim.base_url} {MODEL}".encode()
    async with batcher_on(redis_url) as batcher:
        other = RateLimiter(
            *(batcher, SHARD),
            provider=sim.base_url,
            key="xai-test",
            rules=LimitRules(),
            worker_id="other",
        )
        grants = [await ask(other, f"c{n}") for n in range(12)]
        await other.aclose()
    assert any(isinstance(it, float) for it in grants)


async def test_later_calls_of_a_turn_wait_in_their_slot(
    redis_url: str, client: TurnClient, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tool's result has to be answered; nothing is refused."""
    (tmp_path / "limited_tools.py").write_text(
        "from turnline.worker.tools import tool\n\n\n"
        '@tool\ndef clock() -> str:\n    """Tell the time."""\n    return "noon"\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    async with (
        Simulator(SimulatorConfig(requests_per_second=1)) as sim,
        fleet(redis_url, sim, tools="limited_tools", provider_limits="*=1rps"),
    ):
        sim.inject(calling("clock", {}), times=1)
        await ended(client, await client.submit(user()), TurnCompleted)

        assert statuses(sim) == [200, 200]
        first, second = (it.received_at_ms for it in calls(sim))
    assert second - first > 1_000


# -- a turn that waits ----------------------------------------------------------------------------


@pytest.fixture
async def used_up(hand: Hand) -> AsyncIterator[Hand]:
    """A worker whose provider allows one request a minute, which is used up."""
    limiter = hand.limiter = limiter_on(hand.batcher, "*=1rpm")
    assert isinstance(await ask(limiter), Grant)
    yield hand
    await limiter.aclose()


async def test_a_turn_waits_without_a_slot_until_its_grant_is_due(used_up: Hand) -> None:
    """No attempt was made, so none counts, and the time does not count either."""
    await used_up.client.submit(user())

    for _ in range(3):
        lease = await used_up.must_claim()
        outcome = await used_up.driver().run(lease)
        assert isinstance(outcome, Parked)
        assert outcome.why == "limit"
        assert 55_000 < outcome.defer_ms < 62_000
        await used_up.release(lease, outcome)
        attempt, since = await used_up.redis.execute_command(
            "HMGET", lease.keys.state, "attempt", "since"
        )
        assert (attempt, since) == (b"0", None)
        await used_up.make_due("c")
    assert requests(used_up.sim) == []


async def test_an_interrupt_ends_the_wait(used_up: Hand) -> None:
    """The turn has said nothing, and costs nothing."""
    receipt = await used_up.client.submit(user())
    await used_up.run_lease(await used_up.must_claim())
    await used_up.client.submit(Interrupt(conversation_id="c"))

    await used_up.run_lease(await used_up.must_claim())

    await ended(used_up.client, receipt, TurnInterrupted)


@pytest.mark.promise("P7")
async def test_a_call_behind_a_rollback_that_waited_is_noted(hand: Hand) -> None:
    """The attempt that was rolled back had made a call: what follows is another attempt."""
    limiter = hand.limiter = limiter_on(hand.batcher, "*=1rpm")
    hand.sim.inject("stall;at=tokens:3", times=2)
    running = await hand.speaking(user())
    second = await hand.client.submit(user("No", when_busy="rollback"))
    outcome = await running.notified()
    assert isinstance(outcome, Parked)
    await hand.release(running.lease, outcome)
    await limiter.aclose()
    hand.limiter = Unlimited()
    await hand.make_due("c")

    lease = await hand.must_claim()
    lost = asyncio.create_task(hand.driver().run(lease))
    await wait_until(lambda: len(requests(hand.sim)) == 2, "it is asked again")
    await hand.expire(lease)  # as that of a worker that is killed
    await hand.run_due()
    lost.cancel()
    await asyncio.gather(lost, return_exceptions=True)

    await ended(hand.client, second, TurnCompleted)
    entries = map(
        msgspec.json.decode, await hand.redis.execute_command("LRANGE", KEYS.calls, 0, -1)
    )
    assert len({it["call_id"] for it in entries}) == len(requests(hand.sim)) == 3


async def test_a_deadline_before_the_grant_fails_the_turn_at_once(used_up: Hand) -> None:
    """By name; its producer need not wait for it."""
    deadline_at_ms = int(time.time() * 1000) + 30_000
    receipt = await used_up.client.submit(user(deadline_at_ms=deadline_at_ms))

    await used_up.run_one()

    await ended(used_up.client, receipt, TurnFailed, "deadline_exceeded")


async def test_who_ends_without_a_call_leaves_the_line(used_up: Hand, redis: Redis) -> None:
    """By an interrupt, or since a deadline comes before the grant: others move up."""
    deadline_at_ms = int(time.time() * 1000) + 30_000
    await used_up.client.submit(user(conversation="hasty", deadline_at_ms=deadline_at_ms))
    await used_up.run_lease(await used_up.must_claim())
    await used_up.client.submit(user())
    await used_up.run_lease(await used_up.must_claim())
    (line,) = [it async for it in redis.scan_iter(SHARD.limit_prefix + "*:line")]
    await wait_until(lambda: has_length(redis, line, 1), "the hasty one has left")
    await used_up.client.submit(Interrupt(conversation_id="c"))
    await used_up.run_lease(await used_up.must_claim())

    await wait_until(lambda: has_length(redis, line, 0), "the interrupted one has left")


async def has_length(redis: Redis, key: bytes, count: int) -> bool:
    """Whether so many are in a sorted set."""
    return bool(await redis.zcard(key) == count)


# -- the line -------------------------------------------------------------------------------------


async def test_first_come_first_served(redis_url: str) -> None:
    """Each gets its own time, a share of a second apart; asking again moves nobody."""
    async with limiters(redis_url, "*=4rps", 2) as (one, other):
        for n in range(4):
            assert isinstance(await ask((one, other)[n % 2], f"first{n}"), Grant)
        waits = [await ask((one, other)[n % 2], f"c{n}") for n in range(6)]
        again = await ask(other, "c3")

    assert all(isinstance(it, float) for it in (*waits, again))
    gaps = [later - earlier for earlier, later in pairwise(waits)]
    assert all(0.15 < it < 0.26 for it in gaps), gaps
    assert 0.8 < waits[0] < 1.1
    assert waits[3] - 0.3 < again <= waits[3]


async def test_who_waited_goes_before_who_comes_later(redis_url: str) -> None:
    """Also where there is room when both ask."""
    async with limiters(redis_url, "*=2rps") as (limiter,):
        for who in ("a", "b"):
            assert isinstance(await ask(limiter, who), Grant)
        for who in ("c", "d", "e", "f"):
            assert isinstance(await ask(limiter, who), float)
        granted: Grant | float = 1.0
        async with asyncio.timeout(5):
            while isinstance(granted, float):
                assert isinstance(await ask(limiter, "late"), float)
                await asyncio.sleep(0.02)
                granted = await ask(limiter, "c")

    assert granted.waited


async def test_who_does_not_come_holds_up_nobody(redis_url: str, redis: Redis) -> None:
    """Twenty that were forgotten wait in line; their time has come."""
    async with limiters(redis_url, "*=4rps") as (limiter,):
        assert isinstance(await ask(limiter), Grant)
        key = min([it.decode() async for it in redis.scan_iter(SHARD.limit_prefix + "*")], key=len)
        gone_ms = int(time.time() * 1000) - 1500
        for n in range(20):
            await redis.zadd(f"{key}:line", {f"gone{n}": n})
            await redis.zadd(f"{key}:due", {f"gone{n}": gone_ms})

        assert isinstance(await ask(limiter, "new"), Grant)


# -- what is lost ---------------------------------------------------------------------------------


async def test_limits_that_are_lost_are_told_again(
    redis_url: str, redis: Redis, client: TurnClient
) -> None:
    """Redis forgot them, or they expired; one response tells them."""
    config = SimulatorConfig(requests_per_second=100)
    async with Simulator(config) as sim, fleet(redis_url, sim):
        await ended(client, await client.submit(user()), TurnCompleted)
        await wait_until(lambda: redis.exists(SHARD.limits), "they are known")
        async for key in redis.scan_iter(SHARD.limit_prefix + "*"):
            await redis.delete(key)
        began_s = time.monotonic()
        receipts = [await client.submit(user(conversation=f"c{n}")) for n in range(6)]
        for receipt in receipts:
            await ended(client, receipt, TurnCompleted)
        took_s = time.monotonic() - began_s

    assert took_s < 6.0  # each of them waited for 2 s for one that would find out


# -- tokens ---------------------------------------------------------------------------------------


async def test_what_was_not_used_is_given_back(redis_url: str) -> None:
    """A reservation counts in full until its call is over."""
    async with limiters(redis_url, "*=1000tpm") as (limiter,):
        grant = await ask(limiter, "a", tokens=900)
        assert isinstance(grant, Grant)
        assert isinstance(await ask(limiter, "b", tokens=300), float)
        limiter.settle(grant, None)  # it was never made

        assert isinstance(await ask(limiter, "b", tokens=300), Grant)
        assert isinstance(await ask(limiter, "c", tokens=800), float)


async def test_a_call_that_is_larger_than_the_limit_goes_alone(redis_url: str) -> None:
    """Nobody waits for ever."""
    async with limiters(redis_url, "*=1000tpm") as (limiter,):
        assert isinstance(await ask(limiter, "a", tokens=5_000), Grant)
        assert isinstance(await ask(limiter, "b", tokens=10), float)


# -- what a worker holds --------------------------------------------------------------------------


async def test_below_half_of_a_limit_calls_cost_no_round_trip(redis_url: str, redis: Redis) -> None:
    """A worker holds a part, and tells now and then what it used."""
    async with limiters(redis_url, "*=100_000rpm+100_000_000tpm") as (limiter,):
        first = await ask(limiter)
        assert isinstance(first, Grant)
        await redis.config_resetstat()
        for _ in range(300):
            grant = await ask(limiter)
            assert isinstance(grant, Grant)
            limiter.settle(grant, used(100))
            await asyncio.sleep(0.001)
        asked = await scripts_run(redis)
        keys = [it async for it in redis.scan_iter(SHARD.limit_prefix + "*")]
        key = min(keys, key=len)

        async def are_counted() -> bool:
            sums = await redis.hmget(key, "rm:sum", "tm:sum")
            return sums == [b"301", b"%d" % (300 * 100 + first.tokens)]

        await wait_until(are_counted, "all of them are counted")
    assert asked < 30


async def test_what_a_lost_worker_held_counts_as_used(redis_url: str, redis: Redis) -> None:
    """And what one that ends held is free at once."""
    async with batcher_on(redis_url) as batcher:
        lost, other = (limiter_on(batcher, "*=80rpm", it) for it in ("lost", "other"))
        await ask(lost)
        (held,) = [it async for it in redis.scan_iter(SHARD.limit_prefix + "*:held")]
        requests_held, _, _ = (await redis.hget(held, "lost") or b"").split()
        assert int(requests_held) == 8
        await redis.hset(held, "lost", f"{int(requests_held)} 0 1")  # its time is over
        await ask(other)
        key = held.removesuffix(b":held")
        assert await redis.hget(key, "rm:sum") == b"10"
        await other.aclose()

        assert await redis.hgetall(held) == {}
        lost._budgets.clear()


async def test_what_one_worker_holds_no_other_gets(redis_url: str, redis: Redis) -> None:
    """As long as it may use it."""
    async with limiters(redis_url, "*=80rpm") as (limiter,):
        assert isinstance(await ask(limiter), Grant)
        (held,) = [it async for it in redis.scan_iter(SHARD.limit_prefix + "*:held")]
        await redis.hset(held, "another", f"8 0 {int(time.time() * 1000) + 1900}")
        granted = [await ask(limiter, f"c{n}") for n in range(90)]

    assert sum(isinstance(it, Grant) for it in granted) == 80 - 1 - 8


async def test_together_they_never_pass_the_limit(redis_url: str) -> None:
    """Five workers ask as fast as they can, and hold what they may."""
    granted_ms: list[float] = []

    async def work(limiter: RateLimiter, until_s: float) -> None:
        n = 0
        while time.monotonic() < until_s:
            n += 1
            if isinstance(await ask(limiter, f"{id(limiter)} {n}"), Grant):
                granted_ms.append(time.monotonic() * 1000)
            await asyncio.sleep(0)

    async with limiters(redis_url, "*=40rps", 5) as workers:
        until_s = time.monotonic() + 2.5
        await asyncio.gather(*(work(it, until_s) for it in workers))

    assert most_within(granted_ms, 990) <= 40
    assert len(granted_ms) >= 40


async def test_operators_see_limits_and_who_waits(redis_url: str) -> None:
    """`turnline queue` tells, as a table and as JSON."""
    async with limiters(redis_url, "*=3rpm+5000tpm") as (limiter,):
        for who in ("a", "b", "c", "d", "e"):
            await ask(limiter, who, tokens=99)

        def look(*more: str) -> str:
            return CliRunner().invoke(turnline, ["queue", "--redis", redis_url, *more]).stdout

        state = msgspec.json.decode(await asyncio.to_thread(look, "--json"))
        table = await asyncio.to_thread(look)

    requests_, tokens = state["limits"]
    assert requests_ == {
        "provider": "http://x/v1",
        "model": MODEL,
        "what": "requests per minute",
        "allowed": 3,
        "used": 3,
        "waiting": 2,
    }
    assert (tokens["what"], tokens["allowed"], tokens["used"]) == ("tokens per minute", 5000, 300)
    assert "requests per minute" in table
