"""Inbound messages: what a producer may send to a conversation.

JSON, one object per message, told apart by `type`. Structs are frozen; new fields have defaults; a
tag is never renamed or reused; unknown fields are ignored (docs/adr/0001-json-on-the-wire.md).
"""

import math
import uuid
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from turnline.contracts.conversation import (
    MESSAGE_MAX_BYTES,
    METADATA_MAX_PAIRS,
    AgentName,
    AssistantEntry,
    ContentPart,
    ContextEntry,
    Id,
    ResponseFormat,
    SettingsChange,
    Tenant,
    Text,
    check_id,
    check_reply_items,
    check_text_bytes,
    check_visible,
)
from turnline.contracts.errors import InvalidMessage
from turnline.contracts.msgspec_sentences import explain
from turnline.contracts.numbers import number

WhenBusy = Literal["enqueue", "interrupt", "rollback", "reject"]
Priority = Literal["interactive", "batch"]
MetadataKey = Annotated[str, Meta(min_length=1, max_length=64)]
MetadataValue = Annotated[str, Meta(max_length=512)]
Word = Annotated[str, Meta(min_length=1, max_length=64)]
Entries = Annotated[tuple[ContextEntry, ...], Meta(max_length=10_000)]


def new_turn_id() -> str:
    """Return a fresh idempotency key (32 hexadecimal digits)."""
    return uuid.uuid4().hex


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """Fields of every inbound message."""

    conversation_id: Id
    """Unit of ordering: messages of one conversation take effect in the order accepted."""
    turn_id: Id = msgspec.field(default_factory=new_turn_id)
    """Idempotency key: a second message with the same id is answered `duplicate`."""
    sent_at_ms: int = 0
    """Producer's clock, ms since the Unix epoch. For display, never for ordering."""
    traceparent: Annotated[str, Meta(max_length=256)] | None = None
    """Producer's W3C trace context (https://www.w3.org/TR/trace-context/)."""
    tracestate: Annotated[str, Meta(max_length=512)] | None = None
    baggage: Annotated[str, Meta(max_length=8192)] | None = None
    """Producer's W3C baggage (https://www.w3.org/TR/baggage/), for the tools of the turn. None:
    what is active where the message is submitted; an empty one stays empty."""
    deadline_at_ms: int | None = None
    """Ms since the Unix epoch after which an answer is of no use: the turn then fails."""
    when_busy: WhenBusy = "enqueue"
    """What to do if a turn of this conversation is running or waiting."""
    reply_to: Id | None = None
    """Name of a reply stream that also receives this turn's terminal event."""
    metadata: Annotated[dict[MetadataKey, MetadataValue], Meta(max_length=METADATA_MAX_PAIRS)] = {}
    """The producer's own labels, at most 16; returned with the terminal event."""


class UserMessage(Message, frozen=True, kw_only=True, tag="user_message"):
    """The user wrote something: text, or parts with images."""

    text: Text = ""
    parts: Annotated[tuple[ContentPart, ...], Meta(max_length=64)] = ()
    """Text and images, instead of `text`."""
    run: bool = True
    """False: only append to the context, let the model answer later."""
    final: bool = True
    """False: more may follow; messages that come in quick succession make one turn."""
    agent: AgentName | None = None
    """Profile of the workers' agents file for this turn; wins over the conversation's settings."""
    response_format: ResponseFormat | None = None
    """A JSON Schema that this turn's reply has to fit; the value is in `turn_completed`."""
    tenant: Tenant = ""
    """Whose the turn is, and what it spends; wins over the conversation's settings."""
    priority: Priority = "interactive"
    """`batch`: it waits while anything else does, of any tenant."""
    deliver_at_ms: int | None = None
    """When the message takes its place in the conversation, ms since the Unix epoch by the server's
    clock, at most 366 days ahead. It is accepted now, and holds up nothing before. A time that is
    over means now. Goes with `when_busy` `enqueue` only."""

    def __post_init__(self) -> None:
        if bool(self.text) == bool(self.parts):
            raise InvalidMessage("text", "exactly one of text and parts")
        check_text_bytes(self.text, "text")


class Transcription(Message, frozen=True, kw_only=True, tag="transcription"):
    """Speech recognised so far."""

    text: Text
    final: bool = True
    """False: interim; its text is never used, it only says that more is coming."""
    tenant: Tenant = ""
    """As in `user_message`."""

    def __post_init__(self) -> None:
        check_text_bytes(self.text, "text")


class UserStartedSpeaking(Message, frozen=True, kw_only=True, tag="user_started_speaking"):
    """The user's voice was heard; transcriptions are held until the end of speech."""


class UserStoppedSpeaking(Message, frozen=True, kw_only=True, tag="user_stopped_speaking"):
    """The user fell silent; what was transcribed becomes a turn."""


class Interrupt(Message, frozen=True, kw_only=True, tag="interrupt"):
    """Stop the turn at the head of the conversation and keep what it said so far."""

    heard: Text | None = None
    """What the user actually heard; the committed partial reply is cut to it."""

    def __post_init__(self) -> None:
        if self.heard is not None:
            check_text_bytes(self.heard, "heard")


class ToolResult(Message, frozen=True, kw_only=True, tag="tool_result"):
    """The result of a tool call that runs outside the workers."""

    call_id: Annotated[str, Meta(min_length=1, max_length=200)]
    result: Any = None
    """Any JSON value."""
    is_error: bool = False


class ContextAppend(Message, frozen=True, kw_only=True, tag="context_append"):
    """Append messages to the context as they are."""

    messages: Entries
    run: bool = False
    """True: let the model answer afterwards."""
    agent: AgentName | None = None
    """As in `user_message`."""
    response_format: ResponseFormat | None = None
    """As in `user_message`."""
    tenant: Tenant = ""
    """As in `user_message`."""
    priority: Priority = "interactive"
    """As in `user_message`."""
    deliver_at_ms: int | None = None
    """As in `user_message`."""


class ContextReplace(Message, frozen=True, kw_only=True, tag="context_replace"):
    """Replace the whole context."""

    messages: Entries


class Configure(Message, frozen=True, kw_only=True, tag="configure"):
    """Change the conversation's settings from here on."""

    settings: SettingsChange


def _is_finite(value: Any) -> bool:
    """Whether this is a number that JSON has; structs do not check what Python gives them."""
    try:
        return math.isfinite(value)
    except (TypeError, OverflowError):
        return False


class Feedback(Message, frozen=True, kw_only=True, tag="feedback"):
    """Rate a turn that stands before it in the conversation; has a score, a label or a text."""

    of_turn: Id
    """Turn id of the message that is rated. A turn that was absorbed has its own ratings."""
    name: Word = "user_feedback"
    """What is rated, or who rates. A rating takes the place of an earlier one of its name."""
    score: float | None = None
    """A finite number; producers and whoever reads it agree on what it means."""
    label: Word | None = None
    """The same in a word, such as `good`."""
    explanation: Annotated[str, Meta(max_length=4096)] | None = None

    def __post_init__(self) -> None:
        if self.score is not None and not _is_finite(self.score):
            raise InvalidMessage("score", "a finite number")
        if self.score is None and not self.label and not self.explanation:
            raise InvalidMessage("score", "one of score, label and explanation at least")


Inbound = (
    UserMessage
    | Transcription
    | UserStartedSpeaking
    | UserStoppedSpeaking
    | Interrupt
    | ToolResult
    | ContextAppend
    | ContextReplace
    | Configure
    | Feedback
)
_decoder: msgspec.json.Decoder[Inbound] = msgspec.json.Decoder(Inbound, float_hook=number)
_encoder = msgspec.json.Encoder()
encode = _encoder.encode


def decode(data: bytes | str) -> Inbound:
    """Decode and validate one message.

    Raises:
        InvalidMessage: Not JSON, too large, unknown type, or a field is wrong. The error names the
            field and what it takes, and repeats nothing of the content.
    """
    try:
        data = data.encode() if isinstance(data, str) else data
        check_message_bytes(data)
        message = _decoder.decode(data)
    except msgspec.ValidationError as error:
        raise InvalidMessage(*explain(str(error))) from None
    except (msgspec.DecodeError, UnicodeError):
        raise InvalidMessage("message", "one JSON object in UTF-8") from None
    except RecursionError:
        raise InvalidMessage("message", "JSON nested less deeply") from None
    for path, content in _long_texts(message):
        check_text_bytes(content, path)
    if isinstance(message, ContextAppend | ContextReplace):
        for n, entry in enumerate(message.messages):
            if isinstance(entry, AssistantEntry) and entry.reply_items is not None:
                check_reply_items(entry, f"messages[{n}].reply_items")
    return message


def has_schemas(message: Inbound) -> bool:
    """Whether there is a JSON Schema in it, in its own fields or in settings that it changes."""
    found = message.settings if isinstance(message, Configure) else message
    return bool(getattr(found, "response_format", None) or getattr(found, "tools", None))


def check_ids(message: Inbound) -> None:
    """Refuse ids that could be taken for others; only who submits is held to it.

    Raises:
        InvalidMessage: One has characters that do not show, or is not in normal form C.
    """
    check_id(message.conversation_id, "conversation_id")
    check_id(message.turn_id, "turn_id")
    check_id(message.reply_to, "reply_to")
    if isinstance(message, UserMessage | Transcription | ContextAppend):
        check_id(message.tenant, "tenant")
    elif isinstance(message, ToolResult):
        check_visible(message.call_id, "call_id")
    elif isinstance(message, Configure):
        for name in ("model", "tenant"):
            value = getattr(message.settings, name)
            check_id(value if isinstance(value, str) else None, f"settings.{name}")
    elif isinstance(message, Feedback):
        check_id(message.of_turn, "of_turn")
        check_visible(message.name, "name")
        check_visible(message.label or "", "label")


def check_message_bytes(data: bytes) -> None:
    """Refuse an encoded message of more than 1 MiB.

    Raises:
        InvalidMessage: It is too large.
    """
    if len(data) > MESSAGE_MAX_BYTES:
        raise InvalidMessage("message", f"at most {MESSAGE_MAX_BYTES} bytes, got {len(data)}")


def _long_texts(message: Inbound) -> Iterator[tuple[str, str]]:
    """Yield the texts that no struct of their own checks, each with its path."""
    if isinstance(message, ContextAppend | ContextReplace):
        for n, entry in enumerate(message.messages):
            if isinstance(entry.content, str):
                yield f"messages[{n}].content", entry.content
    elif isinstance(message, Configure) and isinstance(message.settings.system_prompt, str):
        yield "settings.system_prompt", message.settings.system_prompt


def validated(message: Inbound) -> Inbound:
    """Return a message as its receiver has it, checked as one checks it.

    Structs built in Python are not validated by their constructors; this is where they are.

    Raises:
        InvalidMessage: See `decode`.
    """
    try:
        data = _encoder.encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.EncodeError):
        raise InvalidMessage("message", "values that JSON can express") from None
    return decode(data)
