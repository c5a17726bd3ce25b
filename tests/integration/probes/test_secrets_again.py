"""SIGHUP: secrets are read again from their files, and no turn is disturbed."""

import asyncio
import hashlib
import os
import pty
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.driving import ended, user
from tests.support.processes import REPOSITORY, WorkerProcess, worker_process
from tests.support.wait import wait_until
from turnline.contracts import TurnClient, TurnCompleted
from turnline.contracts.keys import shard_keys
from turnline.ops.simulator import Simulator, SimulatorConfig

OLD, NEW, OTHER = "xai-old-0123456789", "xai-new-0123456789", "xai-other-0123456789"


@pytest.fixture
async def strict() -> AsyncIterator[Simulator]:
    """A Grok that lets in these keys only."""
    async with Simulator(SimulatorConfig(api_keys=(OLD, NEW))) as simulator:
        yield simulator


@asynccontextmanager
async def serving(
    redis_url: str, sim: Simulator, folder: Path, **settings: str
) -> AsyncIterator[WorkerProcess]:
    """A worker whose key stands in a file."""
    (folder / "key").write_text(OLD + "\n")
    given = {"XAI_API_KEY": "", "XAI_API_KEY_FILE": str(folder / "key"), **settings}
    with worker_process(redis_url, sim.base_url, **given) as worker:
        await wait_until(lambda: "worker.started" in worker.says(), "it serves")
        yield worker


async def hears(worker: WorkerProcess, event: str) -> str:
    """Send SIGHUP, wait for what the log says then, and return the line."""
    before = worker.says().count(event)
    worker.signal(signal.SIGHUP)
    await wait_until(lambda: worker.says().count(event) > before, event)
    return next(line for line in reversed(worker.says().splitlines()) if event in line)


def keys_of(sim: Simulator) -> list[int]:
    """Which keys model calls were made with, as numbers in the order of their first use."""
    calls = [it.key for it in sim.ledger.entries() if it.path.endswith("responses")]
    order = list(dict.fromkeys(calls))
    return [order.index(it) for it in calls]


async def test_new_calls_use_the_new_key_and_a_running_one_ends(
    redis_url: str, strict: Simulator, client: TurnClient, tmp_path: Path
) -> None:
    """No turn takes a second attempt."""
    strict.inject("pace;itl_ms=150|chunks=15", times=1)
    async with serving(redis_url, strict, tmp_path) as worker:
        running = await client.submit(user("Hello", "long"))
        await wait_until(lambda: keys_of(strict), "it is asked")
        (tmp_path / "key").write_text(NEW)
        line = await hears(worker, "reload.done")
        assert '"new_keys": 1' in line
        await client.ask("c", "Hello", timeout_s=30)
        await ended(client, running, TurnCompleted)
        assert (await client.record(running)).attempts == 1
        assert keys_of(strict) == [0, 1]
        assert '"new_keys": 0' in await hears(worker, "reload.done")
        assert OLD not in worker.says()
        assert NEW not in worker.says()


async def test_one_of_several_keys_is_replaced(
    redis_url: str, redis: Redis, strict: Simulator, client: TurnClient, tmp_path: Path
) -> None:
    """A key that was refused at the start serves as soon as a good one stands in its place.

    Each key has limits of its own, a new one too.
    """
    given = {"provider_limits": "*=500rps"}
    (tmp_path / "key").write_text(f"{OTHER},{OLD}")
    environ = {"XAI_API_KEY": "", "XAI_API_KEY_FILE": str(tmp_path / "key"), **given}
    with worker_process(redis_url, strict.base_url, **environ) as worker:
        await wait_until(lambda: "worker.started" in worker.says(), "it serves")
        assert "provider.left_out" in worker.says()
        for n in range(8):
            await client.ask(f"c{n}", "Hello", timeout_s=30)
        assert set(keys_of(strict)) == {0}
        assert not await redis.exists(limits_of(NEW, strict))

        (tmp_path / "key").write_text(f"{NEW},{OLD}")
        assert '"new_keys": 1' in await hears(worker, "reload.done")
        for n in range(8):
            await client.ask(f"d{n}", "Hello", timeout_s=30)
        assert set(keys_of(strict)) == {0, 1}
        assert await redis.exists(limits_of(NEW, strict))


def limits_of(key: str, sim: Simulator) -> str:
    """Where the limits of a key stand."""
    of = f"{sim.base_url} grok-4.3 {key}".encode()
    return shard_keys(0).limit_prefix + hashlib.blake2b(of, digest_size=8).hexdigest()


def missing(folder: Path) -> None:
    (folder / "key").unlink()


WRONG: list[tuple[Callable[[Path], Any], str]] = [
    (missing, "XAI_API_KEY_FILE: it cannot be read"),
    (lambda it: (it / "key").write_text(""), "XAI_API_KEY_FILE: it is empty"),
    (lambda it: (it / "key").write_text(f"{NEW}\n{OLD}"), "it has several lines"),
    (lambda it: (it / "key").write_text(f"{NEW} x"), "XAI_API_KEY holds a space"),
    (lambda it: (it / "key").write_text(OTHER), "refuses the key"),
]


@pytest.mark.parametrize(("spoil", "reason"), WRONG, ids=[it for _, it in WRONG])
async def test_what_cannot_be_used_changes_nothing(
    spoil: Callable[[Path], Any],
    reason: str,
    redis_url: str,
    strict: Simulator,
    client: TurnClient,
    tmp_path: Path,
) -> None:
    """It is said what is wrong, and not what the file holds; turns go on with the old key."""
    async with serving(redis_url, strict, tmp_path) as worker:
        await client.ask("c", "Hello", timeout_s=30)
        spoil(tmp_path)
        assert reason in await hears(worker, "reload.failed")
        await client.ask("c", "Hello", timeout_s=30)
        assert keys_of(strict) == [0, 0]
        assert not any(key in worker.says() for key in (OLD, NEW, OTHER))


async def test_an_address_of_redis_is_for_a_restart(
    new_redis_url: Callable[[], str], strict: Simulator, tmp_path: Path
) -> None:
    """The worker says so, takes the new key all the same, and stays where it is."""
    first, second = new_redis_url(), new_redis_url()
    address = tmp_path / "address"
    address.write_text(first)
    given = {"TURNLINE_REDIS_URL": "", "TURNLINE_REDIS_URL_FILE": str(address)}
    async with serving(first, strict, tmp_path, **given) as worker:
        address.write_text(second.replace("://", "://:s3cret@"))
        (tmp_path / "key").write_text(NEW)
        line = await hears(worker, "reload.restart_needed")
        assert "TURNLINE_REDIS_URL" in line
        await wait_until(lambda: '"new_keys": 1' in worker.says(), "the key is taken")
        assert "s3cret" not in worker.says()
        async with TurnClient.connect(first) as client:
            await client.ask("c", "Hello", timeout_s=30)


async def test_the_number_of_keys_is_for_a_restart(
    redis_url: str, strict: Simulator, client: TurnClient, tmp_path: Path
) -> None:
    """Who has what is decided by it."""
    async with serving(redis_url, strict, tmp_path) as worker:
        (tmp_path / "key").write_text(f"{NEW},{OLD}")
        assert "the number of keys" in await hears(worker, "reload.restart_needed")
        await client.ask("c", "Hello", timeout_s=30)
        assert worker.process.poll() is None


async def test_a_worker_ends_with_its_terminal(redis_url: str, strict: Simulator) -> None:
    """A closed window sends the same signal."""
    given = {"TURNLINE_REDIS_URL": redis_url, "TURNLINE_BASE_URL": strict.base_url}
    assert await asyncio.to_thread(code_of_one_whose_window_closes, given) == 0


def code_of_one_whose_window_closes(given: dict[str, str]) -> int:
    """Run a worker in a terminal of its own, close that once it serves; the exit code."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "turnline.worker"],
        cwd=REPOSITORY,
        env={**os.environ, **given, "XAI_API_KEY": OLD},
        stdin=follower,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=take_terminal,  # noqa: PLW1509  it forks no threads
    ) as process:
        try:
            assert process.stderr is not None
            assert any(b"worker.started" in line for line in process.stderr)
            os.close(follower)
            os.close(leader)
            return process.wait(20)
        finally:
            process.kill()


def take_terminal() -> None:
    import fcntl  # noqa: PLC0415
    import termios  # noqa: PLC0415

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
