"""Both clients go where the primaries are, and their callers notice nothing."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.support.wait import wait_until
from turnline.contracts import StoreUnavailable, SyncTurnClient, TurnClient, UserMessage
from turnline.contracts.topology import slot_of
from turnline.ops.deployments import Cluster, Node, Proxy, Sentinels

SHARDS = 6


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three primaries, three replicas."""
    with Cluster() as deployment:
        yield deployment


@pytest.fixture(scope="module")
def sentinels() -> Iterator[Sentinels]:
    """A primary, two replicas, three sentinels."""
    with Sentinels() as deployment:
        yield deployment


class Producers:
    """An asyncio and a blocking producer who submit all the time, and what they see."""

    def __init__(self, address: str, wait_replicas: int = 0) -> None:
        self._address = address
        self._wait_replicas = wait_replicas
        self.confirmed: list[tuple[str, str]] = []
        self.receipts = 0
        self.blocking_receipts = 0
        self.longest_s = 0.0
        self.accepted: list[tuple[str, str]] = []
        self._is_over = threading.Event()

    async def submit(self) -> None:
        async with TurnClient.connect(
            self._address, shards=SHARDS, wait_replicas=self._wait_replicas
        ) as client:
            await asyncio.gather(*(self._talk(client, f"c{n}") for n in range(12)))

    async def _talk(self, client: TurnClient, conversation: str) -> None:
        while not self._is_over.is_set():
            began_s = time.monotonic()
            receipt = await client.submit(UserMessage(conversation_id=conversation, text="Hi"))
            self.longest_s = max(self.longest_s, time.monotonic() - began_s)
            self.accepted.append((conversation, receipt.turn_id))
            if (receipt.replicas or 0) >= self._wait_replicas:
                self.confirmed.append((conversation, receipt.turn_id))
            self.receipts += 1
            await asyncio.sleep(0.01)

    def submit_blocking(self) -> None:
        with SyncTurnClient.connect(self._address, shards=SHARDS) as client:
            while not self._is_over.wait(0.01):
                message = UserMessage(conversation_id="b", text="Hi")
                self.accepted.append(("b", client.submit(message).turn_id))
                self.blocking_receipts += 1

    async def while_they_submit(self, disturb: Callable[[], Any]) -> Any:
        """Disturb, and return what came of it once both went on for a while."""
        tasks = [
            asyncio.create_task(self.submit()),
            asyncio.create_task(asyncio.to_thread(self.submit_blocking)),
        ]
        try:
            await self._go_on(tasks, 5)
            found = await asyncio.to_thread(disturb)
            await self._go_on(tasks, 30)
        finally:
            self._is_over.set()
            await asyncio.gather(*tasks)
        return found

    async def _go_on(self, tasks: list[asyncio.Task[None]], times: int) -> None:
        wanted = self.receipts + 12 * times, self.blocking_receipts + times

        def enough() -> bool:
            ended = any(task.done() for task in tasks)
            return ended or (self.receipts, self.blocking_receipts) >= wanted

        await wait_until(enough, "both go on", timeout_s=30)

    async def lost(
        self, accepted: Sequence[tuple[str, str]] | None = None
    ) -> list[tuple[str, str]]:
        """What was accepted, all or these, and is not there."""
        accepted = self.accepted if accepted is None else accepted
        async with TurnClient.connect(self._address, shards=SHARDS) as client:
            known = {it: set(await _turns(client, it)) for it in {it for it, _ in accepted}}
        return [(it, turn) for it, turn in accepted if turn.encode() not in known[it]]


async def _turns(client: TurnClient, conversation: str) -> list[bytes]:
    keys: list[bytes] = await client._redis.execute_command(
        "HKEYS", client._keys(conversation).turns
    )
    return keys


@pytest.mark.promise("P11")
async def test_a_planned_failover_of_a_cluster_loses_nothing(cluster: Cluster) -> None:
    """Nobody is told of it."""
    producers = Producers(cluster.address)
    (replica,) = cluster.replicas_of(cluster.primary_of(slot_of("{s0}")))

    await producers.while_they_submit(lambda: cluster.fail_over(replica))

    assert await producers.lost() == []


@pytest.mark.promise("P11")
async def test_a_killed_primary_of_a_cluster_is_replaced(cluster: Cluster) -> None:
    """Its replica takes over; producers wait for it and are told of nothing."""
    producers = Producers(cluster.address)
    primary = cluster.primary_of(slot_of("{s0}"))

    await producers.while_they_submit(primary.kill)

    cluster.mend()


@pytest.mark.promise("P11")
async def test_a_frozen_primary_of_a_cluster_is_left(cluster: Cluster) -> None:
    """Whoever waits for its answer is told by the others that it was replaced."""
    producers = Producers(cluster.address)
    primary = cluster.primary_of(slot_of("{s0}"))

    await producers.while_they_submit(primary.freeze)

    cluster.mend()


@pytest.mark.promise("P11")
async def test_a_slot_may_move_while_producers_submit(cluster: Cluster) -> None:
    """To another primary, with what is in it."""
    producers = Producers(cluster.address)
    slot = slot_of("{s0}")
    before = cluster.primary_of(slot)
    other = next(it for it in cluster.primaries if it is not before)

    await producers.while_they_submit(lambda: cluster.move_slot(slot, other))

    assert cluster.primary_of(slot) is other
    assert await producers.lost() == []


@pytest.mark.promise("P11")
async def test_a_planned_failover_of_sentinels_loses_nothing(sentinels: Sentinels) -> None:
    """Though the old primary would have gone on taking messages for seconds."""
    producers = Producers(sentinels.address)
    before = sentinels.primary

    after = await producers.while_they_submit(sentinels.fail_over)

    assert after is not before
    assert await producers.lost() == []


@pytest.mark.promise("P11")
async def test_a_killed_primary_behind_sentinels_is_replaced(sentinels: Sentinels) -> None:
    """One of the replicas takes over."""
    producers = Producers(sentinels.address)

    def kill() -> Node:
        primary = sentinels.primary
        primary.kill()
        return primary

    await producers.while_they_submit(kill)

    sentinels.mend()


async def test_messages_for_all_servers_are_submitted_at_once(cluster: Cluster) -> None:
    """Also where none of the servers knows the script yet."""
    for node in cluster.primaries:
        node.command("SCRIPT", "FLUSH")
    messages = [UserMessage(conversation_id=f"many{n}", text="Hi") for n in range(50)]

    async with TurnClient.connect(cluster.address, shards=SHARDS) as client:
        outcomes = await client.submit_many(messages)

    assert [getattr(it, "status", it) for it in outcomes] == ["accepted"] * 50


@pytest.mark.promise("P11")
async def test_an_address_that_accepts_and_closes_is_waited_for(cluster: Cluster) -> None:
    """As a load balancer without a server does; then the caller is told, in time."""
    node = cluster.primaries[0]
    with Proxy(node) as proxy:
        proxy.accept_and_close()
        async with TurnClient.connect(proxy.url, patience_s=0.5) as client:
            with pytest.raises(StoreUnavailable) as caught:
                await client.submit(UserMessage(conversation_id="c", text="Hi"))
        began_s = time.monotonic()
        proxy.swallow()
        with (
            SyncTurnClient.connect(proxy.url, patience_s=0.5) as blocking,
            pytest.raises(StoreUnavailable),
        ):
            await asyncio.to_thread(blocking.submit, UserMessage(conversation_id="c", text="Hi"))
        assert time.monotonic() - began_s < 3
    assert caught.value.retry_after_s > 0
