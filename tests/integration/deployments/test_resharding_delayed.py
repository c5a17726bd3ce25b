"""Delayed messages go with their conversation when the number of shards changes."""

import time
from typing import Any

import pytest
from redis.asyncio import Redis

from turnline.contracts import Receipt, TurnClient, UserMessage
from turnline.contracts.keys import shard_keys, shard_of
from turnline.contracts.layout import Layout
from turnline.contracts.protocol import Requests
from turnline.contracts.scripts import run, text
from turnline.ops.fleet import lua
from turnline.ops.fleet.resharding import reshard
from turnline.worker.lease import Lease
from turnline.worker.queue.lua import claim
from turnline.worker.store.lua import LoadArgs, load

MANY = 12
MOVES = next(f"c{n}" for n in range(100) if shard_of(f"c{n}", MANY))
HOUR_MS = 3_600_000
OLD, NEW = (Requests().names(MOVES, shards) for shards in (1, MANY))


async def begin(redis: Redis) -> None:
    """Have a fleet with one shard, as its first worker says it."""
    await redis.hset(shard_keys(0).fleet, "shards", 1)


async def delay(client: TurnClient, turn_id: str = "one") -> Receipt:
    """Have a message delivered in an hour."""
    at_ms = int(time.time() * 1000) + HOUR_MS
    message = UserMessage(conversation_id=MOVES, text=turn_id, turn_id=turn_id, deliver_at_ms=at_ms)
    return await client.submit(message)


async def begin_to_move(redis: Redis) -> tuple[bytes, str, list[Any]]:
    """Have mover `m` on its way, and pack the conversation."""
    for number in range(MANY):
        fields = Layout(MANY, 1, (1,)).fields()
        await redis.hset(shard_keys(number).fleet, mapping={"mover": "m"}, items=list(fields))
    keys = OLD[1]
    word, last, cursor, *items = await run(redis, lua.pack(keys, lua.PackArgs(keys.job_id, 0)))
    assert text(word) == "packed"
    return last, text(cursor), items


async def leave(redis: Redis, last: bytes, cursor: str) -> str:
    keys = OLD[1]
    args = lua.LeaveArgs(keys.job_id, last, MANY, 60_000, "m", cursor)
    return text((await run(redis, lua.leave(keys, args)))[0])


async def is_in_its_new_shard(redis: Redis) -> bool:
    """With its place on the queue there, and nothing of it in the old one."""
    (old_shard, old), (new_shard, new) = OLD, NEW
    due = (await redis.zrange(new.later, 0, 0, withscores=True))[0][1]
    return (
        await redis.zscore(new_shard.queue, new.job_id) == due
        and await redis.zcard(old_shard.queue) == 0
        and not await redis.exists(old.later, old.job, old.log)
    )


@pytest.mark.promise("P1")
async def test_a_delayed_message_goes_with_its_conversation(redis: Redis, redis_url: str) -> None:
    """Nobody has to wait for its time; a second one is put beside it in the new shard."""
    await begin(redis)
    async with TurnClient.connect(redis_url) as client:
        await delay(client)

        assert (await reshard(redis_url, MANY)).moved == 1

        assert await is_in_its_new_shard(redis)
        assert (await delay(client)).status == "duplicate"
        assert (await delay(client, "two")).accepted
        assert await redis.zcard(NEW[1].later) == 2


@pytest.mark.promise("P1")
async def test_a_mover_that_died_leaves_nothing_off_the_queue(redis: Redis, redis_url: str) -> None:
    """Between the move and the new place on the queue; the next one does it."""
    await begin(redis)
    async with TurnClient.connect(redis_url) as client:
        await delay(client)
        last, cursor, items = await begin_to_move(redis)
        args = lua.ArriveArgs(cursor, b"", "m", items)
        assert text((await run(redis, lua.arrive(NEW[1], args)))[0]) == "arrived"
        assert await leave(redis, last, cursor) == "left"
        assert await redis.zcard(NEW[0].queue) == 0

        await reshard(redis_url, MANY)

    assert await is_in_its_new_shard(redis)


async def test_what_has_not_left_is_not_put_on_the_new_queue(redis: Redis, redis_url: str) -> None:
    """Its old shard runs it: a turn waits there."""
    await begin(redis)
    async with TurnClient.connect(redis_url) as client:
        await delay(client)
        _, cursor, items = await begin_to_move(redis)
        await run(redis, lua.arrive(NEW[1], lua.ArriveArgs(cursor, b"", "m", items)))

        await reshard(redis_url, MANY)

    assert await is_in_its_new_shard(redis)
    assert await redis.zcard(NEW[1].later) == 1


@pytest.mark.promise("P3")
async def test_a_turn_that_came_to_its_time_keeps_the_conversation(
    redis: Redis, redis_url: str
) -> None:
    """Due, running, or over since it was packed: it stays for another try."""
    await begin(redis)
    keys = OLD[1]
    async with TurnClient.connect(redis_url) as client:
        await delay(client)
        last, cursor, _ = await begin_to_move(redis)
        await redis.zadd(keys.later, {(await redis.zrange(keys.later, 0, 0))[0]: 1})
        await redis.zadd(keys.queue, {keys.job_id: 1})
        assert await leave(redis, last, cursor) == "changed"

        _, _, _, _, value, _ = await run(redis, claim(OLD[0], 1, 60_000, "w"))
        assert await leave(redis, last, cursor) == "changed"
        lease = Lease(OLD[0].tag, MOVES, text(value))
        await run(redis, load(keys, LoadArgs(lease.value, "", 0, 9, 60_000, "")))
        assert await leave(redis, last, cursor) == "changed"

        await redis.delete(keys.in_progress, keys.inbox, keys.later)
        await redis.zrem(keys.queue, keys.job_id)
        await redis.xadd(keys.events, {"e": "{}"})
        assert await leave(redis, last, cursor) == "changed"
