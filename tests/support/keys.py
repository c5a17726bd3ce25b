"""What stands in a database: compared as a whole, and checked for what stays in it for ever."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from redis.asyncio import Redis

PERMANENT = (re.compile(r"turnline:\{s\d+\}:(token|idle)"),)
"""Keys that a shard keeps for ever, each of bounded size."""
_NOT_KEPT = {b"seen-time", b"active-time", b"radix-tree-keys", b"radix-tree-nodes"}


class Kept(NamedTuple):
    """What a key keeps, whatever bytes the server keeps it in."""

    type: str
    expires: bool
    content: Any


async def kept(redis: Redis) -> dict[str, Kept]:
    """Return all that is kept in the database, by key.

    The bytes of DUMP are no measure: a server may write the same content in several ways.
    """
    found: dict[str, Kept] = {}
    for key in await redis.keys():
        kind = (await redis.type(key)).decode()
        expires = await redis.pttl(key) >= 0
        found[key.decode()] = Kept(kind, expires, await _content(redis, key, kind))
    return found


async def _content(redis: Redis, key: bytes, kind: str) -> Any:
    match kind:
        case "string":
            return await redis.get(key)
        case "list":
            return await redis.lrange(key, 0, -1)
        case "hash":
            return await redis.hgetall(key)
        case "set":
            return await redis.smembers(key)
        case "zset":
            return await redis.zrange(key, 0, -1, withscores=True)
        case "stream":
            return _stream(await redis.execute_command("XINFO", "STREAM", key, "FULL", "COUNT", 0))
        case _:
            raise AssertionError(f"{key!r} is of an unknown type: {kind}")


def _stream(answer: list[Any]) -> dict[bytes, Any]:
    stream = _named(answer)
    stream[b"groups"] = [_named(group) for group in stream[b"groups"]]
    for group in stream[b"groups"]:
        group[b"consumers"] = [_named(consumer) for consumer in group[b"consumers"]]
    return stream


def _named(pairs: list[Any]) -> dict[bytes, Any]:
    """Leave out what looking at a stream changes, and how the server stores it."""
    named = dict(zip(pairs[::2], pairs[1::2], strict=True))
    return {name: value for name, value in named.items() if name not in _NOT_KEPT}


async def assert_keys_expire(
    redis: Redis, permanent: Iterable[str | re.Pattern[str]] = PERMANENT
) -> None:
    """Fail unless each key of the database has a time to live or is known to be permanent.

    Args:
        redis: A client of the database to walk.
        permanent: Keys that may stay: exact names, or patterns that match the whole name.
    """
    patterns = [re.compile(re.escape(p)) if isinstance(p, str) else p for p in permanent]
    keys = [key async for key in redis.scan_iter(count=1000)]
    async with redis.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.pttl(key)
        lives = await pipe.execute()
    names = [
        key.decode() if isinstance(key, bytes) else key
        for key, life_ms in zip(keys, lives, strict=True)
        if life_ms == -1
    ]
    stay = sorted(name for name in names if not any(p.fullmatch(name) for p in patterns))
    assert not stay, f"keys without a time to live: {stay}"
