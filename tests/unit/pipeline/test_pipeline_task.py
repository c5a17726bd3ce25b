"""A pipeline that runs by itself: order, interruptions, the user's silence, the end."""

import asyncio
from typing import Any, Self

import pytest

from tests.support.wait import wait_until
from turnline.worker.pipeline.aggregators import (
    LLMAssistantAggregatorParams,
    LLMAssistantContextAggregator,
    LLMAssistantResponseAggregator,
    LLMFullResponseAggregator,
    LLMUserAggregatorParams,
    LLMUserContextAggregator,
    LLMUserResponseAggregator,
)
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.pipeline.frames import (
    CancelTaskFrame,
    EmulateUserStartedSpeakingFrame,
    EmulateUserStoppedSpeakingFrame,
    EndFrame,
    EndTaskFrame,
    ErrorFrame,
    FatalErrorFrame,
    Frame,
    FunctionCallInProgressFrame,
    FunctionCallResultFrame,
    InterimTranscriptionFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMMessagesFrame,
    LLMTextFrame,
    OpenAILLMContextAssistantTimestampFrame,
    OpenAILLMContextFrame,
    StartFrame,
    StartInterruptionFrame,
    TextFrame,
    TranscriptionFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from turnline.worker.pipeline.processor import UPSTREAM, FrameDirection, FrameProcessor, Pipeline
from turnline.worker.pipeline.task import PipelineParams, PipelineRunner, PipelineTask


class Seen(FrameProcessor):
    """Notes what passes by, each way."""

    def __init__(self) -> None:
        super().__init__()
        self.down: list[Frame] = []
        self.up: list[Frame] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        (self.up if direction is UPSTREAM else self.down).append(frame)
        await self.push_frame(frame, direction)

    def kinds(self) -> list[type]:
        return [type(frame) for frame in self.down if not isinstance(frame, (StartFrame, EndFrame))]


class Running:
    """A processor between two that note what passes, in a task that runs."""

    def __init__(self, *processors: FrameProcessor, params: PipelineParams | None = None) -> None:
        self.before, self.after = Seen(), Seen()
        self.task = PipelineTask(
            Pipeline([self.before, *processors, self.after]), params=params or PipelineParams()
        )

    async def __aenter__(self) -> Self:
        self._run = asyncio.create_task(PipelineRunner(handle_sigint=False).run(self.task))
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self.task.has_finished():
            await self.task.queue_frame(EndFrame())
        await asyncio.wait_for(self._run, 10)

    async def has(self, *kinds: type) -> None:
        """Wait until these have come out behind the processor."""
        await wait_until(lambda: self.after.kinds() == list(kinds), f"{kinds} have come")


QUICK = LLMUserAggregatorParams(aggregation_timeout=0.02)
S, E, C = UserStartedSpeakingFrame, UserStoppedSpeakingFrame, OpenAILLMContextFrame


def t(text: str) -> TranscriptionFrame:
    return TranscriptionFrame(text=text, user_id="cat", timestamp="")


def i(text: str) -> InterimTranscriptionFrame:
    return InterimTranscriptionFrame(text=text, user_id="cat", timestamp="")


USERS = {
    "se": ([S(), E()], [], [S, E]),
    "ste": ([S(), t("Hello!"), E()], ["Hello!"], [S, E, C]),
    "site": ([S(), i("Hello"), t("Hello Pipecat!"), E()], ["Hello Pipecat!"], [S, E, C]),
    "siet": ([S(), i("How "), E(), t("How are you?")], ["How are you?"], [S, E, C]),
    "sieit": ([S(), i("How "), E(), i("are"), t("How are you?")], ["How are you?"], [S, E, C]),
    "set": ([S(), E(), t("How are you?")], ["How are you?"], [S, E, C]),
    "seit": ([S(), E(), i("How "), t("How are you?")], ["How are you?"], [S, E, C]),
    "set1t2": ([S(), E(), t("Hello"), t("you?")], ["Hello you?"], [S, E, C]),
    "t": ([t("Hello!")], ["Hello!"], [C]),
    "it": ([i("Hello "), t("Hello!")], ["Hello!"], [C]),
}


@pytest.mark.parametrize("name", USERS)
async def test_the_users_silence_is_watched(name: str) -> None:
    """An aggregator that nobody ticks, and without a clock given, answers as in a turn."""
    frames, texts, kinds = USERS[name]
    context = OpenAILLMContext()

    async with Running(LLMUserContextAggregator(context, params=QUICK)) as run:
        await run.task.queue_frames(frames)
        await run.has(*kinds)

        assert [message["content"] for message in context.messages] == texts
    emulated = [EmulateUserStartedSpeakingFrame, EmulateUserStoppedSpeakingFrame]
    assert [type(frame) for frame in run.before.up] == (emulated if name in {"t", "it"} else [])


async def test_pending_words_are_not_lost_at_the_end() -> None:
    """Speech, its text and the end of it, queued together with the end: one answer is asked for."""
    context = OpenAILLMContext()

    async with Running(LLMUserContextAggregator(context)) as run:
        await run.task.queue_frames([t("Hello"), EndFrame()])

    assert run.after.kinds() == [C]
    assert context.messages == [{"role": "user", "content": "Hello"}]


TS = OpenAILLMContextAssistantTimestampFrame
START, END = LLMFullResponseStartFrame(), LLMFullResponseEndFrame()
RAW = LLMAssistantAggregatorParams(expect_stripped_words=False)
ASSISTANTS = {
    "empty": (None, [START, END], [], []),
    "single": (None, [START, TextFrame("Hello Pipecat!"), END], ["Hello Pipecat!"], [C, TS]),
    "raw": (
        RAW,
        [START, *map(TextFrame, ("Hello ", "Pipecat. ", "How are ", "you?")), END],
        ["Hello Pipecat. How are you?"],
        [C, TS],
    ),
    "stripped": (
        None,
        [START, *map(TextFrame, ("Hello", "Pipecat.", "How are", "you?")), END],
        ["Hello Pipecat. How are you?"],
        [C, TS],
    ),
    "two": (
        RAW,
        [START, TextFrame("Hello "), TextFrame("you."), END, START, TextFrame("How?"), END],
        ["Hello you.", "How?"],
        [C, TS, C, TS],
    ),
}


@pytest.mark.parametrize("name", ASSISTANTS)
async def test_an_assistant_aggregator_needs_nothing_but_a_context(name: str) -> None:
    """Made as in the original, it commits as in the original."""
    params, frames, texts, kinds = ASSISTANTS[name]
    context = OpenAILLMContext()

    async with Running(LLMAssistantContextAggregator(context, params=params)) as run:
        await run.task.queue_frames(frames)

    assert [message["content"] for message in context.messages] == texts
    assert run.after.kinds() == kinds


async def test_a_call_and_its_result_stand_in_the_context() -> None:
    """The context frame goes up, to the model; nothing goes down."""
    context = OpenAILLMContext()
    call = ("get_weather", "1", {"location": "LA"})

    async with Running(LLMAssistantContextAggregator(context)) as run:
        await run.task.queue_frame(FunctionCallInProgressFrame(*call))
        await run.task.queue_frame(FunctionCallResultFrame(*call, {"conditions": "Sunny"}))

    assert context.messages[-1]["content"] == '{"conditions": "Sunny"}'
    assert run.after.kinds() == []
    assert [type(frame) for frame in run.before.up] == [C]


class Slow(FrameProcessor):
    """Deals with text until it is interrupted."""

    def __init__(self) -> None:
        super().__init__()
        self.began = asyncio.Event()
        self.interrupted = asyncio.Event()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, TextFrame):
            self.began.set()
            await self.interrupted.wait()
        if isinstance(frame, StartInterruptionFrame):
            self.interrupted.set()
        await self.push_frame(frame, direction)


async def test_an_interruption_does_not_queue() -> None:
    """It reaches who is busy; everything else waits for its turn."""
    slow = Slow()
    async with Running(slow) as run:
        await run.task.queue_frames([TextFrame("a"), S()])
        await slow.began.wait()
        await run.task.queue_frame(StartInterruptionFrame())
        await run.has(StartInterruptionFrame, TextFrame, S)


@pytest.mark.parametrize("kind", [EndTaskFrame, CancelTaskFrame, lambda: FatalErrorFrame("x")])
async def test_a_processor_can_end_the_pipeline(kind: type[Frame]) -> None:
    """A frame that comes out at the head ends it; an error that is not fatal does not."""
    async with Running() as run:
        await run.after.push_frame(ErrorFrame("x"), UPSTREAM)
        assert not run.task.has_finished()
        await run.after.push_frame(kind(), UPSTREAM)
        await wait_until(run.task.has_finished, "the end")


async def test_a_cancelled_pipeline_stops_at_once() -> None:
    """What is being dealt with is given up; cancelling again does nothing."""
    slow = Slow()
    async with Running(slow) as run:
        await run.task.queue_frame(TextFrame("a"))
        await slow.began.wait()
        await run.task.cancel()
        await wait_until(run.task.has_finished, "the end")
        await run.task.cancel()


async def test_a_pipeline_that_was_cancelled_before_does_not_run() -> None:
    """It ends before the first frame."""
    seen = Seen()
    task = PipelineTask(Pipeline([seen]))
    await task.cancel()

    await task.run()

    assert (task.has_finished(), seen.down) == (True, [])


async def test_what_a_processor_raises_comes_out_of_run() -> None:
    """Nothing hangs, and nobody has to look for it in a log."""

    class Broken(FrameProcessor):
        async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
            if isinstance(frame, TextFrame):
                raise LookupError("broken")  # noqa: TRY004 - anything will do

    task = PipelineTask(Pipeline([Broken()]))
    await task.queue_frame(TextFrame("a"))

    with pytest.raises(LookupError, match="broken"):
        await task.run()
    assert task.has_finished()


async def test_the_start_says_what_to_report() -> None:
    """Parameters of the task stand in the StartFrame, metadata included."""
    params = PipelineParams(enable_metrics=True, start_metadata={"a": 1})
    async with Running(params=params) as run:
        pass

    start = run.after.down[0]
    assert isinstance(start, StartFrame)
    assert (start.enable_metrics, start.enable_usage_metrics, start.metadata) == (
        True,
        False,
        {"a": 1},
    )


RESPONSES: dict[str, tuple[list[Any], list[tuple[str, bool]]]] = {
    "empty": ([START, END], [("", True)]),
    "simple": (
        [START, LLMTextFrame("Hello "), LLMTextFrame("there!"), END],
        [("Hello there!", True)],
    ),
    "outside": ([LLMTextFrame("x"), START, END], [("", True)]),
    "interrupted": (
        [START, LLMTextFrame("Hello "), StartInterruptionFrame(), START, LLMTextFrame("Hi"), END],
        [("Hello ", False), ("Hi", True)],
    ),
}


@pytest.mark.parametrize("name", RESPONSES)
async def test_whole_responses_are_told(name: str) -> None:
    """Every response by its event, and every frame passed on."""
    frames, told = RESPONSES[name]
    heard: list[tuple[str, bool]] = []
    aggregator = LLMFullResponseAggregator()

    @aggregator.event_handler("on_completion")
    async def on_completion(which: FrameProcessor, completion: str, completed: bool) -> None:
        assert which is aggregator
        heard.append((completion, completed))

    seen = Seen()
    aggregator.link(seen)
    for frame in frames:
        await aggregator.queue_frame(frame)
    await aggregator.cleanup()

    assert heard == told
    assert seen.down == frames


async def test_a_handler_that_raises_is_an_error_frame() -> None:
    """It stops nothing, and its words are not repeated."""
    seen, aggregator = Seen(), LLMFullResponseAggregator()
    seen.link(aggregator)
    aggregator.add_event_handler("on_completion", lambda *_: 1 / 0)

    await aggregator.queue_frame(END)
    await aggregator.cleanup()

    (error,) = seen.up
    assert isinstance(error, ErrorFrame)
    assert error.error == "a handler of on_completion raised ZeroDivisionError"
    with pytest.raises(ValueError, match="on_completion"):
        aggregator.event_handler("on_complete")(print)


async def test_response_aggregators_have_a_context_of_their_own() -> None:
    """They ask by a frame with the messages themselves."""
    user = LLMUserResponseAggregator([{"role": "system", "content": "Be kind."}], params=QUICK)
    assistant = LLMAssistantResponseAggregator(params=RAW)
    async with Running(user, assistant) as run:
        await run.task.queue_frames([S(), t("Hello"), E(), START, LLMTextFrame("Hi"), END])

    asked = [frame for frame in run.after.down if isinstance(frame, LLMMessagesFrame)]
    assert [frame.messages[-1]["content"] for frame in asked] == ["Hello", "Hi"]
    assert len(user.messages) == 2


def test_former_keywords_are_taken_with_a_warning() -> None:
    """As the original still takes them; and nobody else's parameters change."""
    shared, words = LLMUserAggregatorParams(), LLMAssistantAggregatorParams()
    with pytest.warns(DeprecationWarning, match="params"):
        user = LLMUserContextAggregator(OpenAILLMContext(), params=shared, aggregation_timeout=2)
    with pytest.warns(DeprecationWarning, match="params"):
        assistant = LLMAssistantContextAggregator(
            OpenAILLMContext(), params=words, expect_stripped_words=False
        )

    assert user._params.aggregation_timeout == 2
    assert assistant._params.expect_stripped_words is False
    assert (shared.aggregation_timeout, words.expect_stripped_words) == (0.5, True)
