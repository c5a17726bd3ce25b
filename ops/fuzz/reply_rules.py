"""What has to hold for every body of a reply that a model may send."""

import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, Final, TypeAlias, cast

import msgspec

from turnline.ops.fuzz.verdicts import Verdict, must
from turnline.worker.errors import ReplyTooLarge
from turnline.worker.pipeline import call_parts, functions
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.pipeline.event_bytes import EVENT_MAX_BYTES
from turnline.worker.pipeline.reply_stream import ReplyStream
from turnline.worker.pipeline.shapes import BODY_MAX_BYTES, failure_of_body
from turnline.worker.pipeline.stream import CompletionStream
from turnline.worker.pipeline.stream_events import (
    FinishReason,
    MalformedFrame,
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

_SMALL: Final = 256
"""Bytes up to which a stream is also read byte by byte."""
_NUMBER_MAX: Final = 2**53
"""Largest whole number that every reader of JSON, and a sum in Redis, can take."""
_encode = msgspec.json.Encoder().encode


Missing: TypeAlias = Callable[[bytes, Sequence[StreamEvent]], None]
"""Checks that nothing of a body is missing in the events of a reply that was not refused."""


def check_stream(data: bytes) -> Verdict:
    """Read a response body of chat whole, in pieces, and byte by byte."""
    return check_body(data, CompletionStream, _check_nothing_is_missing)


def check_body(data: bytes, parser: Callable[[], ReplyStream], missing: Missing) -> Verdict:
    """Read a response body whole, in pieces, and byte by byte."""
    events = _read_stream([data], parser)
    random = Random(zlib.crc32(data))
    cuts = sorted(random.randrange(len(data) + 1) for _ in range(random.randrange(1, 9)))
    ends = [0, *cuts, len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(ends)]
    must(_same(_read_stream(pieces, parser), events), "other events if cut elsewhere")
    if len(data) <= _SMALL:
        pieces = [data[n : n + 1] for n in range(len(data))]
        must(_same(_read_stream(pieces, parser), events), "other events if read byte by byte")
    _check_events(events, len(data))
    if not any(type(event).__name__ in _REFUSALS for event in events):
        missing(data, events)
    failure_of_body(data).message.encode()
    names = [type(event).__name__ for event in events]
    refused = next((name for name in names if name in _REFUSALS), "")
    pairs = {f"{one} {two}" for one, two in zip(["", *names], [*names, ""], strict=True)}
    details = {_detail(event) for event in events}
    return Verdict(refused, sorted(pairs | details))


def _same(some: Sequence[StreamEvent], others: Sequence[StreamEvent]) -> bool:
    """Whether two readings agree. Which depth is too deep depends on the caller's stack."""
    return some == others or _TOO_DEEP in (*some, *others)


_TOO_DEEP: Final = MalformedFrame("too_deep")
_REFUSALS: Final = frozenset({"MalformedFrame", "NotAStream", "OverLimit", "StreamFailed"})


def _read_stream(pieces: Sequence[bytes], parser: Callable[[], ReplyStream]) -> list[StreamEvent]:
    reader = parser()
    events: list[StreamEvent] = []
    most = 0
    for piece in pieces:
        events += reader.feed(piece)
        most = max(most, _kept_bytes(reader))
    if most > _SMALL:
        must(most <= _may_keep_bytes(b"".join(pieces)), "more is kept than one open event")
    return events + reader.close()


def _kept_bytes(reader: ReplyStream) -> int:
    values = cast("dict[str, object]", vars(vars(reader)["_bytes"])).values()
    return sum(len(value) for value in values if isinstance(value, bytes | bytearray))


def _may_keep_bytes(body: bytes) -> int:
    body = body.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if body.lstrip()[:1] == b"{":
        return EVENT_MAX_BYTES
    if body.lstrip()[:1] in b'["<':
        return BODY_MAX_BYTES
    return max(map(len, body.split(b"\n\n"))) + 4


def _check_events(events: Sequence[StreamEvent], size: int) -> None:
    text = 0
    deltas: list[call_parts.ToolCallDelta] = []
    for n, event in enumerate(events):
        match event:
            case TextDelta() | ReasoningDelta() | Refusal():
                text += len(event.text.encode())
            case UsageReport(usage=usage):
                numbers = [value or 0 for value in msgspec.structs.astuple(usage)]
                must(0 <= min(numbers) <= max(numbers) <= _NUMBER_MAX, "usage beyond all bounds")
            case StreamDone() | OverLimit():
                must(n == len(events) - 1, "events after the end")
            case call_parts.ToolCallDelta():
                deltas.append(event)
            case FinishReason(reason=word) | ResponseNamed(model=word):
                must(len(word or "") <= call_parts.NAME_MAX_CHARS, "a word without a bound")
            case _:
                pass
    must(text <= 2 * size, "more text than was sent")
    _check_calls(deltas, size)
    _encode([event for event in events if not isinstance(event, call_parts.ToolCallDelta)])


def _check_calls(deltas: Sequence[call_parts.ToolCallDelta], size: int) -> None:
    collector = call_parts.ToolCallCollector()
    try:
        for delta in deltas:
            collector.add(delta)
    except ReplyTooLarge:
        return
    calls = collector.calls()
    _encode(calls)
    must(len(calls) <= call_parts.CALLS_MAX, "more calls than a response may have")
    must(sum(len(call.arguments) for call in calls) <= 4 * size, "more arguments than sent")
    context = OpenAILLMContext()
    for call in calls:
        made = functions.function_call(call.name, call.call_id, call.arguments, context)
        _encode(made.arguments)
    expected = _plainly_merged(deltas)
    must(expected is None or calls == expected, "other calls than were made")


def _plainly_merged(
    deltas: Sequence[call_parts.ToolCallDelta],
) -> Sequence[call_parts.ToolCallParts] | None:
    """Merge calls in the way of OpenAI's own replies; None if they were sent in another way."""
    calls: dict[int, call_parts.ToolCallParts] = {}
    ids = [delta.call_id for delta in deltas if delta.call_id]
    for delta in deltas:
        index, begins = delta.index, bool(delta.call_id and delta.name)
        if index is None or index < 0 or begins == (index in calls) or len(ids) != len(set(ids)):
            return None
        if begins:
            name = (delta.name or "")[: call_parts.NAME_MAX_CHARS + 1]
            words = (call_parts.whole_characters(it or "") for it in (delta.call_id, name))
            calls[index] = call_parts.ToolCallParts(*words)
        elif delta.call_id or delta.name:
            return None
        calls[index].arguments += delta.arguments or ""
    merged = [calls[index] for index in sorted(calls)]
    return merged if all(_is_object(call.arguments) for call in merged) else None


def _is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False


def _check_nothing_is_missing(body: bytes, events: Sequence[StreamEvent]) -> None:
    """Check that no text is missing, by an independent and simpler reading of plain frames.

    A refused reply is not checked.
    """
    texts = [it.text for it in events if isinstance(it, TextDelta | Refusal)]
    thoughts = [it.text for it in events if isinstance(it, ReasoningDelta)]
    said = "\0".join(("".join(texts), "".join(thoughts)))  # thoughts may come between the texts
    for choice in _plain_choices(body):
        contents = [choice.get("text"), choice.get("delta"), choice.get("message")]
        for content in contents:
            fields = _fields(content)
            inner = (fields.get("content") or fields.get("text")) if fields else content
            for text in _texts(inner):
                must(text.strip() in said, "text is missing")


def _plain_choices(body: bytes) -> Iterator[dict[str, Any]]:
    """Yield the only choice of each frame that is one line of JSON, up to what may be the end."""
    body = body.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if body.lstrip()[:1] in b'{["<':
        return
    for event in body.partition(b"[DONE]")[0].split(b"\n\n"):
        lines = [line for line in event.split(b"\n") if line]
        if len(lines) != 1 or not lines[0].startswith(b"data: "):
            continue
        try:
            choices = _fields(json.loads(lines[0][6:].decode())).get("choices")
        except (ValueError, RecursionError):
            continue
        items = cast("list[object]", choices) if isinstance(choices, list) else []
        choice = _fields(items[0]) if len(items) == 1 else {}
        if choice.get("index", 0) in (0, None):
            yield choice


def _fields(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _texts(content: object) -> Iterator[str]:
    """Yield the texts in content: itself, or those of its parts."""
    for part in cast("list[object]", content) if isinstance(content, list) else [content]:
        fields = _fields(part)
        text = fields.get("content") or fields.get("text") if fields else part
        if isinstance(text, str) and text.isprintable():
            yield text


def _detail(event: StreamEvent) -> str:
    match event:
        case MalformedFrame(reason=reason):
            return f"malformed {reason}"
        case call_parts.ToolCallDelta():
            return "call " + " ".join(
                str(part is not None) for part in msgspec.structs.astuple(event)
            )
        case StreamFailed(code=code, message=message):
            return f"failed {bool(code)} {bool(message)}"
        case UsageReport(usage=usage):
            return "usage " + " ".join(str(bool(part)) for part in msgspec.structs.astuple(usage))
        case _:
            return ""
