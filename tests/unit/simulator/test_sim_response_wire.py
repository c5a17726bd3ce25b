"""The bytes of `/v1/responses`: recordings are written again by what writes the simulator's own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from tests.support.recordings import recorded
from turnline.ops.simulator.config import Profile
from turnline.ops.simulator.model.answer import Call, HostedCall
from turnline.ops.simulator.model.models import catalogue
from turnline.ops.simulator.model.usage import usage
from turnline.ops.simulator.responses import reasoning_blobs as blobs
from turnline.ops.simulator.responses import response_json as wire
from turnline.ops.simulator.responses.asked_items import ItemReader
from turnline.ops.simulator.responses.event_frames import EventWriter, event_bytes
from turnline.ops.simulator.responses.output_items import (
    CallItem,
    MessageItem,
    OutputItem,
    ReasoningItem,
)
from turnline.ops.simulator.responses.reasoning_blobs import Kind, Sealed
from turnline.ops.simulator.responses.response_json import Echo, Outcome

Json = dict[str, Any]
MODEL = catalogue(Profile.MODERN).models["grok-4.3"]


def echo_of(body: Json, *, stream: bool) -> Echo:
    """What a recorded response tells of its request."""
    same = {name: body[name] for name in Echo.__struct_fields__ if name in body}
    return Echo(
        **{
            **same,
            "fingerprint": body["metadata"]["system_fingerprint"],
            "profile": Profile.AUG2026,
            "stream": stream,
            "effort": body["reasoning"]["effort"],
            "summary": body["reasoning"]["summary"],
            "format": body["text"]["format"],
            "temperature": None,
            "top_p": None,
        }
    )


def usage_of(body: Json) -> Json:
    """The same usage, counted and priced anew."""
    told = body["usage"]
    reasoning = told["output_tokens_details"]["reasoning_tokens"]
    counted = usage(
        MODEL,
        prompt_tokens=told["input_tokens"],
        completion_tokens=told["output_tokens"] - reasoning,
        reasoning_tokens=reasoning,
        cached_tokens=told["input_tokens_details"]["cached_tokens"],
    )
    searches = told.get("server_side_tool_usage_details", {}).get("web_search_calls", 0)
    assert isinstance(counted.cost_in_usd_ticks, int)
    ticks = counted.cost_in_usd_ticks + searches * 50_000_000
    context = told["context_details"]
    return wire.usage_json(
        msgspec.structs.replace(counted, cost_in_usd_ticks=ticks),
        [HostedCall(tool="web_search", name="", input="")] * searches,
        Profile.AUG2026,
        context=(context["input_tokens"], context["output_tokens"]),
    )


def item_of(item: Json, pieces: Sequence[str] | None = None) -> OutputItem:
    """A recorded item as one that the simulator writes."""
    match item["type"]:
        case "reasoning":
            said = [part["text"] for part in item["summary"]]
            blob = item.get("encrypted_content", UNSET)
            return ReasoningItem(item["id"], pieces or said, blob)
        case "function_call":
            call = Call(item["call_id"], item["name"], item["arguments"])
            return CallItem(item["id"], call)
        case _:
            (part,) = item["content"]
            cited = [note["url"] for note in part["annotations"]]
            return MessageItem(item["id"], pieces or _pieces(part), cited=cited)


def _pieces(part: Json) -> list[str]:
    """A text cut so that each marker of a citation is a piece."""
    pieces, at = [], 0
    for note in part["annotations"]:
        pieces += [part["text"][at : note["start_index"]]]
        at = note["end_index"]
        pieces += [part["text"][note["start_index"] : at]]
    return [*pieces, part["text"][at:]]


@recorded("xai-responses/ruby.*.jsonl")
def test_recorded_responses_are_written_again_byte_for_byte(path: Path) -> None:
    """Keys, their order, numbers, usage and cost: of whole answers and of the end of streams."""
    *_, line = path.read_bytes().splitlines()
    stream = ".stream." in path.name
    body = msgspec.json.decode(line)["response"] if stream else msgspec.json.decode(line)

    written = wire.response(
        echo_of(body, stream=stream),
        Outcome(),
        output=[
            item if item["type"] == "web_search_call" else item_of(item).done()
            for item in body["output"]
        ],
        usage=usage_of(body),
        completed_at=body["completed_at"],
    )

    assert msgspec.json.encode(written) in line


@recorded("xai-responses/ruby.*.stream.jsonl")
def test_recorded_streams_are_written_again_byte_for_byte(path: Path) -> None:
    """From its items and the pieces in which they came, every event of a stream follows."""
    lines = path.read_bytes().splitlines()
    events: list[Json] = [msgspec.json.decode(line) for line in lines]
    body = events[-1]["response"]
    echo = echo_of(body, stream=True)
    echo = msgspec.structs.replace(echo, created_at=events[0]["response"]["created_at"])
    pieces: dict[int, list[str]] = {}
    for event in events:
        if event["type"].endswith("text.delta"):
            pieces.setdefault(event["output_index"], []).append(event["delta"])

    writer = EventWriter()
    begun = wire.response(echo, Outcome(status="in_progress"))
    for type_ in ("response.created", "response.in_progress"):
        writer.add(type_, response=begun)
    for index, item in enumerate(body["output"]):
        item_of(item, pieces.get(index)).write(writer, index)
    writer.add("response.completed", response=body)

    written = [
        frame.data.partition(b"\ndata: ")[2].removesuffix(b"\n\n") for frame in writer.frames
    ]
    assert written == lines


@given(st.text())
def test_the_quick_way_of_text_writes_what_any_event_is(text: str) -> None:
    """A delta put together from ready bytes is the one that is encoded as a whole."""
    writer = EventWriter()
    writer.add_texts([text], "msg_1", 3)

    assert writer.frames[0].data == event_bytes(
        {
            "sequence_number": 0,
            "type": "response.output_text.delta",
            "content_index": 0,
            "delta": text,
            "item_id": "msg_1",
            "output_index": 3,
            "logprobs": [],
        }
    )


RESPONSE_ID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
OWNER = blobs.owner("Bearer xai-test", "grok-4.3")


@given(st.integers(1, 40_000), st.integers(0, 9), st.sampled_from(Kind))
def test_what_is_sealed_comes_out_again(tokens: int, index: int, kind: Kind) -> None:
    """Unpadded base64 of 6.3 characters a token, from a size on that a seal needs."""
    sealed = Sealed(kind, RESPONSE_ID, tokens, index)
    text = blobs.seal(sealed, OWNER)

    assert blobs.unseal(text, OWNER) == sealed
    assert "=" not in text
    assert abs(len(text) - max(52, 6.3 * tokens - 54)) <= 4


@given(st.data())
def test_nothing_but_the_whole_blob_is_read(data: st.DataObject) -> None:
    """Not with one character changed, cut off or put behind, nor by another owner."""
    text = blobs.seal(Sealed(Kind.REASONING, RESPONSE_ID, 30), OWNER)
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from("Aa0+/=_é").filter(lambda it: it != text[at]))

    for changed in (text[:at] + other + text[at + 1 :], text[:at], f"{text}{other}"):
        assert blobs.unseal(changed, OWNER) is None
    for key, model in (("Bearer other", "grok-4.3"), ("Bearer xai-test", "grok-4.5")):
        assert blobs.unseal(text, blobs.owner(key, model)) is None
    assert blobs.owner("k", "grok-4.20-0309-reasoning") == blobs.owner("k", "grok-4.20-multi-agent")


@pytest.mark.parametrize(
    ("given", "also"),
    [
        (
            {"role": "assistant", "content": "Hi"},
            {
                "content": [{"type": "output_text", "text": "Hi", "annotations": [{}]}],
                "id": "msg_1",
                "role": "assistant",
                "type": "message",
                "status": "completed",
            },
        ),
        (
            {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"},
            {
                "arguments": "{}",
                "call_id": "c",
                "name": "add",
                "type": "function_call",
                "id": "fc_1",
                "status": "completed",
            },
        ),
        (
            {"type": "reasoning", "summary": [], "encrypted_content": "x"},
            {"id": "rs_1", "summary": [], "type": "reasoning", "encrypted_content": "x"},
        ),
    ],
)
def test_items_without_ids_mean_the_same(given: Json, also: Json) -> None:
    """Ids, status and annotations may be left out; anything else is another item."""
    reader = ItemReader()
    forms = [reader.read_one(msgspec.json.encode(item)).form for item in (given, also)]

    assert forms[0] == forms[1]
    assert forms[0] != reader.read_one(msgspec.json.encode({**given, **_changed(given)})).form


def _changed(item: Json) -> Json:
    key = {"message": "content", "function_call": "arguments", "reasoning": "encrypted_content"}
    return {key[item.get("type", "message")]: "another"}
