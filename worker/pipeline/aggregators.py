"""Turns what user and assistant say into messages of a context."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from worker.pipeline.context import CANCELLED, COMPLETED, IN_PROGRESS, Message, OpenAILLMContext
from worker.pipeline.frames import (
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
from worker.pipeline.processor import DOWNSTREAM, UPSTREAM, FrameDirection, FrameProcessor


class LLMUserAggregatorParams(msgspec.Struct):
    """Settings of the user aggregator."""

    aggregation_timeout: float = 0.5
    """Seconds without a further transcription after which the user is taken to be done."""


class LLMAssistantAggregatorParams(msgspec.Struct):
    """Settings of the assistant aggregator."""

    expect_stripped_words: bool = True
    """True: pieces are words without spaces, to be joined by one. False: raw model deltas."""


class LLMContextAggregator(FrameProcessor):
    """What both aggregators share: the context and the frames that change it."""

    def __init__(self, context: OpenAILLMContext) -> None:
        """Work on `context`, which the pair shares."""
        super().__init__()
        self._context = context

    @property
    def context(self) -> OpenAILLMContext:
        """The context that this aggregator adds to."""
        return self._context

    @property
    def messages(self) -> list[Message]:
        """The context's live list of messages."""
        return self._context.messages

    async def push_context_frame(self, direction: FrameDirection = DOWNSTREAM) -> None:
        """Ask for an answer to the context as it is now."""
        await self.push_frame(OpenAILLMContextFrame(self._context), direction)


class LLMUserContextAggregator(LLMContextAggregator):
    """Collects what the user says until the user is done, then asks for an answer.

    There is no timer task: `deadline` says when `tick` wants to be called. A final transcription
    restarts the wait, and so does the end of speech while one more final transcription is due.
    """

    def __init__(
        self,
        context: OpenAILLMContext,
        *,
        params: LLMUserAggregatorParams | None = None,
        now: Callable[[], float],
    ) -> None:
        """Collect into `context`.

        Args:
            context: Shared with the assistant aggregator.
            params: Settings; the defaults if None.
            now: A clock, seconds; only differences count.
        """
        super().__init__(context)
        self._params = params or LLMUserAggregatorParams()
        self._now = now
        self._aggregation = ""
        self._user_speaking = False
        self._bot_speaking = False
        self._emulating_vad = False
        self._seen_interim = False
        self._waiting_for_aggregation = False
        self._waits_since = 0.0

    @property
    def deadline(self) -> float | None:
        """When to call `tick`, on the clock given; None while there is nothing to wait for."""
        if self._user_speaking or not (self._aggregation or self._emulating_vad):
            return None
        return self._waits_since + self._params.aggregation_timeout

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

    async def push_aggregation(self) -> None:
        """Add what was collected as one user message and ask for an answer; nothing if empty."""
        text = self._aggregation
        if not text:
            return
        self._reset()
        self._context.add_message({"role": "user", "content": text})
        await self.push_context_frame()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Collect speech and changes of the context; pass everything else on."""
        await super().process_frame(frame, direction)
        match frame:
            case TranscriptionFrame():
                await self._add_transcription(frame.text)
            case InterimTranscriptionFrame():
                self._seen_interim = True
            case UserStartedSpeakingFrame():
                self._user_speaking = True
                self._waiting_for_aggregation = True
                if not frame.emulated:
                    self._emulating_vad = False
                await self.push_frame(frame, direction)
            case UserStoppedSpeakingFrame():
                await self._stop_speaking(frame, direction)
            case BotStartedSpeakingFrame() | BotStoppedSpeakingFrame():
                self._bot_speaking = isinstance(frame, BotStartedSpeakingFrame)
                await self.push_frame(frame, direction)
            case EndFrame():
                await self.push_aggregation()
                await self.push_frame(frame, direction)
            case _:
                if not await self._change_context(frame):
                    await self.push_frame(frame, direction)

    async def _change_context(self, frame: Frame) -> bool:
        """Apply a frame that changes the context itself; False if it is none."""
        match frame:
            case LLMMessagesAppendFrame():
                self._context.add_messages(frame.messages)
            case LLMMessagesUpdateFrame():
                self._context.set_messages(frame.messages)
            case LLMSetToolsFrame():
                self._context.set_tools(frame.tools)
                return True
            case LLMSetToolChoiceFrame():
                self._context.set_tool_choice(frame.tool_choice)
                return True
            case _:
                return False
        if frame.run_llm:
            await self.push_context_frame()
        return True

    async def _stop_speaking(
        self, frame: UserStoppedSpeakingFrame, direction: FrameDirection
    ) -> None:
        self._user_speaking = False
        await self.push_frame(frame, direction)
        if self._seen_interim:
            self._waits_since = self._now()
        else:
            await self.push_aggregation()

    async def _add_transcription(self, text: str) -> None:
        if not text.strip():
            return
        self._aggregation = f"{self._aggregation} {text}" if self._aggregation else text
        self._seen_interim = False
        self._waits_since = self._now()
        if self._user_speaking or self._waiting_for_aggregation:
            return
        if self._bot_speaking:
            self._reset()
        elif not self._emulating_vad:
            self._emulating_vad = True
            await self.push_frame(EmulateUserStartedSpeakingFrame(), UPSTREAM)

    def _reset(self) -> None:
        self._aggregation = ""
        self._seen_interim = False
        self._waiting_for_aggregation = False


class LLMAssistantContextAggregator(LLMContextAggregator):
    """Collects the model's answer and its tool calls into the context.

    Text of a response stands before its calls, in one message with all of them. When the last
    call of a response has its result, the model is asked once to go on.
    """

    def __init__(
        self,
        context: OpenAILLMContext,
        *,
        params: LLMAssistantAggregatorParams | None = None,
        timestamp: Callable[[], str],
    ) -> None:
        """Collect into `context`.

        Args:
            context: Shared with the user aggregator.
            params: Settings; the defaults if None.
            timestamp: Gives the time of day, ISO 8601, UTC.
        """
        super().__init__(context)
        self._params = params or LLMAssistantAggregatorParams()
        self._joins_words = self._params.expect_stripped_words
        self._timestamp = timestamp
        self._pieces: list[str] = []
        self._has_text = False
        self._open_responses = 0
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
        return "".join(self._pieces).strip()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Collect text, tool calls and results; pass everything else on."""
        if type(frame) is LLMTextFrame:
            if self._open_responses:
                self._add_text(frame.text)
            return
        await super().process_frame(frame, direction)
        match frame:
            case TextFrame():
                if self._open_responses:
                    self._add_text(frame.text)
            case LLMFullResponseStartFrame():
                self._open_responses += 1
            case LLMFullResponseEndFrame():
                self._open_responses = max(0, self._open_responses - 1)
                await self.push_aggregation()
            case StartInterruptionFrame():
                self._open_responses = 0
                self._cut_to_heard(frame.heard)
                await self.push_aggregation()
                await self.push_frame(frame, direction)
            case BotStoppedSpeakingFrame() | EndFrame() | CancelFrame():
                await self.push_aggregation()
                await self.push_frame(frame, direction)
            case _:
                if not await self._process_call(frame):
                    await self.push_frame(frame, direction)

    async def push_aggregation(self) -> None:
        """Add what was collected as one assistant message; nothing if empty."""
        if not self._has_text:
            return
        text = self._take_text()
        if text:
            self._context.add_message({"role": "assistant", "content": text})
        await self.push_context_frame()
        await self.push_frame(OpenAILLMContextAssistantTimestampFrame(self._timestamp()))

    # Text

    def _settle(self, tool_call_id: str, content: str) -> None:
        del self._pending[tool_call_id]
        self._written.discard(tool_call_id)
        self._context.set_tool_result(tool_call_id, content)

    def _add_text(self, text: str) -> None:
        if self._joins_words and self._has_text:
            self._pieces.append(" ")
        self._pieces.append(text)
        self._has_text = self._has_text or bool(text)

    def _take_text(self) -> str:
        text = "".join(self._pieces).strip()
        self._pieces.clear()
        self._has_text = False
        return text

    def _cut_to_heard(self, heard: str | None) -> None:
        """Cut all that was said since the user spoke, also what stands in the context already."""
        if heard is None:
            return
        said = [m for m in self._context.last_answer() if _is_said(m)]
        texts = [*(message["content"] for message in said), "".join(self._pieces)]
        *kept, pending = cut_to_heard(texts, heard)
        for message, text in zip(said, kept, strict=True):
            self._context.set_said(message, text)
        self._pieces = [pending]
        self._has_text = bool(pending)

    # Function calls

    async def _process_call(self, frame: Frame) -> bool:
        """Handle a frame about a function call; False if it is none."""
        match frame:
            case FunctionCallsStartedFrame():
                self._announced = frame.function_calls
                self._pending.update(dict.fromkeys((c.tool_call_id for c in self._announced), True))
            case FunctionCallInProgressFrame():
                self._start_call(frame)
            case FunctionCallResultFrame():
                await self._finish_call(frame)
            case FunctionCallCancelFrame():
                await self._cancel_call(frame)
            case UserImageRawFrame(request=request) if request and request.tool_call_id:
                await self._add_image(frame, request.tool_call_id, request.context)
            case _:
                return False
        return True

    def _start_call(self, frame: FunctionCallInProgressFrame) -> None:
        """Write the calls of this response, unless an earlier one of them has done so."""
        call_id = frame.tool_call_id
        self._pending[call_id] = frame.cancel_on_interruption
        if call_id in self._written or call_id in self._context.in_progress_ids():
            return
        if any(call.tool_call_id == call_id for call in self._announced):
            calls, self._announced = self._announced, ()
        else:
            calls = [FunctionCallFromLLM(frame.function_name, call_id, frame.arguments)]
        self._write_calls(calls)

    def _write_calls(self, calls: Sequence[FunctionCallFromLLM]) -> None:
        message: Message = {"role": "assistant"}
        if text := self._take_text():
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

    async def _finish_call(self, frame: FunctionCallResultFrame) -> None:
        if frame.tool_call_id not in self._pending:
            return
        content, wants_run = told_of(frame)
        self._settle(frame.tool_call_id, content)
        self._wants_run = self._wants_run or wants_run
        if frame.properties and frame.properties.on_context_updated:
            await frame.properties.on_context_updated()
        await self._go_on()

    async def _cancel_call(self, frame: FunctionCallCancelFrame) -> None:
        if self._pending.get(frame.tool_call_id):
            self._settle(frame.tool_call_id, CANCELLED)
            self._wants_run = False

    async def _add_image(
        self, frame: UserImageRawFrame, tool_call_id: str, text: str | None
    ) -> None:
        if tool_call_id not in self._pending:
            return
        self._settle(tool_call_id, COMPLETED)
        await self.push_aggregation()
        self._context.add_image_frame_message(
            format=frame.format, size=frame.size, image=frame.image, text=text
        )
        self._wants_run = True
        await self._go_on()

    async def _go_on(self) -> None:
        """Ask the model to go on, once, when no call of this response is without a result."""
        if self._wants_run and not self._pending:
            self._wants_run = False
            await self.push_context_frame(UPSTREAM)


def told_of(frame: FunctionCallResultFrame) -> tuple[str, bool]:
    """Return what a result says to the model, and whether the model is to run on it."""
    properties = frame.properties
    wanted = properties.run_llm if properties else None
    if wanted is None:
        wanted = frame.run_llm
    if properties is not None and properties.content is not None:
        return properties.content, wanted is not False
    content = to_json(frame.result) if frame.result else COMPLETED
    return content, bool(frame.result and wanted is not False)


def to_json(value: Any) -> str:
    """Return a tool's value as JSON text, non-ASCII characters as they are.

    Raises:
        TypeError: The value has no JSON form.
    """
    return json.dumps(msgspec.to_builtins(value, str_keys=True), ensure_ascii=False)


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
