"""A real primary with replicas and sentinels: failovers, lost sentinels, replicas asked for."""

import time
from collections.abc import Iterator

import pytest
import redis

from tests.support.wait import wait_until_sync
from turnline.ops.deployments import Node, Sentinels

TAKEOVER_S = 30


@pytest.fixture(scope="module")
def shared_sentinels() -> Iterator[Sentinels]:
    """A primary, two replicas, three sentinels; a primary without a replica takes no writes."""
    with Sentinels(min_replicas_to_write=1, min_replicas_max_lag_s=2) as it:
        yield it


@pytest.fixture
def sentinels(shared_sentinels: Sentinels) -> Sentinels:
    """The shared ones, whatever the test before did to them."""
    shared_sentinels.mend()
    return shared_sentinels


def test_it_starts_whole(sentinels: Sentinels) -> None:
    """The address names the sentinels; they know each other and the replicas."""
    hosts = ",".join(f"127.0.0.1:{it.port}" for it in sentinels.sentinels)
    assert sentinels.address == f"redis+sentinel://{hosts}/turnline/0"
    assert len(sentinels.replicas) == 2
    assert sentinels.primary.replication()["connected_slaves"] == 2
    for sentinel in sentinels.sentinels:
        assert len(sentinel.command("SENTINEL", "SENTINELS", "turnline")) == 2


def test_a_replica_takes_over_from_a_killed_primary(sentinels: Sentinels) -> None:
    """The killed one comes back as its replica, in sync, after a while."""
    former = sentinels.primary
    former.command("SET", "key", "kept")
    assert former.command("WAIT", 2, 5000) >= 0

    former.kill()

    def other() -> Node | None:
        found = sentinels.primary
        return found if found is not former else None

    primary = wait_until_sync(other, "a replica takes over", TAKEOVER_S)
    assert primary is not None
    sentinels.wait_settled()
    assert primary.command("GET", "key") == "kept"
    former.restart()
    sentinels.wait_settled()
    assert sentinels.primary.replication()["connected_slaves"] == 2


def test_a_planned_failover_names_another_primary(sentinels: Sentinels) -> None:
    """All sentinels do when it returns, though one of them is dead and was not asked."""
    former = sentinels.primary
    sentinels.sentinels[0].kill()

    primary = sentinels.fail_over()

    assert primary is not former
    assert primary is sentinels.primary
    wait_until_sync(lambda: primary.replication().get("role") == "master", "it is one")
    for sentinel in sentinels.sentinels[1:]:
        told = sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "turnline")
        assert told == ["127.0.0.1", str(primary.port)]


def test_a_planned_failover_asks_none_that_was_held_up(sentinels: Sentinels) -> None:
    """Such a one does nothing for 30 s (TILT), though it says OK."""
    former, held_up = sentinels.primary, sentinels.sentinels[0]
    held_up.freeze()
    time.sleep(2.5)  # a clock that jumps by more than two seconds is what it notices
    held_up.wake()
    wait_until_sync(lambda: held_up.ask("INFO", "sentinel")["sentinel_tilt"], "it has noticed")

    assert sentinels.fail_over() is not former


def test_a_primary_without_replicas_takes_no_writes(sentinels: Sentinels) -> None:
    """As it was asked for, as long as they are frozen."""
    primary = sentinels.primary
    for replica in sentinels.replicas:
        replica.freeze()

    def refusal() -> str:
        try:
            primary.command("SET", "key", "value")
        except redis.ResponseError as error:
            return str(error)
        return ""

    assert "NOREPLICAS" in wait_until_sync(refusal, "writes are refused")
    sentinels.mend()
    wait_until_sync(lambda: not refusal(), "writes are taken")
