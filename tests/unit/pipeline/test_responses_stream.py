"""The parser of `/v1/responses`: every event, fault and cut of its bytes, and what it keeps."""

import itertools
import json
import re
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.growth import is_linear
from tests.support.recordings import recorded
from tests.support.responses_events import (
    MODEL,
    USAGE,
    Fields,
    encoded,
    ending,
    event,
    events_of,
    function_call,
    message,
    opening,
    reasoning,
    refusal,
    response,
    sse,
    web_search,
    whole_stream,
)
from turnline.worker.pipeline.call_parts import ToolCallCollector, ToolCallDelta
from turnline.worker.pipeline.event_bytes import EVENT_MAX_BYTES
from turnline.worker.pipeline.responses_stream import (
    CITATIONS_MAX_CHARS,
    ITEMS_MAX,
    ITEMS_MAX_BYTES,
    ResponsesStream,
)
from turnline.worker.pipeline.stream_events import (
    CitationFound,
    EmptyDelta,
    FinishReason,
    MalformedFrame,
    NotAStream,
    OverLimit,
    ProviderUsage,
    ReasoningDelta,
    Refusal,
    ReplyItem,
    ResponseNamed,
    ServerTool,
    StreamDone,
    StreamEvent,
    StreamFailed,
    TextDelta,
    UsageReport,
)

REPORT = UsageReport(ProviderUsage(475, 32, 59, 320, 566, 4852500), alone=False)
NAMED = ResponseNamed("5b0e", MODEL)
STOP = [FinishReason("stop"), StreamDone()]


def read(*pieces: bytes) -> list[StreamEvent]:
    stream = ResponsesStream()
    events = [it for piece in pieces for it in stream.feed(piece)]
    return events + stream.close()


class Reply(NamedTuple):
    """What a reader makes of events."""

    text: str
    calls: list[tuple[str, str, str]]
    items: list[tuple[int, int, Any]]
    """Characters before it, calls before it, item."""
    end: str
    """A finish reason; "cut"; or how it failed."""

    @property
    def said(self) -> tuple[str, list[tuple[str, str, str]]]:
        return self.text, self.calls


def reply_of(events: list[StreamEvent]) -> Reply:
    collector = ToolCallCollector()
    kept: dict[int, tuple[int, int, Any]] = {}
    text, end = "", "cut"
    for it in events:
        match it:
            case TextDelta() | Refusal():
                text += it.text
            case ToolCallDelta():
                collector.add(it)
            case ReplyItem():
                kept[it.index] = (it.chars, it.calls, json.loads(it.item))
            case FinishReason():
                end = it.reason
            case StreamFailed() | MalformedFrame() | NotAStream() | OverLimit():
                end = type(it).__name__
                break
            case _:
                pass
    calls = [(it.call_id, it.name, it.arguments) for it in collector.calls()]
    return Reply(text, calls, [kept[index] for index in sorted(kept)], end)


def replied(*payloads: Fields, **how: Any) -> Reply:
    return reply_of(read(sse(payloads, **how)))


# What is said


def test_a_plain_answer_gives_its_events() -> None:
    """Name, thoughts, the reasoning item, text, usage and end, each in its place, none twice."""
    events = read(sse(whole_stream(reasoning("q3J", "Add."), message("12"))))

    kept = {"id": "rs_5b0e", "summary": [{"text": "Add.", "type": "summary_text"}]}
    item = encoded({**kept, "type": "reasoning", "status": "completed", "encrypted_content": "q3J"})
    assert [it for it in events if not isinstance(it, EmptyDelta)] == [
        NAMED,
        ReasoningDelta("Add"),
        ReasoningDelta("."),
        ReplyItem(0, item, 0, 0),
        TextDelta("12"),
        REPORT,
        *STOP,
    ]


CALLS = [function_call("add", '{"a":5,"b":7}', "call-0"), function_call("now", "{}", "call-1")]
SAID_CALLS = [("call-0", "add", '{"a":5,"b":7}'), ("call-1", "now", "{}")]
ITEMS = [reasoning(), message("Olá 👋, ", "there"), *CALLS]
SAID = ("Olá 👋, there", SAID_CALLS)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_text_and_parallel_calls(named: bool, ascii_only: bool, size: int) -> None:
    """With and without `event:` lines, in pieces of any length; the calls end the reply."""
    reply = replied(*whole_stream(*ITEMS, size=size), named=named, ascii_only=ascii_only)

    assert reply.said == SAID
    assert reply.end == "tool_calls"
    assert reply.items == [(0, 0, reasoning())]


def without(payloads: list[Fields], *kinds: str) -> list[Fields]:
    return [it for it in payloads if it["type"].removeprefix("response.") not in kinds]


DELTAS = ("output_text.delta", "refusal.delta", "function_call_arguments.delta")
PARTS = ("output_text.done", "refusal.done", "function_call_arguments.done", "content_part.done")
WHOLE = whole_stream(*ITEMS)
EMPTY = [*WHOLE[:-1], ending([])]
ODD_STREAMS = {
    "deltas_and_an_empty_end": EMPTY,
    "deltas_alone": without(EMPTY, "output_item.done", *PARTS),
    "deltas_and_parts": without(EMPTY, "output_item.done"),
    "parts_alone": without(EMPTY, "output_item.done", *DELTAS),
    "items_alone": without(EMPTY, *DELTAS, *PARTS),
    "items_without_announcement": without(EMPTY, "output_item.added", *DELTAS, *PARTS),
    "the_end_alone": [WHOLE[-1]],
    "the_end_and_the_opening": [*WHOLE[:2], WHOLE[-1]],
    "no_item_done": without(WHOLE, "output_item.done"),
    "content_parts_alone": [
        *opening(),
        *(
            event("response.content_part.done", part=part, output_index=1, content_index=n)
            for n, part in enumerate(ITEMS[1]["content"])
        ),
        *(it for n in (2, 3) for it in events_of(n, ITEMS[n])),
        ending([]),
    ],
    "no_opening": WHOLE[2:],
    "another_end": [*WHOLE[:-1], {**WHOLE[-1], "type": "response.done"}],
    "numbers_repeat": [{**it, "sequence_number": 7} for it in WHOLE],
    "no_numbers": [{**it, "sequence_number": None} for it in WHOLE],
    "ids_repeat": json.loads(json.dumps(WHOLE).replace("fc_call-1", "fc_call-0")),
    "an_end_without_reasoning": [*WHOLE[:-1], ending(ITEMS[1:])],
    "an_end_with_calls_alone": [*WHOLE[:-1], ending(ITEMS[2:])],
    "an_end_with_text_alone": [*WHOLE[:-1], ending(ITEMS[1:2])],
    "an_end_in_another_order": [*WHOLE[:-1], ending([*CALLS, *ITEMS[:2]])],
    "announced_with_all_arguments": [
        {**it, "item": CALLS[it["output_index"] - 2]}
        if it["type"] == "response.output_item.added" and it["output_index"] > 1
        else it
        for it in WHOLE
    ],
    "announced_with_all_arguments_alone": [
        *opening(),
        event("response.output_text.delta", delta=SAID[0], output_index=0),
        *(
            event("response.output_item.added", item=it, output_index=n)
            for n, it in enumerate(CALLS, 1)
        ),
        ending([]),
    ],
    "calls_without_ids_until_the_end": [
        {**it, "item": {**it["item"], "call_id": None, "id": None}}
        if it["type"] == "response.output_item.added"
        else it
        for it in without(WHOLE, "output_item.done")
    ],
}


@pytest.mark.parametrize("case", ODD_STREAMS)
def test_whatever_is_left_out_is_taken_from_elsewhere(case: str) -> None:
    """Deltas, parts, items and the end say the same: one of them is enough, and all are no more."""
    reply = replied(*ODD_STREAMS[case])

    assert reply.end == "tool_calls"
    text, calls = reply.said
    if case == "calls_without_ids_until_the_end":
        calls = [(want[0], *call[1:]) for want, call in zip(SAID_CALLS, calls, strict=True)]
    assert (text, calls) == SAID


def test_pieces_of_a_call_may_come_before_its_name() -> None:
    """They wait for it; the pieces of another call in between are not mixed in."""
    first, second = events_of(0, CALLS[0]), events_of(1, function_call("f", '{"c":[1]}', "call-1"))
    mixed = [
        it
        for pair in itertools.zip_longest(first[1:-1], second[1:-1])
        for it in pair
        if it is not None
    ]

    reply = replied(*opening(), *mixed, second[0], first[0], ending([]))

    assert reply.calls == [SAID_CALLS[0], ("call-1", "f", '{"c":[1]}')]


def test_interleaved_items_are_told_apart() -> None:
    """By their place in the output, whatever their ids."""
    streams = [events_of(n, it) for n, it in enumerate(ITEMS)]
    mixed = [it for row in itertools.zip_longest(*streams) for it in row if it is not None]

    assert replied(*opening(), *mixed, ending(ITEMS)).said == SAID
    assert replied(*opening(), *mixed, ending([])).said == SAID


def test_a_call_that_never_has_a_name_is_no_reply() -> None:
    """A call is missing: nobody knows which."""
    delta = event("response.function_call_arguments.delta", delta="{}", output_index=0)

    assert replied(*opening(), delta, ending([])).end == "MalformedFrame"


CONTRADICTIONS = {
    "text": ending([message("Hello")]),
    "less_text": ending([message("Hell")]),
    "arguments": ending([message("Hello there"), function_call("add", '{"a":6}')]),
    "another_call": ending([message("Hello there"), function_call("add", '{"a":5}', "call-9")]),
    "a_missing_call": [
        *events_of(2, function_call("now", "{}", "call-2")),
        ending([message("Hello there"), function_call("add", '{"a":5}')]),
    ],
    "a_part": event("response.output_text.done", text="Hello, there", output_index=0),
    "an_item": event("response.output_item.done", item=message("Hi"), output_index=0),
    "a_call": event(
        "response.output_item.done", item=function_call("add", "{}", "call-1"), output_index=1
    ),
    "another_call_in_its_place": event(
        "response.output_item.added", item=function_call("now", "{}", "call-2"), output_index=1
    ),
    "text_before_text": [
        *events_of(2, message("!")),
        event("response.output_text.delta", delta="more", output_index=0),
    ],
    "a_missing_piece": event("response.output_text.done", text="Hello here there", output_index=0),
    "a_content_part": event(
        "response.content_part.done",
        part={"type": "output_text", "text": "Hello"},
        output_index=0,
    ),
    "text_without_a_type": {"delta": " more", "output_index": 0},
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
@pytest.mark.parametrize("empty", [True, False])
def test_a_contradiction_is_no_reply(case: str, empty: bool) -> None:
    """Which of both is right, nobody knows: text or a call would be missing."""
    call = function_call("add", '{"a":5}')
    last = CONTRADICTIONS[case]
    more = last if isinstance(last, list) else [last]
    begun = [*events_of(0, message("Hello there")), *events_of(1, call)]

    reply = replied(
        *opening(),
        *begun,
        *more,
        ending([] if empty else [message("x")]),
        named=all("type" in it for it in more),
    )

    assert reply.end == "MalformedFrame"


@pytest.mark.parametrize("named", [True, False])
def test_a_little_space_at_the_end_is_no_contradiction(named: bool) -> None:
    """Some servers tidy up the whole text."""
    begun = without(events_of(0, message("Hello \n")), "output_text.done", "output_item.done")
    done = event("response.output_text.done", text="Hello", output_index=0)

    reply = replied(*opening(), *begun, done, ending([message("Hello")]), named=named)

    assert (reply.text, reply.end) == ("Hello \n", "stop")


def test_halves_of_a_character_in_two_deltas_are_one() -> None:
    """In text, refusals, thoughts and arguments; a whole that comes later is the same."""
    halves = ["a\ud83d", "\ude00b"]
    for item, head, key in (
        (message("a😀b"), "response.output_text", "delta"),
        (refusal("a😀b"), "response.refusal", "delta"),
        (function_call("f", "a😀b"), "response.function_call_arguments", "delta"),
    ):
        added, done = events_of(0, item)[:: len(events_of(0, item)) - 1]
        deltas = [event(f"{head}.{key}", delta=it, output_index=0) for it in halves]
        for ends in ([done, ending([item])], [ending([])], [ending([item])]):
            reply = replied(*opening(), added, *deltas, *ends, ascii_only=True)

            assert reply.text or reply.calls[0][2] == "a😀b"
            assert reply.text in ("a😀b", "")
            assert reply.end in {"stop", "tool_calls"}
        lone = replied(*opening(), added, deltas[0], ending([]), ascii_only=True)
        assert "a\ufffd" in (lone.text, *(it[2] for it in lone.calls))


def test_half_a_character_in_what_is_kept_is_replaced() -> None:
    """Nothing that was sent can keep an entry from being stored."""
    item = reasoning("q3J", "half \ud83d")
    source = {"type": "url_citation", "url": "https://x/\ud83d", "title": "\ud83d"}
    said = message("a", content=[{"type": "output_text", "text": "a", "annotations": [source]}])

    events = read(sse(whole_stream(item, said, web_search("\ud83d")), ascii_only=True))

    assert reply_of(events).end == "stop"
    for it in events:
        for name in getattr(it, "__struct_fields__", ()):
            value = getattr(it, name)
            assert not isinstance(value, str) or value.encode()


def test_refusals_are_shown_as_text() -> None:
    """In pieces, or as a whole."""
    assert replied(*whole_stream(refusal("I must not."))).said == ("I must not.", [])
    assert replied(ending([refusal("I must not.")])).said == ("I must not.", [])
    events = read(sse(whole_stream(refusal("No"))))
    assert Refusal("No") in events


# The end


def test_each_reason_for_a_cut_is_told() -> None:
    """A bound of tokens is chat's `length`; others keep their names; text so far counts."""
    half = [*opening(), *events_of(0, message("Hello"))[:3]]
    for why, reason in (
        ({"reason": "max_output_tokens"}, "length"),
        ({"reason": "max_prompt_tokens"}, "max_prompt_tokens"),
        ({"reason": "max_time_limit"}, "max_time_limit"),
        ({"reason": "content_filter"}, "content_filter"),
        ({"reason": 7}, "7"),
        ({}, "length"),
        (None, "length"),
    ):
        end = ending([], "incomplete", incomplete_details=why)
        assert replied(*half, end).end == reason
        assert replied(*half, end).text == "Hel"
    bare = event("response.incomplete", response={"id": "r"})
    assert replied(*half, bare).end == "length"


def test_what_a_cut_response_leaves() -> None:
    """Reasoning that is not complete is not kept; halves of text and of calls are as they came."""
    undone = reasoning("q3J", status="incomplete")
    assert replied(*opening(), ending([undone], "incomplete")) == ("", [], [], "length")
    half = message("Hel", status="incomplete")
    reply = replied(
        *opening(), *events_of(0, reasoning()), ending([reasoning(), half], "incomplete")
    )
    assert (reply.said, reply.end) == (("Hel", []), "length")
    assert reply.items == [(0, 0, reasoning())]
    begun = events_of(0, function_call("f", '{"a":1}'))[:2]
    for output in ([], [function_call("f", "", status="incomplete")]):
        reply = replied(*opening(), *begun, ending(output, "incomplete"))
        assert (reply.calls, reply.end) == ([("call-1", "f", '{"a')], "length")
    shorter = ending([message("He", status="incomplete")], "incomplete")
    begun = [*opening(), *events_of(0, message("Hello"))[:-3]]
    assert replied(*begun, shorter) == ("Hello", [], [], "length")


@pytest.mark.parametrize("kind", ["response.audio_transcript.delta", "output_text.delta"])
def test_words_of_a_kind_that_is_not_known_are_no_reply(kind: str) -> None:
    """They are not told; the reader refuses a reply that has nothing else."""
    stream = ResponsesStream()
    odd = event(kind, delta="Hi", output_index=0)
    whole = [it for it in whole_stream(message("Hi")) if "delta" not in it]

    events = stream.feed(sse([*opening(), odd, ending([])]))

    assert stream.unread
    assert reply_of(events).said == ("", [])
    assert replied(*whole[:2], odd, *whole[2:]).said == ("Hi", [])


ERROR = {"code": "server_error", "message": "The model failed."}
FAILURES: dict[str, tuple[Fields, StreamFailed]] = {
    "failed": (ending([], "failed", error=ERROR), StreamFailed(*ERROR.values())),
    "failed_without_error": (ending([], "failed"), StreamFailed("failed", "")),
    "failed_without_anything": (
        event("response.failed", response={"id": "r"}),
        StreamFailed("failed", ""),
    ),
    "failed_without_response": (event("response.failed"), StreamFailed("failed", "")),
    "failed_with_error_beside": (
        event("response.failed", error=ERROR),
        StreamFailed(*ERROR.values()),
    ),
    "cancelled": (ending([], "done", status="cancelled"), StreamFailed("failed", "")),
    "completed_with_error": (ending([], error=ERROR), StreamFailed(*ERROR.values())),
    "flat": (event("error", param=None, **ERROR), StreamFailed(*ERROR.values())),
    "with_param": (
        event("error", error={**ERROR, "param": "input[1]"}),
        StreamFailed(ERROR["code"], ERROR["message"], "input[1]"),
    ),
    "nested": (event("error", status=400, error=ERROR), StreamFailed(*ERROR.values())),
    "nested_without_code": (
        event("error", status=400, error={"message": "m"}),
        StreamFailed("400", "m"),
    ),
    "untyped": ({"error": {"message": "m", "type": "api_error"}}, StreamFailed("api_error", "m")),
    "flat_of_xai": (
        {"code": "invalid-argument", "error": "m"},
        StreamFailed("invalid-argument", "m"),
    ),
}


@pytest.mark.parametrize("case", FAILURES)
@pytest.mark.parametrize("after", range(0, len(WHOLE) - 1, 4))
def test_a_failure_anywhere_is_told(case: str, after: int) -> None:
    """Before the first event, in the middle of text or calls, or at the end."""
    payload, failure = FAILURES[case]

    events = read(sse(WHOLE[:after]), sse([payload], named="type" in payload))

    assert failure in events
    assert not any(isinstance(it, FinishReason | StreamDone) for it in events)
    assert events.index(failure) > events.index(REPORT) if REPORT in events else True


def test_what_looks_like_an_error_within_an_event_is_none() -> None:
    """The code that a tool ran, and a call of a tool that failed, are no errors of the reply."""
    odd = [
        event("response.code_interpreter_call_code.done", code="print(1)", output_index=0),
        event("response.mcp_call.failed", error="no such thing", output_index=0),
        event("response.other", detail="x", message="y", success=False),
    ]

    assert replied(*opening(), *odd, *events_of(1, message("Hi")), ending([])).said == ("Hi", [])


@pytest.mark.parametrize("count", range(len(WHOLE)))
def test_a_stream_without_its_end_is_no_reply(count: int) -> None:
    """EOF before the terminal event, wherever: the response was cut."""
    for rest in (b"", b": keepalive\n\n", b"data: [DONE]\n\n"):
        events = read(sse(WHOLE[:count]), rest)

        assert not any(isinstance(it, FinishReason | StreamDone) for it in events)


@pytest.mark.parametrize("rest", [b"data: [DONE]\n\n", b": k\n\n", sse([event("error", **ERROR)])])
def test_nothing_counts_behind_the_end(rest: bytes) -> None:
    """The terminal event says it all; [DONE] may come or not."""
    assert reply_of(read(sse(WHOLE) + rest)) == reply_of(read(sse(WHOLE)))
    assert reply_of(read(sse(WHOLE), rest)).said == SAID


def test_a_last_event_without_a_blank_line_counts() -> None:
    """Some proxies cut the last line end."""
    assert reply_of(read(sse(WHOLE).rstrip(b"\n"))).said == SAID


@pytest.mark.parametrize("tail", [b"", b"\n", b"\n\ndata: [DONE]\n\n"])
def test_a_whole_body_in_place_of_a_stream_is_a_reply(tail: bytes) -> None:
    """Some gateways answer so."""
    body = encoded(response("completed", ITEMS, usage=USAGE)) + tail

    reply = reply_of(read(body))

    assert (reply.said, reply.end) == (SAID, "tool_calls")
    assert reply.items == [(0, 0, reasoning())]
    assert REPORT in read(body)


def test_a_body_that_is_no_whole_reply_is_none() -> None:
    """One that is under way, of the other wire, or an error."""
    for status in ("queued", "in_progress"):
        assert reply_of(read(encoded(response(status)))).end == "MalformedFrame"
    chat = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}
    assert reply_of(read(encoded(chat))).end == "NotAStream"
    assert reply_of(read(encoded({"code": "c", "error": "m"}))).end == "StreamFailed"
    assert reply_of(read(encoded(response("failed")))).end == "StreamFailed"
    assert reply_of(read(encoded(response("incomplete")))).end == "length"
    assert replied({"type": "x", **chat}).end == "MalformedFrame"


# What stands beside text and calls


@pytest.mark.promise("P13")
def test_items_keep_their_places() -> None:
    """Each is told with the characters and calls before it, code points counted."""
    search, other = web_search(), reasoning("tco", id="tco_5b0e")
    items = [reasoning(), search, message("👋 "), other, message("you"), CALLS[0], reasoning("z")]

    wanted = [
        (0, 0, reasoning()),
        (0, 0, search),
        (2, 0, other),
        (5, 1, reasoning("z")),
    ]
    for stream in (whole_stream(*items), [ending(items)], [*opening(), ending(items)]):
        assert replied(*stream).items == wanted


def test_items_that_say_nothing_to_the_model_are_not_kept() -> None:
    """Reasoning without what it encrypts; the rest is kept without nulls, with a summary."""
    for blob in (None, "", 7):
        assert replied(*whole_stream(reasoning(None, encrypted_content=blob))).items == []
    bare = {"type": "reasoning", "id": "rs", "encrypted_content": "b", "content": None}
    kept = {"type": "reasoning", "id": "rs", "encrypted_content": "b", "summary": []}
    assert replied(ending([bare])).items == [(0, 0, kept)]
    for odd in ({"type": "a_later_kind", "text": "x"}, {"type": None}, {"type": ["message"]}, {}):
        assert replied(*opening(), ending([odd, message("x")])).said == ("x", [])


@pytest.mark.parametrize(("lists", "is_kept"), [(99, True), (100, False), (900, False)])
def test_an_item_that_others_may_not_read_is_not_kept(lists: int, is_kept: bool) -> None:
    """It would stand in the context for good; how deep one can read depends on its stack."""
    value: list[Any] = []
    for _ in range(lists - 1):
        value = [value]
    item = {"type": "x_call", "value": value}

    assert len(replied(*whole_stream(item, message("x"))).items) == is_kept


def test_the_end_has_the_last_word_on_an_item() -> None:
    """Encrypted reasoning may come with the terminal event alone."""
    early = {**reasoning(None), "encrypted_content": None}
    stream = [*opening(), *events_of(0, early), *events_of(1, message("x"))]

    assert replied(*stream, ending([reasoning("q"), message("x")])).items == [
        (0, 0, reasoning("q"))
    ]
    assert replied(*stream, ending([])).items == []


def test_two_items_of_one_id_are_two() -> None:
    """As xAI names the reasoning around a search."""
    items = [reasoning("a"), web_search(), reasoning("b"), message("x")]

    kept = [it[2] for it in replied(*whole_stream(*items)).items]

    assert kept == items[:3]


SERVER_TOOLS: dict[str, Fields] = {
    "web_search": web_search(),
    "x_keyword_search": {
        "type": "custom_tool_call",
        "id": "ctc_1",
        "name": "x_keyword_search",
        "input": "{}",
        "status": "completed",
    },
    "code_interpreter": {
        "type": "code_interpreter_call",
        "id": "ci_1",
        "code": "print(1)",
        "outputs": None,
        "status": "completed",
    },
    "ask": {
        "type": "mcp_call",
        "id": "mcp_1",
        "name": "ask",
        "arguments": "{}",
        "output": "private",
        "error": None,
        "status": "completed",
    },
}


@pytest.mark.parametrize("name", SERVER_TOOLS)
def test_tools_of_the_provider_are_told_and_kept(name: str) -> None:
    """Begun once, done once, by the tool's name; the item goes back as it came."""
    item = SERVER_TOOLS[name]
    told = [ServerTool(item["id"], name), ServerTool(item["id"], name, True)]
    stream = whole_stream(item, message("x"))
    for payloads in (stream, [stream[-1]], without(stream, "output_item.done")):
        events = read(sse(payloads))

        assert [it for it in events if isinstance(it, ServerTool)] == told
        assert reply_of(events).items == [(0, 0, item)]


def test_a_tool_of_the_provider_that_failed_is_told_so() -> None:
    """By its status, or its error; of any type."""
    for more in ({"status": "failed"}, {"error": {"message": "m"}}, {"status": "incomplete"}):
        events = read(sse(whole_stream({**web_search(), **more}, message("x"))))
        assert [it.ok for it in events if isinstance(it, ServerTool)] == [None, False]
    odd = read(sse(whole_stream({**web_search(), "status": {"a": []}}, message("x"))))
    assert reply_of(odd).end == "stop"


def cited(start: int, end: int, url: str = "https://x", title: str = "1") -> Fields:
    place = {"start_index": start, "end_index": end}
    return {"type": "url_citation", "url": url, "title": title, **place}


def test_sources_are_told_once_with_their_places_in_the_text() -> None:
    """A place in a part becomes one in all of the text."""
    sources = [[cited(0, 2)], [cited(1, 3, "https://y"), cited(1, 3, "https://z")]]
    texts = ("👋ab", "cde")
    content = [
        {"type": "output_text", "text": text, "annotations": its}
        for text, its in zip(texts, sources, strict=True)
    ]
    items = [message("before"), message(content=content)]
    wanted = [
        CitationFound("https://x", "1", 6, 8),
        CitationFound("https://y", "1", 10, 12),
        CitationFound("https://z", "1", 10, 12),
    ]
    stream = whole_stream(*items)
    for payloads in (stream, [stream[-1]], without(stream, "output_text.annotation.added")):
        events = read(sse(payloads))
        assert [it for it in events if isinstance(it, CitationFound)] == wanted


def test_odd_sources_are_left_out() -> None:
    """A source is no reason to lose a reply."""
    odd = [None, "x", {"url": 7}, {"url": "u", "start_index": -4, "end_index": "x", "title": 3}]
    content = [{"type": "output_text", "text": "abc", "annotations": [it for it in odd if it]}]

    events = read(sse([ending([message(content=content)])]))

    assert [it for it in events if isinstance(it, CitationFound)] == [CitationFound("u", "3", 0, 0)]
    assert reply_of(events).said == ("abc", [])


def test_thoughts_come_once_from_wherever_they_stand() -> None:
    """Summaries, or texts in their place; in pieces or with the item alone."""
    item = reasoning("q", "One.", "Two.")
    texts = [{"type": "reasoning_text", "text": it} for it in ("One.", "Two.")]
    other = {**reasoning("q"), "content": texts}
    head = "response.reasoning_text.delta"
    for payloads in (
        whole_stream(item, message("x")),
        [ending([item, message("x")])],
        [ending([other, message("x")])],
        [event(head, delta="One.Two.", output_index=0), ending([other, message("x")])],
        [event(head, delta="One.Two.", output_index=0), ending([message("x")])],
    ):
        for named in (True, False):
            events = read(sse(payloads, named=named))
            thoughts = "".join(it.text for it in events if isinstance(it, ReasoningDelta))
            assert thoughts == "One.Two."
            assert reply_of(events).said == ("x", [])


# Usage


USAGES: dict[str, tuple[Any, ProviderUsage | None]] = {
    "recorded": (USAGE, REPORT.usage),
    "null": (None, None),
    "a_list": ([], None),
    "empty": ({}, None),
    "chat": (
        {
            "prompt_tokens": 32,
            "completion_tokens": 9,
            "total_tokens": 151,
            "completion_tokens_details": {"reasoning_tokens": 110},
        },
        ProviderUsage(32, 9, 110, 0, 151),
    ),
    "reasoning_outside": (
        {
            "input_tokens": 32,
            "output_tokens": 9,
            "total_tokens": 151,
            "output_tokens_details": {"reasoning_tokens": 110},
        },
        ProviderUsage(32, 9, 110, 0, 151),
    ),
    "no_total": (
        {"input_tokens": 5, "output_tokens": 9, "output_tokens_details": {"reasoning_tokens": 4}},
        ProviderUsage(5, 5, 4, 0, 14),
    ),
    "no_details": (
        {"input_tokens": 5, "output_tokens": 9, "total_tokens": 14},
        ProviderUsage(5, 9, 0, 0, 14),
    ),
    "server_tools": (
        {
            "input_tokens": 5,
            "output_tokens": 9,
            "total_tokens": 14,
            "num_server_side_tools_used": 3,
        },
        ProviderUsage(5, 9, 0, 0, 14, None, 3),
    ),
    "beyond_belief": (
        {"input_tokens": 5, "output_tokens": 10**30, "num_server_side_tools_used": -1},
        None,
    ),
    "half": ({"input_tokens": 5, "output_tokens": 9.5, "total_tokens": 14.5}, None),
    "negative": ({"input_tokens": -5, "output_tokens": 9, "total_tokens": 4}, None),
    "words": ({"input_tokens": 5, "output_tokens": "many", "total_tokens": 5}, None),
}


@pytest.mark.parametrize("case", USAGES)
def test_usage(case: str) -> None:
    """Visible tokens, reasoning and total stay apart, wherever the provider counts reasoning."""
    report, usage = USAGES[case]

    events = read(sse([*WHOLE[:-1], ending(ITEMS, usage=report)]))

    reports = [it.usage for it in events if isinstance(it, UsageReport)]
    assert reports == ([] if usage is None else [usage])
    assert reply_of(events).said == SAID


# Any bytes


SHAPES = {
    "whole": sse(WHOLE),
    "without_names": sse(WHOLE, named=False),
    "escaped": sse(WHOLE, ascii_only=True),
    "searching": sse(whole_stream(reasoning("a", "b"), web_search(), message("x"))),
    "comments": b": k\n\n" + sse(WHOLE).replace(b"\n\n", b"\n\n: k\n\n"),
    "crlf": sse(WHOLE).replace(b"\n", b"\r\n"),
    "done": sse(WHOLE) + b"data: [DONE]\n\n",
    "failed": sse([*WHOLE[:9], event("error", **ERROR)]),
    "incomplete": sse([*WHOLE[:9], ending([], "incomplete")]),
    "body": encoded(response("completed", ITEMS)),
    "garbage": sse(WHOLE[:9]) + b"data: {x\n\n" + sse(WHOLE[9:]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_byte_by_byte(shape: str) -> None:
    """It makes no difference that the bytes come one at a time."""
    data = SHAPES[shape]

    assert read(*(data[n : n + 1] for n in range(len(data)))) == read(data)


@given(st.sampled_from([*SHAPES.values()]), st.lists(st.integers(0, 20_000), max_size=12))
def test_any_cutting_gives_the_same_events(body: bytes, cuts: list[int]) -> None:
    """Whatever stands in a stream, its events do not depend on how it is cut."""
    ends = sorted({min(cut, len(body)) for cut in cuts} | {0, len(body)})

    assert read(*(body[a:b] for a, b in itertools.pairwise(ends))) == read(body)


@pytest.mark.parametrize(
    "name", [b"response.completed", b"response.created", b"message", b"x", b"", b"response.failed"]
)
def test_the_type_counts_and_not_the_events_name(name: bytes) -> None:
    """Names of events may be wrong, or those of a proxy."""
    heads = {f"event: {it['type']}\n".encode() for it in WHOLE}
    data = sse(WHOLE)
    for head in heads:
        data = data.replace(head, b"event: " + name + b"\n")

    assert reply_of(read(data)).said == SAID


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
KINDS = sorted({it["type"] for it in whole_stream(*ITEMS, refusal("n"), web_search())})
FIELDS = ("delta", "text", "item", "arguments", "output_index", "content_index", "annotation")


@pytest.mark.promise("P9")
@given(
    st.sampled_from([*KINDS, "response.failed", "response.incomplete", "error", "x"]),
    st.dictionaries(st.sampled_from([*FIELDS, "response", "code", "error"]), anything),
    st.sampled_from(["message", "function_call", "reasoning", "web_search_call"]),
    st.dictionaries(
        st.sampled_from(
            ["content", "summary", "arguments", "call_id", "name", "id", "status", "type", "error"]
        ),
        anything,
    ),
    st.booleans(),
)
def test_any_json_in_any_field_never_raises(
    kind: str, fields: Fields, item_kind: str, item_fields: Fields, beside: bool
) -> None:
    """A field of any type says something, or nothing, or fails the reply: it breaks nothing."""
    item = {"type": item_kind, "encrypted_content": "b", **item_fields}
    payload = {"type": kind, **fields}
    for odd in (
        payload,
        {**payload, "item": item},
        {"type": "response.completed", "response": {"output": [item], **fields}},
    ):
        for named in (True, False):
            reply_of(read(sse([*WHOLE[: 9 * beside], odd, WHOLE[-1]], named=named)))


@pytest.mark.promise("P9")
@given(st.lists(st.binary(max_size=40), max_size=6))
def test_noise_never_raises(pieces: list[bytes]) -> None:
    """Any bytes at all are read without an exception."""
    read(*pieces)
    read(sse(WHOLE[:9]), *pieces)


words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
arguments = st.dictionaries(words, words, max_size=2).map(lambda it: encoded(it).decode())
item_lists = st.lists(
    st.one_of(
        st.builds(message, words, words) | st.builds(message, words),
        st.builds(refusal, words),
        st.builds(function_call, st.sampled_from(["f", "g"]), arguments),
        st.builds(reasoning, words, words) | st.just(reasoning(None)),
        st.builds(web_search, words),
    ),
    max_size=5,
).map(
    lambda items: [
        {**it, "call_id": f"call-{n}", "id": f"fc_{n}"} if it["type"] == "function_call" else it
        for n, it in enumerate(items)
    ]
)


def said_by(items: list[Fields]) -> tuple[str, list[tuple[str, str, str]]]:
    """The text and the calls of items, by the wire's reference."""
    calls = [it for it in items if it["type"] == "function_call"]
    return (
        "".join(parts_said_by(items)),
        [(it["call_id"], it["name"], it["arguments"]) for it in calls],
    )


def parts_said_by(items: list[Fields]) -> list[str]:
    """The texts of the parts of messages, by the wire's reference."""
    parts = [part for it in items if it["type"] == "message" for part in it["content"]]
    return [part.get("text") or part.get("refusal") for part in parts]


@settings(max_examples=2 * settings().max_examples)
@example([refusal("a b"), refusal("c")], 1, [("t", 5, 7)], False)
@given(
    item_lists,
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from("dtm"), st.integers(0, 60), st.integers(0, 60)), max_size=4),
    st.booleans(),
)
def test_a_reply_is_whole_or_none(
    items: list[Fields], size: int, faults: list[tuple[str, int, int]], named: bool
) -> None:
    """Whatever events are dropped, doubled or moved: nothing is missing, and nothing is twice.

    But for space: a little more of it may have come behind a part than its whole text has.
    """
    *between, end = whole_stream(*items, size=size)
    for fault, at, to in faults:
        if at < len(between):
            taken = between[at] if fault == "t" else between.pop(at)
            if fault != "d":
                between.insert(to, taken)

    reply = replied(*between, end, named=named)

    if reply.end in {"stop", "tool_calls"}:
        text, calls = reply.said
        assert calls == said_by(items)[1]
        space = rf"\s{{0,{size * len(faults)}}}"
        assert re.fullmatch("".join(re.escape(it) + space for it in parts_said_by(items)), text)
    if not faults:
        assert reply.said == said_by(items)
        assert reply.end == ("tool_calls" if reply.calls else "stop")
        kept = [
            it for it in items if it.get("encrypted_content") or it["type"] == "web_search_call"
        ]
        assert [it[2] for it in reply.items] == kept


@given(item_lists, st.sampled_from([DELTAS, PARTS, ("output_item.done",), ("output_item.added",)]))
def test_a_reply_is_whole_without_one_of_its_sources(
    items: list[Fields], left_out: tuple[str, ...]
) -> None:
    """With an empty end as well, as long as one source says all."""
    stream = without(whole_stream(*items), *left_out)
    stream[-1] = ending([])

    reply = replied(*stream)

    assert reply.said == said_by(items)
    assert reply.end == ("tool_calls" if reply.calls else "stop")


# Limits


BIG = "x" * 100_000


def text(delta: str, index: int = 0, part: int = 0) -> Fields:
    place = {"output_index": index, "content_index": part}
    return event("response.output_text.delta", delta=delta, **place)


def thought(delta: str, index: int = 0) -> Fields:
    return event("response.reasoning_summary_text.delta", delta=delta, output_index=index)


def done(item: Fields, index: int = 0) -> Fields:
    return event("response.output_item.done", item=item, output_index=index)


ENDLESS: dict[str, tuple[Any, int, str]] = {
    "text": (lambda n: text("é" * 1000), 2_200, "text"),
    "text_with_care": (lambda n: text("é" * 1000, n // 100), 2_200, "text"),
    "thoughts": (lambda n: thought(BIG), 50, "reasoning"),
    "thoughts_of_many_items": (lambda n: thought("x", n), 1_100, "items"),
    "items": (lambda n: done(reasoning("q"), n), 1_100, "items"),
    "large_items": (lambda n: done(reasoning(BIG), n), 50, "items"),
    "messages": (lambda n: text("x", n), 1_100, "items"),
    "parts": (lambda n: text("x", 0, n), 1_100, "items"),
    "tools": (lambda n: done(web_search(), n), 1_100, "items"),
    "openings": (lambda n: event("response.in_progress", response=response(BIG)), 700, "silence"),
    "unknown_events": (lambda n: event("response.x", text=BIG), 700, "silence"),
    "empty_deltas": (lambda n: {**text(""), "x": BIG}, 700, "silence"),
    "the_same_item": (lambda n: {**done(reasoning()), "x": BIG}, 700, "silence"),
    "pieces_of_no_call": (
        lambda n: event("response.function_call_arguments.delta", delta=BIG, output_index=0),
        700,
        "silence",
    ),
    "sources": (
        lambda n: event(
            "response.output_text.annotation.added",
            annotation=cited(0, 1, BIG),
            annotation_index=n,
            output_index=0,
        ),
        700,
        "silence",
    ),
}


@pytest.mark.parametrize("case", ENDLESS)
def test_a_response_without_end_is_read_up_to_a_limit(case: str) -> None:
    """Whatever a provider sends for ever, it comes to an end by name."""
    make, times, what = ENDLESS[case]
    stream = ResponsesStream()
    stream.feed(sse([*opening(), text("x")]))

    for n in range(times):
        events = stream.feed(sse([make(n)]))
        if events and isinstance(events[-1], OverLimit):
            break

    assert events[-1] == OverLimit(what)
    assert stream.feed(sse(WHOLE)) == stream.close() == []


def test_sources_are_told_up_to_a_limit() -> None:
    """Nothing depends on one more."""
    content = [
        {
            "type": "output_text",
            "text": "abc",
            "annotations": [cited(0, 1, f"https://{n}") for n in range(10_000)],
        }
    ]

    events = read(sse([ending([message(content=content)])]))

    found = [it for it in events if isinstance(it, CitationFound)]
    assert 2_000 < len(found) < CITATIONS_MAX_CHARS / 100
    assert reply_of(events).end == "stop"


def test_a_whole_output_is_limited_too() -> None:
    """Items of the last event count as those before it."""
    assert replied(ending([reasoning()] * (ITEMS_MAX + 1))).end == "OverLimit"
    assert replied(ending([message(*"x" * (ITEMS_MAX + 1))])).end == "OverLimit"
    big = reasoning("x" * (ITEMS_MAX_BYTES // 4))
    assert ITEMS_MAX_BYTES < EVENT_MAX_BYTES
    assert replied(ending([{**big, "id": f"rs{n}"} for n in range(4)])).end == "OverLimit"


AGAIN: dict[str, list[Fields]] = {
    "text": [text("x" * 50)],
    "text_with_care": [{**text("x" * 50), "delta_2": 1}, text("x", 0)],
    "a_short_whole_text": [event("response.output_item.added", item=message(), output_index=0)],
    "arguments": [
        event("response.function_call_arguments.delta", delta="x" * 50, output_index=1),
        event("response.output_item.added", item=function_call("f", ""), output_index=1),
    ],
    "arguments_and_no_whole": [
        event("response.function_call_arguments.delta", delta="x" * 50, output_index=1),
        event("response.function_call_arguments.done", arguments="", output_index=1),
        done(function_call("f", ""), 1),
    ],
    "messages_of_nothing": [text("x" * 50), done(message(), 0), done(message(""), 0)],
    "items": [done(reasoning("x" * 100), 1), done(reasoning("y" * 100), 1)],
    "thoughts": [thought("x" * 50)],
    "progress": [event("response.web_search_call.in_progress", output_index=1)],
}


@pytest.mark.parametrize("case", AGAIN)
@pytest.mark.parametrize("named", [True, False])
def test_a_long_reply_holds_up_nobody(case: str, named: bool) -> None:
    """What came is not read anew with each event."""
    data = sse(AGAIN[case], named=named)
    first = sse([*opening(), *events_of(1, function_call("f", ""))[:1]])

    def read_all(times: int) -> None:
        stream = ResponsesStream()
        stream.feed(first)
        for _ in range(times):
            events = stream.feed(data)
            assert not any(isinstance(it, MalformedFrame | OverLimit) for it in events)

    assert is_linear(read_all, 1_000)


# Recordings


def answered(last: Fields) -> tuple[str, list[tuple[str, str, str]], list[str]]:
    """Text, calls and addresses of sources of a response, by plain rules."""
    said, calls, urls = "", [], []
    for item in last["output"]:
        if item["type"] == "message":
            for part in item["content"]:
                said += part.get("text") or part.get("refusal") or ""
                urls += [it["url"] for it in part.get("annotations") or []]
        elif item["type"] == "function_call":
            calls.append((item["call_id"], item["name"], item["arguments"]))
    return said, calls, urls


@recorded("xai-responses/[rv]*.jsonl")
def test_recorded_replies(path) -> None:
    """Recordings give their text, calls, sources, kept items, usage and cost, in any cutting."""
    lines = path.read_bytes().splitlines()
    payloads = [json.loads(line) for line in lines]
    if path.name.endswith(".stream.jsonl"):
        data = b"".join(
            b"event: %b\ndata: %b\n\n" % (it["type"].encode(), line)
            for it, line in zip(payloads, lines, strict=True)
        )
        last = payloads[-1]["response"]
    else:
        data, last = lines[0], payloads[0]

    events = read(data)

    reply = reply_of(events)
    said, calls, urls = answered(last)
    assert reply.said == (said, calls)
    assert reply.end == ("tool_calls" if calls else "stop")
    assert sorted(it.url for it in events if isinstance(it, CitationFound)) == sorted(urls)
    kept = [
        {key: value for key, value in it.items() if it["type"] != "reasoning" or value is not None}
        for it in last["output"]
        if it.get("encrypted_content")
        or (it["type"].endswith("_call") and it["type"] != "function_call")
    ]
    assert [it[2] for it in reply.items] == kept
    assert [it for it in events if isinstance(it, ResponseNamed)] == [
        ResponseNamed(last["id"], last["model"])
    ]
    report = last["usage"]
    reasoned = report["output_tokens_details"]["reasoning_tokens"]
    (usage,) = [it.usage for it in events if isinstance(it, UsageReport)]
    assert usage == ProviderUsage(
        report["input_tokens"],
        report["output_tokens"] - reasoned,
        reasoned,
        report["input_tokens_details"]["cached_tokens"],
        report["input_tokens"] + report["output_tokens"],
        report.get("cost_in_usd_ticks"),
        report.get("num_server_side_tools_used", 0),
    )
    pieces = [data[at : at + 97] for at in range(0, len(data), 97)]
    assert reply_of(read(*pieces)) == reply
