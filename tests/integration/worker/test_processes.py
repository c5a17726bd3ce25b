"""Several worker processes under one supervisor: they die, are replaced, and end, under load."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis as redis_sync

from tests.integration.tools.bench import calling
from tests.support.lengths import IS_SHORT, length
from tests.support.processes import WorkerProcess, worker_process
from tests.support.wait import wait_until, wait_until_sync
from turnline.contracts import (
    Receipt,
    SyncTurnClient,
    TextDelta,
    TurnClient,
    TurnCompleted,
    TurnFailed,
    TurnStarted,
    UserMessage,
)
from turnline.contracts.keys import shard_keys
from turnline.ops.chaos.figures import percentile
from turnline.ops.fleet.queue_state import read_workers
from turnline.ops.simulator import Simulator
from turnline.ops.simulator.config import Pacing, SimulatorConfig

SHARD = shard_keys(0)
LONG_LEASE = {"lease_s": "60", "heartbeat_s": "10"}
"""What is left behind is nobody's for a minute, unless somebody gives it back."""
SLOW = "reasoning;tokens=0|stall;at=tokens:4"
"""The model says some words, and then nothing."""
SHORT = "reasoning;tokens=0|stall;at=tokens:4,seconds=1.5"
"""The same for a while."""
AGENT = '[helper]\nsystem_prompt = "Help."\n'
KILLS = length(3, 50)
TOOLS = """
from turnline.worker.tools import tool
kept = []

@tool
async def grow() -> str:
    "Take memory."
    kept.append(bytearray(b"x") * 300_000_000)
    return "grown"
"""


class Supervised:
    """A supervisor and its workers, as a test sees them."""

    def __init__(self, redis_url: str, process: WorkerProcess, count: int) -> None:
        self.redis_url, self.process, self.count = redis_url, process, count

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of living workers, by name, as Redis knows them."""
        with redis_sync.Redis.from_url(self.redis_url) as redis:
            living = [it for it in read_workers(redis, SHARD) if psutil.pid_exists(it.pid)]
        return {it.name: it.pid for it in living if is_child(it.pid, self.process.process.pid)}

    def wait_ready(self, *, without: frozenset[int] = frozenset()) -> dict[str, int]:
        """Wait until there are as many as there should be, and none of those."""

        def ready() -> dict[str, int]:
            pids = self.pids
            is_whole = len(pids) == self.count and not without & set(pids.values())
            return pids if is_whole else {}

        return wait_until_sync(ready, f"workers are ready: {self.process.says()}", 60)

    def logged(self, event: str) -> int:
        return self.process.says().count(f'"event": "{event}"')


def is_child(pid: int, parent: int) -> bool:
    try:
        return psutil.Process(pid).ppid() == parent
    except psutil.NoSuchProcess:
        return False


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def supervised(
    redis_url: str, sim: Simulator, count: int, *, is_ready: bool = True, **settings: str
) -> Iterator[Supervised]:
    """Run a supervisor with so many workers; none is left at the end.

    All are ready, unless `is_ready=False`.
    """
    words = ["--processes", str(count)]
    given = {"worker_name": "w", "wire": "chat", **settings}
    with worker_process(redis_url, sim.base_url, words, **given) as process:
        fleet = Supervised(redis_url, process, count)
        try:
            if is_ready:
                fleet.wait_ready()
            yield fleet
        finally:
            children = []
            if process.process.poll() is None:
                children = psutil.Process(process.process.pid).children()
            process.signal(signal.SIGKILL)
            for child in children:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            psutil.wait_procs(children, timeout=20)


def ask(client: SyncTurnClient, conversation: str) -> Receipt:
    return client.submit(UserMessage(conversation_id=conversation, text="say much"))


def speaks(client: SyncTurnClient, receipt: Receipt, attempt: int = 1) -> tuple[float, str]:
    """Wait for the first words of an attempt, or of a later one; return when, and whose."""
    worker = ""
    for event in client.events(receipt):
        if isinstance(event, TurnStarted):
            worker = event.worker
        if isinstance(event, TextDelta) and event.attempt >= attempt:
            return time.monotonic(), worker
    raise AssertionError("it never spoke")


async def in_thread(drill: Callable[..., None], *args: Any) -> None:
    await asyncio.to_thread(drill, *args)


@pytest.mark.promise("P5")
@pytest.mark.timeout(60 + 10 * KILLS)
async def test_a_killed_process_loses_no_time(redis_url: str, sim: Simulator) -> None:
    """SIGKILL mid-stream: its turns go on in the other processes at once, not when leases end."""

    def drill() -> None:
        waits: list[float] = []
        with (
            SyncTurnClient.connect(redis_url) as client,
            supervised(redis_url, sim, 4, **LONG_LEASE) as fleet,
            ThreadPoolExecutor(8) as threads,
        ):
            for n in range(KILLS):
                pids = fleet.wait_ready()
                names = [f"c{n}-{m}" for m in range(4)]
                for name in names:
                    sim.inject(SLOW, conversation=name)
                receipts = [ask(client, name) for name in names]
                running = [speaks(client, it)[1] for it in receipts]
                victim = running[0]
                cut_off = [
                    it for it, worker in zip(receipts, running, strict=True) if worker == victim
                ]
                seen = [threads.submit(speaks, client, it, 2) for it in cut_off]
                at_s = time.monotonic()
                os.kill(pids[victim], signal.SIGKILL)
                waits += [it.result(30)[0] - at_s for it in seen]
                for receipt in cut_off:
                    result = client.result(receipt, timeout_s=30)
                    assert isinstance(result, TurnCompleted)
                    assert result.attempt == 2
                for receipt in receipts:
                    if receipt not in cut_off:
                        client.interrupt(receipt.conversation_id)
                        assert client.result(receipt, timeout_s=30).attempt == 1
                fleet.wait_ready(without=frozenset({pids[victim]}))
        assert percentile(waits, 0.5) < (2.0 if IS_SHORT else 0.2)
        assert percentile(waits, 0.99) < (5.0 if IS_SHORT else 0.4)

    await in_thread(drill)


@pytest.mark.promise("P4", "P5")
async def test_a_stopped_process_keeps_what_it_holds(redis_url: str, sim: Simulator) -> None:
    """It may wake: only who was waited for is dead. Once it is killed, its turn goes on at once."""

    def drill() -> None:
        with (
            SyncTurnClient.connect(redis_url) as client,
            supervised(redis_url, sim, 2, **LONG_LEASE) as fleet,
        ):
            sim.inject(SLOW, conversation="c")
            receipt = ask(client, "c")
            _, worker = speaks(client, receipt)
            frozen = fleet.pids[worker]
            (other,) = set(fleet.pids.values()) - {frozen}
            with redis_sync.Redis.from_url(redis_url) as redis:
                lease = redis.get("arq:in-progress:{s0}:c")
                os.kill(frozen, signal.SIGSTOP)
                os.kill(other, signal.SIGKILL)
                wait_until_sync(lambda: other not in fleet.pids.values(), "one is dead", 20)
                wait_until_sync(lambda: len(fleet.pids) == 2, "and there again", 30)
                assert redis.get("arq:in-progress:{s0}:c") == lease
                assert lease is not None
                os.kill(frozen, signal.SIGKILL)
                killed_s = time.monotonic()
                assert speaks(client, receipt, 2)[0] - killed_s < 20
                assert client.result(receipt, timeout_s=30).attempt == 2
                assert redis.hget("turnline:{s0}:c:c:state", "running") is None

    await in_thread(drill)


@pytest.mark.promise("P5")
@pytest.mark.timeout(180)
async def test_a_turn_that_kills_its_processes_becomes_a_dead_letter(
    redis_url: str, sim: Simulator
) -> None:
    """A crash counts against the turn that runs, though its lease was given back."""

    def drill() -> None:
        with (
            SyncTurnClient.connect(redis_url) as client,
            supervised(redis_url, sim, 2, **LONG_LEASE, max_crashes="2") as fleet,
        ):
            sim.inject(SLOW, conversation="c", times=None)
            receipt = ask(client, "c")
            for attempt in (1, 2):
                _, worker = speaks(client, receipt, attempt)
                os.kill(wait_until_sync(lambda w=worker: fleet.pids.get(w), "it lives", 30), 9)
            result = client.result(receipt, timeout_s=30)
            assert isinstance(result, TurnFailed)
            assert result.code == "crashed"

    await in_thread(drill)


@pytest.mark.promise("P1", "P3")
@pytest.mark.timeout(180)
async def test_new_processes_take_over_under_load_and_no_turn_notices(redis_url: str) -> None:
    """SIGHUP: all are new behind it; no turn is run twice, or waits for longer than a second."""

    async def talk(client: TurnClient, name: str, until: asyncio.Event) -> list[tuple[int, float]]:
        seen: list[tuple[int, float]] = []
        while not until.is_set():
            began_s = time.monotonic()
            receipt = await client.submit(UserMessage(conversation_id=name, text="go on"))
            first_s = 0.0
            async for event in client.events(receipt):
                if isinstance(event, TurnStarted) and not first_s:
                    first_s = time.monotonic() - began_s
            seen.append((event.attempt, first_s))
        return seen

    async with Simulator(SimulatorConfig(pacing=Pacing(ttft_ms=100, itl_ms=10))) as sim:
        with supervised(redis_url, sim, 4, is_ready=False, drain_s="0.2") as fleet:
            await asyncio.to_thread(fleet.wait_ready)
            before = frozenset((await asyncio.to_thread(lambda: fleet.pids)).values())
            over = asyncio.Event()
            async with TurnClient.connect(redis_url) as client:
                talks = [asyncio.create_task(talk(client, f"c{n}", over)) for n in range(8)]
                fleet.process.signal(signal.SIGHUP)
                await asyncio.to_thread(fleet.wait_ready, without=before)
                await wait_until(lambda: fleet.logged("supervisor.replaced") == 4, "all are", 60)
                over.set()
                seen = [it for them in await asyncio.gather(*talks) for it in them]

    assert len(seen) > 20
    assert {attempt for attempt, _ in seen} == {1}
    assert max(first_s for _, first_s in seen) < (5.0 if IS_SHORT else 1.0)


async def test_what_cannot_start_replaces_nobody(
    redis_url: str, sim: Simulator, tmp_path: Path
) -> None:
    """SIGHUP with a broken file: the workers go on, and the log says why there are no new ones."""
    agents = tmp_path / "agents.toml"
    agents.write_text(AGENT)

    def drill() -> None:
        with (
            SyncTurnClient.connect(redis_url) as client,
            supervised(redis_url, sim, 2, agents=str(agents)) as fleet,
        ):
            before = fleet.pids
            agents.write_text("[oops")
            fleet.process.signal(signal.SIGHUP)
            wait_until_sync(lambda: fleet.logged("supervisor.not_replaced"), "it says so", 30)
            assert "The agents cannot be used" in fleet.process.says()
            assert fleet.pids == before
            assert fleet.logged("supervisor.replaced") == 0
            assert isinstance(client.result(ask(client, "c"), timeout_s=20), TurnCompleted)
            agents.write_text(AGENT)
            fleet.process.signal(signal.SIGHUP)
            fleet.wait_ready(without=frozenset(before.values()))

    await in_thread(drill)


async def test_the_end_lets_turns_finish_whoever_else_is_told(
    redis_url: str, sim: Simulator
) -> None:
    """SIGTERM to all processes, as systemd sends it, is one request; so is Ctrl-C."""

    def drill() -> None:
        with (
            SyncTurnClient.connect(redis_url) as client,
            supervised(redis_url, sim, 2, drain_s="20") as fleet,
        ):
            sim.inject(SHORT, conversation="c")
            receipt = ask(client, "c")
            speaks(client, receipt)
            for pid in [*fleet.pids.values(), fleet.process.process.pid]:
                os.kill(pid, signal.SIGTERM)
            result = client.result(receipt, timeout_s=20)
            assert isinstance(result, TurnCompleted)
            assert result.attempt == 1
            fleet.process.gone_within(10)
            assert fleet.process.process.returncode == 0
            assert fleet.logged("worker.stopped") == 2

    await in_thread(drill)


async def test_a_second_request_ends_all_at_once(redis_url: str, sim: Simulator) -> None:
    """The turn that runs is handed over, and due for others."""

    def drill() -> None:
        with (
            SyncTurnClient.connect(redis_url) as client,
            supervised(redis_url, sim, 2, drain_s="60") as fleet,
            redis_sync.Redis.from_url(redis_url) as redis,
        ):
            sim.inject(SLOW, conversation="c")
            receipt = ask(client, "c")
            speaks(client, receipt)
            children = list(fleet.pids.values())
            fleet.process.signal(signal.SIGTERM)
            wait_until_sync(lambda: fleet.logged("worker.draining"), "it drains", 20)
            fleet.process.signal(signal.SIGTERM)
            fleet.process.gone_within(8)
            assert fleet.process.process.returncode == 0
            assert all(map(is_gone, children))
            assert redis.zscore(SHARD.queue, "{s0}:c") < time.time() * 1000 + 100
            assert redis.get("arq:in-progress:{s0}:c") is None

    await in_thread(drill)


async def test_workers_end_with_their_supervisor(redis_url: str, sim: Simulator) -> None:
    """However that ends; turns that run may finish."""

    def drill() -> None:
        with (
            SyncTurnClient.connect(redis_url) as client,
            supervised(redis_url, sim, 2, drain_s="20") as fleet,
        ):
            sim.inject(SHORT, conversation="c")
            receipt = ask(client, "c")
            speaks(client, receipt)
            children = list(fleet.pids.values())
            fleet.process.signal(signal.SIGKILL)
            wait_until_sync(lambda: all(map(is_gone, children)), "all are gone", 20)
            assert client.result(receipt, timeout_s=5).attempt == 1

    await in_thread(drill)


async def test_whoever_dies_again_and_again_waits_ever_longer(
    redis_url: str, sim: Simulator
) -> None:
    """The first time it is back at once; the other one serves all the while."""

    def drill() -> None:
        with supervised(redis_url, sim, 2) as fleet:
            for _ in range(3):
                victim = wait_until_sync(lambda: fleet.pids.get("w-1"), "it lives", 30)
                os.kill(victim, signal.SIGKILL)
                wait_until_sync(lambda v=victim: v not in fleet.pids.values(), "it died", 20)
            wait_until_sync(lambda: fleet.logged("supervisor.child_waits") == 2, "it waits", 30)
            assert fleet.logged("supervisor.child_died") == 3
            assert '"exit_code": -9' in fleet.process.says()

    await in_thread(drill)


async def test_a_process_that_grew_is_replaced(
    redis_url: str, sim: Simulator, tmp_path: Path
) -> None:
    """Its turn is not cut off; the new one has the same name."""
    (tmp_path / "growing.py").write_text(TOOLS)

    def drill() -> None:
        settings = {"tools": "growing", "max_rss_mb": "250", "PYTHONPATH": str(tmp_path)}
        with (
            SyncTurnClient.connect(redis_url) as client,
            supervised(redis_url, sim, 1, **settings) as fleet,
        ):
            before = fleet.pids
            sim.inject(calling("grow"), conversation="c")
            result = client.result(ask(client, "c"), timeout_s=20)
            assert isinstance(result, TurnCompleted)
            assert result.attempt == 1
            after = fleet.wait_ready(without=frozenset(before.values()))
            assert after.keys() == before.keys() == {"w-1"}
            wait_until_sync(lambda: is_gone(before["w-1"]), "the old one is gone", 20)
            assert fleet.logged("supervisor.child_grew") == 1

    await in_thread(drill)


@pytest.mark.parametrize(
    ("settings", "words", "code"),
    [
        ({"model": "grok-99"}, "does not serve the model grok-99", 2),
        ({"XAI_API_KEY": ""}, "XAI_API_KEY is not set", 2),
        ({"tools": "no_such_module"}, "no_such_module: it cannot be imported", 2),
        ({"http": "9", "redis_url": "redis://127.0.0.1:1"}, "TURNLINE_HTTP", 2),
        ({"processes": "0"}, "TURNLINE_PROCESSES: `auto`", 2),
        ({"processes": "many"}, "TURNLINE_PROCESSES: `auto`", 2),
        ({"processes": "", "max_rss_mb": "500"}, "set TURNLINE_PROCESSES too", 2),
        ({"slots": "0"}, "TURNLINE_SLOTS", 2),
    ],
)
async def test_what_is_wrong_is_said_once(
    settings: Mapping[str, str], words: str, code: int, redis_url: str, sim: Simulator
) -> None:
    """With the exit code of a single worker, by whichever process found it."""

    def drill() -> None:
        given = {"processes": "3", "redis_url": redis_url, **settings}
        url = given.pop("redis_url")
        with worker_process(url, sim.base_url, **given) as process:
            process.gone_within(30)
            said = process.says()
            assert process.process.returncode == code
            sentences = [it for it in said.splitlines() if it.startswith("turnline worker: ")]
            assert len(sentences) == 1, said
            assert words in sentences[0]
            assert "supervisor.child_died" not in said

    await in_thread(drill)


async def test_lines_of_the_log_say_which_process_speaks(redis_url: str, sim: Simulator) -> None:
    """Of workers that share an output."""

    def drill() -> None:
        with supervised(redis_url, sim, 2) as fleet:
            fleet.process.signal(signal.SIGINT)
            fleet.process.gone_within(10)
            lines = [json.loads(line) for line in fleet.process.says().splitlines()]
            of_workers = [it for it in lines if it["logger"] != "turnline.supervisor"]
            assert of_workers
            assert all(str(it["worker"]).startswith(("w-1", "w-2")) for it in of_workers)

    await in_thread(drill)
