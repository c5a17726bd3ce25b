"""The user aggregator on a virtual clock: what it collects, when it asks for an answer."""

import asyncio
from operator import attrgetter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.growth import is_linear
from turnline.worker.pipeline.aggregators import LLMUserAggregatorParams, LLMUserContextAggregator
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.pipeline.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    EmulateUserStartedSpeakingFrame,
    EmulateUserStoppedSpeakingFrame,
    EndFrame,
    Frame,
    InterimTranscriptionFrame,
    LLMMessagesAppendFrame,
    LLMMessagesUpdateFrame,
    LLMSetToolChoiceFrame,
    LLMSetToolsFrame,
    LLMTextFrame,
    OpenAILLMContextFrame,
    StartFrame,
    StartInterruptionFrame,
    TranscriptionFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from turnline.worker.pipeline.processor import DOWNSTREAM, FrameDirection, FrameProcessor

TIMEOUT_S = 0.1
NAMES = {
    UserStartedSpeakingFrame: "S",
    UserStoppedSpeakingFrame: "E",
    OpenAILLMContextFrame: "C",
    EmulateUserStartedSpeakingFrame: "EmulateStarted",
    EmulateUserStoppedSpeakingFrame: "EmulateStopped",
    StartInterruptionFrame: "Interruption",
    BotStartedSpeakingFrame: "BotStarted",
    EndFrame: "End",
}


class Recorder(FrameProcessor):
    """Keeps the names of the frames that arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        self.seen.append(NAMES.get(type(frame), type(frame).__name__))


class Bench:
    """A user aggregator between two recorders, and a clock that jumps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.context = OpenAILLMContext()
        self.aggregator = LLMUserContextAggregator(
            self.context,
            params=LLMUserAggregatorParams(aggregation_timeout=TIMEOUT_S),
            now=lambda: self.now_s,
        )
        self.up, self.down = Recorder(), Recorder()
        self.up.link(self.aggregator)
        self.aggregator.link(self.down)

    async def push(self, *frames: Frame) -> None:
        for frame in frames:
            await self.aggregator.process_frame(frame, DOWNSTREAM)

    async def wait(self, duration_s: float) -> None:
        """Let time pass; the aggregator is ticked exactly when it asked for it."""
        end_s = self.now_s + duration_s
        while (wait_s := self.aggregator.due_in_s) is not None and self.now_s + wait_s <= end_s:
            self.now_s += wait_s
            await self.aggregator.tick()
        self.now_s = end_s

    @property
    def texts(self) -> list[str]:
        return [message["content"] for message in self.context.messages]


def T(text: str) -> TranscriptionFrame:  # noqa: N802 - the table's name
    return TranscriptionFrame(text, "cat", "")


def I(text: str) -> InterimTranscriptionFrame:  # noqa: E743, N802 - the table's name
    return InterimTranscriptionFrame(text, "cat", "")


def real(started: bool) -> Frame:
    return UserStartedSpeakingFrame() if started else UserStoppedSpeakingFrame()


S, E, SHORT, LONG = real(True), real(False), 0.1, 0.15
HELLO, PIPECAT, HOW, YOU = "Hello!", "Hello Pipecat!", "How ", "How are you?"
EMULATED = ["EmulateStarted", "EmulateStopped"]
T1, T2 = "Hello Pipecat!", "How are you?"

PIPECATS_SPEECH: dict[str, tuple[list[Any], list[str], str, list[str]]] = {
    "se": ([S, E], [], "S E", []),
    "ste": ([S, T(HELLO), SHORT, E], [HELLO], "S E C", []),
    "site": ([S, I("Hello"), T(PIPECAT), SHORT, E], [PIPECAT], "S E C", []),
    "st1iest2e": (
        [S, T(PIPECAT), I(HOW), SHORT, E, S, T(YOU), SHORT, E],
        ["Hello Pipecat! How are you?"],
        "S E S E C",
        [],
    ),
    "siet": ([S, I("How"), SHORT, E, T(YOU), LONG], [YOU], "S E C", []),
    "sieit": ([S, I("How"), SHORT, E, I("are"), T(YOU), LONG], [YOU], "S E C", []),
    "set": ([S, E, T(YOU), LONG], [YOU], "S E C", []),
    "seit": ([S, E, I("How"), T(YOU), LONG], [YOU], "S E C", []),
    "st1et2": ([S, T(T1), SHORT, E, T(T2), LONG], [T1, T2], "S E C C", EMULATED),
    "set1t2": ([S, E, T(T1), T(T2), LONG], [f"{T1} {T2}"], "S E C", []),
    "siet1it2": ([S, I("He"), SHORT, E, T(T1), I("Ho"), T(T2), LONG], [f"{T1} {T2}"], "S E C", []),
    "t": ([T(HELLO), LONG], [HELLO], "C", EMULATED),
    "it": ([I("Hello"), SHORT, T(PIPECAT), LONG], [PIPECAT], "C", EMULATED),
    "sie_delay_it": ([S, I("How"), SHORT, E, LONG, I("are"), T(YOU), LONG], [YOU], "S E C", []),
}


@pytest.mark.parametrize("row", PIPECATS_SPEECH)
async def test_pipecats_speech_scenarios_give_its_messages_and_frames(row: str) -> None:
    """Each row of pipecat's own scenario table: context, downstream and upstream."""
    script, texts, downstream, upstream = PIPECATS_SPEECH[row]
    bench = Bench()

    for step in script:
        await (bench.wait(step) if isinstance(step, float) else bench.push(step))

    assert bench.texts == texts
    assert bench.down.seen == downstream.split()
    assert bench.up.seen == upstream


FACTS: dict[str, tuple[list[Any], list[str]]] = {
    "blank": ([S, T("   "), E], []),
    "outer_spaces_kept": ([S, T(" Hello"), T("there "), E], [" Hello there "]),
    "speaking_holds_back": ([S, T("x"), 10.0], []),
    "bot_speaking_drops": ([BotStartedSpeakingFrame(), T("x"), LONG], []),
    "bot_speaking_with_vad_keeps": ([BotStartedSpeakingFrame(), S, T("x"), E], ["x"]),
    "bot_stopped": ([BotStartedSpeakingFrame(), BotStoppedSpeakingFrame(), T("x"), LONG], ["x"]),
    "interim_alone_says_nothing": ([S, I("x"), E, 10.0, S, T("y"), E], ["y"]),
    "each_in_time": ([S, E, T("1"), 0.05, T("2"), 0.09, T("3"), 0.09, T("4"), LONG], ["1 2 3 4"]),
    "three_messages": ([S, T("1"), E, T("2"), LONG, T("3"), LONG], ["1", "2", "3"]),
    "interruption_keeps_text": ([S, T("x"), StartInterruptionFrame(), E], ["x"]),
    "end_of_turn_at_once": ([S, T("x"), E, EndFrame()], ["x"]),
    "end_while_speaking": ([S, T("x"), EndFrame()], ["x"]),
    "end_while_a_final_is_due": ([S, T("x"), I("y"), E, EndFrame()], ["x"]),
}


@pytest.mark.parametrize("fact", FACTS)
async def test_text_at_the_end_of_a_turn_is_never_lost(fact: str) -> None:
    """What was probed beyond the table, with the text at the end of a turn never lost."""
    script, texts = FACTS[fact]
    bench = Bench()

    for step in script:
        await (bench.wait(step) if isinstance(step, float) else bench.push(step))

    assert bench.texts == texts
    assert bench.down.seen.count("C") == len(texts)


async def test_the_answer_is_asked_for_before_the_end() -> None:
    """Speech and the end of the turn submitted together: one completion, then the end."""
    bench = Bench()

    await bench.push(S, T("x"), EndFrame())

    assert bench.down.seen == ["S", "C", "End"]


async def test_emulated_speech_ends_with_both_frames() -> None:
    """A transport that answers the emulation still gets one push and its end."""
    bench = Bench()

    await bench.push(T("x"), UserStartedSpeakingFrame(emulated=True))
    await bench.push(UserStoppedSpeakingFrame(emulated=True))
    await bench.wait(LONG)

    assert (bench.texts, bench.up.seen) == (["x"], EMULATED)


async def test_real_speech_ends_emulation() -> None:
    """After real speech no end of emulated speech is sent."""
    bench = Bench()

    await bench.push(T("x"), S, E)
    await bench.wait(LONG)

    assert (bench.texts, bench.up.seen) == (["x"], ["EmulateStarted"])


async def test_context_frames_change_the_context_and_start_nothing() -> None:
    """Append, update, tools and tool choice are taken in, not forwarded, and start nothing."""
    bench = Bench()

    await bench.push(
        LLMMessagesAppendFrame([{"role": "user", "content": "a"}]),
        LLMMessagesUpdateFrame([{"role": "system", "content": "z"}]),
        LLMSetToolsFrame([{"type": "function"}]),
        LLMSetToolChoiceFrame("auto"),
    )

    assert bench.context.messages == [{"role": "system", "content": "z"}]
    assert (bench.context.tools, bench.context.tool_choice) == ([{"type": "function"}], "auto")
    assert bench.down.seen == []


async def test_append_that_wants_an_answer() -> None:
    """With run_llm the appended messages are answered."""
    bench = Bench()

    await bench.push(LLMMessagesAppendFrame([{"role": "user", "content": "a"}], run_llm=True))

    assert bench.down.seen == ["C"]


async def test_other_frames_pass() -> None:
    """What is none of the aggregator's business goes through untouched."""
    bench = Bench()

    await bench.push(StartFrame(), LLMTextFrame("x"))

    assert bench.down.seen == ["StartFrame", "LLMTextFrame"]


async def test_pending_state_is_visible() -> None:
    """A driver sees what waits, until when, and whether the user speaks."""
    bench = Bench()
    aggregator = bench.aggregator
    state = attrgetter("has_pending", "user_speaking", "due_in_s")
    assert state(aggregator) == (False, False, None)

    await bench.push(S, T("x"))
    assert state(aggregator) == (True, True, None)

    await bench.push(I("y"), E)
    assert state(aggregator) == (True, False, TIMEOUT_S)

    await aggregator.tick()
    assert aggregator.has_pending, "ticked too early: nothing happens"


def test_the_work_of_a_transcription_does_not_grow_with_what_waits() -> None:
    """Many transcriptions of one turn are joined once, at its end."""

    def collect(count: int) -> None:
        aggregator = LLMUserContextAggregator(OpenAILLMContext(), now=lambda: 0.0)
        said = T("x" * 400)

        async def speak() -> None:
            await aggregator.process_frame(S, DOWNSTREAM)
            for _ in range(count):
                await aggregator.process_frame(said, DOWNSTREAM)
            await aggregator.process_frame(E, DOWNSTREAM)

        asyncio.run(speak())
        assert len(aggregator.messages[0]["content"]) == 401 * count - 1

    assert is_linear(collect, 1_500)


WORDS = st.sampled_from(["a", "b", " c", "d "])
STEPS = st.one_of(
    st.builds(T, WORDS),
    st.builds(I, WORDS),
    st.sampled_from([S, E, StartInterruptionFrame()]),
    st.sampled_from([0.01, 0.09, 0.1, 0.5]),
)


@given(st.lists(STEPS, max_size=30))
async def test_no_final_transcription_is_lost_or_doubled(script: list[Frame | float]) -> None:
    """Whatever the order, all final text is in the context after the end, in order, once."""
    bench = Bench()
    for step in script:
        await (bench.wait(step) if isinstance(step, float) else bench.push(step))

    await bench.push(EndFrame())

    said = [f.text for f in script if type(f) is TranscriptionFrame]
    assert " ".join(bench.texts) == " ".join(said)
    assert not bench.aggregator.has_pending
