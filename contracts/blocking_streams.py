"""Streams that are waited for by commands that block, on a connection of their own."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from turnline.contracts.connection import Arg, Command
from turnline.contracts.errors import StoreIncompatible
from turnline.contracts.patience import PatientRedis, at_most
from turnline.contracts.readers import BLOCK_S, LOOK_S
from turnline.contracts.scripts import text
from turnline.contracts.topology import slot_of
from turnline.contracts.waiting import Found

_TURN_S: Final = 0.25
"""How long one slot of several is waited for."""


class BlockingStreams:
    """The streams of a client without an event loop; see `Streams`."""

    def __init__(self, redis: PatientRedis) -> None:
        """Use a client whose coroutines block and never pause."""
        self._redis = redis

    @property
    def look_s(self) -> float:
        """See `Streams`: nobody who blocks hears that a stream was removed."""
        return LOOK_S

    def open(self, names: Sequence[str], words: Command) -> "_Blocking":
        """Begin to read streams; see `Streams`."""
        return _Blocking(self._redis, names, words)

    async def execute(self, key: str, *command: Arg) -> Any:  # noqa: ARG002  it stands in the command
        """Send a command; see `Streams`."""
        return await self._redis.execute_command(*command)

    @asynccontextmanager
    async def within(self, timeout_s: float) -> AsyncGenerator[None, None]:
        """Have every command inside end in time; see `Streams`."""
        with at_most(timeout_s):
            yield

    async def aclose(self) -> None:
        """Nothing is open."""


class _Blocking:
    """Streams that are waited for by one command; in a cluster, by one for each slot in turn."""

    def __init__(self, redis: PatientRedis, names: Sequence[str], words: Command) -> None:
        self._redis = redis
        self._words = words
        self._names = names
        self._parts: list[Sequence[int]] = [range(len(names))]

    async def read(self, after: Sequence[str], wait_s: float) -> Found:
        until_s = time.monotonic() + wait_s
        while True:
            left_s = min(until_s - time.monotonic(), BLOCK_S)
            try:
                found = await self._look(after, left_s)
            except StoreIncompatible as error:
                if "CROSSSLOT" not in str(error) or len(self._parts) > 1:
                    raise
                self._parts = _by_slot(self._names)
                continue
            if found or time.monotonic() >= until_s:
                return found

    async def _look(self, after: Sequence[str], wait_s: float) -> Found:
        """Read all streams; wait for those of one slot, in the end, for as long as that is fair."""
        *first, last = self._parts
        found = [it for part in first for it in await self._read(part, after, 0.0)]
        self._parts = [last, *first]
        limit_s = 0.0 if found else min(wait_s, _TURN_S) if first else wait_s
        return found + await self._read(last, after, limit_s)

    async def _read(self, part: Sequence[int], after: Sequence[str], wait_s: float) -> Found:
        block = ("BLOCK", max(1, int(wait_s * 1000))) if wait_s > 0 else ()
        names, positions = [self._names[n] for n in part], [after[n] for n in part]
        command = (*self._words, *block, "STREAMS", *names, *positions)
        reply = await self._redis.execute_command(*command)
        return [(text(name), entries) for name, entries in reply or () if entries]

    def close(self) -> None:
        """Nothing is open."""

    def forget(self) -> None:
        """Nothing is open."""


def _by_slot(names: Sequence[str]) -> list[Sequence[int]]:
    """Return the places of streams, those of one slot together."""
    slots: dict[int, list[int]] = {}
    for place, name in enumerate(names):
        slots.setdefault(slot_of(name), []).append(place)
    return list(slots.values())
