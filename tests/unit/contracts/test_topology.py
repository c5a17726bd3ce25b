"""Where primaries are, by what servers and sentinels answer."""

import pytest

from turnline.contracts.addresses import read_address
from turnline.contracts.refusals import NoPrimary
from turnline.contracts.topology import (
    SLOTS,
    ClusterSlots,
    Node,
    WatchedPrimary,
    ask_around,
    slot_of,
    topology_of,
)

OLD, NEW = Node("10.0.0.1", 6379), Node("10.0.0.2", 6379)
SENTINELS = "redis+sentinel://a:1,b:2,c:3/main/0"


def says(node: Node, epoch: int, flags: str = "master") -> list[bytes]:
    words = ["ip", node.host, "port", node.port, "flags", flags, "config-epoch", epoch]
    return [str(it).encode() for it in words]


async def asked(topology: WatchedPrimary | ClusterSlots, *answers: object) -> None:
    given = iter(answers)

    async def ask(_: Node) -> object:
        answer = next(given, ConnectionError("away"))
        if isinstance(answer, Exception):
            raise answer
        return answer

    await ask_around(topology, ask)


def watched() -> WatchedPrimary:
    topology = topology_of(read_address(SENTINELS))
    assert isinstance(topology, WatchedPrimary)
    return topology


@pytest.mark.parametrize(
    ("key", "slot"), [("123456789", 0x31C3), ("{s0}", 11097), ("turnline:{s0}:queue", 11097)]
)
def test_slots_are_those_of_the_specification(key: str, slot: int) -> None:
    """CRC-16 of the hash tag; the first is the example of the specification."""
    assert slot_of(key) == slot


async def test_the_newest_of_the_sentinels_answers_counts() -> None:
    """One that was cut off names an old primary; one that is away names none."""
    topology = watched()

    await asked(topology, says(NEW, 7), says(OLD, 6), ConnectionError("away"))

    assert topology.primary_of(5) == NEW


async def test_nobody_goes_to_a_primary_that_is_being_replaced() -> None:
    """Who begins in the middle of a failover would write what is lost."""
    topology = watched()

    with pytest.raises(NoPrimary, match="failover"):
        await asked(topology, says(OLD, 6), says(OLD, 6, "master,failover_in_progress"))
    await asked(topology, says(NEW, 7), says(OLD, 6))

    assert topology.primary_of(0) == NEW


async def test_a_pause_ends_when_sentinels_know_nothing_of_it_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not while its leader may not have said a word yet, and not if nobody answers."""
    topology, now_s = watched(), 1_000.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    topology.pause()

    await asked(topology, says(OLD, 6))
    assert topology.is_paused
    now_s += 3.5
    with pytest.raises(NoPrimary):
        await asked(topology)
    assert topology.is_paused
    await asked(topology, says(OLD, 6))
    assert not topology.is_paused


async def test_who_saw_the_successor_goes_there_before_the_sentinels_say_so() -> None:
    """They go on naming the old one until its other replicas follow."""
    topology = watched()
    await asked(topology, says(OLD, 6), says(OLD, 6))

    topology.pause()
    assert topology.is_paused
    assert topology.replace(NEW)
    await asked(topology, says(OLD, 6, "master,failover_in_progress"), says(OLD, 6))

    assert not topology.is_paused
    assert topology.primary_of(0) == NEW


@pytest.mark.parametrize("answer", [None, b"OK", [], [b"ip"], says(OLD, 1)[:5], [[1]]])
async def test_answers_of_another_form_are_none(answer: object) -> None:
    """Nobody is taken for the primary."""
    with pytest.raises(NoPrimary):
        await asked(watched(), answer, answer, answer)
    cluster = topology_of(read_address("redis+cluster://a:1"))
    assert isinstance(cluster, ClusterSlots)
    with pytest.raises(NoPrimary):
        await asked(cluster, answer)


async def test_slots_of_a_cluster_are_read() -> None:
    """By range; a node without a name is where the one that was asked is."""
    cluster = topology_of(read_address("redis+cluster://seed:1"))
    assert isinstance(cluster, ClusterSlots)

    await asked(
        cluster,
        [
            [0, 99, [b"x", 1, b"id"], [b"replica", 2, b"id"]],
            [101, SLOTS - 1, [b"", 3, b"id"]],
        ],
    )

    assert [cluster.primary_of(it) for it in (0, 100, 101)] == [Node("x", 1), None, Node("seed", 3)]
    assert cluster.to_ask()[0] == Node("replica", 2)
    assert cluster.a_slot_of(Node("seed", 3)) == 101
