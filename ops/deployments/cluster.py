"""A real Redis or Valkey cluster on this machine."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, Literal, Self

from turnline.ops.deployments.cluster_view import SLOTS, View, owner_of, read_view
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
from turnline.ops.embedded.held_port import HOST, HeldPort

Role = Literal["primary", "replica"]

_AWAY: Final = frozenset({"fail", "fail?", "handshake"})
_KEYS_AT_ONCE: Final = 100
_MIGRATE_TIMEOUT_S: Final = 10.0


class Cluster:
    """Primaries with replicas, all real processes, for a `with` block.

        with Cluster() as cluster:
            client = TurnClient.connect(cluster.address)
            cluster.primary_of(0).kill()
            cluster.wait_settled()

    What is set is what users have: the files that Redis and Valkey are shipped with, but for a
    short node time-out (15 s there), for an append-only file, and for full coverage. As shipped, a
    cluster of which one slot has no primary serves no slot at all, so that each failover is
    everybody's outage; whoever wants the other shards to go on turns that off.

    Leaving the block ends every process and leaves nothing behind; so does the end of this process.
    """

    def __init__(
        self,
        primaries: int = 3,
        replicas: int = 1,
        *,
        node_timeout_ms: int = 1000,
        full_coverage: bool = False,
        options: Directives | None = None,
        program: Path | None = None,
    ) -> None:
        """Describe the cluster; `with` starts it.

        Args:
            primaries: How many there are. Fewer than three cannot vote for a replacement.
            replicas: How many each primary has.
            node_timeout_ms: After how long a silent node is held for dead. Its replica takes over
                about a second later.
            full_coverage: Whether all slots are refused while one has no primary.
            options: More lines for the configuration of each node; these win.
            program: The server to run; None takes what `find_server` finds.
        """
        self._primaries = primaries
        self._replicas = replicas
        self._directives: Directives = {
            **DATA_NODE,
            "cluster-enabled": "yes",
            "cluster-node-timeout": node_timeout_ms,
            "cluster-require-full-coverage": "yes" if full_coverage else "no",
            **(options or {}),
        }
        self._program = program
        self._bus_ports: list[HeldPort] = []
        self._ids: dict[str, Node] = {}
        self.nodes: list[Node] = []
        """All nodes: at first the primaries, in order of their slots, then their replicas."""

    # -- life -----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Start the nodes and wait until they are one cluster with replicas in sync.

        Raises:
            EmbeddedRedisError: A server cannot be had.
            NotSettled: They did not agree in time.
        """
        try:
            for number in range(1, self._primaries * (1 + self._replicas) + 1):
                self._bus_ports.append(HeldPort())
                bus: Directives = {"cluster-port": self._bus_ports[-1].number}
                directives = {**self._directives, **bus}
                self.nodes.append(Node(f"node-{number}", directives, self._program))
            start_all(self.nodes)
            self._ids = {node.command("CLUSTER", "MYID"): node for node in self.nodes}
            self._form()
            self.wait_settled()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End all of it."""
        self._close()

    def _form(self) -> None:
        """Make one cluster of the nodes."""
        for number, node in enumerate(self.nodes):
            # Epochs of their own spare them the settling of conflicts.
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        primaries = self.nodes[: self._primaries]
        for number, node in enumerate(primaries):
            first, after = (SLOTS * it // self._primaries for it in (number, number + 1))
            node.command("CLUSTER", "ADDSLOTSRANGE", first, after - 1)
        for number, node in enumerate(self.nodes):
            for other, bus in zip(self.nodes[:number], self._bus_ports, strict=False):
                node.command("CLUSTER", "MEET", HOST, other.port, bus.number)
        wait_settled(self._strangers, "the nodes know each other", 30)
        for number, replica in enumerate(self.nodes[self._primaries :]):
            primary = primaries[number % self._primaries]
            replica.command("CLUSTER", "REPLICATE", self._id_of(primary))

    def _strangers(self) -> list[str]:
        return [
            f"{node.name} knows {len(known)} nodes"
            for node, view in self._views().items()
            if (known := _known(view)) != self._ids.keys()
        ]

    def _close(self) -> None:
        close_all(self.nodes)
        for port in self._bus_ports:
            port.close()
        self.nodes, self._bus_ports, self._ids = [], [], {}

    # -- what is where --------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """All nodes, as Turnline's clients and workers take it."""
        return f"redis+cluster://{','.join(node.address for node in self.nodes)}"

    @property
    def primaries(self) -> list[Node]:
        """The nodes that own slots, dead or frozen ones too as long as nobody took over."""
        owners = _owners(self._views().values())
        return [node for node_id, node in self._ids.items() if node_id in owners]

    def role_of(self, node: Node) -> Role:
        """Return whether a node owns slots now."""
        return "primary" if node in self.primaries else "replica"

    def primary_of(self, slot: int) -> Node:
        """Return the node that owns a slot, dead or frozen too as long as nobody took over.

        Raises:
            DeploymentError: No node owns it, or none answers.
        """
        owner = owner_of(slot, self._views().values())
        if owner is None:
            raise DeploymentError(f"No node is known to own slot {slot}.")
        return self._ids[owner]

    def replicas_of(self, primary: Node) -> list[Node]:
        """Return the replicas of a node, dead or frozen ones too."""
        views = self._views()
        wanted = self._id_of(primary)
        found: list[Node] = []
        for node_id, node in self._ids.items():
            seen = [views[node]] if node in views else list(views.values())
            if any(node_id in view and view[node_id].primary_id == wanted for view in seen):
                found.append(node)
        return found

    # -- what is done to it ---------------------------------------------------------------------

    def fail_over(self, replica: Node, *, timeout_s: float = 15.0) -> None:
        """Have a replica take over from its primary as planned; returns when all nodes know.

        Raises:
            NotSettled: It did not in time.
            redis.RedisError: The replica refuses, or is away.
        """
        own_id = self._id_of(replica)
        replica.command("CLUSTER", "FAILOVER")

        def missing() -> list[str]:
            return [
                f"{node.name} does not know"
                for node, view in self._views().items()
                if own_id not in view or not view[own_id].slots
            ]

        wait_settled(missing, f"{replica.name} takes over", timeout_s)

    def move_slot(self, slot: int, to: Node, *, replace: bool = False) -> int:
        """Move a slot with its keys to another primary, while clients go on; returns how many keys.

        A move that broke off may be begun again: it goes on where it is.

        Args:
            slot: Which one.
            to: The primary that is to have it.
            replace: Overwrite keys that the other primary has already, as may be after a move in
                which a node was lost. Else that is an error.

        Raises:
            DeploymentError: No node owns the slot.
            redis.RedisError: A node refuses or is away; the slot then stays half moved.

        Source: https://valkey.io/commands/cluster-setslot/
        """
        source = self.primary_of(slot)
        if source is to:
            return 0
        source_id, to_id = self._id_of(source), self._id_of(to)
        to.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", to_id)
        moved = 0
        while keys := self._keys_of(source, slot):
            how = ("REPLACE",) if replace else ()
            timeout_ms = int(_MIGRATE_TIMEOUT_S * 1000)
            words = ("MIGRATE", HOST, to.port, "", 0, timeout_ms, *how, "KEYS", *keys)
            source.command(*words, timeout_s=2 * _MIGRATE_TIMEOUT_S)
            moved += len(keys)
        # The new owner first: were the old one told first and lost then, nobody would own the slot.
        others = [it for it in self.primaries if it not in {source, to} and it.can_answer]
        for node in (to, source, *others):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", to_id)
        return moved

    def wait_settled(self, timeout_s: float = 30.0) -> None:
        """Wait until the nodes that can answer serve all slots, agree, and are in sync.

        Nodes that are dead or frozen do not count, unless a slot is theirs.

        Raises:
            NotSettled: They do not in time; the text says what is missing.
        """
        wait_settled(self._obstacles, "the cluster has settled", timeout_s)

    def mend(self) -> None:
        """Wake what is frozen, restart what is dead, and wait until all has settled.

        Raises:
            ServerNotReady: A node does not come up.
            NotSettled: It does not settle in time.
        """
        revive_all(self.nodes)
        self.wait_settled()

    # -- looking --------------------------------------------------------------------------------

    def _id_of(self, node: Node) -> str:
        return next(node_id for node_id, it in self._ids.items() if it is node)

    def _views(self) -> dict[Node, View]:
        """Ask all nodes what they see; those that do not answer are left out."""
        views: dict[Node, View] = {}
        for node in self.nodes:
            if (answer := node.ask("CLUSTER", "NODES")) is not None:
                views[node] = read_view(answer)
        return views

    def _obstacles(self) -> list[str]:
        awake = [node for node in self.nodes if node.can_answer]
        views = self._views()
        found = [f"{node.name} does not answer" for node in awake if node not in views]
        awake_ids = {self._id_of(node) for node in awake}
        pictures = {_picture(view, awake_ids) for view in views.values()}
        if len(pictures) != 1:
            return [*found, f"{len(pictures)} different views"]
        for node, view in views.items():
            found += self._obstacles_at(node, view, awake_ids)
        return found

    def _obstacles_at(self, node: Node, view: View, awake_ids: set[str]) -> list[str]:
        own = view[self._id_of(node)]
        found: list[str] = []
        seen = [it for node_id, it in view.items() if node_id in awake_ids]
        served = sum(len(slots) for it in seen for slots in it.slots)
        if any(it.flags & _AWAY for it in seen):
            found.append(f"{node.name} holds others for dead")
        if served != SLOTS:
            found.append(f"{node.name} sees {served} slots served")
        if own.open_slots:
            found.append(f"{node.name} is moving slots {list(own.open_slots)}")
        state = node.ask("CLUSTER", "INFO") or ""
        if "cluster_state:ok" not in state:
            found.append(f"{node.name} says that the cluster is down")
        link = "up" if own.primary_id is None else node.replication().get("master_link_status")
        if link != "up":
            found.append(f"{node.name} is not in sync")
        return found

    @staticmethod
    def _keys_of(node: Node, slot: int) -> Sequence[str]:
        keys: list[str] = node.command("CLUSTER", "GETKEYSINSLOT", slot, _KEYS_AT_ONCE)
        return keys


def _known(view: View) -> set[str]:
    return {node_id for node_id, node in view.items() if "handshake" not in node.flags}


def _picture(view: View, ids: set[str]) -> frozenset[object]:
    """Return what nodes must agree on: the role and the slots of each of them."""
    return frozenset(
        (node_id, it.primary_id, it.slots) for node_id, it in view.items() if node_id in ids
    )


def _owners(views: Collection[View]) -> set[str | None]:
    """Return the ids of all nodes that own slots."""
    firsts = {slots.start for view in views for node in view.values() for slots in node.slots}
    return {owner_of(slot, views) for slot in firsts}
