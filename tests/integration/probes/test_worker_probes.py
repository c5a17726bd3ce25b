"""What a worker process tells over HTTP: from its start to its end, and while Redis is away."""

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.integration.probes.asking import answer_of, free_port, frozen, says, value_on
from tests.support.processes import WorkerProcess, worker_process
from tests.support.wait import wait_until
from turnline.contracts import TurnClient, UserMessage
from turnline.ops.embedded import EmbeddedRedis
from turnline.ops.simulator import Simulator
from turnline.worker.http_places import Place

TOOLS = """
import asyncio, contextlib
from pathlib import Path
from turnline.worker.tools import tool

@tool
def nothing() -> str:
    "Do nothing."
    return ""

@contextlib.asynccontextmanager
async def resources():
    Path("opening").touch()
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    yield
"""


@asynccontextmanager
async def serving(redis_url: str, sim: Simulator, **settings: str) -> AsyncIterator[WorkerProcess]:
    """A worker that answers at `worker.place`."""
    with worker_process(redis_url, sim.base_url, **settings) as worker:
        yield worker


async def test_a_worker_is_alive_and_ready_once_it_serves(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """Metrics are at the same port; other paths and methods are refused."""
    place = Place("127.0.0.1", free_port())
    async with serving(redis_url, sim, http=str(place.port), worker_name="w1"):
        ready = await says(place, "/readyz", 200)
        assert ready["ok"], ready
        assert ready["worker"].startswith("w1-")
        assert (await says(place, "/livez", 200))["stage"] == "serving"
        await client.ask("c", "Hello", timeout_s=30)

        async def is_counted() -> bool:
            page = await answer_of(place, "/metrics")
            assert page is not None
            assert page.kind.startswith("text/plain; version=0.0.4")
            return value_on(page.body, "turnline_turn_duration_seconds_count") == 1

        await wait_until(is_counted, "the turn is counted")
        assert (await answer_of(place, "/")).status == 404
        assert (await raw(place, b"POST /livez HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 405 ")
        head = await raw(place, b"HEAD /livez HTTP/1.1\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert head.endswith(b"\r\n\r\n")


async def raw(place: Place, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(place.host, place.port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


async def test_what_is_no_request_disturbs_nobody(redis_url: str, sim: Simulator) -> None:
    """Long heads, other protocols, and connections that say nothing."""
    place = Place("127.0.0.1", free_port())
    async with serving(redis_url, sim, http=str(place)):
        await says(place, "/readyz", 200)
        for wrong in (b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/2\r\n\r\n", b"GET /" + b"x" * 70_000):
            assert (await raw(place, wrong)).startswith((b"HTTP/1.1 400 ", b""))
        silent = [await asyncio.open_connection(place.host, place.port) for _ in range(40)]
        assert (await says(place, "/livez", 200))["ok"]
        for _, writer in silent:
            writer.close()


async def test_while_it_starts_it_is_alive_and_not_ready(
    redis_url: str, sim: Simulator, tmp_path: Path
) -> None:
    """However long the resources of tools take to open."""
    (tmp_path / "slow_tools.py").write_text(TOOLS.replace('Path("', f'Path("{tmp_path}/'))
    place = Place("127.0.0.1", free_port())
    settings = {"http": str(place), "tools": "slow_tools", "PYTHONPATH": str(tmp_path)}
    async with serving(redis_url, sim, **settings):
        await wait_until((tmp_path / "opening").exists, "it opens resources")
        assert (await says(place, "/livez", 200))["stage"] == "starting"
        assert (await says(place, "/readyz", 503))["faults"] == ["it is starting"]
        (tmp_path / "go").touch()
        await says(place, "/readyz", 200)


async def test_it_is_not_ready_before_it_drains(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """For so long it takes turns, which others may not expect any more."""
    place = Place("127.0.0.1", free_port())
    async with serving(redis_url, sim, http=str(place), unready_s="4") as worker:
        await says(place, "/readyz", 200)
        began_s = time.monotonic()
        worker.signal(signal.SIGTERM)
        assert (await says(place, "/readyz", 503))["faults"] == ["it is draining"]
        assert (await says(place, "/livez", 200))["ok"]
        assert time.monotonic() - began_s < 3.0
        result = await client.ask("c", "Hello", timeout_s=3.5)
        assert result.text
        await asyncio.to_thread(worker.gone_within, 10)
        assert time.monotonic() - began_s > 4.0
        assert worker.process.returncode == 0


async def test_a_second_signal_does_not_wait(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """Neither for those who look at readiness nor for turns."""
    place = Place("127.0.0.1", free_port())
    waits = {"unready_s": "60", "drain_s": "60"}
    async with serving(redis_url, sim, http=str(place), **waits) as worker:
        await says(place, "/readyz", 200)
        sim.inject("stall;at=tokens:2", times=1)
        await client.submit(UserMessage(conversation_id="c", text="Hello"))
        await wait_until(sim.ledger.entries, "the model is asked")
        worker.signal(signal.SIGTERM)
        await says(place, "/readyz", 503)
        worker.signal(signal.SIGTERM)
        await asyncio.to_thread(worker.gone_within, 10)
        assert worker.process.returncode == 0


async def test_a_worker_without_redis_lives_and_is_not_ready(sim: Simulator) -> None:
    """A frozen server: probes answer at once, and again when it is back."""
    place = Place("127.0.0.1", free_port())
    with EmbeddedRedis() as server:
        async with serving(server.url, sim, http=str(place)):
            await says(place, "/readyz", 200)
            with frozen(server):
                await says(place, "/readyz", 503, "Redis has not answered for")
                began_s = time.monotonic()
                assert (await says(place, "/livez", 200))["ok"]
                assert time.monotonic() - began_s < 3.0
            await says(place, "/readyz", 200)


async def test_a_full_worker_is_ready(redis_url: str, sim: Simulator, client: TurnClient) -> None:
    """It asks for nothing while all slots are taken, and that is no fault."""
    place = Place("127.0.0.1", free_port())
    async with serving(redis_url, sim, http=str(place), slots="1", poll_s="0.05"):
        await says(place, "/readyz", 200)
        sim.inject("stall;at=tokens:2", times=1)
        await client.submit(UserMessage(conversation_id="c", text="Hello"))
        await wait_until(sim.ledger.entries, "the model is asked")
        until_s = time.monotonic() + 6

        async def has_stayed_ready() -> bool:
            assert (await answer_of(place, "/readyz")).status == 200
            return time.monotonic() > until_s

        await wait_until(has_stayed_ready, "longer than it may not look for work")


async def test_an_address_in_use_is_told(redis_url: str, sim: Simulator) -> None:
    """The worker does not start, and says which setting is meant."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with serving(redis_url, sim, http=str(port)) as worker:
            await asyncio.to_thread(worker.gone_within, 20)
            assert worker.process.returncode == 2
            assert f"TURNLINE_HTTP: 127.0.0.1:{port} cannot be listened at" in worker.says()


async def test_a_worker_answers_at_a_path(redis_url: str, sim: Simulator, tmp_path: Path) -> None:
    """To its user alone, again after it was killed; the file goes with an orderly end."""
    path = tmp_path / "w.sock"
    place = Place(path=str(path))
    async with serving(redis_url, sim, http=str(place)) as worker:
        await says(place, "/readyz", 200)
        assert path.stat().st_mode & 0o777 == 0o600
        worker.signal(signal.SIGKILL)
        await asyncio.to_thread(worker.gone_within, 10)
    assert path.exists()
    async with serving(redis_url, sim, http=str(place)) as worker:
        await says(place, "/readyz", 200)
        worker.signal(signal.SIGTERM)
        await asyncio.to_thread(worker.gone_within, 10)
    assert not path.exists()


async def test_a_loop_that_stands_still_is_told(
    redis_url: str, sim: Simulator, client: TurnClient, tmp_path: Path
) -> None:
    """By the thread that answers: the process does not look as if it had gone."""
    (tmp_path / "still_tools.py").write_text(
        "import time\nfrom turnline.worker.tools import tool\n\n"
        '@tool\nasync def stand() -> str:\n    "Stand still."\n    time.sleep(60)\n    return ""\n'
    )
    place = Place("127.0.0.1", free_port())
    settings = {"tools": "still_tools", "PYTHONPATH": str(tmp_path), "stall_s": "4"}
    async with serving(redis_url, sim, http=str(place), **settings):
        await says(place, "/readyz", 200)
        sim.inject("tool;name=stand", times=1)
        await client.submit(UserMessage(conversation_id="c", text="Hello"))
        found = await says(place, "/livez", 503, "the event loop has stood still for 4.")
        assert found["stage"] == "serving"
