"""Text, tool calls and their order, over real bytes."""

import asyncio
import json

import pytest
from openai import AsyncOpenAI, DefaultAioHttpClient

from tests.integration.services.wire import (
    Connection,
    Turn,
    WireServer,
    call,
    delta,
    failed,
    finish,
    ran,
    streaming,
    turn,
    usage,
)
from tests.support.recordings import recorded
from turnline.worker.errors import (
    LeaseLost,
    ProviderRejected,
    ProviderUnavailable,
    RateLimited,
    Truncated,
)
from turnline.worker.pipeline.calls import LLMCall
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.pipeline.functions import FunctionCallFailed, FunctionCallParams
from turnline.worker.services.grok.llm import GrokLLMService
from turnline.worker.services.openai.llm import create_client
from turnline.worker.services.provider_client import ProviderClient

ANSWER = streaming(delta(content="done"), finish(), usage(5, 1))


def calling(*calls: dict[str, object], text: str | None = None, reason: str = "tool_calls"):
    """A script: one response with these calls, one per chunk."""
    said = [delta(content=text)] if text else []
    return streaming(*said, *(delta(tool_calls=[c]) for c in calls), finish(reason), usage(9, 2))


async def test_a_request_without_parameters_has_address_key_and_messages() -> None:
    """Address, key and body of a request without any parameters."""
    _, server = await ran(ANSWER, extra_headers={"x-grok-conv-id": "c-1"})

    (request,) = server.requests
    assert request.line == "POST /v1/chat/completions HTTP/1.1"
    assert request.headers["authorization"] == "Bearer xai-test"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["x-grok-conv-id"] == "c-1"
    assert request.body == {
        "messages": [{"role": "user", "content": "hi"}],
        "model": "grok-3-beta",
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_a_request_of_our_own_client_has_its_headers_and_no_others() -> None:
    """What it was given comes last; nothing says that the SDK sent it."""
    headers = {"X-Team": "shop", "accept": "text/event-stream"}
    async with WireServer(ANSWER) as server:
        client = ProviderClient(
            "xai-test", server.url, organization="o-1", project="p-1", default_headers=headers
        )
        await Turn(client, extra_headers={"x-grok-conv-id": "c-1"}).run()
        await client.close()

    sent = dict(server.requests[0].headers)
    assert sent.pop("user-agent").startswith("turnline/")
    assert int(sent.pop("content-length")) > 0
    assert sent == {
        "host": server.url.removeprefix("http://").removesuffix("/v1"),
        "accept": "text/event-stream",
        "accept-encoding": "gzip, deflate",
        "authorization": "Bearer xai-test",
        "content-type": "application/json",
        "openai-organization": "o-1",
        "openai-project": "p-1",
        "x-grok-conv-id": "c-1",
        "x-team": "shop",
    }


async def test_the_proxies_of_the_environment_are_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By scheme, with the proxy's own credentials, and not for hosts that need none."""
    async with WireServer(ANSWER) as server:
        monkeypatch.setenv("HTTP_PROXY", server.url.replace("//", "//u:p@").removesuffix("/v1"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        for base_url in "http://elsewhere.invalid/v1", server.url:
            client = ProviderClient("xai-test", base_url)
            await Turn(client).run()
            await client.close()

        proxied, direct = server.requests
        assert proxied.line == "POST http://elsewhere.invalid/v1/chat/completions HTTP/1.1"
        assert proxied.headers["proxy-authorization"] == "Basic dTpw"
        assert direct.line == "POST /v1/chat/completions HTTP/1.1"
        assert "proxy-authorization" not in direct.headers


async def test_a_request_has_the_headers_that_the_sdk_would_send() -> None:
    """All but those about its own retries, whatever the client was given besides."""
    settings = {"default_headers": {"X-Team": "shop", "user-agent": "shop/1"}, "project": "p-1"}
    async with WireServer(ANSWER) as server:
        client = create_client("xai-test", server.url, **settings)
        run = Turn(client, extra_headers={"x-grok-conv-id": "c-1"})
        await run.run()
        await client.post(
            "/chat/completions",
            cast_to=object,
            content=b"{}",
            options={"headers": {"x-grok-conv-id": "c-1"}},
        )
        await client.close()

        ours, sdk = (dict(request.headers) for request in server.requests)
        assert ours["x-team"] == "shop"
        assert ours["user-agent"] == "shop/1"
        assert ours["openai-project"] == "p-1"
        for name in ("content-length", "accept", "connection", "accept-encoding"):
            assert ours.pop(name, "") is not None
            sdk.pop(name, None)
        assert ours == {k: v for k, v in sdk.items() if "retry" not in k and "timeout" not in k}


async def test_the_clients_address_query_and_proxy_are_heeded() -> None:
    """A client of another make brings its own transport, query and path."""
    async with WireServer(ANSWER) as server:
        client = AsyncOpenAI(
            api_key="xai-test",
            base_url="http://elsewhere.invalid/deep/v2/",
            default_query={"api-version": "7"},
            http_client=DefaultAioHttpClient(proxy=server.url.removesuffix("/v1")),
        )
        await Turn(client).run()
        await client.close()

        assert server.requests[0].line == (
            "POST http://elsewhere.invalid/deep/v2/chat/completions?api-version=7 HTTP/1.1"
        )


async def test_text_comes_between_one_start_and_one_end() -> None:
    """Role-only and empty deltas say nothing; text comes between one start and one end."""
    chunks = [delta(role="assistant"), delta(content="He"), delta(), delta(content="y")]
    run, _ = await ran(streaming(*chunks, finish()))

    assert run.names[1:] == [
        "LLMFullResponseStartFrame",
        "LLMTextFrame",
        "LLMTextFrame",
        "LLMFullResponseEndFrame",
    ]
    assert run.said == [{"role": "assistant", "content": "Hey"}]


async def test_an_empty_stream_is_no_message_and_an_error() -> None:
    """Start and end, no message; and since no finish reason came, an error."""
    run, _, _ = await failed(Truncated, streaming())

    assert run.names[1:] == ["LLMFullResponseStartFrame", "LLMFullResponseEndFrame"]
    assert run.said == []


async def test_reasoning_is_no_part_of_the_reply() -> None:
    """What the model thinks is no part of the reply."""
    run, _ = await ran(streaming(delta(reasoning_content="hm"), delta(content="ans"), finish()))

    assert run.said == [{"role": "assistant", "content": "ans"}]
    assert run.service.calls[0].reasoning_chunks == 1


def recording(run: Turn, name: str | None, answer: object = "ok") -> list[object]:
    """Register a handler that keeps its arguments."""
    seen: list[object] = []

    async def handler(params: FunctionCallParams) -> None:
        seen.append(params.arguments)
        await params.result_callback(answer)

    run.service.register_function(name, handler)
    return seen


async def test_arguments_in_fragments_reach_the_handler_once_parsed() -> None:
    """The handler gets the parsed object, once."""
    parts = ['{"a"', ":[1,", "2]}"]
    chunks = [delta(tool_calls=[call(0, "c1", "f", parts[0])])]
    chunks += [
        delta(tool_calls=[{"index": 0, "function": {"arguments": part}}]) for part in parts[1:]
    ]
    async with turn(streaming(*chunks, finish("tool_calls")), ANSWER) as (run, server):
        seen = recording(run, "f")
        await run.run()

        assert seen == [{"a": [1, 2]}]
        assert len(server.requests) == 2


@pytest.mark.parametrize("reason", ["tool_calls", "stop", ""])
@pytest.mark.parametrize("in_one_chunk", [False, True])
async def test_two_calls_both_run_and_the_model_goes_on_once(
    in_one_chunk: bool, reason: str
) -> None:
    """Both run, whatever the finish reason says, and the model goes on exactly once."""
    calls = [call(0, "c1", "f", '{"n":1}'), call(1, "c2", "f", '{"n":2}')]
    first = (
        streaming(delta(tool_calls=calls), finish(reason))
        if in_one_chunk
        else calling(*calls, reason=reason)
    )
    async with turn(first, ANSWER) as (run, server):
        seen = recording(run, "f")
        await run.run()

        assert seen == [{"n": 1}, {"n": 2}]
        assert len(server.requests) == 2
        assert [m["role"] for m in run.said] == ["assistant", "tool", "tool", "assistant"]
        assert [c["id"] for c in run.said[0]["tool_calls"]] == ["c1", "c2"]
        assert run.said[3]["content"] == "done"


async def test_an_id_in_a_delta_of_its_own_is_kept() -> None:
    """The id is kept, wherever it stands."""
    chunks = [
        delta(tool_calls=[{"index": 0, "id": "c7"}]),
        delta(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": "{}"}}]),
    ]
    async with turn(streaming(*chunks, finish("tool_calls")), ANSWER) as (run, _):
        recording(run, "f")
        await run.run()

        assert run.said[0]["tool_calls"][0]["id"] == "c7"


async def test_a_missing_or_repeated_id_is_made_up() -> None:
    """Calls without an id of their own get one, the same in call and result."""
    calls = [call(0, "", "f", "{}"), call(1, "c", "f", "{}"), call(2, "c", "f", "{}")]
    async with turn(calling(*calls), ANSWER) as (run, _):
        seen = recording(run, "f")
        await run.run()

        ids = [c["id"] for c in run.said[0]["tool_calls"]]
        assert len(seen) == len(set(ids)) == 3
        assert [m["tool_call_id"] for m in run.said if m["role"] == "tool"] == ids


@pytest.mark.parametrize("arguments", ["", None])
async def test_no_arguments_are_an_empty_object(arguments: str | None) -> None:
    """Empty and null arguments are an empty object."""
    tool = {"index": 0, "id": "c", "function": {"name": "f", "arguments": arguments}}
    async with turn(streaming(delta(tool_calls=[tool]), finish()), ANSWER) as (run, _):
        seen = recording(run, "f")
        await run.run()

        assert seen == [{}]
        assert run.said[0]["tool_calls"][0]["function"]["arguments"] == "{}"


async def test_a_call_with_broken_arguments_gets_an_error_and_the_others_run() -> None:
    """A call with broken arguments gets an error result; the others run; the model goes on."""
    calls = [call(0, "c1", "f", '{"n":'), call(1, "c2", "f", "[1]"), call(2, "c3", "f", "{}")]
    async with turn(calling(*calls), ANSWER) as (run, server):
        seen = recording(run, "f")
        await run.run()

        results = [json.loads(m["content"]) for m in run.said if m["role"] == "tool"]
        assert seen == [{}]
        assert ["error" in r for r in results[:2]] == [True, True]
        assert results[2] == "ok"
        stored = [c["function"]["arguments"] for c in run.said[0]["tool_calls"]]
        assert [json.loads(text) for text in stored] == [{}, {}, {}]
        assert len(server.requests) == 2


async def test_text_beside_a_call_is_kept_and_stands_before_it() -> None:
    """Text in the chunk of a call is kept, and stands before the call."""
    both = delta(content="Let me check.", tool_calls=[call(0, "c1", "f", "{}")])
    async with turn(streaming(both, finish("tool_calls")), ANSWER) as (run, server):
        recording(run, "f")
        await run.run()

        assert [m["role"] for m in run.said] == ["assistant", "tool", "assistant"]
        assert run.said[0]["content"] == "Let me check."
        assert server.requests[1].body["messages"][1]["content"] == "Let me check."


async def test_errors_are_raised_and_never_retried_here() -> None:
    """A 429 is one request and an error that says when; after it the service still works."""

    async def limited(connection: Connection) -> None:
        await connection.answer(429, b'{"code":"resource-exhausted","error":"x"}', retry_after="7")

    async def refused(connection: Connection) -> None:
        await connection.answer(401, b'{"code":"unauthenticated:no-credentials","error":"x"}')

    async with turn(limited, refused, ANSWER) as (run, server):
        with pytest.raises(RateLimited) as limited_error:
            await run.run()
        assert (limited_error.value.retry_after_s, len(server.requests)) == (7.0, 1)

        with pytest.raises(ProviderRejected) as refused_error:
            await run.run()
        assert (refused_error.value.code, len(server.requests)) == ("auth", 2)

        await run.run()
        assert run.said == [{"role": "assistant", "content": "done"}]
        assert [c.status for c in run.service.calls] == [429, 401, 200]


async def test_an_interruption_cancels_what_may_be_cancelled() -> None:
    """A cancellable handler is cancelled, another one survives, and its result is answered."""
    running, cancelled, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def cancellable(_: FunctionCallParams) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def stubborn(params: FunctionCallParams) -> None:
        running.set()
        await go_on.wait()
        await params.result_callback("late")

    calls = [call(0, "c1", "a", "{}"), call(1, "c2", "b", "{}")]
    async with turn(calling(*calls), ANSWER) as (run, server):
        run.service.register_function("a", cancellable)
        run.service.register_function("b", stubborn, cancel_on_interruption=False)
        task = asyncio.create_task(run.run())
        await running.wait()

        await run.interrupt()
        await cancelled.wait()
        assert len(server.requests) == 1
        go_on.set()
        await task

        assert [m["content"] for m in run.said if m["role"] == "tool"] == ["CANCELLED", '"late"']
        assert run.said[-1]["content"] == "done"


async def test_an_interruption_of_cancellable_calls_alone_starts_no_run() -> None:
    """All cancelled: the turn ends without asking the model again."""
    running = asyncio.Event()

    async def handler(_: FunctionCallParams) -> None:
        running.set()
        await asyncio.Event().wait()

    async with turn(calling(call(0, "c1", "f", "{}"), text="Wait.")) as (run, server):
        run.service.register_function("f", handler)
        task = asyncio.create_task(run.run())
        await running.wait()
        await run.interrupt()
        await task

        assert len(server.requests) == 1
        assert run.said[-1] == {"role": "tool", "content": "CANCELLED", "tool_call_id": "c1"}


async def test_cancelling_the_turn_cancels_its_handlers() -> None:
    """A cancelled turn leaves no handler running, whatever was registered."""
    running, ended = asyncio.Event(), asyncio.Event()

    async def handler(_: FunctionCallParams) -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with turn(calling(call(0, "c1", "f", "{}"))) as (run, _):
        run.service.register_function("f", handler, cancel_on_interruption=False)
        task = asyncio.create_task(run.run())
        await running.wait()
        task.cancel()
        await asyncio.wait([task])

        assert task.cancelled()
        assert ended.is_set()


async def raises(_: FunctionCallParams) -> None:
    raise RuntimeError("secret")


async def says_no(_: FunctionCallParams) -> None:
    raise FunctionCallFailed("There is no such city.")


async def hangs(_: FunctionCallParams) -> None:
    await asyncio.Event().wait()


async def forgets(_: FunctionCallParams) -> None:
    return


async def gives_no_json(params: FunctionCallParams) -> None:
    await params.result_callback(object())


@pytest.mark.parametrize(
    ("handler", "told"),
    [
        (None, "not available"),
        (raises, "failed"),
        (says_no, "There is no such city."),
        (hangs, "in time"),
        (forgets, "without a result"),
        (gives_no_json, "not JSON"),
    ],
)
async def test_every_call_gets_a_result(handler: object, told: str) -> None:
    """A missing or failing handler is told to the model, which goes on; later calls work."""
    bad, good = call(0, "c1", "f", "{}"), call(0, "c2", "g", "{}")
    async with turn(calling(bad), calling(good), ANSWER) as (run, server):
        if handler is not None:
            run.service.register_function("f", handler, timeout_s=0.05)  # type: ignore[arg-type]
        seen = recording(run, "g")
        await run.run()

        results = [m["content"] for m in run.said if m["role"] == "tool"]
        assert told in json.loads(results[0])["error"]
        assert "secret" not in results[0]
        assert (results[1], seen, len(server.requests)) == ('"ok"', [{}], 3)
        assert run.said[-1]["content"] == "done"


async def test_catch_all_and_registration() -> None:
    """None catches all others; registering replaces, unregistering removes."""
    async with turn(calling(call(0, "c1", "any", '{"a":1}')), ANSWER) as (run, _):
        seen = recording(run, None)
        assert run.service.has_function("whatever")
        await run.run()
        assert seen == [{"a": 1}]

        run.service.unregister_function(None)
        run.service.unregister_function(None)
        assert not run.service.has_function("whatever")


async def test_a_six_argument_handler_still_works() -> None:
    """The older form of a handler is called as before, and warned about."""

    async def old(name, call_id, arguments, llm, context, result_callback) -> None:
        await result_callback(
            [name, call_id, arguments, llm is run.service, context is run.context]
        )

    async with turn(calling(call(0, "c1", "f", "{}")), ANSWER) as (run, _):
        with pytest.deprecated_call():
            run.service.register_function("f", old)
        await run.run()

        assert json.loads(run.said[1]["content"]) == ["f", "c1", {}, True, True]


@pytest.mark.parametrize("parallel", [True, False])
async def test_parallel_by_default_else_in_order(parallel: bool) -> None:
    """Handlers overlap, unless asked not to; either way results stand in call order."""
    most, now = 0, 0

    async def handler(params: FunctionCallParams) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        await params.result_callback(params.tool_call_id)

    calls = [call(i, f"c{i}", "f", "{}") for i in range(3)]
    async with turn(calling(*calls), ANSWER, run_in_parallel=parallel) as (run, server):
        run.service.register_function("f", handler)
        await run.run()

        assert most == (3 if parallel else 1)
        assert [m["content"] for m in run.said if m["role"] == "tool"] == ['"c0"', '"c1"', '"c2"']
        assert len(server.requests) == 2


async def test_sequential_calls_survive_an_interruption_of_an_earlier_turn() -> None:
    """After an interruption the next turn's calls run as ever."""
    running = asyncio.Event()

    async def handler(params: FunctionCallParams) -> None:
        if params.tool_call_id == "c1":
            running.set()
            await asyncio.Event().wait()
        await params.result_callback("ok")

    first = calling(call(0, "c1", "f", "{}"), call(1, "c2", "f", "{}"))
    async with turn(first, calling(call(0, "c3", "f", "{}")), ANSWER, run_in_parallel=False) as (
        run,
        _,
    ):
        run.service.register_function("f", handler)
        task = asyncio.create_task(run.run())
        await running.wait()
        await run.interrupt()
        await task
        await run.run()

        results = [m["content"] for m in run.said if m["role"] == "tool"]
        assert results == ["CANCELLED", "CANCELLED", '"ok"']


async def test_forty_rounds_of_tools_do_not_nest() -> None:
    """Each round is a loop iteration, not a deeper call."""
    rounds = [calling(call(0, f"c{i}", "f", "{}")) for i in range(40)]
    async with turn(*rounds, ANSWER) as (run, server):
        depths: list[int] = []

        async def handler(params: FunctionCallParams) -> None:
            depths.append(len(asyncio.all_tasks()))
            await params.result_callback("ok")

        run.service.register_function("f", handler)
        await run.run()

        assert len(server.requests) == 41
        assert len(set(depths[1:])) == 1


async def test_an_orphaned_call_is_repaired_before_the_request() -> None:
    """A context that ends in the middle of a call is sent with the call cancelled."""
    waiting = {"role": "tool", "content": "IN_PROGRESS", "tool_call_id": "c"}
    tool_calls = [{"id": "c", "function": {"name": "f", "arguments": "{}"}, "type": "function"}]
    context = OpenAILLMContext(
        [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "", "tool_calls": tool_calls},
            waiting,
        ]
    )
    _, server = await ran(ANSWER, context=context)

    assert server.requests[0].body["messages"][2]["content"] == "CANCELLED"


async def test_the_next_request_continues_the_bytes_of_the_last_one() -> None:
    """Loaded from what was committed, the next request starts with the same bytes."""
    async with turn(calling(call(0, "c1", "f", '{"stadt":"Köln"}'), text="é"), ANSWER) as (
        run,
        server,
    ):
        recording(run, "f", {"wetter": "schön"})
        await run.run()
        loaded = OpenAILLMContext.from_stored(run.context.encoded_messages())

        again = Turn(server.client, context=loaded)
        loaded.add_message({"role": "user", "content": "more"})
        await again.run()
        run.context.add_message({"role": "user", "content": "more"})
        await Turn(server.client, context=run.context).run()

        def messages(number: int) -> bytes:
            return server.requests[number].raw.partition(b'],"model"')[0]

        assert messages(2).startswith(messages(1))
        assert messages(2) == messages(3)
        assert loaded.prefix_intact()


class Watcher:
    """Keeps what it is told of calls."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    async def on_call_started(self, call: LLMCall) -> None:
        assert call.request_bytes == 0
        self.told.append(("started", call.outcome))

    async def on_call_finished(self, call: LLMCall) -> None:
        self.told.append(("finished", call.outcome))


async def test_calls_are_recorded_and_observed() -> None:
    """An observer hears of each call before its request and after its end."""
    watcher = Watcher()
    async with turn(ANSWER, streaming(), observer=watcher, model="grok-4.3") as (run, _):
        await run.run()
        with pytest.raises(Truncated):
            await run.run()

        assert watcher.told == [
            ("started", "running"),
            ("finished", "completed"),
            ("started", "running"),
            ("finished", "failed"),
        ]
        first, _ = run.service.calls
        assert (first.number, first.model, first.status) == (1, "grok-4.3", 200)
        assert (first.response_id, first.response_model) == ("r-1", "grok-4.3")
        assert (first.finish_reason, first.text_chunks, first.text_chars) == ("stop", 1, 4)
        assert first.request_id == "req-1"
        assert first.time_to_first_chunk_s is not None
        assert first.duration_s is not None
        assert first.message_count == 1


class SlowNote(Watcher):
    """Takes its time to note a call: until the server has a connection, and some more."""

    def __init__(self, server: WireServer, error: Exception | None = None) -> None:
        super().__init__()
        self._server, self._error = server, error
        self.requests_before: int | None = None

    async def on_call_started(self, call: LLMCall) -> None:
        await self._server.connected.wait()
        for _ in range(100):  # a request that did not wait would have come by then
            await asyncio.sleep(0)
        self.requests_before = len(self._server.requests)
        if self._error is not None:
            raise self._error


async def test_the_request_is_made_ready_while_the_call_is_noted_and_sent_after() -> None:
    """The connection is there before the note is safe; no request is."""
    async with WireServer(ANSWER) as server:
        observer = SlowNote(server)
        run = Turn(server.client, observer=observer)
        await run.run()

        assert observer.requests_before == 0
        assert run.text == "done"
        (request,) = server.requests
        assert run.service.calls[0].request_bytes == len(request.raw)


async def test_a_call_that_cannot_be_noted_is_not_made() -> None:
    """What the note failed with comes out; the provider never hears of the call."""
    async with WireServer(ANSWER) as server:
        run = Turn(server.client, observer=SlowNote(server, LeaseLost("somebody else has it")))
        with pytest.raises(LeaseLost, match="somebody else"):
            await run.run()
        await server.client.close()
        await server.deserted.wait()

        assert server.requests == []
        assert [(c.outcome, c.error) for c in run.service.calls] == [("failed", LeaseLost.code)]


async def test_a_call_cancelled_while_it_is_noted_is_not_made() -> None:
    """The note is given up and nothing is sent."""
    ended: list[str] = []

    class Endless(Watcher):
        async def on_call_started(self, call: LLMCall) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("note")

    async with WireServer(ANSWER) as server:
        run = Turn(server.client, observer=Endless())
        task = asyncio.create_task(run.run())
        await server.connected.wait()
        task.cancel()
        await asyncio.wait([task])
        await server.client.close()
        await server.deserted.wait()

        assert task.cancelled()
        assert ended == ["note"]
        assert server.requests == []


async def test_a_provider_out_of_reach_does_not_undo_the_note() -> None:
    """The call failed, and it is noted all the same: the order of what is written stays."""
    async with WireServer(ANSWER) as server:
        unreachable = ProviderClient("xai-test", server.url)
    noted = asyncio.Event()

    class Late(Watcher):
        async def on_call_started(self, call: LLMCall) -> None:
            for _ in range(1000):
                await asyncio.sleep(0)
            noted.set()

    with pytest.raises(ProviderUnavailable):
        await Turn(unreachable, observer=Late()).run()
    await unreachable.close()

    assert noted.is_set()


async def test_a_connection_that_breaks_does_not_undo_the_note() -> None:
    """It is written to its end, though the request cannot be sent any more."""
    closed, noted = asyncio.Event(), asyncio.Event()

    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        await writer.wait_closed()
        closed.set()

    class Late(Watcher):
        async def on_call_started(self, call: LLMCall) -> None:
            await closed.wait()
            for _ in range(100):
                await asyncio.sleep(0)
            noted.set()

    async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = ProviderClient("xai-test", f"http://127.0.0.1:{port}/v1")
        with pytest.raises(ProviderUnavailable):
            await Turn(client, observer=Late()).run()
        await client.close()

    assert noted.is_set()


async def test_the_connection_is_reused() -> None:
    """Reading to the end of a response leaves the connection for the next one."""
    async with turn(ANSWER) as (run, server):
        for _ in range(5):
            await run.run()

        assert server.connections == 1


async def test_a_service_makes_and_closes_its_own_client() -> None:
    """Without a shared client the service has its own."""
    async with WireServer(ANSWER) as server:
        service = GrokLLMService(api_key="xai-own", base_url=server.url)
        try:
            await service._process_context(OpenAILLMContext([{"role": "user", "content": "x"}]))
        finally:
            await service.close()

        assert server.requests[0].headers["authorization"] == "Bearer xai-own"


@recorded("xai/chat.*streaming*.jsonl")
async def test_recorded_streams(path) -> None:
    """Recorded streams come out as exactly their text, tool calls and usage."""
    lines = path.read_bytes().splitlines()
    frames = [json.loads(line) for line in lines]
    deltas = [choice["delta"] for f in frames for choice in f["choices"]]
    text = "".join(d.get("content", "") for d in deltas)
    calls = [c for d in deltas for c in d.get("tool_calls", [])]

    async with turn(streaming(*lines), ANSWER) as (run, _):
        seen = recording(run, None)
        await run.run()

        assert run.text == text + ("done" if calls else "")
        assert seen == [json.loads(c["function"]["arguments"]) for c in calls]
        if calls:
            made = run.said[0]["tool_calls"]
            assert [(c["id"], c["function"]) for c in made] == [
                (c["id"], c["function"]) for c in calls
            ]
        reported, kept = frames[-1]["usage"], run.service.calls[0].usage
        assert kept is not None
        assert (
            kept.prompt_tokens,
            kept.completion_tokens,
            kept.total_tokens,
            kept.cost_usd_ticks,
            kept.reasoning_tokens,
            kept.cached_tokens,
        ) == (
            reported["prompt_tokens"],
            reported["completion_tokens"],
            reported["total_tokens"],
            reported["cost_in_usd_ticks"],
            reported["completion_tokens_details"]["reasoning_tokens"],
            reported["prompt_tokens_details"]["cached_tokens"],
        )
