"""Who hears of a message: one idle worker, or the holder; on sharded channels, or as before."""

from typing import Any

import pytest
from redis.asyncio import Redis

from tests.integration.contracts.streams import KEYS, SHARD, hold
from tests.support.listening import listening
from tests.support.wait import wait_until
from turnline.contracts import UserMessage

LEASED_MS = 32_503_680_000_000


def user(**more: Any) -> UserMessage:
    return UserMessage(conversation_id="c", text="hi", **more)


@pytest.mark.promise("P8")
async def test_the_worker_that_was_idle_longest_is_woken(client: Any, redis: Redis) -> None:
    """It is told what is due, and is idle no more; nobody else hears of it."""
    await redis.zadd(SHARD.idle, {"late": 3, "long": 1, "since": 2})
    channels = [SHARD.wake_prefix + name for name in ("late", "long", "since")]
    async with listening(redis, channels[1]) as heard, listening(redis, *channels) as all_heard:
        await client.submit(user())

        await wait_until(lambda: heard, "it is woken")
        assert heard == all_heard == [b"{s0}:c"]
    assert await redis.zrange(SHARD.idle, 0, -1) == [b"since", b"late"]
    assert not await redis.exists(SHARD.wake)


@pytest.mark.promise("P5", "P8")
async def test_workers_that_nobody_hears_are_passed_over(client: Any, redis: Redis) -> None:
    """They are dead or cut off, and idle no more until they claim."""
    await redis.zadd(SHARD.idle, {f"dead-{n}": n for n in range(63)} | {"lives": 63, "next": 64})
    async with listening(redis, SHARD.wake_prefix + "lives") as heard:
        await client.submit(user())

        await wait_until(lambda: heard == [b"{s0}:c"], "the one that lives is woken")
    assert await redis.zrange(SHARD.idle, 0, -1) == [b"next"]
    assert not await redis.exists(SHARD.wake)


async def test_a_message_passes_over_so_many_and_no_more(client: Any, redis: Redis) -> None:
    """A submission's time is bounded, whatever stands on the set."""
    await redis.zadd(SHARD.idle, {f"dead-{n}": n for n in range(100)})

    await client.submit(user())

    assert await redis.zcard(SHARD.idle) == 36


async def test_workers_of_the_version_before_wait_on_the_list(client: Any, redis: Redis) -> None:
    """Where no idle worker hears of it; what nobody pops expires."""
    await client.submit(user())

    assert await redis.lrange(SHARD.wake, 0, -1) == [b"{s0}:c"]
    assert 0 < await redis.pttl(SHARD.wake) <= 60_000


@pytest.mark.parametrize("value", ["words", ["a"], {"a": 1}], ids=repr)
async def test_an_odd_idle_set_wakes_nobody(client: Any, redis: Redis, value: Any) -> None:
    """The message is accepted; a worker's next claim makes the set anew."""
    match value:
        case str():
            await redis.set(SHARD.idle, value)
        case list():
            await redis.rpush(SHARD.idle, *value)
        case _:
            await redis.hset(SHARD.idle, mapping=value)

    assert (await client.submit(user())).status == "accepted"


async def test_the_holder_is_told(client: Any, redis: Redis) -> None:
    """On its own channel, once, and nobody is woken."""
    await hold(redis, "w1")
    await redis.zadd(SHARD.queue, {KEYS.job_id: LEASED_MS})
    await redis.zadd(SHARD.idle, {"w1": 1, "w2": 2})
    channel = SHARD.channel_prefix + "w1"
    async with (
        listening(redis, channel) as news,
        redis.pubsub(ignore_subscribe_messages=True) as before,
    ):
        await before.subscribe(channel)
        await before.get_message(timeout=5)

        await client.submit(user())
        await client.forget("c")

        await wait_until(lambda: news == [b"c", b"c"], "it is told")
        assert await before.get_message(timeout=0) is None
    assert await redis.zcard(SHARD.idle) == 2
    assert not await redis.exists(SHARD.wake)


async def test_a_holder_of_the_version_before_is_told(client: Any, redis: Redis) -> None:
    """Where nobody hears the sharded channel, the plain one of that name."""
    await hold(redis, "w1")
    await redis.zadd(SHARD.queue, {KEYS.job_id: LEASED_MS})
    async with redis.pubsub(ignore_subscribe_messages=True) as news:
        await news.subscribe(SHARD.channel_prefix + "w1")
        await news.get_message(timeout=5)

        await client.submit(user())
        await client.forget("c")

        told = [await news.get_message(timeout=5) for _ in range(2)]
    assert [message["data"] for message in told] == [b"c", b"c"]


@pytest.mark.promise("P1")
@pytest.mark.real_server
async def test_a_user_without_channels_accepts_without_an_error(client: Any, redis: Redis) -> None:
    """What was accepted is no error because nobody could be told; the worker stays idle."""
    await redis.execute_command("ACL", "SETUSER", "default", "resetchannels")
    try:
        await redis.zadd(SHARD.idle, {"w1": 5, "w2": 6})
        assert (await client.submit(user())).status == "accepted"
        await hold(redis, "w1")
        assert (await client.submit(user(when_busy="interrupt"))).status == "accepted"
        assert await client.forget("c")
    finally:
        await redis.execute_command("ACL", "SETUSER", "default", "allchannels")

    assert await redis.zrange(SHARD.idle, 0, -1, withscores=True) == [(b"w1", 5.0), (b"w2", 6.0)]
