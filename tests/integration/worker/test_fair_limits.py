"""Tenants that wait for what a provider allows share it by their weights."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from redis.asyncio import Redis

from tests.support.driving import (
    SHARD,
    batcher_on,
    hand,
    limiter_on,
    requests,
    run_again,
    run_next,
    user,
)
from tests.support.wait import wait_until
from turnline.contracts import Interrupt, TurnClient
from turnline.ops.simulator import Simulator
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


# -- what is paid for -----------------------------------------------------------------------------


async def paid(redis: Redis, tenant: str) -> float:
    """What a tenant's next calls stand behind those of others, for all keys together."""
    keys = [it async for it in redis.scan_iter(SHARD.limit_prefix + "*:shares")]
    return sum([await redis.zscore(it, f"i:{tenant}") or 0.0 for it in keys])


async def is_paid(redis: Redis, tenant: str, calls: float) -> bool:
    return await paid(redis, tenant) == calls


async def test_who_asks_two_keys_pays_for_the_calls_that_it_makes(
    redis_url: str, redis: Redis, sim: Simulator, client: TurnClient
) -> None:
    """Each turn asks both, and waits in the line of one: to the other it has not come."""
    names = ("xai-one", "xai-two")
    async with hand(redis_url, sim, {"api_key": ",".join(names)}) as worker:
        limiters = [limiter_on(worker.batcher, "*=1rpm", key=it) for it in names]
        worker.limiters = [*limiters]
        for it in limiters:
            await used_up(it)
        for n in range(5):
            await client.submit(user(conversation=f"c{n}", tenant="acme"))
            parked = await run_next(worker)
            assert parked is not None
            assert parked.why == "limit"
        await wait_until(lambda: is_paid(redis, "acme", 5), "each is paid for once")

        for n in range(5):
            assert await run_again(worker, f"c{n}") is not None  # asks both again
        await wait_until(lambda: is_paid(redis, "acme", 5), "each is paid for once")
        for n in range(5):
            await client.submit(Interrupt(conversation_id=f"c{n}"))
            assert await run_again(worker, f"c{n}") is None
        await wait_until(lambda: is_paid(redis, "acme", 0), "who ends without a call pays nothing")
        for it in limiters:
            await it.aclose()
    assert not requests(sim)


async def test_who_leaves_gets_back_what_it_was_charged(redis_url: str, redis: Redis) -> None:
    """By its weight, and once; who does not wait gets nothing."""
    async with batcher_on(redis_url) as batcher:
        limiter = limiter_on(batcher, "*=1rpm", weight_of=lambda _: 0.5)
        await used_up(limiter)
        for it in callers("acme", count=3):
            await ask(limiter, it)
        assert await paid(redis, "acme") == 6

        first, second, _ = callers("acme", count=3)
        for it in (first, first, Caller("another", "acme")):
            limiter.leave(MODEL, it)
        await wait_until(lambda: is_paid(redis, "acme", 4), "one has left")
        await ask(limiter, first)
        limiter.leave(MODEL, second)
        await wait_until(lambda: is_paid(redis, "acme", 4), "another one has left")
        (key,) = [it async for it in redis.scan_iter(SHARD.limit_prefix + "*:shares")]
        line = key.removesuffix(b"shares") + b"line"
        await redis.set(key, "x")
        limiter.leave(MODEL, first)
        await wait_until(lambda: is_gone(redis, line, first), "it has left")
        await limiter.aclose()


async def is_gone(redis: Redis, line: bytes, who: Caller) -> bool:
    return await redis.zscore(line, who.name) is None
