"""What a dead worker held is due at once, and nothing else is: the script, and who calls it."""

import pytest
from redis.asyncio import Redis

from tests.support.driving import SHARD, Hand, settings_for, user
from tests.support.listening import listening
from tests.support.wait import wait_until
from turnline.contracts import TurnClient
from turnline.contracts.keys import shard_keys
from turnline.contracts.scripts import run, text
from turnline.ops.simulator import Simulator
from turnline.worker.queue.lua import abandon, claim
from turnline.worker.supervising.abandoned import give_back


async def claimed(hand: Hand, limit: int, worker: str, lease_ms: int = 60_000) -> list[str]:
    """Claim, and return what was claimed."""
    _, _, _, *items = await run(hand.redis, claim(SHARD, limit, lease_ms, worker))
    return [text(name) for name in items[::3]]


@pytest.mark.promise("P4", "P5")
async def test_only_leases_of_the_dead_end(redis: Redis, hand: Hand) -> None:
    """Not those of a living worker, though its name begins or ends alike, nor one that moved on."""
    names = ("a", "b", "c", "d")
    owners = ("w-1-dead", "w-1-deadly", "x w-1-dead", "w-1-dead")
    for name, owner in zip(names, owners, strict=True):
        await hand.client.submit(user(conversation=name))
        assert await claimed(hand, 1, owner) == [f"{{s0}}:{name}"]
    await redis.set("arq:in-progress:{s0}:d", "99 w-2-other", px=60_000)
    before = dict(await redis.zrange(SHARD.queue, 0, -1, withscores=True))
    jobs = [f"{{s0}}:{name}" for name in names]

    assert await run(hand.redis, abandon(SHARD, "w-1-dead", jobs)) == [b"abandoned", 1]

    after = dict(await redis.zrange(SHARD.queue, 0, -1, withscores=True))
    assert {name for name in before if after[name] != before[name]} == {b"{s0}:a"}
    assert await redis.exists("arq:in-progress:{s0}:a") == 0
    assert await redis.exists(*[f"arq:in-progress:{it}" for it in jobs[1:]]) == 3
    assert await claimed(hand, 9, "next") == ["{s0}:a"]


async def test_the_dead_are_idle_and_known_no_more(redis: Redis, hand: Hand) -> None:
    """Nobody tries to wake them; whoever is idle hears of what is due."""
    await hand.client.submit(user())
    await claimed(hand, 1, "dead")
    await redis.zadd(SHARD.idle, {"dead": 1, "other": 2})
    await redis.zadd(SHARD.workers, {"dead": 9e15, "other": 9e15})
    await redis.set(SHARD.worker_prefix + "dead", "{}")

    async with listening(redis, SHARD.wake_prefix + "other") as heard:
        await run(hand.redis, abandon(SHARD, "dead", ["{s0}:c"]))
        await wait_until(lambda: heard, "the other one is woken")

    assert heard == [b"{s0}:c"]
    assert await redis.zrange(SHARD.idle, 0, -1) == []
    assert await redis.zrange(SHARD.workers, 0, -1) == [b"other"]
    assert await redis.exists(SHARD.worker_prefix + "dead") == 0


async def test_what_others_wrote_stops_nobody(redis: Redis, hand: Hand) -> None:
    """A lease of another type is none; entries that are gone do not come back."""
    await hand.client.submit(user())
    await claimed(hand, 1, "dead")
    await redis.rpush("arq:in-progress:{s0}:x", "1 dead")
    await redis.set("arq:in-progress:{s0}:y", "2 dead")
    await redis.set(SHARD.idle, "?")
    jobs = ["{s0}:x", "{s0}:y", "{s0}:c"]

    assert (await run(hand.redis, abandon(SHARD, "dead", jobs)))[1] == 2
    assert await redis.zrange(SHARD.queue, 0, -1) == [b"{s0}:c"]


@pytest.mark.promise("P5")
async def test_an_attempt_that_was_cut_off_counts_as_crashed(redis: Redis, hand: Hand) -> None:
    """As if its lease had ended by itself."""
    await hand.client.submit(user())
    lease = await hand.must_claim()
    await hand.store.load(lease)

    await run(hand.redis, abandon(SHARD, "hand", ["{s0}:c"]))

    loaded = await hand.store.load(await hand.must_claim())
    assert (loaded.attempt, loaded.crashes) == (2, 1)


@pytest.mark.parametrize("shards", [1, 5])
async def test_all_shards_are_looked_through(
    shards: int, redis: Redis, redis_url: str, sim: Simulator, hand: Hand
) -> None:
    """All that a worker held comes back, with a name of the fleet too, and deferred ones stay."""
    settings = settings_for(redis_url, sim, shards=str(shards), prefix="f", lease_s="60")
    async with TurnClient.connect(redis_url, shards=shards, prefix="f") as client:
        for n in range(450):
            await client.submit(user(conversation=f"c{n}"))
    held = [shard_keys(n, "f") for n in range(shards)]
    for shard in held:
        await run(hand.redis, claim(shard, 1000, 60_000, "dead"))
        await redis.zadd(shard.queue, {"later": 9e15})

    assert await give_back(settings, "dead", looks_s=(0,)) == 450

    seconds, _ = await redis.time()
    for shard in held:
        assert await redis.zcount(shard.queue, (seconds + 2) * 1000, "+inf") == 1


async def test_a_server_that_is_away_is_waited_for_no_longer_than_a_lease(sim: Simulator) -> None:
    """By then everything is due anyway."""
    settings = settings_for("redis://127.0.0.1:1", sim, lease_s="0.5", heartbeat_s="0.1")

    assert await give_back(settings, "dead", looks_s=(0,)) == 0
