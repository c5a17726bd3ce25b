"""Services that override what pipecat's own services override: how a request is made and read."""

import asyncio
import types
from collections.abc import AsyncIterator, Sequence
from typing import Any

import openai
import pytest
from openai import NOT_GIVEN, AsyncAzureOpenAI, AsyncOpenAI

from tests.integration.services.wire import (
    END_OF_BODY,
    HEARING,
    PATIENT,
    QUICK,
    STREAM_HEAD,
    Connection,
    Turn,
    WireServer,
    call,
    chunk,
    delta,
    failed,
    finish,
    ran,
    sse,
    streaming,
    turn,
    usage,
)
from tests.support.wait import wait_until
from turnline.worker.errors import (
    ProviderRejected,
    ProviderUnavailable,
    RateLimited,
    Stalled,
    UnusableReply,
    WorkerError,
)
from turnline.worker.pipeline.calls import LLMCall
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.pipeline.frames import (
    CancelFrame,
    EndFrame,
    ErrorFrame,
    Frame,
    FunctionCallFromLLM,
    LLMTextFrame,
    LLMTokenUsage,
    LLMUpdateSettingsFrame,
    MetricsFrame,
    TTFBMetricsData,
    UserImageRequestFrame,
)
from turnline.worker.pipeline.functions import FunctionCallParams
from turnline.worker.pipeline.processor import UPSTREAM, FrameDirection, FrameProcessor
from turnline.worker.pipeline.tool_schemas import FunctionSchema, ToolsSchema
from turnline.worker.services.grok.llm import GrokLLMService
from turnline.worker.services.openai.llm import OpenAILLMService
from turnline.worker.services.transport import TimeLimits

ANSWER = streaming(delta(content="do"), delta(content="ne"), finish(), usage(5, 2))
TOOLS = ToolsSchema([FunctionSchema("f", "does f", {"a": {"type": "integer"}}, ["a"])])
CALLING = streaming(delta(tool_calls=[call(0, "c1", "f", '{"a": 1}')]), finish("tool_calls"))


class Completions(GrokLLMService):
    """Makes its own request, with the SDK's constants, as services for other providers do."""

    asked: list[dict[str, Any]]

    async def get_chat_completions(
        self, context: OpenAILLMContext, messages: list[dict[str, Any]]
    ) -> Any:
        params = {
            "model": self.model_name,
            "stream": True,
            "messages": messages,
            "tools": context.tools,
            "tool_choice": context.tool_choice,
            "seed": self._settings["seed"],
            "temperature": self._settings["temperature"],
        }
        if self._settings["top_p"] is not NOT_GIVEN:
            params["top_p"] = self._settings["top_p"]
        params.update(self._settings["extra"])
        return await self._client.chat.completions.create(**params)


class Wrapped(GrokLLMService):
    """Changes the messages and leaves the rest as it is."""

    async def get_chat_completions(self, context: OpenAILLMContext, messages: Any) -> Any:
        return await super().get_chat_completions(
            context, [*messages, {"role": "system", "content": "Be brief."}]
        )


class Params(GrokLLMService):
    """Changes what is asked for."""

    def build_chat_completion_params(self, params_from_context: Any) -> dict[str, Any]:
        return {**super().build_chat_completion_params(params_from_context), "user": "cat"}


class Streamed(GrokLLMService):
    """Looks at the context before it is sent."""

    async def _stream_chat_completions(self, context: OpenAILLMContext) -> Any:
        context.add_message({"role": "user", "content": "Please."})
        return await super()._stream_chat_completions(context)


class Around(GrokLLMService):
    """Does something before and after."""

    async def _process_context(self, context: OpenAILLMContext) -> None:
        await self.push_frame(LLMTextFrame("["))
        await super()._process_context(context)
        await self.push_frame(LLMTextFrame("]"))


class Reading(GrokLLMService):
    """Reads the chunks by itself, as the service for Gemini's OpenAI format does."""

    async def _process_context(self, context: OpenAILLMContext) -> None:
        calls: list[FunctionCallFromLLM] = []
        await self.start_ttfb_metrics()
        async for piece in await self._stream_chat_completions(context):
            if piece.usage:
                await self.start_llm_usage_metrics(
                    LLMTokenUsage(
                        prompt_tokens=piece.usage.prompt_tokens,
                        completion_tokens=piece.usage.completion_tokens,
                        total_tokens=piece.usage.total_tokens,
                    )
                )
            if not piece.choices:
                continue
            await self.stop_ttfb_metrics()
            if piece.choices[0].delta.tool_calls:
                made = piece.choices[0].delta.tool_calls[0]
                calls.append(
                    FunctionCallFromLLM(
                        context=context,
                        tool_call_id=made.id,
                        function_name=made.function.name,
                        arguments={"read": made.function.arguments},
                    )
                )
            elif piece.choices[0].delta.content:
                await self.push_frame(LLMTextFrame(piece.choices[0].delta.content))
        await self.run_function_calls(calls)


class Counting(OpenAILLMService):
    """Adds running counts up by itself and reports them at the end, as services for NIM do."""

    _prompt = _completion = 0

    async def _process_context(self, context: OpenAILLMContext) -> None:
        self._prompt = self._completion = 0
        try:
            await super()._process_context(context)
        finally:
            total = self._prompt + self._completion
            await super().start_llm_usage_metrics(
                LLMTokenUsage(self._prompt, self._completion, total)
            )

    async def start_llm_usage_metrics(self, tokens: LLMTokenUsage) -> None:
        self._prompt = self._prompt or tokens.prompt_tokens
        self._completion = max(self._completion, tokens.completion_tokens)


ALIKE: list[type[GrokLLMService]] = [Completions, Wrapped, Params, Streamed, Reading]


@pytest.mark.parametrize("service_class", [*ALIKE, Around, GrokLLMService])
async def test_a_subclass_answers_as_the_service_does(service_class: type[GrokLLMService]) -> None:
    """Text, frames, usage and the note of the call, however the request is made."""
    run, server = await ran(ANSWER, service_class=service_class)

    said = "[done]" if service_class is Around else "done"
    assert run.said[-1] == {"role": "assistant", "content": said}
    assert run.names[:2] == ["StartFrame", "LLMFullResponseStartFrame"]
    assert run.names[-1] == "LLMFullResponseEndFrame"
    assert run.reported == [(5, 2, 7)]
    (noted,) = run.service.calls
    assert (noted.outcome, noted.finish_reason, noted.status) == ("completed", "stop", 200)
    assert (noted.text_chunks, noted.text_chars, noted.response_id) == (2, 4, "r-1")
    assert noted.usage_state == "reported"
    assert noted.request_bytes > 0
    assert noted.first_text_at is not None
    assert len(server.requests) == 1
    ttfb = [
        d for f in run.frames if isinstance(f, MetricsFrame) for d in f.data
        if isinstance(d, TTFBMetricsData)
    ]  # fmt: skip
    assert [d.model for d in ttfb] == ["grok-3-beta"]


@pytest.mark.parametrize("service_class", [*ALIKE, Around, GrokLLMService])
async def test_a_subclass_calls_functions(service_class: type[GrokLLMService]) -> None:
    """The model is asked again with the result, and each request is noted."""
    made: list[Any] = []

    async def f(params: FunctionCallParams) -> None:
        made.append(dict(params.arguments))
        await params.result_callback({"b": 2})

    context = OpenAILLMContext([{"role": "user", "content": "hi"}], TOOLS)
    kwargs = {"service_class": service_class, "context": context}
    async with turn(CALLING, ANSWER, **kwargs) as (run, server):
        started: list[str] = []
        run.service.register_function("f", f)

        @run.service.event_handler("on_function_calls_started")
        async def on_started(service: object, calls: Sequence[FunctionCallFromLLM]) -> None:
            started.extend(it.function_name for it in calls)

        await run.run()

        assert made == [{"read": '{"a": 1}'} if service_class is Reading else {"a": 1}]
        assert started == ["f"]
        assert [m["role"] for m in run.said if m["role"] != "user"] == (
            ["assistant", "tool", "assistant"]
        )
        assert [noted.outcome for noted in run.service.calls] == ["completed", "completed"]
        sent = server.requests[-1].body
        assert sent["tools"] == TOOLS.to_openai()
        assert [m["content"] for m in sent["messages"] if m["role"] == "tool"] == ['{"b": 2}']


async def test_what_a_subclass_asks_for_is_sent() -> None:
    """Its own fields, settings that were given, extra; and no field for what was not given."""
    context = OpenAILLMContext([{"role": "user", "content": "hi"}])
    params = GrokLLMService.InputParams(seed=7, extra={"user": "cat"})
    async with turn(ANSWER, service_class=Completions, params=params, context=context) as (
        run,
        server,
    ):
        await run.run()
        assert server.requests[0].body == {
            "messages": [{"role": "user", "content": "hi"}],
            "model": "grok-3-beta",
            "stream": True,
            "seed": 7,
            "user": "cat",
        }
    async with turn(ANSWER, service_class=Wrapped) as (run, server):
        await run.run()
        assert server.requests[0].body["messages"][-1]["content"] == "Be brief."
        assert [m["role"] for m in run.context.messages] == ["user", "assistant"]
    async with turn(ANSWER, service_class=Params, extra_headers={"x-grok-conv-id": "c"}) as (
        run,
        server,
    ):
        await run.run()
        (request,) = server.requests
        assert request.body["user"] == "cat"
        assert request.headers["x-grok-conv-id"] == "c"
    async with turn(ANSWER, service_class=Streamed) as (run, server):
        await run.run()
        assert server.requests[0].body["messages"][-1]["content"] == "Please."


async def test_messages_are_given_in_the_form_that_the_model_takes() -> None:
    """System prompt first, names off all but users; the context stays as it is."""
    seen: list[Any] = []

    class Mine(GrokLLMService):
        async def get_chat_completions(self, context: OpenAILLMContext, messages: Any) -> Any:
            seen.extend(messages)
            messages.clear()
            return pieces({"choices": [{"delta": {"content": "x"}}]})

    messages = [{"role": "user", "content": "a", "name": "u"}]
    messages.append({"role": "assistant", "content": "b", "name": "b"})
    context = OpenAILLMContext(messages, system_prompt="Be kind.")
    async with turn(ANSWER, service_class=Mine, context=context) as (run, server):
        await run.run()

    assert seen == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "a", "name": "u"},
        {"role": "assistant", "content": "b"},
    ]
    assert len(context.messages) == 3
    assert server.requests == []


async def pieces(*chunks: Any) -> AsyncIterator[Any]:
    """Chunks that no SDK made."""
    for it in chunks:
        yield it


def spaces(value: Any) -> Any:
    """The same as attributes, as tests of users make chunks."""
    if isinstance(value, dict):
        return types.SimpleNamespace(**{key: spaces(item) for key, item in value.items()})
    return [spaces(item) for item in value] if isinstance(value, list) else value


MADE = [
    {"choices": [{"delta": {"content": "Hi"}}]},
    {"choices": [{"delta": {"tool_calls": [call(0, "c1", "f", "{}")]}}]},
    {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}},
]


@pytest.mark.parametrize("shape", [lambda it: it, spaces])
async def test_chunks_may_be_made_by_hand(shape: Any) -> None:
    """Dicts and objects do as well as the SDK's; their end is the end of the reply."""

    class Mine(GrokLLMService):
        answers = 0

        async def get_chat_completions(self, context: OpenAILLMContext, messages: Any) -> Any:
            self.answers += 1
            return pieces(*map(shape, MADE if self.answers == 1 else MADE[:1]))

    run, _ = await ran(ANSWER, service_class=Mine)

    assert run.text == "HiHi"
    assert [m["role"] for m in run.said] == ["assistant", "tool", "assistant"]
    assert run.reported == [(3, 1, 4)]
    assert [noted.usage_state for noted in run.service.calls] == ["reported", "estimated"]


async def test_a_guard_may_answer_without_the_model() -> None:
    """What costs nothing is not noted as a call."""

    class Guarded(GrokLLMService):
        async def _process_context(self, context: OpenAILLMContext) -> None:
            if "bad" in context.messages[-1]["content"]:
                await self.push_frame(LLMTextFrame("No."))
            else:
                await super()._process_context(context)

    context = OpenAILLMContext([{"role": "user", "content": "bad"}])
    async with turn(ANSWER, service_class=Guarded, context=context) as (run, server):
        await run.run()
        assert (run.said[-1]["content"], run.service.calls, server.requests) == ("No.", [], [])

        context.add_message({"role": "user", "content": "good"})
        await run.run()
        assert (run.said[-1]["content"], len(run.service.calls)) == ("done", 1)


async def test_a_subclass_may_try_again() -> None:
    """Every request is a call of its own, the failed one too."""

    class Again(GrokLLMService):
        async def _process_context(self, context: OpenAILLMContext) -> None:
            try:
                await super()._process_context(context)
            except ProviderUnavailable:
                self.set_model_name("grok-4")
                await super()._process_context(context)

    async def fails(connection: Connection) -> None:
        await connection.send(b"HTTP/1.1 503 no\r\ncontent-length: 0\r\n\r\n")

    run, _ = await ran(fails, ANSWER, service_class=Again)

    assert run.said[-1]["content"] == "done"
    noted = [(it.outcome, it.model, it.status) for it in run.service.calls]
    assert noted == [("failed", "grok-3-beta", 503), ("completed", "grok-4", 200)]
    assert all(it.finished_at is not None for it in run.service.calls)


async def test_usage_may_be_counted_by_a_subclass() -> None:
    """What it reports at its end is what is reported, once."""
    counted = [
        delta(content="x"),
        usage(9, 1),
        usage(0, 4),
        finish(),
    ]
    async with WireServer(streaming(*counted)) as server:
        service = Counting(api_key="k", client=server.client, model="m", limits=PATIENT)
        run = Turn(server.client)
        run.service.unlink()
        run.pipeline.processors[0].link(service)
        service.link(run.pipeline.processors[2])
        await run.run()

        assert run.reported == [(9, 4, 13)]


class Noting:
    """An observer that notes in which order things happen."""

    def __init__(self, requests: list[Any]) -> None:
        self.requests = requests
        self.seen: list[tuple[str, int]] = []

    async def on_call_started(self, call: LLMCall) -> None:
        await asyncio.sleep(0)
        self.seen.append(("started", len(self.requests)))

    async def on_call_finished(self, call: LLMCall) -> None:
        self.seen.append((call.outcome, len(self.requests)))


@pytest.mark.parametrize("service_class", [*ALIKE, GrokLLMService])
async def test_a_call_is_noted_before_its_request(service_class: type[GrokLLMService]) -> None:
    """Also where a subclass makes it."""
    async with WireServer(ANSWER) as server:
        observer = Noting(server.requests)
        run = Turn(server.client, service_class=service_class, observer=observer)
        await run.run()

        assert observer.seen == [("started", 0), ("completed", 1)]


# Clients


async def test_a_client_of_another_class_is_asked_its_own_way() -> None:
    """Azure's, as pipecat's service makes it: address and key are the client's business."""

    class AzureLLMService(OpenAILLMService):
        def __init__(self, *, api_key: str, endpoint: str, model: str, **kwargs: Any) -> None:
            self._endpoint = endpoint
            super().__init__(api_key=api_key, model=model, **kwargs)

        def create_client(
            self, api_key: str | None = None, base_url: str | None = None, **kwargs: Any
        ) -> AsyncOpenAI:
            return AsyncAzureOpenAI(
                api_key=api_key, azure_endpoint=self._endpoint, api_version="2024-09-01-preview"
            )

    async with WireServer(ANSWER) as server:
        endpoint = server.url.removesuffix("/v1")
        service = AzureLLMService(api_key="k", endpoint=endpoint, model="gpt")
        try:
            await service._process_context(OpenAILLMContext([{"role": "user", "content": "x"}]))
        finally:
            await service.close()

        (request,) = server.requests
        assert request.line.startswith("POST /openai/deployments/gpt/chat/completions?api-version=")
        assert request.headers["api-key"] == "k"
        assert service.calls[0].outcome == "completed"


async def test_what_the_constructor_does_not_know_is_the_clients() -> None:
    """A subclass's client may take more; without one it is refused by name."""
    given: dict[str, Any] = {}

    class Mine(GrokLLMService):
        def create_client(
            self, api_key: str | None = None, base_url: str | None = None, **kwargs: Any
        ) -> AsyncOpenAI:
            given.update(kwargs)
            kwargs.pop("tags")
            return super().create_client(api_key, base_url, **kwargs)

    service = Mine(api_key="k", tags={"a": 1})
    await service.close()

    assert given["tags"] == {"a": 1}
    with pytest.raises(TypeError, match="tags"):
        GrokLLMService(api_key="k", tags={})


async def test_options_of_the_sdk_in_extra_are_no_fields() -> None:
    """They change headers and body as the SDK says."""
    extra = {"extra_body": {"safe": True}, "extra_headers": {"x-team": "shop"}}
    params = GrokLLMService.InputParams(extra=extra)
    async with turn(ANSWER, params=params) as (run, server):
        await run.run()

        (request,) = server.requests
        assert (request.body["safe"], request.headers["x-team"]) == (True, "shop")
        assert not extra.keys() & request.body.keys()


# Failures


def refused(status: int, body: bytes, head: bytes = b"") -> Any:
    """A script: an error response."""

    async def script(connection: Connection) -> None:
        await connection.send(
            b"HTTP/1.1 %d no\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b"
            % (status, head, len(body), body)
        )

    return script


async def broken(connection: Connection) -> None:
    """A response that ends in the middle."""
    await connection.send(STREAM_HEAD + chunk(sse(delta(content="par"))))
    connection.fin()


async def silent(connection: Connection) -> None:
    """A response that begins and says nothing more."""
    await connection.send(STREAM_HEAD + chunk(sse(delta(content="par"))))
    await connection.client_left()


async def mute(connection: Connection) -> None:
    """No response."""
    await connection.client_left()


FAILURES: dict[str, tuple[Any, type[WorkerError], str]] = {
    "auth": (refused(401, b'{"error":"Incorrect API key"}'), ProviderRejected, "auth"),
    "rate": (refused(429, b"{}", b"retry-after: 7\r\n"), RateLimited, "rate_limited"),
    "server": (refused(503, b"{}"), ProviderUnavailable, "server_error"),
    "in the stream": (
        streaming(b'{"error":{"code":"x","message":"no"}}'),
        ProviderUnavailable,
        "reply_error",
    ),
    "broken": (broken, ProviderUnavailable, "connection"),
    "silent": (silent, Stalled, "idle_timeout"),
    "mute": (mute, Stalled, "first_token_timeout"),
}


@pytest.mark.parametrize("service_class", [Completions, Wrapped, Reading])
@pytest.mark.parametrize("name", FAILURES)
async def test_failures_have_their_names(name: str, service_class: type[GrokLLMService]) -> None:
    """One request, the error by its name, the text so far kept; no words of the provider."""
    script, error, code = FAILURES[name]
    limits = QUICK if error is Stalled else PATIENT
    async with turn(script, limits=limits, service_class=service_class) as (run, server):
        timeouts: list[object] = []
        run.service.add_event_handler("on_completion_timeout", timeouts.append)
        with pytest.raises(error) as caught:
            await run.run()
        await run.service.cleanup()

        assert caught.value.code == code
        assert run.names[-1] == "LLMFullResponseEndFrame"
        assert [noted.error for noted in run.service.calls] == [code]
        assert len(server.requests) == 1
        assert [m["content"] for m in run.said] == ["par"] * (name in {"broken", "silent"})
        assert timeouts == [run.service] * (error is Stalled)


async def thinking(connection: Connection) -> None:
    """Nothing but comments for three times as long as silence may last, then an answer."""
    await connection.send(STREAM_HEAD)
    for _ in range(45):
        await connection.send(chunk(b": keepalive\n\n"))
        await asyncio.sleep(HEARING.silence_s / 15)
    await connection.send(chunk(sse(delta(content="par"), finish(), b"[DONE]")) + END_OF_BODY)


@pytest.mark.parametrize("service_class", [GrokLLMService, Completions, Wrapped, Reading])
async def test_a_thought_is_no_silence(service_class: type[GrokLLMService]) -> None:
    """Comments are heard, whoever reads the stream; a connection without them is left."""
    async with turn(thinking, limits=HEARING, service_class=service_class) as (run, _):
        await run.run()

        assert run.text == "par"
    for script in (silent, mute):
        _, server, error = await failed(
            Stalled, script, limits=HEARING, service_class=service_class
        )
        assert (error.code, error.recurs) == ("silence_timeout", False)
        assert len(server.requests) == 1


@pytest.mark.parametrize("service_class", [GrokLLMService, Completions])
async def test_who_runs_out_of_time_at_work_would_do_so_again(
    service_class: type[GrokLLMService],
) -> None:
    """A limit of its own for the first chunk: the error tells a busy model from a dead one."""
    limits = TimeLimits(first_token_s=0.3)
    found = [
        (await failed(Stalled, script, limits=limits, service_class=service_class))[2]
        for script in (thinking, mute)
    ]

    assert [(it.code, it.recurs) for it in found] == [
        ("first_token_timeout", True),
        ("first_token_timeout", False),
    ]


async def test_what_a_subclass_raises_is_its_own() -> None:
    """It comes out as it is, after the end of the response."""

    class Raising(GrokLLMService):
        async def get_chat_completions(self, context: OpenAILLMContext, messages: Any) -> Any:
            raise LookupError("mine")

    async with turn(ANSWER, service_class=Raising) as (run, _):
        with pytest.raises(LookupError, match="mine"):
            await run.run()

        assert run.names[-1] == "LLMFullResponseEndFrame"
        assert [noted.error for noted in run.service.calls] == ["LookupError"]


async def test_a_chunk_without_json_form_fails_by_name() -> None:
    """Nothing is left out in silence."""

    class Odd(GrokLLMService):
        async def get_chat_completions(self, context: OpenAILLMContext, messages: Any) -> Any:
            return pieces(MADE[0], object())

    await failed(UnusableReply, ANSWER, service_class=Odd)


@pytest.mark.parametrize("service_class", [*ALIKE, Around, GrokLLMService])
async def test_an_interruption_stops_a_subclass(service_class: type[GrokLLMService]) -> None:
    """Nothing comes after it, and what came before is kept."""
    async with turn(silent, service_class=service_class) as (run, _):
        answering = asyncio.create_task(run.run())
        await wait_until(lambda: "par" in run.text, "the first text")
        await run.interrupt()
        await answering

        assert run.said[-1]["content"].endswith("par")
        assert run.names[-1] == "StartInterruptionFrame"
        assert [noted.outcome for noted in run.service.calls] == ["interrupted"]


async def test_a_cancelled_turn_cancels_a_subclass() -> None:
    """Its own clean-up runs, and nothing of it is left running."""
    ended = asyncio.Event()

    class Waiting(GrokLLMService):
        async def _process_context(self, context: OpenAILLMContext) -> None:
            try:
                await super()._process_context(context)
            finally:
                ended.set()

    async with turn(silent, service_class=Waiting) as (run, _):
        answering = asyncio.create_task(run.run())
        await wait_until(lambda: run.text == "par", "the first text")
        answering.cancel()
        await asyncio.wait([answering])

        assert answering.cancelled()
        assert ended.is_set()
        assert [noted.outcome for noted in run.service.calls] == ["cancelled"]


# Everything else that may be overridden


async def test_other_hooks_are_called() -> None:
    """Life cycle, settings, functions; and helpers that handlers call."""
    seen: list[str] = []

    class Mine(GrokLLMService):
        async def start(self, frame: Frame) -> None:
            seen.append("start")

        async def stop(self, frame: Frame) -> None:
            seen.append("stop")

        async def cancel(self, frame: Frame) -> None:
            seen.append("cancel")

        async def _update_settings(self, settings: Any) -> None:
            seen.append("settings")
            await super()._update_settings(settings)

        def set_model_name(self, model: str) -> None:
            seen.append(model)
            super().set_model_name(model)

        async def run_function_calls(self, function_calls: Sequence[FunctionCallFromLLM]) -> None:
            seen.append("calls")
            await super().run_function_calls([])

    async with turn(CALLING, service_class=Mine, model="m") as (run, server):
        await run.run()
        for frame in (LLMUpdateSettingsFrame({"model": "n"}), EndFrame(), CancelFrame()):
            await run.pipeline.queue_frame(frame)

        assert seen == ["m", "start", "calls", "settings", "n", "stop", "cancel"]
        assert len(server.requests) == 1


async def test_functions_may_be_run_without_the_model() -> None:
    """Calls that somebody makes by hand end in the context, and the model goes on."""

    async def f(params: FunctionCallParams) -> None:
        await params.result_callback(params.arguments)

    async with turn(ANSWER) as (run, server):
        run.service.register_function(None, f)
        await run.service.run_function_calls([FunctionCallFromLLM("f", "1", {"a": 1}, run.context)])

        assert [m["role"] for m in run.said] == ["assistant", "tool", "assistant"]
        assert run.said[1]["content"] == '{"a": 1}'
        assert len(server.requests) == 1


async def test_an_image_is_asked_for_upstream() -> None:
    """As handlers of functions do."""
    up: list[Frame] = []

    class Head(FrameProcessor):
        async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
            if direction is UPSTREAM:
                up.append(frame)

    service = GrokLLMService(api_key="k")
    Head().link(service)
    await service.request_image_frame("cat", tool_call_id="1", text_content="What?")
    await service.push_error(ErrorFrame("x"))
    await service.close()

    assert up == [UserImageRequestFrame("cat", "What?", None, "1", None), ErrorFrame("x")]


def test_an_override_that_nobody_would_call_is_refused() -> None:
    """By name, when the class is made; so is one that takes other arguments."""
    for names in GrokLLMService.__mro__[1].NEVER_CALLED.values():  # type: ignore[attr-defined]
        for name in names:
            with pytest.raises(TypeError, match=rf"Mine\.{name} would never be called"):
                type("Mine", (GrokLLMService,), {name: lambda _: None})

    with pytest.raises(TypeError, match=r"get_chat_completions\(self, params_from_context\)"):

        class Later(GrokLLMService):
            async def get_chat_completions(self, params_from_context: Any) -> Any:  # type: ignore[override]
                return None


async def test_unknown_parameters_are_ignored_and_said(caplog: pytest.LogCaptureFixture) -> None:
    """As the original ignores them; a subclass may declare its own."""

    class Mine(OpenAILLMService.InputParams):
        location: str = "here"

    params = Mine(location="there", bogus=1)

    assert (params.location, Mine().location) == ("there", "here")
    assert [record.parameter for record in caplog.records] == ["bogus"]  # type: ignore[attr-defined]
    assert openai.NOT_GIVEN is params.temperature
