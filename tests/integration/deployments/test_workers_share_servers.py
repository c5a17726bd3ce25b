"""A worker of many shards in a real cluster: three connections to a server, wherever shards go."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

import msgspec
import pytest

from tests.support.processes import WorkerProcess, worker_process
from tests.support.shards import (
    LET_IN,
    SHARDS,
    as_worker,
    ask_all,
    connections,
    most_connections,
    serves_all,
)
from tests.support.wait import wait_until
from tests.support.yearly_schedules import SHARD, keep, turn_of
from turnline.contracts import Receipt, TurnClient, TurnCompleted, TurnUnknown
from turnline.contracts.keys import shard_of
from turnline.contracts.opening import open_servers
from turnline.contracts.replies import AnyTerminal
from turnline.contracts.servers import AsyncServers
from turnline.contracts.topology import slot_of
from turnline.ops.deployments import Cluster, Node
from turnline.ops.simulator import Simulator
from turnline.worker.batching import Pipelines

MOST = 3
PASSING = {"ASK", "MOVED", "TRYAGAIN"}


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    """Three primaries, three replicas."""
    with Cluster() as deployment:
        yield deployment


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """The shared one, whatever the test before did to it; a worker is let in under its name."""
    shared_cluster.mend()
    for node in shared_cluster.nodes:
        node.command(*LET_IN)
    return shared_cluster


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    """A Grok that does not wait."""
    async with Simulator() as simulator:
        yield simulator


class Served(NamedTuple):
    """A worker of all shards, and the way to it."""

    worker: WorkerProcess
    servers: AsyncServers
    address: str

    async def ask_all(self, name: str) -> None:
        """Have a turn answered in each shard, by a producer who knows nothing yet."""
        async with TurnClient.connect(self.address, shards=SHARDS) as client:
            await ask_all(client, name)

    async def by_all(self) -> None:
        """Wait until all shards are served."""
        await wait_until(lambda: serves_all(self.servers), "all shards are served", 60)


@asynccontextmanager
async def serving(cluster: Cluster, sim: Simulator) -> AsyncIterator[Served]:
    """Run a worker."""
    url, servers = as_worker(cluster.address), open_servers(cluster.address)
    try:
        with worker_process(url, sim.base_url, wire="chat", shards=str(SHARDS)) as worker:
            served = Served(worker, servers, cluster.address)
            await served.by_all()
            yield served
    finally:
        await servers.aclose()


def clients_of(node: Node) -> str:
    """What connections a node has; none if it is dead or frozen."""
    said: str = node.ask("CLIENT", "LIST") or ""
    return said


def events_of(worker: WorkerProcess) -> list[dict[str, Any]]:
    """What it logged."""
    return [msgspec.json.decode(line) for line in worker.says().splitlines() if line[:1] == "{"]


@pytest.mark.promise("P8")
async def test_each_server_of_a_cluster_has_three_connections(
    cluster: Cluster, sim: Simulator
) -> None:
    """Also while all shards are busy; replicas have none."""
    async with serving(cluster, sim) as served:
        async with most_connections([partial(clients_of, it) for it in cluster.nodes]) as most:
            for name in ("a", "b"):
                await served.ask_all(name)
        found = [
            (cluster.role_of(it), count) for it, count in zip(cluster.nodes, most, strict=True)
        ]

    assert sorted(found) == [("primary", MOST)] * 3 + [("replica", 0)] * 3


@pytest.mark.promise("P11")
async def test_a_call_in_the_wrong_place_is_sent_to_the_right_one(cluster: Cluster) -> None:
    """Its caller hears nothing of that: it was refused before anything was done."""
    slot = slot_of("{s0}")
    other = next(it for it in cluster.primaries if it is not cluster.primary_of(slot))
    servers = open_servers(cluster.address)
    pipelines = Pipelines(servers)
    batcher = pipelines.of("{s0}")
    try:
        await batcher.send("SET", "{s0}:text", "x", "PX", 60_000)
        await asyncio.to_thread(cluster.move_slot, slot, other)
        assert (
            await asyncio.gather(*(batcher.send("GET", "{s0}:text") for _ in range(3)))
            == [b"x"] * 3
        )
    finally:
        await pipelines.close()
        await servers.aclose()


async def test_a_schedule_submits_to_conversations_of_all_shards(
    cluster: Cluster, sim: Simulator
) -> None:
    """It stands in shard 0; its turns are where their conversations are, on other servers too."""
    names = [f"n{n}" for n in range(8)]
    async with serving(cluster, sim) as served:
        home = (await served.servers.place(SHARD.tag)).redis
        await keep(home, *names)
        async with TurnClient.connect(cluster.address, shards=SHARDS) as client:
            for name in names:
                turn = Receipt(
                    conversation_id=f"c-{name}", turn_id=turn_of(name), status="accepted"
                )
                end = await wait_until(partial(ended, client, turn), "the turn ends", 30)
                assert isinstance(end, TurnCompleted)
        assert {shard_of(f"c-{name}", SHARDS) for name in names} != {0}
        assert await home.execute_command("ZSCORE", SHARD.queue, SHARD.schedules_id)
        await home.execute_command("DEL", SHARD.schedules, SHARD.ticks)


async def ended(client: TurnClient, turn: Receipt) -> AnyTerminal | None:
    """How a turn ended that somebody else submitted; None while it is not known or runs."""
    try:
        return (await client.record(turn)).terminal()
    except TurnUnknown:
        return None


@pytest.mark.promise("P11")
async def test_a_worker_goes_where_a_slot_was_moved(cluster: Cluster, sim: Simulator) -> None:
    """One shard of a server that goes on with its others."""
    slot = slot_of("{s0}")
    other = next(it for it in cluster.primaries if it is not cluster.primary_of(slot))
    async with serving(cluster, sim) as served:
        await served.ask_all("a")
        await asyncio.to_thread(cluster.move_slot, slot, other)
        await served.by_all()
        await served.ask_all("b")
        assert cluster.primary_of(slot) is other
        assert all(connections(clients_of(it)) <= MOST for it in cluster.primaries)
        said = [it for it in events_of(served.worker) if it["event"].endswith(".refused")]
        assert {it["reason"].split()[0] for it in said} <= PASSING  # in the middle of the move


@pytest.mark.promise("P11")
@pytest.mark.parametrize("how", ["planned", "killed", "frozen"])
async def test_a_worker_goes_where_the_shards_of_a_server_went(
    cluster: Cluster, sim: Simulator, how: str
) -> None:
    """All of them, over three connections to their new server; what was wrong is said once."""
    primary = cluster.primary_of(slot_of("{s0}"))
    (replica,) = cluster.replicas_of(primary)
    disturb = {
        "planned": partial(cluster.fail_over, replica),
        "killed": primary.kill,
        "frozen": primary.freeze,
    }
    async with serving(cluster, sim) as served:
        await served.ask_all("a")
        await asyncio.to_thread(disturb[how])
        await wait_until(lambda: cluster.primary_of(slot_of("{s0}")) is replica, "it took over", 30)
        await served.by_all()
        await served.ask_all("b")

        assert all(connections(clients_of(it)) <= MOST for it in cluster.primaries)
        said = [(it["event"], it.get("where")) for it in events_of(served.worker)]
        for event in ("redis.unreachable", "heartbeat.failed"):
            assert all(said.count((event, node.address)) <= 1 for node in cluster.nodes)
        failed, replaced = (
            said.count((event, primary.address))
            for event in ("redis.unreachable", "redis.replaced")
        )
        assert replaced == failed  # nothing may have waited for the former one meanwhile
        assert how != "killed" or failed == 1
