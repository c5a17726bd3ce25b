"""Collects what the user says into a context."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from turnline.worker.pipeline.context import (
    OpenAILLMContext,
)
from turnline.worker.pipeline.context_aggregator import (
    LLMContextResponseAggregator,
    warn_of_parameter,
)
from turnline.worker.pipeline.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    EmulateUserStartedSpeakingFrame,
    EmulateUserStoppedSpeakingFrame,
    EndFrame,
    Frame,
    InterimTranscriptionFrame,
    TranscriptionFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from turnline.worker.pipeline.processor import UPSTREAM, FrameDirection


@dataclass
class LLMUserAggregatorParams:
    """Settings of the user aggregator."""

    aggregation_timeout: float = 0.5
    """Seconds without a further transcription after which the user is taken to be done."""


_USER_PARAMS: Final = LLMUserAggregatorParams()


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
            warn_of_parameter("aggregation_timeout")
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


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
