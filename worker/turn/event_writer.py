"""Publishes a running turn's events: the first at once, later ones gathered, none awaited."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from turnline.contracts.conversation import CallEntry
from turnline.contracts.replies import AnyEvent, ReasoningSummaryDelta, TextDelta, encode_event
from turnline.worker.errors import LeaseLost, StoreUnavailable
from turnline.worker.lease import Lease
from turnline.worker.turn.ports import Store

SHOWN_MAX_BYTES: Final = 2 * 1024 * 1024
"""Text of an attempt that is published as it comes, UTF-8 bytes; the turn's end has all of it."""


class EventWriter:
    """Events of one attempt at one turn, in order.

    What is not published when the attempt ends is handed to the commit (`rest`), which publishes it
    in the same step as the terminal event.
    """

    def __init__(
        self,
        store: Store,
        lease: Lease,
        ids: Mapping[str, Any],
        *,
        entry_id: str,
        batches: Iterator[int],
        coalesce_s: float,
        coalesce_bytes: int,
        first: Iterable[AnyEvent] = (),
    ) -> None:
        """Write to `store` under `lease`.

        Args:
            store: Where events go.
            lease: Of the conversation.
            ids: Conversation, turn, attempt and trace: fields of all events.
            entry_id: Inbox entry whose turn this is.
            batches: Numbers what is sent, growing over all writers of the turn.
            coalesce_s: Seconds between two text events, unless `coalesce_bytes` come first.
            coalesce_bytes: Text that is sent without waiting.
            first: What goes before everything else, as soon as there is something.
        """
        self._store = store
        self._lease = lease
        self._ids = ids
        self._entry_id = entry_id
        self._batches = batches
        self._coalesce_s = coalesce_s
        self._coalesce_chars = coalesce_bytes
        self._events = [*first]
        self._pieces: list[str] = []
        self._thoughts: list[str] = []
        self._chars = 0
        self._offset = 0
        self._left_bytes = SHOWN_MAX_BYTES
        self._flusher: asyncio.Task[None] | None = None
        self._full: asyncio.Future[None] | None = None
        self._sending = asyncio.Lock()
        self._answering: asyncio.Task[None] | None = None

    @property
    def chars(self) -> int:
        """Characters of text so far."""
        return self._offset + self._chars

    def text(self, piece: str) -> None:
        """Add more of the reply."""
        self._pieces.append(piece)
        self._chars += len(piece)
        if self._flusher is None or self._chars >= self._coalesce_chars:
            self._wake()

    def thought(self, piece: str) -> None:
        """Add more of what the model tells of its thoughts."""
        if self._pieces:
            self._seal()
        self._thoughts.append(piece)
        if self._flusher is None:
            self._wake()

    def event(self, event: AnyEvent) -> None:
        """Add an event that stands behind the text so far."""
        self._seal()
        self._events.append(event)
        self._wake()

    def cancel_when_lost(self, answering: "asyncio.Task[None] | None") -> None:
        """Cancel this task once the server says that the lease is lost; None: no task any more."""
        self._answering = answering

    async def begin_call(self, call: CallEntry) -> None:
        """Publish that a model call begins, and return when that is safe.

        Raises:
            LeaseLost: Nothing was written.
            StoreUnavailable: Redis did not answer.
        """
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
        self._end_wait()

    def _seal(self) -> None:
        """Make an event of the thoughts, and one of the text, gathered."""
        if self._thoughts:
            thought = "".join(self._thoughts)
            self._thoughts.clear()
            self._events.append(ReasoningSummaryDelta(**self._ids, text=thought))
        if not self._pieces:
            return
        text = "".join(self._pieces)
        self._left_bytes -= len(text) if text.isascii() else len(text.encode())
        if self._left_bytes >= 0:
            self._events.append(TextDelta(**self._ids, text=text, offset=self._offset))
        self._offset += self._chars
        self._pieces.clear()
        self._chars = 0

    def _wake(self) -> None:
        """Publish what there is, as soon as what is on its way is through."""
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())
        else:
            self._end_wait()

    def _end_wait(self) -> None:
        if self._full is not None:
            _resolve(self._full)

    async def _send(self, events: Sequence[AnyEvent], call: CallEntry | None = None) -> None:
        """Send one batch; one that has to be tried again is not overtaken by the next."""
        async with self._sending:
            await self._store.emit(
                self._lease,
                [*map(encode_event, events)],
                head=self._entry_id,
                batch=next(self._batches),
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
            if self._answering is not None:
                self._answering.cancel()
        except StoreUnavailable:
            pass  # readers get the whole text with the terminal event
        finally:
            self._flusher = None


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
