"""A real cluster: it loses primaries, hands over as planned, moves slots, and comes to rest."""

import threading
from collections.abc import Iterator

import pytest
import redis
from redis.cluster import RedisCluster

from tests.support.wait import wait_until_sync
from turnline.ops.deployments import Cluster, DeploymentError, Node, NotSettled

SLOT = 12_182
"""Of the key `foo` (an example of the specification of Redis Cluster)."""
TAKEOVER_S = 60


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    """Three primaries, each with a replica."""
    with Cluster() as it:
        yield it


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """The shared one, whatever the test before did to it."""
    shared_cluster.mend()
    return shared_cluster


def client_of(cluster: Cluster) -> RedisCluster:
    return RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port, protocol=2)


def wait_for_another(cluster: Cluster, slot: int, former: Node) -> Node:
    """Return the primary that took a slot over."""

    def other() -> Node | None:
        found = cluster.primary_of(slot)
        return found if found is not former else None

    found = wait_until_sync(other, "a replica takes over", TAKEOVER_S)
    assert found is not None
    return found


def test_it_starts_whole(cluster: Cluster) -> None:
    """Three primaries serve all slots, each has one replica, and the address names all nodes."""
    assert len(cluster.nodes) == 6
    assert len(cluster.primaries) == 3
    replicas = [replica for it in cluster.primaries for replica in cluster.replicas_of(it)]
    assert len(replicas) == 3
    assert {cluster.role_of(it) for it in replicas} == {"replica"}
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes)
    assert cluster.address == f"redis+cluster://{hosts}"
    assert {cluster.primary_of(slot) for slot in (0, 8000, 16383)} == set(cluster.primaries)


def test_a_replica_takes_over_from_a_killed_primary(cluster: Cluster) -> None:
    """What was written stays; the killed one comes back as a replica, in sync."""
    with client_of(cluster) as client:
        client.set("foo", "kept")
    former = cluster.primary_of(SLOT)
    assert former.command("WAIT", 1, 5000) >= 0

    former.kill()

    assert not former.is_running
    primary = wait_for_another(cluster, SLOT, former)
    cluster.wait_settled()
    assert primary.command("GET", "foo") == "kept"
    former.restart()
    cluster.wait_settled()
    assert cluster.replicas_of(primary) == [former]
    assert former.replication()["master_link_status"] == "up"


def test_a_frozen_primary_is_replaced_and_wakes_as_a_replica(cluster: Cluster) -> None:
    """It takes connections all the while, and answers nothing."""
    former = cluster.primary_of(SLOT)

    former.freeze()

    assert former.is_running
    assert not former.can_answer
    with pytest.raises(redis.TimeoutError):
        former.command("PING", timeout_s=0.2)
    primary = wait_for_another(cluster, SLOT, former)
    former.wake()
    cluster.wait_settled()
    assert cluster.replicas_of(primary) == [former]


def test_a_dead_replica_leaves_the_cluster_settled(cluster: Cluster) -> None:
    """Only those that can answer count."""
    primary = cluster.primary_of(SLOT)
    (replica,) = cluster.replicas_of(primary)

    replica.kill()
    cluster.wait_settled()

    assert cluster.replicas_of(primary) == [replica]
    assert cluster.primary_of(SLOT) is primary


def test_a_planned_failover_swaps_the_roles(cluster: Cluster) -> None:
    """All nodes know when it returns, the former primary included."""
    former = cluster.primary_of(SLOT)
    (replica,) = cluster.replicas_of(former)

    cluster.fail_over(replica)

    assert cluster.primary_of(SLOT) is replica
    assert cluster.role_of(former) == "replica"
    with pytest.raises(redis.ResponseError, match=str(replica.port)):
        former.command("GET", "foo")


def test_a_primary_cannot_take_over(cluster: Cluster) -> None:
    """The server's refusal is told."""
    with pytest.raises(redis.ResponseError, match="CLUSTER FAILOVER"):
        cluster.fail_over(cluster.primary_of(SLOT))


def test_a_slot_moves_with_its_keys_while_clients_write(cluster: Cluster) -> None:
    """No key and no write is lost, bytes that are no text included."""
    source = cluster.primary_of(SLOT)
    to = next(node for node in cluster.primaries if node is not source)
    stopping = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        with client_of(cluster) as client:
            while not stopping.is_set():
                client.incr("{foo}counter")
                written += 1

    with client_of(cluster) as client:
        client.delete("{foo}counter")
        for number in range(250):
            client.set(b"{foo}\xff\x00%d" % number, number)
        before = source.command("CLUSTER", "COUNTKEYSINSLOT", SLOT)
        writer = threading.Thread(target=write)
        writer.start()
        try:
            wait_until_sync(lambda: written > 10, "the writer writes")

            moved = cluster.move_slot(SLOT, to)

            now = written
            wait_until_sync(lambda: written > now + 10, "the writer goes on")
        finally:
            stopping.set()
            writer.join()

        assert moved >= before >= 250
        assert cluster.primary_of(SLOT) is to
        cluster.wait_settled()
        assert source.command("CLUSTER", "COUNTKEYSINSLOT", SLOT) == 0
        assert client.get("{foo}counter") == b"%d" % written
        assert client.get(b"{foo}\xff\x00249") == b"249"
    assert cluster.move_slot(SLOT, to) == 0


def test_a_half_moved_slot_is_not_settled_and_can_be_moved_on(cluster: Cluster) -> None:
    """The text names the slot; the same order ends what broke off."""
    source = cluster.primary_of(SLOT)
    to = next(node for node in cluster.primaries if node is not source)
    source.command("CLUSTER", "SETSLOT", SLOT, "MIGRATING", to.command("CLUSTER", "MYID"))

    with pytest.raises(NotSettled, match=rf"{source.name} is moving slots \[{SLOT}\]"):
        cluster.wait_settled(0.5)

    cluster.move_slot(SLOT, to)
    cluster.wait_settled()
    assert cluster.primary_of(SLOT) is to


def test_clients_are_cut_off(cluster: Cluster) -> None:
    """Ordinary connections and subscribers; replicas stay connected."""
    node = cluster.primary_of(SLOT)
    with redis.Redis(port=node.port, protocol=2, single_connection_client=True) as client:
        client.ping()
        subscriber = redis.Redis(port=node.port, protocol=2).pubsub()
        subscriber.subscribe("channel")
        assert subscriber.get_message(timeout=5)["type"] == "subscribe"

        assert node.cut_connections() >= 2

        with pytest.raises(redis.ConnectionError):
            subscriber.connection.read_response()
        subscriber.close()
    assert node.replication()["connected_slaves"] == 1


def test_a_cluster_in_which_nobody_answers_says_so(cluster: Cluster) -> None:
    """Not that a slot has moved."""
    for node in cluster.nodes:
        node.freeze()

    with pytest.raises(DeploymentError, match="own slot 0"):
        cluster.primary_of(0)
