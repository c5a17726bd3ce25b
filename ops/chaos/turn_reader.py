"""Readers of a run: each shows one turn, and notes what it was shown and told."""

import asyncio
import random
import time
from contextlib import aclosing
from typing import Any, Final

from redis.exceptions import RedisError

from turnline.contracts import (
    Receipt,
    ResultTimeout,
    StoreUnavailable,
    TextDelta,
    TurnClient,
    TurnUnknown,
)
from turnline.contracts.protocol import TextAssembler
from turnline.contracts.replies import TERMINAL
from turnline.ops.chaos.journal import ClientError, Journal, Shown

GIVEN_UP: Final = (StoreUnavailable, RedisError, OSError)
"""What a client raises that has no more patience."""
PAUSE_S: Final = 0.1


class Errors:
    """Notes what clients raise in place of an answer."""

    def __init__(self, journal: Journal) -> None:
        """Note them in a journal."""
        self._found = journal.errors

    def note(self, conversation: str, verb: str, began_ms: float, error: Exception) -> None:
        """Note one, and how long it took to come."""
        at_ms = now_ms()
        what = f"{type(error).__name__}: {error}"
        self._found.append(
            ClientError(
                conversation=conversation,
                verb=verb,
                at_ms=at_ms,
                took_ms=at_ms - began_ms,
                what=what,
            )
        )


class TurnReader:
    """Shows one turn, by one of the three ways there are."""

    def __init__(
        self, client: TurnClient, receipt: Receipt, shown: Shown, seed: int, errors: Errors
    ) -> None:
        """Be ready to show the turn of a receipt; the seed decides when the reader leaves."""
        self.shown = shown
        self.begun = asyncio.Event()
        """Set when text was shown, or the turn is over."""
        self._client = client
        self._receipt = receipt
        self._errors = errors
        self._rng = random.Random(seed)
        self._screen = TextAssembler()

    async def run(self) -> None:
        """Read to the end; come back after leaving, and after an error, as browsers do."""
        try:
            while not self.shown.ended:
                began_ms = now_ms()
                try:
                    await self._read()
                except ResultTimeout:
                    await asyncio.sleep(PAUSE_S)
                except GIVEN_UP as error:
                    where = self._receipt.conversation_id
                    self._errors.note(where, self.shown.by, began_ms, error)
                    await asyncio.sleep(PAUSE_S)
                except TurnUnknown:
                    self.shown.ended = "unknown"
                self.shown.resumed += 1
        finally:
            self.begun.set()

    async def _read(self) -> None:
        match self.shown.by:
            case "events":
                await self._read_events()
            case "text":
                async with aclosing(closable(self._client.text(self._receipt))) as texts:
                    async for text in texts:
                        self.shown.text = text
                        self.begun.set()
                self.shown.ended = "text"
            case "result":
                end = await self._client.result(self._receipt, timeout_s=5)
                self.shown.text = getattr(end, "text", "")
                self.shown.ended = type(end).__name__

    async def _read_events(self) -> None:
        shown, screen = self.shown, self._screen
        after = shown.ids[-1] if shown.ids else None
        async with aclosing(closable(self._client.events(self._receipt, after=after))) as events:
            async for event in events:
                shown.ids.append(event.event_id)
                screen.feed(event)
                shown.text = screen.text
                if isinstance(event, TERMINAL):
                    shown.ended = type(event).__name__
                    return
                if isinstance(event, TextDelta):
                    self.begun.set()
                if self._rng.random() < 0.05:
                    return  # leaves, and resumes after the last event it saw


def closable(iterator: Any) -> Any:
    """Return an async iterator as the generator it is, so that it can be closed."""
    return iterator


def now_ms() -> float:
    """Return the wall clock, ms since the Unix epoch."""
    return time.time() * 1000
