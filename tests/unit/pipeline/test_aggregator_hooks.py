"""Subclasses of the aggregators: what they override is called, or refused when they are made."""

from typing import Any

import pytest

from turnline.worker.pipeline.aggregators import (
    LLMAssistantAggregatorParams,
    LLMAssistantContextAggregator,
    LLMUserContextAggregator,
)
from turnline.worker.pipeline.context import Message, OpenAILLMContext
from turnline.worker.pipeline.frames import (
    EndFrame,
    Frame,
    FunctionCallCancelFrame,
    FunctionCallFromLLM,
    FunctionCallInProgressFrame,
    FunctionCallResultFrame,
    FunctionCallsStartedFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMMessagesAppendFrame,
    LLMSetToolChoiceFrame,
    LLMSetToolsFrame,
    LLMTextFrame,
    OpenAILLMContextFrame,
    TranscriptionFrame,
    UserImageRawFrame,
    UserImageRequestFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from turnline.worker.pipeline.processor import DOWNSTREAM, UPSTREAM, FrameDirection, FrameProcessor

RAW = LLMAssistantAggregatorParams(expect_stripped_words=False)
START, END = LLMFullResponseStartFrame(), LLMFullResponseEndFrame()


class Kept(FrameProcessor):
    """Keeps what comes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Frame] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        self.seen.append(frame)


async def pushed(aggregator: FrameProcessor, *frames: Frame) -> list[Frame]:
    """Push frames; what came out of the aggregator, either way."""
    kept = Kept()
    kept.link(aggregator)
    aggregator.link(kept)
    for frame in frames:
        await aggregator.process_frame(frame, DOWNSTREAM)
    return kept.seen


def t(text: str) -> TranscriptionFrame:
    return TranscriptionFrame(text, "cat", "")


class ShoutingUser(LLMUserContextAggregator):
    """Keeps what users say in capitals, and marks what it asks for."""

    def __init__(self, context: OpenAILLMContext) -> None:
        super().__init__(context)
        self.resets = 0

    async def handle_aggregation(self, aggregation: str) -> None:
        self.context.add_message({"role": self.role, "content": aggregation.upper()})

    async def reset(self) -> None:
        await super().reset()
        self.resets += 1

    def get_context_frame(self) -> OpenAILLMContextFrame:
        frame = super().get_context_frame()
        frame.metadata["shouted"] = True
        return frame


async def test_a_user_aggregators_hooks_are_called() -> None:
    """What is added, how it is forgotten, and the frame that asks for an answer."""
    user = ShoutingUser(OpenAILLMContext())

    seen = await pushed(user, UserStartedSpeakingFrame(), t("hello"), UserStoppedSpeakingFrame())

    assert user.messages == [{"role": "user", "content": "HELLO"}]
    assert user.resets == 1
    assert [f.metadata for f in seen if isinstance(f, OpenAILLMContextFrame)] == [{"shouted": True}]


async def test_a_user_aggregator_may_push_in_its_own_way() -> None:
    """`push_aggregation` reads what was collected, also from the end of the pipeline."""
    taken: list[str] = []

    class Mine(LLMUserContextAggregator):
        async def push_aggregation(self) -> None:
            if self._aggregation:
                taken.append(self._aggregation)
                await self.reset()

    user = Mine(OpenAILLMContext())
    await pushed(user, UserStartedSpeakingFrame(), t("a"), t("b"), EndFrame())

    assert (taken, user.messages, user.has_pending) == (["a b"], [], False)


async def test_changes_of_the_context_go_through_the_aggregator() -> None:
    """Frames about messages and tools reach its methods; both aggregators know them."""
    calls: list[tuple[str, Any]] = []

    class Noting:
        def add_messages(self, messages: Any) -> None:
            calls.append(("add", messages))

        def set_tools(self, tools: Any) -> None:
            calls.append(("tools", tools))

        def set_tool_choice(self, tool_choice: Any) -> None:
            calls.append(("choice", tool_choice))

    class User(Noting, LLMUserContextAggregator):
        pass

    class Assistant(Noting, LLMAssistantContextAggregator):
        pass

    for cls in (User, Assistant):
        calls.clear()
        frames = (
            LLMMessagesAppendFrame([]),
            LLMSetToolsFrame([]),
            LLMSetToolChoiceFrame("none"),
        )
        assert await pushed(cls(OpenAILLMContext()), *frames) == []
        assert calls == [("add", []), ("tools", []), ("choice", "none")]


class CensoringAssistant(LLMAssistantContextAggregator):
    """Keeps nothing secret, and tells what it was asked."""

    def __init__(self, context: OpenAILLMContext) -> None:
        super().__init__(context, params=RAW)
        self.hooks: list[str] = []

    async def handle_aggregation(self, aggregation: str) -> None:
        await super().handle_aggregation(aggregation.replace("secret", "***"))

    async def handle_function_call_in_progress(self, frame: FunctionCallInProgressFrame) -> None:
        self.hooks.append(f"in progress {frame.tool_call_id}")
        await super().handle_function_call_in_progress(frame)

    async def handle_function_call_result(self, frame: FunctionCallResultFrame) -> None:
        self.hooks.append(f"result {frame.tool_call_id}")
        frame.result = {"told": frame.result}
        await super().handle_function_call_result(frame)

    async def handle_function_call_cancel(self, frame: FunctionCallCancelFrame) -> None:
        self.hooks.append(f"cancel {frame.tool_call_id}")
        await super().handle_function_call_cancel(frame)

    async def handle_user_image_frame(self, frame: UserImageRawFrame) -> None:
        self.hooks.append(f"image {frame.user_id}")
        await super().handle_user_image_frame(frame)


def started(*call_ids: str) -> list[Frame]:
    """The frames of calls that begin together."""
    calls = [FunctionCallFromLLM("f", call_id, {}) for call_id in call_ids]
    return [
        FunctionCallsStartedFrame(calls),
        *(FunctionCallInProgressFrame("f", i, {}, cancel_on_interruption=True) for i in call_ids),
    ]


async def test_an_assistant_aggregators_hooks_are_called() -> None:
    """Text goes through its hook, also before a call; what becomes of calls through theirs."""
    assistant = CensoringAssistant(OpenAILLMContext())

    seen = await pushed(
        assistant,
        START,
        LLMTextFrame("a secret"),
        END,
        START,
        LLMTextFrame("the secret:"),
        *started("1", "2"),
        END,
        FunctionCallResultFrame("f", "1", {}, "x"),
        FunctionCallCancelFrame("f", "2"),
    )

    said = [m["content"] for m in assistant.messages if m.get("content")]
    assert said == ["a ***", "the ***:", '{"told": "x"}', "CANCELLED"]
    assert assistant.hooks == ["in progress 1", "in progress 2", "result 1", "cancel 2"]
    assert not any("secret" in str(vars(frame)) for frame in seen)


async def test_an_image_goes_through_its_hook() -> None:
    """The call that asked for it is done, and the model goes on."""
    assistant = CensoringAssistant(OpenAILLMContext())
    request = UserImageRequestFrame("cat", "What?", "f", "1")

    await pushed(assistant, *started("1"), UserImageRawFrame(b"i", (1, 1), "PNG", "cat", request))

    assert assistant.hooks == ["in progress 1", "image cat"]
    assert [m["role"] for m in assistant.messages] == ["assistant", "tool", "user"]


async def test_an_assistant_aggregator_may_push_in_its_own_way() -> None:
    """It reads and empties what was collected."""
    taken: list[str] = []

    class Buffer(LLMAssistantContextAggregator):
        async def push_aggregation(self) -> None:
            taken.append(self._aggregation)
            self._aggregation = ""

    assistant = Buffer(OpenAILLMContext(), params=RAW)
    await pushed(assistant, START, LLMTextFrame("a"), LLMTextFrame("b"), END, START, END)

    assert (taken, assistant.messages) == (["ab", ""], [])


async def test_an_overridden_result_reaches_the_context() -> None:
    """The inner step, which the original's own services call, does too."""

    class Mine(LLMAssistantContextAggregator):
        async def _update_function_call_result(
            self, function_name: str, tool_call_id: str, result: Any
        ) -> None:
            await super()._update_function_call_result(function_name, tool_call_id, f"<{result}>")

    assistant = Mine(OpenAILLMContext())
    await pushed(assistant, *started("1"), FunctionCallResultFrame("f", "1", {}, "x"))

    assert assistant.messages[-1]["content"] == '<"x">'


def test_a_context_sends_what_it_says_its_messages_are() -> None:
    """An overridden `get_messages` decides what is sent; nothing else changes."""

    class Short(OpenAILLMContext):
        def get_messages(self) -> list[Message]:
            return super().get_messages()[-1:]

        def to_standard_messages(self, message: Message) -> list[Message]:  # type: ignore[override]
            return [{**message, "kept": True}]

    context = Short([{"role": "user", "content": text} for text in "abc"])

    assert context.encoded_request_messages() == b'[{"role":"user","content":"c"}]'
    assert len(context.encoded_messages()) == len(context._messages) == 3
    assert [m["kept"] for m in context.get_messages_for_persistent_storage()] == [True] * 3


@pytest.mark.parametrize(
    "base", [FrameProcessor, LLMUserContextAggregator, LLMAssistantContextAggregator]
)
def test_an_override_that_nobody_would_call_is_refused(base: type[FrameProcessor]) -> None:
    """When the class is made, by name and with what to do instead; also through a mixin."""
    for instead, names in base.NEVER_CALLED.items():
        for name in names:
            with pytest.raises(TypeError, match=rf"Mine\.{name} would never be called.*{instead}"):
                type("Mine", (base,), {name: lambda _: None})
            with pytest.raises(TypeError, match=name):
                type("Mine", (type("Mixin", (), {name: None}), base), {})


def test_what_is_refused_is_not_there() -> None:
    """A list of names that are never called holds none that a class has."""
    for base in (FrameProcessor, LLMUserContextAggregator, LLMAssistantContextAggregator):
        type("Plain", (base,), {})


async def test_an_assistants_append_may_run_the_model() -> None:
    """Behind the service the wish for an answer goes up."""
    kept, assistant = Kept(), LLMAssistantContextAggregator(OpenAILLMContext())
    kept.link(assistant)

    await assistant.process_frame(LLMMessagesAppendFrame([], run_llm=True), DOWNSTREAM)
    assert [type(frame) for frame in kept.seen] == [OpenAILLMContextFrame]

    kept.seen.clear()
    await assistant.push_context_frame(UPSTREAM)
    assert len(kept.seen) == 1
