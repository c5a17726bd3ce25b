"""The service over `/v1/responses`, over real bytes: what is sent, said, kept, cut and repaired."""

import asyncio
import json
from typing import Any

import pytest

from tests.integration.services.wire import (
    END_OF_BODY,
    STREAM_HEAD,
    Connection,
    Script,
    Turn,
    WireServer,
    call,
    chunk,
    delta,
    failed,
    finish,
    ran,
    streaming,
    turn,
    usage,
)
from tests.support.responses_events import (
    MODEL,
    USAGE,
    Fields,
    ending,
    event,
    events_of,
    function_call,
    message,
    opening,
    reasoning,
    sse,
    web_search,
    whole_stream,
)
from tests.support.wait import wait_until
from turnline.worker.errors import ProviderRejected, Truncated, WorkerError
from turnline.worker.pipeline.calls import LLMCall
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.pipeline.frames import StartInterruptionFrame
from turnline.worker.pipeline.functions import FunctionCallParams
from turnline.worker.pipeline.reply_frames import (
    LLMCitationFrame,
    LLMReplyItemFrame,
    LLMServerToolFrame,
    LLMThoughtTextFrame,
)
from turnline.worker.services.grok.llm import GrokLLMService
from turnline.worker.services.grok.responses_request import ResponsesOptions
from turnline.worker.services.openai.llm import OpenAIInputParams

WIRE: dict[str, Any] = {"wire": "responses", "model": MODEL}
BY_SDK: dict[str, Any] = {"params": OpenAIInputParams(extra={"timeout": 30.0})}
"""An option that is the SDK's business: it makes the requests then."""
Q = {"role": "user", "content": "hi"}


def replying(*payloads: Fields, ends: bool = True) -> Script:
    """A script: these payloads; the response ends, or the connection stays open in silence."""

    async def script(connection: Connection) -> None:
        await connection.send(STREAM_HEAD + chunk(sse(payloads)))
        if ends:
            await connection.send(END_OF_BODY)
        else:
            await connection.client_left()

    return script


def answering(*items: Fields, **ends: Any) -> Script:
    """A script: a whole reply of these items."""
    return replying(*whole_stream(*items, **ends))


ANSWER = answering(message("done"))


def handler_of(run: Turn, answer: object = "ok") -> list[object]:
    seen: list[object] = []

    async def handler(params: FunctionCallParams) -> None:
        seen.append(params.arguments)
        await params.result_callback(answer)

    run.service.register_function(None, handler)
    return seen


def inputs(server: WireServer) -> list[list[Any]]:
    return [request.body["input"] for request in server.requests]


async def test_a_request_asks_for_what_is_to_be_kept() -> None:
    """Nothing is stored at the provider; encrypted reasoning comes along; the cache has its key."""
    options = ResponsesOptions(
        cache_key="c-1", server_tools=[{"type": "web_search"}], max_output_tokens=9, summary=True
    )
    _, server = await ran(ANSWER, options=options, **WIRE)

    (request,) = server.requests
    assert request.line == "POST /v1/responses HTTP/1.1"
    body = request.body
    assert (body["store"], body["stream"]) == (False, True)
    assert body["include"] == ["reasoning.encrypted_content"]
    assert body["prompt_cache_key"] == "c-1"
    assert body["tools"] == [{"type": "web_search"}]
    assert body["max_output_tokens"] == 9
    assert body["reasoning"]["summary"] == "detailed"
    assert body["input"] == [Q]
    assert not {"messages", "stream_options", "previous_response_id"} & body.keys()


@pytest.mark.parametrize(
    ("model", "effort", "sent"),
    [
        ("grok-4.3", "none", 5),
        ("grok-4.3", None, 5 + 8_192),
        ("grok-4.7", None, 5 + 32_768),
        ("grok-4.7", "xhigh", 5 + 65_536),
        ("grok-4.20-0309-reasoning", None, 5 + 16_384),
        ("grok-4.20-0309-non-reasoning", None, 5),
        ("grok-4.20-non-reasoning", "high", 5),
        ("somebody-elses", None, 5 + 16_384),
    ],
)
async def test_a_bound_of_visible_tokens_has_room_for_thought(
    model: str, effort: str | None, sent: int
) -> None:
    """By effort, and none where nothing is thought: there the bound is what was asked for."""
    params = OpenAIInputParams(max_tokens=5, extra={"reasoning_effort": effort} if effort else {})

    _, server = await ran(ANSWER, params=params, **{**WIRE, "model": model})

    assert server.requests[0].body["max_output_tokens"] == sent


BOTH: dict[str, tuple[dict[str, Any], Script, Script]] = {
    "chat": (
        {"model": MODEL},
        streaming(
            delta(content="Let me "),
            delta(content="see."),
            delta(tool_calls=[call(0, "c1", "f", '{"n":1}')]),
            delta(tool_calls=[call(1, "c2", "f", '{"n":2}')]),
            finish("tool_calls"),
            usage(475, 32, total_tokens=566, completion_tokens_details={"reasoning_tokens": 59}),
        ),
        streaming(delta(content="done"), finish(), usage(475, 32)),
    ),
    "responses": (
        WIRE,
        replying(
            *whole_stream(
                message("Let me see."),
                function_call("f", '{"n":1}', "c1"),
                function_call("f", '{"n":2}', "c2"),
                size=7,
                usage={**USAGE, "input_tokens_details": {}},
            )
        ),
        answering(message("done"), size=9, usage={"input_tokens": 475, "output_tokens": 32}),
    ),
}


BOTH["responses, by the SDK"] = ({**WIRE, **BY_SDK}, *BOTH["responses"][1:])


@pytest.mark.parametrize("wire", BOTH)
async def test_both_wires_give_the_same_turn(wire: str) -> None:
    """Frames, metrics, context and records of calls are alike, whatever was spoken."""
    how, first, second = BOTH[wire]
    async with turn(first, second, **how) as (run, server):
        seen = handler_of(run)
        await run.run()

        assert seen == [{"n": 1}, {"n": 2}]
        assert len(server.requests) == 2
        assert run.text == "Let me see.done"
        assert run.said == [
            {
                "role": "assistant",
                "content": "Let me see.",
                "tool_calls": [
                    {
                        "id": f"c{n}",
                        "function": {"name": "f", "arguments": f'{{"n":{n}}}'},
                        "type": "function",
                    }
                    for n in (1, 2)
                ],
            },
            {"role": "tool", "content": '"ok"', "tool_call_id": "c1"},
            {"role": "tool", "content": '"ok"', "tool_call_id": "c2"},
            {"role": "assistant", "content": "done"},
        ]
        assert run.reported == [(475, 32, 507), (475, 32, 507)]
        assert run.names[1:5] == [
            "LLMFullResponseStartFrame",
            "LLMTextFrame",
            "LLMTextFrame",
            "FunctionCallsStartedFrame",
        ]
        record = run.service.calls[0]
        assert (record.finish_reason, record.tool_calls) == ("tool_calls", 2)
        assert record.usage is not None
        assert (record.usage.reasoning_tokens, record.usage.total_tokens) == (59, 566)
        assert run.service.calls[1].finish_reason == "stop"


@pytest.mark.promise("P13")
@pytest.mark.parametrize("by", [{}, BY_SDK], ids=["own", "sdk"])
async def test_reasoning_goes_back_in_its_place_in_every_round(by: dict[str, Any]) -> None:
    """Before the call that it led to, and before the answer, in this turn and in the next one."""
    first, second = reasoning("a", "Hm."), reasoning("b")
    made = function_call("f", '{"n": 1}', "c1")
    search = web_search()
    async with turn(
        answering(first, made), answering(search, second, message("done")), ANSWER, **WIRE, **by
    ) as (run, server):
        handler_of(run)
        await run.run()
        run.context.add_message({"role": "user", "content": "more"})
        await run.run()

        sent_call = {key: made[key] for key in ("type", "call_id", "name", "arguments")}
        output = {"type": "function_call_output", "call_id": "c1", "output": '"ok"'}
        said = {"role": "assistant", "content": "done"}
        assert inputs(server) == [
            [Q],
            [Q, first, sent_call, output],
            [
                Q,
                first,
                sent_call,
                output,
                search,
                second,
                said,
                {"role": "user", "content": "more"},
            ],
        ]
        if by:  # it writes the body anew
            return
        heads = [bytes(it.raw).partition(b'],"')[0] for it in server.requests]
        assert heads[1].startswith(heads[0])
        assert heads[2].startswith(heads[1])


@pytest.mark.parametrize("summary", [True, False])
async def test_thoughts_are_shown_only_if_asked_for(summary: bool) -> None:
    """They are counted all the same, and never part of the answer."""
    options = ResponsesOptions(summary=summary)
    run, _ = await ran(answering(reasoning("a", "Hm."), message("x")), options=options, **WIRE)

    shown = [it.text for it in run.frames if isinstance(it, LLMThoughtTextFrame)]
    assert "".join(shown) == ("Hm." if summary else "")
    assert run.text == "x"
    assert run.service.calls[0].reasoning_chunks == 1


async def test_tools_of_the_provider_and_sources_have_frames() -> None:
    """What a front end shows while it waits; the sources stand in the message too."""
    source = {
        "type": "url_citation",
        "url": "https://x",
        "title": "1",
        "start_index": 0,
        "end_index": 1,
    }
    said = message(content=[{"type": "output_text", "text": "ab", "annotations": [source]}])
    run, _ = await ran(answering(web_search(), said), **WIRE)

    tools = [(it.tool, it.ok) for it in run.frames if isinstance(it, LLMServerToolFrame)]
    assert tools == [("web_search", None), ("web_search", True)]
    assert len([it for it in run.frames if isinstance(it, LLMCitationFrame)]) == 1
    (entry,) = run.said
    assert entry["citations"] == [{"url": "https://x", "title": "1", "start": 0, "end": 1}]
    assert [it["item"] for it in entry["reply_items"]["items"]] == [web_search()]


BEGUN: dict[str, tuple[list[Fields], list[dict[str, Any]]]] = {
    "reasoning": (events_of(0, reasoning("a", "Hm, hm."))[:3], []),
    "after_reasoning": (events_of(0, reasoning("a", "Hm.")), []),
    "text": (
        [*events_of(0, reasoning("a", "Hm.")), *events_of(1, message("Hello there"))[:4]],
        [
            {
                "role": "assistant",
                "content": "Hello",
                "reply_items": {"model": MODEL, "items": [{"item": reasoning("a", "Hm.")}]},
            }
        ],
    ),
    "a_call": (
        [*events_of(0, message("Hello")), *events_of(1, function_call("f", '{"n": 1}'))[:3]],
        [{"role": "assistant", "content": "Hello"}],
    ),
    "a_later_thought": (
        [*events_of(0, message("Hello")), *events_of(1, reasoning("a", "Hm, hm."))[:3]],
        [{"role": "assistant", "content": "Hello"}],
    ),
}


def has_read(run: Turn, payloads: list[Fields]) -> bool:
    """Whether what a script sent has been read."""
    chunks = sum(it["type"].endswith("summary_text.delta") for it in payloads)
    texts = "".join(it["delta"] for it in payloads if it["type"] == "response.output_text.delta")
    calls = run.service.calls
    return bool(calls) and calls[0].reasoning_chunks == chunks and run.text == texts


@pytest.mark.parametrize("case", BEGUN)
async def test_an_interruption_keeps_what_is_finished(case: str) -> None:
    """Half a thought and half a call are gone; the text so far stays, with what led to it."""
    payloads, kept = BEGUN[case]
    async with turn(replying(*opening(), *payloads, ends=False), ANSWER, **WIRE) as (run, server):
        answering_it = asyncio.ensure_future(run.run())
        await wait_until(lambda: has_read(run, payloads), "what was sent to be read")
        await run.interrupt()
        await answering_it

        assert run.said == kept
        run.context.add_message({"role": "user", "content": "and?"})
        await run.run()
        kinds = [it.get("type", it.get("role")) for it in inputs(server)[1]]
        assert "function_call" not in kinds
        assert kinds.count("reasoning") == sum("reply_items" in it for it in kept)


REFUSED = {
    "code": "invalid-argument",
    "error": "Could not decrypt the provided encrypted_content. Ensure the value is the unmodified "
    "encrypted_content from a previous response.",
}
NESTED = {"code": "invalid-argument", "message": REFUSED["error"]}


async def refused(connection: Connection) -> None:
    await connection.answer(400, json.dumps(REFUSED).encode())


async def unknown_shape(connection: Connection) -> None:
    words = b"data did not match any variant of untagged enum ModelInput"
    await connection.answer(422, b"Failed to deserialize the JSON body: " + words, "text/plain")


async def in_other_words(connection: Connection) -> None:
    said = {"error": {"message": "Blob rejected: wrong tenant.", "type": "invalid_request_error"}}
    await connection.answer(400, json.dumps(said).encode())


REFUSALS: dict[str, Script] = {
    "answer": refused,
    "in_other_words": in_other_words,
    "plain_text": unknown_shape,
    "first_event": replying(event("error", **NESTED)),
    "flat_event": replying({"type": "error", **REFUSED}),
    "after_the_opening": replying(*opening(), event("error", status=400, error=NESTED)),
    "failed": replying(*opening(), ending([], "failed", error=NESTED)),
}


def reasoned() -> OpenAILLMContext:
    kept = {"model": MODEL, "items": [{"item": reasoning("a")}]}
    said = {"role": "assistant", "content": "a", "reply_items": kept}
    return OpenAILLMContext.from_stored([json.dumps(it).encode() for it in (Q, said, Q)])


class Noted:
    """Keeps the records of calls that are over."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[int, str, str | None]] = []

    async def on_call_started(self, call: LLMCall) -> None:
        """Nothing: only what became of it counts."""

    async def on_call_finished(self, call: LLMCall) -> None:
        self.outcomes.append((call.number, call.outcome, call.error))


@pytest.mark.promise("P13")
@pytest.mark.parametrize("by", [{}, BY_SDK], ids=["own", "sdk"])
@pytest.mark.parametrize("how", REFUSALS)
async def test_refused_reasoning_is_left_out_once_and_for_good(
    how: str, by: dict[str, Any]
) -> None:
    """The turn goes on without it: one more call, both recorded; the context has it no more."""
    noted = Noted()
    run, server = await ran(REFUSALS[how], ANSWER, context=reasoned(), observer=noted, **WIRE, **by)

    assert [[it.get("type", "message") for it in its] for its in inputs(server)] == [
        ["message", "reasoning", "message", "message"],
        ["message"] * 3,
    ]
    assert run.text == "done"
    assert not any("reply_items" in it for it in run.context.messages)
    assert noted.outcomes == [(1, "failed", "reasoning_refused"), (2, "completed", None)]
    assert run.names.count("LLMFullResponseStartFrame") == 1


async def test_reasoning_that_is_refused_again_fails_by_name() -> None:
    """Never a third call; nor a second one where there is nothing to leave out."""
    noted = Noted()
    _, server, error = await failed(
        ProviderRejected, refused, context=reasoned(), observer=noted, **WIRE
    )
    assert (len(server.requests), error.code) == (2, "reasoning_refused")
    assert [it[2] for it in noted.outcomes] == ["reasoning_refused"] * 2

    _, server, error = await failed(ProviderRejected, refused, **WIRE)
    assert (len(server.requests), error.code) == (1, "reasoning_refused")


async def test_a_request_that_is_refused_without_its_reasoning_too_keeps_the_name() -> None:
    """The reasoning was not why: nothing is forgotten, since the turn fails."""
    noted = Noted()
    _, server, error = await failed(
        ProviderRejected, in_other_words, context=reasoned(), observer=noted, **WIRE
    )
    assert (len(server.requests), error.code) == (2, "bad_request")
    assert [it[2] for it in noted.outcomes] == ["reasoning_refused", "bad_request"]

    _, server, error = await failed(ProviderRejected, in_other_words, **WIRE)
    assert (len(server.requests), error.code) == (1, "bad_request")


FAILURES: dict[str, Script] = {
    "failed_with_usage": replying(
        *opening(), *events_of(0, message("half")), ending([], "failed", usage=USAGE)
    ),
    "error": replying(*opening(), *events_of(0, message("half")), event("error", message="m")),
    "contradiction": replying(
        *opening(), *events_of(0, message("half")), ending([message("other")], usage=USAGE)
    ),
    "eof": replying(*opening(), *events_of(0, message("half"))),
    "done_mark": streaming(*(json.dumps(it).encode() for it in events_of(0, message("half")))),
}


@pytest.mark.parametrize("by", [{}, BY_SDK], ids=["own", "sdk"])
@pytest.mark.parametrize("case", FAILURES)
async def test_half_a_reply_is_no_reply(case: str, by: dict[str, Any]) -> None:
    """Whatever ends it, also with a report of usage, which is counted."""
    run, _, error = await failed(WorkerError, FAILURES[case], **WIRE, **by)

    assert isinstance(error, Truncated) == (case in {"eof", "done_mark"})
    record = run.service.calls[0]
    assert record.outcome == "failed"
    assert (record.usage is not None) == (case in {"failed_with_usage", "contradiction"})


async def test_a_cut_reply_has_its_reason() -> None:
    """The text so far is the reply, as on the other wire."""
    cut = replying(
        *opening(),
        *events_of(0, message("half")),
        ending([], "incomplete", incomplete_details={"reason": "max_output_tokens"}),
    )
    run, _ = await ran(cut, **WIRE)

    assert run.said == [{"role": "assistant", "content": "half"}]
    assert run.service.calls[0].finish_reason == "length"


class Hooked(GrokLLMService):
    """Changes how a chat request is made."""

    def build_chat_completion_params(self, params_from_context: Any) -> dict[str, Any]:
        return {**super().build_chat_completion_params(params_from_context), "user": "me"}


async def test_a_subclass_that_changes_chat_requests_speaks_chat() -> None:
    """As its docstring says: its hook would be of no effect on the other wire."""
    run, server = await ran(
        streaming(delta(content="x"), finish()), service_class=Hooked, context=reasoned(), **WIRE
    )

    assert server.requests[0].line == "POST /v1/chat/completions HTTP/1.1"
    assert server.requests[0].body["user"] == "me"
    assert not any("reply_items" in it for it in server.requests[0].body["messages"])
    assert run.text == "x"


async def test_items_are_told_with_the_model_that_made_them() -> None:
    """By its own name, and by the one it was asked for."""
    run, _ = await ran(
        answering(reasoning("a"), message("x")), wire="responses", model="grok-4.3-x"
    )

    (item,) = [it for it in run.frames if isinstance(it, LLMReplyItemFrame)]
    assert (item.model, item.asked) == (MODEL, "grok-4.3-x")
    assert run.said[0]["reply_items"]["asked"] == "grok-4.3-x"


async def test_what_was_heard_cuts_what_stands_beside_it() -> None:
    """The items of a reply that was cut stay with it, at its end at most."""
    stream = [*opening(), *events_of(0, message("one two")), *events_of(1, reasoning("a"))]
    async with turn(replying(*stream, ends=False), **WIRE) as (run, _):
        answering_it = asyncio.ensure_future(run.run())
        await wait_until(
            lambda: any(isinstance(it, LLMReplyItemFrame) for it in run.frames), "the item"
        )
        await run.pipeline.queue_frame(StartInterruptionFrame(heard="one"))
        await answering_it

        (entry,) = run.said
        assert entry["content"] == "one"
        assert entry["reply_items"]["items"] == [{"chars": 3, "item": reasoning("a")}]
