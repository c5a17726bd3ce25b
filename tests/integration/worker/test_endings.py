"""Whatever tools do, a worker goes on, says no words, and is gone when it is told to be."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.tools.bench import calling
from tests.support.lengths import first_of
from tests.support.processes import REPOSITORY, WorkerProcess, worker_process
from tests.support.wait import wait_until_sync
from turnline.contracts import Receipt, SyncTurnClient, TurnCompleted, TurnFailed, UserMessage
from turnline.ops.chaos.misbehaving import CANARY, CLOSING, MARK
from turnline.ops.simulator import Simulator

MODULE = "turnline.ops.chaos.misbehaving"
DRAIN_S = 1.0
GONE_S = DRAIN_S + 2
SOON = {"lease_s": "1", "heartbeat_s": "0.2"}
"""What a worker leaves behind without a word, another one has soon."""


@pytest.fixture
def start(redis_url: str, sim: Simulator) -> Iterator[Callable[..., WorkerProcess]]:
    """Start a worker with the misbehaving tools; it is gone at the end of the test.

    It runs already, unless `is_ready=False`.
    """
    running = ExitStack()

    def started(*, is_ready: bool = True, **settings: str) -> WorkerProcess:
        given = {"tools": MODULE, "drain_s": str(DRAIN_S), "stall_s": "60", **settings}
        worker = running.enter_context(worker_process(redis_url, sim.base_url, **given))
        if is_ready:
            wait_until_sync(lambda: "worker.started" in worker.says(), "the worker runs", 30)
        return worker

    with running:
        yield started


def ask(client: SyncTurnClient, conversation: str = "c") -> Receipt:
    return client.submit(UserMessage(conversation_id=conversation, text="do it"))


def assert_lines(worker: WorkerProcess) -> list[dict[str, object]]:
    """All that it said is one JSON object a line, without a word of what was raised."""
    said = worker.says()
    assert CANARY not in said
    return [json.loads(line) for line in said.splitlines()]


CONTAINED = (
    "swallows",
    "sleeps_in_a_thread",
    "exits",
    "exits_in_a_thread",
    "interrupts",
    "cancels_itself",
    "ends_a_generator",
    "raises_oddly",
    "raises",
    "leaves_words_everywhere",
)


@pytest.mark.parametrize("names", [CONTAINED, ("leaves_threads",), ("hangs_at_exit",)])
async def test_tools_that_misbehave_are_contained(
    names: tuple[str, ...], redis_url: str, sim: Simulator, start: Callable[..., WorkerProcess]
) -> None:
    """Turns are answered, the worker answers the next one, says no words, and ends in time."""

    def drill() -> None:
        with SyncTurnClient.connect(redis_url) as client:
            worker = start()
            for name in names:
                sim.inject(calling(name), conversation=name)
                result = client.result(ask(client, name), timeout_s=20)
                assert isinstance(result, TurnCompleted), name
                assert result.attempt == 1, name
                assert isinstance(client.result(ask(client), timeout_s=20), TurnCompleted), name
            worker.signal(signal.SIGTERM)
            worker.gone_within(GONE_S + 1)
            lines = assert_lines(worker)
            left = names != CONTAINED
            assert worker.process.returncode == (75 if left else 0)
            assert any(line["event"] == "worker.stopped" for line in lines)
            assert any(line["event"] == "worker.forced" for line in lines) == left

    await asyncio.to_thread(drill)


@pytest.mark.parametrize("closing", first_of(["swallows", "hangs", "exits"]))
async def test_resources_that_do_not_close_hold_nobody_up(
    closing: str, redis_url: str, sim: Simulator, start: Callable[..., WorkerProcess]
) -> None:
    """They are left behind; everything else is closed."""

    def drill() -> None:
        with SyncTurnClient.connect(redis_url) as client:
            worker = start(**{CLOSING: closing})
            assert isinstance(client.result(ask(client), timeout_s=20), TurnCompleted)
            worker.signal(signal.SIGTERM)
            worker.gone_within(GONE_S + 1)
            assert worker.process.returncode == 0
            assert any(line["event"] == "worker.stopped" for line in assert_lines(worker))

    await asyncio.to_thread(drill)


@pytest.mark.parametrize(
    "name", first_of(["spins_in_the_loop", "swallows_without_limit", "sleeps_in_the_loop"])
)
async def test_workers_are_gone_in_time_though_a_tool_runs_on(
    name: str,
    redis_url: str,
    sim: Simulator,
    start: Callable[..., WorkerProcess],
    tmp_path: Path,
) -> None:
    """Also where the tool holds the loop, by one signal or two; the turns go on elsewhere."""

    def drill() -> None:
        with SyncTurnClient.connect(redis_url) as client:
            sim.inject(calling(name), times=None)
            workers: list[WorkerProcess] = []
            receipts: list[Receipt] = []
            for n in range(2):  # the first has no room for the second turn
                mark = tmp_path / f"begun-{n}"
                workers.append(start(slots="1", **{MARK: str(mark)}))
                receipts.append(ask(client, f"c{n}"))
                wait_until_sync(mark.exists, "the tool runs", 20)
            for worker, signals in zip(
                workers, [[signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]], strict=True
            ):
                for number in signals:
                    worker.signal(number)
            began_s = time.monotonic()
            for worker in workers:
                worker.gone_within(max(0.01, began_s + GONE_S + 1 - time.monotonic()))
                assert worker.process.returncode in {0, 75}
                assert_lines(worker)
            sim.rules.clear()
            start(tools="")
            for receipt in receipts:
                assert isinstance(client.result(receipt, timeout_s=20), TurnCompleted)

    await asyncio.to_thread(drill)


async def test_a_signal_that_another_thread_takes_is_heard_while_the_loop_is_held(
    redis_url: str, sim: Simulator, start: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """The system may give it to any thread, and wakes only that one."""
    mark = tmp_path / "sent"

    def drill() -> None:
        with SyncTurnClient.connect(redis_url) as client:
            sim.inject(calling("takes_the_signal"))
            worker = start(**{MARK: str(mark)})
            ask(client)
            wait_until_sync(mark.exists, "the signal is sent", 20)
            worker.gone_within(GONE_S + 1)
            assert worker.process.returncode == 75
            assert_lines(worker)

    await asyncio.to_thread(drill)


async def test_a_worker_is_gone_in_time_though_native_code_keeps_the_lock(
    redis_url: str, sim: Simulator, start: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Where no thread can look, the interpreter's timer does: the handler of the signal set it."""
    mark = tmp_path / "begun"

    def drill() -> None:
        with SyncTurnClient.connect(redis_url) as client:
            sim.inject(calling("matches_for_ever"))
            worker = start(**{MARK: str(mark)})
            ask(client)
            wait_until_sync(mark.exists, "the tool runs", 20)
            worker.signal(signal.SIGTERM)
            worker.gone_within(GONE_S + 1)
            assert worker.process.returncode == 1
            assert "matches_for_ever" in worker.says()
            assert CANARY not in worker.says()

    await asyncio.to_thread(drill)


@pytest.mark.parametrize("name", first_of(["matches_for_ever", "sums_for_ever"]))
async def test_native_code_that_keeps_the_lock_ends_the_process(
    name: str, redis_url: str, sim: Simulator, start: Callable[..., WorkerProcess]
) -> None:
    """By the system, after so much time of the processor; where it was is said."""

    def drill() -> None:
        with SyncTurnClient.connect(redis_url) as client:
            sim.inject(calling(name))
            worker = start(stall_s="0.5")
            ask(client)
            worker.gone_within(60)
            assert worker.process.returncode == -signal.SIGVTALRM
            assert name in worker.says()
            assert CANARY not in worker.says()

    await asyncio.to_thread(drill)


HELD = """
import asyncio, signal, sys
import turnline.worker.ending as ending

ending._HELD_S = 0.5

async def main(listen):
    listen(lambda _: None)
    watchdog.watch(asyncio.get_running_loop())
    print("running", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    return 0

watchdog = ending.Watchdog(0.5)
drains_s = {signal.SIGTERM: 1}
sys.exit(ending.run_until_stopped(asyncio.new_event_loop(), main, watchdog, drains_s=drains_s))
"""


def test_a_process_that_was_stopped_for_longer_than_any_limit_goes_on() -> None:
    """None of its timers takes time by the clock for time in which it ran."""
    with subprocess.Popen(
        [sys.executable, "-c", HELD],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        began_s = time.monotonic()
        process.send_signal(signal.SIGSTOP)
        wait_until_sync(lambda: time.monotonic() - began_s > 2.5, "that is longer", 10)
        process.send_signal(signal.SIGCONT)
        process.communicate("go on\n", timeout=20)

    assert process.returncode == 0


@pytest.mark.parametrize("name", first_of(["sleeps_in_the_loop", "spins_in_the_loop"]))
async def test_a_worker_whose_loop_stands_still_says_where_and_ends(
    name: str, redis_url: str, sim: Simulator, start: Callable[..., WorkerProcess]
) -> None:
    """After `stall_s`, with an exit code of its own; other workers go on."""

    def drill() -> None:
        with SyncTurnClient.connect(redis_url) as client:
            sim.inject(calling(name))
            worker = start(stall_s="1", **SOON)
            receipt = ask(client)
            worker.gone_within(10)
            assert worker.process.returncode == 70
            (line,) = (it for it in assert_lines(worker) if it["event"] == "worker.stalled")
            assert name in str(line["stack"])
            sim.rules.clear()
            start(tools="")
            assert isinstance(client.result(receipt, timeout_s=20), TurnCompleted)

    await asyncio.to_thread(drill)


async def test_a_worker_that_was_stopped_is_not_taken_for_one_that_hangs(
    redis_url: str, start: Callable[..., WorkerProcess]
) -> None:
    """SIGSTOP for several times `stall_s`: it wakes up and answers."""

    def drill() -> None:
        with SyncTurnClient.connect(redis_url) as client:
            worker = start(stall_s="0.5")
            worker.signal(signal.SIGSTOP)
            with pytest.raises(subprocess.TimeoutExpired):
                worker.gone_within(3)
            worker.signal(signal.SIGCONT)
            for n in range(5):
                result = client.result(ask(client, f"c{n}"), timeout_s=20)
                assert isinstance(result, TurnCompleted)
            assert worker.process.poll() is None

    await asyncio.to_thread(drill)


@pytest.mark.parametrize("name", first_of(["ends_the_process", "sleeps_in_the_loop"]))
async def test_a_turn_that_ends_its_workers_becomes_a_dead_letter(
    name: str, redis_url: str, sim: Simulator, start: Callable[..., WorkerProcess]
) -> None:
    """After `max_crashes` processes; the conversation goes on."""

    def drill() -> None:
        with SyncTurnClient.connect(redis_url) as client:
            sim.inject(calling(name), times=None)
            receipt = ask(client)
            settings = {"stall_s": "1", "max_crashes": "2", **SOON}
            for worker in [start(is_ready=False, **settings) for _ in range(2)]:
                worker.gone_within(30)
                assert worker.process.returncode in {5, 70}
            start(max_crashes="2")
            result = client.result(receipt, timeout_s=20)
            assert isinstance(result, TurnFailed)
            assert result.code == "crashed"
            sim.rules.clear()
            assert isinstance(client.result(ask(client), timeout_s=20), TurnCompleted)

    await asyncio.to_thread(drill)
