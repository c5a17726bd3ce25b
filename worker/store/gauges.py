"""Reads how a shard stands, for metrics: what waits, since when, what failed."""

import asyncio
from typing import Final, NamedTuple

from turnline.contracts.keys import ShardKeys
from turnline.contracts.scripts import text
from turnline.worker.batching import ScriptBatcher

_MOST_TENANTS: Final = 1_000


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
    held: int
    """Conversations that wait for others of their tenant, about."""
    used_up: int
    """Budgets for which producers are refused."""


async def read_gauges(batcher: ScriptBatcher, shard: ShardKeys) -> ShardGauges:
    """Read them.

    Raises:
        redis.exceptions.RedisError, OSError: The server did not answer.
    """
    seconds, micros = await batcher.send("TIME")
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    commands = (
        ("ZCARD", shard.queue),
        ("ZCOUNT", shard.queue, "-inf", now_ms),
        ("ZRANGE", shard.queue, 0, 0, "WITHSCORES"),
        ("XLEN", shard.dead),
        ("HGETALL", shard.breakers),
        ("HGETALL", shard.exhausted),
        ("ZRANGE", shard.held, 0, _MOST_TENANTS),
    )
    total, due, first, dead, breakers, marks, tenants = await asyncio.gather(
        *(batcher.send(*command) for command in commands)
    )
    held = await asyncio.gather(
        *(batcher.send("ZCARD", shard.held_prefix.encode() + it) for it in tenants)
    )
    oldest_ms = now_ms - float(first[1]) if first else 0.0
    is_open = [
        field
        for field, value in zip(breakers[::2], breakers[1::2], strict=True)
        if text(field).endswith("|until") and float(value) > now_ms
    ]
    return ShardGauges(
        due=int(due),
        running=int(total) - int(due),
        oldest_s=max(0.0, oldest_ms / 1000),
        dead=int(dead),
        breakers_open=len(is_open),
        held=sum(held),
        used_up=sum(
            _lasts_ms(mark) > now_ms
            for field, mark in zip(marks[::2], marks[1::2], strict=True)
            if not field.startswith(b"w:")  # that says how many may wait
        ),
    )


def _lasts_ms(mark: bytes) -> int:
    """Return until when a mark lasts; what others wrote does not."""
    until, _, _ = mark.partition(b" ")
    return int(until) if until.isdigit() else 0
