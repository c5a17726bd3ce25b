"""Turns what user and assistant say into messages of a context."""

import asyncio
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import msgspec

from turnline.worker.pipeline.context import (
    CANCELLED,
    COMPLETED,
    IN_PROGRESS,
    Message,
    OpenAILLMContext,
)
from turnline.worker.pipeline.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    CancelFrame,
    EmulateUserStartedSpeakingFrame,
    EmulateUserStoppedSpeakingFrame,
    EndFrame,
    Frame,
    FunctionCallCancelFrame,
    FunctionCallFromLLM,
    FunctionCallInProgressFrame,
    FunctionCallResultFrame,
    FunctionCallsStartedFrame,
    InterimTranscriptionFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMMessagesAppendFrame,
    LLMMessagesFrame,
    LLMMessagesUpdateFrame,
    LLMSetToolChoiceFrame,
    LLMSetToolsFrame,
    LLMTextFrame,
    OpenAILLMContextAssistantTimestampFrame,
    OpenAILLMContextFrame,
    StartInterruptionFrame,
    TextFrame,
    TranscriptionFrame,
    UserImageRawFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from turnline.worker.pipeline.overrides import overridden
from turnline.worker.pipeline.processor import DOWNSTREAM, UPSTREAM, FrameDirection, FrameProcessor


@dataclass
class LLMUserAggregatorParams:
    """Settings of the user aggregator."""

    aggregation_timeout: float = 0.5
    """Seconds without a further transcription after which the user is taken to be done."""


@dataclass
class LLMAssistantAggregatorParams:
    """Settings of the assistant aggregator."""

    expect_stripped_words: bool = True
    """True: pieces are words without spaces, to be joined by one. False: raw model deltas."""


_USER_PARAMS: Final = LLMUserAggregatorParams()
_ASSISTANT_PARAMS: Final = LLMAssistantAggregatorParams()

_PIECES_MOST: Final = 4_096
"""Pieces of text that are kept apart: small strings take many times their text."""


class LLMFullResponseAggregator(FrameProcessor):
    """Tells each whole response, or what there is of it at an interruption; passes all frames on.

    Event: `on_completion(aggregator, completion, completed)`.
    """

    EVENTS: ClassVar[frozenset[str]] = frozenset({"on_completion"})

    def __init__(self, *, name: str | None = None) -> None:
        """Begin between two responses."""
        super().__init__(name=name)
        self._aggregation = ""
        self._started = False

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Collect the text of a response."""
        await super().process_frame(frame, direction)
        match frame:
            case LLMTextFrame():
                if self._started:
                    self._aggregation += frame.text
            case LLMFullResponseStartFrame():
                self._started = True
            case LLMFullResponseEndFrame() | StartInterruptionFrame():
                completed = isinstance(frame, LLMFullResponseEndFrame)
                text, self._aggregation, self._started = self._aggregation, "", False
                await self._call_event_handler("on_completion", text, completed)
            case _:
                pass
        await self.push_frame(frame, direction)


class LLMContextResponseAggregator(FrameProcessor):
    """What both aggregators share: the context and the frames that change it."""

    def __init__(self, *, context: OpenAILLMContext, role: str, name: str | None = None) -> None:
        """Work on `context`, which the pair shares, for whoever has `role` there."""
        super().__init__(name=name)
        self._context = context
        self._role = role

    @property
    def context(self) -> OpenAILLMContext:
        """The context that this aggregator adds to."""
        return self._context

    @property
    def messages(self) -> list[Message]:
        """The context's live list of messages."""
        return self._context.get_messages()

    @property
    def role(self) -> str:
        """Whose messages these are: `user` or `assistant`."""
        return self._role

    def add_messages(self, messages: Iterable[Message]) -> None:
        """Add messages to the context."""
        self._context.add_messages(messages)

    def set_messages(self, messages: Iterable[Message]) -> None:
        """Replace the context's messages."""
        self._context.set_messages(messages)

    def set_tools(self, tools: Any) -> None:
        """Set the context's tools."""
        self._context.set_tools(tools)

    def set_tool_choice(self, tool_choice: Any) -> None:
        """Set the context's tool choice."""
        self._context.set_tool_choice(tool_choice)

    def get_context_frame(self) -> OpenAILLMContextFrame:
        """Return the frame that asks for an answer to the context as it is then."""
        return OpenAILLMContextFrame(self._context)

    async def push_context_frame(self, direction: FrameDirection = DOWNSTREAM) -> None:
        """Ask for an answer to the context as it is now."""
        await self.push_frame(self.get_context_frame(), direction)

    async def reset(self) -> None:
        """Forget what was collected; the context stays as it is."""

    async def handle_aggregation(self, aggregation: str) -> None:
        """Add what was collected to the context; pushes nothing."""
        self._context.add_message({"role": self.role, "content": aggregation})

    async def push_aggregation(self) -> None:
        """Bring what was collected into the context and ask for an answer; nothing if empty."""

    async def _change_context(self, frame: Frame) -> bool:
        """Apply a frame that changes the context itself; False if it is none."""
        match frame:
            case LLMMessagesAppendFrame():
                self.add_messages(frame.messages)
            case LLMMessagesUpdateFrame():
                self.set_messages(frame.messages)
            case LLMSetToolsFrame():
                self.set_tools(frame.tools)
                return True
            case LLMSetToolChoiceFrame():
                self.set_tool_choice(frame.tool_choice)
                return True
            case _:
                return False
        if frame.run_llm:
            await self._run_llm()
        return True

    async def _run_llm(self) -> None:
        """Ask for an answer to the context, wherever the model's service is."""
        await self.push_context_frame()


class LLMUserContextAggregator(LLMContextResponseAggregator):
    """Collects what the user says until the user is done, then asks for an answer.

    There is no timer task: `deadline` says when `tick` wants to be called. A final transcription
    restarts the wait, and so does the end of speech while one more final transcription is due.
    """

    NEVER_CALLED: ClassVar[Mapping[str, Sequence[str]]] = {
        "There is no timer task: override tick, push_aggregation or process_frame.": (
            "_start",
            "_stop",
            "_cancel",
            "_create_aggregation_task",
            "_cancel_aggregation_task",
            "_aggregation_task_handler",
            "_maybe_emulate_user_speaking",
        ),
        "There are no interruption strategies: override process_frame.": (
            "_handle_input_audio",
            "_should_interrupt_based_on_strategies",
        ),
    }

    def __init__(
        self,
        context: OpenAILLMContext,
        *,
        params: LLMUserAggregatorParams | None = None,
        now: Callable[[], float] | None = None,
        name: str | None = None,
        aggregation_timeout: float | None = None,
    ) -> None:
        """Collect into `context`.

        Args:
            context: Shared with the assistant aggregator.
            params: Settings, of which a copy is kept; the defaults if None.
            now: A clock, seconds, of which only differences count; the event loop's if None.
            name: Name in metrics.
            aggregation_timeout: In place of that of `params`; deprecated.
        """
        super().__init__(context=context, role="user", name=name)
        params = params or _USER_PARAMS
        self._params = LLMUserAggregatorParams(params.aggregation_timeout)
        if aggregation_timeout is not None:
            _warn_of("aggregation_timeout")
            self._params.aggregation_timeout = aggregation_timeout
        self._now = now or _loop_time
        self._aggregation = ""
        self._user_speaking = False
        self._bot_speaking = False
        self._emulating_vad = False
        self._seen_interim_results = False
        self._waiting_for_aggregation = False
        self._waits_since = 0.0

    @property
    def deadline(self) -> float | None:
        """When to call `tick`, on the clock given; None while there is nothing to wait for."""
        if self._user_speaking or not (self._aggregation or self._emulating_vad):
            return None
        return self._waits_since + self._params.aggregation_timeout

    @property
    def due_in_s(self) -> float | None:
        """Seconds until `tick` wants to be called; None while there is nothing to wait for."""
        deadline = self.deadline
        return None if deadline is None else max(0.0, deadline - self._now())

    @property
    def has_pending(self) -> bool:
        """Whether text was received that is not in the context yet."""
        return bool(self._aggregation)

    @property
    def user_speaking(self) -> bool:
        """Whether the user started speaking and has not stopped."""
        return self._user_speaking

    async def tick(self) -> None:
        """Take the user to be done, if the deadline has passed."""
        deadline = self.deadline
        if deadline is None or self._now() < deadline:
            return
        emulating, self._emulating_vad = self._emulating_vad, False
        await self.push_aggregation()
        if emulating:
            await self.push_frame(EmulateUserStoppedSpeakingFrame(), UPSTREAM)

    async def reset(self) -> None:
        """Forget what was collected; the context stays as it is."""
        self._aggregation = ""
        self._seen_interim_results = False
        self._waiting_for_aggregation = False

    async def push_aggregation(self) -> None:
        """Add what was collected as one user message and ask for an answer; nothing if empty."""
        if self._aggregation:
            await self._process_aggregation()

    async def _process_aggregation(self) -> None:
        aggregation = self._aggregation
        await self.reset()
        await self.handle_aggregation(aggregation)
        await self.push_context_frame()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Collect speech and changes of the context; pass everything else on."""
        await super().process_frame(frame, direction)
        match frame:
            case TranscriptionFrame():
                await self._handle_transcription(frame)
            case InterimTranscriptionFrame():
                await self._handle_interim_transcription(frame)
            case UserStartedSpeakingFrame():
                await self._handle_user_started_speaking(frame)
                await self.push_frame(frame, direction)
            case UserStoppedSpeakingFrame():
                self._user_speaking = False
                await self.push_frame(frame, direction)
                await self._handle_user_stopped_speaking(frame)
            case BotStartedSpeakingFrame():
                await self._handle_bot_started_speaking(frame)
                await self.push_frame(frame, direction)
            case BotStoppedSpeakingFrame():
                await self._handle_bot_stopped_speaking(frame)
                await self.push_frame(frame, direction)
            case EndFrame():
                await self.push_aggregation()
                await self.push_frame(frame, direction)
            case _:
                if not await self._change_context(frame):
                    await self.push_frame(frame, direction)

    async def _handle_user_started_speaking(self, frame: UserStartedSpeakingFrame) -> None:
        self._user_speaking = True
        self._waiting_for_aggregation = True
        if not frame.emulated:
            self._emulating_vad = False

    async def _handle_user_stopped_speaking(self, _: UserStoppedSpeakingFrame) -> None:
        """Take what was collected to be whole, unless a final transcription is due."""
        self._user_speaking = False
        if self._seen_interim_results:
            self._waits_since = self._now()
        else:
            await self.push_aggregation()

    async def _handle_bot_started_speaking(self, _: BotStartedSpeakingFrame) -> None:
        self._bot_speaking = True

    async def _handle_bot_stopped_speaking(self, _: BotStoppedSpeakingFrame) -> None:
        self._bot_speaking = False

    async def _handle_transcription(self, frame: TranscriptionFrame) -> None:
        text = frame.text
        if not text.strip():
            return
        self._aggregation = f"{self._aggregation} {text}" if self._aggregation else text
        self._seen_interim_results = False
        self._waits_since = self._now()
        if self._user_speaking or self._waiting_for_aggregation:
            return
        if self._bot_speaking:
            await self.reset()
        elif not self._emulating_vad:
            self._emulating_vad = True
            await self.push_frame(EmulateUserStartedSpeakingFrame(), UPSTREAM)

    async def _handle_interim_transcription(self, _: InterimTranscriptionFrame) -> None:
        self._seen_interim_results = True


class LLMAssistantContextAggregator(LLMContextResponseAggregator):
    """Collects the model's answer and its tool calls into the context.

    Text of a response stands before its calls, in one message with all of them. When the last
    call of a response has its result, the model is asked once to go on.
    """

    NEVER_CALLED: ClassVar[Mapping[str, Sequence[str]]] = {
        "Override process_frame, which sees every frame.": ("_handle_text",),
        "on_context_updated is awaited in place.": ("_context_updated_task_finished",),
    }

    def __init__(
        self,
        context: OpenAILLMContext,
        *,
        params: LLMAssistantAggregatorParams | None = None,
        timestamp: Callable[[], str] | None = None,
        name: str | None = None,
        expect_stripped_words: bool | None = None,
    ) -> None:
        """Collect into `context`.

        Args:
            context: Shared with the user aggregator.
            params: Settings, of which a copy is kept; the defaults if None.
            timestamp: Gives the time of day, ISO 8601, UTC; without it timestamps are empty, since
                the pipeline has no clock of its own.
            name: Name in metrics.
            expect_stripped_words: In place of that of `params`; deprecated.
        """
        super().__init__(context=context, role="assistant", name=name)
        params = params or _ASSISTANT_PARAMS
        self._params = LLMAssistantAggregatorParams(params.expect_stripped_words)
        if expect_stripped_words is not None:
            _warn_of("expect_stripped_words")
            self._params.expect_stripped_words = expect_stripped_words
        self._timestamp = timestamp or _no_time
        self._pieces: list[str] = []
        self._has_text = False
        self._started = 0
        self._announced: Sequence[FunctionCallFromLLM] = ()
        self._pending: dict[str, bool] = {}
        self._written: set[str] = set()
        self._wants_run = False

    @property
    def has_pending_calls(self) -> bool:
        """Whether a tool call waits for its result."""
        return bool(self._pending)

    @property
    def pending_text(self) -> str:
        """Text received that is not in the context yet, as it would be committed."""
        return self._aggregation.strip()

    @property
    def _aggregation(self) -> str:
        """What was collected, for subclasses that push it themselves."""
        return "".join(self._pieces)

    @_aggregation.setter
    def _aggregation(self, text: str) -> None:
        self._pieces = [text]
        self._has_text = bool(text)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Collect text, tool calls and results; pass everything else on."""
        if type(frame) is LLMTextFrame or isinstance(frame, TextFrame):
            if self._started:
                if self._has_text and self._params.expect_stripped_words:
                    self._pieces.append(" ")
                self._pieces.append(frame.text)
                self._has_text = self._has_text or bool(frame.text)
                if len(self._pieces) > _PIECES_MOST:
                    self._pieces = ["".join(self._pieces)]
            return
        await super().process_frame(frame, direction)
        match frame:
            case LLMFullResponseStartFrame():
                await self._handle_llm_start(frame)
            case LLMFullResponseEndFrame():
                await self._handle_llm_end(frame)
            case StartInterruptionFrame():
                await self._handle_interruptions(frame)
                await self.push_frame(frame, direction)
            case BotStoppedSpeakingFrame() | EndFrame() | CancelFrame():
                await self.push_aggregation()
                await self.push_frame(frame, direction)
            case _:
                if not (await self._process_call(frame) or await self._change_context(frame)):
                    await self.push_frame(frame, direction)

    async def push_aggregation(self) -> None:
        """Add what was collected as one assistant message; nothing if empty."""
        if not self._has_text:
            return
        text = self.pending_text
        await self.reset()
        if text:
            await self.handle_aggregation(text)
        await self.push_context_frame()
        await self.push_frame(OpenAILLMContextAssistantTimestampFrame(self._timestamp()))

    async def reset(self) -> None:
        """Forget the text that was collected; the context stays as it is."""
        self._pieces.clear()
        self._has_text = False

    async def _run_llm(self) -> None:
        await self.push_context_frame(UPSTREAM)

    async def _handle_llm_start(self, _: LLMFullResponseStartFrame) -> None:
        self._started += 1

    async def _handle_llm_end(self, _: LLMFullResponseEndFrame) -> None:
        self._started = max(0, self._started - 1)
        await self.push_aggregation()

    async def _handle_interruptions(self, frame: StartInterruptionFrame) -> None:
        self._started = 0
        self._cut_to_heard(frame.heard)
        await self.push_aggregation()

    # Text

    def _cut_to_heard(self, heard: str | None) -> None:
        """Cut all that was said since the user spoke, also what stands in the context already."""
        if heard is None:
            return
        said = [m for m in self._context.last_answer() if _is_said(m)]
        texts = [*(message["content"] for message in said), "".join(self._pieces)]
        *kept, pending = cut_to_heard(texts, heard)
        for message, text in zip(said, kept, strict=True):
            self._context.set_said(message, text)
        self._aggregation = pending

    # Function calls

    async def _process_call(self, frame: Frame) -> bool:
        """Handle a frame about a function call; False if it is none."""
        match frame:
            case FunctionCallsStartedFrame():
                await self._handle_function_calls_started(frame)
            case FunctionCallInProgressFrame():
                await self._handle_function_call_in_progress(frame)
            case FunctionCallResultFrame():
                await self._handle_function_call_result(frame)
            case FunctionCallCancelFrame():
                await self._handle_function_call_cancel(frame)
            case UserImageRawFrame(request=request) if request and request.tool_call_id:
                await self._handle_user_image_frame(frame)
            case _:
                return False
        return True

    async def _handle_function_calls_started(self, frame: FunctionCallsStartedFrame) -> None:
        self._announced = frame.function_calls
        self._pending.update(dict.fromkeys((c.tool_call_id for c in self._announced), True))

    async def _handle_function_call_in_progress(self, frame: FunctionCallInProgressFrame) -> None:
        self._pending[frame.tool_call_id] = frame.cancel_on_interruption
        await self.handle_function_call_in_progress(frame)

    async def _handle_function_call_result(self, frame: FunctionCallResultFrame) -> None:
        if frame.tool_call_id not in self._pending:
            return
        self._forget_call(frame.tool_call_id)
        await self.handle_function_call_result(frame)
        self._wants_run = self._wants_run or wants_run(frame)
        if frame.properties and frame.properties.on_context_updated:
            await frame.properties.on_context_updated()
        await self._go_on()

    async def _handle_function_call_cancel(self, frame: FunctionCallCancelFrame) -> None:
        if self._pending.get(frame.tool_call_id):
            self._forget_call(frame.tool_call_id)
            await self.handle_function_call_cancel(frame)
            self._wants_run = False

    async def _handle_user_image_frame(self, frame: UserImageRawFrame) -> None:
        request = frame.request
        if request is None or request.tool_call_id not in self._pending:
            return
        self._forget_call(request.tool_call_id)
        await self.push_aggregation()
        await self.handle_user_image_frame(frame)
        self._wants_run = True
        await self._go_on()

    def _forget_call(self, tool_call_id: str) -> None:
        del self._pending[tool_call_id]
        self._written.discard(tool_call_id)

    async def handle_function_call_in_progress(self, frame: FunctionCallInProgressFrame) -> None:
        """Write the calls of this response, unless an earlier one of them has done so."""
        call_id = frame.tool_call_id
        if call_id in self._written or call_id in self._context.in_progress_ids():
            return
        if any(call.tool_call_id == call_id for call in self._announced):
            calls, self._announced = self._announced, ()
        else:
            calls = [FunctionCallFromLLM(frame.function_name, call_id, frame.arguments)]
        await self._write_calls(calls)

    async def handle_function_call_result(self, frame: FunctionCallResultFrame) -> None:
        """Write a call's result into the context."""
        content = content_of(frame)
        await self._update_function_call_result(frame.function_name, frame.tool_call_id, content)

    async def handle_function_call_cancel(self, frame: FunctionCallCancelFrame) -> None:
        """Write into the context that a call was cancelled."""
        await self._update_function_call_result(frame.function_name, frame.tool_call_id, CANCELLED)

    async def handle_user_image_frame(self, frame: UserImageRawFrame) -> None:
        """Write into the context that the call which asked for an image is done, and the image."""
        request = frame.request
        if request is None:
            return
        await self._update_function_call_result(
            request.function_name or "", request.tool_call_id or "", COMPLETED
        )
        self._context.add_image_frame_message(
            format=frame.format or "", size=frame.size, image=frame.image, text=request.context
        )

    async def _update_function_call_result(
        self,
        function_name: str,  # noqa: ARG002 - pipecat's signature
        tool_call_id: str,
        result: Any,
    ) -> None:
        self._context.set_tool_result(tool_call_id, result)

    async def _write_calls(self, calls: Sequence[FunctionCallFromLLM]) -> None:
        message: Message = {"role": "assistant"}
        if text := self.pending_text:
            await self.reset()
            if overridden(self, LLMContextResponseAggregator, ("handle_aggregation",)):
                await self.handle_aggregation(text)
            else:
                message["content"] = text
        message["tool_calls"] = [
            {
                "id": call.tool_call_id,
                "function": {"name": call.function_name, "arguments": _arguments_json(call)},
                "type": "function",
            }
            for call in calls
        ]
        self._context.add_message(message)
        for call in calls:
            self._written.add(call.tool_call_id)
            self._context.add_message(
                {"role": "tool", "content": IN_PROGRESS, "tool_call_id": call.tool_call_id}
            )

    async def _go_on(self) -> None:
        """Ask the model to go on, once, when no call of this response is without a result."""
        if self._wants_run and not self._pending:
            self._wants_run = False
            await self._run_llm()


class LLMUserResponseAggregator(LLMUserContextAggregator):
    """A user aggregator on a context of its own that asks for answers by an LLMMessagesFrame."""

    def __init__(
        self,
        messages: list[Message] | None = None,
        *,
        params: LLMUserAggregatorParams | None = None,
        now: Callable[[], float] | None = None,
        name: str | None = None,
    ) -> None:
        """Start from `messages`; the rest as in `LLMUserContextAggregator`."""
        super().__init__(OpenAILLMContext(messages), params=params, now=now, name=name)

    async def push_context_frame(self, direction: FrameDirection = DOWNSTREAM) -> None:
        """Ask for an answer to the messages as they are now."""
        await self.push_frame(LLMMessagesFrame(self._context.messages), direction)


class LLMAssistantResponseAggregator(LLMAssistantContextAggregator):
    """An assistant aggregator on a context of its own that tells it by an LLMMessagesFrame."""

    def __init__(
        self,
        messages: list[Message] | None = None,
        *,
        params: LLMAssistantAggregatorParams | None = None,
        name: str | None = None,
    ) -> None:
        """Start from `messages`; the rest as in `LLMAssistantContextAggregator`."""
        super().__init__(OpenAILLMContext(messages), params=params, name=name)

    async def push_aggregation(self) -> None:
        """Add what was collected as one assistant message and tell all; nothing if empty."""
        if not self._has_text:
            return
        text = self.pending_text
        await self.reset()
        if text:
            await self.handle_aggregation(text)
        await self.push_frame(LLMMessagesFrame(self._context.messages))


def content_of(frame: FunctionCallResultFrame) -> str:
    """Return what a result says to the model."""
    properties = frame.properties
    if properties is not None and properties.content is not None:
        return properties.content
    return to_json(frame.result) if frame.result else COMPLETED


def wants_run(frame: FunctionCallResultFrame) -> bool:
    """Tell whether the model is to run on a result."""
    properties = frame.properties
    wanted = properties.run_llm if properties else None
    if wanted is None:
        wanted = frame.run_llm
    says = bool(frame.result) or (properties is not None and properties.content is not None)
    return says and wanted is not False


def to_json(value: Any) -> str:
    """Return a tool's value as JSON text, non-ASCII characters as they are.

    Raises:
        TypeError: The value has no JSON form.
        ValueError: A number in it has none.
        RecursionError: It contains itself, or nests too deep.
    """
    plain = msgspec.to_builtins(value, str_keys=True)
    return json.dumps(plain, ensure_ascii=False, allow_nan=False)


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


def _no_time() -> str:
    return ""


def _warn_of(parameter: str) -> None:
    warnings.warn(f"{parameter} stands in `params`", DeprecationWarning, stacklevel=3)


def _arguments_json(call: FunctionCallFromLLM) -> str:
    return to_json(call.arguments) if call.raw_arguments is None else call.raw_arguments


def _is_said(message: Message) -> bool:
    return message.get("role") == "assistant" and isinstance(message.get("content"), str)


def cut_to_heard(texts: Sequence[str], heard: str) -> list[str]:
    """Return the leading part of texts, said one after the other, that `heard` covers.

    Words are compared, not spaces. Words that are in `heard` but not in the texts at that place end
    the comparison: what the assistant never said is never kept.
    """
    words = heard.split()
    cut: list[str] = []
    for text in texts:
        end = 0
        while words:
            start = end + len(text[end:]) - len(text[end:].lstrip())
            if not text.startswith(words[0], start):
                break
            end = start + len(words.pop(0))
        cut.append(text[:end])
        if text[end:].strip():
            words = []
    return cut
