"""Texts of users and models in the conventions' form, used only if capturing them is switched on.

Texts are cut before they are put into JSON, so that what is captured can be read.

Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from turnline.contracts.messages import ContextAppend, Transcription, UserMessage
from turnline.contracts.replies import AnyTerminal, TurnCompleted, TurnInterrupted
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.spans import Attributes
from turnline.worker.turn.gathering import ConsumedEntry

SWITCH: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_ON: Final = frozenset({"span_only", "span_and_event", "true"})
_TEXT_CHARS: Final = 4_096
"""Longest text that is kept of one message."""
_MESSAGES: Final = 32
"""Newest messages kept of a context."""

_encode = msgspec.json.Encoder(enc_hook=repr).encode


def is_asked_for(environ: Mapping[str, str]) -> bool:
    """Whether the convention's variable asks for content in spans."""
    return environ.get(SWITCH, "").strip().lower() in _ON


class CapturedContent:
    """The texts of one attempt."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._calls: list[tuple[str | None, list[dict[str, Any]], list[str]]] = []

    def call_started(self, context: OpenAILLMContext) -> None:
        """Keep what the model is asked."""
        messages = [_message(message) for message in context.messages[-_MESSAGES:]]
        self._calls.append((context.system_prompt, messages, []))

    def add_text(self, text: str) -> None:
        """Keep a piece of what the model answers."""
        if self._calls:
            self._calls[-1][2].append(text)

    def of_call(self, number: int) -> Attributes:
        """Return the attributes of the call with this index."""
        system, asked, texts = self._calls[number]
        attributes: Attributes = {n.INPUT_MESSAGES: _text(asked)}
        if texts:
            answer = {"role": "assistant", "parts": _parts("".join(texts))}
            attributes[n.OUTPUT_MESSAGES] = _text([answer])
        if system is not None:
            attributes[n.SYSTEM_INSTRUCTIONS] = _text(_parts(system))
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
            {
                "type": "tool_call",
                "id": call.get("id"),
                "name": function.get("name"),
                "arguments": str(function.get("arguments"))[:_TEXT_CHARS],
            }
        )
    if message.get("role") == "tool":
        response = {"type": "tool_call_response", "id": message.get("tool_call_id")}
        return {"role": "tool", "parts": [{**response, "response": parts}]}
    return {"role": message.get("role"), "parts": parts}


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
