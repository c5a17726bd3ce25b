"""What others write into a shard's keys stops no worker and no other conversation."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.integration.worker.test_queue import Rig, eat, rig, user
from tests.support.driving import SHARD, Hand, fleet
from tests.support.wait import wait_until
from turnline.contracts import TurnClient, TurnCompleted
from turnline.contracts.keys import ARQ_IN_PROGRESS, ARQ_JOB
from turnline.ops.fleet.queue_state import read_queue
from turnline.ops.simulator import Simulator
from turnline.worker.outcome import Done, Outcome

__all__ = ["rig"]  # the fixture


async def write(redis: Redis, key: str, value: Any) -> None:
    """Put a value of any kind where it does not belong."""
    async with redis.pipeline() as both:  # a worker may write the key between the two
        both.delete(key)
        match value:
            case dict():
                both.hset(key, mapping=value)
            case list():
                both.rpush(key, *value)
            case set():
                both.sadd(key, *value)
            case tuple():
                both.zadd(key, dict(value))
            case _:
                both.set(key, value)
        await both.execute()


@pytest.mark.parametrize(
    "value",
    ["words", "", "-5", "1.5", "007", " 7", "9" * 30, str(2**63 - 1), {"a": 1}, ["a"], {"a"}],
    ids=repr,
)
async def test_a_token_that_is_none_is_given_up(redis: Redis, hand: Hand, value: Any) -> None:
    """Claims go on, and their tokens still grow."""
    tokens: list[int] = []
    for n in range(3):
        await hand.client.submit(user(f"c{n}"))
        if n == 1:
            await write(redis, SHARD.token, value)
        tokens.append(int((await hand.must_claim()).value.split()[0]))

    assert tokens == sorted(set(tokens))
    assert max(tokens) < 2**53


KINDS = ("queue", "token", "wake", "idle", "workers", "breakers")


@pytest.mark.parametrize("value", ["words", {"a": 1}, ["a"], {"a"}, (("a", 1.0),)], ids=repr)
async def test_a_key_of_a_shard_with_a_foreign_value_stops_nobody(
    new_redis_url: Callable[[], str], sim: Simulator, value: Any
) -> None:
    """Turns are answered while the workers run, and their leases are kept; a fleet for each key."""

    async def turns(kind: str) -> None:
        url = new_redis_url()
        async with (
            Redis.from_url(url, protocol=2) as redis,
            TurnClient.connect(url) as client,
            fleet(url, sim, lease_s="0.6", heartbeat_s="0.1"),
        ):
            first = await client.ask(f"before-{kind}", "Hello", timeout_s=10)
            assert isinstance(first, TurnCompleted), kind
            await write(redis, getattr(SHARD, kind), value)
            await asyncio.sleep(0.7)  # longer than a lease and a poll
            sim.inject("pace;itl_ms=50", conversation=kind)
            result = await client.ask(kind, "Hello", timeout_s=10)
        assert isinstance(result, TurnCompleted), kind
        assert result.attempt == 1, kind

    async with asyncio.TaskGroup() as group:
        for kind in KINDS:
            group.create_task(turns(kind))


@pytest.mark.parametrize(
    "name",
    [
        b"\xff\xfe",
        b"",
        b"a job\nof nobody",
        b"{s0}:",
        b"{s0}:a\nb",
        b"{s1}:c",
        b"{s0}:\xff",
        b"x" * 9999,
    ],
)
@pytest.mark.parametrize("score", [0.0, float("-inf"), 1e300])
async def test_odd_members_of_the_queue_stop_nobody(
    redis: Redis,
    redis_url: str,
    sim: Simulator,
    client: TurnClient,
    caplog: pytest.LogCaptureFixture,
    name: bytes,
    score: float,
) -> None:
    """They are run to nothing, or wait for ever by themselves."""
    await redis.zadd(SHARD.queue, {name: score})
    await redis.lpush(SHARD.wake, name, b"\xff")
    async with fleet(redis_url, sim):
        if score < 1e300:  # until then producers are told that the queue is late
            await wait_until(lambda: _is_gone(redis, name), "the member is gone")
        assert isinstance(await client.ask("c", "Hello", timeout_s=10), TurnCompleted)

    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def _is_gone(redis: Redis, name: bytes) -> bool:
    return await redis.zscore(SHARD.queue, name) is None


@pytest.mark.parametrize("value", ["words", "", {"a": 1}, ["a"]], ids=repr)
@pytest.mark.parametrize("prefix", [ARQ_IN_PROGRESS, ARQ_JOB])
async def test_a_foreign_value_in_a_conversations_lease_or_job_is_no_lease(
    redis: Redis, rig: Rig, client: TurnClient, prefix: str, value: Any
) -> None:
    """The conversation is claimed: what holds a lease expires."""
    ran: list[str] = []

    async def run(ctx: dict[str, Any], conversation_id: str) -> Outcome:
        ran.append(conversation_id)
        await eat(redis, ctx)
        return Done()

    await client.submit(user())
    await write(redis, prefix + "{s0}:c", value)
    rig.start(run)

    await wait_until(lambda: ran == ["c"], "the conversation is run")


async def test_a_foreign_lease_does_not_keep_others_from_being_renewed(
    redis: Redis, rig: Rig, client: TurnClient
) -> None:
    """One of two leases is overwritten: the other one is kept for as long as its turn takes."""
    ended = asyncio.Event()
    claims: list[str] = []

    async def run(ctx: dict[str, Any], conversation_id: str) -> Outcome:
        claims.append(conversation_id)
        await ended.wait()
        await eat(redis, ctx)
        return Done()

    rig.start(run)
    for name in ("a", "b"):
        await client.submit(user(name))
    await wait_until(lambda: len(claims) == 2, "both run")
    await write(redis, ARQ_IN_PROGRESS + "{s0}:a", {"a": 1})
    await asyncio.sleep(1.5)  # longer than two leases
    ended.set()

    assert claims.count("b") == 1


async def test_odd_workers_do_not_break_the_view_of_the_queue(redis: Redis, redis_url: str) -> None:
    """`turnline queue` shows the others."""
    import redis as redis_sync  # noqa: PLC0415  the command is synchronous

    far = 1e15
    await redis.zadd(SHARD.workers, {b"\xff\xfe": far, b"garbage": far, b"list": far, b"fine": far})
    await redis.set(SHARD.worker_prefix + "garbage", b"{not json")
    await redis.rpush(SHARD.worker_prefix + "list", "x")
    await redis.set(SHARD.worker_prefix + "fine", b'{"name":"fine","slots":3}')
    await redis.zadd(SHARD.queue, {b"\xff": far, b"later": float("inf")})

    def look() -> Any:
        with redis_sync.Redis.from_url(redis_url) as connection:
            return read_queue(connection, [SHARD])  # type: ignore[arg-type]

    state = await asyncio.to_thread(look)
    assert [worker.name for worker in state.workers] == ["fine"]
    assert state.deferred == 2
