"""Streams that are read when a notice says that they have grown: thousands on two connections.

Who writes to a stream also publishes what it wrote on the sharded channel of its name. A reader who
stands where that begins has it without a command; else, and once a subscription is confirmed, the
stream is read, in one command for all who wait. Streams are read without a notice too, ever more
seldom: one may have been lost, or was never sent.

Source: docs/adr/0033-readers-wait-for-notices.md
"""

import asyncio
import contextlib
import math
import random
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, NamedTuple

from redis.asyncio import ConnectionPool

from turnline.contracts.connection import Arg, Command
from turnline.contracts.errors import CLOSED
from turnline.contracts.notices import Notice, position, read_notice
from turnline.contracts.patience import PatientRedis
from turnline.contracts.read_batches import Batches, Cursor
from turnline.contracts.servers import Servers
from turnline.contracts.subscriber import Subscriber
from turnline.contracts.subscriber_link import Place
from turnline.contracts.topology import slot_of
from turnline.contracts.waiting import Entry, Found

FIRST_SWEEP_S = 1.0
"""Time after which a stream is read without a notice; each further time after twice as long."""
UNHEARD_SWEEP_S = 0.25
"""The same where no notices are heard, or none come: then it stays so."""
LONGEST_SWEEP_S = 20.0
"""Longest such time, where notices are heard."""
SWEPT_PER_S: Final = 5_000
"""Most readers whose streams are read in a second because no notices are heard."""
LINGER_S = 5.0
"""Seconds for which notices of a stream are still heard after its last reader has left."""
LOOK_S = 120.0
"""Time for which a reader trusts a stream that stays silent: notices tell of its end, too."""
MOST_KEPT = 64
"""Entries kept for a reader who does not ask for them; what more comes is read when it does."""
_TICK_S: Final = 0.05
"""What is due is done on a common clock, so that what follows travels together."""


class _Topic:
    """A stream whose notices are heard, and those who stand in it."""

    def __init__(self) -> None:
        self.cursors: dict[Cursor, None] = {}
        self.has_begun = False

    def heard(self, data: bytes | None) -> None:
        """The stream has grown, or may have; or it, and what belongs to it, may be gone."""
        if data is None:
            notice = Notice(is_sent=False, may_be_gone=self.has_begun)
            self.has_begun = True
        else:
            notice = read_notice(data)
        for cursor in tuple(self.cursors):
            cursor.reader.noticed(cursor, notice)


class NoticedStreams:
    """The streams of a client, and those who wait for them. Belongs to one event loop."""

    def __init__(
        self,
        redis: PatientRedis,
        subscriber: Subscriber,
        server_of: Callable[[int], Hashable],
        closed: Callable[[], object],
    ) -> None:
        """Prepare to wait; nothing is sent yet.

        Args:
            redis: Sends each command to where its key is.
            subscriber: Hears the notices; it is closed here.
            server_of: Returns what stands for the server that has a slot at the moment.
            closed: Called at the end.
        """
        self._redis = redis
        self._subscriber = subscriber
        self._server_of = server_of
        self._closed = closed
        self._batches: dict[Hashable, Batches] = {}
        self._topics: dict[str, _Topic] = {}
        self._left: OrderedDict[str, float] = OrderedDict()  # topics nobody reads, and since when
        self._leaving: asyncio.TimerHandle | None = None
        self._waiting: set[_Open] = set()
        self._is_closed = False

    @property
    def look_s(self) -> float:
        """See `Streams`."""
        return LOOK_S

    def open(self, names: Sequence[str], words: Command) -> "_Open":
        """Begin to hear the notices of streams; see `Streams`."""
        reader = _Open(self, self._subscriber.at_home())
        reader.cursors = [Cursor(reader, name, words) for name in names]
        reader.is_shared = words[0] == "XREAD"
        for cursor in reader.cursors:
            self._listen(cursor)
        return reader

    async def execute(self, key: str, *command: Arg) -> Any:
        """Send a command beside the reads of a server; see `Streams`."""
        self._subscriber.at_home()
        return await self._batches_of(slot_of(key)).execute(command)

    def within(self, timeout_s: float) -> asyncio.Timeout:
        """Cancel what is awaited inside after so long; see `Streams`."""
        return asyncio.timeout(timeout_s)

    async def aclose(self) -> None:
        """End all waiting: readers are told that the connection is lost."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._leaving is not None:
            self._leaving.cancel()
        for reader in tuple(self._waiting):
            reader.failed(reader.cursors[0], RuntimeError(CLOSED))
        for batches in self._batches.values():
            await batches.aclose()
        await self._subscriber.aclose()
        self._closed()

    def read(self, cursor: Cursor) -> None:
        """Read at a cursor soon."""
        self._batches_of(cursor.slot).read(cursor)

    def _batches_of(self, slot: int) -> Batches:
        """Return what sends commands to the server that has a slot, beside nothing else.

        One server that is away then holds up nobody who asks another one.
        """
        server = self._server_of(slot)
        batches = self._batches.get(server)
        if batches is None:
            self._batches = {its: it for its, it in self._batches.items() if it.is_busy}
            batches = self._batches[server] = Batches(self._redis)
        return batches

    # -- who waits ------------------------------------------------------------------------------

    def waits(self, reader: "_Open") -> None:
        """Take note that a reader waits.

        Raises:
            RuntimeError: The client was closed: nobody would wake it.
        """
        if self._is_closed:
            raise RuntimeError(CLOSED)
        self._waiting.add(reader)

    def waits_no_more(self, reader: "_Open") -> None:
        """End that."""
        self._waiting.discard(reader)

    def longest_pause_s(self, reader: "_Open") -> float:
        """Return the longest time between two reads of a reader's streams without a notice."""
        if all(self._subscriber.is_heard(cursor.name) for cursor in reader.cursors):
            return LONGEST_SWEEP_S
        return max(UNHEARD_SWEEP_S, len(self._waiting) / SWEPT_PER_S)

    # -- who listens to what --------------------------------------------------------------------

    def _listen(self, cursor: Cursor) -> None:
        topic = self._topics.get(cursor.name)
        if topic is None:
            topic = self._topics[cursor.name] = _Topic()
            # Where a confirmation follows at once, a read before it would be of no use.
            cursor.is_behind = not self._subscriber.listen(cursor.name, topic.heard)
        self._left.pop(cursor.name, None)
        topic.cursors[cursor] = None

    def leave(self, cursor: Cursor) -> None:
        """Take a cursor away; soon after the last one, the stream is heard no more."""
        topic = self._topics.get(cursor.name)
        if self._is_closed or topic is None or cursor not in topic.cursors:
            return
        del topic.cursors[cursor]
        if not topic.cursors:
            loop = self._subscriber.at_home()
            self._left[cursor.name] = loop.time()
            if self._leaving is None:
                self._leaving = loop.call_later(LINGER_S, self._leave_topics, loop)

    def _leave_topics(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hear no more of topics that nobody has come back to."""
        self._leaving = None
        while self._left:
            name, since_s = next(iter(self._left.items()))
            left_s = since_s + LINGER_S - loop.time()
            if left_s > 0:
                self._leaving = loop.call_later(left_s + _TICK_S, self._leave_topics, loop)
                return
            del self._left[name]
            self._subscriber.leave(name, self._topics.pop(name).heard)


class _Open:
    """Streams that one reader waits for."""

    def __init__(self, owner: NoticedStreams, loop: asyncio.AbstractEventLoop) -> None:
        self.cursors: list[Cursor] = []
        self._owner = owner
        self._loop = loop
        self._found: Found = []
        self._wait: asyncio.Future[None] | None = None
        self.is_shared = False  # whether reading takes nothing from others
        self._must_answer = False
        self._may_be_gone = False
        self._ends_s = math.inf
        self._sweep_in(FIRST_SWEEP_S)
        self._is_swept = False  # whether the read under way is one without a notice
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_s = math.inf

    @property
    def is_waiting(self) -> bool:
        return self._wait is not None and not self._wait.done()

    async def read(self, after: Sequence[str], wait_s: float) -> Found:
        if self._wait is not None:
            raise RuntimeError("another task waits for this already")
        if wait_s <= 0 and self.is_shared:
            self._found.clear()  # what there is now is asked for: more may have come
        if not self._found:
            await self._read(after, wait_s)
        found, self._found = self._found, []
        return found

    async def _read(self, after: Sequence[str], wait_s: float) -> None:
        self._owner.waits(self)
        wait = self._wait = self._loop.create_future()
        try:
            self._must_answer, self._may_be_gone = wait_s <= 0 or self._may_be_gone, False
            self._ends_s = math.inf if self._must_answer else self._loop.time() + wait_s
            for cursor, its_after in zip(self.cursors, after, strict=True):
                cursor.stand(its_after)
                if cursor.is_behind or self._must_answer:
                    self._owner.read(cursor)
            self._set_alarm()
            await wait
        finally:
            self._wait = None
            self._owner.waits_no_more(self)

    def close(self) -> None:
        self._end_wait()  # of another task
        if self._alarm is not None:
            self._alarm.cancel()
        for cursor in self.cursors:
            self._owner.leave(cursor)

    def forget(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed, and all with it
            self._loop.call_soon_threadsafe(self.close)

    # -- what happens by the clock --------------------------------------------------------------

    def _set_alarm(self) -> None:
        """Be called when something is due. One that is set too early stays: most are never met."""
        due_s = min(self._ends_s, self._sweep_s)
        if self._alarm_s <= due_s:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_s = max(due_s, math.ceil(due_s / _TICK_S) * _TICK_S)
        self._alarm = self._loop.call_at(self._alarm_s, self._rings)

    def _sweep_in(self, pause_s: float) -> None:
        """Have the streams read without a notice; not those of all readers at once."""
        self._pause_s = pause_s
        self._sweep_s = self._loop.time() + pause_s * random.uniform(0.5, 1.0)

    def _rings(self) -> None:
        self._alarm, self._alarm_s = None, math.inf
        if not self.is_waiting:
            return
        now_s = self._loop.time() + _TICK_S / 2  # a loop's clock may be coarse
        if now_s >= self._ends_s:
            self._end_wait()
            return
        if now_s >= self._sweep_s:
            self._sweep_in(min(2 * self._pause_s, self._owner.longest_pause_s(self)))
            self._is_swept = True
            for cursor in self.cursors:
                self._owner.read(cursor)
        self._set_alarm()

    # -- what notices and batches bring ---------------------------------------------------------

    def noticed(self, cursor: Cursor, notice: Notice) -> None:
        self._is_swept = False
        if notice.is_sent:
            self._sweep_in(LONGEST_SWEEP_S)
        if notice.may_be_gone:
            self._may_be_gone = self._must_answer = True
        if self._is_kept(cursor, notice):
            if self._found:  # else all of it was read before it was told
                self._end_wait()
            return
        cursor.is_behind = True
        if self.is_waiting:
            self._owner.read(cursor)

    def _is_kept(self, cursor: Cursor, notice: Notice) -> bool:
        """Keep what a notice brings, if it is all that the reader has not been given yet."""
        if not cursor.is_followed_by(notice.behind):
            return False
        last = position(cursor.last)
        entries = [entry for entry in notice.entries if position(entry[0]) > last]
        if entries and not cursor.is_known_to(notice):
            return False
        if sum(len(kept) for _, kept in self._found) + len(entries) > MOST_KEPT:
            return False
        if entries:
            cursor.last = entries[-1][0]
            self._found.append((cursor.name, list(entries)))
        return bool(self._found) or not self._must_answer

    def arrived(self, cursor: Cursor, entries: list[Entry]) -> None:
        if entries:
            self._found.append((cursor.name, entries))
            cursor.last = entries[-1][0]
            cursor.is_behind = cursor.is_behind or len(entries) >= int(cursor.words[-1])
            if self._is_swept:  # whoever wrote this sends no notices: look again soon
                self._sweep_in(UNHEARD_SWEEP_S)
        elif cursor.is_behind and not self._must_answer and self.is_waiting:
            self._owner.read(cursor)  # a notice came meanwhile
        if self._found or (self._must_answer and not any(it.is_on_its_way for it in self.cursors)):
            self._end_wait()

    def failed(self, cursor: Cursor, error: Exception) -> None:
        cursor.is_behind = True
        if self._wait is not None and not self._wait.done():
            self._wait.set_exception(error)

    def _end_wait(self) -> None:
        if self._wait is not None and not self._wait.done():
            self._wait.set_result(None)


class _OnlyPlace(NamedTuple):
    """A server that never moves."""

    address: str
    pool: ConnectionPool


def noticed_streams(redis: PatientRedis) -> NoticedStreams:
    """Return the streams of the servers of a client."""
    servers = getattr(redis.redis, "servers", None)
    if isinstance(servers, Servers):

        def server_of(slot: int) -> Hashable:
            return servers.known(slot) or slot

        subscriber = Subscriber(servers.place)
        servers.on_moved.append(subscriber.relocate)
        return NoticedStreams(
            *(redis, subscriber, server_of), lambda: servers.on_moved.remove(subscriber.relocate)
        )
    pool: Any = getattr(redis.redis, "connection_pool")  # noqa: B009  a client of redis-py
    place = _OnlyPlace("the server", pool)

    async def locate(_: str) -> Place:
        return place

    return NoticedStreams(redis, Subscriber(locate), lambda _: place, lambda: None)
