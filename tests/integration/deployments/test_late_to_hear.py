"""Who hears late that a primary is being replaced takes no answer of it for good."""

import asyncio
import itertools
import os
import threading
import time
import warnings
from contextlib import closing

import msgspec
import psutil
import pytest
import redis
from redis.exceptions import ConnectionError as LostConnection

from tests.support.wait import wait_until
from turnline.contracts import Receipt, SyncTurnClient, TurnClient, UserMessage
from turnline.contracts.addresses import read_address
from turnline.contracts.keys import conversation_keys, shard_keys
from turnline.contracts.opening import open_servers, open_sync
from turnline.contracts.sentinel_watch import SentinelWatch
from turnline.contracts.topology import Node, WatchedPrimary, topology_of
from turnline.ops.deployments import Sentinels
from turnline.ops.deployments.sentinels import NAME
from turnline.worker.batching import Pipelines

KEY = shard_keys(0).written


def promote(sentinels: Sentinels) -> None:
    """Have a replica made the primary; the former one takes writes for another second."""
    others = sentinels.replicas
    sentinels.sentinels[0].command("SENTINEL", "FAILOVER", NAME)
    until_s = time.monotonic() + 20
    while all(it.replication().get("role") != "master" for it in others):
        assert time.monotonic() < until_s, "no replica was promoted"


def is_kept(sentinels: Sentinels, *receipts: Receipt) -> None:
    """Raise `TurnUnknown` if one of these is not, for who knows nothing of what was before."""
    sentinels.wait_settled()
    with SyncTurnClient.connect(sentinels.address) as client:
        for receipt in receipts:
            client.record(receipt)


@pytest.mark.promise("P1", "P11")
async def test_a_busy_producer_loses_nothing(sentinels: Sentinels) -> None:
    """Its event loop stood still; what it sends first goes to the former primary."""
    async with TurnClient.connect(sentinels.address) as client:
        await client.submit(UserMessage(conversation_id="before", text="Hi"))
        promote(sentinels)  # and nothing else runs meanwhile
        receipt = await client.submit(UserMessage(conversation_id="busy", text="Hi"))

    is_kept(sentinels, receipt)


@pytest.mark.promise("P11")
async def test_messages_sent_together_by_a_busy_producer_are_not_lost(
    sentinels: Sentinels,
) -> None:
    """They go to the former primary in one round trip."""
    messages = [UserMessage(conversation_id=f"many{n}", text="Hi") for n in range(5)]
    async with TurnClient.connect(sentinels.address) as client:
        await client.submit(UserMessage(conversation_id="before", text="Hi"))
        promote(sentinels)
        outcomes = await client.submit_many(messages)

    receipts = [it for it in outcomes if not isinstance(it, Exception)]
    assert len(receipts) == 5
    is_kept(sentinels, *receipts)


@pytest.mark.promise("P11")
async def test_a_busy_worker_takes_what_it_wrote_for_lost(sentinels: Sentinels) -> None:
    """It does not repeat by itself: who asked is told, and looks again."""
    servers = open_servers(sentinels.address)
    pipelines = Pipelines(servers)
    batcher = pipelines.of("{s0}")
    try:
        await batcher.send("SET", KEY, "before")
        promote(sentinels)
        with pytest.raises((LostConnection, TimeoutError)):  # it heard of that later, or meanwhile
            await batcher.send("SET", KEY, "written late")
        await batcher.send("SET", KEY, "after")
    finally:
        await pipelines.close()
        await servers.aclose()
    sentinels.wait_settled()

    assert sentinels.primary.command("GET", KEY) == "after"


@pytest.mark.promise("P11")
def test_a_child_process_begins_anew(sentinels: Sentinels) -> None:
    """The thread that listens to sentinels was its parent's."""
    with SyncTurnClient.connect(sentinels.address) as client:
        client.submit(UserMessage(conversation_id="before", text="Hi"))
        from_child, to_parent = os.pipe()
        from_parent, to_child = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: there are threads
            child = os.fork()
        if child == 0:
            try:
                os.read(from_parent, 1)
                receipt = client.submit(UserMessage(conversation_id="child", text="Hi"))
                os.write(to_parent, msgspec.json.encode(receipt))
            finally:
                os._exit(0)
        promote(sentinels)
        os.write(to_child, b"x")
        receipt = msgspec.json.decode(os.read(from_child, 4096), type=Receipt)
        os.waitpid(child, 0)
        for pipe in (from_child, to_parent, from_parent, to_child):
            os.close(pipe)

    is_kept(sentinels, receipt)


@pytest.mark.promise("P11")
async def test_a_successor_that_no_sentinel_names_is_left_again(sentinels: Sentinels) -> None:
    """The sentinel that led stopped before it had seen the promotion: it counts for nobody."""
    sentinels.wait_settled()
    former, leader = sentinels.primary, sentinels.sentinels[0]
    async with TurnClient.connect(sentinels.address) as client:
        await client.submit(UserMessage(conversation_id="before", text="Hi"))
        promote(sentinels)
        leader.freeze()
        try:
            await client.submit(UserMessage(conversation_id="at-first", text="Hi"))
            async with asyncio.timeout(6):
                for name in map("back{}".format, itertools.count()):
                    await client.submit(UserMessage(conversation_id=name, text="Hi"))
                    if former.command("EXISTS", conversation_keys(shard_keys(0).tag, name).turns):
                        break
        finally:
            leader.wake()
    sentinels.wait_settled(90)  # two primaries take their time


@pytest.mark.promise("P11")
async def test_a_first_answer_counts_once_it_is_known_which_sentinels_can_be_heard(
    sentinels: Sentinels,
) -> None:
    """One of them is heard, one is frozen, and nobody is at the address of the last."""
    sentinels.wait_settled()
    heard, frozen, _ = sentinels.sentinels
    hosts = f"{heard.address},{frozen.address},127.0.0.1:1"
    address = read_address(f"redis+sentinel://{hosts}/{NAME}")
    topology = topology_of(address)
    assert isinstance(topology, WatchedPrimary)
    watch = SentinelWatch(address, topology, lambda: None, lambda: None)
    assert watch.has_unheard
    frozen.freeze()
    listening = asyncio.create_task(watch.run())
    try:
        async with asyncio.timeout(5):
            await watch.catch_up()
        assert not watch.has_unheard
        assert "sub=8" in heard.command("CLIENT", "LIST", "TYPE", "pubsub")
    finally:
        frozen.wake()
        listening.cancel()


async def test_an_answer_that_comes_late_does_not_make_a_named_primary_unsure(
    sentinels: Sentinels,
) -> None:
    """A sentinel has named it meanwhile: nobody is asked again."""
    sentinels.wait_settled()
    address, doubts = read_address(sentinels.address), list[str]()
    topology = topology_of(address)
    assert isinstance(topology, WatchedPrimary)
    watch = SentinelWatch(address, topology, lambda: None, lambda: doubts.append("doubt"))
    chosen = Node("127.0.0.1", sentinels.primary.port)
    topology.pause()
    sentinels.primary.freeze()
    asking = asyncio.create_task(watch._ask(chosen))
    await wait_until(lambda: is_connected(chosen.port), "it is asked")

    topology.replace(chosen)
    next(it for it in sentinels.nodes if it.is_frozen).wake()
    await asking

    assert doubts == []


def is_connected(port: int) -> bool:
    """Whether this process has a connection to a port."""
    mine = psutil.Process().net_connections("tcp")
    return any(it.raddr and it.raddr.port == port for it in mine if it.status == "ESTABLISHED")


@pytest.mark.promise("P11")
async def test_a_failover_of_which_no_sentinel_knows_any_more_is_not_waited_for(
    sentinels: Sentinels,
) -> None:
    """Its leader was killed when it had just begun; callers hear nothing of it."""
    sentinels.wait_settled()
    leader = sentinels.sentinels[0]
    async with TurnClient.connect(sentinels.address) as client:
        await client.submit(UserMessage(conversation_id="before", text="Hi"))
        with closing(redis.Redis(port=leader.port, protocol=2)) as asked:
            heard = asked.pubsub()
            heard.subscribe("+failover-state-select-slave")
            heard.get_message(timeout=5)
            leader.command("SENTINEL", "FAILOVER", NAME)
            assert heard.get_message(timeout=5) is not None
            leader.kill()
            heard.close()
        receipt = await client.submit(UserMessage(conversation_id="on", text="Hi"))
    sentinels.mend()

    is_kept(sentinels, receipt)


@pytest.mark.promise("P11")
def test_a_blocking_producer_waits_for_what_sentinels_have_said(sentinels: Sentinels) -> None:
    """Its thread that listens was held up."""
    go_on = threading.Event()
    redis = open_sync(sentinels.address, patience_s=10)
    try:
        redis.execute_command("SET", KEY, "before")
        (watching,) = [it for it in threading.enumerate() if it.name == "sentinels"]
        vars(watching)["_loop"].call_soon_threadsafe(go_on.wait)
        promote(sentinels)
        threading.Timer(0.1, go_on.set).start()  # once the first one was answered
        redis.execute_command("SET", KEY, "after")
    finally:
        go_on.set()
        redis.close()
    sentinels.wait_settled()

    assert sentinels.primary.command("GET", KEY) == "after"
