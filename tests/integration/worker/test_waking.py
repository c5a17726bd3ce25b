"""Idle workers: one of them is woken, whatever became of the others, and no wake-up is lost."""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.integration.worker.test_queue import SHARD, Rig, eat, rig, user
from tests.support.driving import are_idle, fleet
from tests.support.processes import WorkerProcess, worker_process
from tests.support.wait import wait_until
from turnline.contracts import TurnClient, TurnCompleted, TurnInterrupted
from turnline.contracts.scripts import Call, load_script
from turnline.ops.simulator import Simulator
from turnline.worker.batching import ScriptBatcher
from turnline.worker.outcome import Done, Outcome
from turnline.worker.queue import leased_worker
from turnline.worker.queue.slots import Slots

__all__ = ["rig"]  # the fixture
NEVER = {"poll_s": 3600.0, "lease_s": 3600.0}
"""Nobody looks by itself."""


class Ran(list[str]):
    """Which conversations ran, in order, and by whom; runs empty the inbox."""

    def __init__(self, redis: Redis) -> None:
        super().__init__()
        self.by: list[str] = []
        self._redis = redis

    async def __call__(self, ctx: dict[str, Any], conversation_id: str) -> Outcome:
        self.append(conversation_id)
        self.by.append(ctx["lease"].value.split()[1])
        await eat(self._redis, ctx)
        return Done()

    async def by_each(self, client: TurnClient, workers: int) -> None:
        """Have each worker run something: whoever was woken has no claim of its start before it."""
        while True:
            await wait_until(lambda: are_idle(self._redis, workers), "all are idle")
            if len(set(self.by)) == workers:
                break
            before = len(self)
            await client.submit(user(f"begin-{before}"))
            await wait_until(lambda: len(self) > before, "it runs")  # noqa: B023  awaited here
        self.clear()
        self.by.clear()


@asynccontextmanager
async def claims_of(redis: Redis) -> AsyncIterator[list[str]]:
    """Note who claims, for a `with` block."""
    sha, seen = load_script("claim", "turnline.worker.queue.lua").sha, list[str]()
    watching = asyncio.Event()

    async def watch() -> None:
        async with redis.monitor() as monitor:
            watching.set()
            async for command in monitor.listen():
                words = command["command"].split()
                if words[0].upper() == "EVALSHA" and words[1] == sha:
                    seen.append(words[3 + int(words[2]) + 2])

    task = asyncio.create_task(watch())
    await watching.wait()
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.promise("P8")
async def test_a_submission_leads_to_the_claims_of_one_worker(
    redis: Redis, redis_url: str, rig: Rig, client: TurnClient
) -> None:
    """Of many that are idle: it claims, and the others sleep on."""
    ran = Ran(redis)
    for _ in range(8):
        rig.start(ran, times=NEVER)
    await ran.by_each(client, 8)
    async with Redis.from_url(redis_url, protocol=2) as other, claims_of(other) as claims:
        for n in range(8):
            await client.submit(user(f"c{n}"))
            await wait_until(lambda: len(ran) == n + 1, "it runs")  # noqa: B023  awaited here
            await wait_until(lambda: are_idle(redis, 8), "all are idle again")

    assert sorted(ran.by) == [f"w{n}" for n in range(8)]  # by turns
    assert claims == ran.by


@pytest.mark.promise("P8")
async def test_what_one_worker_cannot_take_wakes_the_next(
    redis: Redis, rig: Rig, client: TurnClient
) -> None:
    """Whoever has no free slot is not idle; each claim that leaves something wakes one more."""
    running: set[str] = set()
    go_on = asyncio.Event()

    async def run(ctx: dict[str, Any], conversation_id: str) -> Outcome:
        running.add(conversation_id)
        await go_on.wait()
        await eat(redis, ctx)
        return Done()

    for n in range(5):  # by one message each, without a word to anybody
        await client.submit(user(f"c{n}"))
    for _ in range(2):
        rig.start(run, times=NEVER, slots=Slots(2))
    await wait_until(lambda: len(running) == 4, "all slots are taken")
    assert await redis.zcard(SHARD.idle) == 0
    go_on.set()

    await wait_until(lambda: len(running) == 5, "a freed slot takes the last")
    await wait_until(lambda: are_idle(redis, 2), "all are idle")


@pytest.mark.promise("P5")
async def test_a_message_that_nobody_was_told_of_starts_when_the_subscription_stands_again(
    redis: Redis, rig: Rig, client: TurnClient
) -> None:
    """Whoever was cut off claims once it hears again, and is idle again."""
    ran = Ran(redis)
    rig.start(ran, times=NEVER)
    for n in range(5):
        await wait_until(lambda: are_idle(redis, 1), "the worker is idle")
        await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await client.submit(user(f"c{n}"))
        await wait_until(lambda: len(ran) == n + 1, "it runs")  # noqa: B023  awaited here


@pytest.mark.promise("P5")
async def test_a_worker_that_ends_passes_on_what_it_was_woken_for(
    redis: Redis, rig: Rig, client: TurnClient
) -> None:
    """Woken and told to end in the same moment: the next idle one does it."""
    ran = Ran(redis)
    first, _ = rig.start(ran, times=NEVER), rig.start(ran, times=NEVER)
    await ran.by_each(client, 2)
    await redis.delete(SHARD.idle)
    await client.submit(user())  # whoever was woken for it has not heard it yet
    await redis.zadd(SHARD.idle, {"w0": 1, "w1": 2})
    first.drain()

    await wait_until(lambda: ran.by == ["w1"], "the other one does it")
    await wait_until(first.stopped.is_set, "the first has ended")
    await wait_until(lambda: are_idle(redis, 1), "only the other one is idle")


class Gate:
    """Holds back the answers to a worker's claims while it is closed."""

    def __init__(self) -> None:
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.answered = 0
        self._batcher: Any = None

    def __call__(self, batcher: ScriptBatcher) -> "Gate":
        """Stand before a batcher."""
        self._batcher = batcher
        return self

    def send(self, *words: Any) -> "asyncio.Future[Any]":
        return self._batcher.send(*words)

    def run(self, call: Call) -> "asyncio.Future[Any]":
        answer = self._batcher.run(call)
        return asyncio.ensure_future(self._held(answer)) if call.script.name == "claim" else answer

    async def _held(self, answer: "asyncio.Future[Any]") -> Any:
        reply = await answer
        self.answered += 1
        await self.is_open.wait()
        return reply


@pytest.mark.promise("P1", "P8")
async def test_a_wake_up_that_overtakes_the_answer_to_a_claim_is_not_lost(
    redis: Redis, rig: Rig, client: TurnClient
) -> None:
    """The claim found nothing, and before its answer is read something is due."""
    ran = Ran(redis)
    worker = rig.start(ran, times=NEVER, wrap=(gate := Gate()))
    await ran.by_each(client, 1)
    gate.is_open.clear()
    worker._look.set()
    answered = gate.answered
    await wait_until(lambda: gate.answered > answered, "the claim is answered")
    await client.submit(user())
    await wait_until(worker._look.is_set, "it has heard of that")
    gate.is_open.set()

    await wait_until(lambda: ran, "it runs")


@pytest.mark.promise("P8")
async def test_a_slot_that_was_freed_during_a_claim_is_used_at_once(
    redis: Redis, rig: Rig, client: TurnClient
) -> None:
    """The claim asked for one conversation less than there is room for now."""
    go_on = asyncio.Event()
    running: list[str] = []

    async def run(ctx: dict[str, Any], conversation_id: str) -> Outcome:
        running.append(conversation_id)
        if conversation_id == "long":
            await go_on.wait()
        await eat(redis, ctx)
        return Done()

    rig.start(run, times=NEVER, wrap=(gate := Gate()), slots=Slots(2))
    await wait_until(lambda: are_idle(redis, 1), "it is idle")
    await client.submit(user("long"))
    await wait_until(lambda: running == ["long"], "the first runs")
    await wait_until(lambda: are_idle(redis, 1), "the second slot is free")
    gate.is_open.clear()
    answered = gate.answered
    for name in ("one", "two"):
        await client.submit(user(name))
    await wait_until(lambda: gate.answered > answered, "one is claimed")
    go_on.set()
    await wait_until(lambda: _is_off(redis, "long"), "the first has ended")
    gate.is_open.set()

    await wait_until(lambda: sorted(running) == ["long", "one", "two"], "both run")


async def _is_off(redis: Redis, conversation_id: str) -> bool:
    return await redis.zscore(SHARD.queue, f"{{s0}}:{conversation_id}") is None


@pytest.mark.promise("P1", "P8")
async def test_no_wake_up_is_lost_however_submissions_and_claims_meet(
    redis: Redis, rig: Rig, client: TurnClient
) -> None:
    """Hundreds of times a worker goes to sleep while something is submitted: it hears of it."""
    started: dict[str, float] = {}
    dice = random.Random(7)

    async def run(ctx: dict[str, Any], conversation_id: str) -> Outcome:
        started[conversation_id] = time.monotonic()
        await asyncio.sleep(dice.choice((0, 0, 0.001, 0.003)))
        await eat(redis, ctx)
        return Done()

    for n in range(4):
        rig.start(run, times={"poll_s": 20.0, "lease_s": 60.0}, slots=Slots((1, 2, 3, 50)[n]))
    await wait_until(lambda: are_idle(redis, 4), "all are idle")

    async def produce(name: int) -> float:
        late_s = 0.0
        for n in range(100):
            began_s = time.monotonic()
            await client.submit(user(conversation := f"p{name}-{n}"))
            await wait_until(lambda: conversation in started, "it starts", 5)
            late_s = max(late_s, started[conversation] - began_s)
            await asyncio.sleep(dice.choice((0, 0, 0.001, 0.002, 0.004)))
        return late_s

    assert max(await asyncio.gather(*map(produce, range(8)))) < 5


@asynccontextmanager
async def processes(redis: Redis, url: str, sim: Simulator, **settings: str) -> Any:
    """Run two worker processes, the one that is idle for longest first."""
    with ExitStack() as exits:
        workers: list[WorkerProcess] = []
        for n in range(2):
            started = worker_process(url, sim.base_url, worker_name=f"w{n}", **settings)
            workers.append(exits.enter_context(started))
            await wait_until(lambda: are_idle(redis, len(workers)), "the workers are idle", 30)
        yield workers


async def ask(client: TurnClient, conversation_id: str) -> float:
    """Have one turn answered, and return how long that took, seconds."""
    began_s = time.monotonic()
    assert isinstance(await client.ask(conversation_id, "Hello", timeout_s=20), TurnCompleted)
    return time.monotonic() - began_s


@pytest.mark.promise("P5")
async def test_a_killed_idle_worker_costs_the_next_turn_nothing(
    redis: Redis, redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """Nobody hears it any more: the next one is woken by the same submission."""
    async with processes(redis, redis_url, sim, poll_s="15", lease_s="60") as (first, _):
        first.signal(signal.SIGKILL)
        first.gone_within(10)

        assert await ask(client, "c") < 10  # far below a poll
        await wait_until(lambda: are_idle(redis, 1), "only the one that lives is idle")


@pytest.mark.promise("P5")
async def test_a_frozen_idle_worker_costs_the_next_turn_one_poll_at_most(
    redis: Redis, redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """The server takes it for one that hears; it is idle no more, so that happens once."""
    async with processes(redis, redis_url, sim, poll_s="2", lease_s="60") as (first, second):
        first.signal(signal.SIGSTOP)
        try:
            assert await ask(client, "c0") < 6
            (name,) = await redis.zrange(SHARD.idle, 0, -1)
            assert name.startswith(b"w1-")
            later = [await ask(client, f"c{n}") for n in range(1, 6)]
        finally:
            first.signal(signal.SIGCONT)
        assert sorted(later)[2] < 1  # they were woken, and did not wait for a poll
        assert second.process.poll() is None
        await wait_until(lambda: are_idle(redis, 2), "both are idle", 20)


@asynccontextmanager
async def without_channels(redis: Redis, url: str) -> AsyncIterator[TurnClient]:
    """A producer that may publish nothing."""
    rules = ("on", "nopass", "~*", "+@all", "resetchannels")
    await redis.execute_command("ACL", "SETUSER", "few", *rules)
    try:
        async with TurnClient.connect(url.replace("unix://", "unix://few:x@")) as producer:
            yield producer
    finally:
        await redis.execute_command("ACL", "DELUSER", "few")


async def test_without_rights_to_channels_turns_start_by_the_next_poll(
    redis: Redis, redis_url: str, rig: Rig
) -> None:
    """Messages are taken all the same."""
    ran = Ran(redis)
    rig.start(ran, times={"poll_s": 0.2})
    async with without_channels(redis, redis_url) as producer:
        for n in range(3):
            await wait_until(lambda: are_idle(redis, 1), "the worker is idle")
            await producer.submit(user(f"c{n}"))
        await wait_until(lambda: len(ran) == 3, "all have run")


async def test_an_interrupt_that_could_not_be_told_is_found(
    redis: Redis,
    redis_url: str,
    sim: Simulator,
    client: TurnClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the sweep of what runs."""
    monkeypatch.setattr(leased_worker, "SWEEP_S", 0.2)
    sim.inject("stall;at=tokens:3")
    async with fleet(redis_url, sim, poll_s="0.1"), without_channels(redis, redis_url) as producer:
        receipt = await client.submit(user())
        async with contextlib.aclosing(client.text(receipt)) as texts:
            async for _ in texts:
                break
        await producer.interrupt("c")
        assert isinstance(await client.result(receipt, timeout_s=10), TurnInterrupted)
