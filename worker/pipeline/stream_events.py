"""What the stream of one response says, whatever API it comes from."""

from typing import TypeAlias

import msgspec

from turnline.worker.pipeline.call_parts import ToolCallDelta


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
    server_tool_calls: int = 0
    """Calls of tools that the provider ran; their price is part of the cost."""


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
    param: str = ""
    """The part of the request that it is about, if it says so."""


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


class ReplyItem(msgspec.Struct, frozen=True, gc=False):
    """An output item that the next request has to hold, beside the text and the calls."""

    index: int
    """Its place among the items of the response; one that came before with it is replaced."""
    item: bytes
    """JSON, always the same for the same value."""
    chars: int
    """Characters of the response's text before it."""
    calls: int
    """Function calls before it."""


class ServerTool(msgspec.Struct, frozen=True, gc=False):
    """A tool that the provider runs was called, or is done."""

    call_id: str
    name: str
    ok: bool | None = None
    """Whether it worked; None: it has begun."""


class CitationFound(msgspec.Struct, frozen=True, gc=False):
    """A source of what is said."""

    url: str
    title: str
    start: int
    """Characters of the response's text before what it is a source of."""
    end: int


class StreamDone(msgspec.Struct, frozen=True, gc=False):
    """The wire's own end, such as `[DONE]`: nothing that follows counts."""


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
    | ReplyItem
    | ServerTool
    | CitationFound
    | StreamDone
)
