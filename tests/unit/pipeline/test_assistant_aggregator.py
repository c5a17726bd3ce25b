"""The assistant aggregator: how it joins text, when it commits, what calls look like."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnline.worker.pipeline.aggregators import (
    LLMAssistantAggregatorParams,
    LLMAssistantContextAggregator,
    cut_to_heard,
)
from turnline.worker.pipeline.context import Message, OpenAILLMContext
from turnline.worker.pipeline.frames import (
    BotStoppedSpeakingFrame,
    CancelFrame,
    EndFrame,
    Frame,
    FunctionCallCancelFrame,
    FunctionCallFromLLM,
    FunctionCallInProgressFrame,
    FunctionCallResultFrame,
    FunctionCallResultProperties,
    FunctionCallsStartedFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    OpenAILLMContextAssistantTimestampFrame,
    OpenAILLMContextFrame,
    StartInterruptionFrame,
    TextFrame,
    UserImageRawFrame,
    UserImageRequestFrame,
)
from turnline.worker.pipeline.processor import DOWNSTREAM, FrameDirection, FrameProcessor

NOON = "2026-11-22T12:00:00.000+00:00"
NAMES = {
    OpenAILLMContextFrame: "C",
    OpenAILLMContextAssistantTimestampFrame: "TS",
    StartInterruptionFrame: "StartInterruption",
}
START, END, CUT = LLMFullResponseStartFrame(), LLMFullResponseEndFrame(), StartInterruptionFrame()


class Recorder(FrameProcessor):
    """Keeps the names of the frames that arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        self.seen.append(NAMES.get(type(frame), type(frame).__name__))


class Bench:
    """An assistant aggregator between two recorders."""

    def __init__(self, *, words: bool, stored: Sequence[bytes] = ()) -> None:
        self.context = OpenAILLMContext.from_stored(stored)
        self.aggregator = LLMAssistantContextAggregator(
            self.context,
            params=LLMAssistantAggregatorParams(expect_stripped_words=words),
            timestamp=lambda: NOON,
        )
        self.up, self.down = Recorder(), Recorder()
        self.up.link(self.aggregator)
        self.aggregator.link(self.down)

    async def push(self, *frames: Frame | str) -> None:
        for frame in frames:
            sent = LLMTextFrame(frame) if isinstance(frame, str) else frame
            await self.aggregator.process_frame(sent, DOWNSTREAM)

    @property
    def messages(self) -> list[Message]:
        return self.context.messages

    @property
    def texts(self) -> list[str]:
        return [message["content"] for message in self.messages]


JOINS = [
    (["Hel", "lo", " world", "!"], "Hel lo  world !", "Hello world!"),
    (
        ["Hello", "Pipecat.", "How are", "you?"],
        "Hello Pipecat. How are you?",
        "HelloPipecat.How areyou?",
    ),
    (
        ["Hello ", "Pipecat. ", "How are ", "you?"],
        "Hello  Pipecat.  How are  you?",
        "Hello Pipecat. How are you?",
    ),
    (["Hello ", "world", "", "x"], "Hello  world  x", "Hello worldx"),
    (["", "x"], "x", "x"),
]


@pytest.mark.parametrize("words", [True, False])
@pytest.mark.parametrize(("pieces", "joined", "concatenated"), JOINS)
async def test_words_are_joined_by_one_space_and_deltas_concatenated(
    pieces: list[str], joined: str, concatenated: str, words: bool
) -> None:
    """Words are joined by one space each, raw deltas are concatenated; both are stripped."""
    bench = Bench(words=words)

    await bench.push(START, *pieces, END)

    assert bench.texts == [joined if words else concatenated]


WORDS, DELTAS = True, False
PIPECATS_TEXTS = {
    "empty": (WORDS, [START, END], [], ""),
    "single_text": (WORDS, [START, "Hello Pipecat!", END], ["Hello Pipecat!"], "C TS"),
    "multiple_text": (
        DELTAS,
        [START, "Hello ", "Pipecat. ", "How are ", "you?", END],
        ["Hello Pipecat. How are you?"],
        "C TS",
    ),
    "multiple_text_stripped": (
        WORDS,
        [START, "Hello", "Pipecat.", "How are", "you?", END],
        ["Hello Pipecat. How are you?"],
        "C TS",
    ),
    "multiple_llm_responses": (
        DELTAS,
        [START, "Hello ", "Pipecat.", END, START, "How are ", "you?", END],
        ["Hello Pipecat.", "How are you?"],
        "C TS C TS",
    ),
    "multiple_llm_responses_interruption": (
        DELTAS,
        [START, "Hello ", "Pipecat.", END, CUT, START, "How are ", "you?", END],
        ["Hello Pipecat.", "How are you?"],
        "C TS StartInterruption C TS",
    ),
}


@pytest.mark.parametrize("row", PIPECATS_TEXTS)
async def test_pipecats_text_scenarios_give_its_messages_and_frames(row: str) -> None:
    """Each text row of pipecat's own scenario table: context and downstream."""
    words, script, texts, downstream = PIPECATS_TEXTS[row]
    bench = Bench(words=words)

    await bench.push(*script)

    assert (bench.texts, bench.down.seen) == (texts, downstream.split())
    assert bench.up.seen == []


FACTS = {
    "outside": (["lost", START, "kept", END, "lost"], ["kept"]),
    "blank": ([START, "  ", END], []),
    "interruption": ([START, "one", "two", CUT, "late", START, "three", END], None),
    "late_end": ([START, "partial", CUT, END, START, "second", END], ["partial", "second"]),
    "nested": ([START, "a", START, "b", END, "c", END, "d"], ["a b", "c"]),
    "other_text_counts": ([START, TextFrame("x"), END], ["x"]),
    "bot_stopped_splits": ([START, "a", BotStoppedSpeakingFrame(), "b", END], ["a", "b"]),
    "end_frame_keeps": ([START, "a", EndFrame()], ["a"]),
    "cancel_keeps": ([START, "a", CancelFrame()], ["a"]),
    "heard_nothing": ([START, "one", "two", StartInterruptionFrame(heard="")], []),
    "heard_some": ([START, "one", "two", StartInterruptionFrame(heard="one")], ["one"]),
}


@pytest.mark.parametrize("fact", FACTS)
async def test_text_counts_between_start_and_end_also_where_they_are_late_or_missing(
    fact: str,
) -> None:
    """Where text counts, what interruptions and ends leave behind."""
    script, texts = FACTS[fact]
    bench = Bench(words=True)

    await bench.push(*script)

    assert bench.texts == (["one two", "three"] if texts is None else texts)


async def test_blank_text_adds_no_message_and_is_still_reported() -> None:
    """Blank text adds no message, but both frames go out."""
    bench = Bench(words=True)

    await bench.push(START, "  ", END)

    assert (bench.texts, bench.down.seen) == ([], ["C", "TS"])


@pytest.mark.parametrize(
    ("heard", "kept"),
    [
        ("", ""),
        ("It is", "It is"),
        ("It is sunny", "It  is sunny"),
        ("It is sun", "It  is sun"),
        ("It is raining", "It  is"),
        ("Something else", ""),
        ("It  is sunny, and more", "It  is sunny,"),
    ],
)
def test_what_was_heard_cuts_the_reply(heard: str, kept: str) -> None:
    """Words are compared, not spaces; what was never said is never kept."""
    assert cut_to_heard(["It  is sunny, warm"], heard)[0].split() == kept.split()


@pytest.mark.parametrize(
    ("heard", "kept"),
    [
        ("", ["", ""]),
        ("Let me", ["Let me", ""]),
        ("Let me check.", ["Let me check.", ""]),
        ("Let me check. It", ["Let me check.", "It"]),
        ("Let me check.\n\nIt is sunny", ["Let me check.", "It is sunny"]),
        ("Let me look. It is", ["Let me", ""]),
    ],
)
def test_what_was_heard_is_compared_over_several_texts(heard: str, kept: list[str]) -> None:
    """The second is kept only as far as the first was heard to its end."""
    assert cut_to_heard(["Let me check. ", "It is sunny"], heard) == kept


# Function calls


def in_progress(call_id: str, *, cancellable: bool = True) -> FunctionCallInProgressFrame:
    return FunctionCallInProgressFrame(
        "get_weather", call_id, {"location": "LA"}, cancel_on_interruption=cancellable
    )


def result(
    call_id: str, value: object, properties: FunctionCallResultProperties | None = None
) -> FunctionCallResultFrame:
    return FunctionCallResultFrame("get_weather", call_id, {}, value, properties=properties)


def started(*call_ids: str) -> FunctionCallsStartedFrame:
    return FunctionCallsStartedFrame(
        [FunctionCallFromLLM("get_weather", call_id, {"location": "LA"}) for call_id in call_ids]
    )


def tool_contents(bench: Bench) -> list[str]:
    return [m["content"] for m in bench.messages if m["role"] == "tool"]


async def test_a_call_is_two_messages_and_its_result_replaces_the_placeholder() -> None:
    """A call is two messages in OpenAI's shape; its result replaces IN_PROGRESS in place."""
    bench = Bench(words=True)

    await bench.push(in_progress("1"))

    assert bench.messages == [
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": "1",
                    "function": {"name": "get_weather", "arguments": '{"location": "LA"}'},
                    "type": "function",
                }
            ],
        },
        {"role": "tool", "content": "IN_PROGRESS", "tool_call_id": "1"},
    ]

    await bench.push(result("1", {"conditions": "Sunny"}))

    assert len(bench.messages) == 2
    assert json.loads(tool_contents(bench)[0]) == {"conditions": "Sunny"}
    assert (bench.up.seen, bench.down.seen) == (["C"], [])


@pytest.mark.parametrize(
    ("value", "content", "runs"),
    [
        (None, "COMPLETED", 0),
        ({}, "COMPLETED", 0),
        ("x", '"x"', 1),
        ("héllo", '"héllo"', 1),
        ({"a": [1, 2]}, '{"a": [1, 2]}', 1),
    ],
)
async def test_an_empty_result_starts_nothing_and_others_start_a_run(
    value: object, content: str, runs: int
) -> None:
    """An empty result is COMPLETED and starts nothing; others are JSON, unescaped, and do."""
    bench = Bench(words=True)

    await bench.push(in_progress("1"), result("1", value))

    assert tool_contents(bench) == [content]
    assert bench.up.seen == ["C"] * runs


async def test_a_result_may_ask_for_no_run_and_be_told_of_the_update() -> None:
    """run_llm=False stores without a run; the callback is awaited once, after the update."""
    bench = Bench(words=True)
    seen: list[list[str]] = []

    async def updated() -> None:
        seen.append(tool_contents(bench))

    await bench.push(
        in_progress("1"),
        result("1", "x", FunctionCallResultProperties(run_llm=False, on_context_updated=updated)),
    )

    assert (seen, bench.up.seen) == ([['"x"']], [])


async def test_results_stand_in_call_order_and_the_last_one_starts_the_run() -> None:
    """Messages stand in call order, in one assistant message; one run after the last result."""
    bench = Bench(words=True)

    await bench.push(started("1", "2"), in_progress("1"), in_progress("2"))
    await bench.push(result("2", "two"))
    assert bench.up.seen == []
    await bench.push(result("1", "one"))

    assert [m["role"] for m in bench.messages] == ["assistant", "tool", "tool"]
    assert [c["id"] for c in bench.messages[0]["tool_calls"]] == ["1", "2"]
    assert tool_contents(bench) == ['"one"', '"two"']
    assert bench.up.seen == ["C"]


async def test_a_handler_that_ends_at_once_starts_no_second_run() -> None:
    """The calls of a response are known together, so the first result never runs alone."""
    bench = Bench(words=True)

    await bench.push(started("1", "2"), in_progress("1"), result("1", "one"))
    assert bench.up.seen == []
    await bench.push(in_progress("2"), result("2", "two"))

    assert bench.up.seen == ["C"]


async def test_an_empty_last_result_does_not_silence_the_others() -> None:
    """The model still runs on the results that have something to say."""
    bench = Bench(words=True)

    await bench.push(started("1", "2"), in_progress("1"), in_progress("2"))
    await bench.push(result("1", "one"), result("2", None))

    assert bench.up.seen == ["C"]


async def test_a_cancelled_call_starts_no_run_and_another_is_left_alone() -> None:
    """A cancellable call becomes CANCELLED without a run; another one is left alone."""
    bench = Bench(words=True)

    await bench.push(in_progress("1"), in_progress("2", cancellable=False))
    await bench.push(FunctionCallCancelFrame("f", "1"), FunctionCallCancelFrame("f", "2"))

    assert tool_contents(bench) == ["CANCELLED", "IN_PROGRESS"]
    assert bench.up.seen == []

    await bench.push(result("2", "late"))
    assert (tool_contents(bench), bench.up.seen) == (["CANCELLED", '"late"'], ["C"])


async def test_results_that_nobody_waits_for_change_nothing() -> None:
    """Results nobody waits for change nothing."""
    bench = Bench(words=True)

    await bench.push(in_progress("1"), result("nope", "x"), result("1", "a"), result("1", "b"))

    assert (tool_contents(bench), bench.up.seen) == (['"a"'], ["C"])


async def test_text_stands_before_its_calls() -> None:
    """Text and calls of one response are one message, then the results."""
    bench = Bench(words=False)

    await bench.push(START, "Let me ", "check.", started("1"), in_progress("1"), END)
    await bench.push(result("1", "x"), START, "done", END)

    assert [m["role"] for m in bench.messages] == ["assistant", "tool", "assistant"]
    assert bench.messages[0]["content"] == "Let me check."
    assert bench.messages[0]["tool_calls"][0]["id"] == "1"
    assert bench.messages[2] == {"role": "assistant", "content": "done"}


async def test_an_image_completes_the_call_that_asked_for_it() -> None:
    """The call is COMPLETED, the image is a user message, the model runs."""
    bench = Bench(words=True)
    request = UserImageRequestFrame("cat", context="What is this?", tool_call_id="1")

    await bench.push(in_progress("1"), UserImageRawFrame(b"\xff\xd8", (8, 8), "JPEG", "", request))

    assert tool_contents(bench) == ["COMPLETED"]
    assert bench.messages[-1] == {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9g="}},
        ],
    }
    assert bench.up.seen == ["C"]


async def test_image_without_a_request_passes() -> None:
    """An image nobody asked for is not this aggregator's business."""
    bench = Bench(words=True)

    await bench.push(UserImageRawFrame(b"", (8, 8), "JPEG"))

    assert bench.down.seen == ["UserImageRawFrame"]


PIECES = st.lists(st.text(alphabet="ab \n", max_size=3), max_size=8)


@given(st.lists(st.tuples(PIECES, st.sampled_from([END, CUT, EndFrame(), CancelFrame()]))))
async def test_no_text_of_a_response_is_lost(responses: list[tuple[list[str], Frame]]) -> None:
    """However a response ends, its text is in the context, in order, once."""
    bench = Bench(words=False)
    expected = []

    for pieces, ending in responses:
        await bench.push(START, *pieces, ending)
        if text := "".join(pieces).strip():
            expected.append(text)

    assert bench.texts == expected


# What was heard, over a tool call


async def said_around_a_call(bench: Bench, heard: str, *, whole: bool = False) -> None:
    """Say something, call a tool, go on saying, and be interrupted (after the end if `whole`)."""
    bench.context.add_message({"role": "assistant", "content": "Earlier."})
    bench.context.add_message({"role": "user", "content": "Weather?"})
    await bench.push(START, "Let me check.", started("1"), in_progress("1"), END)
    await bench.push(result("1", "sunny"), START, "It is ", "sunny.")
    await bench.push(*([END] if whole else []), StartInterruptionFrame(heard=heard))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("heard", "before", "after"),
    [
        ("", None, None),
        ("Let me", "Let me", None),
        ("Let me check. It", "Let me check.", "It"),
        ("Let me check. It is sunny.", "Let me check.", "It is sunny."),
    ],
)
async def test_what_was_heard_cuts_before_a_call_too(
    heard: str, before: str | None, after: str | None, whole: bool
) -> None:
    """The call and its result stay, earlier answers too; only what was heard counts as said."""
    bench = Bench(words=False)

    await said_around_a_call(bench, heard, whole=whole)

    earlier, _, call, outcome, *rest = bench.messages
    assert earlier["content"] == "Earlier."
    assert call.get("content") == before
    assert ("content" in call, [c["id"] for c in call["tool_calls"]]) == (before is not None, ["1"])
    assert outcome == {"role": "tool", "content": '"sunny"', "tool_call_id": "1"}
    assert [message["content"] for message in rest] == ([after] if after else [])


async def test_what_is_stored_is_not_cut() -> None:
    """Loaded messages are of earlier turns, whether or not somebody looked at them."""
    stored = [b'{"role":"assistant","content":"Earlier."}']
    for is_looked_at in (False, True):
        bench = Bench(words=False, stored=stored)
        assert not is_looked_at or bench.context.messages

        await bench.push(START, "one two", END, StartInterruptionFrame(heard="one"))

        assert bench.texts == ["Earlier.", "one"]
        assert bench.context.prefix_intact()
