"""Outbound: events of a turn, receipts, results and records."""

import hashlib
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from turnline.contracts.conversation import Citation, ContextEntry, Usage, UsageState
from turnline.contracts.messages import ToolResult
from turnline.contracts.numbers import number

T = TypeVar("T")


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """Fields of every event. A higher `attempt` tells readers to drop what a lower one showed."""

    conversation_id: str
    turn_id: str
    attempt: int = 1
    trace_id: str = ""
    """W3C trace id, 32 hexadecimal digits."""
    event_id: str = ""
    """Position in the conversation's event stream; set by the reader, for `after=`."""


class TurnStarted(Event, frozen=True, kw_only=True, tag="turn_started"):
    """An attempt at this turn began. Readers drop text shown for earlier attempts."""

    worker: str = ""


class TextDelta(Event, frozen=True, kw_only=True, tag="text_delta"):
    """More text of the reply."""

    text: str
    offset: int = 0
    """Characters (Unicode code points) of this attempt's reply before this delta."""


class ToolCallStarted(Event, frozen=True, kw_only=True, tag="tool_call_started"):
    """The model called a tool."""

    call_id: str
    name: str
    arguments: str = "{}"


class ToolCallFinished(Event, frozen=True, kw_only=True, tag="tool_call_finished"):
    """A tool call has its result."""

    call_id: str
    name: str
    ok: bool = True


class ReasoningSummaryDelta(Event, frozen=True, kw_only=True, tag="reasoning_summary_delta"):
    """More of what the model says about its reasoning; only where `reasoning_summary` is set."""

    text: str


class ServerToolStarted(Event, frozen=True, kw_only=True, tag="server_tool_started"):
    """The provider began to run one of its own tools."""

    call_id: str
    name: str


class ServerToolFinished(Event, frozen=True, kw_only=True, tag="server_tool_finished"):
    """The provider has run it."""

    call_id: str
    name: str
    ok: bool = True


class ToolRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tool call for whoever has the tool; delivered at least once."""

    conversation_id: str
    turn_id: str
    call_id: str
    name: str
    arguments: Annotated[msgspec.Raw, Meta(extra_json_schema={"type": "object"})] = msgspec.field(
        default_factory=lambda: msgspec.Raw(b"{}")
    )
    """A JSON object, as the model wrote it."""
    idempotency_key: str
    """The same for every delivery of this call, and for no other call."""
    deadline_at_ms: int
    """Ms since the Unix epoch; afterwards the model is told that nobody answered."""
    trace_id: str = ""
    traceparent: str = ""
    """W3C trace context of the call's span; of the turn, if the worker makes no spans."""

    def arguments_as(self, kind: type[T]) -> T:
        """Return the arguments as a struct or another type that msgspec knows.

        Raises:
            msgspec.ValidationError: They do not fit.
        """
        return msgspec.json.decode(self.arguments, type=kind)

    def result(self, value: Any = None, *, is_error: bool = False) -> ToolResult:
        """Return the message that answers this call; the same call always gets the same turn id."""
        key = hashlib.blake2b(self.idempotency_key.encode(), digest_size=16).hexdigest()
        return ToolResult(
            conversation_id=self.conversation_id,
            turn_id=f"result-{key}",
            call_id=self.call_id,
            result=value,
            is_error=is_error,
            traceparent=self.traceparent or None,
        )


decode_tool_request = msgspec.json.Decoder(ToolRequest, float_hook=number).decode


class Terminal(Event, frozen=True, kw_only=True):
    """Base of the events that end a turn. Every accepted turn gets exactly one."""

    metadata: dict[str, str] = {}
    """As the producer sent it."""


class TurnCompleted(Terminal, frozen=True, kw_only=True, tag="turn_completed"):
    """The turn took effect. `text` equals what was committed to the context."""

    text: str = ""
    finish_reason: str | None = None
    """None where no model was run (a message that only changes the conversation), or the provider
    gave no reason."""
    usage: Usage = Usage()
    """Sum over this turn's model calls, spend on abandoned attempts not included."""
    usage_state: UsageState = "reported"
    """The least certain state among this turn's calls."""
    model: str = ""
    parsed: Any = None
    """The reply's JSON value, where a `response_format` was asked for."""
    citations: tuple[Citation, ...] = ()
    """Sources that the reply names, in the order of the text."""

    def parsed_as(self, kind: type[T]) -> T:
        """Return the reply's JSON value as a struct or another type that msgspec knows.

        Raises:
            msgspec.ValidationError: It is none.
        """
        return msgspec.convert(self.parsed, kind)


class TurnFailed(Terminal, frozen=True, kw_only=True, tag="turn_failed"):
    """The turn cannot be answered; it is kept as a dead letter."""

    code: str
    message: str = ""


class TurnInterrupted(Terminal, frozen=True, kw_only=True, tag="turn_interrupted"):
    """The turn was stopped. `text` is the partial reply that was committed."""

    text: str = ""
    usage: Usage = Usage()
    usage_state: UsageState = "estimated"
    model: str = ""
    citations: tuple[Citation, ...] = ()
    """As in `turn_completed`; only those whose part of the text was kept."""


class TurnAbsorbed(Terminal, frozen=True, kw_only=True, tag="turn_absorbed"):
    """The message became part of another turn, `into`, which carries the reply."""

    into: str | None = None
    """None: the message had no content of its own and nothing to join."""


AnyTerminal = TurnCompleted | TurnFailed | TurnInterrupted | TurnAbsorbed
AnyEvent = (
    TurnStarted
    | TextDelta
    | ToolCallStarted
    | ToolCallFinished
    | ReasoningSummaryDelta
    | ServerToolStarted
    | ServerToolFinished
    | AnyTerminal
)
TERMINAL = (TurnCompleted, TurnFailed, TurnInterrupted, TurnAbsorbed)

encode_event = msgspec.json.Encoder().encode
_event_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent, float_hook=number)


def decode_event(data: bytes | str, event_id: str = "") -> AnyEvent:
    """Decode one event and give it its position in the stream.

    Raises:
        msgspec.DecodeError: Not JSON; of what is, a `msgspec.ValidationError`: not an event of this
            or an earlier version.
        UnicodeDecodeError: A string in it is not UTF-8.
        RecursionError: It is nested too deeply.
    """
    event = _event_decoder.decode(data)
    if event_id:
        msgspec.structs.force_setattr(event, "event_id", event_id)
    return event


def read_event(data: bytes | str, event_id: str = "") -> AnyEvent | None:
    """As `decode_event`; None for what no version up to this one has written."""
    try:
        return decode_event(data, event_id)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def is_end(data: bytes | str, turn_id: str) -> bool:
    """Whether an entry of an event stream is the terminal event of this turn."""
    event = read_event(data)
    return isinstance(event, TERMINAL) and event.turn_id == turn_id


class Receipt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a submission returned. Enough to find the turn again from any process."""

    conversation_id: str
    turn_id: str
    status: Literal["accepted", "duplicate"]
    position: int | None = None
    """Messages ahead of this one in the conversation; None for a duplicate."""
    after: str = "0-0"
    """Position in the event stream just before this turn's first event."""
    trace_id: str = ""
    replicas: int | None = None
    """Replicas that had the message when the receipt was made; None if none were waited for."""

    @property
    def accepted(self) -> bool:
        """Whether this submission put the turn in (and not an earlier one with the same id)."""
        return self.status == "accepted"


TurnState = Literal["accepted", "completed", "failed", "interrupted", "absorbed"]


class Rating(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a `feedback` message said of a turn."""

    name: str
    """What is rated, or who rates: a turn has one rating of each name."""
    score: float | None = None
    label: str | None = None
    explanation: str | None = None
    feedback_id: str = ""
    """Turn id of the message."""
    at_ms: int = 0
    """When that was accepted, by Redis' clock."""


class TurnRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What Redis keeps of a turn for the retention time."""

    state: TurnState
    accepted_at_ms: int
    """Redis' clock."""
    after: str = "0-0"
    digest: str = ""
    """Fingerprint of the content, to tell a repeated submission from a reused id."""
    deliver_at_ms: int | None = None
    """When a delayed message takes its place; `accepted_at_ms` of an ended turn is when it did."""
    finished_at_ms: int = 0
    """Redis' clock."""
    attempts: int = 0
    trace_id: str = ""
    worker: str = ""
    messages_from: int = 0
    """Index in the context of the turn's first message."""
    messages_to: int = 0
    """Index after its last one."""
    event: msgspec.Raw = msgspec.Raw(b"null")
    """The terminal event, as published."""
    feedback: tuple[Rating, ...] = ()
    """At most 16 ratings, one of each name."""

    def terminal(self) -> AnyTerminal | None:
        """Return the terminal event, or None while the turn is waiting or running."""
        if self.state == "accepted":
            return None
        event = decode_event(bytes(self.event))
        assert isinstance(event, TERMINAL)
        return event


decode_record = msgspec.json.Decoder(TurnRecord, float_hook=number).decode


class History(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation's committed context (n messages, oldest first) and its system prompt."""

    conversation_id: str
    system_prompt: str | None
    messages: tuple[ContextEntry, ...]
    """As people read them: without `reply_items`."""
    interrupted: tuple[int, ...] = ()
    """Indices of assistant messages that were cut short."""


class FoundConversation(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation, and what its last turn was."""

    conversation_id: str
    active_at_ms: int
    """When a turn of it ended last, ms, by Redis' clock."""
    outcome: TurnState
    """How that ended."""
    failed_at_ms: int | None = None
    """When a turn of it failed last."""
    turn_id: str = ""
    """The last turn that was accepted."""
    turns: int = 0
    """Turns that ran the model."""
    tenant: str = ""
    """Of its last call of the model."""
    agent: str = ""
    """Likewise."""
    metadata: dict[str, str] = {}
    """Of the last turn, if that has ended."""
    usage: Usage = Usage()
    """Of all answers."""


class ConversationPage(msgspec.Struct, frozen=True, kw_only=True):
    """Conversations, the one that was active last first."""

    conversations: tuple[FoundConversation, ...]
    after: str | None = None
    """Cursor of the next page; None: there is none."""


class FoundTurn(msgspec.Struct, frozen=True, kw_only=True):
    """A turn that has ended."""

    conversation_id: str
    turn_id: str
    state: TurnState
    code: str = ""
    """Why it failed."""
    finished_at_ms: int
    took_ms: int
    """From its acceptance, or from when it was due, to its end."""
    attempts: int = 0
    worker: str = ""
    trace_id: str = ""
    metadata: dict[str, str] = {}


class TurnPage(msgspec.Struct, frozen=True, kw_only=True):
    """Turns, those of the conversation that was active last first, in it the newest first."""

    turns: tuple[FoundTurn, ...]
    after: str | None = None
    """Cursor of the next page; None: there is none."""
