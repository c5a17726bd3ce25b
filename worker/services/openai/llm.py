"""Answers contexts with an OpenAI-compatible model, streaming."""

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias, cast

import msgspec

from turnline.contracts.numbers import number
from turnline.worker.errors import (
    ProviderUnavailable,
    Stalled,
    UnusableReply,
    WorkerError,
)
from turnline.worker.pipeline.aggregators import (
    LLMAssistantAggregatorParams,
    LLMUserAggregatorParams,
)
from turnline.worker.pipeline.calls import CallObserver, Outcome
from turnline.worker.pipeline.context import (
    Message,
    OpenAILLMContext,
    is_given,
)
from turnline.worker.pipeline.frames import (
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTokenUsage,
)
from turnline.worker.pipeline.functions import FunctionRegistry
from turnline.worker.pipeline.stream import CompletionStream
from turnline.worker.pipeline.tool_schemas import NOT_GIVEN
from turnline.worker.services.completion import Completion
from turnline.worker.services.llm_service import LLMService, Run, calls_of, run_of
from turnline.worker.services.openai.aggregator_pair import (
    ASSISTANT_PARAMS,
    USER_PARAMS,
    OpenAIAssistantContextAggregator,
    OpenAIContextAggregatorPair,
    OpenAIUserContextAggregator,
)
from turnline.worker.services.openai.chat_request import (
    CHAT_PATH,
    SDK_OPTIONS,
    OpenAIInputParams,
    chat_body,
    chat_fields,
    sdk_value,
    settings_of,
)
from turnline.worker.services.openai.client_of_service import ClientOfService
from turnline.worker.services.openai.sdk_client import Client, create_client, has_transport
from turnline.worker.services.reply_reader import (
    EventSource,
    ReplyReader,
    note_response,
    note_unread,
)
from turnline.worker.services.transport import Parser, ResponseStream, TimeLimits

if TYPE_CHECKING:
    from turnline.worker.services.openai.sdk import SdkStream

__all__ = [
    "OpenAIAssistantContextAggregator",
    "OpenAIContextAggregatorPair",
    "OpenAIInputParams",
    "OpenAILLMService",
    "OpenAIUserContextAggregator",
    "create_client",
]

log = logging.getLogger(__name__)

_decode_messages = msgspec.json.Decoder(list[Message], float_hook=number).decode
_DEFAULT_LIMITS: Final = TimeLimits()
_HOOKS: Final[Mapping[str, Sequence[str]]] = {
    "_process_context": ("context",),
    "_stream_chat_completions": ("context",),
    "get_chat_completions": ("context", "messages"),
    "build_chat_completion_params": ("params_from_context",),
}
"""How a request is made: methods that a subclass may override, and what they are given."""


class OpenAILLMService(ClientOfService, LLMService):
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

    _has_hooks: ClassVar[bool] = False
    """Whether a subclass changes how requests are made."""
    InputParams: TypeAlias = OpenAIInputParams
    """Sampling parameters, as pipecat has them: an attribute of the service."""

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
        client: "Client | None" = None,
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
            client: Shared by services, with its own key and address: a `ProviderClient` or an
                `AsyncOpenAI`. Else one is made here, and `close` closes it.
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
        super().__init__(
            model,
            observer=observer,
            run_in_parallel=run_in_parallel,
            functions=functions,
            now=now,
            name=name,
        )
        if not api_key:
            raise ValueError(f"{type(self).__name__} needs an api_key; none is looked up elsewhere")
        self.set_model_name(model)
        self._take_client(
            client,
            api_key=api_key,
            base_url=base_url,
            organization=organization,
            project=project,
            default_headers=default_headers,
            **client_options,
        )
        if self._has_hooks:
            _ = self._client  # with it comes the SDK's constant, which hooks may look for
        self._settings = settings_of(params)
        self._extra_headers: Mapping[str, str] = extra_headers or {}
        self._limits = limits or _DEFAULT_LIMITS

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

    async def _update_settings(self, settings: Mapping[str, Any]) -> None:
        for name, value in settings.items():
            if name == "model":
                self.set_model_name(value)
            elif name == "extra":
                self._settings["extra"] = dict(value)
            elif name in self._settings:
                self._settings[name] = sdk_value(value)
            else:
                log.warning("llm.unknown_setting", extra={"setting": name})

    # One completion

    async def _respond(self, run: Run, *, framed: bool = True) -> None:
        """Have one response made, and run the functions that it calls.

        Args:
            run: What is answered.
            framed: Whether to push the frames that stand around a response.
        """
        run.context.repair_in_progress()
        run.begin_response()
        outcome: Outcome = "failed"
        code: str | None = None
        token = run_of.set((self, run))
        if framed:
            await self.push_frame(LLMFullResponseStartFrame())
        try:
            run.uses_sdk = self._uses_sdk()
            if run.uses_sdk:
                from turnline.worker.services.openai.sdk import run_hooks  # noqa: PLC0415  costly

                self._settings = {name: sdk_value(it) for name, it in self._settings.items()}
                await run_hooks(run, self._process_context(run.context))
            else:  # no coroutine in between: each chunk would wake it up
                await self._process_context(run.context)
            outcome = "interrupted" if run.interrupted else "completed"
        except WorkerError as error:
            code = error.code
            run.note_status(error)
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
            run_of.reset(token)
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
            await run.run_calls(run.batch)

    def _uses_sdk(self) -> bool:
        """Tell whether the SDK makes requests, since somebody changed how they are made."""
        return (
            self._changes_chat()
            or not has_transport(self._connection)
            or bool(self._settings["extra"] and SDK_OPTIONS.intersection(self._settings["extra"]))
        )

    def _changes_chat(self) -> bool:
        """Tell whether somebody changed how a request of chat is made."""
        return self._has_hooks or not self.__dict__.keys().isdisjoint(_HOOKS)

    async def _process_context(self, context: OpenAILLMContext) -> None:
        """Stream one completion of the context and ask for the functions it calls.

        Raises:
            Retryable: See `process_frame`.
            Terminal: See `process_frame`.
        """
        run = self._current_run()
        if run is None:
            await self._respond(Run(context), framed=False)
            return
        completion = await self._make_call(context, run)
        if completion.tool_calls and not run.interrupted:
            run.parsed = calls_of(completion, context, self._functions)
            await self.run_function_calls(run.parsed)

    async def _make_call(self, context: OpenAILLMContext, run: Run) -> Completion:
        completion = await self._open(run, noted=run.uses_sdk)
        try:
            if run.uses_sdk:
                await self._stream_by_sdk(context, completion, run)
            else:
                run.is_sent = True
                async with self._records.noted(completion.call) as noted:
                    await self._stream(completion, run, noted)
        except WorkerError as error:
            run.note_status(error)
            await self._close_call(run, "failed", self._code_of(error, run))
            raise
        return completion

    async def _open(self, run: Run, *, noted: bool = True) -> Completion:
        """Return the call that is about to be made: a new one, unless one waits for its request."""
        if run.completion is not None and not run.is_sent:
            return run.completion
        await self._close_call(run, "completed", None)
        call = self._records.begin(self._model, run.context)
        run.completion, run.is_sent = Completion(call, self._new_tally()), False
        if noted:
            await self._records.note(call)
        return run.completion

    async def _close_call(self, run: Run, outcome: Outcome, code: str | None) -> None:
        completion = run.completion
        if completion is not None and completion.call.finished_at is None:
            completion.call.outcome, completion.call.error = outcome, code
            await self._close_record(completion)

    def _reader(self, completion: Completion, stream: EventSource) -> ReplyReader:
        return ReplyReader(self, completion, stream, limits=self._limits, now=self._now)

    async def _stream(
        self, completion: Completion, run: Run, noted: "asyncio.Future[None] | None"
    ) -> None:
        """Send the request once the call is noted, and push the text of its response as it comes.

        Raises:
            ProviderUnavailable: The response failed before its finish reason.
            ProviderRejected: The provider refuses the request or its content.
        """
        call = completion.call
        path, body, parser = self._request(run.context)
        call.request_bytes, completion.body = len(body), body
        run.stream = stream = ResponseStream(
            self._connection,
            path,
            body,
            parser,
            headers=self._extra_headers,
            limits=self._limits,
            after=noted,
        )
        try:
            async with stream:
                note_response(call, stream.response, self._now)
                await self._reader(completion, stream).read()
        except WorkerError as error:
            note_response(call, stream.response, self._now)
            is_lost = isinstance(error, ProviderUnavailable)
            if not is_lost or isinstance(error, UnusableReply) or not completion.is_whole:
                raise
            # The answer is whole; only what follows it was lost.
        if not run.interrupted:
            completion.check_end(left_unread=stream.left_unread)

    def _request(self, context: OpenAILLMContext) -> tuple[str, bytes, Parser]:
        """Return a request's path and body, and what reads its response."""
        body = chat_body(context, self._model, self._settings, self._remove_refused)
        return CHAT_PATH, body, CompletionStream()

    # The request, by the SDK

    def build_chat_completion_params(
        self, params_from_context: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return what the SDK's `chat.completions.create` is called with.

        Args:
            params_from_context: `messages`, `tools` and `tool_choice`.
        """
        return chat_fields(self._model, self._settings, params_from_context, self._remove_refused)

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
        from turnline.worker.services.openai.sdk import SdkStream, in_time  # noqa: PLC0415  costly

        run = self._current_run()
        completion = None
        if run is not None:
            completion = await self._open(run)
            run.is_sent = True
        # Subclasses hand these to the SDK, which knows its own constant only.
        if not is_given(context.tools):
            context.set_tools(sdk_value(NOT_GIVEN))
        if not is_given(context.tool_choice):
            context.set_tool_choice(sdk_value(NOT_GIVEN))
        encoded = context.encoded_request_messages()
        if completion is not None:
            completion.call.request_bytes, completion.body = len(encoded), encoded
        asking = self.get_chat_completions(context, _decode_messages(encoded))
        chunks = await in_time(asking, self._limits)
        if completion is None:
            return chunks
        call = completion.call
        stream = SdkStream(
            chunks, limits=self._limits, on_event=lambda event: note_unread(event, call, self._now)
        )
        note_response(call, stream.response, self._now)
        return stream

    async def _stream_by_sdk(
        self, context: OpenAILLMContext, completion: Completion, run: Run
    ) -> None:
        """Push the text of a response that the SDK reads, as it comes.

        Raises:
            ProviderUnavailable: The response failed before its finish reason.
            ProviderRejected: The provider refuses the request or its content.
        """
        from turnline.worker.services.openai.sdk import SdkStream, sdk_failures  # noqa: PLC0415

        with sdk_failures():
            chunks = await self._stream_chat_completions(context)
            run.is_sent = True
            if not isinstance(chunks, SdkStream):
                chunks = SdkStream(chunks, limits=self._limits)
            await self._read_sdk(chunks, completion)

    async def _read_sdk(self, stream: "SdkStream", completion: Completion) -> None:
        async with stream:
            note_response(completion.call, stream.response, self._now)
            await self._reader(completion, stream).read()
            completion.check_end(left_unread=stream.left_unread)

    def _remove_refused(self, fields: dict[str, Any]) -> None:
        """Take out of a request what the model is known to refuse; here nothing."""
