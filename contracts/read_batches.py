"""Readers' commands to one server: those of one turn of the event loop travel together.

While one batch is on its way the next one gathers, so that batches grow with the load, a lone
command is sent at once, and one connection carries them all.
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextvars import Context
from typing import Any, Final, Protocol

from turnline.contracts.connection import Arg, AsyncRedis, Command, pipelined
from turnline.contracts.errors import CLOSED, StoreUnavailable
from turnline.contracts.notices import Notice, position
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


class _Read:
    """One command that reads streams of one slot for any number of cursors."""

    def __init__(self, words: Command) -> None:
        self._words = words
        self._is_shared = words[0] == "XREAD"  # what a group gives, it gives to one
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

    def hand_out(self, reply: Any) -> None:
        """Give each cursor what was found at it."""
        for name, entries in reply or ():
            for cursor in self._cursors.pop(text(name)):
                cursor.is_on_its_way = False
                cursor.reader.arrived(cursor, entries)
        for cursor in self.cursors:
            cursor.is_on_its_way = False
            cursor.reader.arrived(cursor, [])

    def fail(self, error: Exception) -> list[Cursor]:
        """Tell the cursors; return those that are to be read again, each alone."""
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
            alike.append(_Read(cursor.words))
            alike[-1].takes(cursor)
    return [read for alike in reads.values() for read in alike]


class Batches:
    """Sends the commands of all readers of one server."""

    def __init__(self, redis: AsyncRedis) -> None:
        """Use `redis`; nothing is sent yet."""
        self._redis = redis
        self._due: list[Cursor] = []
        self._asked: list[tuple[Command, asyncio.Future[Any]]] = []
        self._flight: asyncio.Task[None] | None = None

    def read(self, cursor: Cursor) -> None:
        """Read at a cursor soon; if it is on its way already, not once more."""
        if not cursor.is_on_its_way:
            cursor.is_on_its_way = True
            self._due.append(cursor)
            self._begin()

    def execute(self, command: Sequence[Arg]) -> "asyncio.Future[Any]":
        """Send a command soon; return the future of its reply."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.append((tuple(command), reply))
        self._begin()
        return reply

    @property
    def is_busy(self) -> bool:
        """Whether anybody waits for it."""
        return self._flight is not None

    async def aclose(self) -> None:
        """Send nothing more."""
        if self._flight is not None:
            self._flight.cancel()
            await asyncio.gather(self._flight, return_exceptions=True)
        self._answer(self._asked, [RuntimeError(CLOSED)] * len(self._asked))

    def _begin(self) -> None:
        if self._flight is None:
            # Without what its caller has set: the time given for one command is not that of all.
            self._flight = asyncio.get_running_loop().create_task(self._fly(), context=Context())

    async def _fly(self) -> None:
        reads: list[_Read] = []
        asked: list[tuple[Command, asyncio.Future[Any]]] = []
        try:
            while self._due or self._asked:
                reads = merged(self._wanted())
                asked, self._asked = self._asked[:_MOST], self._asked[_MOST:]
                commands = [*(it.command for it in reads), *(command for command, _ in asked)]
                replies = await self._replies(commands)
                self._answer(asked, replies[len(reads) :])
                for read, reply in zip(reads, replies, strict=False):
                    self._hand_out(read, reply)
        except asyncio.CancelledError:
            self._answer(asked, [RuntimeError(CLOSED)] * len(asked))
            raise
        finally:
            self._flight = None

    def _wanted(self) -> list[Cursor]:
        """Return the cursors whose turn it is; those that nobody waits at any more stay behind."""
        due, self._due = self._due[:_MOST], self._due[_MOST:]
        wanted: list[Cursor] = []
        for cursor in due:
            if cursor.reader.is_waiting:
                cursor.is_behind = False
                wanted.append(cursor)
            else:
                cursor.is_on_its_way = False
                cursor.is_behind = True
        return wanted

    async def _replies(self, commands: Sequence[Command]) -> list[Any]:
        """Return replies in order, errors among them."""
        try:
            if len(commands) == 1:
                return [await self._redis.execute_command(*commands[0])]
            return await pipelined(self._redis, commands) if commands else []
        except Exception as error:  # noqa: BLE001  whoever waits must hear of it, or waits for ever
            return [error] * len(commands)

    def _hand_out(self, read: _Read, reply: Any) -> None:
        error = reply if isinstance(reply, Exception) else None
        if error is None:
            try:
                read.hand_out(reply)
            except Exception as odd:  # noqa: BLE001  whoever waits must hear of it, or waits for ever
                error = odd
        if error is not None:
            for cursor in read.fail(error):
                self.read(cursor)

    @staticmethod
    def _answer(
        asked: Sequence[tuple[Command, "asyncio.Future[Any]"]], replies: Sequence[Any]
    ) -> None:
        for (_, future), reply in zip(asked, replies, strict=True):
            if future.done():  # nobody waits any more
                continue
            if isinstance(reply, Exception):
                future.set_exception(reply)
            else:
                future.set_result(reply)
