"""A second without Redis: producers who submit meanwhile get their receipts, all of them."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from turnline.contracts import (
    Receipt,
    ResultTimeout,
    StoreUnavailable,
    SyncTurnClient,
    TurnClient,
    UserMessage,
)
from turnline.ops.deployments import Proxy
from turnline.ops.embedded import EmbeddedRedis

PRODUCERS = 20
AWAY_S = 1.0


class Outage(NamedTuple):
    """A server that can be away."""

    url: str
    begin: Callable[[], object]
    end: Callable[[], object]


@contextmanager
def outage(kind: str, directory: Path) -> Generator[Outage]:
    """Start a server that is killed, or whose proxy accepts and closes."""
    port = None if kind == "unix" else 0
    with EmbeddedRedis(directory, port=port) as server:
        if kind != "proxy":
            yield Outage(server.url, server.kill, server.restart)
            return
        with Proxy(int(server.url.rpartition(":")[2].partition("/")[0])) as proxy:

            def begin() -> None:
                proxy.accept_and_close()
                proxy.cut()

            yield Outage(proxy.url, begin, proxy.forward)


def message(n: int) -> UserMessage:
    return UserMessage(conversation_id=f"c{n}", text="Hi")


async def submitted(url: str) -> list[Receipt]:
    """Receipts of asyncio's client, of which one has a connection already."""
    async with TurnClient.connect(url) as client:
        return await asyncio.gather(*(client.submit(message(n)) for n in range(PRODUCERS)))


def submitted_blocking(url: str) -> list[Receipt]:
    """The same of the blocking client, shared by threads."""
    with SyncTurnClient.connect(url) as client, ThreadPoolExecutor(PRODUCERS) as pool:
        return [*pool.map(lambda n: client.submit(message(n)), range(PRODUCERS))]


@pytest.mark.promise("P11")
@pytest.mark.parametrize("kind", ["tcp", "unix", "proxy"])
@pytest.mark.parametrize("client", ["async", "sync"])
async def test_a_restart_costs_nobody_a_submit(kind: str, client: str, tmp_path: Path) -> None:
    """Twenty at once, begun while the server is away: twenty receipts."""
    with outage(kind, tmp_path) as away:
        await submitted(away.url)
        away.begin()
        timer = threading.Timer(AWAY_S, away.end)
        timer.start()

        if client == "async":
            receipts = await submitted(away.url)
        else:
            receipts = await asyncio.to_thread(submitted_blocking, away.url)

        timer.join()
        assert [it.status for it in receipts] == ["accepted"] * PRODUCERS


@pytest.mark.promise("P11")
async def test_time_limits_hold_against_a_server_that_is_stopped(tmp_path: Path) -> None:
    """It takes connections and commands, and answers none."""
    loop = asyncio.get_running_loop()
    with EmbeddedRedis(tmp_path, port=0) as server:
        async with TurnClient.connect(server.url, patience_s=2) as client:
            receipt = await client.submit(message(0))
            with SyncTurnClient.connect(server.url, patience_s=2) as blocking:
                blocking.usage("c0")
                events = client.events(receipt, keep_alive_s=0.2)
                assert await anext(events) is None
                os.kill(server.pid, signal.SIGSTOP)
                try:
                    began_s = loop.time()
                    assert await anext(events) is None
                    assert next(blocking.events(receipt, keep_alive_s=0.2)) is None
                    assert loop.time() - began_s < 2 * (0.2 + 0.5)
                    for limit_s in (0.5, 1.5):
                        began_s = loop.time()
                        with pytest.raises(ResultTimeout):
                            await client.result(receipt, timeout_s=limit_s)
                        assert loop.time() - began_s < limit_s + 0.5
                        began_s = loop.time()
                        with pytest.raises(ResultTimeout):
                            await asyncio.to_thread(blocking.result, receipt, timeout_s=limit_s)
                        assert loop.time() - began_s < limit_s + 0.5
                    with pytest.raises(StoreUnavailable):
                        await client.submit(message(1))
                    with pytest.raises(StoreUnavailable):
                        await asyncio.to_thread(blocking.history, "c0")
                finally:
                    os.kill(server.pid, signal.SIGCONT)
