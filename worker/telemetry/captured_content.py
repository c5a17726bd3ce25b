"""Texts of users and models in the conventions' form, used only if capturing them is switched on.

Texts are cut before they are put into JSON, so that what is captured can be read.

Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from turnline.contracts.messages import ContextAppend, Transcription, UserMessage
from turnline.contracts.replies import AnyTerminal, TurnCompleted, TurnInterrupted
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.spans import Attributes
from turnline.worker.turn.gathering import ConsumedEntry

SWITCH: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_ON: Final = frozenset({"span_only", "span_and_event", "true"})
_IN_EVENTS: Final = frozenset({"event_only", "span_and_event", "true"})
_TEXT_CHARS: Final = 4_096
"""Longest text that is kept of one message."""
_MESSAGES: Final = 32
"""Newest messages kept of a context."""

_encode = msgspec.json.Encoder(enc_hook=repr).encode


def is_asked_for(environ: Mapping[str, str]) -> bool:
    """Whether the convention's variable asks for content in spans."""
    return environ.get(SWITCH, "").strip().lower() in _ON


def is_asked_for_in_events(environ: Mapping[str, str]) -> bool:
    """Whether the convention's variable asks for content in events, which are log records."""
    return environ.get(SWITCH, "").strip().lower() in _IN_EVENTS


class _Call(NamedTuple):
    """What the model was asked, and what it answered."""

    system: str | None
    asked: list[dict[str, Any]]
    texts: list[str]
    tool_calls: list[dict[str, Any]]


class CapturedContent:
    """The texts of one attempt."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._calls: list[_Call] = []

    def call_started(self, context: OpenAILLMContext) -> None:
        """Keep what the model is asked."""
        messages = [_message(message) for message in context.messages[-_MESSAGES:]]
        self._calls.append(_Call(context.system_prompt, messages, [], []))

    def add_text(self, text: str) -> None:
        """Keep a piece of what the model answers."""
        if self._calls:
            self._calls[-1].texts.append(text)

    def add_tool_call(self, call_id: str, name: str, arguments: Any) -> None:
        """Keep a function call that the model's answer asks for."""
        if self._calls:
            self._calls[-1].tool_calls.append(_tool_call(call_id, name, _text(arguments)))

    def of_call(self, number: int, finish_reason: str | None) -> Attributes:
        """Return the attributes of the call with this index, which ended for this reason."""
        call = self._calls[number]
        attributes: Attributes = {n.INPUT_MESSAGES: _text(call.asked)}
        parts = [*(_parts("".join(call.texts)) if call.texts else ()), *call.tool_calls]
        if parts:
            answer = {
                "role": "assistant",
                "parts": parts,
                "finish_reason": finish_reason or "error",
            }
            attributes[n.OUTPUT_MESSAGES] = _text([answer])
        if call.system is not None:
            attributes[n.SYSTEM_INSTRUCTIONS] = _text(_parts(call.system))
        return attributes

    def of_tool(self, arguments: Any, result: Any) -> Attributes:
        """Return the attributes of a function call."""
        return {
            n.TOOL_ARGUMENTS: _text(arguments)[:_TEXT_CHARS],
            n.TOOL_RESULT: (result if isinstance(result, str) else _text(result))[:_TEXT_CHARS],
        }

    def of_turn(self, used: Sequence[ConsumedEntry], event: AnyTerminal) -> Attributes:
        """Return question and answer."""
        attributes: Attributes = {n.INPUT_VALUE: "\n".join(filter(None, map(_asked, used)))}
        if isinstance(event, TurnCompleted | TurnInterrupted):
            attributes[n.OUTPUT_VALUE] = event.text[:_TEXT_CHARS]
        return attributes


def _asked(used: ConsumedEntry) -> str:
    match used.message:
        case UserMessage() as message:
            texts = [getattr(part, "text", "[image]") for part in message.parts]
            return (message.text or " ".join(texts))[:_TEXT_CHARS]
        case Transcription() as message:
            return message.text[:_TEXT_CHARS] if message.final else ""
        case ContextAppend() as message:
            texts = [entry.content for entry in message.messages if isinstance(entry.content, str)]
            return "\n".join(texts)[:_TEXT_CHARS]
        case _:
            return ""


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    parts = _parts(message.get("content"))
    for call in message.get("tool_calls") or ():
        function = call.get("function", {})
        parts.append(
            _tool_call(call.get("id"), function.get("name"), str(function.get("arguments")))
        )
    if message.get("role") == "tool":
        response = {"type": "tool_call_response", "id": message.get("tool_call_id")}
        texts = [part["content"] for part in parts if "content" in part]
        return {"role": "tool", "parts": [{**response, "response": "".join(texts)}]}
    return {"role": message.get("role"), "parts": parts}


def _tool_call(call_id: Any, name: Any, arguments: str) -> dict[str, Any]:
    cut = arguments[:_TEXT_CHARS]
    return {"type": "tool_call", "id": call_id, "name": name, "arguments": cut}


def _parts(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "content": content[:_TEXT_CHARS]}]
    parts: list[Any] = list(content or ())
    return [_part(part) for part in parts]


def _part(part: Any) -> dict[str, Any]:
    text = part.get("text") if hasattr(part, "get") else None
    return {"type": "image"} if text is None else {"type": "text", "content": text[:_TEXT_CHARS]}


def _text(value: Any) -> str:
    return _encode(value).decode()
