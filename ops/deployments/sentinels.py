"""A real primary with replicas, watched by real sentinels, on this machine."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final, Self

from turnline.ops.deployments.errors import DeploymentError
from turnline.ops.deployments.node import (
    DATA_NODE,
    Directives,
    Node,
    close_all,
    revive_all,
    start_all,
)
from turnline.ops.deployments.settling import wait_settled
from turnline.ops.embedded.held_port import HOST

NAME: Final = "turnline"
"""What the sentinels call what they watch."""
_TILT_S: Final = 40.0
"""After which one that was held up acts again, and then some."""
_TROUBLES: Final = frozenset({"s_down", "o_down", "disconnected", "failover_in_progress"})


class Sentinels:
    """A primary, its replicas and the sentinels that watch them, for a `with` block.

        with Sentinels() as deployment:
            client = TurnClient.connect(deployment.address)
            deployment.primary.kill()
            deployment.wait_settled()

    What is set is what users have: the files that Redis and Valkey are shipped with, but for short
    limits of the sentinels (30 s until a node is held for down, 180 s for a failover there), and
    for an append-only file. Servers have configuration files, which the sentinels rewrite: a
    primary that was demoted comes back as a replica, one that was killed as a primary, until it is
    told.

    Leaving the block ends every process and leaves nothing behind; so does the end of this process.
    """

    def __init__(
        self,
        replicas: int = 2,
        sentinels: int = 3,
        *,
        down_after_ms: int = 1000,
        failover_timeout_ms: int = 5000,
        periods_ms: Directives | None = None,
        min_replicas_to_write: int = 0,
        min_replicas_max_lag_s: int = 10,
        options: Directives | None = None,
        program: Path | None = None,
    ) -> None:
        """Describe the deployment; `with` starts it.

        Args:
            replicas: How many there are.
            sentinels: How many watch. More than half of them must agree.
            down_after_ms: After how long a silent node is held for down.
            failover_timeout_ms: After how long a failover that hangs is given up; the next one may
                begin after twice that.
            periods_ms: How often sentinels look and tell, in milliseconds, by the names that
                `SENTINEL DEBUG` has for it; until they are restarted. The default is as shipped.
            min_replicas_to_write: A primary with fewer replicas takes no writes.
            min_replicas_max_lag_s: After how long a silent replica does not count for that.
            options: More lines for the configuration of primary and replicas; these win.
            program: The server to run; None takes what `find_server` finds.
        """
        self._replicas = replicas
        self._sentinels = sentinels
        self._min_replicas = min_replicas_to_write
        self._periods_ms = periods_ms or {}
        self._limits: Directives = {
            f"sentinel down-after-milliseconds {NAME}": down_after_ms,
            f"sentinel failover-timeout {NAME}": failover_timeout_ms,
        }
        self._directives: Directives = {
            **DATA_NODE,
            "min-replicas-to-write": min_replicas_to_write,
            "min-replicas-max-lag": min_replicas_max_lag_s,
            **(options or {}),
        }
        self._program = program
        self.nodes: list[Node] = []
        """Servers with data: at first the primary, then its replicas."""
        self.sentinels: list[Node] = []
        """The sentinels."""

    # -- life -----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Start all of it and wait until the sentinels agree and the replicas are in sync.

        Raises:
            EmbeddedRedisError: A server cannot be had.
            NotSettled: They did not get there in time.
        """
        try:
            self._make_nodes()
            start_all(self.nodes)
            # Sentinels look for replicas every ten seconds: those there now are seen at once.
            first = self.nodes[0]
            wait_settled(lambda: self._out_of_sync(first), "the replicas are in sync", 30)
            self._make_sentinels()
            start_all(self.sentinels)
            for sentinel, (name, ms) in product(self.sentinels, self._periods_ms.items()):
                sentinel.command("SENTINEL", "DEBUG", name, ms)
            self.wait_settled()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End all of it."""
        self._close()

    def _make_nodes(self) -> None:
        for number in range(1, self._replicas + 2):
            first = self.nodes[0] if self.nodes else None
            of: Directives = {} if first is None else {"replicaof": f"{HOST} {first.port}"}
            directives = {**self._directives, **of}
            self.nodes.append(Node(f"node-{number}", directives, self._program))

    def _make_sentinels(self) -> None:
        quorum = self._sentinels // 2 + 1
        monitor: Directives = {
            f"sentinel monitor {NAME}": f"{HOST} {self.nodes[0].port} {quorum}",
            **self._limits,
        }
        for number in range(1, self._sentinels + 1):
            self.sentinels.append(Node(f"sentinel-{number}", monitor, self._program))

    def _close(self) -> None:
        close_all([*self.sentinels, *self.nodes])
        self.nodes, self.sentinels = [], []

    # -- what is where --------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """All sentinels and the name that they know, as Turnline's clients and workers take it."""
        hosts = ",".join(sentinel.address for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{NAME}/0"

    @property
    def primary(self) -> Node:
        """The primary that the sentinels name, dead or frozen too as long as they name it.

        Raises:
            DeploymentError: No sentinel answers.
        """
        named = self._named().values()
        if not named:
            raise DeploymentError("No sentinel answers.")
        return max(named, key=lambda it: it.config_epoch).primary

    @property
    def replicas(self) -> list[Node]:
        """All other servers with data, dead or frozen ones too."""
        primary = self.primary
        return [node for node in self.nodes if node is not primary]

    # -- what is done to it ---------------------------------------------------------------------

    def fail_over(self, *, timeout_s: float = 20.0) -> Node:
        """Have the sentinels make a replica the primary, as planned; returns it.

        The former primary may not know yet: see `wait_settled`.

        Raises:
            NotSettled: It did not come about in time.
            redis.RedisError: The sentinel refuses, such as NOGOODSLAVE, or INPROG.
            DeploymentError: No sentinel answers.
        """
        former = self.primary
        able = [it for it in self.sentinels if it.can_answer]
        # One that was held up itself does nothing for 30 s, though it says OK.
        wait_settled(lambda: _all_held_up(able), "a sentinel acts", _TILT_S)
        sentinel = next(it for it in able if not _is_held_up(it))
        sentinel.command("SENTINEL", "FAILOVER", NAME)

        def missing() -> list[str]:
            return [
                f"{sentinel.name} names {former.name}"
                for sentinel, it in self._named().items()
                if it.primary is former
            ]

        wait_settled(missing, "the sentinels name another primary", timeout_s)
        return self.primary

    def wait_settled(self, timeout_s: float = 40.0) -> None:
        """Wait until the sentinels that can answer agree, and the servers do as these say.

        Nodes that are dead or frozen do not count, but for the primary. A primary that was away
        while another one took over is made a replica about ten seconds after it is back.

        Raises:
            NotSettled: They do not in time; the text says what is missing.
        """
        wait_settled(self._obstacles, "the deployment has settled", timeout_s)

    def mend(self) -> None:
        """Wake what is frozen, restart what is dead, and wait until all has settled.

        Raises:
            ServerNotReady: A node does not come up.
            NotSettled: It does not settle in time.
        """
        revive_all([*self.nodes, *self.sentinels])
        self.wait_settled()

    # -- looking --------------------------------------------------------------------------------

    def _named(self) -> dict[Node, "_Named"]:
        """Ask all sentinels for the primary; those that do not answer are left out."""
        found: dict[Node, _Named] = {}
        by_port = {str(node.port): node for node in self.nodes}
        for sentinel in self.sentinels:
            address = sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
            told = sentinel.ask("SENTINEL", "MASTER", NAME)
            if address and told:
                fields = _fields(told)
                found[sentinel] = _Named(
                    primary=by_port[address[1]],
                    flags=_flags(fields),
                    config_epoch=int(fields["config-epoch"]),
                )
        return found

    def _obstacles(self) -> list[str]:
        awake = [sentinel for sentinel in self.sentinels if sentinel.can_answer]
        named = self._named()
        found = [f"{sentinel.name} does not answer" for sentinel in awake if sentinel not in named]
        primaries = {it.primary for it in named.values()}
        if len(primaries) != 1:
            return [*found, f"the sentinels name {len(primaries)} primaries"]
        (primary,) = primaries
        if not primary.can_answer:
            return [*found, f"{primary.name} is the primary, and away"]
        for sentinel, it in named.items():
            if it.flags & _TROUBLES:
                found.append(f"{sentinel.name} says of {primary.name}: {', '.join(it.flags)}")
            found += self._unseen_by(sentinel, "SENTINELS", set(awake) - {sentinel})
            awake_nodes = {node for node in self.nodes if node.can_answer}
            found += self._unseen_by(sentinel, "REPLICAS", awake_nodes - {primary})
        return found + self._out_of_sync(primary)

    @staticmethod
    def _unseen_by(sentinel: Node, which: str, wanted: Collection[Node]) -> list[str]:
        """Tell which of the wanted nodes a sentinel does not know, or knows to be troubled."""
        told: list[list[str]] = sentinel.ask("SENTINEL", which, NAME) or []
        seen = {it["port"] for it in map(_fields, told) if not _flags(it) & _TROUBLES}
        return [
            f"{sentinel.name} does not see {node.name}"
            for node in wanted
            if str(node.port) not in seen
        ]

    def _out_of_sync(self, primary: Node) -> list[str]:
        """Tell which servers that can answer are not what they are with this primary."""
        replicas = [node for node in self.nodes if node.can_answer and node is not primary]
        found = [
            f"{node.name} is not in sync with {primary.name}"
            for node in replicas
            if not _follows(node.replication(), primary)
        ]
        told = primary.replication()
        if told.get("role") != "master":
            found.append(f"{primary.name} is not a primary yet")
        elif int(told.get("min_slaves_good_slaves", 0)) < min(self._min_replicas, len(replicas)):
            found.append(f"{primary.name} takes no writes for want of replicas")
        return found


@dataclass(frozen=True, kw_only=True)
class _Named:
    """What a sentinel says of the primary."""

    primary: Node
    flags: frozenset[str]
    config_epoch: int
    """The higher one is right where two sentinels differ."""


def _is_held_up(sentinel: Node) -> bool:
    """Whether it only looks on, since its own clock jumped (TILT)."""
    told: dict[str, Any] | None = sentinel.ask("INFO", "sentinel")
    return told is None or bool(told["sentinel_tilt"])


def _all_held_up(sentinels: Collection[Node]) -> list[str]:
    found = [it.name for it in sentinels if _is_held_up(it)]
    return [f"{name} was held up" for name in found] if len(found) == len(sentinels) else []


def _fields(told: list[str]) -> dict[str, str]:
    """Return what a sentinel tells as names and values in turn."""
    return dict(zip(told[::2], told[1::2], strict=True))


def _flags(fields: dict[str, str]) -> frozenset[str]:
    return frozenset(fields["flags"].split(","))


def _follows(replication: dict[str, Any], primary: Node) -> bool:
    return (
        replication.get("master_port") == primary.port
        and replication.get("master_link_status") == "up"
    )
