"""Moves frames from processor to processor, one at a time and in order."""

import asyncio
import enum
import inspect
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar

from turnline.worker.pipeline.frames import (
    ErrorFrame,
    Frame,
    LLMTokenUsage,
    LLMUsageMetricsData,
    MetricsFrame,
    ProcessingMetricsData,
    StartFrame,
    TTFBMetricsData,
)

_H = TypeVar("_H", bound=Callable[..., Any])
_ids = itertools.count()


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

    NEVER_CALLED: ClassVar[Mapping[str, Sequence[str]]] = {
        "Frames pass without queues and tasks in between: override process_frame.": (
            "setup",
            "pause_processing_frames",
            "resume_processing_frames",
            "_start_interruption",
            "_stop_interruption",
            "_check_started",
        ),
        "Push a MetricsFrame.": (
            "set_core_metrics_data",
            "start_tts_usage_metrics",
            "stop_all_metrics",
        ),
    }
    """What to do instead, and the names that pipecat's class has and this one never calls."""

    EVENTS: ClassVar[frozenset[str]] = frozenset()
    """Names of the events that every processor of this class has."""

    _start_frame: StartFrame = StartFrame()
    _event_handlers: dict[str, list[Callable[..., Any]]] | None = None
    _tasks: "set[asyncio.Task[Any]] | None" = None
    _id: int | None = None
    _model: Any = None
    _ttfb_since: float | None = None
    _processing_since: float | None = None

    def __init__(self, *, name: str | None = None) -> None:
        """Name the processor in its metrics; the class's name if none is given."""
        self._name = name or type(self).__name__
        self._next: FrameProcessor | None = None
        self._previous: FrameProcessor | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a subclass whose override would be ignored in silence; also one mixed into it.

        Raises:
            TypeError: It overrides a method of pipecat's class that is never called here.
        """
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__[1:]:
            for instead, names in base.__dict__.get("NEVER_CALLED", {}).items():
                if name := next((it for it in names if hasattr(cls, it)), None):
                    raise TypeError(
                        f"{cls.__name__}.{name} would never be called: {base.__name__} here has no "
                        f"such method. {instead}"
                    )

    @property
    def id(self) -> int:
        """Unique in this process; drawn at the first look."""
        if self._id is None:
            self._id = next(_ids)
        return self._id

    @property
    def name(self) -> str:
        """As it stands in metrics."""
        return self._name

    def __str__(self) -> str:
        """Return the name."""
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
            self._start_frame = frame

    async def push_frame(self, frame: Frame, direction: FrameDirection = DOWNSTREAM) -> None:
        """Hand a frame to the neighbour; at the end of the pipeline it is dropped."""
        neighbour = self._next if direction is DOWNSTREAM else self._previous
        if neighbour is not None:
            await neighbour.process_frame(frame, direction)

    async def queue_frame(
        self,
        frame: Frame,
        direction: FrameDirection = DOWNSTREAM,
        callback: Callable[..., Awaitable[None]] | None = None,
    ) -> None:
        """Process a frame as if a neighbour had pushed it.

        Then `callback` is awaited with this processor, the frame and its direction.
        """
        await self.process_frame(frame, direction)
        if callback is not None:
            await callback(self, frame, direction)

    async def push_error(self, error: ErrorFrame) -> None:
        """Tell those upstream what went wrong."""
        await self.push_frame(error, UPSTREAM)

    async def cleanup(self) -> None:
        """Wait for the handlers of events that still run."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    # Events

    def event_handler(self, event_name: str) -> Callable[[_H], _H]:
        """Decorate a function that takes this processor and what the event tells.

        Raises:
            ValueError: There is no such event.
        """

        def decorate(handler: _H) -> _H:
            self.add_event_handler(event_name, handler)
            return handler

        return decorate

    def add_event_handler(self, event_name: str, handler: Callable[..., Any]) -> None:
        """Call a function at each event of this name, in a task of its own.

        What it raises ends nothing but the task, and goes upstream as an ErrorFrame.

        Raises:
            ValueError: There is no such event.
        """
        if event_name in self.EVENTS:
            self._register_event_handler(event_name)
        if self._event_handlers is None or event_name not in self._event_handlers:
            known = ", ".join(sorted({*self.EVENTS, *(self._event_handlers or ())})) or "none"
            raise ValueError(f"{self} has no event {event_name!r}; it has: {known}")
        self._event_handlers[event_name].append(handler)

    def _register_event_handler(self, event_name: str) -> None:
        """Make an event known."""
        if self._event_handlers is None:
            self._event_handlers = {}
        self._event_handlers.setdefault(event_name, [])

    async def _call_event_handler(self, event_name: str, *args: Any, **kwargs: Any) -> None:
        """Tell the handlers of an event, one after the other, without waiting for them."""
        if self._event_handlers and self._event_handlers.get(event_name):
            self.create_task(self._run_handlers(event_name, args, kwargs))

    async def _run_handlers(
        self, event_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        try:
            for handler in (self._event_handlers or {}).get(event_name, ()):
                returned = handler(self, *args, **kwargs)
                if inspect.isawaitable(returned):
                    await returned
        except Exception as error:  # noqa: BLE001 - foreign code; its words stay with it
            kind = type(error).__name__
            await self.push_error(ErrorFrame(f"a handler of {event_name} raised {kind}"))

    # Tasks

    def create_task(
        self, coroutine: Coroutine[Any, Any, Any], name: str | None = None
    ) -> "asyncio.Task[Any]":
        """Run a coroutine beside the pipeline; it is kept from being collected."""
        task = asyncio.create_task(coroutine, name=name)
        if self._tasks is None:
            self._tasks = set()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def cancel_task(self, task: "asyncio.Task[Any]", timeout: float | None = None) -> None:  # noqa: ASYNC109 - pipecat's name
        """Cancel a task and wait for its end, at most `timeout` seconds."""
        task.cancel()
        await asyncio.wait([task], timeout=timeout)

    async def wait_for_task(self, task: "asyncio.Task[Any]", timeout: float | None = None) -> None:  # noqa: ASYNC109 - pipecat's name
        """Wait for the end of a task, at most `timeout` seconds; it is not cancelled."""
        await asyncio.wait([task], timeout=timeout)

    # Metrics

    def can_generate_metrics(self) -> bool:
        """Tell whether this processor measures anything."""
        return False

    @property
    def metrics_enabled(self) -> bool:
        """Whether the StartFrame asked for times."""
        return self._start_frame.enable_metrics

    @property
    def usage_metrics_enabled(self) -> bool:
        """Whether the StartFrame asked for token counts."""
        return self._start_frame.enable_usage_metrics

    @property
    def report_only_initial_ttfb(self) -> bool:
        """Whether the StartFrame asked for the first time to the first byte only."""
        return self._start_frame.report_only_initial_ttfb

    @property
    def interruptions_allowed(self) -> bool:
        """Whether the StartFrame allowed interruptions."""
        return self._start_frame.allow_interruptions

    async def start_ttfb_metrics(self) -> None:
        """Begin to measure the time to the first byte."""
        self._ttfb_since = asyncio.get_running_loop().time()

    async def stop_ttfb_metrics(self) -> None:
        """Report it, at the first call since it was begun, if times are asked for."""
        since, self._ttfb_since = self._ttfb_since, None
        if since is not None:
            await self._push_time(TTFBMetricsData, asyncio.get_running_loop().time() - since)

    async def start_processing_metrics(self) -> None:
        """Begin to measure the time of something."""
        self._processing_since = asyncio.get_running_loop().time()

    async def stop_processing_metrics(self) -> None:
        """Report it, at the first call since it was begun, if times are asked for."""
        since, self._processing_since = self._processing_since, None
        if since is not None:
            await self._push_time(ProcessingMetricsData, asyncio.get_running_loop().time() - since)

    async def start_llm_usage_metrics(self, tokens: LLMTokenUsage) -> None:
        """Report the tokens of one completion downstream, if asked for."""
        if self.usage_metrics_enabled and self.can_generate_metrics():
            value = LLMUsageMetricsData(self._name, self._model, value=tokens)
            await self.push_frame(MetricsFrame([value]))

    async def _push_time(
        self, kind: type[TTFBMetricsData | ProcessingMetricsData], seconds: float
    ) -> None:
        """Report a time downstream, if times are asked for."""
        if self.metrics_enabled and self.can_generate_metrics():
            await self.push_frame(MetricsFrame([kind(self._name, self._model, value=seconds)]))


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
