"""Committed messages that this worker already holds, so that a load fetches only what is new."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple


class CachedContext(NamedTuple):
    """A conversation's committed messages within one epoch. Never changed in place."""

    epoch: str = ""
    messages: list[bytes] = []  # noqa: RUF012  never changed in place
    size_bytes: int = 0

    def grown(self, added: Sequence[bytes]) -> "CachedContext":
        """Return this with messages added."""
        return CachedContext(
            self.epoch, [*self.messages, *added], self.size_bytes + sum(map(len, added))
        )


class ContextCache:
    """Least recently used, bounded by bytes. Nothing in it is trusted without its epoch."""

    def __init__(self, limit_bytes: int) -> None:
        """Hold at most `limit_bytes` of messages; 0 holds nothing."""
        self._limit = limit_bytes
        self._size = 0
        self._held: OrderedDict[str, CachedContext] = OrderedDict()

    def get(self, conversation_id: str) -> CachedContext:
        """Return what is held, possibly nothing."""
        return self._held.get(conversation_id, CachedContext())

    def put(self, conversation_id: str, held: CachedContext) -> None:
        """Hold this, newest of all; drop the oldest over the limit."""
        self.drop(conversation_id)
        self._size += held.size_bytes
        self._held[conversation_id] = held
        while self._size > self._limit:
            _, dropped = self._held.popitem(last=False)
            self._size -= dropped.size_bytes

    def drop(self, conversation_id: str) -> None:
        """Hold this conversation no longer."""
        self._size -= self._held.pop(conversation_id, CachedContext()).size_bytes
