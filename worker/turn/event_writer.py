"""Publishes a running turn's events: the first at once, later ones gathered, none awaited."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from turnline.contracts.conversation import CallEntry
from turnline.contracts.replies import AnyEvent, TextDelta, encode_event
from turnline.worker.errors import LeaseLost, StoreUnavailable
from turnline.worker.lease import Lease

SHOWN_MAX_BYTES: Final = 2 * 1024 * 1024
"""Text of an attempt that is published as it comes, UTF-8 bytes; the turn's end has all of it."""


class EventSink(Protocol):
    """Where events go."""

    async def emit(
        self,
        lease: Lease,
        events: Sequence[bytes],
        *,
        head: str,
        batch: int,
        call: CallEntry | None = None,
    ) -> None:
        """Publish encoded events; see `turnline.worker.store.conversations`."""
        ...


class EventWriter:
    """Events of one attempt at one turn, in order.

    What is not published when the attempt ends is handed to the commit (`rest`), which publishes it
    in the same step as the terminal event.
    """

    def __init__(
        self,
        sink: EventSink,
        lease: Lease,
        *,
        conversation_id: str,
        turn_id: str,
        attempt: int,
        trace_id: str,
        head: str,
        next_batch: Callable[[], int],
        coalesce_s: float,
        coalesce_bytes: int,
        on_lost: Callable[[], object],
    ) -> None:
        """Write to `sink` under `lease`.

        Args:
            sink: Where events go.
            lease: Of the conversation.
            conversation_id: Of all events.
            turn_id: Of all events.
            attempt: Of all events.
            trace_id: Of all events.
            head: Inbox entry whose turn this is.
            next_batch: Numbers what is sent, growing over all writers of the turn.
            coalesce_s: Seconds between two text events, unless `coalesce_bytes` come first.
            coalesce_bytes: Text that is sent without waiting.
            on_lost: Called if the lease turns out to be lost.
        """
        self._sink = sink
        self._lease = lease
        self._head = head
        self._next_batch = next_batch
        self._ids = (conversation_id, turn_id, attempt, trace_id)
        self._coalesce_s = coalesce_s
        self._coalesce_chars = coalesce_bytes
        self._on_lost = on_lost
        self._events: list[AnyEvent] = []
        self._pieces: list[str] = []
        self._chars = 0
        self._offset = 0
        self._left_bytes = SHOWN_MAX_BYTES
        self._flusher: asyncio.Task[None] | None = None
        self._full: asyncio.Future[None] | None = None
        self._sending = asyncio.Lock()

    @property
    def chars(self) -> int:
        """Characters of text taken so far."""
        return self._offset + self._chars

    def text(self, piece: str) -> None:
        """Take more of the reply."""
        self._pieces.append(piece)
        self._chars += len(piece)
        self._wake(self._chars >= self._coalesce_chars)

    def event(self, event: AnyEvent) -> None:
        """Take an event that stands behind the text so far."""
        self._seal()
        self._events.append(event)
        self._wake(full=True)

    async def begin_call(self, event: AnyEvent | None, call: CallEntry) -> None:
        """Publish that a model call begins, and return when that is safe.

        Raises:
            LeaseLost: Nothing was written.
            StoreUnavailable: Redis did not answer.
        """
        if event is not None:
            self._events.insert(0, event)
        self._seal()
        events, self._events = self._events, []
        await self._send(events, call)

    async def publish_rest(self) -> None:
        """Publish what is not on its way yet, as the last thing that this writer does.

        Raises:
            LeaseLost: Nothing was written.
            StoreUnavailable: Redis did not answer.
        """
        if rest := self.rest():
            await self._send(rest)

    def rest(self) -> list[AnyEvent]:
        """Return what is not on its way yet; nothing is published by this writer any more."""
        self._seal()
        rest, self._events = self._events, []
        self.close()
        return rest

    def close(self) -> None:
        """Publish nothing more; what is on its way goes on."""
        if self._full is not None and not self._full.done():
            self._full.set_result(None)

    def _seal(self) -> None:
        """Make an event of the text gathered."""
        if not self._pieces:
            return
        text = "".join(self._pieces)
        self._left_bytes -= len(text) if text.isascii() else len(text.encode())
        if self._left_bytes >= 0:
            conversation_id, turn_id, attempt, trace_id = self._ids
            self._events.append(
                TextDelta(
                    conversation_id=conversation_id,
                    turn_id=turn_id,
                    attempt=attempt,
                    trace_id=trace_id,
                    text=text,
                    offset=self._offset,
                )
            )
        self._offset += self._chars
        self._pieces.clear()
        self._chars = 0

    def _wake(self, full: bool) -> None:  # noqa: FBT001  one of two reasons to wake
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())
        elif full and self._full is not None and not self._full.done():
            self._full.set_result(None)

    async def _send(self, events: Sequence[AnyEvent], call: CallEntry | None = None) -> None:
        """Send one batch; one that has to be tried again is not overtaken by the next."""
        async with self._sending:
            await self._sink.emit(
                self._lease,
                [*map(encode_event, events)],
                head=self._head,
                batch=self._next_batch(),
                call=call,
            )

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._seal()
                events, self._events = self._events, []
                if not events:
                    return
                await self._send(events)
                self._full = full = loop.create_future()
                timer = loop.call_later(self._coalesce_s, _resolve, full)
                await full
                timer.cancel()
        except LeaseLost:
            self._on_lost()
        except StoreUnavailable:
            pass  # readers get the whole text with the terminal event
        finally:
            self._flusher = None


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
