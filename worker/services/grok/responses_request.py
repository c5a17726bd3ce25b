"""Builds the request of `POST /v1/responses` from what a chat request is built from.

Source: https://docs.x.ai/docs/api-reference#create-new-response
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, cast

import msgspec

from turnline.worker.pipeline.context import OpenAILLMContext, is_given

Wire: TypeAlias = Literal["chat", "responses"]
RESPONSES_PATH: Final = "/responses"
REASONING_INCLUDED: Final = "reasoning.encrypted_content"
_encode = msgspec.json.Encoder().encode

_AS_THEY_ARE: Final = ("temperature", "top_p")
_THOUGHT_TOKENS: Final[Mapping[str, int]] = {
    "none": 0,
    "low": 8_192,
    "medium": 16_384,
    "high": 32_768,
    "xhigh": 65_536,
}
"""By effort: what a bound of visible tokens is raised by, since this wire's bound counts thought
as well: nobody's thought of usual length is cut."""
_CHAT_ONLY: Final = (
    *("messages", "stream_options", "response_format", "reasoning_effort", "max_tokens"),
    *("max_completion_tokens", "n", "seed", "stop", "frequency_penalty", "presence_penalty"),
    *("logit_bias",),
)
"""What a chat request may hold that this wire has under another name, or not at all."""


class ResponsesOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a request has on this wire alone."""

    cache_key: str | None = None
    """Of the prompt cache: the conversation."""
    server_tools: Sequence[Mapping[str, Any]] = ()
    """Tools that the provider runs, as its API has them."""
    max_output_tokens: int | None = None
    """Most tokens of a response, those of thought included."""
    owner: str = ""
    """Whose key it is, where there are several: it reads the reasoning made with it, no other."""
    summary: bool = False
    """Whether to ask for a summary of the thoughts."""


def responses_body(
    context: OpenAILLMContext,
    fields: Mapping[str, Any],
    options: ResponsesOptions,
    *,
    effort: str | None,
    thinks: bool,
    is_same: Callable[[str], bool],
) -> bytes:
    """Return the request's body: the items of the context, then all else.

    Args:
        context: What is answered.
        fields: Of the chat request that would be sent, without its messages.
        options: What this wire has beside them.
        effort: How long the model is to think; None where it cannot be told.
        thinks: False if it is known never to.
        is_same: Tells whether a model, by its name, is the one that is asked.
    """
    more = _encode(responses_fields(fields, options, effort=effort, thinks=thinks))
    return b'{"input":%b,%b' % (context.encoded_request_input(is_same), more[1:])


def responses_fields(
    fields: Mapping[str, Any], options: ResponsesOptions, *, effort: str | None, thinks: bool
) -> dict[str, Any]:
    """Return all fields of a request but its input; for the arguments see `responses_body`."""
    tools = [*map(_flat, fields.get("tools") or ()), *options.server_tools]
    known = {*_AS_THEY_ARE, *_CHAT_ONLY, "model", "stream", "tools", "tool_choice"}
    return {
        "model": fields["model"],
        "stream": True,
        "store": False,
        "include": [REASONING_INCLUDED],
        **({"prompt_cache_key": options.cache_key} if options.cache_key else {}),
        **_reasoning(effort, options),
        **({"tools": tools} if tools else {}),
        **_choice(fields.get("tool_choice"), tools),
        **_format(fields.get("response_format")),
        **_bound(fields, options, (effort or "medium") if thinks else "none"),
        **{name: it for name in _AS_THEY_ARE if (it := fields.get(name)) is not None},
        **{name: it for name, it in fields.items() if name not in known and is_given(it)},
    }


def _reasoning(effort: str | None, options: ResponsesOptions) -> dict[str, Any]:
    reasoning = {"effort": effort} if effort else {}
    if options.summary:
        reasoning["summary"] = "detailed"
    return {"reasoning": reasoning} if reasoning else {}


def _flat(tool: Any) -> Any:
    """Return a function without the object around it that chat has."""
    function = tool.get("function")
    if not isinstance(function, Mapping):
        return tool
    return {"type": "function", **cast("Mapping[str, Any]", function)}


def _choice(choice: Any, tools: Sequence[Any]) -> dict[str, Any]:
    if choice is None or not is_given(choice) or not tools:
        return {}
    if isinstance(choice, Mapping):
        choice = cast("Mapping[str, Any]", choice)
        function = choice.get("function")
        if isinstance(function, Mapping):
            choice = {"type": "function", **cast("Mapping[str, Any]", function)}
    return {"tool_choice": choice}


def _format(asked: Any) -> dict[str, Any]:
    if not isinstance(asked, Mapping):
        return {}
    asked = cast("Mapping[str, Any]", asked)
    schema = asked.get("json_schema")
    if isinstance(schema, Mapping):
        asked = {"type": "json_schema", **cast("Mapping[str, Any]", schema)}
    return {"text": {"format": asked}}


def _bound(fields: Mapping[str, Any], options: ResponsesOptions, effort: str) -> dict[str, Any]:
    if options.max_output_tokens is not None:
        return {"max_output_tokens": options.max_output_tokens}
    given = (fields.get(name) for name in ("max_completion_tokens", "max_tokens"))
    visible = next((it for it in given if isinstance(it, int)), None)
    if visible is None:
        return {}
    return {"max_output_tokens": visible + _THOUGHT_TOKENS.get(effort, 0)}
