"""Shows readers what the model says, on its way to the assistant aggregator."""

from turnline.worker.pipeline.frames import (
    Frame,
    FunctionCallInProgressFrame,
    FunctionCallResultFrame,
    FunctionCallsStartedFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    OpenAILLMContextFrame,
)
from turnline.worker.pipeline.processor import FrameDirection, FrameProcessor
from turnline.worker.turn.event_writer import EventWriter
from turnline.worker.turn.observer import AttemptObserver, Unobserved
from turnline.worker.turn.tool_calls import ToolCalls

BETWEEN_ANSWERS = "\n\n"
"""Stands between the texts of one turn where tools ran in between."""
_CALL_FRAMES = (
    FunctionCallsStartedFrame,
    FunctionCallInProgressFrame,
    FunctionCallResultFrame,
)


class Tap(FrameProcessor):
    """Stands between model and assistant aggregator and shows readers what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.writer: EventWriter | None = None
        self.seen: AttemptObserver = Unobserved()
        self.tools: ToolCalls | None = None
        self.is_closed = False
        """Whether the model is not to be asked again."""
        self._separate = False

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Tell readers, and the calls' keeper, before the assistant aggregator hears of it."""
        writer = self.writer
        if writer is not None:
            if type(frame) is LLMTextFrame:
                if self._separate:
                    self._separate = False
                    writer.text(BETWEEN_ANSWERS)
                writer.text(frame.text)
                self.seen.said(frame.text)
            elif isinstance(frame, FunctionCallInProgressFrame):
                self.seen.tool_started(frame.tool_call_id, frame.function_name, frame.arguments)
            elif isinstance(frame, FunctionCallResultFrame):
                self.seen.tool_finished(frame.tool_call_id, frame.result, frame.failure)
            elif isinstance(frame, LLMFullResponseStartFrame):
                self._separate = writer.chars > 0
        if self.tools is not None and isinstance(frame, _CALL_FRAMES):
            await self.tools.take(frame, self.push_frame)
        elif not (self.is_closed and isinstance(frame, OpenAILLMContextFrame)):
            await self.push_frame(frame, direction)
