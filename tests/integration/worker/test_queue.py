"""LeasedWorker against a real server: waking, leases, hand-over, and ARQ's own jobs beside it."""

import asyncio
import logging
from typing import Any

import pytest
from arq import cron
from arq.connections import ArqRedis
from arq.worker import Retry, func
from redis.asyncio import Redis

from tests.support.driving import fleet
from tests.support.driving import hand as open_hand
from tests.support.wait import wait_until
from turnline.contracts import TurnClient, TurnCompleted, UserMessage
from turnline.contracts.job_format import deserialize_job, serialize_job
from turnline.contracts.keys import shard_keys
from turnline.contracts.opening import open_servers
from turnline.ops.simulator import Simulator
from turnline.worker.lease import LeaseSettings
from turnline.worker.main import arq_redis
from turnline.worker.outcome import Done, Outcome, Parked
from turnline.worker.queue.leased_worker import LeasedWorker
from turnline.worker.queue.links import Links
from turnline.worker.queue.slots import Slots

SHARD = shard_keys(0)


class Rig:
    """Workers around a given `run_conversation`, run in this process."""

    def __init__(self, redis_url: str) -> None:
        self.url = redis_url
        self.workers: list[tuple[LeasedWorker, asyncio.Task[None], Links]] = []

    def start(self, run: Any, *more: Any, **options: Any) -> LeasedWorker:
        async def run_conversation(ctx: dict[str, Any], conversation_id: str) -> Outcome:
            return await run(ctx, conversation_id)

        times = LeaseSettings(
            **{"lease_s": 0.6, "heartbeat_s": 0.1, "drain_s": 0.2, **options.pop("times", {})}
        )
        links = Links(self.url, times)
        batcher = options.pop("wrap", lambda it: it)(links.pipelines.of(SHARD.tag))
        worker = LeasedWorker(
            [func(run_conversation, name="run_conversation"), *more],
            shard=SHARD,
            worker_id=f"w{len(self.workers)}",
            redis=arq_redis(links.servers, SHARD),
            batcher=batcher,
            links=links,
            times=times,
            **options,
        )
        self.workers.append((worker, asyncio.create_task(worker.main()), links))
        return worker

    async def stop(self) -> None:
        for worker, task, links in self.workers:
            worker.drain()
            await task
            await worker.close()
            await links.aclose()


@pytest.fixture
async def rig(redis_url: str):
    rig = Rig(redis_url)
    yield rig
    await rig.stop()


async def eat(redis: Redis, ctx: dict[str, Any]) -> None:
    """Empty the inbox, as a commit would."""
    keys = ctx["lease"].keys
    for entry_id, _ in await redis.xrange(keys.inbox):
        await redis.xdel(keys.inbox, entry_id)


def eating(redis: Redis, seen: list[str]) -> Any:
    """Return what runs a conversation: it is noted, and its inbox emptied."""

    async def run(ctx: dict[str, Any], conversation_id: str) -> Outcome:
        seen.append(conversation_id)
        await eat(redis, ctx)
        return Done()

    return run


def user(conversation_id: str = "c") -> UserMessage:
    return UserMessage(conversation_id=conversation_id, text="Hello")


@pytest.mark.promise("P8")
async def test_a_submission_wakes_one_idle_worker_without_polling(
    redis: Redis, rig: Rig, client: TurnClient
) -> None:
    """With a poll interval of an hour, turns still start at once."""
    seen: list[str] = []
    run = eating(redis, seen)

    for _ in range(3):
        rig.start(run, times={"poll_s": 3600.0})
    await wait_until(lambda: redis.zcard(SHARD.workers), "workers announce themselves")
    for n in range(20):
        await client.submit(user(f"c{n}"))

    await wait_until(lambda: len(seen) == 20, "all conversations have run")
    await wait_until(lambda: _is_empty(redis), "the queue is empty")
    assert sorted(seen) == sorted(f"c{n}" for n in range(20))
    assert await redis.keys("arq:*") == []


async def _is_empty(redis: Redis) -> bool:
    return await redis.zcard(SHARD.queue) == 0


async def test_a_late_queue_is_told_of_once(
    redis: Redis, rig: Rig, client: TurnClient, caplog: pytest.LogCaptureFixture
) -> None:
    """And once that conversations are claimed in time again."""
    seen: list[str] = []
    run = eating(redis, seen)

    names = ("first", "second", "third")
    for name in names:
        await client.submit(user(name))
    due_ms = int(await redis.zscore(SHARD.queue, f"{SHARD.tag}:first") or 0)
    for name, late_s in zip(names, (3_600, 11, 6), strict=True):
        await redis.zadd(SHARD.queue, {f"{SHARD.tag}:{name}": due_ms - 1_000 * late_s})
    with caplog.at_level(logging.INFO, "turnline.queue"):
        rig.start(run, slots=Slots(1))
        await wait_until(lambda: seen == [*names], "all conversations have run")
        await client.submit(user("last"))
        await wait_until(lambda: seen == [*names, "last"], "one is run in time")

    assert [it for it in caplog.messages if "queue" in it] == ["queue.late", "queue.in_time"]


@pytest.mark.promise("P5")
async def test_a_heartbeat_keeps_a_slow_conversation_with_its_worker(
    redis: Redis, rig: Rig, client: TurnClient
) -> None:
    """A turn many leases long runs once, although others wait for work."""
    runs: list[str] = []
    go_on = asyncio.Event()

    async def run(ctx: dict[str, Any], conversation_id: str) -> Outcome:
        runs.append(ctx["lease"].value)
        await go_on.wait()
        await eat(redis, ctx)
        return Done()

    for _ in range(3):
        rig.start(run)
    await client.submit(user())
    await wait_until(lambda: runs, "the conversation runs")
    key = f"arq:in-progress:{SHARD.tag}:c"
    beats = 0
    before = await redis.zscore(SHARD.queue, f"{SHARD.tag}:c")
    while beats < 12:  # two leases' worth of heartbeats

        async def renewed(before: float = before) -> bool:
            return await redis.zscore(SHARD.queue, f"{SHARD.tag}:c") > before

        await wait_until(renewed, "the lease is renewed")
        before = await redis.zscore(SHARD.queue, f"{SHARD.tag}:c")
        beats += 1
    assert (await redis.get(key)).decode() == runs[0]
    go_on.set()
    await wait_until(lambda: _is_empty(redis), "the conversation leaves the queue")
    assert len(runs) == 1


@pytest.mark.promise("P4", "P5")
@pytest.mark.parametrize("workers", [1, 2])
async def test_a_lapsed_lease_is_taken_over_and_the_loser_is_stopped(
    redis: Redis, rig: Rig, client: TurnClient, workers: int
) -> None:
    """No sweeper: the entry is simply due again, to the old holder too, whose run is cancelled."""
    cancelled = asyncio.Event()
    tokens: list[int] = []

    async def run(ctx: dict[str, Any], conversation_id: str) -> Outcome:
        tokens.append(int(ctx["lease"].value.split()[0]))
        if len(tokens) == 1:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
        await eat(redis, ctx)
        return Done()

    for _ in range(workers):
        rig.start(run)
    await client.submit(user())
    await wait_until(lambda: tokens, "the conversation runs")
    await redis.delete(f"arq:in-progress:{SHARD.tag}:c")
    await redis.zadd(SHARD.queue, {f"{SHARD.tag}:c": 0})

    await wait_until(lambda: len(tokens) == 2, "another run")
    await wait_until(cancelled.is_set, "the first holder is cancelled")
    assert tokens[1] > tokens[0]
    await wait_until(lambda: _is_empty(redis), "the conversation leaves the queue")


async def test_a_short_wait_ends_on_time_on_an_idle_worker(
    redis: Redis, rig: Rig, client: TurnClient
) -> None:
    """A conversation that waits for less than the poll interval wakes its worker by itself."""
    runs = 0

    async def run(ctx: dict[str, Any], conversation_id: str) -> Outcome:
        nonlocal runs
        runs += 1
        if runs < 4:
            return Parked(40, "backoff")
        await eat(redis, ctx)
        return Done()

    rig.start(run, times={"poll_s": 3600.0, "lease_s": 3600.0})
    await client.submit(user())

    await wait_until(lambda: runs == 4, "every wait is over")
    await wait_until(lambda: _is_empty(redis), "the queue is empty")


@pytest.mark.promise("P1", "P10")
async def test_a_defect_does_not_strand_the_inbox(
    redis: Redis, rig: Rig, client: TurnClient, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected exception parks the conversation; nothing it says reaches the log."""

    async def run(ctx: dict[str, Any], conversation_id: str) -> Outcome:
        raise ValueError("the user said: my secret")

    caplog.set_level(logging.INFO)
    rig.start(run)
    await client.submit(user())

    await wait_until(lambda: redis.hget(f"turnline:{SHARD.tag}:c:c:state", "parked"), "parked")
    assert await redis.xlen(f"turnline:{SHARD.tag}:c:c:inbox") == 1
    assert await redis.zcard(SHARD.queue) == 1
    assert "conversation.defect" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.promise("P5")
async def test_draining_hands_over_at_once(redis: Redis, rig: Rig, client: TurnClient) -> None:
    """After the grace period the conversation is due now, not when the lease ends."""
    ran_by: list[str] = []

    async def run(ctx: dict[str, Any], conversation_id: str) -> Outcome:
        ran_by.append(ctx["lease"].value.split()[1])
        if len(ran_by) == 1:
            await asyncio.Event().wait()
        await eat(redis, ctx)
        return Done()

    first = rig.start(run, times={"lease_s": 3600.0, "heartbeat_s": 1.0})
    await client.submit(user())
    await wait_until(lambda: ran_by, "the conversation runs")
    rig.start(run)
    first.drain()

    await wait_until(lambda: len(ran_by) == 2, "another worker goes on", timeout_s=5)
    assert ran_by == ["w0", "w1"]


async def test_plain_arq_jobs_and_cron_run_beside_conversations(
    redis: Redis, redis_url: str, rig: Rig, client: TurnClient
) -> None:
    """ARQ's functions, retries, results and cron stay usable on the same queue."""
    ticks: list[int] = []
    tries: list[int] = []

    async def add(ctx: dict[str, Any], a: int, b: int) -> int:
        return a + b

    async def flaky(ctx: dict[str, Any]) -> str:
        tries.append(ctx["job_try"])
        if len(tries) < 2:
            raise Retry(defer=0.01)
        return "done"

    async def tick(ctx: dict[str, Any]) -> None:
        ticks.append(1)

    async def run(ctx: dict[str, Any], conversation_id: str) -> Outcome:
        await eat(redis, ctx)
        return Done()

    rig.start(
        run,
        func(add, name="add"),
        func(flaky, name="flaky"),
        cron_jobs=[cron(tick, run_at_startup=True)],
    )
    servers = open_servers(redis_url)
    queue: ArqRedis = arq_redis(servers, SHARD)
    sum_job = await queue.enqueue_job("add", 1, 2)
    flaky_job = await queue.enqueue_job("flaky")
    assert sum_job is not None
    assert flaky_job is not None
    await client.submit(user())

    assert await sum_job.result(timeout=10, poll_delay=0.05) == 3
    assert await flaky_job.result(timeout=10, poll_delay=0.05) == "done"
    assert tries == [1, 2]
    await wait_until(lambda: ticks, "cron has run")
    await wait_until(lambda: _is_empty(redis), "the queue is empty")
    await servers.aclose()


async def test_arqs_health_check_tells_that_a_worker_lives(
    redis: Redis, rig: Rig, client: TurnClient
) -> None:
    """`arq --check` and probes read the same key as with a stock worker."""

    async def run(ctx: dict[str, Any], conversation_id: str) -> Outcome:
        return Done()

    rig.start(run)

    value = await wait_until(lambda: redis.get(f"{SHARD.queue}:health-check"), "health")
    assert b"j_complete=0" in value


@pytest.mark.promise("P10")
async def test_jobs_are_json_in_arqs_layout(
    redis: Redis, redis_url: str, client: TurnClient
) -> None:
    """A conversation is an ARQ job: same keys, same fields, no pickle."""
    await client.submit(user())

    (key,) = await redis.keys("arq:job:*")
    assert key == b"arq:job:{s0}:c"
    data = await redis.get(key)
    assert data.startswith(b"{")
    job = deserialize_job(data)
    assert (job["f"], job["a"], job["k"]) == ("run_conversation", ["c"], {})
    servers = open_servers(redis_url)
    queue = arq_redis(servers, SHARD)
    (queued,) = await queue.queued_jobs()
    assert queued.function == "run_conversation"
    assert deserialize_job(serialize_job({"r": ValueError("x")}))["r"] == "ValueError('x')"
    await servers.aclose()


@pytest.mark.promise("P2", "P3")
async def test_five_turns_of_one_conversation_with_eight_workers(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """Five replies, in order, ten messages, once each."""
    async with fleet(redis_url, sim, count=8, slots="10"):
        receipts = await client.submit_many(
            [UserMessage(conversation_id="c", text=f"number {n}") for n in range(5)]
        )
        results = [await client.result(receipt, timeout_s=20) for receipt in receipts]
        history = await client.history("c")

    assert all(isinstance(result, TurnCompleted) for result in results)
    expected = [t for n, r in enumerate(results) for t in (f"number {n}", r.text)]
    assert [message.content for message in history.messages] == expected


@pytest.mark.promise("P11")
async def test_a_lost_connection_does_not_end_the_worker(
    redis: Redis, redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """CLIENT KILL of everything: the worker reconnects and goes on; interrupts are heard again."""
    async with fleet(redis_url, sim):
        assert isinstance(await client.ask("c", "one", timeout_s=10), TurnCompleted)
        await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await redis.script_flush()

        assert isinstance(await client.ask("c", "two", timeout_s=10), TurnCompleted)
        sim.inject("stall;at=tokens:3")
        receipt = await client.submit(UserMessage(conversation_id="c", text="three"))
        async for _ in client.text(receipt):
            break
        await client.interrupt("c")
        assert (await client.result(receipt, timeout_s=10)).text


async def test_a_stock_workers_claim_is_respected(
    redis: Redis, redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """ARQ's in-progress key without a lease of ours: the entry moves behind that key's expiry."""
    await client.submit(user())
    await redis.set("arq:in-progress:{s0}:c", "1", px=60_000)
    async with open_hand(redis_url, sim) as hand:
        assert await hand.claim() is None
        seconds, microseconds = await redis.time()
        score = await redis.zscore(SHARD.queue, "{s0}:c")
        assert score > seconds * 1000 + microseconds / 1000 + 50_000
        await redis.delete("arq:in-progress:{s0}:c")
        await hand.make_due("c")
        assert await hand.claim() is not None
