"""Reads the body of one response, whatever its wire: events, limits, text and odd bodies.

A subclass reads the payloads of one wire. What one response may hold is limited for all of them.
"""

from typing import Any, Final, cast

import msgspec

from turnline.worker.pipeline.call_parts import whole_characters
from turnline.worker.pipeline.event_bytes import EventBytes, payloads_of
from turnline.worker.pipeline.reply_text import ReplyText
from turnline.worker.pipeline.shapes import (
    BODY_MAX_BYTES,
    UNDECODED,
    Fields,
    Unreadable,
    as_object,
    decoded,
    failed,
    failure_of,
    short,
)
from turnline.worker.pipeline.stream_events import (
    EmptyDelta,
    MalformedFrame,
    NotAStream,
    OverLimit,
    ReasoningDelta,
    Refusal,
    ResponseNamed,
    StreamEvent,
    StreamFailed,
    TextDelta,
)

REPLY_MAX_BYTES: Final = 4 * 1024 * 1024
"""Longest text of one response, and longest reasoning, UTF-8 bytes."""
SILENCE_MAX_BYTES: Final = 64 * 1024 * 1024
"""What may come in one response that says nothing (comments, empty deltas, more ends), bytes."""
RESPONSE_MAX_BYTES: Final = 512 * 1024 * 1024
"""All that is read of one response, bytes: 4 MiB of text at a few bytes a chunk stay below."""
_MEASURE_AFTER_BYTES: Final = 64 * 1024

EMPTY: Final = EmptyDelta()


class ReplyStream:
    """Reads one response body, piece by piece."""

    def __init__(self) -> None:
        """Begin before the first byte."""
        self._bytes = EventBytes()
        self._events: list[StreamEvent] = []
        self._done = False
        self._read = self._silent = self._reasoned = 0
        self._left = self._stride = REPLY_MAX_BYTES
        """Bytes until the text is to be measured, and what they were at first."""
        self._named = False
        self._plain = False
        """Whether a common chunk needs no more care than its own."""
        self._text = ReplyText()
        self.unread = False
        """Whether words came in fields that are not known, which is of no matter beside text."""

    def feed(self, data: bytes) -> list[StreamEvent]:
        """Return the events that these bytes complete.

        Args:
            data: The next bytes of the body, of any length, cut anywhere.
        """
        events = self._events = []
        if self._done:
            return events
        complete = self._bytes.feed(data)
        if complete:
            self._read_events(complete)
        elif self._bytes.is_full:
            self._read_full()
        self._left -= len(data)
        if self._left < 0:
            self._measure()
        if not events:
            self._note_silence(len(data))
        return events

    def close(self) -> list[StreamEvent]:
        """Return the events that were still open when the body ended."""
        events = self._events = []
        if not self._done:
            rest = self._bytes.rest()
            if self._bytes.is_body:
                self._read_body(rest)
            elif rest:
                self._read_event(rest)
            self._give_half()
            self._end()
        return events

    def forget(self) -> None:
        """Let go of what was read: nothing follows, and whoever holds this may stay for long."""
        self._end()
        self._text = ReplyText()

    def _end(self) -> None:
        self._done = True
        self._bytes.clear()

    # What a wire's own reader does

    def _read_events(self, complete: bytes) -> None:
        """Read whole events, blank lines between them."""
        raise NotImplementedError

    def _read_payload(self, payload: bytes) -> None:
        """Read what one event holds."""
        raise NotImplementedError

    def _read_fields(self, fields: Fields, size: int) -> None:
        """Read a payload of so many bytes, of any shape.

        Raises:
            Unreadable: It holds text or calls in no known shape.
        """
        raise NotImplementedError

    def _read_done(self) -> None:
        """Read `[DONE]`."""
        raise NotImplementedError

    def _read_whole(self, fields: Fields) -> bool:
        """Read a whole reply in place of a stream; False if it is none.

        Raises:
            Unreadable: See `_read_fields`.
        """
        raise NotImplementedError

    # Limits

    def _stop(self, what: str) -> None:
        """Read no more: there is too much of something."""
        if not self._done:
            self._end()
            self._events.append(OverLimit(what))

    def _measure(self) -> None:
        """Measure the text; do so again once so many bytes came that it may be too long."""
        self._read += self._stride - self._left
        text = self._text.utf8_bytes()
        if text > REPLY_MAX_BYTES:
            self._stop("text")
        if self._read > RESPONSE_MAX_BYTES:
            self._stop("response")
        self._left = self._stride = max(REPLY_MAX_BYTES - text, _MEASURE_AFTER_BYTES)

    def _note_silence(self, size: int) -> None:
        """Count what came without saying anything."""
        self._silent += size
        if self._silent > SILENCE_MAX_BYTES:
            self._stop("silence")

    def _note_nothing(self, size: int) -> None:
        """Say that a choice came, of a chunk of so many bytes, and nothing with it."""
        self._events.append(EMPTY)
        self._note_silence(size)

    def _read_full(self) -> None:
        """Read a body that is no completion as far as it is kept; anything else is too long."""
        rest = self._bytes.rest()
        if self._bytes.is_body and not rest.startswith(b"{"):
            self._read_body(rest[:BODY_MAX_BYTES])
            self._end()
        else:
            self._stop("event")

    # Events

    def _read_event(self, event: bytes) -> None:
        name, payloads = payloads_of(event)
        for payload in payloads:
            if self._done:
                return
            if name == b"error":
                self._read_with_care(payload, is_error=True)
            else:
                self._read_payload(payload)

    def _read_with_care(self, payload: bytes, *, is_error: bool = False) -> None:
        """Read a payload of any shape."""
        if payload.strip() == b"[DONE]":
            self._read_done()
            return
        try:
            value = decoded(payload)
            if is_error or not isinstance(value, dict):
                self._read_odd(value, is_error=is_error)
            else:
                self._read_fields(cast("Fields", value), len(payload))
        except RecursionError:
            self._events.append(MalformedFrame("too_deep"))
        except UnicodeDecodeError:
            self._events.append(MalformedFrame("utf8"))
        except Unreadable as error:
            self._events.append(MalformedFrame(str(error) or "shape"))
        except msgspec.DecodeError:
            if is_error:
                self._events.append(StreamFailed("", payload.decode("utf-8", "replace")))
            elif payload.strip():
                self._events.append(MalformedFrame("json"))

    def _read_odd(self, value: Any, *, is_error: bool) -> None:
        """Read an error event; any other value that is no object says nothing."""
        if not is_error:
            return
        fields = as_object(value)
        if fields is None:
            self._events.append(failed("", value if isinstance(value, str) else ""))
        else:
            self._events.append(failure_of(fields) or failed("", fields.get("message")))

    def _read_body(self, body: bytes) -> None:
        """Read a body that is no event stream: a completion, an error, or nothing of use."""
        error: StreamFailed | MalformedFrame | None = None
        try:
            value = decoded(_without_done(body))
            if isinstance(value, str):
                error = failed("", value)
            elif (fields := as_object(value)) is not None:
                error = failure_of(fields)
                if error is None and self._read_whole(fields):
                    return
        except Unreadable as unreadable:
            error = MalformedFrame(str(unreadable) or "shape")
        except UNDECODED:
            pass
        self._events.append(error or NotAStream(len(body)))

    # What is said

    def _name(self, response_id: str | None, model: str | None) -> None:
        """Take note of the response's id and model, once."""
        if not self._named and (response_id or model):
            self._named = True
            self._events.append(ResponseNamed(short(response_id), short(model)))

    def _say(self, text: str) -> None:
        if text or self._text.half:
            text = self._text.add(text)
            self._plain = not self._text.half
        if text:
            self._events.append(TextDelta(text))

    def _give_half(self) -> None:
        """Show half a character whose other half did not come."""
        text = self._text.give_half()
        if text:
            self._plain = True
            self._events.append(TextDelta(text))

    def _refuse(self, text: str) -> None:
        text = self._text.add(text)
        self._plain = not self._text.half
        if text:
            self._events.append(Refusal(text))

    def _think(self, text: str) -> None:
        if text:
            self._events.append(ReasoningDelta(whole_characters(text)))
            self._reasoned += len(text) if text.isascii() else len(text.encode(errors="replace"))
            if self._reasoned > REPLY_MAX_BYTES:
                self._stop("reasoning")


def _without_done(body: bytes) -> bytes:
    """Return a whole body without the mark of a stream's end, which some servers put behind it."""
    whole = body.rstrip()
    if not whole.endswith(b"[DONE]"):
        return body
    return whole.removesuffix(b"[DONE]").rstrip().removesuffix(b"data:")
