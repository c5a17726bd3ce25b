"""Answers contexts with an OpenAI-compatible model, streaming."""

import asyncio
import contextlib
import dataclasses
import inspect
import logging
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, TypeAlias, cast

import msgspec
from httpx2 import Limits
from openai import NOT_GIVEN as OPENAI_NOT_GIVEN
from openai import AsyncOpenAI
from openai import NotGiven as OpenAINotGiven

from turnline.contracts.conversation import check_visible
from turnline.contracts.errors import InvalidMessage
from turnline.contracts.numbers import number
from turnline.worker.errors import (
    ProviderUnavailable,
    ReplyTooLarge,
    Stalled,
    Truncated,
    UnusableReply,
    WorkerError,
)
from turnline.worker.pipeline.aggregators import (
    LLMAssistantAggregatorParams,
    LLMAssistantContextAggregator,
    LLMUserAggregatorParams,
    LLMUserContextAggregator,
    to_json,
)
from turnline.worker.pipeline.call_parts import NAME_MAX_CHARS, ToolCallCollector, ToolCallDelta
from turnline.worker.pipeline.calls import CallObserver, LLMCall, Outcome, estimated_tokens
from turnline.worker.pipeline.context import (
    Message,
    MessageAdapter,
    OpenAILLMContext,
    PlainMessages,
    is_given,
)
from turnline.worker.pipeline.frames import (
    CancelFrame,
    EndFrame,
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
from turnline.worker.pipeline.shapes import short
from turnline.worker.pipeline.stream_events import (
    FinishReason,
    MalformedFrame,
    NotAStream,
    OverLimit,
    ProviderUsage,
    ReasoningDelta,
    Refusal,
    ResponseNamed,
    StreamDone,
    StreamEvent,
    StreamFailed,
    TextDelta,
    UsageReport,
)
from turnline.worker.pipeline.tool_schemas import NotGiven
from turnline.worker.services.openai.failures import failure_in_stream
from turnline.worker.services.openai.http_connections import HttpClient
from turnline.worker.services.openai.sdk import (
    SDK_OPTIONS,
    SdkStream,
    sdk_failures,
    stalled,
)
from turnline.worker.services.openai.wire import ChatStream, TimeLimits

log = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode
_decode_messages = msgspec.json.Decoder(list[Message], float_hook=number).decode
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


_DEFAULT_PARAMS: Final = OpenAIInputParams()
_HOOKS: Final[Mapping[str, Sequence[str]]] = {
    "_process_context": ("context",),
    "_stream_chat_completions": ("context",),
    "get_chat_completions": ("context", "messages"),
    "build_chat_completion_params": ("params_from_context",),
}
"""How a request is made: methods that a subclass may override, and what they are given."""

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
        self.uses_sdk = False
        self.completion: _Completion | None = None
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


class _Completion:
    """State of one call; nothing of it is kept on the service."""

    def __init__(self, call: LLMCall, tally: UsageTally) -> None:
        self.call = call
        self.tally = tally
        self.tool_calls = ToolCallCollector()
        self.ended = False
        """Whether what came last says that nothing follows: a finish reason, or usage by itself."""
        self.closed = False
        """Whether that stood in a frame of its own."""
        self.late = False
        """Whether something was said after a finish reason: this provider's mean nothing."""
        self.done = False
        """Whether `[DONE]` was seen."""
        self.body = b""

    @property
    def has_said(self) -> bool:
        """Whether there is anything to use."""
        return self.call.text_chars > 0 or bool(self.tool_calls)

    @property
    def is_over(self) -> bool:
        """Whether the reply is all there, if the response ends in order."""
        call = self.call
        if self.done:
            return self.has_said or call.finish_reason is not None or call.usage is not None
        return self.ended and (call.finish_reason is not None or self.has_said)

    @property
    def is_whole(self) -> bool:
        """Whether the reply is all there, whatever becomes of the rest of the response."""
        return self.is_over and (self.done or not self.late)

    def end(self, *, closed: bool) -> None:
        """Take note of what looks like the end; `closed` if it stood by itself."""
        self.ended = True
        self.closed = closed

    def check_failure(self, event: StreamFailed | MalformedFrame | NotAStream | OverLimit) -> None:
        """Raise what an event stands for, unless the reply is whole without a doubt."""
        if isinstance(event, OverLimit) or not (self.closed and self.is_whole and self.has_said):
            raise _failure(event)

    def go_on(self) -> None:
        """Take note that something was said after what looked like the end."""
        self.ended = self.closed = False
        if self.call.finish_reason:
            self.late = True
        else:  # an empty reason
            self.call.finish_reason = None


_run_of: ContextVar[tuple[object, _Run] | None] = ContextVar("run_of", default=None)
"""The service that answers in this task, and what: concurrent calls never mix."""


class OpenAILLMService(FrameProcessor):
    """Streams chat completions and runs the functions that the model calls.

    A service holds no state of a completion, so one may answer several contexts at a time; a
    worker builds one per turn around a shared client. Each completion is one POST: retrying is the
    caller's business. What goes wrong is raised out of `process_frame`, after the end of the
    response was pushed, so that the text received so far has reached the assistant aggregator.

    A subclass may override, as in pipecat: `create_client`, `build_chat_completion_params`,
    `get_chat_completions`, `_stream_chat_completions`, `_process_context`, `run_function_calls`,
    `start_llm_usage_metrics`, `_update_settings`, `start`, `stop`, `cancel`, `process_frame`. Where
    it overrides how a request is made, or brings a client of another class, the SDK makes the
    request and reads the stream; else both go straight to the transport.

    Events: `on_function_calls_started(service, function_calls)`, `on_completion_timeout(service)`.
    """

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

    EVENTS: ClassVar[frozenset[str]] = frozenset(
        {"on_function_calls_started", "on_completion_timeout"}
    )
    _has_hooks: ClassVar[bool] = False
    """Whether a subclass changes how requests are made."""
    InputParams: TypeAlias = OpenAIInputParams
    """Sampling parameters, as pipecat has them: an attribute of the service."""
    provider_name: ClassVar[str] = "openai"
    """Value of `gen_ai.provider.name`."""

    def __init__(
        self,
        *,
        model: str = "gpt-4.1",
        api_key: str | None = None,
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
        **client_options: Any,
    ) -> None:
        """Prepare a service; nothing is sent.

        Args:
            model: As the provider names it.
            api_key: Never taken from the environment.
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
            **client_options: For a subclass's `create_client`; the one here takes no others.

        Raises:
            ValueError: `api_key` is missing or empty.
            TypeError: There is no such option.
        """
        super().__init__(name=name)
        if not api_key:
            raise ValueError(f"{type(self).__name__} needs an api_key; none is looked up elsewhere")
        params = params or _DEFAULT_PARAMS
        self._settings: dict[str, Any] = {
            name: value if is_given(value := getattr(params, name)) else OPENAI_NOT_GIVEN
            for name in _SENT_PARAMETERS
        }
        self._settings["extra"] = dict(params.extra) if isinstance(params.extra, Mapping) else {}
        self._model: str = model
        self.set_model_name(model)
        self._owns_client = client is None
        self._client = client or self.create_client(
            api_key=api_key,
            base_url=base_url,
            organization=organization,
            project=project,
            default_headers=default_headers,
            **client_options,
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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a subclass whose override would be ignored, or called in another way.

        Raises:
            TypeError: It overrides what is never called, or takes other arguments.
        """
        super().__init_subclass__(**kwargs)
        cls._has_hooks = any(getattr(cls, it) is not getattr(OpenAILLMService, it) for it in _HOOKS)
        for name, given in _HOOKS.items():
            parameters = inspect.signature(getattr(cls, name)).parameters
            try:
                inspect.signature(getattr(cls, name)).bind(None, *given)
            except TypeError:
                raise TypeError(
                    f"{cls.__name__}.{name}({', '.join(parameters)}) cannot be called: it is given "
                    f"(self, {', '.join(given)})"
                ) from None

    # Set-up

    def create_client(
        self, api_key: str | None = None, base_url: str | None = None, **kwargs: Any
    ) -> AsyncOpenAI:
        """Make the client; called once, by the constructor. Override it to bring another one.

        Args:
            api_key: Used as it is.
            base_url: Used as it is; OpenAI's address if None.
            **kwargs: `organization`, `project`, `default_headers`, and what else the constructor
                was given that it does not know.

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
        run = self._current_run()
        if run is None:
            await super().start_llm_usage_metrics(tokens)
        else:
            completion = run.completion or await self._open(run)
            completion.tally.add(tokens)

    async def start_ttfb_metrics(self) -> None:
        """Begin to measure the time to the first byte: a request is about to be sent."""
        run = self._current_run()
        if run is not None:
            await self._open(run)
        await super().start_ttfb_metrics()

    def _new_tally(self) -> UsageTally:
        return UsageTally()

    def _current_run(self) -> _Run | None:
        current = _run_of.get()
        return current[1] if current is not None and current[0] is self else None

    def _usage_data(self, tokens: LLMTokenUsage) -> LLMUsageMetricsData:
        return LLMUsageMetricsData(self._name, self._model, value=tokens)

    # Frames

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
                await self.push_frame(frame, direction)
            case EndFrame():
                await self.stop(frame)
                await self.push_frame(frame, direction)
            case CancelFrame():
                await self.cancel(frame)
                await self.push_frame(frame, direction)
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
                await self._update_settings(frame.settings)
            case StartInterruptionFrame():
                await self._interrupt()
                await self.push_frame(frame, direction)
            case StopInterruptionFrame():
                self._ttfb_reported = False
                await self.push_frame(frame, direction)
            case _:
                await self.push_frame(frame, direction)

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

    async def _update_settings(self, settings: Mapping[str, Any]) -> None:
        for name, value in settings.items():
            if name == "model":
                self.set_model_name(value)
            elif name == "extra":
                self._settings["extra"] = dict(value)
            elif name in self._settings:
                self._settings[name] = value if is_given(value) else OPENAI_NOT_GIVEN
            else:
                log.warning("llm.unknown_setting", extra={"setting": name})

    async def _interrupt(self) -> None:
        """Stop what is being answered; functions that may not be cancelled go on."""
        for run in list(self._runs.values()):
            run.interrupted = True
            if run.batch is not None:
                await run.batch.interrupt()
                continue
            if run.inner is not None:
                run.inner.cancel()
            elif run.stream is not None:
                run.stream.abort()
            else:
                continue
            if asyncio.current_task() not in {run.task, run.inner}:
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
        run = self._runs[id(context)] = _Run(context)
        try:
            if calls:
                batch = run.batch = self._batch(context, calls)
                await batch.announce()
                await self._run_calls(run, batch)
                if batch.waits or not (run.again or answer):
                    return
            await self._complete(run)
        finally:
            del self._runs[id(context)]

    async def _complete(self, run: _Run) -> None:
        while True:
            run.again = run.interrupted = False
            await self._respond(run)
            if not run.again:
                return

    # One completion

    async def _respond(self, run: _Run, *, framed: bool = True) -> None:
        """Have one response made, and run the functions that it calls.

        Args:
            run: What is answered.
            framed: Whether to push the frames that stand around a response.
        """
        run.context.repair_in_progress()
        run.completion, run.is_sent = None, False
        run.made, run.parsed = [], []
        outcome: Outcome = "failed"
        code: str | None = None
        token = _run_of.set((self, run))
        run.unwound.clear()
        if framed:
            await self.push_frame(LLMFullResponseStartFrame())
        try:
            run.uses_sdk = self._uses_sdk()
            if run.uses_sdk:
                await self._run_hooks(run)
            else:  # no coroutine in between: each chunk would wake it up
                await self._process_context(run.context)
            outcome = "interrupted" if run.interrupted else "completed"
        except WorkerError as error:
            code = error.code
            self._note_status(run, error)
            if isinstance(error, Stalled):
                await self._call_event_handler("on_completion_timeout")
            raise
        except asyncio.CancelledError:
            outcome, code = "cancelled", "cancelled"
            raise
        except BaseException as error:
            code = type(error).__name__
            raise
        finally:
            _run_of.reset(token)
            run.stream = None
            try:
                await self._close_call(run, outcome, code)
                if outcome == "completed" and run.made:
                    run.batch = await self._announce_calls(run)
            finally:
                run.unwound.set()
            if framed and outcome in {"completed", "failed"}:
                await self.push_frame(LLMFullResponseEndFrame())
        if run.batch is not None:
            await self._run_calls(run, run.batch)

    async def _run_hooks(self, run: _Run) -> None:
        """Make the response, by the code of a subclass.

        Raises:
            Retryable: See `process_frame`.
            Terminal: See `process_frame`.
        """
        run.inner = asyncio.create_task(self._process_context(run.context))
        try:
            await asyncio.wait([run.inner])
        finally:
            inner, run.inner = run.inner, None
            if not inner.done():
                inner.cancel()
                await asyncio.wait([inner])
        if inner.cancelled() and run.interrupted:
            return
        with sdk_failures():
            inner.result()

    def _uses_sdk(self) -> bool:
        """Tell whether the SDK makes requests, since somebody changed how they are made."""
        return (
            self._has_hooks
            or type(self._client) is not AsyncOpenAI
            or not self.__dict__.keys().isdisjoint(_HOOKS)
            or bool(self._settings["extra"] and SDK_OPTIONS.intersection(self._settings["extra"]))
        )

    async def _process_context(self, context: OpenAILLMContext) -> None:
        """Stream one completion of the context and ask for the functions it calls.

        Raises:
            Retryable: See `process_frame`.
            Terminal: See `process_frame`.
        """
        run = self._current_run()
        if run is None:
            await self._respond(_Run(context), framed=False)
            return
        completion = await self._open(run, noted=run.uses_sdk)
        try:
            if run.uses_sdk:
                await self._stream_by_sdk(context, completion, run)
            else:
                run.is_sent = True
                async with self._noted(completion.call) as noted:
                    await self._stream(context, completion, run, noted)
        except WorkerError as error:
            self._note_status(run, error)
            await self._close_call(run, "failed", error.code)
            raise
        if completion.tool_calls and not run.interrupted:
            run.parsed = self._calls_of(completion, context)
            await self.run_function_calls(run.parsed)

    async def _open(self, run: _Run, *, noted: bool = True) -> _Completion:
        """Return the call that is about to be made: a new one, unless one waits for its request.

        Args:
            run: What is answered.
            noted: Whether to have the observer take note of it.
        """
        if run.completion is not None and not run.is_sent:
            return run.completion
        await self._close_call(run, "completed", None)
        run.completion, run.is_sent = self._begin(run.context), False
        if noted and self._observer is not None:
            await self._observer.on_call_started(run.completion.call)
        return run.completion

    def _note_status(self, run: _Run, error: WorkerError) -> None:
        """Take the status from an error, where the SDK kept the response to itself."""
        status: int | None = getattr(error, "status", None)
        if run.completion is not None and run.completion.call.status is None:
            run.completion.call.status = status

    async def _close_call(self, run: _Run, outcome: Outcome, code: str | None) -> None:
        completion = run.completion
        if completion is not None and completion.call.finished_at is None:
            completion.call.outcome, completion.call.error = outcome, code
            await self._finish(completion)

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
        call.request_bytes, completion.body = len(body), body
        run.stream = stream = ChatStream(
            self._client, body, headers=self._extra_headers, limits=self._limits, after=noted
        )
        try:
            async with stream:
                self._note_response(stream, call)
                await self._read(stream, completion, run)
        except UnusableReply:
            self._note_response(stream, call)
            raise
        except ProviderUnavailable:
            if stream.response is not None:
                self._note_response(stream, call)
            if not completion.is_whole:
                raise
            # The answer is whole; only what follows it was lost.
        except WorkerError:
            self._note_response(stream, call)
            raise
        if not run.interrupted:
            self._check_end(completion, stream)

    async def _read(
        self, stream: ChatStream | SdkStream, completion: _Completion, run: _Run
    ) -> None:
        call = completion.call
        while (events := await stream.next_events()) is not None:
            for event in events:
                if run.interrupted:
                    return
                if type(event) is TextDelta:
                    call.text_chunks += 1
                    call.text_chars += len(event.text)
                    if completion.ended:
                        completion.go_on()
                        stream.go_on()
                    if call.first_text_at is None:
                        await self._note_first(call, text=True)
                        await self.push_frame(LLMTextFrame(event.text))
                        await _let_others_send()
                    else:
                        await self.push_frame(LLMTextFrame(event.text))
                else:
                    await self._note(event, completion, stream)

    async def _note(
        self, event: StreamEvent, completion: _Completion, stream: ChatStream | SdkStream
    ) -> None:
        """Take note of an event that is not text.

        Raises:
            ProviderUnavailable: The event says that the response failed.
            ProviderRejected: The event says that the provider refuses.
            UnusableReply: Text or calls in it may be missing.
            ReplyTooLarge: The response holds more than one may.
        """
        call = completion.call
        match event:
            case UsageReport():
                await self._note_usage(event.usage, completion)
                if event.alone:
                    completion.end(closed=True)
                    if call.finish_reason:
                        self._expect_the_end(stream, completion, _USAGE_SEEN_S)
            case ResponseNamed():
                call.response_id, call.response_model = event.response_id, event.model
            case StreamDone():
                completion.done = True
                stream.enough(within_s=self._limits.drain_s)
            case StreamFailed() | MalformedFrame() | NotAStream() | OverLimit():
                call.refused = isinstance(event, StreamFailed) and call.first_chunk_at is None
                completion.check_failure(event)
            case _:
                if completion.ended and isinstance(event, ToolCallDelta | Refusal):
                    completion.go_on()
                    stream.go_on()
                await self._note_choice(event, completion)
                if isinstance(event, FinishReason):
                    completion.end(closed=event.alone)
                    if event.alone and event.reason:
                        self._expect_the_end(stream, completion, self._limits.tail_s)

    def _expect_the_end(
        self, stream: ChatStream | SdkStream, completion: _Completion, wait_s: float
    ) -> None:
        """Wait less long from here on, where what came may be believed to be all."""
        if completion.has_said and not completion.late:
            stream.enough(within_s=min(wait_s, self._limits.tail_s))

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

    def _note_response(self, stream: ChatStream | SdkStream, call: LLMCall) -> None:
        if stream.response is not None:
            call.status = stream.response.status_code
            call.request_id = short(stream.response.headers.get("x-request-id"))
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
        if call.usage is None and call.is_accepted:
            self._estimate(completion)
        if call.metric is not None:
            await super().start_llm_usage_metrics(call.metric)
        if self.metrics_enabled:
            duration_s = call.finished_at - call.started_at
            value = ProcessingMetricsData(self._name, self._model, value=duration_s)
            await self.push_frame(MetricsFrame([value]))
        if self._observer is not None:
            await self._observer.on_call_finished(call)

    def _estimate(self, completion: _Completion) -> None:
        """Count what nobody reported, as well as may be: from an earlier call, or from bytes."""
        call = completion.call
        parts = completion.tool_calls.calls()
        call.argument_chars = sum(len(part.name) + len(part.arguments) for part in parts)
        call.prompt_estimate = estimated_tokens(completion.body)
        for earlier in reversed(self.calls):
            if earlier.usage is not None and earlier.usage.prompt_tokens:
                grown = (call.request_bytes - earlier.request_bytes) // 4
                call.prompt_estimate = max(1, earlier.usage.prompt_tokens + grown)
                break

    def _calls_of(
        self, completion: _Completion, context: OpenAILLMContext
    ) -> list[FunctionCallFromLLM]:
        return [
            function_call(self._name_of(parts.name), parts.call_id, parts.arguments, context)
            for parts in completion.tool_calls.calls()
        ]

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
            run = _Run(function_calls[0].context or OpenAILLMContext())
            run.made.extend(function_calls)
            batch = await self._announce_calls(run)
            await batch.run()

    async def _announce_calls(self, run: _Run) -> FunctionCallBatch:
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

    def _name_of(self, name: str) -> str:
        """Return the name under which a call stands in the context, where it can be read back.

        No function has a name that providers refuse; the model is told so under one that they take.
        """
        if name and len(name) <= NAME_MAX_CHARS and name.isprintable() and self.has_function(name):
            return name
        return _NOT_IN_NAMES.sub("_", name)[:64] or "unnamed_function"

    def _batch(
        self, context: OpenAILLMContext, calls: Sequence[FunctionCallFromLLM]
    ) -> FunctionCallBatch:
        return FunctionCallBatch(
            self, self._functions, calls, context, run_in_parallel=self._run_in_parallel
        )

    # The request, by the SDK

    def build_chat_completion_params(
        self, params_from_context: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return what the SDK's `chat.completions.create` is called with.

        Args:
            params_from_context: `messages`, `tools` and `tool_choice`.
        """
        fields: dict[str, Any] = {
            "model": self._model,
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: self._settings[name] for name in _SENT_PARAMETERS},
            **params_from_context,
            **self._settings["extra"],
        }
        fields = {name: value for name, value in fields.items() if is_given(value)}
        self._remove_refused(fields)
        return fields

    async def get_chat_completions(
        self, context: OpenAILLMContext, messages: list[Message]
    ) -> AsyncIterable[Any]:
        """Have the SDK send a request.

        Args:
            context: Its tools and tool choice are used.
            messages: In the form that the model takes.

        Returns:
            The chunks of the response.

        Raises:
            OpenAIError: See the SDK.
        """
        params = self.build_chat_completion_params(
            {"messages": messages, "tools": context.tools, "tool_choice": context.tool_choice}
        )
        params["extra_headers"] = {**self._extra_headers, **params.get("extra_headers", {})}
        return cast("AsyncIterable[Any]", await self._client.chat.completions.create(**params))

    async def _stream_chat_completions(self, context: OpenAILLMContext) -> AsyncIterable[Any]:
        """Send a request for this context.

        Returns:
            The chunks of the response, taken note of as they are read.

        Raises:
            OpenAIError: See the SDK.
        """
        run = self._current_run()
        completion = None
        if run is not None:
            completion = await self._open(run)
            run.is_sent = True
        # Subclasses hand these to the SDK, which knows its own constant only.
        if not is_given(context.tools):
            context.set_tools(OPENAI_NOT_GIVEN)
        if not is_given(context.tool_choice):
            context.set_tool_choice(OPENAI_NOT_GIVEN)
        encoded = context.encoded_request_messages()
        if completion is not None:
            completion.call.request_bytes, completion.body = len(encoded), encoded
        limit = asyncio.timeout(self._limits.first_token_s)
        try:
            async with limit:
                chunks = await self.get_chat_completions(context, _decode_messages(encoded))
        except TimeoutError:
            if limit.expired():
                raise stalled("first_token") from None
            raise
        if completion is None:
            return chunks
        call = completion.call
        stream = SdkStream(
            chunks, limits=self._limits, on_event=lambda event: self._note_seen(event, call)
        )
        self._note_response(stream, call)
        return stream

    async def _stream_by_sdk(
        self, context: OpenAILLMContext, completion: _Completion, run: _Run
    ) -> None:
        """Push the text of a response that the SDK reads, as it comes.

        Raises:
            ProviderUnavailable: The response failed before its finish reason.
            ProviderRejected: The provider refuses the request or its content.
        """
        with sdk_failures():
            chunks = await self._stream_chat_completions(context)
            run.is_sent = True
            if not isinstance(chunks, SdkStream):
                chunks = SdkStream(chunks, limits=self._limits)
            async with chunks as stream:
                self._note_response(stream, completion.call)
                await self._read(stream, completion, run)
                self._check_end(completion, stream)

    def _check_end(self, completion: _Completion, stream: ChatStream | SdkStream) -> None:
        """See that a response that has ended holds a whole reply.

        Raises:
            UnusableReply: It does not.
        """
        calls_nothing = _CALLS.search(completion.call.finish_reason or "")
        if not completion.has_said and (stream.left_unread or calls_nothing):
            raise _unreadable("shape")
        if not completion.is_over:
            raise Truncated("the stream ended without a finish reason")

    def _note_seen(self, event: StreamEvent, call: LLMCall) -> None:
        """Take note of what a subclass reads by itself."""
        match event:
            case TextDelta() | Refusal():
                call.text_chunks += 1
                call.text_chars += len(event.text)
                if call.first_text_at is None:
                    call.first_text_at = self._now()
            case ReasoningDelta():
                call.reasoning_chunks += 1
            case UsageReport():
                call.usage = event.usage
            case FinishReason():
                call.finish_reason = event.reason
            case ResponseNamed():
                call.response_id, call.response_model = event.response_id, event.model
            case _:
                pass
        if call.first_chunk_at is None and not isinstance(event, ResponseNamed | UsageReport):
            call.first_chunk_at = self._now()

    # The request

    def _build_request(self, context: OpenAILLMContext) -> bytes:
        """Return the request's body: the messages as they were stored, then all else."""
        fields = self._request_fields(context)
        fields.update((k, v) for k, v in self._settings["extra"].items() if is_given(v))
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
        fields.update(
            (name, value)
            for name in _SENT_PARAMETERS
            if (value := self._settings[name]) is not OPENAI_NOT_GIVEN and is_given(value)
        )
        return fields

    def _remove_refused(self, fields: dict[str, Any]) -> None:
        """Take out of a request what the model is known to refuse; here nothing."""


_DEFAULT_LIMITS: Final = TimeLimits()
_USAGE_SEEN_S: Final = 0.25
"""How long to wait for `[DONE]` or a further report once finish reason and usage have come."""
_CALLS: Final = re.compile("tool|function", re.IGNORECASE)
"""In finish reasons that say that something is called."""
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_.-]")
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
        http_client=HttpClient(
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


def _can_be_answered(call_id: str) -> bool:
    """Tell whether a producer may send a result under this id."""
    if not (0 < len(call_id) <= NAME_MAX_CHARS and call_id.isprintable()):
        return False
    try:
        check_visible(call_id, "call_id")
    except InvalidMessage:
        return False
    return True


async def _let_others_send() -> None:
    """Give what was pushed two turns of the event loop, in which it reaches a socket."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def _failure(event: StreamFailed | MalformedFrame | NotAStream | OverLimit) -> WorkerError:
    match event:
        case OverLimit():
            return ReplyTooLarge(f"the response is too large ({event.what})")
        case StreamFailed():
            return failure_in_stream(event)
        case MalformedFrame():
            return _unreadable(event.reason)
        case NotAStream():
            return UnusableReply(
                "the provider sent something that is no event stream", code="not_a_stream"
            )


def _unreadable(reason: str) -> UnusableReply:
    return UnusableReply(
        f"a frame of the stream cannot be read ({reason})", code="malformed_stream"
    )
