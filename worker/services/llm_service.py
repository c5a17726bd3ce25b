"""What every service of a model has, whatever API it speaks: functions, calls, metrics.

These are the parts of pipecat's `LLMService` and `AIService`.
"""

import asyncio
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, ClassVar, Final

from turnline.contracts.conversation import check_visible
from turnline.contracts.errors import InvalidMessage
from turnline.worker.errors import WorkerError
from turnline.worker.pipeline.aggregators import to_json
from turnline.worker.pipeline.call_parts import NAME_MAX_CHARS
from turnline.worker.pipeline.calls import CallObserver, LLMCall
from turnline.worker.pipeline.context import PLAIN, MessageAdapter, OpenAILLMContext
from turnline.worker.pipeline.frames import (
    CancelFrame,
    EndFrame,
    Frame,
    FunctionCallFromLLM,
    LLMMessagesFrame,
    LLMUpdateSettingsFrame,
    OpenAILLMContextFrame,
    ProcessingMetricsData,
    StartFrame,
    StartInterruptionFrame,
    StopInterruptionFrame,
    TTFBMetricsData,
    UserImageRequestFrame,
    VisionImageRawFrame,
)
from turnline.worker.pipeline.functions import (
    FunctionCallBatch,
    FunctionRegistry,
    Handler,
    StartCallback,
    function_call,
)
from turnline.worker.pipeline.processor import UPSTREAM, FrameDirection, FrameProcessor
from turnline.worker.services.completion import CallRecords, Completion, UsageTally
from turnline.worker.services.transport import ResponseStream

_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_.-]")


class Run:
    """The answering of one context: completions until no tool result wants another."""

    def __init__(self, context: OpenAILLMContext) -> None:
        """Begin before the first response."""
        self.context = context
        self.again = False
        self.interrupted = False
        self.stream: ResponseStream | None = None
        self.uses_sdk = False
        self.completion: Completion | None = None
        """The call that is being made; None before the first of a response."""
        self.is_sent = False
        """Whether its request was sent: the next one is another call."""
        self.made: list[FunctionCallFromLLM] = []
        """Calls of the response, to be run when it is over."""
        self.parsed: list[FunctionCallFromLLM] = []
        """Those of them whose arguments were read here, and may be no JSON at all."""
        self.batch: FunctionCallBatch | None = None
        self.task = asyncio.current_task()
        self.inner: asyncio.Task[None] | None = None
        """Runs the code of a subclass, so that an interruption can end it."""
        self.unwound = asyncio.Event()

    def begin_response(self) -> None:
        """Forget the response before."""
        self.completion, self.is_sent = None, False
        self.made, self.parsed = [], []
        self.unwound.clear()

    def note_status(self, error: WorkerError) -> None:
        """Take the status from an error, where the SDK kept the response to itself."""
        status: int | None = getattr(error, "status", None)
        if self.completion is not None and self.completion.call.status is None:
            self.completion.call.status = status

    async def interrupt(self) -> None:
        """Stop what is being made; functions that may not be cancelled go on."""
        self.interrupted = True
        if self.completion is not None:
            self.completion.interrupted = True
        if self.batch is not None:
            await self.batch.interrupt()
        elif self.inner is not None or self.stream is not None:
            if self.inner is not None:
                self.inner.cancel()
            elif self.stream is not None:
                self.stream.abort()
            if asyncio.current_task() not in {self.task, self.inner}:
                await self.unwound.wait()

    async def run_calls(self, batch: FunctionCallBatch) -> None:
        """Run functions that were announced."""
        try:
            if self.interrupted:  # just before the calls began
                await batch.interrupt()
            await batch.run()
        finally:
            self.batch = None


run_of: Final[ContextVar[tuple[object, Run] | None]] = ContextVar("run_of", default=None)
"""The service that answers in this task, and what: concurrent calls never mix."""


class LLMService(FrameProcessor):
    """Registers and runs functions, keeps records of calls and reports metrics."""

    shows_thoughts = False
    """Whether frames with the model's thoughts are pushed."""
    EVENTS: ClassVar[frozenset[str]] = frozenset(
        {"on_function_calls_started", "on_completion_timeout"}
    )
    NEVER_CALLED: ClassVar[Mapping[str, Sequence[str]]] = {
        "The functions of a response run as one batch: override run_function_calls, or register a "
        "handler.": (
            "_run_function_call",
            "_cancel_function_call",
            "_create_sequential_runner_task",
            "_cancel_sequential_runner_task",
            "_sequential_runner_handler",
            "_function_call_task_finished",
            "call_start_function",
        ),
        "Override process_frame.": ("_handle_interruptions", "process_generator"),
        "Override get_llm_adapter.": ("adapter_class",),
        "Contexts are OpenAILLMContexts: override _stream_chat_completions.": (
            "_stream_chat_completions_specific_context",
            "_stream_chat_completions_universal_context",
        ),
    }

    def __init__(
        self,
        model: str,
        *,
        observer: CallObserver | None = None,
        run_in_parallel: bool = True,
        functions: FunctionRegistry | None = None,
        now: Callable[[], float] = time.monotonic,
        name: str | None = None,
    ) -> None:
        """Prepare; for the arguments see `OpenAILLMService`."""
        super().__init__(name=name)
        self._model: str = model
        self._records = CallRecords(observer, now)
        self._now = now
        self._run_in_parallel = run_in_parallel
        self._functions = functions or FunctionRegistry()
        self._ttfb_reported = False
        self._runs: dict[int, Run] = {}

    async def start(self, frame: StartFrame) -> None:
        """Do nothing: for subclasses, before the StartFrame goes on."""

    async def stop(self, frame: EndFrame) -> None:
        """Do nothing: for subclasses, before the EndFrame goes on."""

    async def cancel(self, frame: CancelFrame) -> None:
        """Do nothing: for subclasses, before the CancelFrame goes on."""

    async def request_image_frame(
        self,
        user_id: str,
        *,
        function_name: str | None = None,
        tool_call_id: str | None = None,
        text_content: str | None = None,
        video_source: str | None = None,
    ) -> None:
        """Ask upstream for an image of the user, for a function call if one is named."""
        await self.push_frame(
            UserImageRequestFrame(user_id, text_content, function_name, tool_call_id, video_source),
            UPSTREAM,
        )

    def get_llm_adapter(self) -> MessageAdapter:
        """Return what gives messages the form that this model takes."""
        return PLAIN

    async def _update_settings(self, settings: Mapping[str, Any]) -> None:
        """Change parameters of the requests to come."""

    # Frames and runs

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Answer a context; pass on everything that is none.

        Raises:
            Retryable: See `turnline.worker.errors`; the completion may be tried again.
            Terminal: See `turnline.worker.errors`; it would fail again.
        """
        await super().process_frame(frame, direction)
        match frame:
            case StartFrame():
                await self.start(frame)
            case EndFrame():
                await self.stop(frame)
            case CancelFrame():
                await self.cancel(frame)
            case StartInterruptionFrame():
                await self._interrupt_runs()
            case StopInterruptionFrame():
                self._ttfb_reported = False
            case OpenAILLMContextFrame():
                return await self._answer(frame.context)
            case LLMMessagesFrame():
                context = OpenAILLMContext(frame.messages)
                context.set_llm_adapter(self.get_llm_adapter())
                return await self._answer(context)
            case VisionImageRawFrame():
                context = OpenAILLMContext()
                context.add_image_frame_message(
                    format=frame.format or "", size=frame.size, image=frame.image, text=frame.text
                )
                return await self._answer(context)
            case LLMUpdateSettingsFrame():
                return await self._update_settings(frame.settings)
            case _:
                pass
        return await self.push_frame(frame, direction)

    async def _interrupt_runs(self) -> None:
        for run in list(self._runs.values()):
            await run.interrupt()

    async def _answer(self, context: OpenAILLMContext) -> None:
        """Run completions until the context wants no further one; never recursive.

        A frame for a context that is being answered, as tool results send one, makes the present
        run go on.
        """
        run = self._runs.get(id(context))
        if run is not None:
            run.again = True
            return
        run = self._runs[id(context)] = Run(context)
        try:
            await self._complete(run)
        finally:
            del self._runs[id(context)]

    async def resume(
        self, context: OpenAILLMContext, calls: Sequence[FunctionCallFromLLM], *, answer: bool
    ) -> None:
        """Run calls that stand in the context without a result, then go on answering it.

        Args:
            context: Not being answered at the moment.
            calls: All calls of its last message that are in progress.
            answer: Whether results that stand in the context already want the model to run.

        Raises:
            Retryable: See `process_frame`.
            Terminal: See `process_frame`.
        """
        run = self._runs[id(context)] = Run(context)
        try:
            if calls:
                batch = run.batch = self._batch(context, calls)
                await batch.announce()
                await run.run_calls(batch)
                if batch.waits or not (run.again or answer):
                    return
            await self._complete(run)
        finally:
            del self._runs[id(context)]

    async def _complete(self, run: Run) -> None:
        while True:
            run.again = run.interrupted = False
            await self._respond(run)
            if not run.again:
                return

    async def _respond(self, run: Run) -> None:
        """Have one response made, and run the functions that it calls."""
        raise NotImplementedError

    # Calls and metrics

    @property
    def model_name(self) -> str:
        """The model that is asked."""
        return self._model

    def set_model_name(self, model: str) -> None:
        """Ask another model, from the next completion on."""
        self._model = model

    def can_generate_metrics(self) -> bool:
        """Tell that this service measures its completions."""
        return True

    @property
    def calls(self) -> list[LLMCall]:
        """Every call, in the order of their requests, also failed and cancelled ones."""
        return self._records.calls

    def _new_tally(self) -> UsageTally:
        return UsageTally()

    def _code_of(self, error: WorkerError, run: Run) -> str:  # noqa: ARG002  subclasses look at it
        """Return the code by which a call that failed is noted."""
        return error.code

    def _current_run(self) -> Run | None:
        current = run_of.get()
        return current[1] if current is not None and current[0] is self else None

    async def push_ttfb(self, seconds: float) -> None:
        """Report the time to the first chunk, if times are asked for."""
        if self.metrics_enabled and not self._ttfb_reported:
            self._ttfb_reported = self.report_only_initial_ttfb
            await self._push_time(TTFBMetricsData, seconds)

    async def _close_record(self, completion: Completion) -> None:
        """Report what a call cost and how long it took; once, however it ended."""
        call = completion.call
        self._records.close(completion)
        if call.metric is not None:
            await FrameProcessor.start_llm_usage_metrics(self, call.metric)
        await self._push_time(ProcessingMetricsData, call.duration_s or 0.0)
        await self._records.tell(call)

    # Functions

    def register_function(
        self,
        function_name: str | None,
        handler: Handler,
        start_callback: StartCallback | None = None,
        *,
        cancel_on_interruption: bool = True,
        timeout_s: float | None = None,
    ) -> None:
        """Set the handler of a function; the name None catches all others.

        See `FunctionRegistry.register`.
        """
        self._functions.register(
            function_name,
            handler,
            start_callback,
            cancel_on_interruption=cancel_on_interruption,
            timeout_s=timeout_s,
        )

    def unregister_function(self, function_name: str | None) -> None:
        """Remove the handler of a function."""
        self._functions.unregister(function_name)

    def has_function(self, function_name: str) -> bool:
        """Tell whether a call of this function would find a handler."""
        return self._functions.get(function_name) is not None

    def use_functions(self, functions: FunctionRegistry) -> None:
        """Look handlers up here from now on."""
        self._functions = functions

    async def run_function_calls(self, function_calls: Sequence[FunctionCallFromLLM]) -> None:
        """Run functions: those of a response when it is over, others now.

        Args:
            function_calls: Made for the same context.
        """
        run = self._current_run()
        parsed = set(map(id, run.parsed)) if run is not None else set[int]()
        for call in function_calls:
            if call.raw_arguments is None and id(call) not in parsed:
                call.raw_arguments = to_json(call.arguments)
        if run is not None:
            run.made.extend(function_calls)
        elif function_calls:
            run = Run(function_calls[0].context or OpenAILLMContext())
            run.made.extend(function_calls)
            batch = await self._announce_calls(run)
            await batch.run()

    async def _announce_calls(self, run: Run) -> FunctionCallBatch:
        """Put the calls into the context, after the text that came with them."""
        taken: set[str] = set()
        for call in run.made:
            call_id = call.tool_call_id
            if not _can_be_answered(call_id) or call_id in taken or run.context.names_call(call_id):
                call.tool_call_id = f"call_{uuid.uuid4().hex[:16]}"
            taken.add(call.tool_call_id)
        await self._call_event_handler("on_function_calls_started", run.made)
        batch = self._batch(run.context, run.made)
        await batch.announce()
        return batch

    def _batch(
        self, context: OpenAILLMContext, calls: Sequence[FunctionCallFromLLM]
    ) -> FunctionCallBatch:
        return FunctionCallBatch(
            self, self._functions, calls, context, run_in_parallel=self._run_in_parallel
        )


def calls_of(
    completion: Completion, context: OpenAILLMContext, functions: FunctionRegistry
) -> list[FunctionCallFromLLM]:
    """Return the calls that came, under names that can stand in the context."""
    return [
        function_call(_name_of(part.name, functions), part.call_id, part.arguments, context)
        for part in completion.parts()
    ]


def _can_be_answered(call_id: str) -> bool:
    """Tell whether a producer may send a result under this id."""
    if not (0 < len(call_id) <= NAME_MAX_CHARS and call_id.isprintable()):
        return False
    try:
        check_visible(call_id, "call_id")
    except InvalidMessage:
        return False
    return True


def _name_of(name: str, functions: FunctionRegistry) -> str:
    """Return the name under which a call stands in the context, where it can be read back.

    No function has a name that providers refuse; the model is told so under one that they take.
    """
    is_plain = bool(name) and len(name) <= NAME_MAX_CHARS and name.isprintable()
    if is_plain and functions.get(name) is not None:
        return name
    return _NOT_IN_NAMES.sub("_", name)[:64] or "unnamed_function"
