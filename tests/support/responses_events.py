"""The payloads of a stream of `/v1/responses`, as xAI sends them."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

Fields = dict[str, Any]
USAGE: Fields = {
    "input_tokens": 475,
    "input_tokens_details": {"cached_tokens": 320},
    "output_tokens": 91,
    "output_tokens_details": {"reasoning_tokens": 59},
    "total_tokens": 566,
    "num_server_side_tools_used": 0,
    "cost_in_usd_ticks": 4852500,
}
MODEL = "grok-4.3"


def event(kind: str, **fields: Any) -> Fields:
    """One payload."""
    return {"type": kind, **fields}


def response(status: str, output: Sequence[Fields] = (), **fields: Any) -> Fields:
    """A response object."""
    return {
        "id": "5b0e",
        "model": MODEL,
        "object": "response",
        "output": [*output],
        "usage": None,
        "incomplete_details": None,
        "status": status,
        "error": None,
        **fields,
    }


def opening() -> list[Fields]:
    """The first payloads."""
    begun = response("in_progress")
    return [
        event("response.created", response=begun),
        event("response.in_progress", response=begun),
    ]


def ending(output: Sequence[Fields], kind: str = "completed", **fields: Any) -> Fields:
    """The last payload."""
    return event(f"response.{kind}", response={**response(kind, output, usage=USAGE), **fields})


def reasoning(blob: str | None = "q3J", *summary: str, **fields: Any) -> Fields:
    """A reasoning item."""
    parts = [{"text": text, "type": "summary_text"} for text in summary]
    item = {"id": "rs_5b0e", "summary": parts, "type": "reasoning", "status": "completed"}
    return {**item, **({} if blob is None else {"encrypted_content": blob}), **fields}


def message(*texts: str, **fields: Any) -> Fields:
    """A message item with one part for each text."""
    content = [
        {"type": "output_text", "text": text, "logprobs": [], "annotations": []} for text in texts
    ]
    return {
        "content": content,
        "id": "msg_5b0e",
        "role": "assistant",
        "type": "message",
        "status": "completed",
        **fields,
    }


def refusal(text: str) -> Fields:
    """A message item in which the model declines."""
    return {**message(), "content": [{"type": "refusal", "refusal": text}]}


def function_call(name: str, arguments: str, call_id: str = "call-1", **fields: Any) -> Fields:
    """A function call item."""
    return {
        "arguments": arguments,
        "call_id": call_id,
        "name": name,
        "type": "function_call",
        "id": f"fc_{call_id}",
        "status": "completed",
        **fields,
    }


def web_search(call_id: str = "ws_1", **fields: Any) -> Fields:
    """The item of a search that the provider made."""
    action = {"type": "search", "query": "q", "sources": []}
    kind = "web_search_call"
    return {"id": call_id, "type": kind, "status": "completed", "action": action, **fields}


def pieces_of(text: str, size: int = 3) -> list[str]:
    """Cut a text into pieces."""
    return [text[at : at + size] for at in range(0, len(text), size)]


def events_of(index: int, item: Fields, size: int = 3) -> list[Fields]:
    """All payloads of one item, in xAI's order."""
    at = {"item_id": item.get("id"), "output_index": index}
    begun = {**item, "status": "in_progress"}
    begun.pop("encrypted_content", None)
    between: list[Fields] = []
    match item["type"]:
        case "message":
            begun["content"] = []
            for n, part in enumerate(item["content"]):
                between += _part_events({**at, "content_index": n}, part, size)
        case "function_call":
            begun["arguments"] = ""
            head = "response.function_call_arguments"
            whole = item["arguments"]
            between += [event(f"{head}.delta", delta=it, **at) for it in pieces_of(whole, size)]
            between.append(event(f"{head}.done", arguments=whole, **at))
        case "reasoning":
            begun["summary"] = []
            head = "response.reasoning_summary_text"
            for n, part in enumerate(item["summary"]):
                place = {**at, "summary_index": n}
                pieces = pieces_of(part["text"], size)
                between += [event(f"{head}.delta", delta=it, **place) for it in pieces]
                between.append(event(f"{head}.done", text=part["text"], **place))
        case kind:
            between += [event(f"response.{kind}.{it}", **at) for it in ("in_progress", "completed")]
    return [
        event("response.output_item.added", item=begun, output_index=index),
        *between,
        event("response.output_item.done", item=item, output_index=index),
    ]


def _part_events(place: Fields, part: Fields, size: int) -> list[Fields]:
    kind, key = ("output_text", "text") if "text" in part else ("refusal", "refusal")
    whole = part[key]
    return [
        event("response.content_part.added", part={**part, key: ""}, **place),
        *(event(f"response.{kind}.delta", delta=it, **place) for it in pieces_of(whole, size)),
        *(
            event(
                "response.output_text.annotation.added", annotation=it, annotation_index=n, **place
            )
            for n, it in enumerate(part.get("annotations", ()))
        ),
        event(f"response.{kind}.done", **{key: whole}, **place),
        event("response.content_part.done", part=part, **place),
    ]


def whole_stream(*items: Fields, size: int = 3, **ends: Any) -> list[Fields]:
    """All payloads of a reply of these items."""
    between = [it for n, item in enumerate(items) for it in events_of(n, item, size)]
    return [*opening(), *between, ending(items, **ends)]


def encoded(payload: Any, *, ascii_only: bool = False) -> bytes:
    """A payload as bytes."""
    return json.dumps(payload, ensure_ascii=ascii_only, separators=(",", ":")).encode()


def sse(payloads: Iterable[Any], *, named: bool = True, ascii_only: bool = False) -> bytes:
    """Payloads as server-sent events, each with a number; `named`: with a line for its type."""
    parts: list[bytes] = []
    for number, payload in enumerate(payloads):
        if named:
            parts.append(f"event: {payload['type']}\n".encode())
        numbered = {"sequence_number": number, **payload}
        parts.append(b"data: " + encoded(numbered, ascii_only=ascii_only) + b"\n\n")
    return b"".join(parts)
