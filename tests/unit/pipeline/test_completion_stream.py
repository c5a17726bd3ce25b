"""The stream parser: every shape of bytes that a provider may send, cut anywhere."""

import itertools
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.growth import is_linear, took_s
from tests.support.recordings import recorded
from tests.support.slowness import slowness
from turnline.worker.errors import ReplyTooLarge
from turnline.worker.pipeline.call_parts import ToolCallCollector, ToolCallDelta, ToolCallParts
from turnline.worker.pipeline.event_bytes import EVENT_MAX_BYTES
from turnline.worker.pipeline.shapes import failure_of_body
from turnline.worker.pipeline.stream import CompletionStream
from turnline.worker.pipeline.stream_events import (
    EmptyDelta,
    FinishReason,
    MalformedFrame,
    NotAStream,
    OverLimit,
    ProviderUsage,
    ReasoningDelta,
    Refusal,
    ResponseNamed,
    StreamDone,
    StreamEvent,
    StreamFailed,
    TextDelta,
    UsageReport,
)


def frame(**fields: object) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def delta(**fields: object) -> bytes:
    return frame(choices=[{"index": 0, "delta": fields}])


def sse(*payloads: bytes) -> bytes:
    return b"".join(b"data: " + payload + b"\n\n" for payload in payloads)


def read(*pieces: bytes) -> list[StreamEvent]:
    stream = CompletionStream()
    events = [event for piece in pieces for event in stream.feed(piece)]
    return events + stream.close()


HEY = sse(delta(content="He"), delta(content="y"))
HEY_EVENTS = [TextDelta("He"), TextDelta("y")]
FINISH = frame(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
USAGE = frame(
    choices=[],
    usage={
        "prompt_tokens": 288,
        "completion_tokens": 27,
        "total_tokens": 628,
        "prompt_tokens_details": {"text_tokens": 288, "cached_tokens": 287},
        "completion_tokens_details": {"reasoning_tokens": 313},
        "num_sources_used": 0,
        "cost_in_usd_ticks": 739000,
    },
)
REPORT = UsageReport(ProviderUsage(288, 27, 313, 287, 628, 739000))
BOM = b"\xef\xbb\xbf"
BIG = "x" * (4 << 20)
DEEP = b"[" * 30_000 + b"]" * 30_000

SHAPES: dict[str, tuple[bytes, list[StreamEvent]]] = {
    **{
        f"whole_with_done_{n}": (
            frame(choices=[{"message": {"content": "Hey"}, "finish_reason": "stop"}]) + behind,
            [TextDelta("Hey"), FinishReason("stop", alone=False), StreamDone()],
        )
        for n, behind in enumerate(
            (b"\n\ndata: [DONE]\n\n", b"data: [DONE]", b"\r\ndata:[DONE]\r\n", b"\n[DONE]\n")
        )
    },
    "plain": (HEY, HEY_EVENTS),
    "keepalive_comments": (b": keepalive\n\n" + HEY + b": keepalive\n\n:\n\n", HEY_EVENTS),
    "comment_within_an_event": (b": k\n" + HEY, HEY_EVENTS),
    "bom": (BOM + HEY, HEY_EVENTS),
    "blank_lines_first": (b"\n\r\n\n" + HEY, HEY_EVENTS),
    "crlf": (HEY.replace(b"\n", b"\r\n"), HEY_EVENTS),
    "cr": (HEY.replace(b"\n", b"\r"), HEY_EVENTS),
    "bom_crlf": (BOM + HEY.replace(b"\n", b"\r\n"), HEY_EVENTS),
    "mixed_line_ends": (
        b"data: " + delta(content="He") + b"\r\n\rdata: " + delta(content="y") + b"\n\r\n",
        HEY_EVENTS,
    ),
    "three_newlines": (HEY.replace(b"\n\n", b"\n\n\n"), HEY_EVENTS),
    "no_space_after_colon": (HEY.replace(b"data: ", b"data:"), HEY_EVENTS),
    "multi_line_data": (
        b'data: {"choices":[{"delta":\ndata: {"content":"He"}}]}\n\n' + sse(delta(content="y")),
        HEY_EVENTS,
    ),
    "multi_line_data_crlf": (
        b'data: {"choices":[{"delta":\r\ndata: {"content":"He"}}]}\r\n\r\n',
        [TextDelta("He")],
    ),
    "other_fields": (
        b"event: message\nid: 7\nretry: 10\n" + HEY + b"unknown: 1\n\n",
        HEY_EVENTS,
    ),
    "fields_after_data": (HEY.replace(b"\n\n", b"\nid: 1\n\n"), HEY_EVENTS),
    "garbage_line": (b"garbage without a colon\n\n" + HEY + b"more\ngarbage\n\n", HEY_EVENTS),
    "last_event_without_blank_line": (HEY + b"data: " + USAGE, [*HEY_EVENTS, REPORT]),
    "last_event_with_one_newline": (HEY + b"data: " + USAGE + b"\n", [*HEY_EVENTS, REPORT]),
    "empty_data": (b"data:\n\ndata: \n\n" + HEY, HEY_EVENTS),
    "four_megabytes": (sse(delta(content=BIG)), [TextDelta(BIG)]),
    "data_null": (sse(b"null") + HEY, HEY_EVENTS),
    "data_array": (sse(b"[1,2]") + HEY, HEY_EVENTS),
    "data_number": (sse(b"17") + HEY, HEY_EVENTS),
    "data_string": (sse(b'"x"') + HEY, HEY_EVENTS),
    "choices_null": (sse(frame(choices=None)) + HEY, HEY_EVENTS),
    "choices_missing": (sse(frame(object="chat.completion.chunk")) + HEY, HEY_EVENTS),
    "delta_null": (sse(frame(choices=[{"delta": None}])) + HEY, [EmptyDelta(), *HEY_EVENTS]),
    "delta_missing": (sse(frame(choices=[{}])) + HEY, [EmptyDelta(), *HEY_EVENTS]),
    "role_only": (sse(delta(role="assistant")) + HEY, [EmptyDelta(), *HEY_EVENTS]),
    "content_null": (sse(delta(content=None)) + HEY, [EmptyDelta(), *HEY_EVENTS]),
    "content_as_a_number": (sse(delta(content=5)) + HEY, [TextDelta("5"), *HEY_EVENTS]),
    "unknown_keys": (sse(delta(content="He", audio=None, x={"y": [1]})), [TextDelta("He")]),
    "reasoning": (
        sse(delta(reasoning_content="hm"), delta(content="a")),
        [ReasoningDelta("hm"), TextDelta("a")],
    ),
    "refusal": (sse(delta(refusal="no")), [Refusal("no")]),
    "done": (HEY + sse(b"[DONE]"), [*HEY_EVENTS, StreamDone()]),
    "done_only": (sse(b"[DONE]"), [StreamDone()]),
    "done_without_blank_line": (HEY + b"data: [DONE]", [*HEY_EVENTS, StreamDone()]),
    "data_after_done": (sse(b"[DONE]") + HEY, [StreamDone()]),
    "an_error_after_done_in_one_event": (
        b"data:[DONE]\ndata:{}\nevent:error\n\n",
        [StreamDone()],
    ),
    "finish": (sse(FINISH), [FinishReason("stop")]),
    "finish_on_content": (
        sse(frame(choices=[{"delta": {"content": "a"}, "finish_reason": "stop"}])),
        [TextDelta("a"), FinishReason("stop", alone=False)],
    ),
    "empty_finish": (
        sse(frame(choices=[{"delta": {}, "finish_reason": ""}])),
        [FinishReason("")],
    ),
    "usage": (sse(USAGE), [REPORT]),
    "usage_null": (sse(frame(choices=[], usage=None)) + HEY, HEY_EVENTS),
    "usage_zero": (
        sse(frame(choices=[], usage={"prompt_tokens": 0, "completion_tokens": 0})),
        [],
    ),
    "usage_on_content": (
        sse(frame(choices=[{"delta": {"content": "a"}}], usage={"prompt_tokens": 5})),
        [
            TextDelta("a"),
            UsageReport(ProviderUsage(prompt_tokens=5, total_tokens=5), alone=False),
        ],
    ),
    "usage_as_floats": (
        sse(frame(choices=[], usage={"prompt_tokens": 5.0, "total_tokens": "many"})),
        [UsageReport(ProviderUsage(prompt_tokens=5, total_tokens=5))],
    ),
    "cached_above_prompt": (
        sse(
            frame(
                choices=[],
                usage={
                    "prompt_tokens": 7,
                    "total_tokens": 7,
                    "prompt_tokens_details": {"cached_tokens": 161},
                    "cost_in_usd_ticks": 0,
                },
            )
        ),
        [UsageReport(ProviderUsage(7, 0, 0, 7, 7, 0))],
    ),
    "named_once": (
        sse(
            frame(id="r1", model="m", choices=[{"delta": {"content": "He"}}]),
            frame(id="r2", model="n", choices=[{"delta": {"content": "y"}}]),
        ),
        [ResponseNamed("r1", "m"), *HEY_EVENTS],
    ),
    "error_flat": (
        HEY + sse(frame(code="c", error="text")),
        [*HEY_EVENTS, StreamFailed("c", "text")],
    ),
    "error_text_only": (sse(frame(error="text")), [StreamFailed("", "text")]),
    "error_nested": (
        sse(frame(error={"message": "m", "type": "t", "code": "c"})),
        [StreamFailed("c", "m")],
    ),
    "error_typed": (
        sse(frame(type="error", error={"message": "m"})),
        [StreamFailed("", "m")],
    ),
    "error_typed_without_error": (sse(frame(type="error", message="m")), [StreamFailed("", "m")]),
    "error_code_and_message": (sse(frame(code=14, message="m")), [StreamFailed("14", "m")]),
    "error_event_without_error": (
        b"event: error\n" + sse(frame(message="m")),
        [StreamFailed("", "m")],
    ),
    "error_event_of_text": (b"event: error\ndata: oh no\n\n", [StreamFailed("", "oh no")]),
    "error_event_of_a_string": (b'event: error\ndata: "oh no"\n\n', [StreamFailed("", "oh no")]),
    "error_null": (sse(frame(choices=[{"delta": {"content": "a"}}], error=None)), [TextDelta("a")]),
    "error_beside_choices": (
        sse(frame(choices=[{"delta": {}}], error="text", code="c")),
        [StreamFailed("c", "text")],
    ),
    "truncated_json": (HEY + sse(b'{"choices":[{"del'), [*HEY_EVENTS, MalformedFrame("json")]),
    "half_an_event_at_the_end": (
        HEY + b'data: {"choices":[{"del',
        [*HEY_EVENTS, MalformedFrame("json")],
    ),
    "invalid_utf8": (
        sse(b'{"choices":[{"delta":{"content":"\xff"}}]}'),
        [MalformedFrame("utf8")],
    ),
    "invalid_utf8_in_what_is_ignored": (
        sse(b'{"choices":[{"delta":{"content":"He"}}],"\xff":1}', b'{"\xff":1}'),
        [TextDelta("He"), MalformedFrame("utf8")],
    ),
    "a_line_end_within_json": (
        b'data: {"choices":\n[]}\n\n\ndata: {"choices":\n[]}\n\n' + HEY,
        [MalformedFrame("json"), MalformedFrame("json"), *HEY_EVENTS],
    ),
    "nested_too_deeply": (sse(DEEP) + HEY, [MalformedFrame("too_deep"), *HEY_EVENTS]),
    "nested_too_deeply_in_an_error": (
        b"event: error\n" + sse(DEEP) + sse(b'{"error":{"message":' + DEEP + b"}}"),
        [MalformedFrame("too_deep")] * 2,
    ),
    "nested_too_deeply_in_what_is_ignored": (
        sse(b'{"choices":[{"delta":{"content":"He"}}],"x":' + DEEP + b"}"),
        [MalformedFrame("too_deep")],
    ),
    "body_nested_too_deeply": (DEEP, [NotAStream(len(DEEP))]),
    "usage_beyond_belief": (
        sse(
            b'{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":%b,"total_tokens":1e30,'
            b'"cost_in_usd_ticks":%b}}' % (b"9" * 19, b"9" * 17)
        ),
        [UsageReport(ProviderUsage(prompt_tokens=5, total_tokens=5))],
    ),
    "negative_cost": (
        sse(b'{"choices":[],"usage":{"prompt_tokens":5,"cost_in_usd_ticks":-1}}'),
        [UsageReport(ProviderUsage(prompt_tokens=5, total_tokens=5))],
    ),
    "blank_lines_before_a_body": (b"\r\n\n\n[]", [NotAStream(2)]),
    "a_mark_behind_a_blank_line": (b"\n\n" + BOM + HEY, HEY_EVENTS[1:]),
    "utf8": (sse(delta(content="Olá 👋")), [TextDelta("Olá 👋")]),
    "json_body": (frame(code="c", error="text"), [StreamFailed("c", "text")]),
    "json_body_with_bom": (BOM + frame(code="c", error="text"), [StreamFailed("c", "text")]),
    "json_string_body": (b'"text"', [StreamFailed("", "text")]),
    "whole_completion": (
        frame(choices=[{"message": {"content": "x"}}]),
        [TextDelta("x"), StreamDone()],
    ),
    "html": (b"<html><body>502</body></html>", [NotAStream(29)]),
    "json_array_body": (b"[]", [NotAStream(2)]),
    "empty": (b"", []),
    "half_a_bom": (b"\xef\xbb", []),
    "tool_call": (
        sse(
            delta(
                tool_calls=[
                    {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}},
                    {"index": 1, "function": None},
                ]
            )
        ),
        [ToolCallDelta(0, "c", "f", "{}"), ToolCallDelta(1)],
    ),
    "tool_call_with_object_arguments": (
        sse(delta(tool_calls=[{"id": "c", "function": {"name": "f", "arguments": {"a": 1}}}])),
        [ToolCallDelta(None, "c", "f", '{"a":1}')],
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str) -> None:
    """Each shape of a stream gives exactly its events, none lost and none invented."""
    data, events = SHAPES[shape]

    assert read(data) == events


@pytest.mark.parametrize("shape", [s for s in SHAPES if len(SHAPES[s][0]) < 2000])
def test_shapes_byte_by_byte(shape: str) -> None:
    """It makes no difference that the bytes come one at a time."""
    data, events = SHAPES[shape]

    assert read(*(data[i : i + 1] for i in range(len(data)))) == events


SMALL = [data for data, _ in SHAPES.values() if len(data) < 2000]


@given(
    st.lists(st.sampled_from(SMALL), min_size=1, max_size=4),
    st.lists(st.integers(0, 4000), max_size=12),
)
def test_any_cutting_gives_the_same_events(bodies: list[bytes], cuts: list[int]) -> None:
    """Whatever stands in a stream, its events do not depend on how it is cut."""
    body = b"".join(bodies)
    ends = sorted({min(cut, len(body)) for cut in cuts} | {0, len(body)})

    pieces = [body[a:b] for a, b in itertools.pairwise(ends)]

    assert read(*pieces) == read(body)


@pytest.mark.promise("P9")
@given(st.lists(st.binary(max_size=40), max_size=6))
def test_noise_never_raises(pieces: list[bytes]) -> None:
    """Any bytes at all are read without an exception."""
    read(*pieces)
    read(b"data: x\n\n", *pieces)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_any_json_in_any_field_never_raises(value: object) -> None:
    """A field of any type says nothing, or something, but breaks nothing."""
    for fields in (
        {"choices": value},
        {"choices": [{"delta": value}]},
        {"choices": [{"delta": {"content": value, "tool_calls": value}}]},
        {"choices": [], "usage": value},
        {"choices": [], "usage": {"prompt_tokens": value}},
        {"error": value},
    ):
        read(sse(frame(**fields)))


def test_four_megabytes_in_small_reads_take_no_time() -> None:
    """The bytes of a long event are not copied again for each read."""
    data = sse(delta(content=BIG))
    began = time.process_time()

    events = read(*(data[i : i + 4096] for i in range(0, len(data), 4096)))

    assert events == [TextDelta(BIG)]
    assert (time.process_time() - began) / slowness() < 2


def test_blank_lines_before_the_first_event_are_not_kept() -> None:
    """A peer that keeps the connection alive with line ends takes no memory."""
    stream = CompletionStream()

    for _ in range(1_000):
        assert stream.feed(b"\n\r\n \n") == []

    assert len(stream._bytes._buffer) < 8
    assert stream.feed(HEY) == HEY_EVENTS


def test_an_error_response_nested_too_deeply_is_text() -> None:
    """Whatever came is there to be classified."""
    assert failure_of_body(DEEP) == StreamFailed("", DEEP[: 64 * 1024].decode())


TOOL_SHAPES: dict[str, tuple[list[tuple[Any, ...]], list[tuple[str, str, str]]]] = {
    "whole": ([(0, "c", "f", "{}")], [("c", "f", "{}")]),
    "22_fragments": (
        [(0, "c", "f", '{"a"'), (0, None, None, ":1"), (0, None, None, "}")],
        [("c", "f", '{"a":1}')],
    ),
    "23_two_by_index": (
        [(0, "c", "f", "{}"), (1, "d", "g", "{}")],
        [("c", "f", "{}"), ("d", "g", "{}")],
    ),
    "interleaved": (
        [(0, "c", "f", "{"), (1, "d", "g", "["), (0, None, None, "}"), (1, None, None, "]")],
        [("c", "f", "{}"), ("d", "g", "[]")],
    ),
    "24_id_in_its_own_delta": (
        [(0, "c"), (0, None, "f"), (0, None, None, "{}")],
        [("c", "f", "{}")],
    ),
    "id_after_the_name": ([(0, None, "f"), (0, "c", None, "{}")], [("c", "f", "{}")]),
    "no_index_whole": (
        [(None, "c", "f", "{}"), (None, "d", "g", "{}")],
        [("c", "f", "{}"), ("d", "g", "{}")],
    ),
    "no_index_fragments": (
        [
            (None, "c", "f", "{"),
            (None, None, None, "}"),
            (None, "d", "g", "{"),
            (None, None, None, "}"),
        ],
        [("c", "f", "{}"), ("d", "g", "{}")],
    ),
    "no_index_same_id": ([(None, "c", "f", "{"), (None, "c", None, "}")], [("c", "f", "{}")]),
    "no_index_same_function_twice": (
        [(None, "c", "f", "1"), (None, "d", "f", "2")],
        [("c", "f", "1"), ("d", "f", "2")],
    ),
    "index_jump_in_fragments": (
        [(0, "c", "f", "{}"), (5, "d", "g", "{"), (5, None, None, "}")],
        [("c", "f", "{}"), ("d", "g", "{}")],
    ),
    "all_under_index_0": (
        [(0, "c", "f", "1"), (0, "d", "g", "2")],
        [("c", "f", "1"), ("d", "g", "2")],
    ),
    "all_under_index_0_in_pieces": (
        [
            (0, "c", "f", ""),
            (0, None, None, '{"a":1}'),
            (0, "d", "f", ""),
            (0, None, None, '{"a":2}'),
        ],
        [("c", "f", '{"a":1}'), ("d", "f", '{"a":2}')],
    ),
    "all_under_index_0_without_ids": (
        [(0, None, "f", '{"a":1}'), (0, None, "f", '{"a":2}')],
        [("", "f", '{"a":1}'), ("", "f", '{"a":2}')],
    ),
    "all_under_index_0_ids_alone": (
        [(0, "c"), (0, None, "f"), (0, "d"), (0, None, "g"), (0, None, None, "{}")],
        [("c", "f", ""), ("d", "g", "{}")],
    ),
    "one_id_for_all": (
        [(0, "c", "f", "{}"), (1, "c", "g", "{}")],
        [("c", "f", "{}"), ("c", "g", "{}")],
    ),
    "whole_again": (
        [(0, "c", "f", '{"a":1,'), (0, None, None, '"b":2}'), (0, "c", "f", '{"a": 1, "b": 2}')],
        [("c", "f", '{"a":1,"b":2}')],
    ),
    "whole_again_without_id": (
        [(0, None, "f", '{"a":1}'), (0, None, "f", '{"a": 1}')],
        [("", "f", '{"a":1}')],
    ),
    "arguments_so_far_each_time": (
        [(0, "c", "f", '{"a"'), (0, "c", "f", '{"a":1'), (0, "c", "f", '{"a":1}')],
        [("c", "f", '{"a":1}')],
    ),
    "an_object_that_begins_like_its_part": (
        [(0, "c", "f", '{"a":'), (0, None, None, '{"a":1}}')],
        [("c", "f", '{"a":{"a":1}}')],
    ),
    "another_id_with_every_piece": (
        [(0, "c", "f", ""), (0, "d", None, '{"a"'), (0, "e", None, ":1}")],
        [("c", "f", '{"a":1}')],
    ),
    "another_index_with_every_piece": (
        [(0, "c", "f", ""), (1, None, None, '{"a"'), (2, None, None, ":1}")],
        [("c", "f", '{"a":1}')],
    ),
    "name_in_every_piece_without_id": (
        [(None, None, "f", '{"a"'), (None, None, "f", ":1}")],
        [("", "f", '{"a":1}')],
    ),
    "name_that_grows": (
        [(0, "c", "get"), (0, "c", "get_weather", "{}")],
        [("c", "get_weather", "{}")],
    ),
    "an_empty_object_first": (
        [(0, "c", "f", "{}"), (0, None, None, '{"a":1}')],
        [("c", "f", '{"a":1}')],
    ),
    "half_a_character_in_each_piece": (
        [(0, "c", "f", '{"a":"\ud83d'), (0, None, None, '\ude00"}')],
        [("c", "f", '{"a":"😀"}')],
    ),
    "function_call_and_the_same_in_tool_calls": (
        [(-1, None, "f", '{"a":1}'), (0, "c", "f", '{"a": 1}')],
        [("c", "f", '{"a": 1}')],
    ),
    "missing_id": ([(0, None, "f", "{}")], [("", "f", "{}")]),
    "25_empty_arguments": ([(0, "c", "f", "")], [("c", "f", "")]),
    "25_null_arguments": ([(0, "c", "f")], [("c", "f", "")]),
    "name_in_fragments": (
        [(0, "c", "get_"), (0, None, "weather", "{}")],
        [("c", "get_weather", "{}")],
    ),
    "name_repeated": ([(0, "c", "f", "{"), (0, "c", "f", "}")], [("c", "f", "{}")]),
}


@pytest.mark.parametrize("shape", TOOL_SHAPES)
def test_tool_calls(shape: str) -> None:
    """Calls are put together whatever shape their deltas have."""
    deltas, calls = TOOL_SHAPES[shape]
    collector = ToolCallCollector()

    for part in deltas:
        collector.add(ToolCallDelta(*part))

    assert collector.calls() == [ToolCallParts(*call) for call in calls]
    assert bool(collector) is bool(calls)


@recorded("xai/chat.*streaming*.jsonl")
def test_recorded_streams(path) -> None:
    """Recorded streams give their text, calls and usage, and keep xAI's arithmetic."""
    lines = path.read_bytes().splitlines()
    frames = [json.loads(line) for line in lines]
    deltas = [choice["delta"] for f in frames for choice in f["choices"]]

    events = read(sse(*lines, b"[DONE]"))

    text = "".join(e.text for e in events if isinstance(e, TextDelta))
    assert text == "".join(d.get("content", "") for d in deltas)
    calls = [call for d in deltas for call in d.get("tool_calls", [])]
    seen = [e for e in events if isinstance(e, ToolCallDelta)]
    assert [(e.call_id, e.arguments) for e in seen] == [
        (c["id"], c["function"]["arguments"]) for c in calls
    ]
    (usage,) = [e.usage for e in events if isinstance(e, UsageReport)]
    assert usage.total_tokens == frames[-1]["usage"]["total_tokens"]
    assert usage.total_tokens == (
        usage.prompt_tokens + usage.completion_tokens + usage.reasoning_tokens
    )
    assert events[-1] == StreamDone()


PAD = "x" * 100_000
COMMENTS = b": keepalive\n\n" * 500 + b": " + PAD.encode() + b"\n\n"

LIMITED: dict[str, tuple[bytes, int, str]] = {
    "text": (sse(delta(content="é" * 1000)), 2_200, "text"),
    "text in few frames": (sse(delta(content="x" * 1_000_000)), 5, "text"),
    "reasoning": (sse(delta(reasoning_content="x" * 10_000)), 500, "reasoning"),
    "comments": (COMMENTS, 700, "silence"),
    "blank lines": (b"\n" * 1_000_000, 80, "silence"),
    "empty deltas": (sse(frame(x=PAD, choices=[{"delta": {}}])), 700, "silence"),
    "role only": (sse(frame(x=PAD, choices=[{"delta": {"role": "assistant"}}])), 700, "silence"),
    "frames of no known kind": (sse(frame(x=PAD)), 700, "silence"),
    "one line without an end": (b": " + b"x" * 1_000_000, 10, "event"),
    "one event without an end": (b"data: x\n" * 100_000, 12, "event"),
    "finish reasons": (
        sse(frame(x=PAD, choices=[{"delta": {}, "finish_reason": "stop"}])),
        700,
        "silence",
    ),
    "little text in large frames": (
        sse(frame(x=PAD, choices=[{"delta": {"content": "x"}}])),
        6_000,
        "response",
    ),
}


@pytest.mark.parametrize("name", LIMITED)
def test_a_response_without_end_is_read_up_to_a_limit(name: str) -> None:
    """Whatever a provider sends for ever, it comes to an end by name, and little is kept of it."""
    data, times, what = LIMITED[name]
    stream = CompletionStream()
    stream.feed(HEY)

    kept = 0
    for _ in range(times):
        events = stream.feed(data)
        kept = max(kept, len(stream._bytes._buffer))
        if events and isinstance(events[-1], OverLimit):
            break

    assert events[-1] == OverLimit(what)
    assert kept <= EVENT_MAX_BYTES + len(data)
    assert stream.feed(HEY) == stream.close() == []


def test_a_body_without_end_is_read_up_to_a_limit() -> None:
    """A body that may be a completion is kept up to the longest event, any other one much less."""
    stream, other = CompletionStream(), CompletionStream()
    stream.feed(b'{"a":"')
    other.feed(b"<html>")

    assert [stream.feed(b"x" * 2**20) for _ in range(8)][-1] == [OverLimit("event")]
    assert other.feed(b"x" * 2**20) == [NotAStream(64 * 1024)]


def test_a_frame_of_a_million_values_is_not_taken_apart() -> None:
    """A few bytes on the wire may stand for many in memory: there is a limit to that."""
    values = sse(b'{"choices":[{"delta":{"content":[' + b"{}," * 1_100_000 + b"{}]}}]}")

    assert read(values) == [MalformedFrame("too_complex")]


def many_calls(number: int) -> ToolCallCollector:
    collector = ToolCallCollector()
    for n in range(number):
        collector.add(ToolCallDelta(n, f"c{n}", "f", "{}"))
    return collector


def test_calls_are_limited() -> None:
    """128 calls are taken; more, and arguments of more than 1 MiB, or 4 MiB in all, are not."""
    collector = many_calls(128)
    assert len(collector.calls()) == 128
    with pytest.raises(ReplyTooLarge) as many:
        collector.add(ToolCallDelta(500, "c500", "f", "{}"))
    assert many.value.code == "too_many_calls"

    collector = many_calls(1)
    collector.add(ToolCallDelta(0, None, None, "x" * (2**20 - 2)))
    with pytest.raises(ReplyTooLarge) as long:
        collector.add(ToolCallDelta(0, None, None, "x"))
    assert long.value.code == "arguments_too_large"

    collector = ToolCallCollector()
    word = ToolCallDelta(0, None, None, "word ")  # each begins like the one before it
    for _ in range(2**20 // 5):
        collector.add(word)
    with pytest.raises(ReplyTooLarge):
        collector.add(word)

    collector = many_calls(6)
    for n in range(4):
        collector.add(ToolCallDelta(n, None, None, "x" * 1_000_000))
    with pytest.raises(ReplyTooLarge) as all_long:
        collector.add(ToolCallDelta(4, None, None, "x" * 1_000_000))
    assert all_long.value.code == "arguments_too_large"


def test_many_pieces_of_arguments_take_no_time() -> None:
    """Half a megabyte in pieces of two characters, each with the name again, is put together."""
    collector = ToolCallCollector()
    began = time.process_time()

    collector.add(ToolCallDelta(0, "", "f", '{"a":"'))
    for _ in range(250_000):
        collector.add(ToolCallDelta(0, None, "f", "xy"))
    collector.add(ToolCallDelta(0, None, "f", '"}'))

    (call,) = collector.calls()
    assert len(call.arguments) == 500_008
    assert (time.process_time() - began) / slowness() < 2.5


@pytest.mark.parametrize(
    "arguments",
    [
        '{"a":' * 170_000,
        "{" * 1_000_000,
        '"' * 1_000_000,
        '"' + "\\" * 1_000_000,
        '{"a":[' + '"",' * 300_000,
    ],
    ids=["deep", "open", "quotes", "escapes", "texts"],
)
def test_arguments_that_cannot_be_read_hold_up_nobody(arguments: str) -> None:
    """A MiB of brackets or quotes is judged at once: no loop of ours looks at each character."""

    def walk(_: int) -> None:
        sum(character == "\\" for character in arguments)

    def judge(_: int) -> None:
        collector = ToolCallCollector()
        collector.add(ToolCallDelta(index=0, call_id="c", name="f", arguments=arguments))
        # An id that changes, without a name: is it the same call going on?
        collector.add(ToolCallDelta(index=0, call_id="d", arguments=" "))
        (call,) = collector.calls()
        assert call.arguments == arguments + " "

    pairs = [(took_s(judge, 1), took_s(walk, 1)) for _ in range(3)]
    judging_s, walking_s = map(min, zip(*pairs, strict=True))
    assert judging_s < 2.5 * walking_s


WHOLE_CALL = json.dumps({"title": "The Lord of the Rings", "pages": "x" * 100})


@pytest.mark.parametrize(
    "again",
    [
        [WHOLE_CALL.replace("title", "ti\x06le"), WHOLE_CALL],
        [WHOLE_CALL[:-1] + ', "more": 1}', WHOLE_CALL],
        [" " * 100],
        ["{" + " " * 100, "}"],
    ],
    ids=["broken", "longer", "space", "empty"],
)
def test_a_call_that_comes_again_and_again_in_a_broken_form_holds_up_nobody(
    again: list[str],
) -> None:
    """What came is not read anew with each of thousands of such calls."""

    def collect(deltas: int) -> None:
        collector = ToolCallCollector()
        collector.add(ToolCallDelta(index=0, call_id="c", name="f", arguments=WHOLE_CALL))
        for n in range(deltas):
            arguments = again[n % len(again)]
            collector.add(ToolCallDelta(index=0, call_id="c", name="f", arguments=arguments))
        assert [call.name for call in collector.calls()] == ["f"]

    assert is_linear(collect, 1_500)


def test_a_long_call_that_comes_again_without_arguments_holds_up_nobody() -> None:
    """A megabyte of arguments is decoded once, not with each repetition of the name."""
    long = ToolCallDelta(0, "c", "f", json.dumps({"a": ["x"] * 200_000}))
    began_s = time.process_time()
    collector = ToolCallCollector()
    collector.add(long)
    collector.add(ToolCallDelta(0, "c", "f", " "))
    collector.calls()
    once_s = time.process_time() - began_s
    for _ in range(1_000):
        collector.add(ToolCallDelta(0, "c", "f"))

    assert time.process_time() - began_s < 20 * once_s


def message(**fields: object) -> bytes:
    return frame(choices=[{"index": 0, "message": fields}])


@pytest.mark.parametrize(
    "again",
    [
        [delta(content="x" * 500, role=["assistant"])],
        [message(content="x" * 500)],
        [delta(content="x" * 500), message(content="x" * 500)],
        [delta(content=" " * 500), message(content="x")],
        [message(content="x" * 400, refusal="no")],
    ],
    ids=["odd deltas", "messages", "deltas and messages", "space and messages", "refusals"],
)
def test_a_long_reply_in_an_unusual_shape_holds_up_nobody(again: list[bytes]) -> None:
    """The text so far is not read anew with each chunk."""

    def read_all(chunks: int) -> None:
        stream = CompletionStream()
        for _ in range(chunks // len(again)):
            for payload in again:
                stream.feed(sse(payload))

    assert is_linear(read_all, 1_500)


@pytest.mark.parametrize("byte", [b" ", b"\n", b"["])
def test_a_response_in_single_bytes_holds_up_nobody(byte: bytes) -> None:
    """What came is not looked at anew with each byte."""

    def read_all(count: int) -> None:
        stream = CompletionStream()
        for _ in range(count):
            stream.feed(byte)

    assert is_linear(read_all, 15_000)


def test_measuring_a_long_reply_holds_up_nobody() -> None:
    """Near its limit the length is looked at often: only what came since is measured."""

    def read_all(empty: int) -> None:
        stream = CompletionStream()
        stream.feed(sse(delta(content="é" * (2 * 1024 * 1024 - 1_000))))
        comment = b": " + b"x" * 64 * 1024 + b"\n\n"
        for _ in range(empty):
            assert stream.feed(comment) == []

    once, many = (min(took_s(read_all, n) for _ in range(3)) for n in (1, 200))
    assert many < 20 * once
