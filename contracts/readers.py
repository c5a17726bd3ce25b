"""Where readers of streams stand: what they send next, and how they read the replies."""

import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Sequence
from typing import Final, Generic, TypeVar

import msgspec
from redis.exceptions import ResponseError

from turnline.contracts.refusals import word
from turnline.contracts.replies import (
    TERMINAL,
    AnyEvent,
    AnyTerminal,
    ToolRequest,
    decode_tool_request,
    read_event,
)
from turnline.contracts.scripts import text
from turnline.contracts.waiting import Found, OpenStreams, Streams

T = TypeVar("T")
BLOCK_S = 5.0
"""Longest time for which one command waits, and a group trusts that nothing was left behind."""
READ_COUNT = 512
"""Events read at once."""
READ: Final = ("XREAD", "COUNT", READ_COUNT)
LOOK_S = 5.0
"""Longest time for which a reader trusts the event stream alone."""
TAKE_OVER_S = 300.0
"""Seconds after which an entry that nobody acknowledged counts as abandoned, by default."""
_LOOKS = 4
"""How often a consumer looks for abandoned entries in the time that makes them abandoned."""


MOVED: Final = b"moved"
"""Field of the entry that a conversation leaves behind where it was: the fleet's new number of
shards."""


class StreamReading:
    """Where a reader of an event stream stands."""

    def __init__(self, conversation_id: str, after: str) -> None:
        """Stand behind the event id `after`."""
        self.conversation_id = conversation_id
        self.stream = ""
        """Its key, once it is known."""
        self.after = after
        self.caught_up = False
        """Whether the last reply went up to the stream's end."""
        self.moved_at = ""
        """Id of the entry that says that the stream goes on elsewhere."""

    def parse(self, found: Found) -> Iterator[AnyEvent]:
        """Yield the events of a reply and move on behind each.

        What a later version writes and this one does not know is passed over.
        """
        self.caught_up = sum(len(entries) for _, entries in found) < READ_COUNT
        for _, entries in found:
            for entry_id, fields in entries:
                if fields and MOVED in fields:
                    self.moved_at = text(entry_id)
                    return
                self.after = text(entry_id)
                event = read_event((fields or {}).get(b"e", b""), self.after)
                if event is not None:
                    yield event


class TurnReading(StreamReading):
    """Where a reader of one turn's events stands."""

    def __init__(self, conversation_id: str, after: str, turn_id: str) -> None:
        """Stand behind `after` and heed only `turn_id`."""
        super().__init__(conversation_id, after)
        self.turn_id = turn_id
        self._look_at_s = 0.0

    def parse(self, found: Found) -> Iterator[AnyEvent]:
        """Yield this turn's events."""
        return (event for event in super().parse(found) if event.turn_id == self.turn_id)

    def is_time_to_look(self, found: Found) -> bool:
        """Whether to look at the turn's record now.

        That is when a read brought nothing, and now and then while only other turns' events come:
        the event that ended this one may have been trimmed.
        """
        if not self.caught_up:
            return False
        now_s = time.monotonic()
        if found and now_s < self._look_at_s:
            return False
        self._look_at_s = now_s + LOOK_S
        return True


class GroupReader(Generic[T]):
    """A consumer of shared streams.

    First it reads again what it was given before, then what is new. Now and then it takes over
    what another consumer was given and did not acknowledge.
    """

    def __init__(
        self,
        streams: Streams,
        names: Callable[[], Awaitable[Sequence[str]]],
        read: Callable[[bytes, str], T | None],
        group: tuple[str, str],
        *,
        batch: int,
        idle_s: float | None,
        retention_ms: int,
    ) -> None:
        """Prepare to read; nothing is sent yet.

        Args:
            streams: How they are waited for.
            names: Returns the keys, one per shard; they may become more.
            read: Decodes an entry, given its id; None for one that is of no use.
            group: Names of the group whose entries are read, and of the consumer who reads.
            batch: Entries read at once, and taken over at once from each stream.
            idle_s: Seconds since delivery after which an entry counts as abandoned; None: never.
            retention_ms: Expiry of a stream that is made here.
        """
        self._streams = streams
        self._names_now = names
        self._names: Sequence[str] = ()
        self._opened: OpenStreams | None = None
        self._group = group
        self._read = read
        self._batch = batch
        self._idle_s = idle_s
        self._retention_ms = retention_ms
        self._from = "0"
        self._cursors: dict[str, str] = {}
        self._look_at_s = 0.0

    async def items(self) -> AsyncGenerator[T, None]:
        """Yield what comes; each is acknowledged when the next one is asked for. Never ends."""
        try:
            while True:
                found = await self._next(await self._open())
                for stream, entries in found:
                    for entry_id, fields in entries:
                        data = fields.get(b"e") if fields else None  # without: forgotten meanwhile
                        item = None if data is None else self._read(data, text(entry_id))
                        if item is not None:
                            yield item
                        acknowledge = ("XACK", stream, self._group[0], entry_id)
                        await self._streams.execute(stream, *acknowledge)
                if not found:  # when idle, look again for what a lost connection took with it
                    self._from = ">" if self._from == "0" else "0"
        finally:
            if self._opened is not None:
                self._opened.close()

    async def _open(self) -> OpenStreams:
        """Return the streams of all shards that there are now."""
        names = await self._names_now()
        if self._opened is None or len(names) != len(self._names):
            if self._opened is not None:
                self._opened.close()
            self._names, self._from = names, "0"
            self._cursors = {name: self._cursors.get(name, "0-0") for name in names}
            await self._create()
            words = ("XREADGROUP", "GROUP", *self._group, "COUNT", self._batch)
            self._opened = self._streams.open(names, words)
        return self._opened

    async def _create(self) -> None:
        """Create the group where it is missing."""
        for name in self._names:
            try:
                await self._streams.execute(
                    name, "XGROUP", "CREATE", name, self._group[0], "0", "MKSTREAM"
                )
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise
            await self._streams.execute(name, "PEXPIRE", name, self._retention_ms)

    async def _next(self, opened: OpenStreams) -> Found:
        """Return what others left behind, or what is new; nothing if there is none."""
        try:
            if abandoned := await self._take_over():
                return abandoned
            after = [self._from] * len(self._names)
            return await opened.read(after, BLOCK_S if self._from == ">" else 0)
        except ResponseError as error:
            if not is_group_lost(error):
                raise
            await self._create()
            return []

    async def _take_over(self) -> Found:
        """Take what was abandoned, if it is time to look."""
        now_s = time.monotonic()
        if self._idle_s is None or now_s < self._look_at_s:
            return []
        self._look_at_s = now_s + self._idle_s / _LOOKS
        idle_ms = int(self._idle_s * 1000)
        taken: Found = []
        for stream, cursor in self._cursors.items():
            claim = ("XAUTOCLAIM", stream, *self._group, idle_ms, cursor, "COUNT", self._batch)
            following, entries, *_ = await self._streams.execute(stream, *claim)
            self._cursors[stream] = text(following)
            if self._cursors[stream] != "0-0":  # there may be more
                self._look_at_s = 0.0
            if entries:
                taken.append((stream, entries))
        return taken


def until_the_next_look_s(longest_s: float) -> float:
    """Return how long to wait before a turn's record is looked at.

    Readers that came together do not look together: thousands of looks would hold up all else.
    """
    return longest_s * random.uniform(0.6, 1.0)


def read_terminal(data: bytes, entry_id: str) -> AnyTerminal | None:
    """Decode an entry of a reply stream; None for what no version up to this one has written."""
    event = read_event(data, entry_id)
    return event if isinstance(event, TERMINAL) else None


def read_tool_call(
    data: bytes, _entry_id: str, *, names: Collection[str] | None
) -> ToolRequest | None:
    """Decode a tool call; None for one that is not, or no longer, to be run.

    That is one of another name than `names`, one past its deadline, and one of a later version.
    """
    try:
        call = decode_tool_request(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    is_wanted = names is None or call.name in names
    return call if is_wanted and time.time() * 1000 < call.deadline_at_ms else None


def is_group_lost(error: Exception) -> bool:
    """Whether a reply stream went, and the group with it."""
    return word(error) == "NOGROUP"
