"""What a conversation consists of: context messages, tools, settings, usage and totals."""

import math
import re
import unicodedata
from typing import Annotated, Any, Literal, NewType, cast

import msgspec
from msgspec import UNSET, Meta, UnsetType

from turnline.contracts.errors import InvalidMessage
from turnline.contracts.nesting import DEEPEST, is_deep
from turnline.contracts.numbers import number
from turnline.contracts.server_tools import ServerTools, check_apart

TEXT_MAX_BYTES = 256 * 1024
"""Longest text of one message, UTF-8 bytes."""
MESSAGE_MAX_BYTES = 1024 * 1024
"""Largest encoded message, bytes."""
INVISIBLE = (
    r"\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    r"\u2028-\u202e\u2060-\u206f\u2800\u3164\ufdd0-\ufdef\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
"""What does not show, or changes how its neighbours show, as the inside of a regular expression's
character class: control characters, marks of direction, joiners, fillers, variation selectors,
tags, and code points that are no characters."""
ID_MAX_CHARS = 200
_ID_CHARACTER = (
    r"[^\s{}\x00-\x1f\x7f-\xa0\xad\u061c\u180e\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff"
    r"\ufff9-\uffff]"
)
ID_PATTERN = rf"^{_ID_CHARACTER}+$(?!\n)"
"""What is read: ids of messages that were accepted earlier."""
TENANT_PATTERN = rf"^{_ID_CHARACTER}*$(?!\n)"
"""The same, or nothing."""
SUBMITTED_ID_PATTERN = rf"^[^\s{{}}\xa0{INVISIBLE}]+$(?!\n)"
SUBMITTED_TENANT_PATTERN = rf"^[^\s{{}}\xa0{INVISIBLE}]*$(?!\n)"
"""What is accepted from producers; beyond it, an id has to be in Unicode's normal form C."""
ID_EXPECTED = f"1 to {ID_MAX_CHARS} printable characters (Unicode NFC) without spaces or braces"
METADATA_MAX_PAIRS = 16
URL_PATTERN = r"^(https?://|data:image/)"
FUNCTION_NAME_PATTERN = r"^[A-Za-z0-9_.-]+$(?!\n)"

Id = Annotated[str, Meta(min_length=1, max_length=ID_MAX_CHARS, pattern=ID_PATTERN)]
ConversationId = NewType("ConversationId", str)
"""Unit of ordering and of leasing; 1 to 200 printable characters without spaces or braces."""
TurnId = NewType("TurnId", str)
"""Idempotency key of one accepted message; same shape as a conversation id."""
Tenant = Annotated[str, Meta(max_length=ID_MAX_CHARS, pattern=TENANT_PATTERN)]
"""Who pays: a name of the producers' making; empty: nobody in particular."""
Text = Annotated[str, Meta(max_length=TEXT_MAX_BYTES)]


_submitted_id = re.compile(SUBMITTED_ID_PATTERN)
_unseen = re.compile(f"[{INVISIBLE}]")


def check_id(value: str | None, field: str) -> None:
    """Refuse an id that looks like another one, or like none.

    Raises:
        InvalidMessage: It has characters that do not show, or is not in normal form C.
    """
    if value is None or value.isascii():  # the type's pattern is as strict there
        return
    if not _submitted_id.match(value) or not unicodedata.is_normalized("NFC", value):
        raise InvalidMessage(field, ID_EXPECTED)


def check_visible(value: str, field: str) -> None:
    """Refuse a name of others' making that has characters which do not show.

    Raises:
        InvalidMessage: It has.
    """
    if _unseen.search(value):
        raise InvalidMessage(field, "characters that can be seen")


def check_text_bytes(text: str, field: str) -> None:
    """Refuse a text of more than 256 KiB of UTF-8.

    Raises:
        InvalidMessage: The text is too long; the error names `field`, not the text.
    """
    long = len(text) * 4 > TEXT_MAX_BYTES
    if long and len(text.encode(errors="surrogatepass")) > TEXT_MAX_BYTES:
        raise InvalidMessage(field, f"text of at most {TEXT_MAX_BYTES} bytes")


class ImageUrl(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where an image is: an https URL or a `data:image/...;base64,` URL."""

    url: Annotated[str, Meta(min_length=1, pattern=URL_PATTERN)]
    detail: Literal["auto", "low", "high"] | None = None


class TextPart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A piece of text in a message of several parts."""

    text: Text

    def __post_init__(self) -> None:
        check_text_bytes(self.text, "text")


class ImagePart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="image_url"):
    """An image in a message of several parts."""

    image_url: ImageUrl


ContentPart = TextPart | ImagePart
Content = str | Annotated[tuple[ContentPart, ...], Meta(min_length=1, max_length=64)]
"""What was said. Texts that come in are limited where they come in; what a model or a tool said, or
many fragments joined, may be longer and has to be readable all the same."""


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """What the model wants called."""

    name: Annotated[str, Meta(min_length=1, max_length=ID_MAX_CHARS)]
    arguments: str
    """A JSON object, as the model wrote it."""


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call inside an assistant message (OpenAI chat shape)."""

    id: Annotated[str, Meta(min_length=1, max_length=ID_MAX_CHARS)]
    function: FunctionCall
    type: Literal["function"] = "function"


class ContextMessage(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="role"
):
    """Base of the messages of a context, in the shape of OpenAI's chat API."""


class SystemEntry(ContextMessage, frozen=True, kw_only=True, tag="system"):
    """Instructions. The conversation's own prompt is a setting and is not stored here."""

    content: Content


class UserEntry(ContextMessage, frozen=True, kw_only=True, tag="user"):
    """What the user said or showed."""

    content: Content


class PlacedItem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One output item of a reply, and where it stood."""

    chars: Annotated[int, Meta(ge=0)] = 0
    """Behind so many characters (Unicode code points) of the entry's text,"""
    calls: Annotated[int, Meta(ge=0)] = 0
    """and behind so many of its calls."""
    item: Annotated[msgspec.Raw, Meta(extra_json_schema={"type": "object"})]
    """A JSON object, as the provider wrote it: kept byte for byte, never looked into."""


class ReplyItems(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a reply had beside its text and calls: reasoning, calls of server-side tools.

    The provider gets it back where it stood, so that the model keeps its thoughts. Nobody else can
    read it (docs/adr/0027-items-stand-beside-readable-entries.md).
    """

    model: str
    """Model that wrote them, as it called itself; they mean nothing to another."""
    asked: str | None = None
    """Name that was asked for, if it was another."""
    items: tuple[PlacedItem, ...]
    """In order."""


class Citation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A source of a reply, and the part of its text that names it."""

    url: str
    title: str = ""
    start: int = 0
    """Characters (Unicode code points) of the text before that part."""
    end: int = 0
    """Characters up to its end; 0: no part of the text names this source."""


class AssistantEntry(ContextMessage, frozen=True, kw_only=True, tag="assistant"):
    """What the model answered, or which tools it called."""

    content: Content | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    reply_items: ReplyItems | None = None
    """Not in a conversation's history."""
    citations: tuple[Citation, ...] = ()
    """Sources that it names, in the order of its text."""

    def __post_init__(self) -> None:
        if self.content is None and not self.tool_calls:
            raise InvalidMessage("content", "text, parts or tool_calls")


class ToolEntry(ContextMessage, frozen=True, kw_only=True, tag="tool"):
    """The result of one tool call."""

    content: Content
    tool_call_id: Annotated[str, Meta(min_length=1, max_length=ID_MAX_CHARS)]


_item_of = msgspec.json.Decoder(dict[str, Any], float_hook=number).decode
_BUILT = frozenset({"message", "function_call"})
"""Items that a request gets from an entry's text and calls."""


def _kind_of(item: msgspec.Raw, field: str) -> str:
    """Return the type of an item that every worker can read.

    Raises:
        InvalidMessage: It is no item, has a number out of range, or is nested too deeply.
    """
    try:
        fields = _item_of(item)
    except (msgspec.DecodeError, RecursionError):
        fields = {}
    kind = fields.get("type")
    if not isinstance(kind, str):
        raise InvalidMessage(field, "an object with a `type`, and numbers within range")
    if is_deep(fields, bytes(item)):
        raise InvalidMessage(field, f"at most {DEEPEST} levels")
    return kind


def check_reply_items(entry: AssistantEntry, field: str) -> None:
    """Refuse items that do not fit their entry.

    Raises:
        InvalidMessage: One is no item, repeats what the entry has, or stands out of order or
            behind the entry's end. The error names its field and nothing of its content.
    """
    if entry.reply_items is None:
        return
    text = entry.content or ""
    said = (
        text
        if isinstance(text, str)
        else "".join(part.text for part in text if isinstance(part, TextPart))
    )
    place, end = (0, 0), (len(said), len(entry.tool_calls))
    for n, placed in enumerate(entry.reply_items.items):
        at, before = f"{field}.items[{n}]", place
        kind = _kind_of(placed.item, f"{at}.item")
        if kind in _BUILT:
            raise InvalidMessage(f"{at}.item.type", "none of " + ", ".join(sorted(_BUILT)))
        place = (placed.chars, placed.calls)
        for name, least, value, most in zip(("chars", "calls"), before, place, end, strict=True):
            if not least <= value <= most:
                expected = f"{least} to {most}: in the order of the items, within the entry"
                raise InvalidMessage(f"{at}.{name}", expected)


ContextEntry = SystemEntry | UserEntry | AssistantEntry | ToolEntry
decode_context_entry = msgspec.json.Decoder(ContextEntry, float_hook=number).decode


class FunctionDefinition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A function the model may call; `parameters` is a JSON Schema whose root is an object."""

    name: Annotated[str, Meta(min_length=1, max_length=64, pattern=FUNCTION_NAME_PATTERN)]
    description: str = ""
    parameters: dict[str, Any] = {}


class ToolDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """A tool offered to the model (OpenAI chat shape)."""

    function: FunctionDefinition
    type: Literal["function"] = "function"
    timeout_s: Annotated[float, Meta(gt=0, le=2_592_000)] | UnsetType = UNSET
    """Seconds until silence counts as an error, where no worker has this tool; not sent to the
    model. Absent: the workers' `TURNLINE_TOOL_WAIT_S`."""


Temperature = Annotated[float, Meta(ge=0, le=2)]
Probability = Annotated[float, Meta(ge=0, le=1)]
PositiveInt = Annotated[int, Meta(ge=1)]
Tools = Annotated[tuple[ToolDefinition, ...], Meta(max_length=128)]
ReasoningEffort = Literal["none", "low", "medium", "high", "xhigh"]
Wire = Literal["responses", "chat"]
AgentName = Annotated[str, Meta(min_length=1, max_length=64, pattern=FUNCTION_NAME_PATTERN)]
ResponseFormat = dict[str, Any]
"""A JSON Schema for the reply, or OpenAI's `response_format` object."""


def check_wire(settings: Any) -> None:
    """Refuse settings of one change, or of an agent, that contradict each other.

    Raises:
        InvalidMessage: Something is set that chat completions do not have, together with that wire;
            or the model could not tell server-side tools apart.
    """
    tools: object = settings.server_tools
    if isinstance(tools, tuple):
        check_apart(cast("tuple[object, ...]", tools))
    for name in ("max_output_tokens", "server_tools", "reasoning_summary"):
        if settings.wire == "chat" and getattr(settings, name):
            raise InvalidMessage(name, "nothing, since wire is chat")


class ConversationSettings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What `configure` sets for all later turns; None means the worker's default."""

    system_prompt: Text | None = None
    model: Id | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    max_tokens: PositiveInt | None = None
    """Visible tokens of one reply at most; on `responses`, with room for thought beside them."""
    seed: Annotated[int, Meta(ge=0)] | None = None
    reasoning_effort: ReasoningEffort | None = None
    tools: Tools | None = None
    """Beside those that workers have loaded. A worker without the tool sends its calls out."""
    tool_choice: str | dict[str, Any] | None = None
    """`auto`, `none`, `required` or a named function; these two count until tools were called."""
    agent: AgentName | None = None
    """Profile of the workers' agents file that fills in what is not set here."""
    response_format: ResponseFormat | None = None
    wire: Wire | None = None
    """How the model is spoken to: by xAI's Responses API, or by chat completions."""
    max_output_tokens: PositiveInt | None = None
    """Tokens of one reply at most, reasoning included; only on `responses`."""
    server_tools: ServerTools | None = None
    """Run by the provider; only on `responses`."""
    reasoning_summary: bool | None = None
    """True: publish what the model says about its reasoning, as `reasoning_summary_delta`."""
    tenant: Id | None = None
    """Whose spend the turns are, where a message does not say."""


class SettingsChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Fields of `ConversationSettings` to set; null clears one, an absent one stays."""

    system_prompt: Text | UnsetType | None = UNSET
    model: Id | UnsetType | None = UNSET
    temperature: Temperature | UnsetType | None = UNSET
    top_p: Probability | UnsetType | None = UNSET
    max_tokens: PositiveInt | UnsetType | None = UNSET
    seed: Annotated[int, Meta(ge=0)] | UnsetType | None = UNSET
    reasoning_effort: ReasoningEffort | UnsetType | None = UNSET
    tools: Tools | UnsetType | None = UNSET
    tool_choice: str | dict[str, Any] | UnsetType | None = UNSET
    agent: AgentName | UnsetType | None = UNSET
    response_format: ResponseFormat | UnsetType | None = UNSET
    wire: Wire | UnsetType | None = UNSET
    max_output_tokens: PositiveInt | UnsetType | None = UNSET
    server_tools: ServerTools | UnsetType | None = UNSET
    reasoning_summary: bool | UnsetType | None = UNSET
    tenant: Id | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            if isinstance(value, float) and math.isnan(value):  # JSON would say null: clear it
                raise InvalidMessage(f"settings.{name}", "a number")
        check_wire(self)

    def applied_to(self, settings: ConversationSettings) -> ConversationSettings:
        """Return the settings with this change made."""
        changed = {
            name: value
            for name in ConversationSettings.__struct_fields__
            if (value := getattr(self, name)) is not UNSET
        }
        return msgspec.structs.replace(settings, **changed)


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens and cost of one call or a sum of calls, as the provider reported them.

    A call that was cut off before its report is estimated: its prompt from the request's size or
    from what an earlier call of the turn reported, its output from what was streamed; its cost is
    unknown.

    xAI counts reasoning outside `completion_tokens`; `total_tokens` is the provider's own total and
    is never derived (docs/adr/0006-usage-as-reported.md).
    """

    prompt_tokens: int = 0
    """Input, cached input included."""
    completion_tokens: int = 0
    """Visible output, reasoning not included."""
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    """The part of `prompt_tokens` that was served from the prompt cache."""
    total_tokens: int = 0
    cost_usd_ticks: int = 0
    """1 USD = 10,000,000,000 ticks; without that of `unpriced_calls`."""
    unpriced_calls: int = 0
    """Calls that may have cost something of which nobody told the price."""
    server_tool_calls: int = 0
    """Calls of server-side tools; their price is part of the cost."""

    @property
    def cost_usd(self) -> float | None:
        """The cost in US dollars, as far as it is known; None where nothing of it is."""
        if self.unpriced_calls and not self.cost_usd_ticks:
            return None
        return self.cost_usd_ticks / 1e10

    def __add__(self, other: "Usage") -> "Usage":
        """Add field by field."""
        names = Usage.__struct_fields__
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in names})


UsageState = Literal["reported", "estimated", "unknown"]
"""Who counted: the provider; we, from what was sent and streamed until it was cut off; nobody."""


class CallEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model call in a conversation's ledger. Every call leaves exactly one entry."""

    call_id: str
    """`<turn id>/<attempt>/<n>`, n from 1."""
    turn_id: str
    attempt: int
    model: str
    state: UsageState
    abandoned: bool = False
    """True: spent on an attempt whose answer was not committed; not in the turn's usage."""
    usage: Usage = Usage()
    finish_reason: str | None = None
    error: str | None = None
    """Error code where the call failed."""
    response_id: str | None = None
    started_at_ms: int = 0
    duration_ms: int = 0
    tenant: str = ""
    """Whose spend it is; empty: nobody's in particular."""
    agent: str = ""
    """Profile by which the model was asked; empty: none."""


class Totals(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A conversation's sums: `usage` over answers, `abandoned` over spend without an answer."""

    turns: int = 0
    """Turns that ended completed, failed or interrupted after running the model."""
    calls: int = 0
    reported_calls: int = 0
    estimated_calls: int = 0
    unknown_calls: int = 0
    reasoning_bytes: int = 0
    """Bytes that `reply_items` take in the context now."""
    usage: Usage = Usage()
    abandoned: Usage = Usage()
