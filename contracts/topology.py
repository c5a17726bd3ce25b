"""Where the primaries are: whom to ask, what to ask, and how to read the answer. No I/O.

A single server, the primary that sentinels watch, and the primaries of a cluster are the same thing
to the rest of Turnline: a table from slot to server that may change while it is used.
"""

import binascii
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from redis.exceptions import AuthenticationError, RedisError

from turnline.contracts.addresses import Address
from turnline.contracts.refusals import NoPrimary, reason

SLOTS: Final = 16_384
_MOST_NAMED: Final = 3
PAUSE_S: Final = 10.0
"""Longest time for which a failover is waited for, or sentinels are taken to be behind."""
_ALIVE_S: Final = 3.0
"""After so long those who are asked are believed that no failover is under way."""


class Node(NamedTuple):
    """Where one server listens."""

    host: str
    """Or the path of a socket; then the port is 0."""
    port: int

    def __str__(self) -> str:
        if not self.port:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def slot_of(key: str) -> int:
    """Return the slot of a key: CRC-16 (XMODEM) of its hash tag, or of all of it, modulo 16,384.

    Source: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
    """
    _, _, rest = key.partition("{")
    tag, closing, _ = rest.partition("}")
    hashed = tag if closing and tag else key
    return binascii.crc_hqx(hashed.encode(), 0) % SLOTS


class Topology(ABC):
    """What is known of where the primaries are."""

    question: tuple[str, ...] = ()
    """The command that tells; none where an address says it all."""
    is_unsettled = False
    """Whether one of those who were asked says that a primary is being replaced."""

    def __init__(self, address: Address) -> None:
        """Know what the address says."""
        self._primaries: tuple[Node, ...] = ()
        self._seeds = tuple(Node(*it) for it in address.nodes)

    @property
    def primaries(self) -> frozenset[Node]:
        """All primaries known at the moment."""
        return frozenset(self._primaries)

    def primary_of(self, slot: int) -> Node | None:
        """Return the primary of a slot; None if nobody is known to serve it."""
        del slot
        return self._primaries[0] if self._primaries else None

    def a_slot_of(self, node: Node) -> int:
        """Return some slot of a primary."""
        del node
        return 0

    def to_ask(self) -> Sequence[Node]:
        """Return whom to ask, in the order in which they are worth asking."""
        return self._seeds

    @abstractmethod
    def learn(self, asked: Node, answer: Any) -> bool:
        """Take note of an answer; return whether nobody else need be asked.

        An answer that cannot be read is none.
        """

    def start_asking(self) -> None:
        """Forget what only counts within one round of questions."""
        self.is_unsettled = False

    def all_asked(self) -> None:  # noqa: B027  for most this changes nothing
        """Take note that nobody who answered says that a primary is being replaced."""

    @property
    def is_paused(self) -> bool:
        """Whether a primary is being replaced: what is written to it now would be lost."""
        return False

    @property
    def why_unknown(self) -> str:
        """Say why a primary cannot be had."""
        return (
            "a failover is under way" if self.is_paused else "no server is known to hold the slot"
        )


class OneServer(Topology):
    """A server whose address never changes; what is behind the address may."""

    def __init__(self, address: Address) -> None:
        """Know the address."""
        super().__init__(address)
        socket = (Node(address.socket_path, 0),) if address.socket_path else ()
        self._primaries = socket or self._seeds

    def learn(self, asked: Node, answer: Any) -> bool:
        """Nothing is asked, and nothing learnt."""
        del asked, answer
        return True


class WatchedPrimary(Topology):
    """The primary that sentinels watch. All of them are asked; the newest answer counts."""

    def __init__(self, address: Address) -> None:
        """Know the sentinels and the name they have for the primary."""
        super().__init__(address)
        self.question = ("SENTINEL", "MASTER", address.service)
        self._epoch = -1
        self._paused_until_s = 0.0
        self.is_unsure = False
        """Whether the primary was seen to be one, but no sentinel has named it yet."""
        self._left: Node | None = None
        self._left_until_s = 0.0

    def start_asking(self) -> None:
        """Compare only the answers of one round: sentinels may have been set up anew."""
        super().start_asking()
        self._epoch = -1

    def learn(self, asked: Node, answer: Any) -> bool:
        """Take the answer with the highest epoch: a sentinel that was cut off knows an old one."""
        del asked
        facts = _pairs(answer)
        knows_better = time.monotonic() < self._left_until_s
        if "failover_in_progress" in facts.get("flags", "") and not knows_better:
            self.is_unsettled = True  # the one it names will lose what it takes from now on
        host, port, epoch = (facts.get(it, "") for it in ("ip", "port", "config-epoch"))
        if not (host and port.isdecimal() and epoch.isdecimal() and int(epoch) > self._epoch):
            return False
        node = Node(host, int(port))
        if node != self._left or time.monotonic() > self._left_until_s:
            self._epoch, self._primaries = int(epoch), (node,)
        return False

    @property
    def is_paused(self) -> bool:
        """Whether a successor is being made."""
        return time.monotonic() < self._paused_until_s

    def all_asked(self) -> None:
        """End a pause of which no sentinel knows any more: the one that began it is gone."""
        if time.monotonic() > self._paused_until_s - PAUSE_S + _ALIVE_S:
            self.go_on()

    def pause(self) -> None:
        """Let nobody write for a while: a successor is being chosen."""
        self._paused_until_s = time.monotonic() + PAUSE_S

    def go_on(self) -> None:
        """Let write again."""
        self._paused_until_s = 0.0

    def take_back(self) -> None:
        """Believe sentinels again, which did not name the new primary: their leader is gone."""
        self.is_unsure, self._left, self._left_until_s = False, None, 0.0

    def replace(self, primary: Node, *, is_named: bool = True) -> bool:
        """Have a new primary, which sentinels may not know of for a while; False if it is known.

        Args:
            primary: The new one.
            is_named: Whether a sentinel says so; see `is_unsure`.
        """
        self.go_on()
        self.is_unsure = not is_named
        if self._primaries == (primary,):
            return False
        self._left, self._left_until_s = (
            next(iter(self._primaries), None),
            time.monotonic() + PAUSE_S,
        )
        self._primaries = (primary,)
        return True


class ClusterSlots(Topology):
    """The primaries of a cluster, by slot. Any node that answers knows them."""

    question = ("CLUSTER", "SLOTS")

    def __init__(self, address: Address) -> None:
        """Know some nodes."""
        super().__init__(address)
        self._by_slot: list[Node | None] = [None] * SLOTS
        self._nodes: tuple[Node, ...] = ()

    def primary_of(self, slot: int) -> Node | None:
        """Return the primary of a slot; None if nobody is known to serve it."""
        return self._by_slot[slot]

    def a_slot_of(self, node: Node) -> int:
        """Return some slot of a primary."""
        return self._by_slot.index(node)

    def to_ask(self) -> Sequence[Node]:
        """Return all nodes known, replicas first: it is primaries that go."""
        return tuple(dict.fromkeys((*self._nodes, *self._primaries, *self._seeds)))

    def learn(self, asked: Node, answer: Any) -> bool:
        """Read the ranges; slots in none of them are served by nobody."""
        by_slot: list[Node | None] = [None] * SLOTS
        replicas: list[Node] = []
        try:
            for first, last, primary, *others in answer:
                node, *rest = (_node(it, asked) for it in (primary, *others))
                by_slot[first : last + 1] = [node] * (last + 1 - first)
                replicas.extend(rest)
        except (TypeError, ValueError, IndexError):
            return False
        found = dict.fromkeys(it for it in by_slot if it is not None)
        if not found or len(by_slot) != SLOTS:
            return False
        self._by_slot, self._primaries = by_slot, tuple(found)
        self._nodes = tuple(dict.fromkeys(replicas))
        return True


async def ask_around(topology: Topology, ask: Callable[[Node], Awaitable[Any]]) -> None:
    """Ask one after the other where the primaries are, until it is known.

    Args:
        topology: Learns from the answers.
        ask: Puts the topology's question to a node, for a bounded time.

    Raises:
        redis.exceptions.ConnectionError: Nobody answered so that it could be understood.
    """
    topology.start_asking()
    failures: list[str] = []
    refused: Exception | None = None
    for node in topology.to_ask():
        try:
            answer = await ask(node)
        except (RedisError, OSError) as error:
            failures.append(f"{node}: {reason(error)}")
            refused = error if isinstance(error, AuthenticationError) else refused
            continue
        if topology.learn(node, answer):
            return
    if refused is not None:
        raise refused
    if topology.is_unsettled:
        raise NoPrimary("a failover is under way")
    if not topology.primaries or len(failures) == len(topology.to_ask()):
        more = len(failures) - _MOST_NAMED
        named = failures[:_MOST_NAMED] + ([f"and {more} more"] if more > 0 else [])
        raise NoPrimary(
            "nobody says where the primary is: " + (", ".join(named) or "no answer names one")
        )
    topology.all_asked()


def topology_of(address: Address) -> Topology:
    """Return what an address says of where the primaries are."""
    kinds: Mapping[str, Callable[[Address], Topology]] = {
        "server": OneServer,
        "sentinel": WatchedPrimary,
        "cluster": ClusterSlots,
    }
    return kinds[address.kind](address)


def _node(entry: Sequence[Any], asked: Node) -> Node:
    """Read one node; one without a name is reached where the one that was asked is."""
    host, port = _word(entry[0]), int(entry[1])
    return Node(asked.host if host in {"", "?", "None"} else host, port)


def _pairs(answer: Any) -> Mapping[str, str]:
    """Read names and values that are told in turn."""
    words = cast("Sequence[object]", answer) if isinstance(answer, (list, tuple)) else ()
    return {_word(n): _word(value) for n, value in zip(words[::2], words[1::2], strict=False)}


def _word(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
