"""Items of a reply that chat has no place for, and requests that hold them in their places.

An assistant message keeps them as `reply_items`, beside its text and its calls: encrypted
reasoning, and tools that the provider ran. What is sent for a message depends on its bytes and on
the model that is asked, so that a request always begins with the one before it.

Source: https://docs.x.ai/docs/guides/reasoning
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias, cast

import msgspec

from turnline.contracts.nesting import is_deep
from turnline.contracts.numbers import number
from turnline.worker.pipeline.call_parts import whole_characters

Fields: TypeAlias = Mapping[str, Any]
REPLY_ITEMS: Final = "reply_items"
CITATIONS: Final = "citations"
ITEMS_MARK: Final = b'"reply_items":'
"""In no text of a message: quotes in texts are escaped."""
_CITED: Final = b'"citations":'
BESIDE_MARKS: Final = (ITEMS_MARK, _CITED)
"""What the bytes of a message hold that chat has no place for."""
_USERS: Final = b'{"role":"user","content":"'
_ASSISTANTS: Final = b'{"role":"assistant","content":"'
_NEXT_KEY: Final = b'","'
"""Stands in no text: behind the text of a message there is another field."""
_TEXT_AT: Final = len(_ASSISTANTS)
_BLANK: Final = b' "'
"""How a text begins that may be none."""
_KEPT: Final = b',"reply_items":{"model":"'
_ONE_ITEM: Final = b'","items":[{"item":'
_ITEM: Final = b'"item":'
_LAST: Final = b"}]}}"
_OWNED: Final = " @"
"""Stands in no name of a model."""
_SENT_BACK: Final = ("reasoning", "compaction")
_UNFINISHED: Final = ("in_progress", "incomplete")
_NOTHING: Final = msgspec.Raw(b"")
_NULL: Final = msgspec.Raw(b"null")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any], float_hook=number).decode


def canonical_item(item: Fields) -> bytes | None:
    """Return an output item as the JSON that is kept of it; None if it is not to be sent back.

    Reasoning without what it encrypts says nothing to the model, and one that is not complete
    would be refused; so would a null among its fields. What is nested too deeply may be unreadable
    later, and the whole context with it.
    """
    kept = _sent_back(item)
    encoded = None if kept is None else _encoded(kept)
    return None if encoded is None or is_deep(kept, encoded) else encoded


def _sent_back(item: Fields) -> Fields | None:
    kind = item.get("type")
    if not isinstance(kind, str) or item.get("status") in _UNFINISHED:
        return None
    if kind in _SENT_BACK:
        if not isinstance(item.get("encrypted_content"), str) or not item["encrypted_content"]:
            return None
        kept = {key: value for key, value in item.items() if value is not None}
        if kind == "reasoning":
            kept.setdefault("summary", [])
        return kept
    is_call = kind.endswith(("_call", "_call_output")) and not kind.startswith("function_call")
    return item if is_call else None


def _encoded(item: Fields) -> bytes:
    """Return an item as JSON; half a character in it is replaced."""
    try:
        return _encode(item)
    except UnicodeEncodeError:
        return _encode(_decode(whole_characters(json.dumps(item, ensure_ascii=False))))


def fit(message: dict[str, Any]) -> None:
    """Let what stands beside a text end with it, after the text was cut.

    Items stay, at its end at most; sources go of which a part is gone.
    """
    end = len(_text(message.get("content")))
    calls = len(message.get("tool_calls") or ())
    if REPLY_ITEMS in message:
        kept = message[REPLY_ITEMS]
        items = [
            placed(it["item"], min(it.get("chars", 0), end), min(it.get("calls", 0), calls))
            for it in kept["items"]
        ]
        message[REPLY_ITEMS] = {**kept, "items": items}
    cited = [it for it in message.pop(CITATIONS, ()) if it.get("end", 0) <= end]
    if cited:
        message[CITATIONS] = cited


def placed(item: Any, chars: int, calls: int) -> dict[str, Any]:
    """Return an item with its place: behind so many characters of the text, and so many calls."""
    places = {"chars": chars, "calls": calls}
    return {**{key: it for key, it in places.items() if it}, "item": item}


def owned(model: str, owner: str) -> str:
    """Return the name under which items of a model are kept, that only this owner's key reads."""
    return f"{model}{_OWNED}{owner}" if owner else model


def owned_by(owner: str, is_same: Callable[[str], bool]) -> Callable[[str], bool]:
    """Return what tells whether items, by the name they are kept under, can be read."""

    def can_read(name: str) -> bool:
        model, _, by = name.partition(_OWNED)
        return by == owner and is_same(model)

    return can_read


def owner_of(message: Mapping[str, Any]) -> str | None:
    """Return whose items a message has; None if it has none."""
    kept = message.get(REPLY_ITEMS)
    return None if kept is None else str(kept.get("model") or "").partition(_OWNED)[2]


class _Function(msgspec.Struct, gc=False):
    name: msgspec.Raw
    arguments: msgspec.Raw


class _Call(msgspec.Struct, gc=False):
    id: msgspec.Raw
    function: _Function


class _Placed(msgspec.Struct, gc=False):
    item: msgspec.Raw
    chars: int = 0
    calls: int = 0


class _Kept(msgspec.Struct, gc=False):
    items: list[_Placed]
    model: str | None = None
    asked: str | None = None


class _Message(msgspec.Struct, gc=False):
    """A message of which nothing is decoded that is sent as it is."""

    role: str
    content: msgspec.Raw = _NOTHING
    tool_calls: list[_Call] | None = None
    tool_call_id: msgspec.Raw = _NULL
    reply_items: _Kept | None = None


_decode_message = msgspec.json.Decoder(_Message, float_hook=number).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def without_items(messages: Iterable[bytes]) -> list[bytes]:
    """Return messages without what chat has no place for."""
    return [_without_items(raw) if ITEMS_MARK in raw or _CITED in raw else raw for raw in messages]


def _without_items(raw: bytes) -> bytes:
    fields = _decode_fields(raw)
    return _encode({key: it for key, it in fields.items() if key not in {REPLY_ITEMS, CITATIONS}})


def inputs_of(messages: Iterable[bytes], is_same: Callable[[str], bool]) -> list[bytes]:
    """Return what `/v1/responses` is sent for each message; see `input_of`."""
    return [raw if raw.startswith(_USERS) else input_of(raw, is_same) for raw in messages]


def input_of(raw: bytes, is_same: Callable[[str], bool]) -> bytes:
    """Return what `/v1/responses` is sent for a message: its items, with commas between them.

    Args:
        raw: The message as JSON.
        is_same: Tells whether a model, by its name, is the one that is asked: no other can read
            its reasoning.

    Returns:
        b"" for a message that says nothing. One of no known shape is sent as it is: the provider
        says what is wrong with it.
    """
    if raw.startswith(_ASSISTANTS) and raw[_TEXT_AT] not in _BLANK:
        key = raw.find(_NEXT_KEY, _TEXT_AT)
        if key < 0:
            return raw
        usual = _usual_input(raw, key + 1, is_same) if raw.startswith(_KEPT, key + 1) else None
        if usual is not None:
            return usual
    try:
        message = _decode_message(raw)
    except msgspec.ValidationError:
        return raw
    content = bytes(message.content)
    if message.role == "assistant":
        return b",".join(_items_of(message, content, is_same))
    if message.role == "tool":
        head = b'{"type":"function_call_output","call_id":%b' % message.tool_call_id
        return b'%b,"output":%b}' % (head, _content(content))
    if content[:1] == b"[":
        content = _content(content, as_text=message.role == "system")
        raw = _encode({**_decode_fields(raw), "content": msgspec.Raw(content)})
    return raw


def _usual_input(raw: bytes, end: int, is_same: Callable[[str], bool]) -> bytes | None:
    """Return what is sent for a text, up to `end`, with one item before it; None for others.

    As `_items_of` gives it, but nothing is decoded: a request holds all messages of a conversation.
    """
    model_at = end + len(_KEPT)
    model_end = raw.find(_ONE_ITEM, model_at)
    item_at = model_end + len(_ONE_ITEM)
    model = raw[model_at:model_end]
    if model_end <= model_at or b'"' in model or not raw.endswith(_LAST):
        return None
    if raw.find(_ITEM, item_at) >= 0:
        return None
    if not is_same(model.decode()):
        return raw[:end] + b"}"
    return b"%b,%b}" % (raw[item_at : -len(_LAST)], raw[:end])


def _items_of(message: _Message, content: bytes, is_same: Callable[[str], bool]) -> Iterable[bytes]:
    """Yield an assistant's text and calls, and the items that stand between them."""
    calls = [
        b'{"type":"function_call","call_id":%b,"name":%b,"arguments":%b}'
        % (call.id, call.function.name, call.function.arguments)
        for call in message.tool_calls or ()
    ]
    kept = _readable(message.reply_items, is_same)
    if not any(it.chars or it.calls for it in kept) and content[:1] == b'"':
        yield from (bytes(it.item) for it in kept)
        if content[1:-1].strip():
            yield b'{"role":"assistant","content":%b}' % content
        yield from calls
        return
    text = _text(msgspec.json.decode(content) if content else "")
    said = made = 0
    for it in kept:
        until = len(text) if it.calls else min(max(it.chars, said), len(text))
        yield from _said(text[said:until])
        yield from calls[made : it.calls]
        yield bytes(it.item)
        said, made = until, max(made, min(it.calls, len(calls)))
    yield from _said(text[said:])
    yield from calls[made:]


def _readable(kept: _Kept | None, is_same: Callable[[str], bool]) -> Sequence[_Placed]:
    """Return the items that the asked model can read."""
    if kept is None or not any(model and is_same(model) for model in (kept.model, kept.asked)):
        return ()
    return kept.items


def _said(text: str) -> Iterable[bytes]:
    if text.strip():
        yield _encode({"role": "assistant", "content": text})


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = cast("list[Fields]", content) if isinstance(content, list) else []
    return "".join(str(part.get("text") or part.get("refusal") or "") for part in parts)


def _content(content: bytes, *, as_text: bool = False) -> bytes:
    """Return content in the form of this wire: texts as they are, parts by its names."""
    if content[:1] != b"[":
        return content if content[:1] == b'"' else b'""'
    parts = cast("list[Fields]", msgspec.json.decode(content))
    return _encode(_text(parts) if as_text else [_part(part) for part in parts])


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
