"""Builds the request of a chat completion."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from turnline.worker.pipeline.context import OpenAILLMContext, is_given
from turnline.worker.services.openai.params import SENT_PARAMETERS

CHAT_PATH: Final = "/chat/completions"
_encode = msgspec.json.Encoder().encode


def chat_body(
    context: OpenAILLMContext,
    model: str,
    settings: Mapping[str, Any],
    remove_refused: Callable[[dict[str, Any]], None],
) -> bytes:
    """Return the request's body: the messages as they were stored, then all else.

    Args:
        context: What is answered.
        model: As the provider names it.
        settings: Parameters by name, and `extra`.
        remove_refused: Takes out of the fields what the model is known to refuse.
    """
    in_context: dict[str, Any] = {}
    if is_given(context.tools) and context.tools is not None:
        in_context["tools"] = context.tools
        if context.tool_choice is not None:
            in_context["tool_choice"] = context.tool_choice
    fields = chat_fields(model, settings, in_context, remove_refused)
    if "messages" in fields:
        return _encode(fields)
    return b'{"messages":%b,%b' % (context.encoded_request_messages(), _encode(fields)[1:])


def chat_fields(
    model: str,
    settings: Mapping[str, Any],
    in_context: Mapping[str, Any],
    remove_refused: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Return the fields of a request; `in_context` are those that the context gives."""
    fields: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        **in_context,
        **{name: settings[name] for name in SENT_PARAMETERS},
        **settings["extra"],
    }
    fields = {name: value for name, value in fields.items() if is_given(value)}
    remove_refused(fields)
    return fields
