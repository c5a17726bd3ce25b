"""Moves frames from processor to processor, one at a time and in order."""

import enum
import itertools
from collections.abc import Callable, Sequence
from typing import Final

from worker.pipeline.frames import (
    Frame,
    LLMTokenUsage,
    LLMUsageMetricsData,
    MetricsFrame,
    StartFrame,
)


class FrameDirection(enum.Enum):
    """Which way a frame travels."""

    DOWNSTREAM = 1
    """From the user towards the reply."""
    UPSTREAM = 2
    """Back."""


DOWNSTREAM: Final = FrameDirection.DOWNSTREAM
UPSTREAM: Final = FrameDirection.UPSTREAM


class FrameProcessor:
    """Takes frames and passes them on.

    `push_frame` returns when everything after this processor is done with the frame: there are no
    queues and no tasks in between, so no frame overtakes another and none is lost.
    """

    def __init__(self, *, name: str | None = None) -> None:
        """Name the processor in its metrics; the class's name if none is given."""
        self._name = name or type(self).__name__
        self._next: FrameProcessor | None = None
        self._previous: FrameProcessor | None = None
        self._start = StartFrame()

    @property
    def name(self) -> str:
        """As it stands in metrics."""
        return self._name

    def link(self, processor: "FrameProcessor") -> None:
        """Make `processor` the next one downstream."""
        self._next = processor
        processor._previous = self  # noqa: SLF001 - the same class

    def unlink(self) -> None:
        """Forget the next one downstream, and be forgotten by it."""
        if self._next is not None:
            self._next._previous = None  # noqa: SLF001 - the same class
            self._next = None

    async def process_frame(
        self,
        frame: Frame,
        direction: FrameDirection,  # noqa: ARG002 - subclasses pass frames on
    ) -> None:
        """Take note of a StartFrame. Subclasses call this first and pass the frame on."""
        if isinstance(frame, StartFrame):
            self._start = frame

    async def push_frame(self, frame: Frame, direction: FrameDirection = DOWNSTREAM) -> None:
        """Hand a frame to the neighbour; at the end of the pipeline it is dropped."""
        neighbour = self._next if direction is DOWNSTREAM else self._previous
        if neighbour is not None:
            await neighbour.process_frame(frame, direction)

    def can_generate_metrics(self) -> bool:
        """Tell whether this processor measures anything."""
        return False

    @property
    def metrics_enabled(self) -> bool:
        """Whether the StartFrame asked for times."""
        return self._start.enable_metrics

    @property
    def usage_metrics_enabled(self) -> bool:
        """Whether the StartFrame asked for token counts."""
        return self._start.enable_usage_metrics

    async def start_llm_usage_metrics(self, tokens: LLMTokenUsage) -> None:
        """Report the tokens of one completion downstream, if asked for."""
        if self.usage_metrics_enabled and self.can_generate_metrics():
            await self.push_frame(MetricsFrame([self._usage_data(tokens)]))

    def _usage_data(self, tokens: LLMTokenUsage) -> LLMUsageMetricsData:
        return LLMUsageMetricsData(self._name, value=tokens)


class FrameTap(FrameProcessor):
    """Shows each passing frame to a function, which must be quick, and passes it on."""

    def __init__(self, on_frame: Callable[[Frame, FrameDirection], None]) -> None:
        """Call `on_frame` with every frame, in either direction."""
        super().__init__()
        self._on_frame = on_frame

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Show the frame and pass it on."""
        self._on_frame(frame, direction)
        neighbour = self._next if direction is DOWNSTREAM else self._previous
        if neighbour is not None:
            await neighbour.process_frame(frame, direction)


class Pipeline:
    """Processors in a row."""

    def __init__(self, processors: Sequence[FrameProcessor]) -> None:
        """Link the processors, first to last.

        Raises:
            ValueError: There are none.
        """
        if not processors:
            raise ValueError("a pipeline needs at least one processor")
        for processor, following in itertools.pairwise(processors):
            processor.link(following)
        self.processors = tuple(processors)

    async def queue_frame(self, frame: Frame) -> None:
        """Send a frame in at the head; returns when all processors are done with it."""
        await self.processors[0].process_frame(frame, DOWNSTREAM)

    async def queue_frames(self, frames: Sequence[Frame]) -> None:
        """Send frames in at the head, one after the other."""
        for frame in frames:
            await self.queue_frame(frame)
