"""Both clients go where the primaries are, and their callers notice nothing."""

import asyncio
import time

import pytest

from tests.integration.deployments.steady_producers import SHARDS, Producers
from turnline.contracts import StoreUnavailable, SyncTurnClient, TurnClient, UserMessage
from turnline.contracts.topology import slot_of
from turnline.ops.deployments import Cluster, Node, Proxy, Sentinels
from turnline.ops.deployments.sentinels import NAME


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
async def test_a_promoted_replica_is_used_before_sentinels_name_it(sentinels: Sentinels) -> None:
    """They look for its promotion once a second: that one is long here."""
    producers = Producers(sentinels.address)

    def fail_over() -> int:
        leader, others = sentinels.sentinels[0], sentinels.replicas
        leader.command("SENTINEL", "FAILOVER", NAME)
        until_s = time.monotonic() + 20
        while all(it.replication().get("role") != "master" for it in others):
            assert time.monotonic() < until_s, "no replica was promoted"
        leader.freeze()
        until_s, at_promotion = time.monotonic() + 3, producers.receipts
        while producers.receipts <= at_promotion + 12 and time.monotonic() < until_s:
            time.sleep(0.01)
        try:
            return producers.receipts - at_promotion
        finally:
            leader.wake()

    assert await producers.while_they_submit(fail_over) > 12  # more than may have been under way
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
