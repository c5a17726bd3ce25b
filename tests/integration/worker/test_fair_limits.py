"""Tenants that wait for what a provider allows share it by their weights."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from redis.asyncio import Redis

from tests.support.driving import SHARD, batcher_on, limiter_on
from tests.support.wait import wait_until
from turnline.worker.provider_limits import Caller, Grant
from turnline.worker.store.limiter import RateLimiter

MODEL = "grok-4.3"


async def ask(limiter: RateLimiter, caller: Caller) -> Grant | float:
    return await limiter.reserve(MODEL, caller, lambda: 100, 1)


async def let_through(limiter: RateLimiter, callers: Sequence[Caller], count: int) -> list[str]:
    """Have all come, and again when they are told to; return the tenants that call first."""
    found: list[str] = []

    async def call(caller: Caller) -> None:
        wait_s = await ask(limiter, caller)
        if isinstance(wait_s, float):
            await asyncio.sleep(wait_s)
            await call(caller)
        else:
            found.append(caller.tenant)

    tasks = [asyncio.create_task(call(it)) for it in callers]
    try:
        await wait_until(lambda: len(found) >= count, "so many have called", timeout_s=20)
    finally:
        for task in tasks:
            task.cancel()
    return found[:count]


def callers(*tenants: str, count: int, is_batch: bool = False) -> list[Caller]:
    """So many of each, one tenant after the other."""
    return [Caller(f"{it}{is_batch}{n}", it, is_batch) for it in tenants for n in range(count)]


async def used_up(limiter: RateLimiter) -> None:
    """Use what may be used at once."""
    n = 0
    while isinstance(await ask(limiter, Caller(f"first{n}")), Grant):
        n += 1


async def test_a_newcomer_does_not_wait_behind_many(redis_url: str) -> None:
    """It is the next that may call."""
    async with batcher_on(redis_url) as batcher:
        limiter = limiter_on(batcher, "*=10rps")
        await used_up(limiter)
        for it in callers("big", count=40):
            await ask(limiter, it)
        found = await let_through(limiter, [Caller("small", "small"), *callers("big", count=40)], 3)
        await limiter.aclose()

    assert "small" in found[:2]


@pytest.mark.parametrize("weights", [{}, {"a": 1, "b": 2, "c": 4}])
async def test_calls_are_shared_by_weight(redis_url: str, weights: dict[str, int]) -> None:
    """As turns are, whoever came first."""
    async with batcher_on(redis_url) as batcher:
        limiter = limiter_on(batcher, "*=50rps", weight_of=lambda it: weights.get(it, 1))
        await used_up(limiter)
        found = await let_through(limiter, callers("a", "b", "c", count=60), 70)
        await limiter.aclose()

    counts, total = Counter(found), sum(weights.get(it, 1) for it in "abc")
    for it in "abc":
        assert abs(counts[it] - 70 * weights.get(it, 1) / total) <= 2


async def test_batch_calls_wait_for_all_others(redis_url: str) -> None:
    """Of their tenant, and of others."""
    async with batcher_on(redis_url) as batcher:
        limiter = limiter_on(batcher, "*=5rps")
        await used_up(limiter)
        batch = callers("a", count=10, is_batch=True)
        for it in batch:
            await ask(limiter, it)
        found = await let_through(limiter, [*batch, *callers("b", count=10)], 12)
        await limiter.aclose()

    assert found[:10] == ["b"] * 10


async def test_what_is_remembered_of_tenants_is_bounded(redis_url: str, redis: Redis) -> None:
    """Whose last call was long ago is forgotten."""
    async with batcher_on(redis_url) as batcher:
        limiter = limiter_on(batcher, "*=50rps")
        await used_up(limiter)
        many = [Caller(f"t{n}", f"t{n}") for n in range(30)]
        await let_through(limiter, many, 30)
        await let_through(limiter, callers("z", count=20), 20)
        (key,) = [it async for it in redis.scan_iter(SHARD.limit_prefix + "*:shares")]
        kept = await redis.zcard(key)
        await limiter.aclose()

    assert kept <= 8
