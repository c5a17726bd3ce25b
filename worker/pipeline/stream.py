"""Turns the bytes of a streamed chat completion into typed events, however they are cut.

A chunk that is not JSON is an error, since text may be missing. A whole completion in place of a
stream is read like a stream of one chunk.

The common chunk, one `data: ` line with one text, costs one search and one decoding; all others are
read with more care (`turnline.worker.pipeline.shapes`). What one response may hold is limited.
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
    Words,
    as_object,
    choices_of,
    decoded,
    failed,
    failure_of,
    finish_of,
    short,
    words_of,
)
from turnline.worker.pipeline.stream_events import (
    EmptyDelta,
    FinishReason,
    MalformedFrame,
    NotAStream,
    OverLimit,
    ReasoningDelta,
    Refusal,
    ResponseNamed,
    StreamDone,
    StreamEvent,
    StreamFailed,
    TextDelta,
    UsageReport,
)
from turnline.worker.pipeline.usage_reports import NO_COUNTS, Counts, counts_in, usage_of
from turnline.worker.pipeline.usual_chunks import (
    Choice,
    Chunk,
    FirstChunk,
    decode_chunk,
    decode_first_chunk,
    usual_counts,
    usual_events,
)

REPLY_MAX_BYTES: Final = 4 * 1024 * 1024
"""Longest text of one response, and longest reasoning, UTF-8 bytes."""
SILENCE_MAX_BYTES: Final = 64 * 1024 * 1024
"""What may come in one response that says nothing (comments, empty deltas, more ends), bytes."""
RESPONSE_MAX_BYTES: Final = 512 * 1024 * 1024
"""All that is read of one response, bytes: 4 MiB of text at a few bytes a chunk stay below."""
_MEASURE_AFTER_BYTES: Final = 64 * 1024

_EMPTY: Final = EmptyDelta()
_DONE: Final = StreamDone()
_SAYING: Final = (
    *("content", "text", "message", "response", "output", "delta", "candidates", "completion"),
    *("output_text", "generated_text", "token"),
)
"""Fields of chunks without choices in which other APIs put text."""
_LF: Final = b"\n"[0]
"""As a number: to look for a byte as bytes costs CPython an exception within."""


class CompletionStream:
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
        self._in_messages = 0
        """Characters of it that came in messages, not in deltas."""
        self._grows: bool | None = None
        """Whether messages in place of deltas hold the text so far; None if that is not clear."""
        self._counts = NO_COUNTS
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
        self._events.append(_EMPTY)
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

    def _read_events(self, complete: bytes) -> None:
        events, write = self._events, self._text.write
        for event in complete.strip(b"\n").split(b"\n\n"):  # there may be millions of blank lines
            payload = event[6:]
            if event[:6] != b"data: " or _LF in payload:
                if event:
                    self._read_event(event)
            elif self._plain:
                try:
                    chunk = decode_chunk(payload)
                except UNDECODED:
                    self._read_with_care(payload)
                else:
                    choices = chunk.choices
                    if (
                        choices
                        and len(choices) == 1
                        and chunk.usage is None
                        and chunk.error is None
                        and (choice := choices[0]).finish_reason is None
                        and (delta := choice.delta) is not None
                        and (text := delta.content)
                        and not (choice.index or delta.reasoning_content or delta.tool_calls)
                        and choice.message
                        is choice.text
                        is choice.usage
                        is choice.tool_calls
                        is delta.function_call
                        is None
                        and not delta.refusal
                    ):
                        write(text)
                        events.append(TextDelta(text))
                    else:
                        self._read_chunk(chunk, payload)
            else:
                self._read_payload(payload)
            if self._done:
                return

    def _read_event(self, event: bytes) -> None:
        name, payloads = payloads_of(event)
        for payload in payloads:
            if self._done:
                return
            if name == b"error":
                self._read_with_care(payload, is_error=True)
            else:
                self._read_payload(payload)

    # Payloads

    def _read_payload(self, payload: bytes) -> None:
        try:
            chunk = decode_chunk(payload) if self._plain else decode_first_chunk(payload)
        except UNDECODED:
            self._read_with_care(payload)
        else:
            self._read_chunk(chunk, payload)

    def _read_chunk(self, chunk: Chunk, payload: bytes) -> None:
        """Read a chunk of the expected types, if it says one of the usual things."""
        if self._text.half or chunk.error is not None:
            self._read_with_care(payload)
            return
        choices = chunk.choices
        if not choices:
            usage = chunk.usage if self._plain else None
            if usage is not None and (counts := usual_counts(usage, payload)) is not None:
                self._report(counts, len(payload), alone=True)
            else:
                self._read_with_care(payload)
            return
        if len(choices) == 1 and self._read_usual(choices[0], payload, chunk):
            return
        self._read_with_care(payload)

    def _read_usual(self, choice: Choice, payload: bytes, chunk: Chunk) -> bool:
        """Read a choice of which all is known; False if it needs more care."""
        said = usual_events(choice, payload) if chunk.usage is None else None
        if said is None:
            return False
        if not self._plain and isinstance(chunk, FirstChunk):
            self._plain = True
            self._name(chunk.id, chunk.model)
        for event in said:
            if type(event) is TextDelta:
                self._say(event.text)
            elif type(event) is ReasoningDelta:
                self._think(event.text)
            else:
                self._events.append(event)
        if not said:
            self._note_nothing(len(payload))
        elif choice.finish_reason is not None:
            self._note_silence(len(payload))
        return True

    def _name(self, response_id: str | None, model: str | None) -> None:
        """Take note of the response's id and model, once."""
        if not self._named and (response_id or model):
            self._named = True
            self._events.append(ResponseNamed(short(response_id), short(model)))

    def _report(self, counts: Counts, size: int, *, alone: bool) -> None:
        before = self._counts
        self._counts = counts if before is NO_COUNTS else counts.over(before)
        self._events.append(UsageReport(usage_of(self._counts), alone))
        if alone:
            self._note_silence(size)

    def _read_with_care(self, payload: bytes, *, is_error: bool = False) -> None:
        """Read a payload of any shape."""
        if payload.strip() == b"[DONE]":
            self._give_half()
            self._done = True
            self._events.append(_DONE)
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

    def _read_fields(self, chunk: Fields, size: int) -> None:
        """Read a chunk of any shape.

        Raises:
            Unreadable: It holds text or calls in no known shape.
        """
        choices, has_others = choices_of(chunk)
        self.unread = self.unread or (has_others and not choices)
        error = next(filter(None, map(failure_of, (chunk, *choices))), None)
        if error is not None:
            self._events.append(error)
            return
        if chunk.get("choices") or chunk.get("usage"):
            self._name(short(chunk.get("id")), short(chunk.get("model")))
        self._plain = not self._text.half
        said = len(self._events)
        for choice in choices:
            self._read_choice(choice, size)
        if not chunk.get("choices"):
            self.unread = self.unread or any(chunk.get(key) for key in _SAYING)
        counts = counts_in(chunk, choices)
        if counts is not None:
            alone = self._events[said:] in ([], [_EMPTY])
            if alone:
                del self._events[said:]
            self._report(counts, size, alone=alone)

    def _read_choice(self, choice: Fields, size: int) -> None:
        said = len(self._events)
        reason = finish_of(choice)
        if reason == "error":
            self._events.append(StreamFailed("error", ""))
            return
        words = words_of(choice.get("delta"), within=True)
        beside = words_of(choice)
        text = words.joined("text") or beside.joined("text")
        if beside.text and beside.joined("text") != text:
            raise Unreadable
        self._think(words.joined("reasoning") or beside.joined("reasoning"))
        if text:
            self._say(text)
        refusal = words.joined("refusal") or beside.joined("refusal")
        calls = words.calls or beside.calls
        whole = words_of(choice.get("message"), is_whole=True)
        self._read_message(whole, text, is_last=reason is not None)
        refused = whole.joined("refusal")
        if refusal or (refused and not self._text.ends_about(refused)):
            self._refuse(refusal or refused)
        self._events.extend(calls)
        self._events.extend(whole.calls)
        self.unread = self.unread or words.is_unread or beside.is_unread or whole.is_unread
        alone = len(self._events) == said
        if reason is not None and (reason or alone):
            if alone:
                self._give_half()
            self._events.append(FinishReason(reason, alone))
            if alone:
                self._note_silence(size)
        elif alone:
            self._note_nothing(size)

    def _read_message(self, words: Words, text: str, *, is_last: bool) -> None:
        """Read a whole message: all of the reply, all so far, or a piece in place of a delta.

        Raises:
            Unreadable: It contradicts the text so far.
        """
        whole, before = words.joined("text"), len(self._text)
        in_deltas = bool(text) or before > self._in_messages
        if not in_deltas:
            self._think(words.joined("reasoning"))
        if not whole or whole == text:
            return
        if in_deltas:
            more = "" if self._text.is_same(whole) else self._behind(whole)
        else:
            more = self._more_of(whole, is_last=is_last)
        self._say(more)
        self._in_messages += len(self._text) - before

    def _more_of(self, whole: str, *, is_last: bool) -> str:
        """Return what a message in place of a delta adds: it holds all so far, or one piece."""
        begins = self._text.begins(whole)
        if begins and len(whole) == len(self._text):
            # Nothing new; if it is a piece that comes twice, this comes out later.
            self._grows = self._grows or not is_last or None
            return ""
        if self._grows is None and len(self._text):
            self._grows = begins
        return self._behind(whole) if self._grows else whole

    def _behind(self, whole: str) -> str:
        """Return what a whole text adds to the text so far.

        Raises:
            Unreadable: It begins otherwise.
        """
        if not self._text.begins(whole):
            raise Unreadable
        return whole[len(self._text) :]

    # Text

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
        text = whole_characters(text)
        self._text.write(text)
        self._events.append(Refusal(text))

    def _think(self, text: str) -> None:
        if text:
            self._events.append(ReasoningDelta(whole_characters(text)))
            self._reasoned += len(text) if text.isascii() else len(text.encode(errors="replace"))
            if self._reasoned > REPLY_MAX_BYTES:
                self._stop("reasoning")

    def _read_body(self, body: bytes) -> None:
        """Read a body that is no event stream: a completion, an error, or nothing of use."""
        error: StreamFailed | MalformedFrame | None = None
        try:
            value = decoded(_without_done(body))
            if isinstance(value, str):
                error = failed("", value)
            elif (fields := as_object(value)) is not None:
                error = failure_of(fields)
                if error is None and fields.get("choices"):
                    self._read_fields(fields, 0)
                    self._give_half()
                    self._events.append(_DONE)
                    return
        except Unreadable as unreadable:
            error = MalformedFrame(str(unreadable) or "shape")
        except UNDECODED:
            pass
        self._events.append(error or NotAStream(len(body)))


def _without_done(body: bytes) -> bytes:
    """Return a whole body without the mark of a stream's end, which some servers put behind it."""
    whole = body.rstrip()
    if not whole.endswith(b"[DONE]"):
        return body
    return whole.removesuffix(b"[DONE]").rstrip().removesuffix(b"data:")
