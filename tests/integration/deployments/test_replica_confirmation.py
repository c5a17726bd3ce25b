"""A receipt says how many replicas have the message, and what they have is never lost."""

import asyncio
import logging
import time
from typing import Any

import pytest
from redis import Redis

from tests.integration.deployments.steady_producers import Producers
from tests.support.driving import ended, fleet
from tests.support.wait import wait_until
from turnline.contracts import (
    InboxFull,
    Interrupt,
    Receipt,
    StoreIncompatible,
    SyncTurnClient,
    TurnClient,
    TurnCompleted,
    UserMessage,
)
from turnline.contracts.keys import conversation_keys, shard_of
from turnline.contracts.opening import open_servers
from turnline.contracts.protocol import Limits
from turnline.contracts.replication import WAIT_MS
from turnline.contracts.topology import slot_of
from turnline.ops.deployments import Cluster, Node, Sentinels
from turnline.ops.simulator import Simulator
from turnline.worker.batching import Pipelines
from turnline.worker.store.replicas import Replicas


def said(conversation: str, turn_id: str = "t") -> UserMessage:
    return UserMessage(conversation_id=conversation, turn_id=turn_id, text="Hi")


@pytest.mark.promise("P11")
async def test_a_receipt_says_how_many_replicas_have_the_message(sentinels: Sentinels) -> None:
    """Both clients; also of a message that was in already; none where nobody asked."""
    async with TurnClient.connect(sentinels.address, wait_replicas=2) as client:
        assert (await client.submit(said("asked"))).replicas == 2
        assert (await client.submit(said("asked"))).replicas == 2
    with SyncTurnClient.connect(sentinels.address, wait_replicas=1) as blocking:
        receipt = await asyncio.to_thread(blocking.submit, said("blocking"))
    assert receipt.replicas is not None
    assert receipt.replicas >= 1
    async with TurnClient.connect(sentinels.address) as client:
        assert (await client.submit(said("unasked"))).replicas is None


@pytest.mark.promise("P11")
async def test_replicas_that_do_not_answer_are_not_counted(sentinels: Sentinels) -> None:
    """The message is in, in bounded time; also one that was in before, on another connection."""
    replicas = sentinels.replicas
    async with TurnClient.connect(sentinels.address) as client:
        await client.submit(said("frozen", "known"))
    for replica in replicas:
        replica.freeze()
    try:
        began_s = time.monotonic()
        async with TurnClient.connect(sentinels.address, wait_replicas=1) as client:
            known = await client.submit(said("frozen", "known"))
            (new,) = await client.submit_many([said("frozen", "new")])
        took_s = time.monotonic() - began_s
    finally:
        for replica in replicas:
            replica.wake()
        sentinels.mend()

    assert isinstance(new, Receipt)
    assert [(it.status, it.replicas) for it in (known, new)] == [("duplicate", 0), ("accepted", 0)]
    assert 4 * WAIT_MS / 1000 <= took_s < 4 * WAIT_MS / 1000 + 1.5


@pytest.mark.promise("P11")
async def test_all_servers_of_a_batch_are_asked(cluster: Cluster) -> None:
    """The receipts say what holds where each message is; one that lost its replica has none."""
    primary = cluster.primary_of(slot_of("{s0}"))
    (replica,) = cluster.replicas_of(primary)
    messages = [said(f"c{n}") for n in range(48)]
    async with TurnClient.connect(cluster.address, shards=6, wait_replicas=1) as client:
        whole = await client.submit_many(messages)
        replica.freeze()
        try:
            without = await client.submit_many(messages)
        finally:
            replica.wake()
            cluster.mend()

    assert {getattr(it, "replicas", it) for it in whole} == {1}
    hit = {n for n in range(6) if cluster.primary_of(slot_of(f"{{s{n}}}")) is primary}
    expected = [0 if shard_of(it.conversation_id, 6) in hit else 1 for it in messages]
    assert [getattr(it, "replicas", it) for it in without] == expected
    assert {0, 1} == {*expected}


@pytest.mark.promise("P11")
async def test_what_a_replica_has_survives_its_primary(sentinels: Sentinels) -> None:
    """The primary is killed under producers who wait for a replica; who has most succeeds it."""
    producers = Producers(sentinels.address, wait_replicas=1)

    def kill() -> Node:
        primary = sentinels.primary
        primary.kill()
        return primary

    await producers.while_they_submit(kill)

    assert len(producers.confirmed) > 60
    assert await producers.lost(producers.confirmed) == []
    sentinels.mend()


@pytest.mark.promise("P2", "P11")
async def test_what_was_refused_does_not_come_in_behind_what_was_accepted(
    sentinels: Sentinels,
) -> None:
    """Where replicas are missing, only what was accepted is submitted again."""
    limits = Limits(inbox=1, records=10)
    replicas = sentinels.replicas
    async with TurnClient.connect(sentinels.address, limits=limits) as client:
        await client.submit(said("full", "t0"))
    for replica in replicas:
        replica.freeze()
    try:
        async with TurnClient.connect(sentinels.address, limits=limits, wait_replicas=1) as client:
            submitting = asyncio.create_task(
                client.submit_many([said("full", "t1"), Interrupt(conversation_id="full")])
            )
            with Redis.from_url(sentinels.primary.url) as redis:
                keys = conversation_keys("{s0}", "full")
                await wait_until(lambda: redis.xlen(keys.inbox) == 2, "the first round is over")
                redis.xdel(keys.inbox, *(entry for entry, _ in redis.xrange(keys.inbox)))
                refused, accepted = await submitting
                log = redis.lrange(keys.log, 0, -1)
    finally:
        for replica in replicas:
            replica.wake()
        sentinels.mend()

    assert isinstance(refused, InboxFull)
    assert isinstance(accepted, Receipt)
    assert (accepted.status, accepted.replicas, accepted.position) == ("accepted", 0, 1)
    assert log == [b"t0", accepted.turn_id.encode()]


@pytest.mark.promise("P11")
async def test_all_who_wait_for_replicas_at_a_time_wait_once(sentinels: Sentinels) -> None:
    """A server answers one wait of a connection after the other."""
    replicas = sentinels.replicas
    servers = open_servers(sentinels.address)
    pipelines = Pipelines(servers)
    waiting = Replicas(pipelines, 1)
    await pipelines.of("{s0}").send("PING")
    for replica in replicas:
        replica.freeze()
    try:
        began_s = time.monotonic()
        await asyncio.gather(*(waiting.have_it(f"{{s{n % 6}}}") for n in range(60)))
        took_s = time.monotonic() - began_s
    finally:
        for replica in replicas:
            replica.wake()
        sentinels.mend()
        await pipelines.close()
        await servers.aclose()

    assert took_s < 8 * WAIT_MS / 1000


@pytest.mark.promise("P11")
async def test_a_worker_goes_on_once_replicas_have_the_end_of_a_turn(
    sentinels: Sentinels, sim: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """In bounded time where they do not keep up, which is logged once, and so is their return."""
    caplog.set_level(logging.INFO, "turnline.queue")
    replicas = sentinels.replicas
    async with (
        TurnClient.connect(sentinels.address) as client,
        fleet(sentinels.address, sim, wait_replicas="1"),
    ):
        await ended(client, await client.submit(said("first", "t")), TurnCompleted)
        for replica in replicas:
            replica.freeze()
        try:
            for n in range(2):
                await ended(client, await client.submit(said("frozen", f"t{n}")), TurnCompleted)
            await wait_until(lambda: "replicas.behind" in caplog.messages, "it is logged")
        finally:
            for replica in replicas:
                replica.wake()
            sentinels.mend()
        for n in range(2):
            await ended(client, await client.submit(said("woken", f"t{n}")), TurnCompleted)
        await wait_until(lambda: "replicas.back" in caplog.messages, "it is logged")
    told = [it for it in caplog.messages if it.startswith("replicas.")]
    assert told == ["replicas.behind", "replicas.back"]


@pytest.mark.parametrize("count", [-1, 17, 1.5, True, "1"])
def test_a_number_of_replicas_that_is_none_is_refused(count: Any) -> None:
    """Before anything is sent: WAIT would be refused behind the message."""
    with pytest.raises(ValueError, match="from 0 to 16"):
        TurnClient(None, wait_replicas=count)  # type: ignore[arg-type]


async def test_a_server_that_forbids_it_is_named(sentinels: Sentinels) -> None:
    """The producer asked for what cannot be had."""
    primary = sentinels.primary
    primary.ask("ACL", "SETUSER", "w", "on", ">pw", "~*", "&*", "+@all", "-wait")
    address = primary.url.replace("redis://", "redis://w:pw@")
    async with TurnClient.connect(address, wait_replicas=1) as client:
        with pytest.raises(StoreIncompatible, match="the command WAIT"):
            await client.submit(said("forbidden"))
