"""The aggregators, by pipecat's names: of a context, and those that own their messages."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import msgspec

from turnline.worker.pipeline.context import (
    CANCELLED,
    COMPLETED,
    IN_PROGRESS,
    Message,
    OpenAILLMContext,
    overridden,
)
from turnline.worker.pipeline.frames import (
    BotStoppedSpeakingFrame,
    CancelFrame,
    EndFrame,
    Frame,
    FunctionCallCancelFrame,
    FunctionCallFromLLM,
    FunctionCallInProgressFrame,
    FunctionCallResultFrame,
    FunctionCallsStartedFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMMessagesFrame,
    LLMTextFrame,
    OpenAILLMContextAssistantTimestampFrame,
    StartInterruptionFrame,
    TextFrame,
    UserImageRawFrame,
)
from turnline.worker.pipeline.processor import (
    DOWNSTREAM,
    UPSTREAM,
    FrameDirection,
    FrameProcessor,
)
from turnline.worker.pipeline.reply_frames import (
    BesideText,
    LLMCitationFrame,
    LLMReplyItemFrame,
)
from turnline.worker.pipeline.user_aggregator import (
    LLMContextResponseAggregator,
    LLMUserAggregatorParams,
    LLMUserContextAggregator,
    warn_of_parameter,
)

__all__ = [
    "LLMAssistantAggregatorParams",
    "LLMAssistantContextAggregator",
    "LLMAssistantResponseAggregator",
    "LLMContextResponseAggregator",
    "LLMFullResponseAggregator",
    "LLMUserAggregatorParams",
    "LLMUserContextAggregator",
    "LLMUserResponseAggregator",
    "content_of",
    "cut_to_heard",
    "to_json",
    "wants_run",
]


@dataclass
class LLMAssistantAggregatorParams:
    """Settings of the assistant aggregator."""

    expect_stripped_words: bool = True
    """True: pieces are words without spaces, to be joined by one. False: raw model deltas."""


_ASSISTANT_PARAMS: Final = LLMAssistantAggregatorParams()


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
            warn_of_parameter("expect_stripped_words")
            self._params.expect_stripped_words = expect_stripped_words
        self._timestamp = timestamp or str  # the empty text
        self._started = 0
        self._announced: Sequence[FunctionCallFromLLM] = ()
        self._pending: dict[str, bool] = {}
        self._written: set[str] = set()
        self._wants_run = False
        self._beside = BesideText()

    @property
    def pending_text(self) -> str:
        """Text received that is not in the context yet, as it would be committed."""
        return self._aggregation.strip()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Collect text, tool calls and results; pass everything else on."""
        if type(frame) is LLMTextFrame or isinstance(frame, TextFrame):
            if self._started:
                if self._params.expect_stripped_words and self.has_pending:
                    self._collected.write(" ")
                self._collected.write(frame.text)
            return
        await super().process_frame(frame, direction)
        match frame:
            case LLMFullResponseStartFrame():
                await self._handle_llm_start(frame)
            case LLMFullResponseEndFrame():
                await self._handle_llm_end(frame)
            case LLMReplyItemFrame() | LLMCitationFrame():
                self._beside.add(frame)
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
        if not self.has_pending:
            return
        text, cut = self.pending_text, self._space_before()
        await self.reset()
        if text:
            await self.handle_aggregation(text)
            said = self._context.last_message()
            if said is not None and said.get("role") == "assistant":
                self._beside.take(said, cut=cut)
        await self.push_context_frame()
        await self.push_frame(OpenAILLMContextAssistantTimestampFrame(self._timestamp()))

    async def _run_llm(self) -> None:
        await self.push_context_frame(UPSTREAM)

    async def _handle_llm_start(self, _: LLMFullResponseStartFrame) -> None:
        self._started += 1
        self._beside = BesideText()

    async def _handle_llm_end(self, _: LLMFullResponseEndFrame) -> None:
        self._started = max(0, self._started - 1)
        await self.push_aggregation()

    async def _handle_interruptions(self, frame: StartInterruptionFrame) -> None:
        self._started = 0
        self._cut_to_heard(frame.heard)
        await self.push_aggregation()

    # Text

    def _space_before(self) -> int:
        """Return how many characters the collected text loses at its beginning."""
        return len(self._aggregation) - len(self._aggregation.lstrip())

    def _cut_to_heard(self, heard: str | None) -> None:
        """Cut all that was said since the user spoke, also what stands in the context already."""
        if heard is None:
            return
        said = [m for m in self._context.last_answer() if _is_said(m)]
        texts = [*(message["content"] for message in said), self._aggregation]
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
        cut = self._space_before()
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
        self._beside.take(message, cut=cut)
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


class LLMFullResponseAggregator(FrameProcessor):
    """Tells each whole response, or what there is of it at an interruption; passes all frames on.

    Event: `on_completion(aggregator, completion, completed)`.
    """

    EVENTS: ClassVar[frozenset[str]] = frozenset({"on_completion"})

    def __init__(self, *, name: str | None = None) -> None:
        """Begin between two responses."""
        super().__init__(name=name)
        self._pieces: list[str] = []
        self._started = False

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Collect the text of a response."""
        await super().process_frame(frame, direction)
        match frame:
            case LLMTextFrame():
                if self._started:
                    self._pieces.append(frame.text)
            case LLMFullResponseStartFrame():
                self._started = True
            case LLMFullResponseEndFrame() | StartInterruptionFrame():
                completed = isinstance(frame, LLMFullResponseEndFrame)
                text, self._pieces, self._started = "".join(self._pieces), [], False
                await self._call_event_handler("on_completion", text, completed)
            case _:
                pass
        await self.push_frame(frame, direction)


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
        if not self.has_pending:
            return
        text = self.pending_text
        await self.reset()
        if text:
            await self.handle_aggregation(text)
        await self.push_frame(LLMMessagesFrame(self._context.messages))
