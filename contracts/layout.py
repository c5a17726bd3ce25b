"""How many shards a fleet has, and where a conversation is while that number changes.

A conversation has one home: while a fleet is resharded, the shard that had it before, until it has
left there; then the one that has it afterwards. Whoever looks for it asks them in this order.

Source: docs/adr/0038-a-fleet-changes-its-number-of-shards.md
"""

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

FIELDS: Final = ("shards", "from", "earlier")
"""Of the hash `ShardKeys.fleet`: what a `Layout` has, `earlier` separated by commas."""
_MOST_SHARDS: Final = 16_384


class Layout(NamedTuple):
    """The number of shards of a fleet, and those it had."""

    shards: int
    """Numbers below this are its shards."""
    before: int = 0
    """Number of shards from which conversations are being moved; 0: none are."""
    earlier: tuple[int, ...] = ()
    """Numbers of shards that the fleet had at some time."""

    @property
    def homes(self) -> tuple[int, ...]:
        """Numbers of shards by which a conversation is found, in the order to ask."""
        return (self.before, self.shards) if self.before else (self.shards,)

    @property
    def every(self) -> tuple[int, ...]:
        """All numbers of shards by which something of a conversation may have been left."""
        return tuple(dict.fromkeys((*self.homes, *self.earlier)))

    @property
    def widest(self) -> int:
        """How many shards may hold anything."""
        return max(self.every)

    def fields(self) -> tuple[str, ...]:
        """Return names and values of the hash, in turn."""
        values = (str(self.shards), str(self.before or ""), ",".join(map(str, self.earlier)))
        return tuple(word for pair in zip(FIELDS, values, strict=True) for word in pair)


def read_layout(values: Sequence[Any]) -> Layout | None:
    """Read the values of FIELDS; None if there are none, or none that make sense."""
    words = [value if isinstance(value, bytes) else str(value or "").encode() for value in values]
    numbers = [*map(_number, words[:2]), *map(_number, words[2].split(b","))]
    shards, before, *earlier = numbers
    return Layout(shards, before, tuple(filter(None, earlier))) if shards else None


def _number(word: bytes) -> int:
    """Return a number of shards; 0 for what is none, as submit.lua reads it."""
    number = int(word) if re.fullmatch(rb"[1-9][0-9]{0,4}", word) else 0
    return number if number <= _MOST_SHARDS else 0


class Elsewhere(Exception):
    """A conversation is not, or may not begin, where it was looked for, or is about to leave."""

    def __init__(self, layout: Layout, *, is_here: bool) -> None:
        """Keep the layout that the shard knows, and whether the conversation is still there."""
        super().__init__("the conversation is in another shard, or is being moved there")
        self.layout = layout
        self.is_here = is_here
