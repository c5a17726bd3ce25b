"""Turns the bytes of a streamed chat completion into typed events, however they are cut.

Server-sent events as https://html.spec.whatwg.org/multipage/server-sent-events.html has them (line
ends, comments, several data lines, byte order mark), with two differences: a last event without a
blank line counts, and a frame that is not JSON is an error, since text may be missing. Within the
frames everything unknown is ignored and every field may be null or absent.

The common frame, one `data: ` line, costs one search and one decoding; all others take the slow
path, which follows the specification line by line.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias, cast

import msgspec

EVENT_MAX_BYTES: Final = 64 * 1024 * 1024
"""Longest single event, bytes; more is taken for a broken peer."""
BODY_MAX_BYTES: Final = 64 * 1024
"""What is kept of a body that is not an event stream, bytes."""
TOKENS_MAX: Final = 10**12
"""Largest count of tokens that is believed; with more, sums would not fit a number some day."""
COST_MAX_TICKS: Final = 10**16
"""The same for the cost: a million US dollars for one call."""


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


class ToolCallDelta(msgspec.Struct, frozen=True, gc=False):
    """A part of a tool call, or the whole of it."""

    index: int | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """The model declines; the text is shown like an answer."""

    text: str


class FinishReason(msgspec.Struct, frozen=True, gc=False):
    """Why the model stopped. An empty reason counts as one."""

    reason: str


class UsageReport(msgspec.Struct, frozen=True, gc=False):
    """Tokens so far; a later report replaces it."""

    usage: ProviderUsage


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
    """A frame cannot be decoded: text may be missing."""

    reason: str
    """`json`, `utf8`, `too_long`, `too_deep`."""


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


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    cost_in_usd_ticks: int | None = None


class _Frame(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: msgspec.Raw | None = None


class _FirstFrame(_Frame, gc=False):
    id: str | None = None
    model: str | None = None


_decode_frame = msgspec.json.Decoder(_Frame).decode
_decode_first_frame = msgspec.json.Decoder(_FirstFrame).decode
_decode_any = msgspec.json.Decoder().decode

_BOM = b"\xef\xbb\xbf"


class CompletionStream:
    """Reads one response body, piece by piece."""

    def __init__(self) -> None:
        """Begin before the first byte."""
        self._buffer = bytearray()
        self._started = False
        self._drop_newline = False
        self._body: bytearray | None = None
        self._named = False
        self._done = False

    def feed(self, data: bytes) -> list[StreamEvent]:
        """Return the events that these bytes complete.

        Args:
            data: The next bytes of the body, of any length, cut anywhere.
        """
        if self._done:
            return []
        if not self._started:
            data = self._start(data)
        if self._body is not None:
            self._body += data[: max(0, BODY_MAX_BYTES - len(self._body))]
            return []
        if self._drop_newline or b"\r" in data:
            data = self._with_plain_newlines(data)
        return self._complete_events(data)

    def close(self) -> list[StreamEvent]:
        """Return the events that were still open when the body ended."""
        if self._done:
            return []
        events: list[StreamEvent] = []
        if self._body is not None:
            self._read_body(bytes(self._body), events)
        elif self._started and self._buffer:
            self._read_event(bytes(self._buffer), events)
        self._buffer.clear()
        self._done = True
        return events

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
            return b""
        self._buffer.clear()
        self._started = True
        if text[:1] in b'{["<':
            self._body = bytearray()
            return text
        return begun

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
        elif (end := data.rfind(b"\n\n")) >= 0:
            complete = data[:end]
            buffer += data[end + 2 :]
        else:
            buffer += data
        if complete is not None:
            self._read_events(complete, events)
        elif len(buffer) > EVENT_MAX_BYTES:
            events.append(MalformedFrame("too_long"))
            self._done = True
        if self._done:
            buffer.clear()
        return events

    def _read_events(self, complete: bytes, events: list[StreamEvent]) -> None:
        for event in complete.split(b"\n\n"):
            payload = event[6:]
            if event[:6] != b"data: " or b"\n" in payload:
                self._read_event(event, events)
            else:
                self._read_payload(payload, events)
            if self._done:
                return

    def _read_event(self, event: bytes, events: list[StreamEvent]) -> None:
        """Read one event line by line, as the specification has it."""
        data: list[bytes] = []
        name = b""
        for line in event.split(b"\n"):
            field, colon, value = line.partition(b":")
            if field == b"data":
                data.append(value.removeprefix(b" "))
            elif field == b"event" and colon:
                name = value.removeprefix(b" ")
        if data and name == b"error":
            self._read_odd_payload(b"\n".join(data), events, is_error=True)
        elif data:
            self._read_payload(b"\n".join(data), events)

    # Payloads

    def _read_payload(self, payload: bytes, events: list[StreamEvent]) -> None:
        try:
            frame: _Frame = _decode_frame(payload) if self._named else _decode_first_frame(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._read_odd_payload(payload, events, is_error=False)
        else:
            self._read_frame(frame, payload, events)

    def _read_odd_payload(
        self, payload: bytes, events: list[StreamEvent], *, is_error: bool
    ) -> None:
        """Read a payload that is no frame of the expected types."""
        if payload.strip() == b"[DONE]":
            self._done = True
            events.append(_DONE)
            return
        try:
            self._read_value(_decode_any(payload), events, is_error=is_error)
        except RecursionError:
            events.append(MalformedFrame("too_deep"))
        except UnicodeDecodeError:
            events.append(MalformedFrame("utf8"))
        except msgspec.DecodeError:
            if is_error:
                events.append(StreamFailed("", payload.decode("utf-8", "replace")))
            elif payload.strip():
                events.append(MalformedFrame("json"))

    def _read_value(self, value: Any, events: list[StreamEvent], *, is_error: bool) -> None:
        """Read a frame of any shape; what is no object says nothing, unless it is an error."""
        fields = _object(value)
        if fields is None:
            if is_error:
                events.append(StreamFailed("", value if isinstance(value, str) else ""))
            return
        failed = _failure_of(fields)
        if failed is None and is_error:
            failed = StreamFailed("", str(fields.get("message", "")))
        if failed is not None:
            events.append(failed)
            return
        try:
            frame = msgspec.convert(_mended(fields), _FirstFrame)
        except msgspec.ValidationError:
            events.append(MalformedFrame("json"))
        else:
            self._read_choices(frame, events)

    def _read_frame(self, frame: _Frame, payload: bytes, events: list[StreamEvent]) -> None:
        """Read a frame that has the expected types."""
        if frame.error is not None or (not frame.choices and frame.usage is None):
            # No choice and no usage: an error in one of its shapes, or nothing.
            self._read_odd_payload(payload, events, is_error=False)
        else:
            self._read_choices(frame, events)

    def _read_choices(self, frame: _Frame, events: list[StreamEvent]) -> None:
        if not self._named and isinstance(frame, _FirstFrame) and (frame.id or frame.model):
            self._named = True
            events.append(ResponseNamed(frame.id, frame.model))
        if frame.choices:
            choice = frame.choices[0]
            said = len(events)
            if choice.delta is not None:
                _read_delta(choice.delta, events)
            if choice.finish_reason is not None:
                events.append(FinishReason(choice.finish_reason))
            elif len(events) == said:
                events.append(_EMPTY)
        if frame.usage is not None and (usage := _provider_usage(frame.usage)) is not None:
            events.append(UsageReport(usage))

    def _read_body(self, body: bytes, events: list[StreamEvent]) -> None:
        """Read a body that is no event stream: an error in JSON, or nothing that can be used."""
        failed = None
        try:
            value = _decode_any(body)
            if isinstance(value, str):
                failed = StreamFailed("", value)
            elif (fields := _object(value)) is not None:
                failed = _failure_of(fields)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        events.append(failed or NotAStream(len(body)))


def _read_delta(delta: _Delta, events: list[StreamEvent]) -> None:
    if delta.content:
        events.append(TextDelta(delta.content))
    if delta.reasoning_content:
        events.append(ReasoningDelta(delta.reasoning_content))
    if delta.tool_calls:
        events.extend(map(_tool_call_delta, delta.tool_calls))
    if delta.refusal:
        events.append(Refusal(delta.refusal))


def failure_of_body(body: bytes) -> StreamFailed:
    """Read the code and message of an error response, whatever its shape; both may be empty."""
    try:
        value = _decode_any(body)
        fields = _object(value)
        if fields is not None:
            return _failure_of(fields) or StreamFailed("", str(fields.get("message", "")))
        return StreamFailed("", value if isinstance(value, str) else "")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return StreamFailed("", body[:BODY_MAX_BYTES].decode("utf-8", "replace"))


def _object(value: object) -> dict[str, Any] | None:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _objects(value: object) -> list[dict[str, Any]]:
    """Return the objects of a list; none if it is no list."""
    items = cast("list[object]", value) if isinstance(value, list) else []
    return [item for item in map(_object, items) if item is not None]


def _failure_of(value: Mapping[str, Any]) -> StreamFailed | None:
    """Return the error that an object reports: flat, nested, or typed; None if it reports none."""
    error = value.get("error")
    if (nested := _object(error)) is not None:
        code = nested.get("code") or nested.get("type") or ""
        return StreamFailed(str(code), str(nested.get("message") or ""))
    if error:
        return StreamFailed(str(value.get("code") or ""), str(error))
    if value.get("type") == "error" or (value.get("code") and not value.get("choices")):
        return StreamFailed(str(value.get("code") or ""), str(value.get("message") or ""))
    return None


def _mended(value: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of an object with unexpected types what can be understood."""
    mended = _texts(value, "id", "model")
    if (usage := _object(value.get("usage"))) is not None:
        mended["usage"] = _numbers(usage)
    mended["choices"] = [_mended_choice(choice) for choice in _objects(value.get("choices"))]
    return mended


def _mended_choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    mended = _texts(choice, "finish_reason")
    if (delta := _object(choice.get("delta"))) is not None:
        mended["delta"] = {
            **_texts(delta, "content", "reasoning_content", "refusal"),
            "tool_calls": [_mended_call(call) for call in _objects(delta.get("tool_calls"))],
        }
    return mended


def _mended_call(call: Mapping[str, Any]) -> dict[str, Any]:
    mended = _texts(call, "id")
    if isinstance(call.get("index"), int):
        mended["index"] = call["index"]
    if (function := _object(call.get("function"))) is not None:
        mended["function"] = _texts(function, "name", "arguments")
        if (arguments := _object(function.get("arguments"))) is not None:
            mended["function"]["arguments"] = msgspec.json.encode(arguments).decode()
    return mended


def _texts(value: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value[key] for key in keys if isinstance(value.get(key), str)}


def _numbers(value: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the whole numbers of a usage object, whatever else stands in it."""
    kept: dict[str, Any] = {}
    for key, item in value.items():
        if (nested := _object(item)) is not None:
            kept[key] = _numbers(nested)
        elif isinstance(item, int) or (isinstance(item, float) and item.is_integer()):
            kept[key] = int(item)
    return kept


def _tool_call_delta(call: _ToolCall) -> ToolCallDelta:
    function = call.function
    if function is None:
        return ToolCallDelta(call.index, call.id)
    return ToolCallDelta(call.index, call.id, function.name, function.arguments)


def _provider_usage(usage: _Usage) -> ProviderUsage | None:
    """Return what was reported; None where all counts are zero, which means unreported."""
    prompt = _count(usage.prompt_tokens)
    completion = _count(usage.completion_tokens)
    details, spent = usage.prompt_tokens_details, usage.completion_tokens_details
    cached = _count(details.cached_tokens) if details else 0
    reasoning = _count(spent.reasoning_tokens) if spent else 0
    total = _count(usage.total_tokens)
    cost = usage.cost_in_usd_ticks
    if not (prompt or completion or reasoning or total):
        return None
    return ProviderUsage(
        prompt,
        completion,
        reasoning,
        min(cached, prompt),
        total or prompt + completion + reasoning,
        cost if cost is not None and 0 <= cost <= COST_MAX_TICKS else None,
    )


def _count(reported: int | None) -> int:
    """Return a count of tokens; 0, which means unreported, for one that cannot be."""
    return reported if reported is not None and 0 <= reported <= TOKENS_MAX else 0


# Tool calls


class ToolCallParts(msgspec.Struct):
    """A tool call as collected so far."""

    call_id: str = ""
    name: str = ""
    arguments: str = ""


class ToolCallCollector:
    """Puts tool calls together by index, whatever shape their deltas have.

    A delta without an index belongs to the call with its id; without both it goes on with the last
    call, unless it names a function although that call already has a name: then it begins a new
    one. The same id and name again is a repetition, not a second half.
    """

    def __init__(self) -> None:
        """Begin with no calls."""
        self._calls: dict[int, ToolCallParts] = {}
        self._last = -1

    def __bool__(self) -> bool:
        """Tell whether there is any call."""
        return bool(self._calls)

    def add(self, delta: ToolCallDelta) -> None:
        """Add one delta."""
        index = delta.index if delta.index is not None else self._index_of(delta)
        call = self._calls.get(index)
        other_id = call is not None and delta.call_id and call.call_id not in {"", delta.call_id}
        if other_id and delta.name:  # a new call under an index already taken
            index = max(self._calls) + 1
            call = None
        if call is None:
            call = self._calls[index] = ToolCallParts()
        self._last = index
        if delta.call_id:
            call.call_id = delta.call_id
        if delta.name and delta.name != call.name:
            call.name += delta.name
        if delta.arguments:
            call.arguments += delta.arguments

    def calls(self) -> Sequence[ToolCallParts]:
        """Return the calls in the order of their indices."""
        return [self._calls[index] for index in sorted(self._calls)]

    def _index_of(self, delta: ToolCallDelta) -> int:
        if delta.call_id:
            for index, call in self._calls.items():
                if call.call_id == delta.call_id:
                    return index
        last = self._calls.get(self._last)
        starts = last is None or (delta.name and last.name) or (delta.call_id and last.call_id)
        return max(self._calls, default=-1) + 1 if starts else self._last
