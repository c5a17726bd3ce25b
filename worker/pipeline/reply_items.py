"""Items of a reply that chat has no place for, and requests that hold them in their places.

An assistant message keeps them as `reply_items`, beside its text and its calls: encrypted
reasoning, and tools that the provider ran. What is sent for a message depends on its bytes and on
the model that is asked, so that a request always begins with the one before it.

Source: https://docs.x.ai/docs/guides/reasoning
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias, cast

import msgspec

from turnline.contracts.numbers import number

Fields: TypeAlias = Mapping[str, Any]
REPLY_ITEMS: Final = "reply_items"
CITATIONS: Final = "citations"
ITEMS_MARK: Final = b'"reply_items":'
BESIDE_MARKS: Final = (ITEMS_MARK, b'"citations":')
"""What the bytes of a message hold that chat has no place for."""
OTHER_MARKS: Final = (
    *BESIDE_MARKS,
    *(b'"tool_calls":', b'"tool_call_id":', b'"content":[', b'"content":null', b'"content":" "'),
)
"""What they hold that is not the same on both wires."""
_SENT_BACK: Final = ("reasoning", "compaction")
_UNFINISHED: Final = ("in_progress", "incomplete")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any], float_hook=number).decode


def canonical_item(item: Fields) -> bytes | None:
    """Return an output item as the JSON that is kept of it; None if it is not to be sent back.

    Reasoning without what it encrypts says nothing to the model, and one that is not complete
    would be refused; so would a null among its fields.
    """
    kind = item.get("type")
    if not isinstance(kind, str) or item.get("status") in _UNFINISHED:
        return None
    if kind in _SENT_BACK:
        if not isinstance(item.get("encrypted_content"), str) or not item["encrypted_content"]:
            return None
        kept = {key: value for key, value in item.items() if value is not None}
        if kind == "reasoning":
            kept.setdefault("summary", [])
        return _encode(kept)
    is_call = kind.endswith(("_call", "_call_output")) and not kind.startswith("function_call")
    return _encode(item) if is_call else None


def without_items(raw: bytes) -> bytes:
    """Return a message without what chat has no place for."""
    if not any(mark in raw for mark in BESIDE_MARKS):
        return raw
    message = _decode(raw)
    return _encode({key: it for key, it in message.items() if key not in {REPLY_ITEMS, CITATIONS}})


def input_of(raw: bytes, is_same: Callable[[str], bool]) -> bytes:
    """Return what `/v1/responses` is sent for a message: its items, with commas between them.

    Args:
        raw: The message as JSON.
        is_same: Tells whether a model, by its name, is the one that is asked: no other can read
            its reasoning.

    Returns:
        b"" for a message that says nothing.
    """
    if not any(mark in raw for mark in OTHER_MARKS):
        return raw
    message = _decode(raw)
    return b",".join(_items_of(message, is_same))


def _items_of(message: Fields, is_same: Callable[[str], bool]) -> Iterable[bytes]:
    role = message.get("role")
    if role == "tool":
        yield _encode(
            {
                "type": "function_call_output",
                "call_id": message.get("tool_call_id"),
                "output": _content(message.get("content"), role),
            }
        )
        return
    content = message.get("content")
    if role != "assistant":
        fields = {key: it for key, it in message.items() if key not in {REPLY_ITEMS, CITATIONS}}
        yield _encode({**fields, "content": _content(content, role)})
        return
    text = _text(content)
    calls: Sequence[Any] = message.get("tool_calls") or ()
    said = made = 0
    for chars, before, item in _kept(message, is_same):
        until = len(text) if before else min(max(chars, said), len(text))
        yield from _said(text[said:until])
        yield from map(_called, calls[made:before])
        yield _encode(item)
        said, made = until, max(made, min(before, len(calls)))
    yield from _said(text[said:])
    yield from map(_called, calls[made:])


def _said(text: str) -> Iterable[bytes]:
    if text.strip():
        yield _encode({"role": "assistant", "content": text})


def _called(call: Any) -> bytes:
    function = call.get("function", {})
    return _encode(
        {
            "type": "function_call",
            "call_id": call.get("id"),
            "name": function.get("name"),
            "arguments": function.get("arguments"),
        }
    )


def _kept(message: Fields, is_same: Callable[[str], bool]) -> list[tuple[int, int, Any]]:
    """Return (characters before, calls before, item) of items that the asked model can read."""
    kept = message.get(REPLY_ITEMS)
    if not isinstance(kept, dict):
        return []
    fields = cast("Fields", kept)
    models = (fields.get("asked"), fields.get("model"))
    if not any(isinstance(model, str) and is_same(model) for model in models):
        return []
    return [
        (item.get("chars", 0), item.get("calls", 0), item.get("item"))
        for item in fields.get("items", ())
    ]


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = cast("list[Fields]", content) if isinstance(content, list) else []
    return "".join(str(part.get("text") or part.get("refusal") or "") for part in parts)


def _content(content: Any, role: Any) -> Any:
    """Return content in the form of this wire: texts as they are, parts by its names."""
    if not isinstance(content, list):
        return content if content is not None else ""
    if role == "system":
        return _text(content)
    return [_part(part) for part in cast("list[Fields]", content)]


def _part(part: Fields) -> Fields:
    kind = part.get("type")
    if kind == "text":
        return {"type": "input_text", "text": part.get("text")}
    image = part.get("image_url")
    if kind == "image_url" and isinstance(image, dict):
        url = cast("Fields", image)
        detail = {"detail": url["detail"]} if url.get("detail") else {}
        return {"type": "input_image", "image_url": url.get("url"), **detail}
    return part
