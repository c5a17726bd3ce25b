"""What the aggregators of a context share, and the one that collects what the user says."""

import asyncio
import io
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from turnline.worker.pipeline.context import Message, OpenAILLMContext
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
    OpenAILLMContextFrame,
    TranscriptionFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from turnline.worker.pipeline.processor import (
    DOWNSTREAM,
    UPSTREAM,
    FrameDirection,
    FrameProcessor,
)


class LLMContextResponseAggregator(FrameProcessor):
    """What both aggregators share: the context and the frames that change it."""

    def __init__(self, *, context: OpenAILLMContext, role: str, name: str | None = None) -> None:
        """Work on `context`, which the pair shares, for whoever has `role` there."""
        super().__init__(name=name)
        self._context = context
        self._role = role
        self._collected = io.StringIO()

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

    @property
    def has_pending(self) -> bool:
        """Whether text was received that is not in the context yet."""
        return self._collected.tell() > 0

    @property
    def _aggregation(self) -> str:
        """What was collected, for subclasses that push it themselves."""
        return self._collected.getvalue()

    @_aggregation.setter
    def _aggregation(self, text: str) -> None:
        self._collected = io.StringIO()
        self._collected.write(text)

    async def reset(self) -> None:
        """Forget the text that was collected; the context stays as it is."""
        self._collected = io.StringIO()

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


@dataclass
class LLMUserAggregatorParams:
    """Settings of the user aggregator."""

    aggregation_timeout: float = 0.5
    """Seconds without a further transcription after which the user is taken to be done."""


_USER_PARAMS: Final = LLMUserAggregatorParams()


class LLMUserContextAggregator(LLMContextResponseAggregator):
    """Collects what the user says until the user is done, then asks for an answer.

    There is no timer task: `due_in_s` says when `tick` wants to be called, as `PipelineTask` does.
    The worker waits for more itself and calls `push_aggregation`. A final transcription restarts
    the wait, and so does the end of speech while one more final transcription is due.
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
            warn_of_parameter("aggregation_timeout")
            self._params.aggregation_timeout = aggregation_timeout
        self._now = now or _loop_time
        self._user_speaking = False
        self._bot_speaking = False
        self._emulating_vad = False
        self._seen_interim_results = False
        self._waiting_for_aggregation = False
        self._waits_since = 0.0

    @property
    def due_in_s(self) -> float | None:
        """Seconds until `tick` wants to be called; None while there is nothing to wait for."""
        if self._user_speaking or not (self.has_pending or self._emulating_vad):
            return None
        return max(0.0, self._waits_since + self._params.aggregation_timeout - self._now())

    @property
    def user_speaking(self) -> bool:
        """Whether the user started speaking and has not stopped."""
        return self._user_speaking

    async def tick(self) -> None:
        """Take the user to be done, if nothing was said for as long as `due_in_s` told."""
        if self.due_in_s != 0:  # None: nothing to wait for
            return
        emulating, self._emulating_vad = self._emulating_vad, False
        await self.push_aggregation()
        if emulating:
            await self.push_frame(EmulateUserStoppedSpeakingFrame(), UPSTREAM)

    async def reset(self) -> None:
        """Forget what was collected; the context stays as it is."""
        await super().reset()
        self._seen_interim_results = False
        self._waiting_for_aggregation = False

    async def push_aggregation(self) -> None:
        """Add what was collected as one user message and ask for an answer; nothing if empty."""
        if self.has_pending:
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
        self._collected.write(f" {text}" if self.has_pending else text)
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


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


def warn_of_parameter(parameter: str) -> None:
    """Warn that a parameter stands in `params` now."""
    warnings.warn(f"{parameter} stands in `params`", DeprecationWarning, stacklevel=3)
