"""What is fuzzed, and what has to hold for every input there is."""

import datetime as dt
import decimal
import itertools
import json
import re
import uuid
import zlib
from collections.abc import Callable, Coroutine, Iterator, Sequence
from random import Random
from types import ModuleType
from typing import Any, Final, Literal, NamedTuple, cast
from urllib.parse import urlsplit

import httpx2
import msgspec

from turnline.contracts import (
    addresses,
    conversation,
    json_schemas,
    messages,
    protocol,
    replies,
    trace_context,
)
from turnline.contracts.conversation import ConversationSettings, decode_context_entry
from turnline.contracts.errors import InvalidAddress, InvalidMessage
from turnline.contracts.json_schemas import BadSchema, Schemas
from turnline.contracts.replies import TERMINAL, AnyEvent, TurnRecord
from turnline.ops.fuzz import hostile, seeds
from turnline.ops.fuzz.mutation import (
    ENTRY,
    FIELD,
    MARK,
    AnswerMutator,
    EntriesMutator,
    JsonMutator,
    Mutate,
    StreamMutator,
    mutate_bytes,
)
from turnline.worker import effects, schema_checking, settings
from turnline.worker.effects import Entry
from turnline.worker.errors import ReplyTooLarge
from turnline.worker.pipeline import aggregators, call_parts, functions, shapes, stream
from turnline.worker.pipeline.aggregators import LLMUserContextAggregator
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.settings import check_base_url, from_env
from turnline.worker.starting import provider_check, stage
from turnline.worker.starting.stage import StartFailed
from turnline.worker.tools import ToolFailed, description, tool, types, values
from turnline.worker.tools.description import describe
from turnline.worker.turn import gathering
from turnline.worker.turn.gathering import Turn, record_of

_SMALL: Final = 256
"""Bytes up to which a stream is also read byte by byte."""
_NUMBER_MAX: Final = 2**53
"""Largest whole number that every reader of JSON, and a sum in Redis, can take."""
_encode = msgspec.json.Encoder().encode


class Violation(Exception):
    """Something that must always hold does not; the text says what, never the input."""


class Verdict(NamedTuple):
    """What became of an input that broke nothing."""

    refused: str = ""
    """The name it was refused by; empty: it was accepted."""
    outcomes: Sequence[str] = ()
    """What happened, in words of a bounded number: a new one is worth as much as new code, since
    much of the code that decides is not Python."""


class Target(NamedTuple):
    """Something that takes bytes from outside."""

    name: str
    files: Sequence[str]
    """Source files whose lines count as code reached."""
    seeds: Sequence[bytes]
    mutate: Mutate
    check: Callable[[bytes], Verdict]
    """Raises `Violation`, or anything at all, if the input breaks something."""


def must(holds: bool, rule: str) -> None:  # noqa: FBT001  reads as an assertion
    """Raise `Violation(rule)` unless it holds."""
    if not holds:
        raise Violation(rule)


# Messages


def check_message(data: bytes) -> Verdict:
    """Decode one message as `submit` and a worker do."""
    try:
        message = messages.decode(data)
    except InvalidMessage as error:
        must(MARK not in f"{error} {error!r}", "an error repeats what was sent")
        return Verdict("InvalidMessage", [_plain(str(error))])
    must(messages.decode(messages.encode(message)) == message, "another message after a round trip")
    try:
        submission = protocol.Requests().submission(message)
    except InvalidMessage as error:  # its ids are not as clean as they have to be, or a schema
        must(MARK not in f"{error} {error!r}", "an error repeats what was sent")
        return Verdict("InvalidMessage", [_plain(str(error))])
    sent = submission.call.args[2]
    assert isinstance(sent, bytes)
    stored = messages.decode(sent)
    same = msgspec.structs.replace(
        stored,
        sent_at_ms=message.sent_at_ms,
        traceparent=message.traceparent,
        tracestate=message.tracestate,
    )
    must(same == message, "a submission changes the message")
    must(
        submission.trace_id == trace_context.trace_id_of(stored.traceparent) != "",
        "a submission without a trace",
    )
    kind = type(message).__name__
    given = (name for name in message.__struct_fields__ if getattr(message, name) not in _NOTHING)
    return Verdict("", [f"{kind} {name}" for name in given])


_NOTHING: Final[tuple[object, ...]] = (None, 0, "", (), msgspec.UNSET)


def _plain(text: str) -> str:
    """Return a sentence without its numbers, so that the number of sentences is bounded."""
    return re.sub(r"\d+", "N", text)[:200]


# Events, records and tool calls, as clients read them


def check_event(data: bytes) -> Verdict:
    """Decode what a client reads from Redis."""
    kinds: list[str] = []
    name = ""
    for read in (_read_event, replies.decode_record, replies.decode_tool_request):
        try:
            value = read(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            name = type(error).__name__  # clients read what Turnline wrote: no other has a say here
        else:
            must(read(_encode(value)) == value, "another event after a round trip")
            kinds.append(type(value).__name__)
    return Verdict("" if kinds else name, kinds or [name])


def _read_event(data: bytes) -> AnyEvent:
    event = replies.decode_event(data, "5-1")
    if isinstance(event, TERMINAL):
        record = TurnRecord(
            state="completed", accepted_at_ms=1, event=msgspec.Raw(replies.encode_event(event))
        )
        kept = replies.decode_record(_encode(record)).terminal()
        must(kept == event, "another event in the turn's record")
    shown = protocol.TextAssembler()
    shown.take(event)
    shown.take(event)
    must(not isinstance(event, TERMINAL) or shown.text == getattr(event, "text", ""), "other text")
    return event


# Streams of the model


def check_stream(data: bytes) -> Verdict:
    """Read a response body whole, in pieces, and byte by byte."""
    events = _read_stream([data])
    random = Random(zlib.crc32(data))
    cuts = sorted(random.randrange(len(data) + 1) for _ in range(random.randrange(1, 9)))
    ends = [0, *cuts, len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(ends)]
    must(_same(_read_stream(pieces), events), "other events if cut elsewhere")
    if len(data) <= _SMALL:
        pieces = [data[n : n + 1] for n in range(len(data))]
        must(_same(_read_stream(pieces), events), "other events if read byte by byte")
    _check_events(events, len(data))
    if not any(type(event).__name__ in _REFUSALS for event in events):
        _check_nothing_is_missing(data, events)
    stream.failure_of_body(data).message.encode()
    names = [type(event).__name__ for event in events]
    refused = next((name for name in names if name in _REFUSALS), "")
    pairs = {f"{one} {two}" for one, two in zip(["", *names], [*names, ""], strict=True)}
    details = {_detail(event) for event in events}
    return Verdict(refused, sorted(pairs | details))


def _same(some: Sequence[stream.StreamEvent], others: Sequence[stream.StreamEvent]) -> bool:
    """Whether two readings agree; how deep is too deep depends on the caller's stack."""
    return some == others or _TOO_DEEP in (*some, *others)


_TOO_DEEP: Final = stream.MalformedFrame("too_deep")
_REFUSALS: Final = frozenset({"MalformedFrame", "NotAStream", "OverLimit", "StreamFailed"})


def _read_stream(pieces: Sequence[bytes]) -> list[stream.StreamEvent]:
    reader = stream.CompletionStream()
    events: list[stream.StreamEvent] = []
    most = 0
    for piece in pieces:
        events += reader.feed(piece)
        most = max(most, _kept_bytes(reader))
    if most > _SMALL:
        must(most <= _may_keep_bytes(b"".join(pieces)), "more is kept than one open event")
    return events + reader.close()


def _kept_bytes(reader: stream.CompletionStream) -> int:
    values = vars(reader).values()
    return sum(len(value) for value in values if isinstance(value, bytes | bytearray))


def _may_keep_bytes(body: bytes) -> int:
    body = body.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if body.lstrip()[:1] == b"{":
        return stream.EVENT_MAX_BYTES
    if body.lstrip()[:1] in b'["<':
        return stream.BODY_MAX_BYTES
    return max(map(len, body.split(b"\n\n"))) + 4


def _check_events(events: Sequence[stream.StreamEvent], size: int) -> None:
    text = 0
    deltas: list[call_parts.ToolCallDelta] = []
    for n, event in enumerate(events):
        match event:
            case stream.TextDelta() | stream.ReasoningDelta() | stream.Refusal():
                text += len(event.text.encode())
            case stream.UsageReport(usage=usage):
                numbers = [value or 0 for value in msgspec.structs.astuple(usage)]
                must(0 <= min(numbers) <= max(numbers) <= _NUMBER_MAX, "usage beyond all bounds")
            case stream.StreamDone() | stream.OverLimit():
                must(n == len(events) - 1, "events after the end")
            case call_parts.ToolCallDelta():
                deltas.append(event)
            case stream.FinishReason(reason=word) | stream.ResponseNamed(model=word):
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
    """Put calls together as OpenAI's own have to be; None for any that are sent otherwise."""
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


def _check_nothing_is_missing(body: bytes, events: Sequence[stream.StreamEvent]) -> None:
    """See that what stands where text does came out, by a reading of its own of the plain frames.

    A reply may also be refused: then it is not taken for whole.
    """
    texts = [it.text for it in events if isinstance(it, stream.TextDelta | stream.Refusal)]
    thoughts = [it.text for it in events if isinstance(it, stream.ReasoningDelta)]
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


def _detail(event: stream.StreamEvent) -> str:
    match event:
        case stream.MalformedFrame(reason=reason):
            return f"malformed {reason}"
        case call_parts.ToolCallDelta():
            return "call " + " ".join(
                str(part is not None) for part in msgspec.structs.astuple(event)
            )
        case stream.StreamFailed(code=code, message=message):
            return f"failed {bool(code)} {bool(message)}"
        case stream.UsageReport(usage=usage):
            return "usage " + " ".join(str(bool(part)) for part in msgspec.structs.astuple(usage))
        case _:
            return ""


# Stored entries, as a worker reads them


def check_entries(data: bytes) -> Verdict:
    """Take entries of an inbox, whatever they hold, into a turn, and end it."""
    entries = [
        Entry(f"{n}-0", dict(_field(field) for field in entry.split(FIELD)))
        for n, entry in enumerate(data.split(ENTRY), 1)
    ]
    context = OpenAILLMContext()
    user = LLMUserContextAggregator(context, now=lambda: 0.0)
    taken = Turn("c", ConversationSettings(), user, since_ms=1, schemas=Schemas())
    for entry in entries:
        taken.would_answer(entry)
        entry.control_for("1-0")
        _finish(taken.take(entry))
    _finish(taken.close())
    must([used.entry for used in taken.used] == entries, "an entry is not used once, in order")
    outcomes = [f"answer {taken.wants_answer}", f"settings {taken.settings_changed}"]
    failed = ""
    for used, ending in taken.endings(None):
        record = record_of(used, ending, attempts=1, finished_at_ms=2, worker="w")
        must(replies.decode_record(_encode(record)).terminal() == ending, "another end is kept")
        outcomes.append(f"{type(used.message).__name__} {type(ending).__name__}")
        if isinstance(ending, replies.TurnFailed):
            must(MARK not in ending.message, "an error repeats what was sent")
            failed = ending.code
    for message in context.new_messages_encoded():
        decode_context_entry(message)
    kept = protocol.decode_settings(_encode(taken.settings))
    must(kept == taken.settings, "other settings are kept")
    return Verdict(failed, outcomes)


# What is met at a start: a provider's answer, addresses


def check_answer(data: bytes) -> Verdict:
    """Judge a provider's answer to `GET /models`: its status in a line, then its body."""
    first, _, body = data.partition(b"\n")
    status = int(first[:3]) if re.fullmatch(rb"[0-9]{3}", first[:3]) else 200
    rest = first[3:].decode("latin-1")
    try:
        found = provider_check.judge_answer(_START, provider_check.Answer(status, body, rest, rest))
    except StartFailed as error:
        _must_be_a_sentence(str(error), 2_500)
        return Verdict("StartFailed", [_plain(str(error))[:36]])
    must(status != 200 or found.models is not None, "an answer was judged to be nothing")
    return Verdict("", [_plain(f"{found.models} {found.unchecked}")])


_START: Final = from_env({"XAI_API_KEY": MARK})


def check_address(data: bytes) -> Verdict:
    """Read an address as one of Redis and as one of a provider."""
    text = data.decode("latin-1")
    outcomes: list[str] = []
    refused = ""
    try:
        address = addresses.read_address(text)
    except InvalidAddress as error:
        _must_be_a_sentence(str(error), 400)
        must(addresses.where(text) == "the address given", "an address that is none is shown")
        refused, outcomes = "InvalidAddress", [_plain(str(error).rpartition(" is not known")[2])]
    else:
        must(addresses.where(text) == address.where, "an address is shown in two ways")
        must(address.where in repr(address), "an address hides where it is")
        must(address.where.isascii() and address.where.isprintable(), "an address shows what hides")
        must(not set(address.plain) & set("@?"), "an address without secrets has some")
        parts = urlsplit(address.plain)
        must(parts.scheme in {"redis", "rediss", "unix"}, "an address of another kind")
        must(parts.scheme == "unix" or bool(parts.hostname and parts.port), "an address of nobody")
        outcomes = [*sorted(address.options), parts.scheme]
    try:
        check_base_url(text)
    except InvalidAddress as error:
        _must_be_a_sentence(str(error), 400)
        return Verdict(refused, [*outcomes, _plain(str(error))])
    read = httpx2.URL(text)
    must(not read.userinfo and not read.query, "a key would go with more than a path")
    must(read.host == (urlsplit(text).hostname or ""), "a key would go to another host")
    return Verdict("", [*outcomes, "a provider's"])


def _must_be_a_sentence(text: str, most_chars: int) -> None:
    must(MARK not in text, "an error repeats a secret")
    must(text.isprintable(), "an error has characters that do not show")
    must(0 < len(text) <= most_chars, "an error has no bounds")


def _field(text: bytes) -> tuple[bytes, bytes]:
    name, _, value = text.partition(b"=")
    return name, value


def _finish(work: Coroutine[Any, Any, None]) -> None:
    """Run what is asynchronous in form only."""
    try:
        work.send(None)
    except StopIteration:
        return
    work.close()
    raise Violation("it waits for something")


# Schemas, with a value to check


_CHECKED: Final = Schemas()


class _Case(msgspec.Struct):
    schema: msgspec.Raw
    value: msgspec.Raw


def check_schema(data: bytes) -> Verdict:
    """Compile a schema as all doors do, and check a value: here if that is cheap, else apart."""
    try:
        case = msgspec.json.decode(data, type=_Case)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return Verdict(type(error).__name__)
    source, value = bytes(case.schema), bytes(case.value)
    try:
        schema = _CHECKED.read(source)
        asked = msgspec.json.decode(source)
        if isinstance(asked, dict):
            _CHECKED.of_reply(cast("dict[str, Any]", asked))
            _CHECKED.of_arguments(cast("dict[str, Any]", asked))
    except BadSchema as error:
        _must_be_a_line(str(error))
        return Verdict("BadSchema", [_plain(str(error))])
    try:
        found = msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Verdict("", ["compiled"])
    fault = (
        schema.fault(found)
        if schema_checking.is_cheap(schema, value)
        else schema_checking.apart(schema, value)
    )
    _must_be_a_line(fault or "")
    return Verdict("", ["fits" if fault is None else _plain(fault.partition(":")[2])])


def _must_be_a_line(text: str) -> None:
    must(len(text) <= 300 and (text.isprintable() or not text), "no bounded line")


# Arguments of a Python tool


@tool(names={"money": "$"})
def _tool(  # noqa: PLR0917  one parameter of each kind
    from_: str,
    number: int,
    share: float,
    when: dt.datetime,
    ident: uuid.UUID,
    either: int | str | None,
    money: decimal.Decimal,
    named: dict[str, list[int]],
    level: Literal["low", "high"] = "low",
) -> None:
    """Take one of each kind."""


_DESCRIBED: Final = describe(_tool)


def check_arguments(data: bytes) -> Verdict:
    """Decode a model's arguments, and tell a result made of them."""
    try:
        arguments = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return Verdict(type(error).__name__)
    try:
        named = values.decoded(arguments, _DESCRIBED)
    except ToolFailed as error:
        must(len(str(error)) <= 300 and str(error).isprintable(), "no bounded line")
        return Verdict("ToolFailed", [_plain(str(error))])
    must(type(named["number"]) is int, "an integer that is none")
    msgspec.json.decode(values.told(named))
    return Verdict("", [f"{name} {type(value).__name__}" for name, value in named.items()])


def _files(*modules: ModuleType) -> tuple[str, ...]:
    return tuple(str(module.__file__) for module in modules)


def targets() -> dict[str, Target]:
    """Return all targets by name."""
    recorded = seeds.recorded_streams(seeds.RECORDINGS)
    found = (
        Target(
            "messages",
            _files(messages, conversation, protocol, trace_context),
            seeds.MESSAGES,
            JsonMutator(seeds.MESSAGE_WORDS),
            check_message,
        ),
        Target(
            "events",
            _files(replies, protocol),
            seeds.EVENTS,
            JsonMutator(seeds.EVENT_WORDS),
            check_event,
        ),
        Target(
            "stream",
            _files(stream, shapes, call_parts),
            [*seeds.STREAMS, *recorded],
            StreamMutator(seeds.STREAM_WORDS),
            check_stream,
        ),
        Target(
            "entries",
            _files(gathering, effects, aggregators, messages, conversation),
            seeds.ENTRIES,
            EntriesMutator(seeds.MESSAGE_WORDS),
            check_entries,
        ),
        Target(
            "schemas",
            _files(json_schemas, schema_checking),
            [*hostile.seeds()],
            JsonMutator(seeds.SCHEMA_WORDS),
            check_schema,
        ),
        Target(
            "arguments",
            _files(values, description, types),
            seeds.ARGUMENTS,
            JsonMutator(seeds.ARGUMENT_WORDS),
            check_arguments,
        ),
        Target(
            "answers",
            _files(provider_check, stage),
            seeds.ANSWERS,
            AnswerMutator(seeds.ANSWER_WORDS),
            check_answer,
        ),
        Target(
            "addresses", _files(addresses, settings), seeds.ADDRESSES, mutate_bytes, check_address
        ),
    )
    return {target.name: target for target in found}
