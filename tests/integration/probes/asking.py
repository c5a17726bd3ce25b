"""Asks what answers over HTTP, and waits for what it says."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import redis as redis_sync

from tests.support.wait import wait_until
from turnline.ops.embedded import EmbeddedRedis
from turnline.worker.http_places import Place
from turnline.worker.probes.small_http import Answer, ask


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def answer_of(place: Place, path: str) -> Answer | None:
    """What it answers; None where nobody does."""
    with suppress(OSError, TimeoutError):
        return await ask(place, path, limit_s=10)
    return None


async def says(place: Place, path: str, status: int, fault: str = "") -> dict[str, Any]:
    """Wait until it answers with this status and, among others, this fault; return the whole."""

    async def is_so() -> dict[str, Any] | None:
        answer = await answer_of(place, path)
        if answer is None or answer.status != status or fault not in answer.body.decode():
            return None
        found: dict[str, Any] = json.loads(answer.body)
        return found

    return await wait_until(is_so, f"{path} answers {status} {fault}")


def value_on(page: bytes, name: str) -> float:
    """The sum over all samples of a metric."""
    lines = (it.rpartition(" ") for it in page.decode().splitlines())
    return sum(float(value) for named, _, value in lines if named.partition("{")[0] == name)


@contextmanager
def frozen(server: EmbeddedRedis) -> Iterator[None]:
    """Keep a server from running, without closing anything."""
    with redis_sync.Redis.from_url(server.url) as admin:
        pid = int(admin.info()["process_id"])
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
