"""Reads a chunk of a chat completion, or an error, in whatever shape a provider gives it.

What the many OpenAI-compatible servers send for the same thing: content as a text, a list of parts
or an object; `message` or `text` in place of `delta`; reasoning under five names; calls with and
without index, id or wrapping; usage in six places and under four sets of names. Text is taken from
where it stands. What stands where text is expected and cannot be understood is an error: a reply
is never taken for whole without its text.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, cast

import msgspec

from turnline.contracts.numbers import number
from turnline.worker.pipeline.call_parts import LEGACY, ToolCallDelta, whole_characters
from turnline.worker.pipeline.stream_events import StreamFailed

BODY_MAX_BYTES: Final = 64 * 1024
"""What is kept of a body that is neither an event stream nor a completion, bytes."""
UNDECODED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding JSON raises."""
_decode_any = msgspec.json.Decoder(float_hook=number).decode
_WORD_MAX_CHARS: Final = 200
"""What is kept of an id, a model's name or a finish reason."""

Kind: TypeAlias = Literal["text", "reasoning", "refusal"]
Fields: TypeAlias = Mapping[str, Any]

_TEXT: Final = ("content", "text", "output_text", "parts", "value")
_THOUGHT: Final = (
    *("reasoning_content", "reasoning", "thinking", "reasoning_text", "reasoning_details"),
    *("thinking_blocks", "thought"),
)
_CALLS: Final = ("tool_calls", "toolCalls", "function_call", "functionCall")
_ARGUMENTS: Final = ("arguments", "input", "parameters", "args")
_CALL_PARTS: Final = ("tool_use", "tool_call", "tool-call", "function_call", "function")
"""Types of parts of a content that are calls."""
_LEGACY_CALLS: Final = ("function_call", "functionCall")
_READ: Final = frozenset({*_TEXT, *_THOUGHT, *_CALLS, "refusal"})
_ASIDE: Final = frozenset(
    {
        *("role", "type", "id", "index", "object", "created", "model", "logprobs", "usage"),
        *("finish_reason", "stop_reason", "finishReason", "native_finish_reason", "matched_stop"),
        *("annotations", "citations", "obfuscation", "signature", "reasoning_signature", "name"),
        *("delta", "message", "error", "content_filter_results", "provider_specific_fields"),
        *("service_tier", "metadata", "seed", "token_ids", "context", "system_fingerprint"),
    }
)
"""Fields beside the text, in which nobody puts text."""
_VALUES_MAX: Final = 1_000_000
"""Commas in a chunk that is read with care: each may cost a value of 64 bytes."""
_lenient: Final = json.JSONDecoder(strict=False)
_FIRST: Final = (None, 0, "0", "")
_NOTHING: Final[tuple[object, ...]] = (None, "", [], {})


class Unreadable(Exception):
    """Something that should be text, or a call, is in no shape that is known."""


class Words:
    """What one delta or message says."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.refusal: list[str] = []
        self.calls: list[ToolCallDelta] = []
        self.is_unread = False
        """Whether there are words in a field that is not known."""

    def joined(self, kind: Kind) -> str:
        """Return all of one kind."""
        return "".join(getattr(self, kind))


def words_of(value: Any, *, is_whole: bool = False, within: bool = False) -> Words:
    """Return what a delta, a message or a choice says.

    Args:
        value: Of any shape; a text or a list counts as content.
        is_whole: It is a message, so that calls stand in their places.
        within: Whether a message in it counts as what it says.

    Raises:
        Unreadable: Text or calls in no known shape.
    """
    words = Words()
    if not isinstance(value, Mapping):
        _read(value, words, "text")
        return words
    fields = cast("Fields", value)
    found = _read_part(fields, words, "text")
    words.calls += calls_of(fields, is_whole=is_whole)
    inner = fields.get("message") or fields.get("delta") if within else None
    if not found and not words.calls and isinstance(inner, Mapping):
        return words_of(inner, is_whole=is_whole)
    if not found and not words.calls:
        rest = (item for key, item in fields.items() if key not in _ASIDE and key not in _READ)
        words.is_unread = any(map(_has_words, rest))
    return words


def _read(value: Any, words: Words, kind: Kind) -> None:
    """Read content of any shape."""
    if isinstance(value, str):
        if value:
            getattr(words, kind).append(value)
    elif isinstance(value, list):
        for item in cast("list[object]", value):
            _read(item, words, kind)
    elif isinstance(value, dict):
        part = cast("Fields", value)
        own = _kind_of(part, kind)
        inner = part.get("functionCall") or part.get("function_call")
        if inner or part.get("type") in _CALL_PARTS:
            words.calls.append(_call({"function": inner} if inner else part, None))
            _read_part(part, words, own)
            return
        if not _read_part(part, words, own) and own == "text" and not _is_aside(part):
            raise Unreadable
    elif isinstance(value, int) and not isinstance(value, bool):
        getattr(words, kind).append(str(value))
    elif value is not None and kind == "text":
        raise Unreadable


def _read_part(part: Fields, words: Words, kind: Kind) -> bool:
    """Read the known fields of an object; whether there were any."""
    thought = next((part[key] for key in _THOUGHT if part.get(key) not in _NOTHING), None)
    if thought is not None and not isinstance(thought, bool):
        _read(thought, words, "reasoning")
    if part.get("refusal"):
        _read(part["refusal"], words, "refusal")
    text = next((part[key] for key in _TEXT if part.get(key) not in _NOTHING), None)
    if text is not None:
        _read(text, words, kind)
    return text is not None or bool(thought or part.get("refusal"))


def _kind_of(part: Fields, kind: Kind) -> Kind:
    name = part.get("type")
    if part.get("thought") is True:
        return "reasoning"
    if isinstance(name, str):
        if "thinking" in name or "reasoning" in name or "summary" in name:
            return "reasoning"
        if name == "refusal":
            return "refusal"
    return kind


def _is_aside(part: Fields) -> bool:
    """Tell whether a part without text is one that has none, such as a reference."""
    name = part.get("type")
    if isinstance(name, str) and ("reference" in name or "citation" in name):
        return True
    return not any(_has_words(item) for key, item in part.items() if key not in _ASIDE)


def _has_words(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, list):
        return any(map(_has_words, cast("list[object]", value)))
    if isinstance(value, dict):
        return any(map(_has_words, cast("Fields", value).values()))
    return False


# Calls


def calls_of(fields: Fields, *, is_whole: bool) -> Sequence[ToolCallDelta]:
    """Return the calls, or parts of calls, in a delta or message.

    Raises:
        Unreadable: There is something else in their place.
    """
    calls: list[ToolCallDelta] = []
    for key in _CALLS:
        value = fields.get(key)
        if value in _NOTHING:
            continue
        if key in _LEGACY_CALLS:
            made = _call({"function": value}, None)
            calls.append(ToolCallDelta(LEGACY, None, made.name, made.arguments))
            continue
        for place, item in enumerate(_items(value)):
            if item is not None:
                calls.append(_call(item, place if is_whole else None))
    return calls


def _items(value: Any) -> Sequence[object]:
    """Return calls that come as a list, as an object by number, or one alone."""
    if isinstance(value, list):
        return cast("list[object]", value)
    if isinstance(value, dict) and all(key.isdigit() for key in cast("Fields", value)):
        return [*cast("Fields", value).values()]
    return [cast("object", value)]


def _call(item: Any, place: int | None) -> ToolCallDelta:
    if not isinstance(item, dict):
        raise Unreadable
    call = cast("Fields", item)
    function: Any = call.get("function") or call.get("custom") or call
    name: Any = None
    if isinstance(function, str):
        name, function = function, call
    if not isinstance(function, dict):
        raise Unreadable
    function = cast("Fields", function)
    name = name if name is not None else function.get("name")
    arguments = next((function[key] for key in _ARGUMENTS if key in function), None)
    if arguments is not None and not isinstance(arguments, str):
        arguments = json.dumps(arguments, separators=(",", ":"))
    index = whole_number(call.get("index"))
    return ToolCallDelta(
        place if index is None or index < 0 else index,
        _word(call.get("id") or call.get("call_id")),
        _word(name),
        arguments,
    )


def _word(value: Any) -> str | None:
    """Return an id or name as it stands.

    Raises:
        Unreadable: It is neither a text nor a number.
    """
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise Unreadable


def short(value: Any) -> str | None:
    """Return an id, model or reason, of a very long one the start; None if it is no word."""
    if isinstance(value, str):
        return whole_characters(value[:_WORD_MAX_CHARS])
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)[:_WORD_MAX_CHARS]
    return None


def choices_of(chunk: Fields) -> tuple[Sequence[Fields], bool]:
    """Return the first choice, in its pieces; and whether there are others, never asked for.

    Raises:
        Unreadable: There are choices, but no objects.
    """
    choices: Any = chunk.get("choices")
    if isinstance(choices, dict):
        choices = [cast("Fields", choices)]
    if not choices:
        return (), False
    if not isinstance(choices, list):
        raise Unreadable
    items = [item for item in cast("list[object]", choices) if item is not None]
    if not all(isinstance(item, dict) for item in items):
        raise Unreadable
    first = [item for item in cast("list[Fields]", items) if item.get("index") in _FIRST]
    return first, len(first) < len(items)


def finish_of(choice: Fields) -> str | None:
    """Return why the model stopped, if a choice says so; `null` in quotes says nothing."""
    for fields in (choice, choice.get("delta"), choice.get("message")):
        if not isinstance(fields, Mapping):
            continue
        fields = cast("Fields", fields)
        for key in ("finish_reason", "finishReason", "stop_reason"):
            value = fields.get(key)
            if isinstance(value, dict):
                inner = cast("Fields", value)
                value = inner.get("type") or inner.get("reason")
            reason = "stop" if value is True else short(value)
            if reason is not None and reason not in {"null", "None"}:
                return reason
    return None


def whole_number(value: Any) -> int | None:
    """Return a number that is whole, also one in quotes; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and len(value) <= 16 and value.isascii() and value.isdigit():
        return int(value)
    return None


def decoded(payload: bytes) -> Any:
    """Decode JSON, within limits; halves of characters, bare controls and NaN are let pass.

    Raises:
        Unreadable: It holds too many values.
        msgspec.DecodeError: It is no JSON.
        UnicodeDecodeError: It is no UTF-8.
        RecursionError: It is too deep.
    """
    if len(payload) > _VALUES_MAX and payload.count(b",") > _VALUES_MAX:
        raise Unreadable("too_complex")
    try:
        return _decode_any(payload)
    except msgspec.DecodeError:
        try:
            return _lenient.decode(payload.decode())
        except UnicodeDecodeError:
            raise
        except ValueError:
            raise msgspec.DecodeError from None


# Errors


def failure_of_body(body: bytes) -> StreamFailed:
    """Read the code and message of an error response, whatever its shape; both may be empty."""
    try:
        value = _decode_any(body)
        fields = as_object(value)
        if fields is not None:
            return failure_of(fields) or failed("", fields.get("message"))
        return StreamFailed("", value if isinstance(value, str) else "")
    except UNDECODED:
        return StreamFailed("", body[:BODY_MAX_BYTES].decode("utf-8", "replace"))


def as_object(value: object) -> dict[str, Any] | None:
    """Return a JSON object; None if it is another value."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def failure_of(value: Mapping[str, Any]) -> StreamFailed | None:
    """Return the error that an object reports: flat, nested, or typed; None if it reports none."""
    error = value.get("error") or value.get("errors") or _groq_error(value)
    if isinstance(error, list):
        error = cast("list[object]", error)[0]
    if (nested := as_object(error)) is not None:
        if any(nested.values()):
            code = nested.get("code") or nested.get("type") or whole_number(value.get("status"))
            return failed(code, nested.get("message"), nested.get("param"))
    elif error:
        return failed(value.get("code"), error)
    status = as_object(value.get("base_resp"))
    if status is not None and status.get("status_code"):
        return failed(status["status_code"], status.get("status_msg"))
    return None if value.get("choices") else _bare_failure_of(value)


def _groq_error(value: Mapping[str, Any]) -> object:
    groq = as_object(value.get("x_groq"))
    return groq.get("error") if groq is not None else None


def _bare_failure_of(value: Mapping[str, Any]) -> StreamFailed | None:
    """Return the error that an object is, by the names that frameworks have for its fields."""
    code = value.get("code") or value.get("error_code")
    words = [value.get(key) for key in ("message", "error_msg", "detail", "msg")]
    is_error = "error" in (value.get("type"), value.get("object")) or (code and not _is_fine(code))
    if is_error or value.get("success") is False or words[1] or words[2]:
        return failed(code, next(filter(None, words), None))
    return None


def _is_fine(code: object) -> bool:
    """Tell whether a code beside no choices says that nothing is wrong."""
    return str(code).lower() in {"0", "200", "ok", "success"}


def failed(code: object, message: object, param: object = "") -> StreamFailed:
    """Return the error of a code, a message and what it is about, of any type."""
    return StreamFailed(*(whole_characters(str(it or "")) for it in (code, message, param)))
