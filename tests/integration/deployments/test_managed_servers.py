"""Servers as they are rented: commands taken away, idle connections closed, few places."""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from tests.support.driving import ended, fleet, user
from tests.support.wait import wait_until
from turnline.contracts import SyncTurnClient, TurnClient, TurnCompleted
from turnline.ops.deployments import Node
from turnline.ops.simulator import Simulator

TAKEN_AWAY = ("ACL", "BGREWRITEAOF", "CONFIG", "DEBUG", "FLUSHALL", "FLUSHDB", "INFO", "KEYS")
SHAPES: Mapping[str, Mapping[str, str | int]] = {
    "commands taken away": {f"rename-command {it}": '""' for it in TAKEN_AWAY},
    "idle connections closed": {"timeout": 1},
    "few places": {"maxclients": 12},
}


@contextmanager
def server(shape: str) -> Iterator[Node]:
    node = Node(shape, {"save": '""', **SHAPES[shape]})
    try:
        node.start()
        node.wait_ready()
        yield node
    finally:
        node.close()


def names_of_idle(node: Node) -> int:
    """How many connections would be closed for being idle: those that listen never are."""
    return sum("sub=0 ssub=0" in line for line in node.ask("CLIENT", "LIST").splitlines())


@pytest.mark.promise("P11")
@pytest.mark.parametrize("shape", SHAPES)
async def test_a_fleet_lives_on_a_rented_server(
    shape: str, sim: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Turns before and after a quiet time, both clients; nobody complains."""
    caplog.set_level(logging.WARNING, "turnline")
    with server(shape) as node:
        async with (
            TurnClient.connect(node.url) as client,
            fleet(node.url, sim, count=2, lease_s="30", heartbeat_s="5", poll_s="3"),
        ):
            with SyncTurnClient.connect(node.url) as blocking:
                for n in range(3):
                    receipt = await client.submit(user(f"hello {n}"))
                    events = [it async for it in client.events(receipt)]
                    assert isinstance(events[-1], TurnCompleted)
                    other = await asyncio.to_thread(blocking.submit, user("hello", "b"))
                    await ended(client, other, TurnCompleted)
                    assert await asyncio.to_thread(lambda it=other: list(blocking.events(it)))
                    if shape == "idle connections closed":
                        await wait_until(lambda: names_of_idle(node) <= 2, "they are closed")
            assert (await client.usage("c")).turns == 3
    assert [it.getMessage() for it in caplog.records if it.levelno >= logging.WARNING] == []
