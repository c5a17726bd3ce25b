"""Answers contexts with an OpenAI-compatible model, streaming."""

import asyncio
import contextlib
import dataclasses
import inspect
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, TypeAlias

import msgspec
from httpx2 import Limits
from openai import NOT_GIVEN as OPENAI_NOT_GIVEN
from openai import AsyncOpenAI, DefaultAioHttpClient
from openai import NotGiven as OpenAINotGiven

from worker.errors import ProviderUnavailable, Truncated, UnusableReply, WorkerError
from worker.pipeline.aggregators import (
    LLMAssistantAggregatorParams,
    LLMAssistantContextAggregator,
    LLMUserAggregatorParams,
    LLMUserContextAggregator,
)
from worker.pipeline.calls import CallObserver, LLMCall
from worker.pipeline.context import MessageAdapter, OpenAILLMContext, PlainMessages, is_given
from worker.pipeline.frames import (
    Frame,
    FunctionCallFromLLM,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMMessagesFrame,
    LLMTextFrame,
    LLMTokenUsage,
    LLMUpdateSettingsFrame,
    LLMUsageMetricsData,
    MetricsFrame,
    OpenAILLMContextFrame,
    ProcessingMetricsData,
    StartInterruptionFrame,
    StopInterruptionFrame,
    TTFBMetricsData,
    VisionImageRawFrame,
)
from worker.pipeline.functions import (
    FunctionCallBatch,
    FunctionRegistry,
    Handler,
    StartCallback,
    function_call,
)
from worker.pipeline.processor import FrameDirection, FrameProcessor
from worker.pipeline.stream import (
    FinishReason,
    MalformedFrame,
    NotAStream,
    ProviderUsage,
    ReasoningDelta,
    Refusal,
    ResponseNamed,
    StreamDone,
    StreamEvent,
    StreamFailed,
    TextDelta,
    ToolCallCollector,
    ToolCallDelta,
    UsageReport,
)
from worker.pipeline.tools import NotGiven
from worker.services.openai.failures import failure_in_stream
from worker.services.openai.wire import ChatStream, TimeLimits

log = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode
USER_PARAMS: Final = LLMUserAggregatorParams(aggregation_timeout=0.5)
ASSISTANT_PARAMS: Final = LLMAssistantAggregatorParams(expect_stripped_words=True)
"""Defaults as the seed spells them; aggregators copy what they are given."""


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class OpenAIUserContextAggregator(LLMUserContextAggregator):
    """The user aggregator."""


class OpenAIAssistantContextAggregator(LLMAssistantContextAggregator):
    """The assistant aggregator, on the process's clock unless another is given."""

    def __init__(
        self,
        context: OpenAILLMContext,
        *,
        params: LLMAssistantAggregatorParams | None = None,
        timestamp: Callable[[], str] = _utc_now,
        **kwargs: Any,
    ) -> None:
        """Collect into `context`; `timestamp` gives the time of day, ISO 8601, UTC."""
        super().__init__(context, params=params, timestamp=timestamp, **kwargs)


@dataclasses.dataclass
class OpenAIContextAggregatorPair:
    """The two aggregators of one context."""

    _user: OpenAIUserContextAggregator
    _assistant: OpenAIAssistantContextAggregator

    def user(self) -> OpenAIUserContextAggregator:
        """Return the user's, which stands before the service."""
        return self._user

    def assistant(self) -> OpenAIAssistantContextAggregator:
        """Return the assistant's, which stands after the service."""
        return self._assistant


_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "seed": (0, float("inf")),
    "top_k": (0, float("inf")),
    "max_tokens": (1, float("inf")),
    "max_completion_tokens": (1, float("inf")),
}


_Number: TypeAlias = float | NotGiven | OpenAINotGiven | None
_Whole: TypeAlias = int | NotGiven | OpenAINotGiven | None


@dataclasses.dataclass(init=False)
class OpenAIInputParams:
    """Sampling parameters. What is not given is left out of the request; None is sent as null.

    An unknown one is logged and ignored, unless a subclass declares it.
    """

    frequency_penalty: _Number = OPENAI_NOT_GIVEN
    """-2 to 2."""
    presence_penalty: _Number = OPENAI_NOT_GIVEN
    """-2 to 2."""
    seed: _Whole = OPENAI_NOT_GIVEN
    """0 or more."""
    temperature: _Number = OPENAI_NOT_GIVEN
    """0 to 2."""
    top_k: int | None = None
    """0 or more; accepted and never sent."""
    top_p: _Number = OPENAI_NOT_GIVEN
    """0 to 1."""
    max_tokens: _Whole = OPENAI_NOT_GIVEN
    """1 or more."""
    max_completion_tokens: _Whole = OPENAI_NOT_GIVEN
    """1 or more."""
    extra: Mapping[str, Any] | None = dataclasses.field(default_factory=dict[str, Any])
    """Merged into the request last; replaces anything."""

    def __init__(
        self,
        *,
        frequency_penalty: _Number = OPENAI_NOT_GIVEN,
        presence_penalty: _Number = OPENAI_NOT_GIVEN,
        seed: _Whole = OPENAI_NOT_GIVEN,
        temperature: _Number = OPENAI_NOT_GIVEN,
        top_k: int | None = None,
        top_p: _Number = OPENAI_NOT_GIVEN,
        max_tokens: _Whole = OPENAI_NOT_GIVEN,
        max_completion_tokens: _Whole = OPENAI_NOT_GIVEN,
        extra: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """Take parameters.

        Raises:
            ValueError: A number is out of its range, or a parameter has the wrong type.
        """
        self.frequency_penalty = frequency_penalty
        self.presence_penalty = presence_penalty
        self.seed = seed
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.max_tokens = max_tokens
        self.max_completion_tokens = max_completion_tokens
        self.extra = {} if extra is None else extra
        for name, value in more.items():
            if any(name in inspect.get_annotations(cls) for cls in type(self).__mro__):
                setattr(self, name, value)
            else:
                log.warning("llm.unknown_parameter", extra={"parameter": name})
        self._check()

    def _check(self) -> None:
        for name, (lowest, highest) in _BOUNDS.items():
            value = getattr(self, name)
            if value is None or not is_given(value):
                continue
            whole = name in {"seed", "top_k", "max_tokens", "max_completion_tokens"}
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise ValueError(f"{name}: a {'whole ' if whole else ''}number")  # noqa: TRY004
            if not lowest <= value <= highest:
                raise ValueError(f"{name}: {lowest:g} to {highest:g}")


_SENT_PARAMETERS: Final = (
    "frequency_penalty",
    "presence_penalty",
    "seed",
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
)


class UsageTally:
    """What one completion reports as its tokens: the provider's last word."""

    def __init__(self) -> None:
        """Begin with nothing reported."""
        self._last: LLMTokenUsage | None = None

    def add(self, tokens: LLMTokenUsage) -> None:
        """Take note of a report."""
        self._last = tokens

    def total(self) -> LLMTokenUsage | None:
        """Return what to report; None if there was nothing."""
        return self._last


class _Run:
    """The answering of one context: completions until no tool result wants another."""

    def __init__(self, context: OpenAILLMContext) -> None:
        self.context = context
        self.again = False
        self.interrupted = False
        self.stream: ChatStream | None = None
        self.batch: FunctionCallBatch | None = None
        self.task = asyncio.current_task()
        self.unwound = asyncio.Event()


class _Completion:
    """State of one call; nothing of it is kept on the service."""

    def __init__(self, call: LLMCall, tally: UsageTally) -> None:
        self.call = call
        self.tally = tally
        self.tool_calls = ToolCallCollector()
        self.done = False


_tally_of: ContextVar[tuple[object, UsageTally] | None] = ContextVar("tally_of", default=None)
"""The service that streams in this task, and what it counts: concurrent calls never mix."""


class OpenAILLMService(FrameProcessor):
    """Streams chat completions and runs the functions that the model calls.

    A service holds no state of a completion, so one may answer several contexts at a time; a
    worker builds one per turn around a shared client. Each completion is one POST: retrying is the
    caller's business. What goes wrong is raised out of `process_frame`, after the end of the
    response was pushed, so that the text received so far has reached the assistant aggregator.
    """

    InputParams: TypeAlias = OpenAIInputParams
    """Sampling parameters, as pipecat has them: an attribute of the service."""
    provider_name: ClassVar[str] = "openai"
    """Value of `gen_ai.provider.name`."""

    def __init__(
        self,
        *,
        api_key: str | None,
        model: str,
        base_url: str | None = None,
        organization: str | None = None,
        project: str | None = None,
        default_headers: Mapping[str, str] | None = None,
        params: OpenAIInputParams | None = None,
        client: AsyncOpenAI | None = None,
        extra_headers: Mapping[str, str] | None = None,
        observer: CallObserver | None = None,
        limits: TimeLimits | None = None,
        run_in_parallel: bool = True,
        functions: FunctionRegistry | None = None,
        now: Callable[[], float] = time.monotonic,
        name: str | None = None,
    ) -> None:
        """Prepare a service; nothing is sent.

        Args:
            api_key: Never taken from the environment.
            model: As the provider names it.
            base_url: The provider's address; OpenAI's if None.
            organization: OpenAI's organization. Never taken from the environment.
            project: OpenAI's project. Never taken from the environment.
            default_headers: Sent with each request of the client made here.
            params: Sampling parameters.
            client: Shared by services, with its own key and address; else one is made here, and
                `close` closes it.
            extra_headers: Sent with each request of this service.
            observer: Told of each call.
            limits: How long to wait for the model.
            run_in_parallel: False runs the functions of one response one after the other.
            functions: Handlers shared with other services; else this service has its own.
            now: A clock, seconds.
            name: Name in metrics; the class's name if None.

        Raises:
            ValueError: `api_key` is missing or empty.
        """
        super().__init__(name=name)
        if not api_key:
            raise ValueError(f"{type(self).__name__} needs an api_key; none is looked up elsewhere")
        params = params or OpenAIInputParams()
        self._settings: dict[str, Any] = {
            name: value for name in _SENT_PARAMETERS if is_given(value := getattr(params, name))
        }
        self._extra: dict[str, Any] = (
            dict(params.extra) if isinstance(params.extra, Mapping) else {}
        )
        self._model = model
        self._owns_client = client is None
        self._client = client or self.create_client(
            api_key=api_key,
            base_url=base_url,
            organization=organization,
            project=project,
            default_headers=default_headers,
        )
        self._extra_headers: Mapping[str, str] = extra_headers or {}
        self._observer = observer
        self._limits = limits or _DEFAULT_LIMITS
        self._run_in_parallel = run_in_parallel
        self._functions = functions or FunctionRegistry()
        self._now = now
        self._runs: dict[int, _Run] = {}
        self._ttfb_reported = False
        self.calls: list[LLMCall] = []
        """Every call, in the order of their requests, also failed and cancelled ones."""

    # Set-up

    def create_client(
        self, api_key: str | None = None, base_url: str | None = None, **kwargs: Any
    ) -> AsyncOpenAI:
        """Make the client; called once, by the constructor. Override it to bring another one.

        Args:
            api_key: Used as it is.
            base_url: Used as it is; OpenAI's address if None.
            **kwargs: `organization`, `project`, `default_headers`.

        Raises:
            ValueError: `api_key` is missing or empty.
        """
        return create_client(api_key, base_url, **kwargs)

    async def close(self) -> None:
        """Close the client, if it was made here."""
        if self._owns_client:
            await self._client.close()

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

    def create_context_aggregator(
        self,
        context: OpenAILLMContext,
        *,
        user_params: LLMUserAggregatorParams = USER_PARAMS,
        assistant_params: LLMAssistantAggregatorParams = ASSISTANT_PARAMS,
    ) -> OpenAIContextAggregatorPair:
        """Make the aggregators that stand before and after this service.

        Args:
            context: Shared by both.
            user_params: The aggregator keeps a copy; nothing is shared with other pairs.
            assistant_params: Likewise.
        """
        context.set_llm_adapter(self.get_llm_adapter())
        return OpenAIContextAggregatorPair(
            OpenAIUserContextAggregator(context, params=user_params, now=self._now),
            OpenAIAssistantContextAggregator(context, params=assistant_params),
        )

    def get_llm_adapter(self) -> MessageAdapter:
        """Return what gives messages the form that this model takes."""
        return _PLAIN_MESSAGES

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

    # Usage

    @property
    def turn_usage(self) -> LLMTokenUsage:
        """The sum of what the completions of this service reported as their tokens."""
        reports = [call.metric for call in self.calls if call.metric is not None]
        prompt = sum(r.prompt_tokens for r in reports)
        completion = sum(r.completion_tokens for r in reports)
        return LLMTokenUsage(
            prompt,
            completion,
            sum(r.total_tokens for r in reports),
            cache_read_input_tokens=sum(r.cache_read_input_tokens or 0 for r in reports),
            reasoning_tokens=sum(r.reasoning_tokens or 0 for r in reports),
        )

    @property
    def provider_usage(self) -> ProviderUsage:
        """The sum over all calls of what the provider counted, or else what was streamed."""
        total = ProviderUsage()
        for call in self.calls:
            total += call.counted_usage
        return total

    async def start_llm_usage_metrics(self, tokens: LLMTokenUsage) -> None:
        """Take note of a usage report of the running completion, which reports once at its end.

        Outside of a completion it is reported at once.
        """
        tally = self._current_tally()
        if tally is None:
            await super().start_llm_usage_metrics(tokens)
        else:
            tally.add(tokens)

    def _new_tally(self) -> UsageTally:
        return UsageTally()

    def _current_tally(self) -> UsageTally | None:
        current = _tally_of.get()
        return current[1] if current is not None and current[0] is self else None

    def _usage_data(self, tokens: LLMTokenUsage) -> LLMUsageMetricsData:
        return LLMUsageMetricsData(self._name, self._model, value=tokens)

    # Frames

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Answer a context; pass on everything that is none.

        Raises:
            Retryable: See `worker.errors`; the completion may be tried again.
            Terminal: See `worker.errors`; it would fail again.
        """
        await super().process_frame(frame, direction)
        match frame:
            case OpenAILLMContextFrame():
                await self._answer(frame.context)
            case LLMMessagesFrame():
                context = OpenAILLMContext(frame.messages)
                context.set_llm_adapter(self.get_llm_adapter())
                await self._answer(context)
            case VisionImageRawFrame():
                context = OpenAILLMContext()
                context.add_image_frame_message(
                    format=frame.format or "", size=frame.size, image=frame.image, text=frame.text
                )
                await self._answer(context)
            case LLMUpdateSettingsFrame():
                self._update_settings(frame.settings)
            case StartInterruptionFrame():
                await self._interrupt()
                await self.push_frame(frame, direction)
            case StopInterruptionFrame():
                self._ttfb_reported = False
                await self.push_frame(frame, direction)
            case _:
                await self.push_frame(frame, direction)

    def _update_settings(self, settings: Mapping[str, Any]) -> None:
        for name, value in settings.items():
            if name == "model":
                self.set_model_name(value)
            elif name == "extra":
                self._extra = dict(value)
            elif name in _SENT_PARAMETERS:
                if is_given(value):
                    self._settings[name] = value
                else:
                    self._settings.pop(name, None)
            else:
                log.warning("llm.unknown_setting", extra={"setting": name})

    async def _interrupt(self) -> None:
        """Stop what is being answered; functions that may not be cancelled go on."""
        for run in list(self._runs.values()):
            run.interrupted = True
            if run.batch is not None:
                await run.batch.interrupt()
            elif run.stream is not None:
                run.stream.abort()
                if run.task is not asyncio.current_task():
                    await run.unwound.wait()

    async def _answer(self, context: OpenAILLMContext) -> None:
        """Run completions until the context wants no further one; never recursive.

        A frame for a context that is being answered, as tool results send one, makes the present
        run go on.
        """
        run = self._runs.get(id(context))
        if run is not None:
            run.again = True
            return
        run = self._runs[id(context)] = _Run(context)
        try:
            await self._complete(context, run)
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
        run = self._runs[id(context)] = _Run(context)
        try:
            if calls:
                batch = run.batch = self._batch(context, calls)
                await batch.announce()
                await self._run_calls(run, batch)
                if batch.waits or not (run.again or answer):
                    return
            await self._complete(context, run)
        finally:
            del self._runs[id(context)]

    async def _complete(self, context: OpenAILLMContext, run: _Run) -> None:
        while True:
            run.again = run.interrupted = False
            await self._process_context(context, run)
            if not run.again:
                return

    # One completion

    async def _process_context(self, context: OpenAILLMContext, run: _Run | None = None) -> None:
        """Stream one completion of the context and run the functions it calls."""
        run = run or _Run(context)
        context.repair_in_progress()
        completion = self._begin(context)
        call = completion.call
        token = _tally_of.set((self, completion.tally))
        run.unwound.clear()
        await self.push_frame(LLMFullResponseStartFrame())
        try:
            async with self._noted(call) as noted:
                await self._stream(context, completion, run, noted)
            call.outcome = "interrupted" if run.interrupted else "completed"
        except WorkerError as error:
            call.outcome, call.error = "failed", error.code
            raise
        except asyncio.CancelledError:
            call.outcome, call.error = "cancelled", "cancelled"
            raise
        except BaseException as error:
            call.outcome, call.error = "failed", type(error).__name__
            raise
        finally:
            _tally_of.reset(token)
            run.stream = None
            try:
                await self._finish(completion)
                if call.outcome == "completed" and completion.tool_calls:
                    run.batch = await self._announce_calls(context, completion)
            finally:
                run.unwound.set()
            if call.outcome in {"completed", "failed"}:
                await self.push_frame(LLMFullResponseEndFrame())
        if run.batch is not None:
            await self._run_calls(run, run.batch)

    async def _run_calls(self, run: _Run, batch: FunctionCallBatch) -> None:
        try:
            if run.interrupted:  # just before the calls began
                await batch.interrupt()
            await batch.run()
        finally:
            run.batch = None

    def _begin(self, context: OpenAILLMContext) -> _Completion:
        call = LLMCall(
            number=len(self.calls) + 1,
            model=self._model,
            message_count=context.message_count + (context.system_prompt is not None),
            started_at=self._now(),
        )
        self.calls.append(call)
        return _Completion(call, self._new_tally())

    @contextlib.asynccontextmanager
    async def _noted(self, call: LLMCall) -> AsyncGenerator["asyncio.Future[None] | None"]:
        """Have the observer take note of a call; the request is made ready meanwhile."""
        if self._observer is None:
            yield None
            return
        noted = asyncio.ensure_future(self._observer.on_call_started(call))
        try:
            await _let_others_send()
            yield noted
        finally:
            if not noted.done():
                noted.cancel()
                await asyncio.wait([noted])
            if not noted.cancelled():
                noted.exception()  # raised already, or of no interest beside what is

    async def _stream(
        self,
        context: OpenAILLMContext,
        completion: _Completion,
        run: _Run,
        noted: "asyncio.Future[None] | None",
    ) -> None:
        """Send the request once the call is noted, and push the text of its response as it comes.

        Raises:
            ProviderUnavailable: The response failed before its finish reason.
            ProviderRejected: The provider refuses the request or its content.
        """
        call = completion.call
        body = self._build_request(context)
        call.request_bytes = len(body)
        run.stream = stream = ChatStream(
            self._client, body, headers=self._extra_headers, limits=self._limits, after=noted
        )
        try:
            async with stream:
                self._note_response(stream, call)
                await self._read(stream, completion, run)
        except ProviderUnavailable:
            if stream.response is not None:
                self._note_response(stream, call)
            if call.finish_reason is None:
                raise
            # The answer is whole; only what follows it was lost.
        except WorkerError:
            self._note_response(stream, call)
            raise
        if call.finish_reason is None and not run.interrupted:
            raise Truncated("the stream ended without a finish reason")

    async def _read(self, stream: ChatStream, completion: _Completion, run: _Run) -> None:
        call = completion.call
        while (events := await stream.next_events()) is not None:
            for event in events:
                if run.interrupted:
                    return
                if type(event) is TextDelta:
                    call.text_chunks += 1
                    call.text_chars += len(event.text)
                    if call.first_text_at is None:
                        await self._note_first(call, text=True)
                        await self.push_frame(LLMTextFrame(event.text))
                        await _let_others_send()
                    else:
                        await self.push_frame(LLMTextFrame(event.text))
                else:
                    await self._note(event, completion, stream)

    async def _note(self, event: StreamEvent, completion: _Completion, stream: ChatStream) -> None:
        """Take note of an event that is not text.

        Raises:
            ProviderUnavailable: The event says that the response failed.
            ProviderRejected: The event says that the provider refuses.
        """
        call = completion.call
        match event:
            case UsageReport():
                await self._note_usage(event.usage, completion)
                if call.finish_reason:
                    stream.enough(within_s=min(_USAGE_SEEN_S, self._limits.tail_s))
            case ResponseNamed():
                call.response_id, call.response_model = event.response_id, event.model
            case StreamDone():
                stream.enough(within_s=self._limits.drain_s)
            case StreamFailed() | MalformedFrame() | NotAStream():
                if call.finish_reason is None:
                    raise _failure(event)
            case _:
                await self._note_choice(event, completion)
                if isinstance(event, FinishReason) and event.reason:
                    stream.enough(within_s=self._limits.tail_s)

    async def _note_choice(self, event: StreamEvent, completion: _Completion) -> None:
        call = completion.call
        if call.first_chunk_at is None:
            await self._note_first(call, text=False)
        match event:
            case FinishReason():
                call.finish_reason = event.reason
            case ToolCallDelta():
                completion.tool_calls.add(event)
            case ReasoningDelta():
                call.reasoning_chunks += 1
            case Refusal():
                call.text_chars += len(event.text)
                await self.push_frame(LLMTextFrame(event.text))
            case _:
                pass

    def _note_response(self, stream: ChatStream, call: LLMCall) -> None:
        if stream.response is not None:
            call.status = stream.response.status_code
            call.request_id = stream.response.headers.get("x-request-id")
            if call.response_at is None:
                call.response_at = self._now()

    async def _note_first(self, call: LLMCall, *, text: bool) -> None:
        now = self._now()
        if text:
            call.first_text_at = now
        if call.first_chunk_at is not None:
            return
        call.first_chunk_at = now
        if self.metrics_enabled and not self._ttfb_reported:
            self._ttfb_reported = self._start_frame.report_only_initial_ttfb
            value = TTFBMetricsData(self._name, self._model, value=now - call.started_at)
            await self.push_frame(MetricsFrame([value]))

    async def _note_usage(self, usage: ProviderUsage, completion: _Completion) -> None:
        completion.call.usage = usage
        await self.start_llm_usage_metrics(
            LLMTokenUsage(
                usage.prompt_tokens,
                usage.completion_tokens,
                usage.total_tokens,
                cache_read_input_tokens=usage.cached_tokens,
                reasoning_tokens=usage.reasoning_tokens,
            )
        )

    async def _finish(self, completion: _Completion) -> None:
        """Report what the call cost and how long it took; once, however it ended."""
        call = completion.call
        call.finished_at = self._now()
        call.tool_calls = len(completion.tool_calls.calls())
        call.metric = completion.tally.total()
        if call.metric is not None:
            await super().start_llm_usage_metrics(call.metric)
        if self.metrics_enabled:
            duration_s = call.finished_at - call.started_at
            value = ProcessingMetricsData(self._name, self._model, value=duration_s)
            await self.push_frame(MetricsFrame([value]))
        if self._observer is not None:
            await self._observer.on_call_finished(call)

    async def _announce_calls(
        self, context: OpenAILLMContext, completion: _Completion
    ) -> FunctionCallBatch:
        """Put the calls into the context, after the text that came with them."""
        taken: set[str] = set()
        calls: list[FunctionCallFromLLM] = []
        for parts in completion.tool_calls.calls():
            call_id = parts.call_id
            if not call_id or call_id in taken or context.names_call(call_id):
                call_id = f"call_{uuid.uuid4().hex[:16]}"
            taken.add(call_id)
            name = parts.name or "unnamed_function"
            calls.append(function_call(name, call_id, parts.arguments, context))
        batch = self._batch(context, calls)
        await batch.announce()
        return batch

    def _batch(
        self, context: OpenAILLMContext, calls: Sequence[FunctionCallFromLLM]
    ) -> FunctionCallBatch:
        return FunctionCallBatch(
            self, self._functions, calls, context, run_in_parallel=self._run_in_parallel
        )

    # The request

    def _build_request(self, context: OpenAILLMContext) -> bytes:
        """Return the request's body: the messages as they were stored, then all else."""
        fields = self._request_fields(context)
        fields.update((k, v) for k, v in self._extra.items() if is_given(v))
        self._remove_refused(fields)
        if "messages" in fields:
            return _encode(fields)
        return b'{"messages":%b,%b' % (context.encoded_request_messages(), _encode(fields)[1:])

    def _request_fields(self, context: OpenAILLMContext) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "model": self._model,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        tools, tool_choice = context.tools, context.tool_choice
        if is_given(tools) and tools is not None:
            fields["tools"] = tools
            if is_given(tool_choice) and tool_choice is not None:
                fields["tool_choice"] = tool_choice
        fields.update(self._settings)
        return fields

    def _remove_refused(self, fields: dict[str, Any]) -> None:
        """Take out of a request what the model is known to refuse; here nothing."""


_DEFAULT_LIMITS: Final = TimeLimits()
_USAGE_SEEN_S: Final = 0.25
"""How long to wait for `[DONE]` or a further report once finish reason and usage have come."""
_PLAIN_MESSAGES: Final = PlainMessages()


def create_client(
    api_key: str | None,
    base_url: str | None = None,
    *,
    organization: str | None = None,
    project: str | None = None,
    default_headers: Mapping[str, str] | None = None,
) -> AsyncOpenAI:
    """Make a client that never retries and takes nothing from the environment.

    It has as many connections as it is asked for: the number of turns is limited elsewhere.

    Args:
        api_key: Used as it is.
        base_url: Used as it is; OpenAI's address if None.
        organization: OpenAI's, sent with each request.
        project: OpenAI's, sent with each request.
        default_headers: Sent with each request.

    Raises:
        ValueError: `api_key` is missing or empty, or `base_url` is empty: a key goes nowhere that
            was not named for it.
    """
    if not api_key:
        raise ValueError("a client needs an api_key; none is looked up elsewhere")
    if base_url is not None and not base_url.strip():
        raise ValueError("base_url is empty")
    client = AsyncOpenAI(
        api_key=api_key,
        base_url="https://api.openai.com/v1" if base_url is None else base_url,
        max_retries=0,
        http_client=DefaultAioHttpClient(
            limits=Limits(max_connections=0, max_keepalive_connections=None, keepalive_expiry=30.0)
        ),
    )
    # The SDK fills these from OPENAI_ORG_ID, OPENAI_PROJECT_ID, OPENAI_ADMIN_KEY and
    # OPENAI_CUSTOM_HEADERS, and would send them to whatever address is configured.
    client.organization = organization
    client.project = project
    client.admin_api_key = None
    setattr(client, "_custom_headers", dict(default_headers or {}))  # noqa: B010
    return client


async def _let_others_send() -> None:
    """Give what was pushed two turns of the event loop, in which it reaches a socket."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def _failure(event: StreamFailed | MalformedFrame | NotAStream) -> WorkerError:
    match event:
        case StreamFailed():
            return failure_in_stream(event)
        case MalformedFrame():
            return UnusableReply(
                f"a frame of the stream cannot be decoded ({event.reason})", code="malformed_stream"
            )
        case NotAStream():
            return UnusableReply(
                "the provider sent something that is no event stream", code="not_a_stream"
            )
