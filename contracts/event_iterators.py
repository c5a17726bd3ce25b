"""Iterators over events, which may be asked again after a step of theirs was cancelled."""

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Generic, Self, TypeVar, cast

from turnline.contracts.homes import TRUST_S, Homes
from turnline.contracts.layout import Layout
from turnline.contracts.readers import (
    MOVED,
    READ,
    StreamReading,
    TurnReading,
    until_the_next_look_s,
)
from turnline.contracts.replies import TERMINAL, AnyEvent, TurnRecord, is_end
from turnline.contracts.scripts import text
from turnline.contracts.waiting import OpenStreams, Streams

E = TypeVar("E", bound=AnyEvent | None)
SLACK_S = 0.4
"""Seconds beyond the time of a keep-alive that an answer of the server may take."""
FRESH_S = 0.05
"""First wait for the events of a turn just accepted, before its record is looked at."""


class Events(AsyncIterator[E], ABC, Generic[E]):
    """Events, in order.

    A step that is cancelled, as `asyncio.wait_for` does, ends nothing and loses nothing: the next
    one goes on from there. `aclose` ends the iteration; so does its last event.
    """

    def __init__(
        self, streams: Streams, homes: Homes, reading: StreamReading, keep_alive_s: float | None
    ) -> None:
        """Begin; nothing is sent before the first step.

        Args:
            streams: How they are waited for.
            homes: Where conversations are.
            reading: Where to begin.
            keep_alive_s: Seconds without an event after which a step returns None.

        Raises:
            ValueError: That is no time.
        """
        self._streams = streams
        self._homes = homes
        self._layout: Layout | None = None
        self._reading = reading
        self._opened: OpenStreams | None = None
        if keep_alive_s is not None and not keep_alive_s > 0:  # nor is it NaN
            raise ValueError("keep_alive_s: expected a number of seconds above 0")
        self._keep_alive_s = math.inf if keep_alive_s is None else keep_alive_s
        self._keep_alive_at_s: float | None = None
        """When the step that was begun returns None; it stays so while the step is cancelled."""
        self._events: deque[AnyEvent] = deque()
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> E:
        if self._keep_alive_at_s is None:
            self._keep_alive_at_s = time.monotonic() + self._keep_alive_s
        while not self._events:
            if self._is_over:
                raise StopAsyncIteration
            left_s = self._keep_alive_at_s - time.monotonic()
            if left_s <= 0:
                self._keep_alive_at_s = None
                return cast("E", None)
            await self._step_within(left_s)
            if self._is_over:
                self._close()
        self._keep_alive_at_s = None
        return cast("E", self._events.popleft())

    async def _step_within(self, left_s: float) -> None:
        """Step, and leave a server that says nothing in time for the keep-alive."""
        if left_s == math.inf:
            await self._step(left_s)
            return
        with suppress(TimeoutError):
            async with self._streams.within(left_s + SLACK_S):
                await self._step(left_s)

    async def aclose(self) -> None:
        """End the iteration."""
        self._is_over = True
        self._events.clear()
        self._close()

    def __del__(self) -> None:
        if self._opened is not None:
            self._opened.forget()

    def _close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    @abstractmethod
    async def _step(self, wait_s: float) -> None:
        """Read once, waiting for no longer than this. What is awaited last may be cancelled."""
        raise NotImplementedError

    async def _open(self) -> OpenStreams:
        """Return the stream where the conversation is."""
        reading = self._reading
        await self._homes.refresh(at_once=bool(reading.moved_at))
        layout = self._homes.layout
        if reading.moved_at or self._layout is not layout:
            stream = await self._homes.events_of(reading.conversation_id)
            if stream != reading.stream:
                self._close()
            elif await self._is_marked(stream):  # it is not found elsewhere
                reading.after = reading.moved_at
            self._layout, reading.stream, reading.moved_at = layout, stream, ""
        if self._opened is None:
            self._opened = self._streams.open([reading.stream], READ)
        return self._opened

    async def _is_marked(self, stream: str) -> bool:
        """Whether the mark is still there; it is not if the conversation came back."""
        at = self._reading.moved_at
        return bool(at and await self._streams.execute(stream, "XRANGE", stream, at, at))


class ConversationEvents(Events[E]):
    """All events of a conversation, without an end."""

    async def _step(self, wait_s: float) -> None:
        reading, opened = self._reading, await self._open()
        if reading.after == "$":
            command = ("XREVRANGE", reading.stream, "+", "-", "COUNT", 1)
            newest = await self._streams.execute(reading.stream, *command)
            if newest and MOVED in newest[0][1]:
                reading.moved_at = text(newest[0][0])
                return
            reading.after = text(newest[0][0]) if newest else "0-0"
        found = await opened.read([reading.after], min(wait_s, TRUST_S))
        self._events.extend(reading.parse(found))


class TurnEvents(Events[E]):
    """The events of one turn, until its terminal one."""

    _reading: TurnReading

    def __init__(
        self,
        streams: Streams,
        homes: Homes,
        reading: TurnReading,
        record: Callable[[], Awaitable[TurnRecord]],
        *,
        seen: str | None,
        is_fresh: bool,
        keep_alive_s: float | None,
    ) -> None:
        """Begin where `reading` stands; see `Events`.

        Args:
            streams: How they are waited for.
            homes: Where conversations are.
            reading: Where to begin.
            record: Returns the turn's record.
            seen: Id of the last event already seen.
            is_fresh: Whether the turn was accepted just now.
            keep_alive_s: Seconds without an event after which a step returns None.
        """
        super().__init__(streams, homes, reading, keep_alive_s)
        self._record = record
        self._seen = seen
        self._look_at_s = time.monotonic() + FRESH_S if is_fresh else 0.0
        self._is_to_look = False
        self._done: AnyEvent | None = None

    async def _step(self, wait_s: float) -> None:
        if self._is_to_look:
            self._done = (await self._record()).terminal()
            self._is_to_look = False
            if self._done is None:
                self._look_at_s = time.monotonic() + until_the_next_look_s(self._streams.look_s)
            return
        reading, opened = self._reading, await self._open()
        began_s = time.monotonic()
        limit_s = 0.0 if self._done else min(wait_s, max(0.0, self._look_at_s - began_s))
        found = await opened.read([reading.after], min(limit_s, TRUST_S))
        for event in reading.parse(found):
            self._events.append(event)
            if isinstance(event, TERMINAL):
                self._is_over = True
                return
        if reading.moved_at:
            return
        if self._done is None:
            now_s = time.monotonic()
            if found or now_s >= self._look_at_s or now_s < began_s + limit_s:  # or it may be gone
                self._is_to_look = reading.is_time_to_look(found)
        elif reading.caught_up:
            if not await self._has_seen_the_end():  # its event was trimmed
                self._events.append(self._done)
            self._is_over = True

    async def _has_seen_the_end(self) -> bool:
        if self._seen is None:
            return False
        stream, at = self._reading.stream, self._seen
        entries = await self._streams.execute(stream, "XRANGE", stream, at, at)
        return any(is_end(fields[b"e"], self._reading.turn_id) for _, fields in entries)
