"""Readers go on where the primaries are: nothing is missed, doubled or out of order."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.wait import wait_until
from turnline.contracts import Receipt, TextDelta, TurnClient, UserMessage
from turnline.contracts.connection import AsyncRedis
from turnline.contracts.opening import open_async
from turnline.contracts.protocol import Requests
from turnline.contracts.replies import encode_event
from turnline.contracts.scripts import run
from turnline.contracts.topology import slot_of
from turnline.ops.deployments import Cluster, Node, Sentinels
from turnline.worker.store import lua

SHARDS = 6
CONVERSATIONS = [f"c{n}" for n in range(24)]
BEFORE, EVENTS = 20, 60


class Worker:
    """Writes events of all conversations, and repeats what was not answered."""

    def __init__(self, redis: AsyncRedis) -> None:
        self._redis = redis
        self._requests = Requests(shards=SHARDS)

    async def write(self, numbers: range) -> None:
        await asyncio.gather(*(self._write(it, numbers) for it in CONVERSATIONS))

    async def _write(self, conversation_id: str, numbers: range) -> None:
        keys = self._requests.names(conversation_id)[1]
        for n in numbers:
            await self._redis.execute_command("SET", keys.in_progress, "7 w")
            await self._redis.execute_command("HSET", keys.state, "head", "1-1")
            event = TextDelta(conversation_id=conversation_id, turn_id="t", text=str(n), offset=n)
            args = lua.EmitArgs("7 w", b"", 10_000, 600_000, "1-1", n + 1, [encode_event(event)])
            await run(self._redis, lua.emit(keys, args))


async def read(client: TurnClient, receipt: Receipt) -> list[int]:
    """Numbers of the events up to the last one."""
    seen: list[int] = []
    async for event in client.events(receipt):
        seen.append(event.offset)  # type: ignore[union-attr]
        if seen[-1] == EVENTS - 1:
            break
    return seen


async def read_while(address: str, disturb: Callable[[], Any]) -> list[list[int]]:
    """Read all conversations; return what was seen of each."""
    redis = open_async(address, patience_s=30)
    worker = Worker(redis)
    async with TurnClient.connect(address, shards=SHARDS, patience_s=30) as client:
        messages = [UserMessage(conversation_id=it, turn_id="t", text="Hi") for it in CONVERSATIONS]
        for it in CONVERSATIONS:
            await client.forget(it)
        receipts = [await client.submit(it) for it in messages]
        reading = [asyncio.create_task(read(client, it)) for it in receipts]
        await worker.write(range(BEFORE))
        await asyncio.gather(worker.write(range(BEFORE, EVENTS)), asyncio.to_thread(disturb))
        async with asyncio.timeout(60):
            seen = await asyncio.gather(*reading)
    await redis.aclose()
    return seen


@pytest.mark.promise("P11")
async def test_readers_follow_a_planned_failover_of_a_cluster(cluster: Cluster) -> None:
    """Each sees all."""
    (replica,) = cluster.replicas_of(cluster.primary_of(slot_of("{s0}")))

    seen = await read_while(cluster.address, lambda: cluster.fail_over(replica))

    assert seen == [list(range(EVENTS))] * len(CONVERSATIONS)


@pytest.mark.promise("P11")
async def test_readers_follow_a_slot_that_moves(cluster: Cluster) -> None:
    """Each sees all."""
    slot = slot_of("{s1}")
    before = cluster.primary_of(slot)
    other = next(it for it in cluster.primaries if it is not before)

    seen = await read_while(cluster.address, lambda: cluster.move_slot(slot, other))

    assert seen == [list(range(EVENTS))] * len(CONVERSATIONS)


@pytest.mark.promise("P11")
async def test_readers_follow_the_successor_of_a_killed_primary(cluster: Cluster) -> None:
    """What the replica did not have yet is gone; the rest comes in order, once."""
    primary = cluster.primary_of(slot_of("{s0}"))

    for seen in await read_while(cluster.address, primary.kill):
        assert seen == sorted(set(seen))
        assert seen[-1] == EVENTS - 1

    cluster.mend()


@pytest.mark.promise("P11")
async def test_readers_follow_the_choice_of_sentinels(sentinels: Sentinels) -> None:
    """Each sees all."""
    seen = await read_while(sentinels.address, sentinels.fail_over)

    assert seen == [list(range(EVENTS))] * len(CONVERSATIONS)


async def test_readers_of_a_cluster_take_two_connections_a_server(cluster: Cluster) -> None:
    """However many shards there are."""
    before = {node: _connections(node) for node in cluster.primaries}
    async with TurnClient.connect(cluster.address, shards=48) as client:
        messages = [UserMessage(conversation_id=f"many{n}", text="Hi") for n in range(200)]
        receipts: list[Any] = await client.submit_many(messages)
        reading = [asyncio.create_task(anext(client.events(it))) for it in receipts]

        def all_are_heard() -> bool:
            channels = (node.ask("PUBSUB", "SHARDCHANNELS", "*") for node in cluster.primaries)
            return sum(len(it) for it in channels) == len(receipts)

        await wait_until(all_are_heard, "the notices of all are heard")
        for node in cluster.primaries:
            assert len(_connections(node) - before[node]) == 2
        for it in reading:
            it.cancel()


def _connections(node: Node) -> set[str]:
    """Those of clients, without the one that asks."""
    lists = [node.ask("CLIENT", "LIST", "TYPE", kind) for kind in ("normal", "pubsub")]
    lines = [line for it in lists for line in str(it).splitlines()]
    return {line.split()[0] for line in lines if "cmd=client" not in line}
