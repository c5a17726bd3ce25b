"""Runs a pipeline by itself, for programs that have no queue: pipecat's PipelineTask."""

import asyncio
from collections.abc import AsyncIterable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from turnline.worker.pipeline.aggregators import LLMUserContextAggregator
from turnline.worker.pipeline.frames import (
    CancelFrame,
    CancelTaskFrame,
    EndFrame,
    EndTaskFrame,
    ErrorFrame,
    Frame,
    StartFrame,
    StartInterruptionFrame,
)
from turnline.worker.pipeline.processor import UPSTREAM, FrameDirection, FrameProcessor, Pipeline


@dataclass(kw_only=True)
class PipelineParams:
    """What the StartFrame says."""

    allow_interruptions: bool = False
    audio_in_sample_rate: int = 16000
    audio_out_sample_rate: int = 24000
    enable_metrics: bool = False
    enable_usage_metrics: bool = False
    report_only_initial_ttfb: bool = False
    start_metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Stands in the StartFrame's `metadata`."""


class PipelineTask(FrameProcessor):
    """Sends frames through a pipeline, each when the one before it has been dealt with.

    Interruptions and cancellations go in at once, beside what is being dealt with. The silence
    after which a user is taken to be done is watched meanwhile.
    """

    def __init__(self, pipeline: Pipeline, *, params: PipelineParams | None = None) -> None:
        """Prepare to run a pipeline; nothing is sent yet."""
        super().__init__()
        self._pipeline = pipeline
        self._params = params or PipelineParams()
        self._queue: asyncio.Queue[Frame] = asyncio.Queue()
        self._running: asyncio.Task[None] | None = None
        self._cancelled = False
        self._finished = False
        self._users = [p for p in pipeline.processors if isinstance(p, LLMUserContextAggregator)]
        self.link(pipeline.processors[0])

    def has_finished(self) -> bool:
        """Tell whether the pipeline has ended, in whatever way."""
        return self._finished

    async def run(self) -> None:
        """Run until an EndFrame has gone through, or until `cancel`.

        Raises:
            Exception: What a processor raised.
        """
        self._running = asyncio.create_task(self._run())
        if self._cancelled:
            self._running.cancel()
        try:
            await asyncio.wait([self._running])
        finally:
            self._running.cancel()
            await asyncio.wait([self._running])
            self._finished = True
            for processor in self._pipeline.processors:
                await processor.cleanup()
        if not self._running.cancelled():
            self._running.result()

    async def stop_when_done(self) -> None:
        """End the pipeline when all that was queued has been dealt with."""
        self._queue.put_nowait(EndFrame())

    async def cancel(self) -> None:
        """Stop now; text received so far is kept."""
        self._cancelled = True
        if self._running is not None and not self._finished:
            await self._pipeline.queue_frame(CancelFrame())
            self._running.cancel()

    async def queue_frame(  # type: ignore[override]
        self, frame: Frame
    ) -> None:
        """Queue a frame; an interruption or a cancellation is dealt with at once."""
        if isinstance(frame, CancelFrame):
            await self.cancel()
        elif isinstance(frame, StartInterruptionFrame) and self._running is not None:
            await self._pipeline.queue_frame(frame)
        else:
            self._queue.put_nowait(frame)

    async def queue_frames(self, frames: Iterable[Frame] | AsyncIterable[Frame]) -> None:
        """Queue frames in their order."""
        if isinstance(frames, AsyncIterable):
            async for frame in frames:
                await self.queue_frame(frame)
        else:
            for frame in frames:
                await self.queue_frame(frame)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Do as frames say that come out at the pipeline's head."""
        if direction is UPSTREAM:
            if isinstance(frame, EndTaskFrame):
                await self.stop_when_done()
            elif isinstance(frame, CancelTaskFrame) or (
                isinstance(frame, ErrorFrame) and frame.fatal
            ):
                await self.cancel()

    async def _run(self) -> None:
        params = self._params
        start = StartFrame(
            audio_in_sample_rate=params.audio_in_sample_rate,
            audio_out_sample_rate=params.audio_out_sample_rate,
            allow_interruptions=params.allow_interruptions,
            enable_metrics=params.enable_metrics,
            enable_usage_metrics=params.enable_usage_metrics,
            report_only_initial_ttfb=params.report_only_initial_ttfb,
        )
        start.metadata.update(params.start_metadata)
        await self._pipeline.queue_frame(start)
        while True:
            frame = await self._next_frame()
            if frame is None:
                for user in self._users:
                    await user.tick()
                continue
            await self._pipeline.queue_frame(frame)
            if isinstance(frame, EndFrame):
                return

    async def _next_frame(self) -> Frame | None:
        """Return the next frame; None once a user has been silent for long enough."""
        waits = [wait_s for user in self._users if (wait_s := user.due_in_s) is not None]
        try:
            async with asyncio.timeout(min(waits, default=None)):
                return await self._queue.get()
        except TimeoutError:
            return None


class PipelineRunner:
    """Runs tasks, each with its pipeline."""

    def __init__(self, *, name: str | None = None, handle_sigint: bool = False) -> None:
        """Prepare; `handle_sigint` is of no effect: `asyncio.run` makes Ctrl-C a cancellation."""
        self.name = name or type(self).__name__
        self.handle_sigint = handle_sigint
        self._tasks: set[PipelineTask] = set()

    async def run(self, task: PipelineTask) -> None:
        """Run a task to its end; see `PipelineTask.run`."""
        self._tasks.add(task)
        try:
            await task.run()
        finally:
            self._tasks.discard(task)

    async def stop_when_done(self) -> None:
        """End every task when all that was queued has been dealt with."""
        for task in list(self._tasks):
            await task.stop_when_done()

    async def cancel(self) -> None:
        """Stop every task now."""
        for task in list(self._tasks):
            await task.cancel()
