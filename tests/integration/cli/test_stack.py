"""The stack: real worker processes that answer, are killed and replaced, and never outlive it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.recordings import REPOSITORY
from tests.support.wait import wait_until_sync
from turnline.contracts import SyncTurnClient, TurnCompleted
from turnline.ops.cli.failures import Failure
from turnline.ops.fleet.child import ChildFailed
from turnline.ops.fleet.stack import Stack

STARTER = """
import sys
from turnline.ops.fleet.stack import Stack
with Stack(workers=1) as stack:
    private = stack.redis_url.removeprefix("unix://").rpartition("/")[0]
    print(stack.pid(0), stack.redis.pid, stack.sim_pid, private, flush=True)
    sys.stdin.read()
"""


def status_of(pid: int) -> str:
    """What a process does; `gone` if there is none, or nobody has collected it yet."""
    try:
        status = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return "gone"
    return "gone" if status == psutil.STATUS_ZOMBIE else status


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Two workers, a simulator and a server of their own."""
    with Stack(
        workers=2, worker_env={"TURNLINE_LEASE_S": "0.6", "TURNLINE_HEARTBEAT_S": "0.1"}
    ) as it:
        yield it


def test_a_turn_is_answered_whoever_is_killed(stack: Stack) -> None:
    """Each worker in turn is killed and replaced; turns go on being answered."""
    with SyncTurnClient.connect(stack.redis_url) as client:
        for index in range(2):
            before = stack.pid(index)
            stack.kill(index)
            assert not stack.is_running(index)
            ending = client.ask("killed", f"Hello {index}", timeout_s=30)
            assert isinstance(ending, TurnCompleted)
            stack.start(index)
            stack.wait_ready()
            assert stack.pid(index) != before
        assert len(client.history("killed").messages) == 4
    stack.check()


def test_a_terminated_worker_drains_and_another_one_joins(stack: Stack) -> None:
    """SIGTERM ends an idle worker with exit code 0; a started one gets the next name."""
    stack.terminate(1)

    assert stack.wait(1, 20) == 0
    assert "worker.stopped" in stack.log_of(1)
    stack.start(1)
    third = stack.start()
    stack.wait_ready()
    assert stack.worker_names == ["worker-1", "worker-2", "worker-3"]
    stack.kill(third)


def test_a_frozen_worker_goes_on_when_it_may(stack: Stack) -> None:
    """SIGSTOP and SIGCONT reach the worker itself."""
    stack.wait_ready()
    stack.stop(0)
    pid = stack.pid(0)
    wait_until_sync(lambda: status_of(pid) == psutil.STATUS_STOPPED, "it is stopped")

    stack.resume(0)

    wait_until_sync(lambda: status_of(pid) != psutil.STATUS_STOPPED, "it goes on")
    stack.wait_ready()


def test_a_worker_that_ends_by_itself_is_noticed(stack: Stack) -> None:
    """The stack did not ask it to: the failure names it."""
    stack.wait_ready()
    os.kill(stack.pid(0), signal.SIGKILL)
    wait_until_sync(lambda: not stack.is_running(0), "it is gone")

    with pytest.raises(ChildFailed, match="worker-1 ended by itself"):
        stack.check()
    stack.start(0)
    stack.wait_ready()


def test_a_worker_that_cannot_start_is_told_with_its_last_words() -> None:
    """The reason stands in the error, and nothing is left running."""
    with (
        pytest.raises(ChildFailed, match=r"(?s)worker-1 ended.*TURNLINE_SLOTS"),
        Stack(workers=1, worker_env={"TURNLINE_SLOTS": "none"}),
    ):
        pass


def test_live_needs_a_key() -> None:
    """Said before anything is started."""
    with pytest.raises(Failure, match="XAI_API_KEY is not set"), Stack(live=True, environ={}):
        pass


@pytest.mark.parametrize("how", ["end", "SIGTERM", "SIGKILL"])
def test_nothing_outlives_the_starter(how: str) -> None:
    """Neither a process nor a directory, whichever way the starter ends."""
    with subprocess.Popen(
        [sys.executable, "-c", STARTER],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as starter:
        assert starter.stdin is not None
        assert starter.stdout is not None
        *numbers, private = starter.stdout.readline().split()
        pids = [int(number) for number in numbers]
        assert "gone" not in map(status_of, pids)

        if how == "end":
            starter.stdin.close()
        else:
            starter.send_signal(getattr(signal, how))
        starter.wait(20)

    wait_until_sync(lambda: {"gone"} == set(map(status_of, pids)), "all processes are gone")
    wait_until_sync(lambda: not Path(private).exists(), "the server's directory is gone")
