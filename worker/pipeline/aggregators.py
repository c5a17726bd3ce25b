"""The aggregators, by pipecat's names: of a context, and those that own their messages."""

from collections.abc import Callable
from typing import ClassVar

from turnline.worker.pipeline.assistant_aggregator import (
    LLMAssistantAggregatorParams,
    LLMAssistantContextAggregator,
    cut_to_heard,
)
from turnline.worker.pipeline.call_results import content_of, to_json, wants_run
from turnline.worker.pipeline.context import (
    Message,
    OpenAILLMContext,
)
from turnline.worker.pipeline.context_aggregator import LLMContextResponseAggregator
from turnline.worker.pipeline.frames import (
    Frame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMMessagesFrame,
    LLMTextFrame,
    StartInterruptionFrame,
)
from turnline.worker.pipeline.processor import DOWNSTREAM, FrameDirection, FrameProcessor
from turnline.worker.pipeline.user_aggregator import (
    LLMUserAggregatorParams,
    LLMUserContextAggregator,
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
        if not self._has_text:
            return
        text = self.pending_text
        await self.reset()
        if text:
            await self.handle_aggregation(text)
        await self.push_frame(LLMMessagesFrame(self._context.messages))
