"""Turns the bytes of a streamed chat completion into typed events, however they are cut.

Server-sent events as https://html.spec.whatwg.org/multipage/server-sent-events.html has them (line
ends, comments, several data lines, byte order mark), with two differences: a last event without a
blank line counts, and a frame that is not JSON is an error, since text may be missing. A whole
completion in place of a stream is read like a stream of one frame.

The common frame, one `data: ` line with one text, costs one search and one decoding; all others are
read with more care (`turnline.worker.pipeline.shapes`). What one response may hold is limited.
"""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias, cast

import msgspec

from turnline.contracts.numbers import number
from turnline.worker.pipeline.call_parts import ToolCallDelta, whole_characters
from turnline.worker.pipeline.shapes import (
    NO_COUNTS,
    Counts,
    Fields,
    Unreadable,
    UsualUsage,
    Words,
    counts_in,
    finish_of,
    short,
    usual_counts,
    words_of,
)

EVENT_MAX_BYTES: Final = 8 * 1024 * 1024
"""Longest single event, and longest whole completion in place of a stream, bytes."""
REPLY_MAX_BYTES: Final = 4 * 1024 * 1024
"""Longest text of one response, and longest reasoning, UTF-8 bytes."""
SILENCE_MAX_BYTES: Final = 64 * 1024 * 1024
"""What may come in one response that says nothing (comments, empty deltas, more ends), bytes."""
RESPONSE_MAX_BYTES: Final = 512 * 1024 * 1024
"""All that is read of one response, bytes: 4 MiB of text at a few bytes a frame stay below."""
BODY_MAX_BYTES: Final = 64 * 1024
"""What is kept of a body that is neither an event stream nor a completion, bytes."""
_VALUES_MAX: Final = 1_000_000
"""Commas in a frame that is read with care: each may cost a value of 64 bytes."""


# Events


class ProviderUsage(msgspec.Struct, frozen=True):
    """Tokens and cost as the provider reported them."""

    prompt_tokens: int = 0
    """Input, cached input included."""
    completion_tokens: int = 0
    """Visible output. xAI counts reasoning apart from it."""
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    """Part of `prompt_tokens`; a larger report is cut to that."""
    total_tokens: int = 0
    """The provider's own total; the sum of the parts only where it reported none."""
    cost_usd_ticks: int | None = None
    """1 USD = 10,000,000,000 ticks; None if not reported."""

    def __add__(self, other: "ProviderUsage") -> "ProviderUsage":
        """Add field by field; an unreported cost counts as none."""
        costs = [c for c in (self.cost_usd_ticks, other.cost_usd_ticks) if c is not None]
        return ProviderUsage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.cached_tokens + other.cached_tokens,
            self.total_tokens + other.total_tokens,
            sum(costs) if costs else None,
        )


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """More of the visible answer."""

    text: str


class ReasoningDelta(msgspec.Struct, frozen=True, gc=False):
    """More of what the model thinks; never part of the answer."""

    text: str


class EmptyDelta(msgspec.Struct, frozen=True, gc=False):
    """A choice without content: the model is at work."""


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """The model declines; the text is shown like an answer."""

    text: str


class FinishReason(msgspec.Struct, frozen=True, gc=False):
    """Why the model stopped. An empty reason counts as one where nothing else is said."""

    reason: str
    alone: bool = True
    """Whether nothing else is said in the frame: some providers give a reason with every text."""


class UsageReport(msgspec.Struct, frozen=True, gc=False):
    """Tokens so far; a later report replaces it."""

    usage: ProviderUsage
    alone: bool = True
    """Whether nothing else stands in the frame: some providers report with every text."""


class ResponseNamed(msgspec.Struct, frozen=True, gc=False):
    """The response's id and the model that gives it."""

    response_id: str | None
    model: str | None


class StreamFailed(msgspec.Struct, frozen=True, gc=False):
    """The provider reports an error inside the stream, or instead of one.

    `message` may quote the request: classify it, never log it.
    """

    code: str
    message: str


class NotAStream(msgspec.Struct, frozen=True, gc=False):
    """The body is something else than an event stream, and no error in JSON either."""

    length: int
    """Bytes kept of it."""


class MalformedFrame(msgspec.Struct, frozen=True, gc=False):
    """A frame cannot be decoded or understood: text may be missing."""

    reason: str
    """`json`, `utf8`, `too_deep`, `too_complex`; `shape`: text in no shape that is known."""


class OverLimit(msgspec.Struct, frozen=True, gc=False):
    """The response holds more than one may; the rest is not read."""

    what: str
    """`event`, `text`, `reasoning`, `silence`, `response`."""


class StreamDone(msgspec.Struct, frozen=True, gc=False):
    """`[DONE]`: nothing that follows counts."""


StreamEvent: TypeAlias = (
    TextDelta
    | ReasoningDelta
    | EmptyDelta
    | ToolCallDelta
    | Refusal
    | FinishReason
    | UsageReport
    | ResponseNamed
    | StreamFailed
    | NotAStream
    | MalformedFrame
    | OverLimit
    | StreamDone
)

_EMPTY: Final = EmptyDelta()
_DONE: Final = StreamDone()


# Frames


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None
    refusal: str | None = None
    function_call: msgspec.Raw | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None
    message: msgspec.Raw | None = None
    text: msgspec.Raw | None = None
    usage: msgspec.Raw | None = None
    tool_calls: msgspec.Raw | None = None


class _Frame(msgspec.Struct, gc=False):
    """A usual frame. What is not of these types needs care: also a `Raw` that is not null."""

    choices: list[_Choice] | None = None
    usage: UsualUsage | None = None
    error: msgspec.Raw | None = None


class _FirstFrame(_Frame, gc=False):
    id: str | None = None
    model: str | None = None


_decode_frame = msgspec.json.Decoder(_Frame, float_hook=number).decode
_decode_first_frame = msgspec.json.Decoder(_FirstFrame, float_hook=number).decode
_decode_any = msgspec.json.Decoder(float_hook=number).decode
_UNDECODED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_lenient: Final = json.JSONDecoder(strict=False)
_LAST_HALF: Final = ("\ud800", "\udbff")
_BOM = b"\xef\xbb\xbf"
_CR, _LF = b"\r\n"
"""As numbers: to look for a byte as bytes costs CPython an exception within."""


class CompletionStream:
    """Reads one response body, piece by piece."""

    def __init__(self) -> None:
        """Begin before the first byte."""
        self._buffer = bytearray()
        self._started = False
        self._drop_newline = False
        self._body: bytearray | None = None
        self._done = False
        self._read = self._silent = self._reasoned = 0
        self._left = self._stride = REPLY_MAX_BYTES
        """Bytes until the text is to be measured, and what they were at first."""
        self._named = False
        self._plain = False
        """Whether a common frame needs no more care than its own."""
        self._half = ""
        """The first half of a character whose second may come with the next text."""
        self._said = io.StringIO()
        self._write = self._said.write
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
        if self._done:
            return []
        if not self._started:
            self._silent += len(data)
            data = self._start(data)
        if self._body is not None:
            return self._take_body(data)
        if self._drop_newline or _CR in data:
            data = self._with_plain_newlines(data)
        events = self._complete_events(data)
        self._left -= len(data)
        if self._left < 0:
            self._look(events)
        if not events:
            self._note_silence(len(data), events)
        return events

    def close(self) -> list[StreamEvent]:
        """Return the events that were still open when the body ended."""
        if self._done:
            return []
        events: list[StreamEvent] = []
        if self._body is not None:
            self._read_body(bytes(self._body), events)
        elif self._started and self._buffer:
            self._read_event(bytes(self._buffer), events)
        self._give_half(events)
        self._buffer.clear()
        self._done = True
        return events

    def forget(self) -> None:
        """Let go of what was read: nothing follows, and whoever holds this may stay for long."""
        self._done = True
        self._buffer = bytearray()
        self._body = None
        self._said = io.StringIO()
        self._write = self._said.write

    # Limits

    def _stop(self, what: str, events: list[StreamEvent]) -> None:
        """Read no more: there is too much of something."""
        if not self._done:
            self._done = True
            self._buffer.clear()
            events.append(OverLimit(what))

    def _look(self, events: list[StreamEvent]) -> None:
        """Measure the text; look again once so many bytes came that it may be too long."""
        self._read += self._stride - self._left
        said = self._said.getvalue()
        text = len(said) if said.isascii() else len(said.encode())
        if text > REPLY_MAX_BYTES:
            self._stop("text", events)
        if self._read > RESPONSE_MAX_BYTES:
            self._stop("response", events)
        self._left = self._stride = max(REPLY_MAX_BYTES - text, 64 * 1024)

    def _note_silence(self, size: int, events: list[StreamEvent]) -> None:
        """Count what came without saying anything."""
        self._silent += size
        if self._silent > SILENCE_MAX_BYTES:
            self._stop("silence", events)

    def _note_nothing(self, size: int, events: list[StreamEvent]) -> None:
        """Say that a choice came, of a frame of so many bytes, and nothing with it."""
        events.append(_EMPTY)
        self._note_silence(size, events)

    # Bytes

    def _start(self, data: bytes) -> bytes:
        """Drop a byte order mark and see what kind of body begins; b"" until that is clear."""
        self._buffer += data
        begun = bytes(self._buffer)
        if len(begun) < len(_BOM) and _BOM.startswith(begun):
            return b""
        begun = begun.removeprefix(_BOM)
        text = begun.lstrip(b" \t\r\n")
        if not text:
            line_end = max(begun.rfind(b"\n"), begun.rfind(b"\r"))
            if line_end > 0:  # blank lines say nothing; one stays, so that no mark follows it
                self._buffer = bytearray(begun[line_end:])
            elif len(begun) > BODY_MAX_BYTES:
                self._buffer = bytearray(b" ")
            return b""
        self._buffer.clear()
        self._started = True
        if text[:1] in b'{["<':
            self._body = bytearray()
            return text
        return begun

    def _take_body(self, data: bytes) -> list[StreamEvent]:
        """Keep more of a body that is no event stream, as long as it may be a completion."""
        assert self._body is not None
        events: list[StreamEvent] = []
        self._body += data
        if not self._body.startswith(b"{"):
            if len(self._body) >= BODY_MAX_BYTES:
                self._read_body(bytes(self._body[:BODY_MAX_BYTES]), events)
                self._done = True
        elif len(self._body) > EVENT_MAX_BYTES:
            self._stop("event", events)
        if self._done:
            self._body.clear()
        return events

    def _with_plain_newlines(self, data: bytes) -> bytes:
        """Make every line end a line feed, also where CR and LF come in different pieces."""
        if not data:
            return data
        if self._drop_newline and data.startswith(b"\n"):
            data = data[1:]
        self._drop_newline = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _complete_events(self, data: bytes) -> list[StreamEvent]:
        """Add bytes to what is open and read the events that are complete now."""
        events: list[StreamEvent] = []
        buffer = self._buffer
        complete: bytes | None = None
        if buffer:
            searched = len(buffer) - 1
            buffer += data
            end = buffer.rfind(b"\n\n", searched)
            if end >= 0:
                complete = bytes(buffer[:end])
                del buffer[: end + 2]
        elif data.endswith(b"\n\n"):
            complete = data[:-2]
        elif (end := data.rfind(b"\n\n")) >= 0:
            complete = data[:end]
            buffer += data[end + 2 :]
        else:
            buffer += data
        if complete is not None:
            self._read_events(complete, events)
        elif len(buffer) > EVENT_MAX_BYTES:
            self._stop("event", events)
        if self._done:
            buffer.clear()
        return events

    def _read_events(self, complete: bytes, events: list[StreamEvent]) -> None:
        write = self._write
        for event in complete.strip(b"\n").split(b"\n\n"):  # there may be millions of blank lines
            payload = event[6:]
            if event[:6] != b"data: " or _LF in payload:
                if event:
                    self._read_event(event, events)
            elif self._plain:
                try:
                    frame = _decode_frame(payload)
                except _UNDECODED:
                    self._read_with_care(payload, events)
                else:
                    choices = frame.choices
                    if (
                        choices
                        and len(choices) == 1
                        and frame.usage is None
                        and frame.error is None
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
                        self._read_frame(frame, payload, events)
            else:
                self._read_payload(payload, events)
            if self._done:
                return

    def _read_event(self, event: bytes, events: list[StreamEvent]) -> None:
        """Read one event line by line: as the specification has it, and as servers write it."""
        data: list[bytes] = []
        name = b""
        for line in event.split(b"\n"):
            field, _, value = line.partition(b":")
            field = field.strip().lower()
            if field == b"data":
                data.append(value.removeprefix(b" "))
            elif field == b"event":
                name = value.strip()
            elif field[:1] == b"{":  # proxies and web frameworks put their errors so
                data.append(line.strip())
            elif field == b"error" and value.strip():
                name = field
                data.append(value)
        payloads = data if len(data) > 1 and all(map(_is_payload, data)) else [b"\n".join(data)]
        for payload in payloads if data else ():
            if self._done:
                return
            if name == b"error":
                self._read_with_care(payload, events, is_error=True)
            else:
                self._read_payload(payload, events)

    # Payloads

    def _read_payload(self, payload: bytes, events: list[StreamEvent]) -> None:
        try:
            frame = _decode_frame(payload) if self._plain else _decode_first_frame(payload)
        except _UNDECODED:
            self._read_with_care(payload, events)
        else:
            self._read_frame(frame, payload, events)

    def _read_frame(self, frame: _Frame, payload: bytes, events: list[StreamEvent]) -> None:
        """Read a frame of the expected types, if it says one of the usual things."""
        if self._half or frame.error is not None:
            self._read_with_care(payload, events)
            return
        choices = frame.choices
        if not choices:
            usage = frame.usage if self._plain else None
            if usage is not None and (counts := usual_counts(usage, payload)) is not None:
                self._report(counts, len(payload), events, alone=True)
            else:
                self._read_with_care(payload, events)
            return
        if len(choices) == 1 and self._read_usual(choices[0], payload, events, frame):
            return
        self._read_with_care(payload, events)

    def _read_usual(
        self, choice: _Choice, payload: bytes, events: list[StreamEvent], frame: _Frame
    ) -> bool:
        """Read a choice of which all is known; False if it needs more care."""
        said = _usually_said(choice, payload) if frame.usage is None else None
        if said is None:
            return False
        if not self._plain and isinstance(frame, _FirstFrame):
            self._plain = True
            self._name(frame.id, frame.model, events)
        for event in said:
            if type(event) is TextDelta:
                self._say(event.text, events)
            elif type(event) is ReasoningDelta:
                self._think(event.text, events)
            else:
                events.append(event)
        if not said:
            self._note_nothing(len(payload), events)
        elif choice.finish_reason is not None:
            self._note_silence(len(payload), events)
        return True

    def _name(self, response_id: str | None, model: str | None, events: list[StreamEvent]) -> None:
        """Take note of the response's id and model, once."""
        if not self._named and (response_id or model):
            self._named = True
            events.append(ResponseNamed(short(response_id), short(model)))

    def _report(
        self, counts: Counts | None, size: int, events: list[StreamEvent], *, alone: bool
    ) -> None:
        if counts is not None:
            before = self._counts
            self._counts = counts if before is NO_COUNTS else counts.over(before)
            events.append(UsageReport(_usage_of(self._counts), alone))
            if alone:
                self._note_silence(size, events)

    def _read_with_care(
        self, payload: bytes, events: list[StreamEvent], *, is_error: bool = False
    ) -> None:
        """Read a payload of any shape."""
        if payload.strip() == b"[DONE]":
            self._give_half(events)
            self._done = True
            events.append(_DONE)
            return
        try:
            value = self._decoded(payload)
            if is_error or not isinstance(value, dict):
                self._read_odd(value, events, is_error=is_error)
            else:
                self._read_fields(cast("Fields", value), len(payload), events)
        except RecursionError:
            events.append(MalformedFrame("too_deep"))
        except UnicodeDecodeError:
            events.append(MalformedFrame("utf8"))
        except Unreadable as error:
            events.append(MalformedFrame(str(error) or "shape"))
        except msgspec.DecodeError:
            if is_error:
                events.append(StreamFailed("", payload.decode("utf-8", "replace")))
            elif payload.strip():
                events.append(MalformedFrame("json"))

    def _decoded(self, payload: bytes) -> Any:
        """Decode JSON, within limits; halves of characters, bare controls and NaN are let pass."""
        if len(payload) > _VALUES_MAX and payload.count(b",") > _VALUES_MAX:
            raise Unreadable("too_complex")
        try:
            return _decode_any(payload)
        except msgspec.DecodeError:
            try:
                return _lenient.decode(payload.decode())
            except UnicodeDecodeError:
                raise
            except ValueError:
                raise msgspec.DecodeError from None

    def _read_odd(self, value: Any, events: list[StreamEvent], *, is_error: bool) -> None:
        """Read an error event; any other value that is no object says nothing."""
        if not is_error:
            return
        fields = _object(value)
        if fields is None:
            events.append(_failed("", value if isinstance(value, str) else ""))
        else:
            events.append(_failure_of(fields) or _failed("", fields.get("message")))

    def _read_fields(self, frame: Fields, size: int, events: list[StreamEvent]) -> None:
        """Read a frame of any shape.

        Raises:
            Unreadable: It holds text or calls in no known shape.
        """
        choices = self._choices_of(frame)
        failed = next(filter(None, map(_failure_of, (frame, *choices))), None)
        if failed is not None:
            events.append(failed)
            return
        if frame.get("choices") or frame.get("usage"):
            self._name(short(frame.get("id")), short(frame.get("model")), events)
        self._plain = not self._half
        said = len(events)
        for choice in choices:
            self._read_choice(choice, size, events)
        if not frame.get("choices"):
            self.unread = self.unread or any(frame.get(key) for key in _SAYING)
        counts = counts_in(frame, choices)
        if counts is not None:
            alone = events[said:] in ([], [_EMPTY])
            if alone:
                del events[said:]
            self._report(counts, size, events, alone=alone)

    def _choices_of(self, frame: Fields) -> Sequence[Fields]:
        """Return the first choice, in its pieces; others are not asked for.

        Raises:
            Unreadable: There are choices, but no objects.
        """
        choices: Any = frame.get("choices")
        if isinstance(choices, dict):
            choices = [cast("Fields", choices)]
        if not choices:
            return ()
        if not isinstance(choices, list):
            raise Unreadable
        first: list[Fields] = []
        others = False
        for item in cast("list[object]", choices):
            choice = _object(item)
            if choice is None:
                if item is not None:
                    raise Unreadable
            elif choice.get("index") in _FIRST:
                first.append(choice)
            else:
                others = True
        self.unread = self.unread or (others and not first)
        return first

    def _read_choice(self, choice: Fields, size: int, events: list[StreamEvent]) -> None:
        said = len(events)
        reason = finish_of(choice)
        if reason == "error":
            events.append(StreamFailed("error", ""))
            return
        words = words_of(choice.get("delta"), within=True)
        beside = words_of(choice)
        text = words.joined("text") or beside.joined("text")
        if beside.text and beside.joined("text") != text:
            raise Unreadable
        self._think(words.joined("reasoning") or beside.joined("reasoning"), events)
        if text:
            self._say(text, events)
        refusal = words.joined("refusal") or beside.joined("refusal")
        calls = words.calls or beside.calls
        whole = words_of(choice.get("message"), is_whole=True)
        self._read_message(whole, text, events, is_last=reason is not None)
        refused = whole.joined("refusal")
        if refusal or (refused and refused not in self._said.getvalue()):
            self._refuse(refusal or refused, events)
        events.extend(calls)
        events.extend(whole.calls)
        self.unread = self.unread or words.is_unread or beside.is_unread or whole.is_unread
        alone = len(events) == said
        if reason is not None and (reason or alone):
            if alone:
                self._give_half(events)
            events.append(FinishReason(reason, alone))
            if alone:
                self._note_silence(size, events)
        elif alone:
            self._note_nothing(size, events)

    def _read_message(
        self, words: Words, text: str, events: list[StreamEvent], *, is_last: bool
    ) -> None:
        """Read a whole message: all of the reply, all so far, or a piece in place of a delta.

        Raises:
            Unreadable: It contradicts what was said before.
        """
        whole, said = words.joined("text"), self._said.getvalue()
        in_deltas = bool(text) or len(said) > self._in_messages
        if not in_deltas:
            self._think(words.joined("reasoning"), events)
        if not whole or whole == text:
            return
        if in_deltas:
            more = "" if whole.strip() == said.strip() else _behind(said, whole)
        else:
            more = self._more_of(whole, said, is_last=is_last)
        before = self._said.tell()
        self._say(more, events)
        self._in_messages += self._said.tell() - before

    def _more_of(self, whole: str, said: str, *, is_last: bool) -> str:
        """Return what a message in place of a delta adds: it holds all so far, or one piece."""
        if whole == said:  # nothing new; if it is a piece that comes twice, this comes out later
            self._grows = self._grows or not is_last or None
            return ""
        if self._grows is None and said:
            self._grows = whole.startswith(said)
        return _behind(said, whole) if self._grows else whole

    # What is said

    def _say(self, text: str, events: list[StreamEvent]) -> None:
        text = self._whole(text)
        if text:
            self._write(text)
            events.append(TextDelta(text))

    def _refuse(self, text: str, events: list[StreamEvent]) -> None:
        text = whole_characters(text)
        self._write(text)
        events.append(Refusal(text))

    def _think(self, text: str, events: list[StreamEvent]) -> None:
        if text:
            events.append(ReasoningDelta(whole_characters(text)))
            self._count_reasoning(text, events)

    def _count_reasoning(self, text: str, events: list[StreamEvent]) -> None:
        self._reasoned += len(text) if text.isascii() else len(text.encode(errors="replace"))
        if self._reasoned > REPLY_MAX_BYTES:
            self._stop("reasoning", events)

    def _whole(self, text: str) -> str:
        """Keep half a character at the end of a text back until the next."""
        if self._half:
            text = self._half + text
        elif text.isascii():
            return text
        self._half = ""
        if _LAST_HALF[0] <= text[-1:] <= _LAST_HALF[1]:
            self._half, text = text[-1], text[:-1]
        self._plain = not self._half
        return whole_characters(text)

    def _give_half(self, events: list[StreamEvent]) -> None:
        """Show half a character whose other half did not come."""
        if self._half:
            self._half = ""
            self._plain = True
            self._write("\ufffd")
            events.append(TextDelta("\ufffd"))

    def _read_body(self, body: bytes, events: list[StreamEvent]) -> None:
        """Read a body that is no event stream: a completion, an error, or nothing of use."""
        failed = None
        try:
            value = self._decoded(_without_done(body))
            if isinstance(value, str):
                failed = _failed("", value)
            elif (fields := _object(value)) is not None:
                failed = _failure_of(fields)
                if failed is None and fields.get("choices"):
                    self._read_fields(fields, 0, events)
                    self._give_half(events)
                    events.append(_DONE)
                    return
        except Unreadable as error:
            events.append(MalformedFrame(str(error) or "shape"))
            return
        except _UNDECODED:
            pass
        events.append(failed or NotAStream(len(body)))


_FIRST: Final = (None, 0, "0", "")
_REASONS: Final = (None, "stop", "length", "tool_calls", "content_filter", "function_call")
_SAYING: Final = (
    *("content", "text", "message", "response", "output", "delta", "candidates", "completion"),
    *("output_text", "generated_text", "token"),
)
"""Fields of frames without choices in which other APIs put text."""


def _without_done(body: bytes) -> bytes:
    """Return a whole body without the mark of a stream's end, which some servers put behind it."""
    whole = body.rstrip()
    if not whole.endswith(b"[DONE]"):
        return body
    return whole.removesuffix(b"[DONE]").rstrip().removesuffix(b"data:")


def _behind(said: str, whole: str) -> str:
    """Return what a whole text adds to its beginning.

    Raises:
        Unreadable: It begins otherwise.
    """
    if not whole.startswith(said):
        raise Unreadable
    return whole[len(said) :]


def _is_payload(line: bytes) -> bool:
    """Tell whether a line looks like all that an event holds."""
    line = line.strip()
    return line == b"[DONE]" or (line.startswith(b"{") and line.endswith(b"}"))


def _usually_said(choice: _Choice, payload: bytes) -> Sequence[StreamEvent] | None:
    """Return what a choice says in one of the usual ways; None if it says it in another."""
    delta, reason = choice.delta, choice.finish_reason
    beside = (choice.message, choice.text, choice.usage, choice.tool_calls, choice.index or None)
    if delta is None or beside != (None, None, None, None, None):
        return None
    if delta.function_call is not None or delta.refusal:
        return None
    said: list[StreamEvent | None] = [*map(_tool_call_delta, delta.tool_calls or ())]
    if delta.content:
        said.append(TextDelta(delta.content))
    if delta.reasoning_content:
        said.append(ReasoningDelta(delta.reasoning_content))
    if said:
        kinds = bool(delta.tool_calls) + bool(delta.content) + bool(delta.reasoning_content)
        if kinds > 1 or reason is not None or not all(said):
            return None
        return cast("list[StreamEvent]", said)
    if payload.find(b'"delta":{}') < 0 or reason not in _REASONS or payload.find(b"error") >= 0:
        return None
    return [] if reason is None else [FinishReason(reason)]


def _tool_call_delta(call: _ToolCall) -> ToolCallDelta | None:
    """Return what a call of the expected shape says; None if it is another one."""
    function = call.function
    if function is None or (function.name is None and function.arguments is None):
        return None
    return ToolCallDelta(call.index, call.id, function.name, function.arguments)


def _usage_of(counts: Counts) -> ProviderUsage:
    prompt, completion = counts.prompt or 0, counts.completion or 0
    reasoning = counts.reasoning or 0
    return ProviderUsage(
        prompt,
        completion,
        reasoning,
        min(counts.cached or 0, prompt),
        counts.total or prompt + completion + reasoning,
        counts.cost,
    )


def failure_of_body(body: bytes) -> StreamFailed:
    """Read the code and message of an error response, whatever its shape; both may be empty."""
    try:
        value = _decode_any(body)
        fields = _object(value)
        if fields is not None:
            return _failure_of(fields) or _failed("", fields.get("message"))
        return StreamFailed("", value if isinstance(value, str) else "")
    except _UNDECODED:
        return StreamFailed("", body[:BODY_MAX_BYTES].decode("utf-8", "replace"))


def _object(value: object) -> dict[str, Any] | None:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _failure_of(value: Mapping[str, Any]) -> StreamFailed | None:
    """Return the error that an object reports: flat, nested, or typed; None if it reports none."""
    error = value.get("error") or value.get("errors") or _groq_error(value)
    if isinstance(error, list):
        error = cast("list[object]", error)[0]
    if (nested := _object(error)) is not None:
        if any(nested.values()):
            return _failed(nested.get("code") or nested.get("type"), nested.get("message"))
    elif error:
        return _failed(value.get("code"), error)
    status = _object(value.get("base_resp"))
    if status is not None and status.get("status_code"):
        return _failed(status["status_code"], status.get("status_msg"))
    return None if value.get("choices") else _bare_failure_of(value)


def _groq_error(value: Mapping[str, Any]) -> object:
    groq = _object(value.get("x_groq"))
    return groq.get("error") if groq is not None else None


def _bare_failure_of(value: Mapping[str, Any]) -> StreamFailed | None:
    """Return the error that an object is, by the names that frameworks have for its fields."""
    code = value.get("code") or value.get("error_code")
    words = [value.get(key) for key in ("message", "error_msg", "detail", "msg")]
    is_error = "error" in (value.get("type"), value.get("object")) or (code and not _is_fine(code))
    if is_error or value.get("success") is False or words[1] or words[2]:
        return _failed(code, next(filter(None, words), None))
    return None


def _is_fine(code: object) -> bool:
    """Tell whether a code beside no choices says that nothing is wrong."""
    return str(code).lower() in {"0", "200", "ok", "success"}


def _failed(code: object, message: object) -> StreamFailed:
    return StreamFailed(whole_characters(str(code or "")), whole_characters(str(message or "")))
