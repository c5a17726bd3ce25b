"""What systemd hears of a worker process."""

import asyncio
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import worker_process
from turnline.contracts import TurnClient, UserMessage
from turnline.ops.simulator import Simulator
from turnline.worker.probes.service_manager import ServiceManager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket as systemd gives one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20)
        yield listening


def heard(manager: socket.socket, word: str) -> list[str]:
    """Receive until somebody says this; return that message's lines."""
    while True:
        lines = manager.recv(4096).decode().split("\n")
        if any(line.startswith(word) for line in lines):
            return lines


async def test_each_stage_is_told(redis_url: str, sim: Simulator, manager: socket.socket) -> None:
    """READY once it serves, that it lives at half of the time, reloads, and its end."""
    settings = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "400000"}

    def drill() -> None:
        with worker_process(redis_url, sim.base_url, **settings) as worker:
            assert heard(manager, "READY=1") == ["READY=1", "STATUS=serving"]
            assert "worker.started" in worker.says()
            began_s = time.monotonic()
            for _ in range(10):
                heard(manager, "WATCHDOG=1")
            assert 1.5 < time.monotonic() - began_s < 15
            worker.signal(signal.SIGHUP)
            before = time.monotonic_ns() // 1_000
            _, at = heard(manager, "RELOADING=1")
            usec = int(at.removeprefix("MONOTONIC_USEC="))
            assert before - 1_000_000 < usec <= time.monotonic_ns() // 1_000
            heard(manager, "READY=1")
            worker.signal(signal.SIGTERM)
            heard(manager, "STOPPING=1")
            worker.gone_within(10)
            assert worker.process.returncode == 0

    await asyncio.to_thread(drill)


async def test_a_loop_that_stands_still_is_told_by_silence(
    redis_url: str, sim: Simulator, client: TurnClient, manager: socket.socket, tmp_path: Path
) -> None:
    """The manager then does what it was told to do."""
    (tmp_path / "silent_tools.py").write_text(
        "import time\nfrom turnline.worker.tools import tool\n\n"
        '@tool\nasync def stand() -> str:\n    "Stand still."\n    time.sleep(60)\n    return ""\n'
    )
    settings = {
        "NOTIFY_SOCKET": manager.getsockname(),
        "WATCHDOG_USEC": "200000",
        "tools": "silent_tools",
        "PYTHONPATH": str(tmp_path),
    }

    def silence() -> None:
        manager.settimeout(2)
        with pytest.raises(TimeoutError):
            heard(manager, "never said")

    with worker_process(redis_url, sim.base_url, **settings):
        await asyncio.to_thread(heard, manager, "WATCHDOG=1")
        sim.inject("tool;name=stand", times=1)
        await client.submit(UserMessage(conversation_id="c", text="Hello"))
        await asyncio.to_thread(silence)


async def test_a_heartbeat_that_stands_still_is_told_by_silence(manager: socket.socket) -> None:
    """Whatever the loop does: who asks for the pings decides whether the process lives."""
    lives = [True]
    environ = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "20000"}
    telling = ServiceManager(environ)
    telling.keep_telling(lambda: lives[0])
    await asyncio.to_thread(heard, manager, "WATCHDOG=1")
    lives[0] = False
    manager.settimeout(0.5)
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(heard, manager, "never said")
    lives[0] = True
    await asyncio.to_thread(heard, manager, "WATCHDOG=1")
    telling.close()


def test_an_abstract_name_is_understood() -> None:
    """Systems have names of sockets that are no files."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0turnline-test-notify")
        ServiceManager({"NOTIFY_SOCKET": "@turnline-test-notify"}).tell("READY=1")
        assert listening.recv(100) == b"READY=1"


def test_nobody_and_strangers_hear_nothing(manager: socket.socket, tmp_path: Path) -> None:
    """No manager, one that has gone, and a watchdog of another process."""
    manager.setblocking(False)
    ServiceManager({}).tell("READY=1")
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "none")}).tell("READY=1")
    with pytest.raises(BlockingIOError):
        manager.recv(100)

    environ = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "2000000"}
    assert ServiceManager(environ).watchdog_s == 1.0
    assert ServiceManager({**environ, "WATCHDOG_PID": "7"}, pid=7).watchdog_s == 1.0
    assert ServiceManager({**environ, "WATCHDOG_PID": "7"}, pid=8).watchdog_s is None
    assert ServiceManager({**environ, "WATCHDOG_USEC": "x"}).watchdog_s is None
    assert ServiceManager({"WATCHDOG_USEC": "2000000"}).watchdog_s is None
