"""Schedules against a real server: one turn for each tick, whoever dies or is late.

A tick is made due by the note of its schedule, so that no test waits for a clock.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from tests.support.driving import SHARD, fleet, user
from tests.support.processes import worker_process
from tests.support.wait import wait_until
from tests.support.yearly_schedules import NEXT_MS, TICK_MS, keep, turn_of, value_of
from turnline.contracts import InboxFull, TurnClient, TurnCompleted, UserMessage
from turnline.contracts.job_format import named_job
from turnline.contracts.keys import conversation_keys
from turnline.contracts.messages import Inbound
from turnline.contracts.opening import open_servers
from turnline.contracts.replies import Receipt
from turnline.contracts.scripts import run, text
from turnline.ops.simulator import Simulator
from turnline.worker.batching import Pipelines
from turnline.worker.queue.lua import claim
from turnline.worker.schedules.lua import ChangeArgs, change
from turnline.worker.schedules.ticking import Schedules


async def turns(redis: Redis, name: str) -> list[str]:
    """Ids of the turns that a schedule's conversation got, in order."""
    log = conversation_keys(SHARD.tag, f"c-{name}").log
    return [turn.decode() for turn in await redis.lrange(log, 0, -1)]


async def note(redis: Redis, name: str) -> int:
    return int(await redis.hget(SHARD.ticks, name))


async def due(redis: Redis) -> float | None:
    return await redis.zscore(SHARD.queue, SHARD.schedules_id)


async def claimed(redis: Redis) -> str:
    """Claim the entry of the schedules, and return the lease."""
    _, _, _, job_id, lease, _ = await run(redis, claim(SHARD, 1, 60_000, "hand"))
    assert text(job_id) == SHARD.schedules_id
    return text(lease)


class Producer:
    """A real client whose submissions a test holds up, or answers in its place."""

    def __init__(self, client: TurnClient) -> None:
        self.client = client
        self.before: Callable[[Inbound], Awaitable[None]] | None = None
        self.submitted: list[str] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Callable[[Inbound], Awaitable[Receipt]]]:
        yield self.submit

    async def submit(self, message: Inbound) -> Receipt:
        if self.before is not None:
            await self.before(message)
        receipt = await self.client.submit(message)
        self.submitted.append(message.turn_id)
        return receipt


@pytest.fixture
async def producer(client: TurnClient) -> Producer:
    return Producer(client)


@pytest.fixture
async def schedules(redis_url: str, producer: Producer) -> AsyncIterator[Schedules]:
    """What a worker has, to be moved by hand."""
    servers = open_servers(redis_url)
    pipelines = Pipelines(servers)
    yield Schedules(pipelines.of(SHARD.tag), SHARD, producer.open)
    await pipelines.close()
    await servers.aclose()


async def test_a_tick_is_one_turn_of_a_fleet(
    redis: Redis, redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """Two workers; it is answered, and the entry waits for the next tick."""
    await keep(redis, "a")
    receipt = Receipt(conversation_id="c-a", turn_id=turn_of("a"), status="accepted")

    async with fleet(redis_url, sim, count=2):
        await wait_until(lambda: turns(redis, "a"), "the turn is submitted")
        assert isinstance(await client.result(receipt, timeout_s=10), TurnCompleted)
        await wait_until(lambda: is_due_at(redis, NEXT_MS), "the schedules wait")

    assert await turns(redis, "a") == [turn_of("a")]
    assert await note(redis, "a") == TICK_MS
    assert (await client.history("c-a")).messages[0].content == "Hello from a"


async def is_due_at(redis: Redis, at_ms: int) -> bool:
    return await due(redis) == at_ms


@pytest.mark.promise("P1", "P3")
async def test_a_worker_killed_in_the_middle_loses_and_repeats_nothing(
    redis: Redis, redis_url: str, sim: Simulator
) -> None:
    """Two processes, sixty schedules; the one that submits is killed, the other one goes on."""
    names = [f"n{n:02}" for n in range(60)]
    with (
        worker_process(redis_url, sim.base_url, worker_name="one", poll_s="0.05") as one,
        worker_process(redis_url, sim.base_url, worker_name="two", poll_s="0.05") as two,
    ):
        await wait_until(lambda: are_serving(redis, 2), "both serve", timeout_s=30)
        await keep(redis, *names)
        await wait_until(lambda: turns(redis, names[0]), "somebody submits")
        holder = await redis.get(SHARD.schedules_lease) or b""
        victim = two if b" two-" in holder else one
        victim.signal(signal.SIGKILL)
        await wait_until(lambda: are_seen(redis, names), "all ticks are seen to", timeout_s=20)

        assert [await turns(redis, name) for name in names] == [[turn_of(n)] for n in names]


async def are_serving(redis: Redis, count: int) -> bool:
    return await redis.zcard(SHARD.workers) == count


async def are_seen(redis: Redis, names: list[str]) -> bool:
    values = await redis.hmget(SHARD.ticks, names)
    return all(value == b"%d" % TICK_MS for value in values)


@pytest.mark.promise("P1", "P3")
async def test_another_worker_does_what_one_left_that_died_between_two_turns(
    redis: Redis, redis_url: str, sim: Simulator, schedules: Schedules, producer: Producer
) -> None:
    """Exactly there: one turn is in, nothing is noted, the second one was about to go out."""
    await keep(redis, "a", "b")
    stuck = asyncio.Event()

    async def die(message: Inbound) -> None:
        if message.turn_id == turn_of("b"):
            stuck.set()
            await asyncio.Event().wait()

    producer.before = die
    look = asyncio.create_task(schedules.look(await claimed(redis)))
    await stuck.wait()
    look.cancel()
    await redis.delete(SHARD.schedules_lease)  # as it ends by itself
    await redis.zadd(SHARD.queue, {SHARD.schedules_id: 0})
    assert (await turns(redis, "a"), await turns(redis, "b")) == ([turn_of("a")], [])

    async with fleet(redis_url, sim):
        await wait_until(lambda: are_seen(redis, ["a", "b"]), "both are seen to")

    assert (await turns(redis, "a"), await turns(redis, "b")) == ([turn_of("a")], [turn_of("b")])


@pytest.mark.promise("P4")
async def test_a_look_that_was_overtaken_changes_nothing(
    redis: Redis, schedules: Schedules, producer: Producer
) -> None:
    """Its turn is a duplicate, its note and its next time are refused."""
    await keep(redis, "a")
    first = await claimed(redis)
    await redis.delete(SHARD.schedules_lease)
    await redis.zadd(SHARD.queue, {SHARD.schedules_id: 0})
    await schedules.look(await claimed(redis))
    await redis.zadd(SHARD.queue, {SHARD.schedules_id: 7})
    await redis.hset(SHARD.ticks, "a", TICK_MS - 1)

    await schedules.look(first)

    assert producer.submitted == [turn_of("a")] * 2
    assert await turns(redis, "a") == [turn_of("a")]
    assert (await note(redis, "a"), await due(redis)) == (TICK_MS - 1, 7)


async def test_a_schedule_that_is_added_during_a_look_is_looked_at(
    redis: Redis, schedules: Schedules, producer: Producer
) -> None:
    """The look that read the schedules before may not say when the next one is."""
    await keep(redis, "a")

    async def add(message: Inbound) -> None:
        producer.before = None
        args = ChangeArgs(SHARD.schedules_id, "b", b"", value_of("b"), named_job("s", 0))
        await run(redis, change(SHARD, args))
        await redis.hset(SHARD.ticks, "b", TICK_MS - 1)

    producer.before = add
    await schedules.look(await claimed(redis))
    assert await turns(redis, "b") == []

    await schedules.look(await claimed(redis))

    assert await turns(redis, "b") == [turn_of("b")]
    assert await turns(redis, "a") == [turn_of("a")]
    assert await due(redis) == NEXT_MS


async def test_a_refused_turn_is_submitted_later(
    redis: Redis, schedules: Schedules, producer: Producer
) -> None:
    """The others are not held up, and the tick stays due."""
    await keep(redis, "a", "b")

    async def refuse(message: Inbound) -> None:
        if message.turn_id == turn_of("a"):
            raise InboxFull("it is full", retry_after_s=5)

    producer.before = refuse
    await schedules.look(await claimed(redis))

    assert (await turns(redis, "a"), await turns(redis, "b")) == ([], [turn_of("b")])
    seconds, _ = await redis.time()
    assert seconds * 1000 < await due(redis) < (seconds + 6) * 1000
    producer.before = None
    await redis.zadd(SHARD.queue, {SHARD.schedules_id: 0})
    await schedules.look(await claimed(redis))
    assert await turns(redis, "a") == [turn_of("a")]
    assert await due(redis) == NEXT_MS


async def test_a_turn_whose_id_was_used_counts_as_seen_to(
    redis: Redis, client: TurnClient, schedules: Schedules
) -> None:
    """Trying again would end alike."""
    await client.submit(UserMessage(conversation_id="c-a", text="Other", turn_id=turn_of("a")))
    await redis.delete(SHARD.queue)
    await keep(redis, "a")

    await schedules.look(await claimed(redis))

    assert await note(redis, "a") == TICK_MS
    assert await due(redis) == NEXT_MS


async def test_a_missed_tick_that_is_not_wanted_is_let_go(
    redis: Redis, schedules: Schedules, producer: Producer
) -> None:
    """It is seen to without a turn."""
    await keep(redis, "a", missed="none")

    await schedules.look(await claimed(redis))

    assert producer.submitted == []
    assert await note(redis, "a") == TICK_MS


async def test_nothing_stays_on_the_queue_without_schedules(
    redis: Redis, schedules: Schedules
) -> None:
    """The last one was removed: no entry, no job, no lease, no tick."""
    await keep(redis, "a")
    value = await redis.hget(SHARD.schedules, "a")
    args = ChangeArgs(SHARD.schedules_id, "a", value, b"", named_job("s", 0))
    assert text((await run(redis, change(SHARD, args)))[0]) == "changed"

    await schedules.look(await claimed(redis))

    assert set(await redis.keys()) <= {SHARD.token.encode(), SHARD.idle.encode()}


async def test_a_worker_that_starts_puts_the_entry_back(
    redis: Redis, redis_url: str, sim: Simulator
) -> None:
    """A worker of an earlier version, which knows no schedules, has taken it off."""
    await keep(redis, "a")
    await redis.zrem(SHARD.queue, SHARD.schedules_id)

    async with fleet(redis_url, sim):
        await wait_until(lambda: turns(redis, "a"), "the turn is submitted")


async def test_an_entry_that_is_put_back_is_not_late(
    redis: Redis, schedules: Schedules, client: TurnClient
) -> None:
    """Who is on the queue for long keeps producers off: that is due since now."""
    await keep(redis, "a")
    await redis.zrem(SHARD.queue, SHARD.schedules_id)

    await schedules.begin()

    assert await redis.zscore(SHARD.queue, SHARD.schedules_id) is not None
    await client.submit(user())


async def test_a_fleet_without_schedules_has_nothing_of_them(
    redis: Redis, redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """No entry on the queue, no keys."""
    async with fleet(redis_url, sim):
        assert isinstance(await client.ask("c", "Hello", timeout_s=10), TurnCompleted)
        assert await due(redis) is None
        assert not [key for key in await redis.keys() if b"schedule" in key or b"ticks" in key]
