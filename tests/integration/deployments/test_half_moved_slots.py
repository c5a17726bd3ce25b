"""A slot in the middle of its move: who asks for it waits in order, and nobody else does."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple, cast

import pytest

from tests.support.wait import wait_until
from turnline.contracts import StoreUnavailable
from turnline.contracts.opening import open_async
from turnline.contracts.patience import PatientRedis
from turnline.contracts.read_batches import Batches, Cursor
from turnline.contracts.readers import READ
from turnline.contracts.routed import RoutedRedis
from turnline.contracts.topology import slot_of
from turnline.contracts.waiting import Entry
from turnline.ops.deployments import Cluster, Node

SOON_S = 5
"""Much less than a slot's move is waited for here."""


class HalfMoved(NamedTuple):
    """A slot that is being moved, another one of the same server, and who reads there."""

    tag: str
    """With streams `a` and `b` in the slot."""
    other_tag: str
    source: Node
    to: Node
    move: Callable[[], object]
    """Move the slot to the end."""
    redis: PatientRedis
    batches: Batches


@pytest.fixture
async def half_moved(cluster: Cluster) -> AsyncIterator[HalfMoved]:
    """Nothing of the slot has been moved yet; what is not there is at the other server by now."""
    tag, *tags = (f"{{s{n}}}" for n in range(48))
    slot = slot_of(tag)
    source = cluster.primary_of(slot)
    to = next(node for node in cluster.primaries if node is not source)
    other_tag = next(it for it in tags if cluster.primary_of(slot_of(it)) is source)
    redis = cast("PatientRedis", open_async(cluster.address, patience_s=30))
    for key in (f"{tag}a", f"{tag}b", f"{tag}k", f"{other_tag}k"):
        await redis.execute_command("DEL", key)
    for key in (f"{tag}a", f"{tag}b"):
        await redis.execute_command("XADD", key, "1-1", "f", "v")
    to.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.command("CLUSTER", "MYID"))
    source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", to.command("CLUSTER", "MYID"))
    batches = Batches(redis)

    def move() -> None:
        cluster.move_slot(slot, to)

    try:
        yield HalfMoved(tag, other_tag, source, to, move, redis, batches)
    finally:
        await batches.aclose()
        await redis.aclose()
        move()
        cluster.wait_settled()


async def refused(half_moved: HalfMoved) -> None:
    """Wait until a command has been refused because the slot is being moved."""
    servers = cast("RoutedRedis", half_moved.redis.redis).servers
    slot = slot_of(half_moved.tag)
    await wait_until(lambda: servers.known(slot) is None, "the topology is in doubt")


@pytest.mark.promise("P11")
@pytest.mark.parametrize("is_behind", [False, True])
async def test_others_do_not_wait_for_a_slot_that_moves(
    half_moved: HalfMoved, *, is_behind: bool
) -> None:
    """Neither those that travel with a command of the slot, nor those that come behind it."""
    tag, other_tag, *_, move, _, batches = half_moved
    moving = batches.execute(("GET", f"{tag}k"))
    if is_behind:
        await refused(half_moved)

    async with asyncio.timeout(SOON_S):
        for _ in range(3):
            asked = [batches.execute(("INCR", f"{other_tag}k")) for _ in range(3)]
            await asyncio.gather(*asked)

    assert await batches.execute(("GET", f"{other_tag}k")) == b"9"
    assert not moving.done()
    await asyncio.to_thread(move)
    async with asyncio.timeout(SOON_S):
        assert await moving is None


@pytest.mark.promise("P11")
async def test_others_do_not_wait_for_a_slot_that_is_elsewhere(cluster: Cluster) -> None:
    """By the address of one server it is never found, which is told when patience is over."""
    node = cluster.primaries[0]
    tags = [f"{{s{n}}}" for n in range(48)]
    here = next(it for it in tags if cluster.primary_of(slot_of(it)) is node)
    elsewhere = next(it for it in tags if cluster.primary_of(slot_of(it)) is not node)
    redis = cast("PatientRedis", open_async(node.url, patience_s=2))
    batches = Batches(redis)

    lost, found = (batches.execute(("GET", f"{tag}k")) for tag in (elsewhere, here))
    await asyncio.wait((lost, found), return_when=asyncio.FIRST_COMPLETED)

    assert (found.done(), lost.done()) == (True, False)
    with pytest.raises(StoreUnavailable, match="MOVED"):
        await lost
    await batches.aclose()
    await redis.aclose()


@pytest.mark.promise("P11")
async def test_closing_ends_the_wait_for_a_slot_that_moves(half_moved: HalfMoved) -> None:
    """Of what is sent again, and of what has not been sent yet."""
    batches = half_moved.batches
    moving = [batches.execute(("GET", f"{half_moved.tag}k"))]
    await refused(half_moved)
    moving.append(batches.execute(("GET", f"{half_moved.tag}k")))

    await batches.aclose()

    for it in moving:
        with pytest.raises(RuntimeError, match="closed"):
            await asyncio.wait_for(it, SOON_S)


@pytest.mark.promise("P11")
async def test_commands_of_a_slot_that_moves_keep_their_order(half_moved: HalfMoved) -> None:
    """Those that were refused come before those that were asked for meanwhile."""
    tag, other_tag, *_, move, _, batches = half_moved
    asked: list[asyncio.Future[Any]] = []

    async def append(numbers: range) -> None:
        async with asyncio.timeout(SOON_S):
            for n in numbers:
                asked.append(batches.execute(("APPEND", f"{tag}k", f"{n},")))
                await batches.execute(("GET", f"{other_tag}k"))

    await append(range(20))
    await asyncio.gather(asyncio.to_thread(move), append(range(20, 40)))
    await asyncio.gather(*asked)

    written = "".join(f"{n}," for n in range(40)).encode()
    assert await batches.execute(("GET", f"{tag}k")) == written


class Waiting:
    """A reader who waits for whatever comes."""

    def __init__(self, *, is_waiting: bool = True) -> None:
        self.is_waiting = is_waiting
        self.got: list[tuple[str, Any]] = []

    def noticed(self, *_: object) -> None:
        raise AssertionError("nothing is published here")

    def arrived(self, cursor: Cursor, entries: list[Entry]) -> None:
        self.got.append((cursor.name, [fields for _, fields in entries]))

    def failed(self, cursor: Cursor, error: Exception) -> None:
        self.got.append((cursor.name, error))


@pytest.mark.promise("P11")
async def test_a_reader_of_a_slot_that_moves_reads_on_when_it_has_moved(
    half_moved: HalfMoved,
) -> None:
    """Though a command on a stream that is still there was carried out behind the read."""
    tag, other_tag, source, to, move, _, batches = half_moved
    source.command("MIGRATE", "127.0.0.1", to.port, "", 0, 5_000, "KEYS", f"{tag}b")
    reader = Waiting()
    for name in (f"{tag}a", f"{tag}b", f"{other_tag}k"):
        cursor = Cursor(reader, name, READ)
        cursor.stand("0-0")
        batches.read(cursor)
    last = batches.execute(("XREVRANGE", f"{tag}a", "+", "-", "COUNT", 1))

    await wait_until(lambda: reader.got, "what is not of the slot is read", SOON_S)
    assert reader.got == [(f"{other_tag}k", [])]
    assert len(await last) == 1
    await asyncio.to_thread(move)

    await wait_until(lambda: len(reader.got) == 3, "the rest is read")
    fields = [{b"f": b"v"}]
    assert sorted(reader.got[1:]) == [(f"{tag}a", fields), (f"{tag}b", fields)]


async def test_those_who_wait_no_more_keep_nobody_waiting(cluster: Cluster) -> None:
    """However many there are: they take no place in a batch."""
    redis = cast("PatientRedis", open_async(cluster.address, patience_s=30))
    batches = Batches(redis)
    await redis.execute_command("DEL", "{s0}a")
    gone, reader = Waiting(is_waiting=False), Waiting()
    for n in range(1_000):
        batches.read(Cursor(gone, f"{{s0}}{n}", READ))
    last = Cursor(reader, "{s0}a", READ)
    last.stand("0-0")
    batches.read(last)

    await wait_until(lambda: reader.got, "the last one is read", SOON_S)

    assert (reader.got, gone.got) == ([("{s0}a", [])], [])
    await batches.aclose()
    await redis.aclose()
