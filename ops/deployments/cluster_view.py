"""What one node of a cluster says of all of them: the answer to CLUSTER NODES, read."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

SLOTS: Final = 16384
"""How many slots a cluster has."""

_OPEN_SLOT: Final = re.compile(r"\[(\d+)-[<>]-")


@dataclass(frozen=True, kw_only=True)
class NodeView:
    """One node, as another one, or itself, sees it."""

    flags: frozenset[str]
    """Such as `master`, `slave`, `fail`, `fail?` and `handshake`."""
    primary_id: str | None
    """Of which node it is a replica; None of a primary."""
    config_epoch: int
    """The higher one is right where two nodes claim a slot."""
    slots: tuple[range, ...]
    """What it owns, in order."""
    open_slots: tuple[int, ...]
    """Slots that are being moved from or to it; only a node itself tells of its own."""

    def owns(self, slot: int) -> bool:
        """Return whether a slot is one of its own."""
        return any(slot in owned for owned in self.slots)


View = dict[str, NodeView]
"""All nodes that a node knows, by id."""


def read_view(answer: str) -> View:
    """Read an answer to CLUSTER NODES.

    Source: https://valkey.io/commands/cluster-nodes/
    """
    view: View = {}
    for line in answer.splitlines():
        node_id, _, flags, primary_id, _, _, epoch, _, *slots = line.split()
        view[node_id] = NodeView(
            flags=frozenset(flags.split(",")),
            primary_id=None if primary_id == "-" else primary_id,
            config_epoch=int(epoch),
            slots=tuple(_slots(it) for it in slots if not it.startswith("[")),
            open_slots=tuple(int(it[1]) for it in map(_OPEN_SLOT.match, slots) if it),
        )
    return view


def owner_of(slot: int, views: Iterable[View]) -> str | None:
    """Return the id of the slot's primary, None if nobody claims it."""
    claims = [
        (node.config_epoch, node_id)
        for view in views
        for node_id, node in view.items()
        if node.owns(slot)
    ]
    return max(claims)[1] if claims else None


def _slots(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)
