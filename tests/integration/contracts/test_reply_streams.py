"""Consuming a reply stream: at least once each, unacknowledged first, whatever happens to it."""

import asyncio
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from tests.integration.contracts.streams import SHARD, reply, take, waits
from tests.support.keys import assert_keys_expire
from tests.support.wait import wait_until
from turnline.contracts import TurnClient, TurnCompleted
from turnline.contracts.keys import shard_keys
from turnline.contracts.replies import ToolRequest, encode_event

STREAM = SHARD.reply_prefix + "inbox"


def done(n: int) -> TurnCompleted:
    return TurnCompleted(conversation_id=f"c{n}", turn_id=f"t{n}", text=f"reply {n}")


async def pending(redis: Redis) -> int:
    return (await redis.xpending(STREAM, "group"))["pending"]


async def texts(items: Any, count: int) -> list[str]:
    async with asyncio.timeout(5):
        return [event.text for event in await take(items, count)]


async def test_replies_of_many_conversations_come_in_order(client: Any, redis: Redis) -> None:
    """Those from before the group existed too; each is acknowledged when the next is asked for."""
    for n in range(3):
        await reply(redis, "inbox", done(n))
    replies = client.replies("inbox", "group", "one", batch=2)

    assert await texts(replies, 1) == ["reply 0"]
    assert await pending(redis) == 2
    assert await texts(replies, 2) == ["reply 1", "reply 2"]
    assert await pending(redis) == 1
    waiting = asyncio.create_task(anext(replies))
    await wait_until(lambda: is_acknowledged(redis), "the last one is acknowledged")
    await reply(redis, "inbox", done(3))
    assert (await waiting).text == "reply 3"


async def is_acknowledged(redis: Redis) -> bool:
    return await pending(redis) == 0


async def test_what_was_not_acknowledged_comes_again_first(client: Any, redis: Redis) -> None:
    """A consumer that restarts under its name misses nothing; another one does not get it."""
    for n in range(4):
        await reply(redis, "inbox", done(n))
    assert await texts(client.replies("inbox", "group", "one", batch=2), 2) == [
        "reply 0",
        "reply 1",
    ]

    other = client.replies("inbox", "group", "two", batch=1)
    again = client.replies("inbox", "group", "one", batch=1)

    assert await texts(other, 1) == ["reply 2"]
    assert await texts(again, 2) == ["reply 1", "reply 3"]


async def test_what_a_lost_connection_took_with_it_comes_later(
    client: Any, redis: Redis, short_waits: None
) -> None:
    """The server gave it to this consumer, which never saw it: it is looked for when idle."""
    await reply(redis, "inbox", done(0))
    replies = client.replies("inbox", "group", "one")
    assert await texts(replies, 1) == ["reply 0"]
    await reply(redis, "inbox", done(1))
    taken = await redis.xreadgroup("group", "one", {STREAM: ">"}, count=1)
    assert taken

    assert await texts(replies, 1) == ["reply 1"]


async def test_groups_are_independent(client: Any, redis: Redis) -> None:
    """Each gets everything."""
    await reply(redis, "inbox", done(0))

    for group in ("billing", "archive"):
        assert await texts(client.replies("inbox", group, "one"), 1) == ["reply 0"]


@pytest.mark.parametrize("is_waiting", [False, True])
async def test_the_group_survives_the_loss_of_its_stream(
    client: Any, redis: Redis, is_waiting: bool
) -> None:
    """When it expired or was deleted, also under a waiting reader."""
    await reply(redis, "inbox", done(0))
    replies = client.replies("inbox", "group", "one")
    assert await texts(replies, 1) == ["reply 0"]
    waiting = asyncio.create_task(anext(replies))
    if is_waiting:
        await wait_until(lambda: waits(redis, STREAM), "the reader waits")

    await redis.delete(STREAM)
    await reply(redis, "inbox", done(1))

    async with asyncio.timeout(5):
        assert (await waiting).text == "reply 1"


async def test_a_forgotten_reply_is_passed_over(client: Any, redis: Redis) -> None:
    """Its copy is gone from the stream, and from what waits for acknowledgement."""
    for n in range(3):
        await reply(redis, "inbox", done(n))
    first = client.replies("inbox", "group", "one")
    assert await texts(first, 1) == ["reply 0"]

    assert await client.forget("c1")

    again = client.replies("inbox", "group", "one")
    assert await texts(again, 2) == ["reply 0", "reply 2"]
    assert await pending(redis) == 1


async def test_a_reply_stream_expires(client: Any, redis: Redis) -> None:
    """Also one that nobody ever wrote to."""
    waiting = asyncio.create_task(anext(client.replies("inbox", "group", "one")))
    await wait_until(lambda: redis.exists(STREAM), "the group is created")
    await wait_until(lambda: waits(redis, STREAM), "the reader waits")

    await assert_keys_expire(redis)

    await reply(redis, "inbox", done(0))
    assert (await waiting).text == "reply 0"


async def test_a_name_spans_all_shards(redis_url: str, redis: Redis) -> None:
    """One consumer reads the stream of each."""
    for n in range(3):
        name = shard_keys(n).reply_prefix + "inbox"
        await redis.xadd(name, {"e": encode_event(done(n))})
    async with TurnClient.connect(redis_url, shards=3) as client:
        replies = client.replies("inbox", "group", "one")
        assert sorted(await texts(replies, 3)) == ["reply 0", "reply 1", "reply 2"]


async def leave(redis: Redis, stream: str, group: str, idle_ms: int) -> None:
    """Let a consumer take everything, and then vanish for so long."""
    ((_, entries),) = await redis.xreadgroup(group, "gone", {stream: ">"})
    ids = [entry_id for entry_id, _ in entries]
    await redis.xclaim(stream, group, "gone", 0, ids, idle=idle_ms)


async def test_what_a_vanished_consumer_took_is_taken_over(client: Any, redis: Redis) -> None:
    """After the time that counts as long, also by one that is busy with new ones; once."""
    for n in range(3):
        await reply(redis, "inbox", done(n))
    await redis.xgroup_create(STREAM, "group", "0")
    await leave(redis, STREAM, "group", 400_000)
    await reply(redis, "inbox", done(3))

    replies = client.replies("inbox", "group", "one", batch=2)

    assert sorted(await texts(replies, 4)) == [f"reply {n}" for n in range(4)]
    waiting = asyncio.create_task(anext(replies))
    await wait_until(lambda: is_acknowledged(redis), "all are acknowledged")
    await reply(redis, "inbox", done(4))
    assert (await waiting).text == "reply 4"


async def test_what_a_waiting_consumer_meets_later_is_taken_over_too(
    client: Any, redis: Redis, short_waits: None
) -> None:
    """It goes on looking."""
    await reply(redis, "inbox", done(0))
    replies = client.replies("inbox", "group", "one", take_over_s=0.2)
    assert await texts(replies, 1) == ["reply 0"]
    waiting = asyncio.create_task(anext(replies))
    await wait_until(lambda: waits(redis, STREAM), "the reader waits")
    async with redis.pipeline(transaction=True) as pipe:
        pipe.xadd(STREAM, {"e": encode_event(done(1))})
        pipe.xreadgroup("group", "gone", {STREAM: ">"})
        await pipe.execute()

    async with asyncio.timeout(5):
        assert (await waiting).text == "reply 1"


@pytest.mark.parametrize("take_over_s", [500, None])
async def test_what_is_being_worked_on_is_left_alone(
    client: Any, redis: Redis, short_waits: None, take_over_s: float | None
) -> None:
    """Nothing is taken over before its time, or ever if that is asked for."""
    await reply(redis, "inbox", done(0))
    await redis.xgroup_create(STREAM, "group", "0")
    await leave(redis, STREAM, "group", 400_000)
    replies = client.replies("inbox", "group", "one", take_over_s=take_over_s)
    waiting = asyncio.create_task(anext(replies))
    await wait_until(lambda: waits(redis, STREAM), "the reader waits")

    await reply(redis, "inbox", done(1))

    assert (await waiting).text == "reply 1"


async def test_what_was_forgotten_is_not_taken_over(client: Any, redis: Redis) -> None:
    """It is gone from the stream, and then from what waits for acknowledgement."""
    for n in range(3):
        await reply(redis, "inbox", done(n))
    await redis.xgroup_create(STREAM, "group", "0")
    await leave(redis, STREAM, "group", 400_000)
    assert await client.forget("c1")

    replies = client.replies("inbox", "group", "one")

    assert await texts(replies, 2) == ["reply 0", "reply 2"]


UNREADABLE = {
    "no JSON": {"e": b"junk"},
    "of a later version": {"e": b'{"type":"thought","conversation_id":"c","turn_id":"t"}'},
    "no UTF-8": {"e": b'{"type":"turn_completed","conversation_id":"\xff"}'},
    "without the field": {"x": b"y"},
}
PROGRESS = {"e": b'{"type":"text_delta","conversation_id":"c","turn_id":"t","text":"x"}'}


@pytest.mark.parametrize("entry", [*UNREADABLE.values(), PROGRESS], ids=[*UNREADABLE, "no end"])
async def test_a_reply_that_cannot_be_read_is_passed_over(
    client: Any, redis: Redis, entry: dict[str, bytes]
) -> None:
    """It is acknowledged, so that it does not come again, and the next one is given."""
    await redis.xadd(STREAM, entry)
    await reply(redis, "inbox", done(0))
    await redis.xadd(STREAM, entry)
    await reply(redis, "inbox", done(1))

    replies = client.replies("inbox", "group", "one", batch=2)

    assert await texts(replies, 2) == ["reply 0", "reply 1"]
    waiting = asyncio.create_task(anext(replies))
    await wait_until(lambda: is_acknowledged(redis), "all are acknowledged")
    await reply(redis, "inbox", done(2))
    assert (await waiting).text == "reply 2"


@pytest.mark.parametrize("entry", UNREADABLE.values(), ids=UNREADABLE)
async def test_a_reply_that_cannot_be_read_is_not_taken_over_for_ever(
    client: Any, redis: Redis, entry: dict[str, bytes]
) -> None:
    """Also where the consumer that met it first went down with it."""
    await redis.xadd(STREAM, entry)
    await redis.xgroup_create(STREAM, "group", "0")
    await leave(redis, STREAM, "group", 400_000)
    await reply(redis, "inbox", done(0))

    replies = client.replies("inbox", "group", "one")

    assert await texts(replies, 1) == ["reply 0"]
    waiting = asyncio.create_task(anext(replies))
    await wait_until(lambda: is_acknowledged(redis), "all are acknowledged")
    await reply(redis, "inbox", done(1))
    assert (await waiting).text == "reply 1"


def call_of(n: int) -> ToolRequest:
    return ToolRequest(
        conversation_id="c",
        turn_id="t",
        call_id=str(n),
        name="look_up",
        idempotency_key=f"c/t/{n}",
        deadline_at_ms=2**50,
    )


@pytest.mark.parametrize("entry", UNREADABLE.values(), ids=UNREADABLE)
async def test_a_tool_call_that_cannot_be_read_is_passed_over(
    client_async: TurnClient, redis: Redis, entry: dict[str, bytes]
) -> None:
    """As with replies: a worker of a later version stops no service."""
    for n in range(2):
        await redis.xadd(SHARD.tool_calls, entry)
        await redis.xadd(SHARD.tool_calls, {"e": msgspec.json.encode(call_of(n))})

    calls = client_async.tool_calls("service", "one", batch=2)

    async with asyncio.timeout(5):
        assert await take(calls, 2) == [call_of(0), call_of(1)]
    await calls.aclose()


async def test_tool_calls_are_taken_over_too(client_async: TurnClient, redis: Redis) -> None:
    """A service that vanished with a call does not let its turn wait."""
    call = call_of(1)
    await redis.xadd(SHARD.tool_calls, {"e": msgspec.json.encode(call)})
    await redis.xgroup_create(SHARD.tool_calls, "service", "0")
    await leave(redis, SHARD.tool_calls, "service", 400_000)

    async with asyncio.timeout(5):
        assert await anext(client_async.tool_calls("service", "one")) == call
