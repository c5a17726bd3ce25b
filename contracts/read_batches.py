"""Readers' commands to one server: those of one turn of the event loop travel together.

While one batch is on its way the next one gathers, so that batches grow with the load, a lone
command is sent at once, and one connection carries them all. What is to be sent again while others
have their answers, as in a slot that is being moved, is sent apart, and only its slot waits for it.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextvars import Context
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, TypeVar

from turnline.contracts.connection import Arg, Command
from turnline.contracts.errors import CLOSED, StoreUnavailable
from turnline.contracts.notices import Notice, position
from turnline.contracts.patience import PatientRedis
from turnline.contracts.refusals import is_passing
from turnline.contracts.routing import key_of
from turnline.contracts.scripts import text
from turnline.contracts.topology import slot_of
from turnline.contracts.waiting import Entry

_MOST: Final = 500
"""Commands, and streams, in one batch."""
_STREAMS_AT_ONCE: Final = 250
"""Streams in one command: more would keep other clients of the server waiting."""


class Reader(Protocol):
    """Who reads streams."""

    @property
    def is_waiting(self) -> bool:
        """Whether it asks for something at the moment."""
        ...

    def noticed(self, cursor: "Cursor", notice: Notice) -> None:
        """There may be something new at a cursor."""
        ...

    def arrived(self, cursor: "Cursor", entries: list[Entry]) -> None:
        """What was read at a cursor, in order; nothing if there was none."""
        ...

    def failed(self, cursor: "Cursor", error: Exception) -> None:
        """It could not be read."""
        ...


class Cursor:
    """Where a reader stands in one stream."""

    __slots__ = (
        *("after", "is_alone", "is_behind", "is_on_its_way"),
        *("last", "name", "reader", "slot", "words"),
    )

    def __init__(self, reader: Reader, name: str, words: Command) -> None:
        """Stand nowhere yet.

        Args:
            reader: Whose it is.
            name: Key of the stream.
            words: XREAD or XREADGROUP up to its COUNT.
        """
        self.reader = reader
        self.name = name
        self.slot = slot_of(name)
        self.words = words
        self.after = ""
        self.last = b""
        """Id of the last entry that the reader was given; empty in a group."""
        self.is_behind = True
        """Whether there may be something that was not read."""
        self.is_on_its_way = False
        """Whether it is about to be read."""
        self.is_alone = False
        """Whether it shares no command with others, since one that it shared was refused."""

    def stand(self, after: str) -> None:
        """Read behind `after` from now on."""
        if after != self.after and self.words[0] != "XREAD":
            self.is_behind = True  # in a group, what was given before is something else than new
        self.after = after
        if self.words[0] == "XREAD":
            self.last = after.encode()

    def is_followed_by(self, behind: bytes) -> bool:
        """Whether nothing can be between what the reader has and what follows an entry."""
        if not behind or not self.last or self.is_behind or self.is_on_its_way:
            return False
        return behind == self.last or position(behind) <= position(self.last)

    def is_known_to(self, notice: Notice) -> bool:
        """Whether a notice has the last entry that the reader has, so that it is of this stream.

        Channels are the same for all databases of a server: another fleet may tell of its stream of
        this name. What is the first of all in a stream is read, since nothing stands before it.
        """
        ids = (notice.behind, *(entry_id for entry_id, _ in notice.entries))
        return self.last in ids and self.last != b"0-0"


class _Read:
    """One command that reads streams of one slot for any number of cursors."""

    def __init__(self, cursor: Cursor) -> None:
        self.slot = cursor.slot
        self._words = cursor.words
        self._is_shared = cursor.words[0] == "XREAD"  # what a group gives, it gives to one
        self._cursors: dict[str, list[Cursor]] = {}

    def takes(self, cursor: Cursor) -> bool:
        """Add a cursor if the command can read for it too."""
        others = self._cursors.get(cursor.name)
        if others is None:
            if len(self._cursors) >= _STREAMS_AT_ONCE:
                return False
            self._cursors[cursor.name] = [cursor]
            return True
        if self._is_shared and others[0].after == cursor.after:
            others.append(cursor)
            return True
        return False

    @property
    def command(self) -> Command:
        after = (cursors[0].after for cursors in self._cursors.values())
        return (*self._words, "STREAMS", *self._cursors, *after)

    @property
    def cursors(self) -> list[Cursor]:
        return [cursor for cursors in self._cursors.values() for cursor in cursors]

    def answer(self, reply: Any) -> list[Cursor]:
        """Hand over a reply, or why there is none; return the cursors to be read again, alone."""
        if isinstance(reply, Exception):
            return self._fail(reply)
        try:
            self._hand_out(reply)
        except Exception as odd:  # noqa: BLE001  whoever waits must hear of it, or waits for ever
            return self._fail(odd)
        return []

    def _hand_out(self, reply: Any) -> None:
        for name, entries in reply or ():
            for cursor in self._cursors.pop(text(name)):
                cursor.is_on_its_way = False
                cursor.reader.arrived(cursor, entries)
        for cursor in self.cursors:
            cursor.is_on_its_way = False
            cursor.reader.arrived(cursor, [])

    def _fail(self, error: Exception) -> list[Cursor]:
        cursors = self.cursors
        for cursor in cursors:
            cursor.is_on_its_way = False
        if len(self._cursors) > 1 and not isinstance(error, StoreUnavailable):
            for cursor in cursors:
                cursor.is_alone = True
            return cursors
        for cursor in cursors:
            cursor.reader.failed(cursor, error)
        return []


def merged(cursors: Iterable[Cursor]) -> list[_Read]:
    """Return the fewest commands that read at all cursors."""
    reads: dict[object, list[_Read]] = {}
    for cursor in cursors:
        alike = reads.setdefault(cursor if cursor.is_alone else (cursor.slot, cursor.words), [])
        if not any(read.takes(cursor) for read in alike):
            alike.append(_Read(cursor))
            alike[-1].takes(cursor)
    return [read for alike in reads.values() for read in alike]


class _Asked(NamedTuple):
    """Another command."""

    command: Command
    slot: int
    future: "asyncio.Future[Any]"

    def answer(self, reply: Any) -> list[Cursor]:
        """Hand over a reply, or why there is none."""
        if self.future.done():  # nobody waits any more
            pass
        elif isinstance(reply, Exception):
            self.future.set_exception(reply)
        else:
            self.future.set_result(reply)
        return []


_Batch: TypeAlias = Sequence[_Read | _Asked]
_OfSlot = TypeVar("_OfSlot", Cursor, _Asked)


class Batches:
    """Sends the commands of all readers of one server."""

    def __init__(self, redis: PatientRedis) -> None:
        """Use `redis`; nothing is sent yet."""
        self._redis = redis
        self._due: list[Cursor] = []
        self._asked: list[_Asked] = []
        self._unanswered: set[asyncio.Future[Any]] = set()
        self._flight: asyncio.Task[None] | None = None
        self._apart: dict[int, asyncio.Task[None]] = {}
        """By slot: what is sent again, apart; the slot's other commands wait for that."""

    def read(self, cursor: Cursor) -> None:
        """Read at a cursor soon; if it is on its way already, not once more."""
        if not cursor.is_on_its_way:
            cursor.is_on_its_way = True
            self._due.append(cursor)
            self._begin()

    def execute(self, command: Sequence[Arg]) -> "asyncio.Future[Any]":
        """Send a command soon; return the future of its reply."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._unanswered.add(reply)
        reply.add_done_callback(self._unanswered.discard)
        self._asked.append(_Asked(tuple(command), slot_of(key_of(command) or ""), reply))
        self._begin()
        return reply

    @property
    def is_busy(self) -> bool:
        """Whether anybody waits for it."""
        return self._flight is not None or bool(self._apart)

    async def aclose(self) -> None:
        """Send nothing more."""
        tasks = [it for it in (self._flight, *self._apart.values()) if it is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for reply in self._unanswered:
            if not reply.done():
                reply.set_exception(RuntimeError(CLOSED))

    def _begin(self) -> None:
        if self._flight is None:
            # Without what its caller has set: the time given for one command is not that of all.
            self._flight = asyncio.get_running_loop().create_task(self._fly(), context=Context())

    async def _fly(self) -> None:
        try:
            while True:
                due, asked = self._next(self._due), self._next(self._asked)
                batch: list[_Read | _Asked] = [*merged(_wanted(due)), *asked]
                if batch:
                    await self._send(batch, in_part=True)
                elif not due:
                    return
        finally:
            self._flight = None

    async def _send_apart(self, slot: int, batch: _Batch) -> None:
        try:
            await self._send(batch, in_part=False)
        finally:
            del self._apart[slot]
        self._begin()

    def _next(self, waiting: list[_OfSlot]) -> list[_OfSlot]:
        """Take those whose turn it is."""
        taken: list[_OfSlot] = []
        left: list[_OfSlot] = []
        for it in waiting:
            (left if it.slot in self._apart or len(taken) == _MOST else taken).append(it)
        waiting[:] = left
        return taken

    async def _replies(self, batch: _Batch, *, in_part: bool) -> list[Any]:
        """Return replies in order, errors among them."""
        commands = [it.command for it in batch]
        try:
            return await self._redis.send_together(commands, all_or_none=False, in_part=in_part)
        except Exception as error:  # noqa: BLE001  whoever waits must hear of it, or waits for ever
            return [error] * len(batch)

    async def _send(self, batch: _Batch, *, in_part: bool) -> None:
        """Send commands and hand out the replies; what is to be sent again is sent apart."""
        again: dict[int, list[_Read | _Asked]] = {}
        for it, reply in zip(batch, await self._replies(batch, in_part=in_part), strict=True):
            if isinstance(reply, Exception) and is_passing(reply):
                again.setdefault(it.slot, []).append(it)
                continue
            for cursor in it.answer(reply):
                self.read(cursor)
        for slot, its in again.items():
            self._apart[slot] = asyncio.get_running_loop().create_task(self._send_apart(slot, its))


def _wanted(due: Iterable[Cursor]) -> Iterator[Cursor]:
    """Yield the cursors that somebody waits at; the others stay behind."""
    for cursor in due:
        if cursor.reader.is_waiting:
            cursor.is_behind = False
            yield cursor
        else:
            cursor.is_on_its_way = False
            cursor.is_behind = True
