"""Finds what consumers of a group took and never acknowledged, so that others may take it over."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from turnline.contracts.connection import Command
from turnline.contracts.scripts import text

TAKE_OVER_S = 300.0
"""Longest that a consumer is given for what it took, unless it says otherwise."""
_LOOKS = 4
"""How often one looks for abandoned entries in the time that makes them abandoned."""


class PendingClaimer:
    """Where a consumer stands in looking for what others left behind."""

    def __init__(
        self, streams: Sequence[str], group: str, consumer: str, *, idle_s: float | None, batch: int
    ) -> None:
        """Look through `streams` as `consumer` of `group`.

        Args:
            streams: Keys, one per shard.
            group: Whose entries.
            consumer: Who takes them over.
            idle_s: Seconds since delivery after which an entry counts as abandoned; None: never.
            batch: Entries taken over at once from each stream.
        """
        self._streams = streams
        self._names = (group, consumer)
        self._idle_s = idle_s
        self._batch = batch
        self._cursors = dict.fromkeys(streams, "0-0")
        self._look_at_s = 0.0

    def commands(self) -> Iterator[tuple[str, Command]]:
        """Yield (stream, command) for each stream, if it is time to look."""
        now_s = time.monotonic()
        if self._idle_s is None or now_s < self._look_at_s:
            return
        self._look_at_s = now_s + self._idle_s / _LOOKS
        idle_ms = int(self._idle_s * 1000)
        for stream in self._streams:
            at = self._cursors[stream]
            yield (
                stream,
                ("XAUTOCLAIM", stream, *self._names, idle_ms, at, "COUNT", self._batch),
            )

    def take(self, stream: str, reply: Sequence[Any]) -> list[tuple[bytes, Any]]:
        """Take one stream's reply; return its entries in the shape of XREADGROUP's reply."""
        self._cursors[stream] = text(reply[0])
        if self._cursors[stream] != "0-0":  # there may be more
            self._look_at_s = 0.0
        return [(stream.encode(), reply[1])] if reply[1] else []
