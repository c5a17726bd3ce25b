"""The JSON of responses: the response object, its usage and its items, in xAI's key order."""

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from turnline.ops.simulator.config import Profile
from turnline.ops.simulator.model import hosted_tools
from turnline.ops.simulator.model.answer import HostedCall
from turnline.ops.simulator.model.usage import Usage

Json = dict[str, Any]
_NOT_IN_2025: Final = (
    "completed_at", "background", "service_tier", "truncation", "top_logprobs", "presence_penalty",
    "frequency_penalty", "prompt_cache_key", "max_tool_calls", "safety_identifier", "error",
    "instructions",
)  # fmt: skip
_COUNTED_AS: Final = {
    "web_search_calls": hosted_tools.WEB,
    "x_search_calls": hosted_tools.X,
    "code_interpreter_calls": hosted_tools.CODE,
    "file_search_calls": hosted_tools.FILES,
    "mcp_calls": hosted_tools.MCP,
    "document_search_calls": "",
    "image_generation_calls": "",
}
_TEMPERATURE: Final = 0.7
_TOP_P: Final = 0.95


class Echo(msgspec.Struct, frozen=True, kw_only=True):
    """What a response tells of its request."""

    id: str
    created_at: int
    model: str
    fingerprint: str
    profile: Profile
    stream: bool
    effort: str | None = None
    """As it is told; None: null."""
    summary: str | None = None
    max_output_tokens: int | None = None
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    format: Mapping[str, object]
    tool_choice: object = "auto"
    tools: Sequence[Mapping[str, object]] = ()
    user: str | None = None
    store: bool = True
    service_tier: str = "default"
    top_logprobs: int = 0
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    instructions: str | None = None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a response ended."""

    status: str = "completed"
    reason: str | None = None
    """Why it is incomplete."""
    error: Mapping[str, object] | None = None
    """Why it failed."""


def response(
    echo: Echo,
    outcome: Outcome,
    *,
    output: Sequence[Json] = (),
    usage: Json | None = None,
    completed_at: int | None = None,
) -> Json:
    """Return a response object."""
    is_2025 = echo.profile is Profile.OCT2025
    body: Json = {
        "created_at": echo.created_at,
        "completed_at": completed_at,
        "id": echo.id,
        "max_output_tokens": echo.max_output_tokens,
        "model": echo.model,
        "object": "response",
        "output": output,
        "parallel_tool_calls": echo.parallel_tool_calls,
        "previous_response_id": echo.previous_response_id,
        "reasoning": {"effort": echo.effort, "summary": echo.summary},
        "temperature": _float(echo, echo.temperature, _TEMPERATURE),
        "text": {"format": echo.format},
        "tool_choice": echo.tool_choice,
        "tools": echo.tools,
        "top_p": _float(echo, echo.top_p, _TOP_P),
        "usage": usage,
        "user": echo.user,
        "incomplete_details": None if outcome.reason is None else {"reason": outcome.reason},
        "status": outcome.status,
        "store": echo.store,
        "metadata": {} if is_2025 else {"system_fingerprint": echo.fingerprint},
        "background": False,
        "service_tier": echo.service_tier,
        "truncation": "disabled",
        "top_logprobs": echo.top_logprobs,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "prompt_cache_key": echo.prompt_cache_key,
        "max_tool_calls": None,
        "safety_identifier": echo.safety_identifier,
        "error": outcome.error,
        "instructions": echo.instructions,
    }
    if is_2025:
        for key in (*_NOT_IN_2025, *(() if usage else ("usage",))):
            del body[key]
    return body


def _float(echo: Echo, given: float | None, default: float) -> float | None:
    """Return a number as it is told: on streams it has been a float of 32 bits."""
    if given is None and echo.profile is Profile.OCT2025:
        return None
    value = default if given is None else given
    return float(struct.unpack("f", struct.pack("f", value))[0]) if echo.stream else value


def usage_json(
    used: Usage, hosted: Sequence[HostedCall], profile: Profile, *, context: tuple[int, int]
) -> Json:
    """Return a usage report. `output_tokens` includes reasoning, other than in chat.

    Args:
        used: What was counted.
        hosted: Calls of tools of the server.
        profile: The period.
        context: Tokens of the last round's prompt and of the output.
    """
    reasoning = used.completion_tokens_details.reasoning_tokens
    made = [call.tool for call in hosted if not call.failed]
    body: Json = {
        "input_tokens": used.prompt_tokens,
        "input_tokens_details": {"cached_tokens": used.prompt_tokens_details.cached_tokens},
        "output_tokens": used.completion_tokens + reasoning,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": used.total_tokens,
        "num_sources_used": 0,
        "num_server_side_tools_used": len(made),
    }
    if used.cost_in_usd_ticks is not UNSET:
        body["cost_in_usd_ticks"] = used.cost_in_usd_ticks
    if hosted:
        details = {key: made.count(tool) for key, tool in _COUNTED_AS.items()}
        if profile is Profile.OCT2026:
            sources = sum(len(call.sources) for call in hosted if call.tool == hosted_tools.X)
            details |= {"x_posts_fetched": sources, "x_users_fetched": 0}
        body["server_side_tool_usage_details"] = details
    if profile is not Profile.OCT2025:
        body["context_details"] = {"input_tokens": context[0], "output_tokens": context[1]}
    return body


# --- items ---------------------------------------------------------------------------------------


def reasoning_item(id_: str, summary: str, status: str, blob: str | UnsetType | None) -> Json:
    """Return a reasoning item; an empty summary has no part."""
    item: Json = {
        "id": id_,
        "summary": [summary_part(summary)] if summary else [],
        "type": "reasoning",
        "status": status,
    }
    if blob is not UNSET:
        item["encrypted_content"] = blob
    return item


def summary_part(text: str) -> Json:
    """Return a part of a summary."""
    return {"text": text, "type": "summary_text"}


def message_item(id_: str, content: Sequence[Json], status: str) -> Json:
    """Return a message of the assistant."""
    return {
        "content": content,
        "id": id_,
        "role": "assistant",
        "type": "message",
        "status": status,
    }


def text_part(text: str, annotations: Sequence[Json] = ()) -> Json:
    """Return a part of a message that is text."""
    return {"type": "output_text", "text": text, "logprobs": [], "annotations": annotations}


def refusal_part(text: str) -> Json:
    """Return a part of a message that refuses."""
    return {"type": "refusal", "refusal": text}


def citation(url: str, number: int, start: int, marker: str) -> Json:
    """Return the annotation of a marker in a text."""
    return {
        "type": "url_citation",
        "url": url,
        "start_index": start,
        "end_index": start + len(marker),
        "title": str(number),
    }


def call_item(id_: str, call_id: str | None, name: str, arguments: str, status: str) -> Json:
    """Return a call of a function; without a call id, the key is absent."""
    ids = {} if call_id is None else {"call_id": call_id}
    return {
        "arguments": arguments,
        **ids,
        "name": name,
        "type": "function_call",
        "id": id_,
        "status": status,
    }
