"""What a worker sends to Redis, and whether its user may send it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from redis.exceptions import NoPermissionError, ResponseError

from turnline.contracts.connection import Arg, AsyncRedis
from turnline.contracts.keys import ShardKeys, conversation_keys
from turnline.contracts.scripts import bind, run, text

CONVERSATION: Final = "turnline-start"
"""A conversation whose keys are asked about; it has none."""
COMMANDS: Final[Mapping[str, Sequence[Arg]]] = {
    "APPEND": ("",),
    "DEL": (),
    "GET": (),
    "GETRANGE": (0, 0),
    "HDEL": ("f",),
    "HEXISTS": ("f",),
    "HGET": ("f",),
    "HGETALL": (),
    "HINCRBY": ("f", 1),
    "HMGET": ("f",),
    "HSET": ("f", "v"),
    "HSETNX": ("f", "v"),
    "INCR": (),
    "LLEN": (),
    "LPOP": (),
    "LPUSH": ("v",),
    "LRANGE": (0, 0),
    "LREM": (0, "v"),
    "LTRIM": (0, 0),
    "PEXPIRE": (1,),
    "PSETEX": (1, "v"),
    "PTTL": (),
    "RPUSH": ("v",),
    "SET": ("v",),
    "SETRANGE": (0, ""),
    "XADD": ("*", "f", "v"),
    "XDEL": ("1-1",),
    "XLEN": (),
    "XRANGE": ("-", "-", "COUNT", 1),
    "XREVRANGE": ("+", "+", "COUNT", 1),
    "XTRIM": ("MAXLEN", 0),
    "ZADD": (1, "m"),
    "ZCARD": (),
    "ZCOUNT": (1, 1),
    "ZLEXCOUNT": ("-", "+"),
    "ZMSCORE": ("m",),
    "ZPOPMIN": (),
    "ZRANDMEMBER": (1,),
    "ZRANGE": (0, 0),
    "ZRANGEBYSCORE": (1, 1),
    "ZRANK": ("m",),
    "ZREM": ("m",),
    "ZREMRANGEBYSCORE": (1, 1),
    "ZSCORE": ("m",),
}
"""Commands with a key, in scripts and beside them: what follows the key."""


class Right(NamedTuple):
    """One command that is needed."""

    label: str
    """For people."""
    words: Sequence[Arg]


class NoKeys(NamedTuple):
    """The question reads and writes nothing."""


class MayArgs(NamedTuple):
    """What `may` is given; the header of may.lua says what it is."""

    commands: Sequence[str]


_may = bind("turnline.worker.starting.lua", "may", NoKeys, MayArgs)


def rights(shard: ShardKeys) -> Iterator[Right]:
    """Yield every command on one key, then every kind of key and channel."""
    keys = conversation_keys(shard.tag, CONVERSATION)
    for name, rest in COMMANDS.items():
        yield Right(name, (name, keys.steps, *rest))
    yield Right("TIME", ("TIME",))
    yield Right("EVAL", ("EVAL", "return 1", 0))
    yield Right("EVALSHA", ("EVALSHA", "0" * 40, 0))
    for label, key in _keys(shard):  # on keys of every type this does nothing
        yield Right(f"write {label}", ("HDEL", key, CONVERSATION))
    waking, news = shard.wake_prefix, shard.channel_prefix
    yield Right(f"SPUBLISH to {waking}*", ("SPUBLISH", waking + CONVERSATION, ""))
    yield Right("SUNSUBSCRIBE", ("SUNSUBSCRIBE", news + CONVERSATION))
    for prefix in (waking, news):
        yield Right(f"SSUBSCRIBE to {prefix}*", ("SSUBSCRIBE", prefix + CONVERSATION))
    for label, stream in _read_streams(shard):
        yield Right(f"SPUBLISH to {label}", ("SPUBLISH", stream, ""))


def _read_streams(shard: ShardKeys) -> Iterator[tuple[str, str]]:
    """Yield (how to name it, key) for every kind of stream that clients wait for."""
    events = conversation_keys(shard.tag, CONVERSATION).events
    yield events.replace(CONVERSATION, "*"), events
    yield f"{shard.reply_prefix}*", shard.reply_prefix + CONVERSATION
    yield shard.tool_calls, shard.tool_calls


def _keys(shard: ShardKeys) -> Iterator[tuple[str, str]]:
    """Yield (how to name it, key) for every kind of key."""
    for key in conversation_keys(shard.tag, CONVERSATION).own:
        yield key.replace(CONVERSATION, "*"), key
    for key in (shard.queue, shard.wake, shard.idle, shard.order, shard.shares, shard.token):
        yield key, key
    for key in (shard.held, shard.waiting, shard.dead, shard.workers):
        yield key, key
    for key in (shard.tool_calls, shard.breakers, shard.limits, shard.traces, shard.exhausted):
        yield key, key
    for key in (shard.pages, shard.page_marks):
        yield key, key
    for key in (shard.schedules, shard.ticks, shard.schedules_job, shard.schedules_lease):
        yield key, key
    for prefix in (
        *(shard.worker_prefix, shard.limit_prefix, shard.reply_prefix, shard.spend_prefix),
        *(shard.held_prefix, shard.running_prefix, shard.page_prefix),
    ):
        yield f"{prefix}*", prefix + CONVERSATION


async def missing(redis: AsyncRedis, shard: ShardKeys) -> tuple[list[str], str]:
    """Return what a worker needs and may not send, and the server's words on the first of it.

    Args:
        redis: A connection of its own: it is of no use afterwards.
        shard: Whose keys are asked about.

    Raises:
        redis.exceptions.RedisError: The question itself may not be asked, or was not answered.
    """
    asked = list(rights(shard))
    words = [json.dumps([str(word) for word in it.words]) for it in asked]
    kind, *places = await run(redis, _may(NoKeys(), MayArgs(words)))
    if text(kind) == "unknown":
        return [], ""
    refused = [asked[int(place) - 1] for place in places]
    for n, right in enumerate(refused):
        try:
            await redis.execute_command(*right.words)
        except (NoPermissionError, ResponseError) as error:
            if isinstance(error, NoPermissionError) or "unknown command" in str(error).lower():
                return [it.label for it in refused[n:]], str(error)
    return [], ""
