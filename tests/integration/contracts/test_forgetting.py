"""Forgetting a conversation: every key, every copy, and the worker that runs it is told."""

import time
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.integration.contracts.streams import KEYS, SHARD, hold, publish, reply, whole_turn
from tests.support.keys import kept
from turnline.contracts import TurnClient, TurnCompleted, UserMessage
from turnline.contracts.keys import conversation_keys
from turnline.contracts.protocol import Requests
from turnline.contracts.scripts import run

pytestmark = pytest.mark.quick


def user(conversation_id: str, **more: Any) -> UserMessage:
    return UserMessage(conversation_id=conversation_id, text="secret", **more)


def done(conversation_id: str, turn_id: str = "t") -> TurnCompleted:
    return TurnCompleted(conversation_id=conversation_id, turn_id=turn_id, text="secret")


async def fill(client: Any, redis: Redis) -> None:
    """Give the conversation `c` everything that one can have."""
    await client.submit(user("c", turn_id="t"))
    await client.submit(user("c", deliver_at_ms=int(time.time() * 1000) + 3_600_000))
    await hold(redis, "w1")
    await publish(redis, *whole_turn())
    for key in (KEYS.context, KEYS.steps, KEYS.calls):
        await redis.rpush(key, "secret")
    for _ in range(2):
        await reply(redis, "inbox", done("c"))
        await reply(redis, "other", done("c"))
    await redis.xadd(SHARD.dead, {"c": "other", "m": "kept"})
    dead = await redis.xadd(SHARD.dead, {"c": "c", "m": "secret"})
    await redis.rpush(KEYS.copies, f"{SHARD.dead} {dead.decode()}")


@pytest.mark.real_server
async def test_nothing_of_the_conversation_is_left(client: Any, redis: Redis) -> None:
    """Neither its keys nor its copies in reply streams and dead letters; others' stay."""
    await fill(client, redis)
    assert {key.decode() for key in await redis.keys()} >= set(KEYS.own)
    await client.submit(user("other"))
    await reply(redis, "inbox", done("other"))
    others = {k: v for k, v in (await kept(redis)).items() if ":c:other:" in k}

    assert await client.forget("c")

    left = {key.decode() for key in await redis.keys()}
    assert not left & set(KEYS.own)
    assert not [key for key in left if ":c:c:" in key or key.endswith("{s0}:c")]
    assert await redis.zrange(SHARD.queue, 0, -1) == [b"{s0}:other"]
    (entry,) = await redis.xrange(SHARD.reply_prefix + "inbox")
    assert b'"other"' in entry[1][b"e"]
    assert await redis.xlen(SHARD.reply_prefix + "other") == 0
    assert [fields[b"c"] for _, fields in await redis.xrange(SHARD.dead)] == [b"other"]
    now = await kept(redis)
    assert others == {key: now[key] for key in others}


async def test_the_holder_is_told(client: Any, redis: Redis) -> None:
    """On its channel, and its lease is gone, so that it cannot write any more."""
    await fill(client, redis)
    async with redis.pubsub(ignore_subscribe_messages=True) as news:
        await news.subscribe(SHARD.channel_prefix + "w1")
        await news.get_message(timeout=5)

        await client.forget("c")

        message = await news.get_message(timeout=5)
    assert message["data"] == b"c"
    assert not await redis.exists(KEYS.in_progress)


async def test_forgetting_tells_whether_there_was_anything(client: Any, redis: Redis) -> None:
    """A second time there is not, and an id may be used again."""
    await client.submit(user("c", turn_id="t"))

    assert await client.forget("c")
    assert not await client.forget("c")
    assert await redis.zcard(SHARD.queue) == 0
    assert (await client.submit(user("c", turn_id="t"))).accepted


@pytest.mark.real_server
async def test_a_copy_made_meanwhile_is_not_overlooked(
    client_async: TurnClient, redis: Redis
) -> None:
    """The script refuses to work from an old list, and writes nothing."""
    await fill(client_async, redis)
    copies = await redis.lrange(KEYS.copies, 0, -1)
    await reply(redis, "late", done("c"))
    before = await kept(redis)

    answer = await run(redis, Requests().forget("c", copies))

    assert answer == [b"again", len(copies) + 1]
    assert await kept(redis) == before
    assert await client_async.forget("c")
    assert await redis.xlen(SHARD.reply_prefix + "late") == 0


@pytest.mark.real_server
async def test_a_copy_made_meanwhile_is_not_overlooked_in_a_full_list(
    client_async: TurnClient, redis: Redis
) -> None:
    """Where an old note went for the new one, so that the list is as long as before."""
    await fill(client_async, redis)
    copies = await redis.lrange(KEYS.copies, 0, -1)
    await reply(redis, "late", done("c"))
    await redis.lpop(KEYS.copies)
    before = await kept(redis)

    answer = await run(redis, Requests().forget("c", copies))

    assert answer == [b"again", len(copies)]
    assert await kept(redis) == before
    assert await client_async.forget("c")
    assert await redis.xlen(SHARD.reply_prefix + "late") == 0


@pytest.mark.real_server
async def test_forgetting_copies_in_many_streams_holds_nobody_up(
    client_async: TurnClient, redis: Redis
) -> None:
    """Time grows with the number of copies, not with its square."""
    notes = [f"{SHARD.reply_prefix}s{n} 1-1" for n in range(10_000)]
    await redis.rpush(KEYS.copies, *notes)
    await redis.config_resetstat()

    assert await client_async.forget("c")

    stats = await redis.info("commandstats")
    spent = sum(stats.get(f"cmdstat_{name}", {}).get("usec", 0) for name in ("eval", "evalsha"))
    assert spent < 500_000


async def test_ids_that_look_like_patterns_name_only_themselves(client: Any, redis: Redis) -> None:
    """`*`, `[` and `%` have no meaning in them."""
    for name in ("a*", "ab", "a[b]", "a%s", "a.b", "axb"):
        await client.submit(user(name, turn_id="t")) if name in {"a*", "ab", "a.b"} else None

    await client.forget("a*")
    await client.forget("a.b")

    assert await redis.exists(conversation_keys("{s0}", "ab").inbox)
    assert not await redis.exists(conversation_keys("{s0}", "a*").inbox)
