"""What a reply holds beside its text and its calls: its frames, and their way into a message."""

from dataclasses import dataclass
from typing import Any

import msgspec

from turnline.contracts.numbers import number
from turnline.worker.pipeline.frames import DataFrame
from turnline.worker.pipeline.reply_items import CITATIONS, REPLY_ITEMS, fit, placed

_decode = msgspec.json.Decoder(dict[str, Any], float_hook=number).decode


@dataclass
class LLMThoughtTextFrame(DataFrame):
    """A piece of what the model shows of its thoughts; never part of the answer."""

    text: str


@dataclass
class LLMReplyItemFrame(DataFrame):
    """An item that the next request has to hold: encrypted reasoning, or a tool run elsewhere."""

    index: int
    """Its place among the items of the response; one that came before with it is replaced."""
    item: bytes
    """JSON, always the same for the same value."""
    model: str
    """The model that made it, as the provider calls it: no other can read it."""
    asked: str
    """The name by which it was asked for."""
    chars: int = 0
    """Characters of the response's text before it."""
    calls: int = 0
    """Function calls before it."""


@dataclass
class LLMServerToolFrame(DataFrame):
    """A tool that the provider runs was called, or is done."""

    call_id: str
    tool: str
    ok: bool | None = None
    """Whether it worked; None: it has begun."""


@dataclass
class LLMCitationFrame(DataFrame):
    """A source of what is said."""

    url: str
    title: str
    start: int
    """Characters of the response's text before what it is a source of."""
    end: int


class BesideText:
    """What came beside the text and the calls of one response, until it has a message."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._items: dict[int, LLMReplyItemFrame] = {}
        self._citations: list[LLMCitationFrame] = []

    def add(self, frame: LLMReplyItemFrame | LLMCitationFrame) -> None:
        """Take what came; an item replaces the one that came before under its index."""
        if isinstance(frame, LLMReplyItemFrame):
            self._items[frame.index] = frame
        else:
            self._citations.append(frame)

    def take(self, message: dict[str, Any], *, cut: int = 0) -> None:
        """Put all of it into a message, and keep nothing.

        Args:
            message: An assistant's, with the text or the calls of the response.
            cut: Characters of the response's text that were left out at its beginning.
        """
        items, citations = self._items, self._citations
        if not items and not citations:
            return
        self._items, self._citations = {}, []
        if items:
            last = items[max(items)]
            asked = {"asked": last.asked} if last.asked != last.model else {}
            kept = [
                placed(_decode(it.item), max(0, it.chars - cut), it.calls)
                for _, it in sorted(items.items())
            ]
            message[REPLY_ITEMS] = {"model": last.model, **asked, "items": kept}
        if citations:
            message[CITATIONS] = [
                {
                    "url": it.url,
                    "title": it.title,
                    "start": max(0, it.start - cut),
                    "end": max(0, it.end - cut),
                }
                for it in citations
            ]
        fit(message)
