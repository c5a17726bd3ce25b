"""Tenants that wait share the workers by their weights; batch turns wait for all others.

Time passes by `pass_by`, which moves what is delayed, so that no test waits for a clock.
"""

import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.driving import KEYS, SHARD, Hand, fleet, pass_by, requests, run_next
from tests.support.driving import hand as open_hand
from tests.support.wait import wait_until
from turnline.contracts import Configure, Limits, QueueLate, TurnClient, UserMessage
from turnline.contracts.conversation import SettingsChange
from turnline.contracts.keys import conversation_keys, conversation_of
from turnline.contracts.scripts import run, text
from turnline.ops.simulator import Simulator
from turnline.worker.queue.lua import claim

LEASE_MS = 60_000
HOUR_MS = 3_600_000


@pytest.fixture
async def slow(redis_url: str, sim: Simulator) -> AsyncIterator[Hand]:
    """A worker moved by hand that gives each conversation up behind every turn; nothing is late."""
    limits = Limits(queue_age_s=10 * HOUR_MS)
    async with (
        TurnClient.connect(redis_url, limits=limits) as client,
        open_hand(redis_url, sim, turn_quota=1) as worker,
    ):
        worker.client = client
        yield worker


def message(conversation: str, tenant: str = "", **fields: Any) -> UserMessage:
    return UserMessage(conversation_id=conversation, tenant=tenant, text="Hi", **fields)


async def fill(client: TurnClient, counts: Mapping[str, int], **fields: Any) -> None:
    """Submit turns of tenants, one conversation each, the first tenant's first."""
    messages = [
        message(f"{tenant}-{n:05}", tenant, **fields)
        for tenant, count in counts.items()
        for n in range(count)
    ]
    for outcome in await client.submit_many(messages):
        assert not isinstance(outcome, Exception), outcome


async def claimed(redis: Redis, limit: int = 1, **options: Any) -> list[str]:
    """Claim as a worker does; return the conversations."""
    _, _, _, *items = await run(redis, claim(SHARD, limit, LEASE_MS, "w", **options))
    return [str(conversation_of(text(it), SHARD.tag)) for it in items[::3]]


async def in_order(redis: Redis, turns: int, **options: Any) -> list[str]:
    """Claim turn by turn; return the tenants."""
    found = [(await claimed(redis, **options))[0] for _ in range(turns)]
    return [it.partition("-")[0] for it in found]


async def test_a_newcomer_does_not_wait_behind_many(redis: Redis, client: TurnClient) -> None:
    """It is the next, or the one after that."""
    await fill(client, {"big": 300})
    assert await in_order(redis, 5) == ["big"] * 5
    await fill(client, {"small": 1})

    assert "small" in await in_order(redis, 2)


async def test_equal_tenants_take_turns(redis: Redis, client: TurnClient) -> None:
    """However many each has, and whoever came first."""
    await fill(client, {"a": 300, "b": 60, "c": 60})

    counts = Counter(await in_order(redis, 90))

    assert max(counts.values()) - min(counts.values()) <= 1


async def test_tenants_get_turns_by_weight(redis: Redis, client: TurnClient) -> None:
    """1:2:4, also where several are claimed at once."""
    await fill(client, {"a": 200, "b": 200, "c": 200})
    weights = json.dumps({"b": 2, "c": 4})

    found = [it for _ in range(35) for it in await claimed(redis, limit=4, weights=weights)]

    counts = Counter(it.partition("-")[0] for it in found)
    assert [counts[it] / 140 * 7 for it in "abc"] == pytest.approx([1, 2, 4], rel=0.05)


async def test_whose_turn_is_next_is_not_refused(redis_url: str, redis: Redis) -> None:
    """However late the others are; but if nobody is at work, all are late."""
    limits = Limits(queue_age_s=0.05)
    async with TurnClient.connect(redis_url, limits=limits) as client:
        await fill(client, {"big": 50})
        await claimed(redis)
        await wait_until(lambda: is_refused(client), "the queue is late")
        await client.submit(message("new", "small"))
        with pytest.raises(QueueLate):
            await client.submit(message("batch", "small", priority="batch"))
        await redis.zadd(SHARD.shares, {"placed": time.time() * 1000 - 11_000})
        with pytest.raises(QueueLate):
            await client.submit(message("newest", "another"))


async def is_refused(client: TurnClient) -> bool:
    try:
        await client.submit(message(f"more{time.monotonic_ns()}", "big"))
    except QueueLate:
        return True
    return False


async def test_who_was_away_has_saved_nothing(redis: Redis, client: TurnClient) -> None:
    """Nor has who was busy while nobody else was there to pay for that."""
    await fill(client, {"a": 100})
    await in_order(redis, 50)
    await fill(client, {"b": 100})

    counts = Counter(await in_order(redis, 40))

    assert abs(counts["a"] - counts["b"]) <= 2


async def test_the_tenant_of_the_settings_counts(hand: Hand, client: TurnClient) -> None:
    """For messages that name none."""
    await fill(client, {"big": 60})
    await client.submit(Configure(conversation_id="mine", settings=SettingsChange(tenant="me")))
    for _ in range(61):
        await hand.run_lease(await hand.must_claim())
    await fill(client, {"big2": 50})
    await client.submit(message("mine"))

    assert "mine" in [*await claimed(hand.redis), *await claimed(hand.redis)]


async def test_within_a_tenant_the_first_goes_first(redis: Redis, client: TurnClient) -> None:
    """Nothing changes for who has no tenants."""
    await fill(client, {"": 40})

    assert [(await claimed(redis))[0] for _ in range(40)] == [f"-{n:05}" for n in range(40)]


async def test_batch_turns_wait_for_people(redis: Redis, client: TurnClient) -> None:
    """Of any tenant; then they are shared like others."""
    await fill(client, {"a": 50, "b": 50}, priority="batch")
    first = await in_order(redis, 4)
    for n in range(3):
        await client.submit(message(f"urgent-{n}", "a"))
        await client.submit(message(f"person-{n}", "c"))

    assert sorted(first) == ["a", "a", "b", "b"]
    assert sorted(await in_order(redis, 6)) == ["person"] * 3 + ["urgent"] * 3
    assert abs(Counter(await in_order(redis, 20))["a"] - 10) <= 1


async def test_the_priority_is_no_part_of_the_content(client: TurnClient) -> None:
    """Who sends a turn again may be in more of a hurry."""
    await client.submit(message("c", turn_id="t", priority="batch"))
    receipt = await client.submit(message("c", turn_id="t"))

    assert receipt.status == "duplicate"


async def test_a_person_in_a_batch_conversation_is_not_held_up(
    redis: Redis, client: TurnClient
) -> None:
    """Order within the conversation stays: the batch turn goes first, and at once."""
    await fill(client, {"a": 50}, priority="batch")
    await in_order(redis, 2)
    await client.submit(message("a-00030", "a"))

    assert await claimed(redis) == ["a-00030"]


async def do(hand: Hand, redis: Redis, steps: str) -> None:
    """Take steps in conversation `c`.

    Those are `i` or `b`: a turn, with `:<tenant>`, and with `@<hours>` until it takes its place;
    `=<tenant>`: settings of this one; `-`: a message that asks for no answer; `run`: a turn of it
    is run; `+<hours>`: they pass; `wait`: it waits with those that are due, behind one that is not.
    """
    client = hand.client
    for step in steps.split():
        what, _, hours = step.partition("@")
        at = {"deliver_at_ms": int(time.time() * 1000) + int(hours) * HOUR_MS} if hours else {}
        match what[0], what[1:].removeprefix(":"):
            case "r", _:
                await run_next(hand)
            case "+", passed:
                await pass_by(redis, int(passed) * HOUR_MS)
            case "w", _:
                await client.submit_many([message(f"first-{n}", "first") for n in range(2)])
                await redis.zadd(SHARD.queue, {f"{SHARD.tag}:first-0": 1})
                await claimed(redis)
            case "=", tenant:
                await client.submit(
                    Configure(conversation_id="c", settings=SettingsChange(tenant=tenant))
                )
            case "-", tenant:
                await client.submit(message("c", tenant, run=False, **at))
            case kind, tenant:
                priority = {"b": "batch", "i": "interactive"}[kind]
                await client.submit(message("c", tenant, priority=priority, **at))


@pytest.mark.parametrize(
    "steps",
    [
        "b@1 i",
        "b@1 i@1 +1",
        "i@1 b@1 +1",
        "i@1 b run +1",
        "i@2 b@1 +1 run +1",
        "b@1 i@2 +1 run +1",
        "b b i",
        "b i run",
        "i b i run run",
        "b i b run",
        "b " * 70 + "i run",
        "b i@1 +1",
        "b@1 i@2 +2",
        "b i@1 wait +1",
        "b@1 i@2 +1 wait +1",
        "i b@1 i@2 run +1 wait +1",
        "b - i",
    ],
)
async def test_no_turn_for_a_person_waits_among_batch_turns(
    slow: Hand, redis: Redis, steps: str
) -> None:
    """Whatever its conversation does before, and whether or not anybody looks when it is due."""
    await do(slow, redis, steps)

    await fill(slow.client, {"people": 30})
    assert "c" in [it for _ in range(6) for it in await claimed(redis)]


@pytest.mark.parametrize(
    "steps",
    [
        "i run b",
        "i b run",
        "i b b run run",
        "b i b run run",
        "i b@1 run +1",
        "b@1 i run +1",
        "i@1 b@2 +1 run +1",
        "b@1 i@2 +1",
        "b i@1",
        "i@1 b",
        "i i@9 b run",
        "i i@9 b@1 run +1 wait",
        "- b run",
        "=acme b run",
        "b -",
        "b@1 -@1 +1",
    ],
)
async def test_no_batch_turn_goes_with_those_of_people(
    slow: Hand, redis: Redis, steps: str
) -> None:
    """However many of those its conversation had before, or will have."""
    await do(slow, redis, steps)

    await fill(slow.client, {"people": 30})
    assert "c" not in [it for _ in range(6) for it in await claimed(redis)]


@pytest.mark.parametrize(
    ("steps", "tenant"),
    [
        ("i:a", "a"),
        ("i:a i:b", "a"),
        ("i:a i:b run", "b"),
        ("i:a i:b i:d run run", "d"),
        ("b:a i:b", "b"),
        ("i:a i:b@1 run", "b"),
        ("=a i", "a"),
        ("=a i run", "a"),
        ("i =a i run run", "a"),
        ("=a run i@1", "a"),
        ("i@1 =a run", "a"),
        ("i@1 =a run +1 b", "a"),
        ("i:b =a i run", "a"),
        ("i:a i:b/c:%1@1 run", "b/c:%1"),
        ("i:a i:b/c:%1@1 +1 - run", "b/c:%1"),
        ("=b/c:%1 i@1 +1 - run", "b/c:%1"),
        ("=a =b i run", "b"),
        ("=a =b i run run", "b"),
        ("=a i =b i run run", "b"),
        ("=a i =b run i run", "b"),
        ("i i =a run", ""),
        ("i b =a run", ""),
    ],
)
async def test_the_next_turn_is_that_of_its_own_tenant(
    slow: Hand, redis: Redis, steps: str, tenant: str
) -> None:
    """Whose message is the first; settings say it before they are committed."""
    await do(slow, redis, steps)

    lane = await redis.hget(KEYS.state, "lane") or b"i:"
    assert text(lane).partition(":")[2] == tenant


async def test_messages_of_earlier_producers_are_for_people(slow: Hand, redis: Redis) -> None:
    """They do not say in what lane they are."""
    await do(slow, redis, "=a run b b run")
    await slow.client.submit(message("c"))
    entry_id, fields = (await redis.xrange(KEYS.inbox))[-1]
    await redis.xdel(KEYS.inbox, entry_id)
    await redis.xadd(KEYS.inbox, {n: it for n, it in fields.items() if n != b"l"})
    await redis.hset(KEYS.state, "lane", "b:a")
    await do(slow, redis, "run")

    assert await redis.hget(KEYS.state, "lane") == b"i:a"


async def test_whose_worker_died_goes_before_its_like(redis: Redis, hand: Hand) -> None:
    """It had had its turn."""
    await fill(hand.client, {"a": 50})
    lease = await hand.must_claim()
    await hand.store.load(lease)
    await in_order(redis, 5)
    await fill(hand.client, {"b": 50})
    await redis.delete(lease.keys.in_progress)
    await redis.zadd(SHARD.queue, {lease.keys.job_id: int(time.time() * 1000)})

    assert await claimed(redis) == ["a-00000"]


async def test_a_clock_that_was_ahead_holds_up_no_newcomer(
    redis: Redis, client: TurnClient
) -> None:
    """That of a primary that was replaced."""
    await fill(client, {"big": 50})
    await claimed(redis)
    await redis.zadd(SHARD.shares, {"placed": time.time() * 1000 + 10**9})
    await fill(client, {"small": 1})

    assert "small" in await in_order(redis, 2)


async def test_more_than_can_be_placed_at_once_may_be_due_in_one_moment(
    redis: Redis, client: TurnClient
) -> None:
    """As messages that are delayed until the same one; others do not wait behind all of them."""
    await fill(client, {"a": 2500})
    names = await redis.zrange(SHARD.queue, 0, -1)
    await redis.zadd(SHARD.queue, dict.fromkeys(names, int(time.time() * 1000) - 1000))
    await claimed(redis)
    await fill(client, {"b": 1})

    assert "b-00000" in [*await claimed(redis), *await claimed(redis)]


@pytest.mark.parametrize("gone", [SHARD.order, SHARD.shares])
async def test_what_is_lost_of_the_order_is_made_anew(
    redis: Redis, client: TurnClient, gone: str
) -> None:
    """Redis forgot it, or others wrote there."""
    await fill(client, {"a": 60, "b": 1})
    await claimed(redis, 1)
    await redis.set(gone, "x")

    found = [it for _ in range(3) for it in await claimed(redis)]
    assert "b-00000" in found or gone == SHARD.shares
    await fill(client, {"c": 1})
    assert "c-00000" in [it for _ in range(3) for it in await claimed(redis)]


@pytest.mark.parametrize("member", ["i", "b", "placed", "i:big", "i:small"])
@pytest.mark.parametrize("place", ["inf", "-inf", "1e300", "-1e300", "1e15", "-1e15"])
async def test_places_that_cannot_be_are_none(
    redis: Redis, client: TurnClient, member: str, place: str
) -> None:
    """Others wrote there: the next turns are shared as ever."""
    await fill(client, {"big": 60})
    await claimed(redis)
    await redis.zadd(SHARD.shares, {member: float(place)})
    await fill(client, {"small": 3, "other": 3})

    counts = Counter(await in_order(redis, 10))
    assert (counts["small"], counts["other"]) == (3, 3)


async def test_a_worker_may_have_more_slots_than_are_claimed_at_once(
    redis: Redis, client: TurnClient
) -> None:
    """Thousands: it claims again."""
    await fill(client, {"a": 5200})
    counts = [len(await claimed(redis, 5000)) for _ in range(6)]

    assert (sum(counts), counts[-1]) == (5200, 200)


async def test_nobody_is_overlooked(redis: Redis, client: TurnClient) -> None:
    """Whatever becomes of the places; entries of another server's clock are found, too."""
    await fill(client, {"a": 30, "b": 30})
    found = await claimed(redis, 5)
    await redis.delete(SHARD.order)
    found += await claimed(redis, 5)
    await redis.zadd(SHARD.shares, {"placed": time.time() * 1000 + 10**9})
    job_id = (await redis.zrange(SHARD.queue, 0, 0))[0]
    await redis.zadd(SHARD.queue, {job_id: 5})
    found += await claimed(redis, 5)
    await redis.set(SHARD.shares, "x")
    found += await claimed(redis, 5)
    await redis.delete(SHARD.order)
    await redis.set(SHARD.order, "x")
    while more := await claimed(redis, 7):
        found += more

    assert sorted(found) == sorted(f"{it}-{n:05}" for it in "ab" for n in range(30))


@pytest.mark.parametrize("lane", ["", "x", "i:", "b:\xff", "i:" + "a" * 9999])
async def test_odd_lanes_stop_nobody(redis: Redis, client: TurnClient, lane: str) -> None:
    """Others wrote there."""
    await fill(client, {"a": 5})
    first, second = (conversation_keys(SHARD.tag, f"a-0000{n}").state for n in range(2))
    await redis.hset(first, mapping={"lane": lane, "rises": lane})
    third = conversation_keys(SHARD.tag, "a-00002").state
    await redis.hset(third, mapping={"lane": "b:", "rises": f"9{'9' * len(lane)} {lane}"})
    await redis.set(second, "x")

    found = [*await claimed(redis, 2), *await claimed(redis, 2), *await claimed(redis, 2)]

    assert len(found) == 5


async def test_what_has_left_the_queue_takes_no_turn(redis: Redis, client: TurnClient) -> None:
    """It was forgotten, or is leased by a worker that knows no places."""
    await fill(client, {"a": 20})
    await claimed(redis)
    await client.forget("a-00001")
    await redis.zrem(SHARD.queue, f"{SHARD.tag}:a-00002")

    assert await claimed(redis, 3) == ["a-00003", "a-00004", "a-00005"]


async def test_a_conversation_with_more_waits_behind_others(hand: Hand, redis: Redis) -> None:
    """A worker goes on with it only while nobody else is due."""
    for _ in range(3):
        await hand.client.submit(message("many", "a"))
    lease = await hand.must_claim()
    await fill(hand.client, {"b": 1})
    await hand.run_lease(lease)

    assert await redis.xlen(lease.keys.inbox) == 2
    assert await claimed(redis, 1) == ["b-00000"]


@pytest.mark.promise("P8")
async def test_a_claim_costs_the_same_for_many_tenants(redis: Redis, client: TurnClient) -> None:
    """In commands, each of which takes time by the logarithm of what waits."""
    counts = []
    for name, tenants in (("one", 1), ("many", 400)):
        await redis.flushdb()
        turns = [message(f"{name}{n}", f"t{n % tenants}") for n in range(400)]
        assert not any(isinstance(it, Exception) for it in await client.submit_many(turns))
        await claimed(redis)  # all get their places
        before = await commands_of(redis)
        for _ in range(20):
            await claimed(redis)
        counts.append(await commands_of(redis) - before)

    assert counts[1] <= counts[0]


async def commands_of(redis: Redis) -> int:
    """How many commands the server has carried out."""
    return int((await redis.info("stats"))["total_commands_processed"])


async def test_what_is_remembered_of_tenants_is_bounded(redis: Redis, client: TurnClient) -> None:
    """Who has had no turn for long is forgotten."""
    await fill(client, {f"t{n}": 1 for n in range(200)} | {"a": 20})
    while await claimed(redis, 3):
        pass
    await fill(client, {"z": 20})
    while await claimed(redis, 3):
        pass

    assert await redis.zcard(SHARD.shares) <= 8
    assert await redis.pttl(SHARD.shares) > 0
    assert not await redis.exists(SHARD.order)


@pytest.mark.parametrize(
    "settings",
    [{"slots": "1"}, {"slots": "64", "provider_limits": "*=10rps"}],
    ids=["slots", "calls"],
)
async def test_a_worker_keeps_to_the_weights_of_its_file(
    redis_url: str, sim: Simulator, client: TurnClient, tmp_path: Path, settings: dict[str, str]
) -> None:
    """For its slots, and for what the provider allows; ten may call at once before any waits."""
    file = tmp_path / "budgets.toml"
    file.write_text("[tenants.b]\nweight = 4\n")
    await fill(client, {"a": 30, "b": 30})
    async with fleet(redis_url, sim, budgets=str(file), **settings):
        await wait_until(lambda: len(requests(sim)) >= 30, "30 were asked")

    names = [it.headers["x-grok-conv-id"] for it in sim.ledger.entries() if it.method == "POST"]
    counts = Counter(it.partition("-")[0] for it in names[10:30])
    assert counts["b"] == pytest.approx(16, abs=2)
