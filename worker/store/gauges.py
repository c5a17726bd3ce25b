"""Reads how a shard stands, for metrics: what waits, since when, what failed."""

from typing import Any, NamedTuple

from turnline.contracts.connection import AsyncRedis
from turnline.contracts.keys import ShardKeys
from turnline.contracts.scripts import text


class ShardGauges(NamedTuple):
    """A shard at one moment."""

    due: int
    """Conversations that wait for a worker."""
    running: int
    """Conversations leased or deferred."""
    oldest_s: float
    """For how long the first of those that wait has been due, seconds."""
    dead: int
    """Dead letters kept."""
    breakers_open: int


async def read_gauges(redis: AsyncRedis, shard: ShardKeys) -> ShardGauges:
    """Read them.

    Raises:
        redis.exceptions.RedisError: The server did not answer.
    """
    seconds, micros = await redis.execute_command("TIME")
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    pipe = redis.pipeline(transaction=False)
    pipe.execute_command("ZCARD", shard.queue)
    pipe.execute_command("ZCOUNT", shard.queue, "-inf", now_ms)
    pipe.execute_command("ZRANGE", shard.queue, 0, 0, "WITHSCORES")
    pipe.execute_command("XLEN", shard.dead)
    pipe.execute_command("HGETALL", shard.breakers)
    replies: list[Any] = await pipe.execute()
    total, due, first, dead, breakers = replies
    oldest_ms = now_ms - float(first[1]) if first else 0.0
    is_open = [
        field
        for field, value in breakers.items()
        if text(field).endswith("|until") and float(value) > now_ms
    ]
    return ShardGauges(
        due=int(due),
        running=int(total) - int(due),
        oldest_s=max(0.0, oldest_ms / 1000),
        dead=int(dead),
        breakers_open=len(is_open),
    )
