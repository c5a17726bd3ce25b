"""Input items: read, counted, and in a form that is equal for what means the same to the model."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from turnline.ops.simulator.model.answer import Call
from turnline.ops.simulator.model.api_errors import (
    BAD_COMPACTION,
    NO_CONTENT,
    Refused,
    invalid,
    undecodable,
)
from turnline.ops.simulator.model.prompt import (
    CalledFunction,
    ChatMessage,
    CountedMessage,
    EarlierCall,
    Part,
    counted,
)

_MEMORY_BYTES: Final = 64 * 1024 * 1024
_HOSTED_TOKENS: Final = 12
"""What a call of a tool of the server counts; its result is a blob of its own."""
_NO_VARIANT: Final = "data did not match any variant of untagged enum ModelInput"
_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_TEXTS: Final = {"input_text", "output_text", "text"}
HOSTED_ITEMS: Final = frozenset(
    {
        "web_search_call", "custom_tool_call", "x_search_call", "code_interpreter_call",
        "file_search_call", "mcp_call", "shell_call", "shell_call_output",
    }
)  # fmt: skip
_encode: Final = msgspec.json.encode


class ContentPart(msgspec.Struct, frozen=True):
    """One part of a message or of a tool's result."""

    type: str
    text: str | None = None
    image_url: str | None = None
    """A plain string, other than in chat."""
    refusal: str | None = None
    file_id: str | None = None
    file_url: str | None = None
    file_data: str | None = None

    @property
    def seen(self) -> tuple[str, str]:
        """What of it the model sees."""
        if self.type in _TEXTS:
            return "text", self.text or ""
        if self.type == "refusal":
            return "text", self.refusal or ""
        if self.type == "input_image":
            return "image_url", self.image_url or self.file_id or ""
        return "file", self.file_id or self.file_url or self.file_data or ""


class SummaryPart(msgspec.Struct, frozen=True):
    """One part of the summary of a reasoning item."""

    text: str
    type: str = "summary_text"


class _Item(msgspec.Struct, frozen=True):
    """Any input item; which keys it needs depends on its type."""

    type: str = "message"
    role: str | None = None
    content: str | list[ContentPart] | UnsetType | None = UNSET
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | UnsetType | None = UNSET
    summary: list[SummaryPart] | UnsetType = UNSET
    encrypted_content: str | None = None
    id: str | None = None


class ReadItem(msgspec.Struct, frozen=True, kw_only=True):
    """An input item with what was worked out about it."""

    type: str
    raw: bytes
    """As it came."""
    form: bytes
    """Equal for items that mean the same to the model: without ids, status, annotations."""
    message: CountedMessage | None = None
    """What it is in the form of chat. None: nothing that is said."""
    tokens: int = 0
    """What it counts, but for what is sealed in it."""
    call_id: str | None = None
    id: str | None = None
    blob: str | None = None
    """Its sealed content."""
    is_empty: bool = False
    """Whether it is a message without content."""

    @property
    def is_user(self) -> bool:
        """Whether the user says it."""
        return self.message is not None and self.message.message.role == "user"


class ItemReader:
    """Decodes and counts items; equal bytes are worked out once.

    Contexts grow at their end, so nearly all items of a request have been read before.
    """

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(_Item).decode
        self._known: OrderedDict[bytes, ReadItem] = OrderedDict()
        self._bytes = 0

    def read(self, items: Sequence[Raw]) -> list[ReadItem]:
        """Read all items of a request.

        Raises:
            Refused: One of them is of no kind that is known, or lacks what its kind needs.
        """
        return [self.read_one(bytes(raw)) for raw in items]

    def read_one(self, raw: bytes) -> ReadItem:
        """Read one item.

        Raises:
            Refused: As `read`.
        """
        known = self._known.get(raw)
        if known is not None:
            self._known.move_to_end(raw)
            return known
        try:
            read = self._known[raw] = _read(raw, self._decode(raw))
        except msgspec.ValidationError:
            raise Refused(undecodable(_NO_VARIANT)) from None
        self._bytes += len(raw)
        while self._bytes > _MEMORY_BYTES and len(self._known) > 1:
            oldest, _ = self._known.popitem(last=False)
            self._bytes -= len(oldest)
        return read


def text_item(role: str, text: str) -> bytes:
    """Return a message of nothing but text."""
    return _encode({"role": role, "content": text})


def _read(raw: bytes, item: _Item) -> ReadItem:
    kind = item.type
    if kind == "message" and item.role in _ROLES:
        return _message(raw, item, _ROLES[item.role])
    if kind == "function_call" and None not in (item.call_id, item.name, item.arguments):
        return _function_call(raw, item)
    if kind == "function_call_output" and item.call_id and item.output not in (None, UNSET):
        return _function_output(raw, item)
    if kind == "reasoning":
        return _reasoning(raw, item)
    if kind == "compaction" and item.encrypted_content:
        form = _encode([kind, item.encrypted_content])
        return ReadItem(type=kind, raw=raw, form=form, blob=item.encrypted_content)
    if kind in HOSTED_ITEMS:
        form = _encode(msgspec.json.decode(raw))
        return ReadItem(type=kind, raw=raw, form=form, tokens=_HOSTED_TOKENS)
    raise Refused(undecodable(_NO_VARIANT))


def _seen(content: str | Sequence[ContentPart]) -> list[tuple[str, str]]:
    """Return what the model sees of a content; texts in a row are one."""
    parts = [("text", content)] if isinstance(content, str) else [it.seen for it in content]
    seen: list[tuple[str, str]] = []
    for kind, value in parts:
        if kind == "text" and seen and seen[-1][0] == "text":
            seen[-1] = kind, seen[-1][1] + value
        else:
            seen.append((kind, value))
    return seen


def _chat_content(seen: Sequence[tuple[str, str]]) -> str | list[Part]:
    if len(seen) == 1 and seen[0][0] == "text":
        return seen[0][1]
    return [Part(kind, value if kind == "text" else None) for kind, value in seen]


def _message(raw: bytes, item: _Item, role: str) -> ReadItem:
    content = item.content
    if content is None or content is UNSET:
        raise Refused(undecodable(_NO_VARIANT))
    seen = _seen(content)
    is_empty = not seen or (role == "assistant" and seen == [("text", "")])
    message = counted(ChatMessage(role, _chat_content(seen)))
    return ReadItem(
        type="message",
        raw=raw,
        form=_encode(["message", item.role, seen]),
        message=message,
        tokens=message.tokens,
        is_empty=is_empty,
    )


def _function_call(raw: bytes, item: _Item) -> ReadItem:
    call_id, name, arguments = item.call_id or "", item.name or "", item.arguments or ""
    call = EarlierCall(CalledFunction(name, arguments), call_id)
    return ReadItem(
        type=item.type,
        raw=raw,
        form=_encode([item.type, call_id, name, arguments]),
        message=counted(ChatMessage("assistant", tool_calls=[call])),
        tokens=Call(call_id, name, arguments).tokens,
        call_id=call_id,
    )


def _function_output(raw: bytes, item: _Item) -> ReadItem:
    output = item.output
    assert isinstance(output, str | list)
    seen = _seen(output)
    message = counted(ChatMessage("tool", _chat_content(seen), tool_call_id=item.call_id))
    return ReadItem(
        type=item.type,
        raw=raw,
        form=_encode([item.type, item.call_id, seen]),
        message=message,
        tokens=message.tokens,
        call_id=item.call_id,
    )


def _reasoning(raw: bytes, item: _Item) -> ReadItem:
    if item.summary is UNSET:
        # Without a summary it can only be meant as a compaction.
        raise Refused(BAD_COMPACTION if item.encrypted_content else undecodable(_NO_VARIANT))
    if item.content is None:
        raise Refused(undecodable(_NO_VARIANT))
    thought: Mapping[str, Any] = {} if item.content is UNSET else {"content": item.content}
    summary = [part.text for part in item.summary]
    return ReadItem(
        type=item.type,
        raw=raw,
        form=_encode([item.type, summary, thought, item.encrypted_content]),
        id=item.id,
        blob=item.encrypted_content,
    )


def check_items(items: Sequence[ReadItem]) -> None:
    """See that there is something, that no content is empty, and that each call has its result.

    Raises:
        Refused: Something is alone, or empty, or its arguments are not JSON.
    """
    if not items:
        raise Refused(invalid("Input cannot be empty"))
    if any(item.is_empty for item in items):
        raise Refused(NO_CONTENT)
    calls = {it.call_id: it for it in items if it.type == "function_call"}
    outputs = {it.call_id for it in items if it.type == "function_call_output"}
    for call_id, call in calls.items():
        if call_id not in outputs:
            raise Refused(invalid(f"No tool output found for function call {call_id}."))
        _check_arguments(call)
    for call_id in outputs:
        if call_id not in calls:
            message = f"No tool call found for function call output with call_id {call_id}."
            raise Refused(invalid(message))


def _check_arguments(call: ReadItem) -> None:
    assert call.message is not None
    for made in call.message.message.tool_calls or ():
        try:
            msgspec.json.decode(made.function.arguments)
        except msgspec.DecodeError:
            raise Refused(
                invalid(
                    f"The arguments to a tool_call with ID '{made.id}' are not a valid JSON string"
                )
            ) from None
