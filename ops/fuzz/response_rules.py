"""What has to hold for every body of `/v1/responses`, and for every message that is sent there."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

import msgspec

from turnline.contracts.conversation import AssistantEntry, decode_context_entry
from turnline.contracts.errors import InvalidMessage
from turnline.ops.fuzz.reply_rules import check_body
from turnline.ops.fuzz.verdicts import Verdict, must
from turnline.worker.pipeline.reply_items import input_of, without_items
from turnline.worker.pipeline.responses_stream import ResponsesStream
from turnline.worker.pipeline.stream_events import Refusal, ReplyItem, StreamEvent, TextDelta

_MODEL: Final = "grok-4"
_ENDS: Final = ("response.completed", "response.incomplete", "response.failed", "response.done")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.decode


def check_responses(data: bytes) -> Verdict:
    """Read a response body whole, in pieces, and byte by byte."""
    return check_body(data, ResponsesStream, _check_nothing_is_missing)


def _check_nothing_is_missing(body: bytes, events: Sequence[StreamEvent]) -> None:
    """Check by an independent and simpler reading of plain events."""
    said = "".join(it.text for it in events if isinstance(it, TextDelta | Refusal))
    items = [it.item for it in events if isinstance(it, ReplyItem)]
    for kept in items:
        must(_encode(_decode(kept)) == kept, "an item is not the same when it is written again")
    for event in _plain_events(body):
        item = _fields(event.get("item"))
        text = event.get("delta") if event.get("type") in _DELTAS else None
        for each in (text, *_texts(item)):
            if isinstance(each, str) and each.isprintable():
                must(each.strip() in said, "text is missing")
        sealed = item.get("encrypted_content")
        is_thought = item.get("type") == "reasoning" and event["type"] == _DONE
        if is_thought and isinstance(sealed, str) and sealed.isalnum() and "status" not in item:
            last = [it for it in items if _encode(sealed) in it]
            must(bool(last), "reasoning is missing")


_DELTAS: Final = ("response.output_text.delta", "response.refusal.delta")
_DONE: Final = "response.output_item.done"


def _plain_events(body: bytes) -> Iterator[dict[str, Any]]:
    """Yield each event that is two plain lines, up to what may be the end."""
    if body.lstrip()[:1] in b'{["<':
        return
    for event in body.split(b"\n\n"):
        lines = event.split(b"\n")
        if b"\r" in event or b"[DONE]" in event or any(it.encode() in event for it in _ENDS):
            return
        if len(lines) != 2 or not lines[0].startswith(b"event: "):
            continue
        try:
            fields = _fields(json.loads(lines[1].removeprefix(b"data: ").decode()))
        except (ValueError, RecursionError):
            continue
        if f"event: {fields.get('type')}".encode(errors="surrogatepass") == lines[0]:
            yield fields


def _texts(item: dict[str, Any]) -> Iterator[object]:
    if item.get("type") != "message" or not isinstance(item.get("content"), list):
        return
    for part in cast("list[object]", item["content"]):
        yield _fields(part).get("text") if _fields(part).get("type") == "output_text" else None


def _fields(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _always(_: str) -> bool:
    return True


def _never(_: str) -> bool:
    return False


def check_items(data: bytes) -> Verdict:
    """Make the items of `/v1/responses`, and the message of chat, of a message of a context."""
    try:
        entry = decode_context_entry(data)
        raw = _encode(entry)
        if not _has_objects(entry):
            return Verdict("NoObject")
    except (msgspec.MsgspecError, InvalidMessage, UnicodeError, RecursionError) as error:
        return Verdict(type(error).__name__)
    must(_encode(decode_context_entry(raw)) == raw, "another message when it is written again")
    outcomes: list[str] = []
    for is_same in (True, False):
        asks = _always if is_same else _never
        made = input_of(raw, asks)
        must(input_of(raw, asks) == made, "other bytes for the same message")
        slowly = input_of(b" " + raw, asks)
        must(slowly.strip() == made, "other bytes where the usual way is not taken")
        items: list[Any] = _decode(b"[%b]" % made)
        must(all(isinstance(item, dict) for item in items), "an item that is none")
        outcomes += [str(_fields(item).get("type", "message")) for item in items]
        if isinstance(entry, AssistantEntry):
            _check_assistant(entry, made, items, is_same=is_same)
    chat = _decode(without_items([raw])[0], type=dict[str, Any])
    must(not {"reply_items", "citations"} & chat.keys(), "chat has no place for this")
    whole = _decode(raw, type=dict[str, Any])
    must({**whole, **chat} == whole, "chat is sent something else")
    return Verdict("", outcomes)


def _has_objects(entry: object) -> bool:
    """Whether the items of an entry are what a provider may have written."""
    kept = entry.reply_items if isinstance(entry, AssistantEntry) else None
    items = [_decode(it.item) for it in kept.items] if kept is not None else []
    return all(isinstance(it, dict) and "role" not in it for it in items)


def _check_assistant(
    entry: AssistantEntry, made: bytes, items: Sequence[dict[str, Any]], *, is_same: bool
) -> None:
    reply = entry.reply_items
    kept = reply.items if reply is not None and is_same and (reply.model or reply.asked) else ()
    place = 0
    for placed in kept:
        place = made.find(bytes(placed.item), place)
        must(place >= 0, "an item is missing, changed or moved")
        place += len(bytes(placed.item))
    said = "".join(it["content"] for it in items if it.get("role") == "assistant")
    text = entry.content if isinstance(entry.content, str) else None
    if text is not None:
        must("".join(said.split()) == "".join(text.split()), "text is missing")
    own = {it.id for it in entry.tool_calls}
    calls = [it.get("call_id") for it in items if it.get("type") == "function_call"]
    made_calls = [it for it in calls if it in own]
    must(
        made_calls[: len(entry.tool_calls)] == [it.id for it in entry.tool_calls] or bool(kept),
        "calls are missing, or in another order",
    )
