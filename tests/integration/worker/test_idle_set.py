"""Who is on the idle set, and who is taken off it: the scripts of the worker, one by one."""

from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ReadOnlyError

from tests.support.driving import SHARD, Hand, user
from tests.support.listening import listening
from tests.support.wait import wait_until
from turnline.contracts.opening import open_async
from turnline.contracts.scripts import run, text
from turnline.ops.embedded import EmbeddedRedis
from turnline.worker.effects import Effects
from turnline.worker.outcome import Done
from turnline.worker.queue.lua import WakeArgs, claim, wake


async def claimed(hand: Hand, limit: int, worker: str = "hand") -> list[str]:
    """Claim, and return what was claimed."""
    _, _, _, *items = await run(hand.redis, claim(SHARD, limit, 60_000, worker))
    return [text(name) for name in items[::3]]


async def idle(redis: Redis) -> list[str]:
    return [name.decode() for name in await redis.zrange(SHARD.idle, 0, -1)]


async def test_whoever_gets_less_than_asked_for_is_idle_since_then(
    redis: Redis, hand: Hand
) -> None:
    """And stays so for as long as it finds no more: looking again does not move it back."""
    await hand.client.submit(user())

    assert await claimed(hand, 2) == ["{s0}:c"]
    since = await redis.zscore(SHARD.idle, "hand")
    seconds, micros = await redis.time()
    assert 0 <= seconds * 1000 + micros / 1000 - since < 60_000
    await redis.zadd(SHARD.idle, {"hand": 1})
    assert await claimed(hand, 2) == []
    assert await redis.zscore(SHARD.idle, "hand") == 1


async def test_whoever_gets_all_it_asked_for_is_not_idle(redis: Redis, hand: Hand) -> None:
    """It has no slot left, though nothing more is due."""
    await redis.zadd(SHARD.idle, {"hand": 1})
    await hand.client.submit(user())
    await redis.zadd(SHARD.idle, {"hand": 1, "other": 2})

    assert await claimed(hand, 1) == ["{s0}:c"]
    assert await idle(redis) == ["other"]


async def test_a_claim_that_leaves_something_wakes_the_next(redis: Redis, hand: Hand) -> None:
    """It names what is due, and is not woken itself."""
    for name in ("a", "b"):
        await hand.client.submit(user(conversation=name))
    await redis.zadd(SHARD.idle, {"hand": 1, "other": 2})
    async with listening(redis, *(SHARD.wake_prefix + name for name in ("hand", "other"))) as heard:
        assert await claimed(hand, 1) == ["{s0}:a"]
        await wait_until(lambda: heard, "the other one is woken")
    assert heard == [b"{s0}:b"]
    assert await idle(redis) == []


@pytest.mark.parametrize("how", ["release", "commit"])
async def test_whoever_gives_up_a_conversation_with_messages_wakes_one(
    redis: Redis, hand: Hand, how: str
) -> None:
    """By releasing it, and by a commit behind which it is not kept."""
    await hand.client.submit(user())
    await hand.client.submit(user("more"))
    lease = await hand.must_claim()
    entries: Any = (await hand.store.load(lease)).entries
    await redis.zadd(SHARD.idle, {"dead": 1, "other": 2})
    async with listening(redis, SHARD.wake_prefix + "other") as heard:
        if how == "release":
            await hand.release(lease, Done())
        else:
            effects = Effects(turn_id=entries[0].turn_id, entries=[entries[0].entry_id])
            await hand.store.commit(lease, effects, keep_lease=False)
        await wait_until(lambda: heard, "one is woken")
    assert heard == [b"{s0}:c"]
    assert await idle(redis) == []


async def test_a_worker_that_ends_is_idle_no_more(redis: Redis, hand: Hand) -> None:
    """It wakes another one if something is due, and nobody else."""
    await redis.zadd(SHARD.idle, {"hand": 1, "other": 2})
    async with listening(redis, SHARD.wake_prefix + "other") as heard:
        assert await run(hand.redis, wake(SHARD, WakeArgs("hand"))) == [b"quiet", b""]
        assert await idle(redis) == ["other"]
        await redis.zadd(SHARD.queue, {"{s0}:c": 1})
        await redis.zadd(SHARD.idle, {"hand": 1})
        assert await run(hand.redis, wake(SHARD, WakeArgs("hand"))) == [b"woken", b"{s0}:c"]
        await wait_until(lambda: heard == [b"{s0}:c"], "the other one is woken")
    assert await idle(redis) == []


@pytest.mark.promise("P11")
async def test_an_idle_worker_hears_that_its_server_is_a_replica_now() -> None:
    """Else it would look for work there for ever: nothing is due, and nothing is refused."""
    with EmbeddedRedis() as server:
        redis = open_async(server.url)
        await run(redis, claim(SHARD, 1, 1_000, "w"))
        await redis.execute_command("REPLICAOF", "127.0.0.1", "1")

        with pytest.raises(ReadOnlyError):
            await run(redis, claim(SHARD, 1, 1_000, "w"))
        await redis.aclose()
