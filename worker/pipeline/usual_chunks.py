"""The usual chunk of a chat completion, decoded into typed structs: the quick way."""

from collections.abc import Sequence
from typing import Final, cast

import msgspec

from turnline.contracts.numbers import number
from turnline.worker.pipeline.call_parts import ToolCallDelta
from turnline.worker.pipeline.stream_events import (
    FinishReason,
    ReasoningDelta,
    StreamEvent,
    TextDelta,
)
from turnline.worker.pipeline.usage_reports import COST_MAX_TICKS, TOKENS_MAX, Counts


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


class Choice(msgspec.Struct, gc=False):
    """One choice of a usual chunk."""

    index: int | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None
    message: msgspec.Raw | None = None
    text: msgspec.Raw | None = None
    usage: msgspec.Raw | None = None
    tool_calls: msgspec.Raw | None = None


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int


class _CompletionDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int


class UsualUsage(msgspec.Struct, gc=False):
    """A usage report as xAI sends it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost_in_usd_ticks: int
    prompt_tokens_details: _PromptDetails
    completion_tokens_details: _CompletionDetails


class Chunk(msgspec.Struct, gc=False):
    """A usual chunk. What is not of these types needs care: also a `Raw` that is not null."""

    choices: list[Choice] | None = None
    usage: UsualUsage | None = None
    error: msgspec.Raw | None = None


class FirstChunk(Chunk, gc=False):
    """A chunk before the response has its name."""

    id: str | None = None
    model: str | None = None


decode_chunk = msgspec.json.Decoder(Chunk, float_hook=number).decode
decode_first_chunk = msgspec.json.Decoder(FirstChunk, float_hook=number).decode
_REASONS: Final = (None, "stop", "length", "tool_calls", "content_filter", "function_call")


def usual_events(choice: Choice, payload: bytes) -> Sequence[StreamEvent] | None:
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


def usual_counts(usage: UsualUsage, frame: bytes) -> Counts | None:
    """Return what a usual report says; None if the frame may say more or a number is none."""
    prompt, completion, total = usage.prompt_tokens, usage.completion_tokens, usage.total_tokens
    cached = usage.prompt_tokens_details.cached_tokens
    reasoning = usage.completion_tokens_details.reasoning_tokens
    is_sure = (
        0 < prompt <= TOKENS_MAX
        and 0 < completion <= TOKENS_MAX
        and 0 < total <= TOKENS_MAX
        and 0 <= cached <= TOKENS_MAX
        and 0 <= reasoning <= TOKENS_MAX
        and 0 <= usage.cost_in_usd_ticks <= COST_MAX_TICKS
        # A zero says nothing: another name may say more.
        and (cached or frame.count(b"ache") == 1)
        and (reasoning or (frame.count(b"reasoning") == 1 and b"thoughts" not in frame))
    )
    if not is_sure:
        return None
    return Counts(
        prompt, completion, reasoning or None, cached or None, total, usage.cost_in_usd_ticks
    )
