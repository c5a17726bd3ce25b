"""How a whole fleet stands, by what is in Redis alone: true also while no worker lives.

A look takes a few round trips to each server, whatever waits and runs; what was spent is read more
seldom the longer that takes.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec

from turnline.contracts.connection import AsyncRedis
from turnline.contracts.daily_spend import Question, day_of, read_spend
from turnline.contracts.keys import ShardKeys, check_prefix, shard_keys
from turnline.contracts.layout import FIELDS, Layout, read_layout
from turnline.contracts.opening import open_servers
from turnline.contracts.routed import RoutedRedis
from turnline.ops.fleet.queue_state import Worker, read_worker
from turnline.worker.batching import Pipelines, ScriptBatcher
from turnline.worker.store.gauges import ShardGauges, read_gauges

LOOK_S: Final = 3.0
"""Seconds that a look may take."""
_SPEND_S: Final = 15.0
"""Seconds between two looks at what was spent, at least; ..."""
_SPEND_SHARE: Final = 100
"""... and so many times as long as the last one took."""
_SOON_MS: Final = 2_000
"""What is due so soon counts as demand: it runs, or will. Leases end so soon, too: what has just
been claimed is seen here before its worker's next heartbeat says so."""


class FleetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One moment of a fleet; the fields are what scalers, dashboards and scripts read."""

    ok: bool = True
    at_ms: int
    """By the clock of Redis."""
    shards: int
    waiting: int
    """Conversations that are due and run by nobody."""
    running: int
    """Conversations that workers run, as they said with their last heartbeat."""
    demand: int
    """The slots that there is work for: what waits, and what runs or is due in a moment."""
    deferred: int
    """Conversations that wait for a time, an answer or more input, about."""
    held: int
    """Conversations that wait for others of their tenant, about."""
    oldest_waiting_s: float
    """For how long the first of the waiting ones has been due."""
    workers: int
    """Those alive, by the clock of Redis."""
    slots: int
    """Conversations that they can run at once."""
    dead_letters: int
    breakers_open: int
    budgets_used_up: int
    spent_today_usd: float
    """As providers reported it, since midnight UTC."""
    spent_today_tokens: int
    look_s: float
    """How long Redis took to tell."""


class FleetWatch:
    """Looks at one fleet, again and again, over the same connections."""

    def __init__(self, redis_url: str, *, shards: int = 1, prefix: str = "") -> None:
        """Open nothing yet.

        Args:
            redis_url: As workers have it.
            shards: Of the fleet, until its first worker has said how many it has.
            prefix: The fleet's name.

        Raises:
            InvalidAddress: The address is none.
            ValueError: The prefix is none.
        """
        check_prefix(prefix)
        self._servers = open_servers(redis_url)
        self._pipelines = Pipelines(self._servers, silence_s=LOOK_S)
        self._redis = cast("AsyncRedis", RoutedRedis(self._servers))
        self._shards = shards
        self._prefix = prefix
        self._first = shard_keys(0, prefix)
        self._spent: tuple[str, float, int] = ("", 0.0, 0)
        """Day, dollars, tokens."""
        self._spend_at_s = 0.0

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pipelines.close()
        await self._servers.aclose()

    async def look(self) -> FleetStatus:
        """Return how the fleet stands now.

        Raises:
            TimeoutError: Redis took longer than `LOOK_S`.
            redis.exceptions.RedisError, OSError: It cannot be reached, or refuses.
        """
        async with asyncio.timeout(LOOK_S):
            return await self._look()

    async def _look(self) -> FleetStatus:
        began_s = time.monotonic()
        first = self._pipelines.of(self._first.tag)
        values, (seconds, micros) = await asyncio.gather(
            first.send("HMGET", self._first.fleet, *FIELDS), first.send("TIME")
        )
        at_ms = int(seconds) * 1000 + int(micros) // 1000
        layout = read_layout(values) or Layout(self._shards)
        shards = [shard_keys(number, self._prefix) for number in range(layout.widest)]
        batchers = [self._pipelines.of(shard.tag) for shard in shards]
        pairs = list(zip(batchers, shards, strict=True))
        gauges, workers = await asyncio.gather(
            asyncio.gather(*(read_gauges(*pair) for pair in pairs)),
            asyncio.gather(*(_workers(*pair, at_ms) for pair in pairs)),
        )
        # Behind the others: what is claimed meanwhile counts twice, and not for nothing.
        soon = sum(await asyncio.gather(*(_due_soon(*pair, at_ms) for pair in pairs)))
        await self._look_at_spend(shards, day_of(at_ms))
        look_s = time.monotonic() - began_s
        return self._status(layout, at_ms, gauges, workers, soon=soon, look_s=look_s)

    def _status(
        self,
        layout: Layout,
        at_ms: int,
        gauges: Sequence[ShardGauges],
        workers: Sequence[Sequence[Worker]],
        *,
        soon: int,
        look_s: float,
    ) -> FleetStatus:
        every = [worker for some in workers for worker in some]
        slots = {worker.id: worker.slots for worker in every}  # which its shards share
        waiting, running = sum(it.due for it in gauges), sum(it.running for it in every)
        _, usd, tokens = self._spent
        return FleetStatus(
            at_ms=at_ms,
            shards=layout.shards,
            waiting=waiting,
            running=running,
            demand=waiting + max(running, soon),
            deferred=max(0, sum(it.running for it in gauges) - running),
            held=sum(it.held for it in gauges),
            oldest_waiting_s=round(max(it.oldest_s for it in gauges), 3),
            workers=len(slots),
            slots=sum(slots.values()),
            dead_letters=sum(it.dead for it in gauges),
            breakers_open=sum(it.breakers_open for it in gauges),
            budgets_used_up=sum(it.used_up for it in gauges),
            spent_today_usd=round(usd, 6),
            spent_today_tokens=tokens,
            look_s=round(look_s, 4),
        )

    async def _look_at_spend(self, shards: Sequence[ShardKeys], day: str) -> None:
        began_s = time.monotonic()
        if self._spent[0] == day and began_s < self._spend_at_s:
            return
        rows = await read_spend(self._redis, shards, Question(day, day, by=()))
        usd = sum(row.usage.cost_usd_ticks for row in rows) / 1e10
        self._spent = day, usd, sum(row.usage.total_tokens for row in rows)
        now_s = time.monotonic()
        self._spend_at_s = now_s + max(_SPEND_S, _SPEND_SHARE * (now_s - began_s))


async def _due_soon(batcher: ScriptBatcher, shard: ShardKeys, now_ms: int) -> int:
    return int(await batcher.send("ZCOUNT", shard.queue, f"({now_ms}", now_ms + _SOON_MS))


async def _workers(batcher: ScriptBatcher, shard: ShardKeys, now_ms: int) -> list[Worker]:
    """Return the workers of a shard that are alive."""
    ids: list[bytes] = await batcher.send("ZRANGEBYSCORE", shard.workers, now_ms, "+inf")
    records: list[Any] = await asyncio.gather(
        *(batcher.send("GET", shard.worker_prefix.encode() + it) for it in ids)
    )
    found = (read_worker(id_, record) for id_, record in zip(ids, records, strict=True))
    return [it for it in found if it is not None]
