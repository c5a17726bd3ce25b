"""What is fuzzed, and what has to hold for every input there is."""

import datetime as dt
import decimal
import re
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
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
    schema_bounds,
    trace_context,
)
from turnline.contracts.conversation import ConversationSettings, decode_context_entry
from turnline.contracts.errors import InvalidAddress, InvalidMessage
from turnline.contracts.json_schemas import Schemas
from turnline.contracts.replies import TERMINAL, AnyEvent, TurnRecord
from turnline.contracts.schema_bounds import BadSchema
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
from turnline.ops.fuzz.reply_rules import check_stream
from turnline.ops.fuzz.response_rules import check_items, check_responses
from turnline.ops.fuzz.verdicts import Verdict, Violation, must, plain
from turnline.worker import effects, schema_checking, settings
from turnline.worker.effects import Entry
from turnline.worker.errors import StartFailed
from turnline.worker.pipeline import (
    call_parts,
    event_bytes,
    reply_items,
    reply_stream,
    reply_text,
    response_calls,
    response_frames,
    responses_stream,
    shapes,
    stream,
    usage_reports,
    user_aggregator,
    usual_chunks,
)
from turnline.worker.pipeline.aggregators import LLMUserContextAggregator
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.settings import check_base_url, from_env
from turnline.worker.starting import provider_check, stage
from turnline.worker.tools import ToolFailed, description, tool, types, values
from turnline.worker.tools.description import describe
from turnline.worker.turn import gathering
from turnline.worker.turn.gathering import Turn, record_of

_encode = msgspec.json.Encoder().encode


Check = Callable[[bytes], Verdict]
"""Raises `Violation`, or anything at all, if the input breaks something."""


class Target(NamedTuple):
    """Something that takes bytes from outside."""

    name: str
    files: Sequence[str]
    """Source files whose lines count as code reached."""
    seeds: Sequence[bytes]
    mutate: Mutate
    check: Check


# Messages


def check_message(data: bytes) -> Verdict:
    """Decode one message as `submit` and a worker do."""
    try:
        message = messages.decode(data)
    except InvalidMessage as error:
        must(MARK not in f"{error} {error!r}", "an error repeats what was sent")
        return Verdict("InvalidMessage", [plain(str(error))])
    must(messages.decode(messages.encode(message)) == message, "another message after a round trip")
    try:
        submission = protocol.Requests().submission(message)
    except InvalidMessage as error:  # its ids are not as clean as they have to be, or a schema
        must(MARK not in f"{error} {error!r}", "an error repeats what was sent")
        return Verdict("InvalidMessage", [plain(str(error))])
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


# Events, records and tool calls, as clients read them


def check_event(data: bytes) -> Verdict:
    """Decode what a client reads from Redis."""
    kinds: list[str] = []
    name = ""
    for read in (_read_event, replies.decode_record, replies.decode_tool_request):
        try:
            value = read(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            name = type(error).__name__  # clients read only what Turnline wrote
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
    shown.feed(event)
    shown.feed(event)
    must(not isinstance(event, TERMINAL) or shown.text == getattr(event, "text", ""), "other text")
    return event


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
        _finish(taken.add(entry))
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
        if not found.unchecked:
            provider_check.need_model(_START, found.listed)
    except StartFailed as error:
        _must_be_a_sentence(str(error), 2_500)
        return Verdict("StartFailed", [plain(str(error))[:36]])
    must(status != 200 or found.models is not None, "an answer was judged to be nothing")
    return Verdict("", [plain(f"{found.models} {found.unchecked}")])


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
        refused, outcomes = "InvalidAddress", [plain(str(error).rpartition(" is not known")[2])]
    else:
        must(addresses.where(text) == address.where, "an address is shown in two ways")
        must(address.where in repr(address), "an address hides where it is")
        must(address.where.isascii() and address.where.isprintable(), "an address shows what hides")
        must("@" not in address.where, "an address without secrets has some")
        must(bool(address.nodes) != bool(address.socket_path), "an address of nobody")
        must(len(set(address.nodes)) == len(address.nodes) <= 64, "too many nodes, or one twice")
        for host, port in address.nodes:
            must(not set(host) & set("@,/?[]") and 0 < port < 65_536, "a node that is none")
        is_watched = address.kind == "sentinel"
        must(is_watched == bool(address.service), "sentinels watch nothing")
        must(is_watched or not address.sentinel_options, "a secret for nobody")
        outcomes = [*sorted(address.options), *sorted(address.sentinel_options), address.kind]
    try:
        check_base_url(text)
    except InvalidAddress as error:
        _must_be_a_sentence(str(error), 400)
        return Verdict(refused, [*outcomes, plain(str(error))])
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
    """Run a coroutine that never waits."""
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
    """Compile a schema in every way that is used, and check a value: here if cheap, else apart."""
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
        return Verdict("BadSchema", [plain(str(error))])
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
    return Verdict("", ["fits" if fault is None else plain(fault.partition(":")[2])])


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
    """Decode a model's arguments, and encode a result made of them."""
    try:
        arguments = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return Verdict(type(error).__name__)
    try:
        named = values.decoded(arguments, _DESCRIBED)
    except ToolFailed as error:
        must(len(str(error)) <= 300 and str(error).isprintable(), "no bounded line")
        return Verdict("ToolFailed", [plain(str(error))])
    must(type(named["number"]) is int, "an integer that is none")
    msgspec.json.decode(values.result_text(named))
    return Verdict("", [f"{name} {type(value).__name__}" for name, value in named.items()])


_CHECKS: Final[Mapping[str, tuple[Check, Mutate, Sequence[bytes]]]] = {
    "messages": (check_message, JsonMutator(seeds.MESSAGE_WORDS), seeds.MESSAGES),
    "events": (check_event, JsonMutator(seeds.EVENT_WORDS), seeds.EVENTS),
    "stream": (check_stream, StreamMutator(seeds.STREAM_WORDS), seeds.STREAMS),
    "responses": (check_responses, StreamMutator(seeds.RESPONSE_WORDS), seeds.RESPONSES),
    "items": (check_items, JsonMutator(seeds.ENTRY_WORDS), seeds.CONTEXT_ENTRIES),
    "entries": (check_entries, EntriesMutator(seeds.MESSAGE_WORDS), seeds.ENTRIES),
    "schemas": (check_schema, JsonMutator(seeds.SCHEMA_WORDS), tuple(hostile.seeds())),
    "arguments": (check_arguments, JsonMutator(seeds.ARGUMENT_WORDS), seeds.ARGUMENTS),
    "answers": (check_answer, AnswerMutator(seeds.ANSWER_WORDS), seeds.ANSWERS),
    "addresses": (check_address, mutate_bytes, seeds.ADDRESSES),
}
NAMES: Final = tuple(_CHECKS)
_READERS: Final[Mapping[str, Sequence[ModuleType]]] = {
    "messages": (messages, conversation, protocol, trace_context),
    "events": (replies, protocol),
    "stream": (
        *(stream, event_bytes, usual_chunks, reply_text, shapes, usage_reports, call_parts),
    ),
    "responses": (
        *(responses_stream, reply_stream, response_calls, response_frames, reply_items),
        *(event_bytes, reply_text, shapes, usage_reports, call_parts),
    ),
    "items": (reply_items, conversation),
    "entries": (gathering, effects, user_aggregator, messages, conversation),
    "schemas": (json_schemas, schema_bounds, schema_checking),
    "arguments": (values, description, types),
    "answers": (provider_check, stage),
    "addresses": (addresses, settings),
}


def targets() -> dict[str, Target]:
    """Return all targets by name."""
    recorded = {
        "stream": seeds.recorded_streams(seeds.RECORDINGS / "xai"),
        "responses": seeds.recorded_responses(seeds.RECORDINGS / "xai-responses"),
    }
    found: dict[str, Target] = {}
    for name, (check, mutate, begun) in _CHECKS.items():
        files = [str(module.__file__) for module in _READERS[name]]
        found[name] = Target(name, files, [*begun, *recorded.get(name, ())], mutate, check)
    return found
