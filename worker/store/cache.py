"""Committed messages that this worker has already, so that a load fetches only what is new."""

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
        """Keep at most `limit_bytes` of messages; 0 keeps nothing."""
        self._limit = limit_bytes
        self._size = 0
        self._contexts: OrderedDict[str, CachedContext] = OrderedDict()

    def get(self, conversation_id: str) -> CachedContext:
        """Return what is cached, possibly nothing."""
        return self._contexts.get(conversation_id, CachedContext())

    def put(self, conversation_id: str, context: CachedContext) -> None:
        """Keep this, newest of all; drop the oldest over the limit."""
        self.drop(conversation_id)
        self._size += context.size_bytes
        self._contexts[conversation_id] = context
        while self._size > self._limit:
            _, dropped = self._contexts.popitem(last=False)
            self._size -= dropped.size_bytes

    def drop(self, conversation_id: str) -> None:
        """Keep this conversation no longer."""
        self._size -= self._contexts.pop(conversation_id, CachedContext()).size_bytes
