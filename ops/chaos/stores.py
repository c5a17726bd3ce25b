"""The Redis of a run, and what is done to it: one server, a cluster, or servers with sentinels.

A server that was struck is asked again and again whether all is well; nothing waits for that.
"""

import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final, Protocol

from redis.exceptions import RedisError

from turnline.contracts.keys import shard_keys
from turnline.contracts.opening import open_sync
from turnline.contracts.topology import slot_of
from turnline.ops.chaos.disturbances import (
    CLUSTER_PER_MINUTE,
    PER_MINUTE,
    SENTINEL_PER_MINUTE,
    Kind,
    Planned,
)
from turnline.ops.deployments import Cluster, DeploymentError, Node, Sentinels
from turnline.ops.deployments.cluster_view import read_view
from turnline.ops.deployments.sentinels import NAME
from turnline.ops.embedded import EmbeddedRedis
from turnline.ops.embedded.errors import EmbeddedRedisError

DURABLE: Final = {"appendfsync": "always"}
"""A server that is killed and comes back has lost nothing."""
SETTLE_SOON: Final = {"INFO-PERIOD": 1_000, "PUBLISH-PERIOD": 500}
"""A former primary is told after 3 s, not 11: what can happen once in 11 s happens too rarely."""
_TROUBLES: Final = (RedisError, OSError, DeploymentError, EmbeddedRedisError)
"""What servers answer, or do not, in the middle of something."""
_HARMLESS: Final[frozenset[Kind]] = frozenset({"cut", "flush"})
"""What may come at any time: no server is away because of it."""
_LONGEST_FAILOVER_S: Final = 10.0
"""After so long without a successor a planned failover counts as refused."""


@dataclass
class Strike:
    """What was done to a server."""

    undo: Callable[[], bool]
    """Called again and again until it returns True: then all is as it should be."""
    node: str = ""
    shards: frozenset[int] | None = None
    """As in `Disturbance`."""
    failed_over: bool = False
    """Whether another server took over; known once it is undone."""


class Store(Protocol):
    """The Redis of a run."""

    url: str
    shards: int
    """How many may hold anything."""
    is_away: bool
    """Whether some of it is not what it should be: who starts now may fail."""
    per_minute: Mapping[Kind, float]
    """What a run on it consists of."""

    def strike(self, planned: Planned) -> Strike | None:
        """Do something to it; None: not now."""
        ...


class OneServer:
    """A private server."""

    per_minute: Mapping[Kind, float] = PER_MINUTE

    def __init__(self, server: EmbeddedRedis, shards: int) -> None:
        """Take a running server that keeps its data."""
        self._server = server
        self.shards = shards
        self.url = server.url
        self.is_away = False
        self._make_durable()

    def strike(self, planned: Planned) -> Strike | None:
        """Do something to it; None: not now."""
        match planned.kind:
            case "flush":
                return Strike(_done) if self._order("SCRIPT", "FLUSH") else None
            case "cut":
                kind = "pubsub" if planned.victim < 0.5 else "normal"
                cut = self._order("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
                return Strike(_done) if cut else None
            case _ if self.is_away:
                return None
            case "redis-full":
                self.is_away = self._order("CONFIG", "SET", "maxmemory", 1)
                return Strike(self._empty) if self.is_away else None
            case kind:
                self.is_away = True
                if kind == "redis-kill":
                    self._server.kill()
                else:
                    os.kill(self._server.pid, signal.SIGTERM)
                    self._server.wait()
                return Strike(self._start)

    def _start(self) -> bool:
        self._server.restart()
        self._make_durable()
        self.is_away = False
        return True

    def _empty(self) -> bool:
        self.is_away = not self._order("CONFIG", "SET", "maxmemory", 0)
        return not self.is_away

    def _make_durable(self) -> None:
        """Have it write to disk before it answers, so that it has lost nothing when killed."""
        self._order("CONFIG", "SET", "appendfsync", "always")

    def _order(self, *words: str | int) -> bool:
        """Send one command; return whether it was done."""
        with closing(open_sync(self.url)) as redis:
            try:
                redis.execute_command(*words)
            except (RedisError, OSError):
                return False
        return True


class _Several(ABC):
    """Several servers. One disturbance at a time: two would be a loss that nobody promises."""

    def __init__(self, shards: int) -> None:
        self.shards = shards
        self.is_away = False

    def strike(self, planned: Planned) -> Strike | None:
        """Do something to one of them; None: not now."""
        if planned.kind in _HARMLESS:
            return self._strike_connections(planned)
        if self.is_away:
            return None
        try:
            if not self._is_settled():
                return None
            struck = self._strike(planned)
        except _TROUBLES:
            return None
        self.is_away = True
        undo = struck.undo
        struck.undo = lambda: self._undone(undo)
        return struck

    def _strike_connections(self, planned: Planned) -> Strike | None:
        try:
            primary = _chosen(self._primaries(), planned.victim)
            if planned.kind == "cut":
                primary.cut_connections()
            else:
                primary.command("SCRIPT", "FLUSH")
            return Strike(_done, primary.name, self._shards_of(primary))
        except _TROUBLES:
            return None

    def _strike(self, planned: Planned) -> Strike:
        primary = _chosen(self._primaries(), planned.victim)
        shards = self._shards_of(primary)
        match planned.kind:
            case "primary-kill":
                primary.kill()
                struck = Strike(_done, primary.name, shards)
                struck.undo = lambda: self._restarted(primary, struck)
            case "primary-stop":
                primary.freeze()
                struck = Strike(_done, primary.name, shards)
                struck.undo = lambda: self._woken(primary, struck)
            case "failover":
                self._begin_failover(primary)
                struck, until_s = Strike(_done, primary.name, shards), time.monotonic()
                until_s += _LONGEST_FAILOVER_S
                struck.undo = lambda: self._taken_over(primary, struck, until_s)
            case "replica-kill":
                replica = _chosen(self._replicas_of(primary), planned.victim)
                replica.kill()
                struck = Strike(_done, replica.name, frozenset())
                struck.undo = lambda: self._restarted(replica, struck, is_primary=False)
            case _:
                raise AssertionError(f"{planned.kind} is nothing that is done to several servers")
        return struck

    def _undone(self, undo: Callable[[], bool]) -> bool:
        try:
            self.is_away = not undo()
        except _TROUBLES:
            return False  # it is in the middle of something
        return not self.is_away

    def _restarted(self, node: Node, struck: Strike, *, is_primary: bool = True) -> bool:
        if not node.is_running:
            node.restart()
            return False
        return self._counted(node, struck) if is_primary else self._is_settled()

    def _woken(self, node: Node, struck: Strike) -> bool:
        if node.is_frozen:
            node.wake()
            return False
        return self._counted(node, struck)

    def _taken_over(self, former: Node, struck: Strike, until_s: float) -> bool:
        if time.monotonic() < until_s and former in self._primaries():
            return False
        return self._counted(former, struck)

    def _counted(self, node: Node, struck: Strike) -> bool:
        if not self._is_settled():
            return False
        struck.failed_over = node not in self._primaries()
        return True

    def _is_settled(self) -> bool:
        try:
            self._wait_settled(0)
        except DeploymentError:
            return False
        return True

    @abstractmethod
    def _primaries(self) -> list[Node]:
        """Return the primaries."""

    @abstractmethod
    def _replicas_of(self, primary: Node) -> list[Node]:
        """Return the replicas of one of them."""

    @abstractmethod
    def _begin_failover(self, primary: Node) -> None:
        """Have a replica take over as planned."""

    @abstractmethod
    def _shards_of(self, primary: Node) -> frozenset[int]:
        """Return the shards that live there."""

    @abstractmethod
    def _wait_settled(self, timeout_s: float) -> None:
        """See `Cluster.wait_settled`."""


class OnCluster(_Several):
    """A cluster."""

    per_minute: Mapping[Kind, float] = CLUSTER_PER_MINUTE

    def __init__(self, cluster: Cluster, shards: int) -> None:
        """Take a running cluster."""
        super().__init__(shards)
        self._cluster = cluster
        self.url = cluster.address

    def _primaries(self) -> list[Node]:
        return self._cluster.primaries

    def _replicas_of(self, primary: Node) -> list[Node]:
        return self._cluster.replicas_of(primary)

    def _begin_failover(self, primary: Node) -> None:
        self._replicas_of(primary)[0].command("CLUSTER", "FAILOVER")

    def _shards_of(self, primary: Node) -> frozenset[int]:
        view = read_view(primary.command("CLUSTER", "NODES"))
        own = next(it for it in view.values() if "myself" in it.flags)
        return frozenset(n for n in range(self.shards) if own.owns(_slot(n)))

    def _wait_settled(self, timeout_s: float) -> None:
        self._cluster.wait_settled(timeout_s)

    def _strike(self, planned: Planned) -> Strike:
        return self._move(planned) if planned.kind == "slot-move" else super()._strike(planned)

    def _move(self, planned: Planned) -> Strike:
        shard = int(planned.victim * self.shards)
        source = self._cluster.primary_of(_slot(shard))
        others = [it for it in self._primaries() if it is not source]
        to = _chosen(others, planned.victim * 97 % 1)

        def move() -> bool:
            self._cluster.move_slot(_slot(shard), to, replace=True)
            return self._is_settled()

        return Strike(move, to.name, frozenset({shard}))


class BehindSentinels(_Several):
    """A primary with replicas, and sentinels that watch it."""

    per_minute: Mapping[Kind, float] = SENTINEL_PER_MINUTE

    def __init__(self, watched: Sentinels, shards: int) -> None:
        """Take a running deployment."""
        super().__init__(shards)
        self._watched = watched
        self.url = watched.address

    def _primaries(self) -> list[Node]:
        return [self._watched.primary]

    def _replicas_of(self, primary: Node) -> list[Node]:
        return [node for node in self._watched.nodes if node is not primary]

    def _begin_failover(self, primary: Node) -> None:
        del primary
        self._watched.sentinels[0].command("SENTINEL", "FAILOVER", NAME)

    def _shards_of(self, primary: Node) -> frozenset[int]:
        del primary
        return frozenset(range(self.shards))

    def _wait_settled(self, timeout_s: float) -> None:
        self._watched.wait_settled(timeout_s)


def _done() -> bool:
    return True


def _slot(shard: int) -> int:
    return slot_of(shard_keys(shard).tag)


def _chosen(nodes: Sequence[Node], victim: float) -> Node:
    return nodes[int(victim * len(nodes))]
