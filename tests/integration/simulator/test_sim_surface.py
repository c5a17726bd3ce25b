"""The simulator over real sockets: the bytes of its default answers, its errors, its routes."""

import asyncio
import re

import msgspec
import pytest
from openai import AsyncOpenAI, BadRequestError

from tests.integration.simulator.asking import ask
from tests.support.recordings import SHARED_DATA
from tests.support.wait import wait_until
from turnline.ops.simulator import ErrorStyle, Pacing, Simulator, SimulatorConfig
from turnline.ops.simulator.model.api_errors import KEY_ID, TEAM_ID

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
JSON = "application/json"
AUTHORIZATION = "Bearer xai-test"


async def test_a_stream_has_exactly_xais_bytes(post) -> None:
    """Key order, absent keys, one token per chunk, the role once, usage, `[DONE]`, LF only."""
    reply = await post(sim="text;say=Ol%C3%A1! | reasoning;mode=hidden,tokens=129")
    stamp = rb'\{"id":"[0-9a-f-]{36}","object":"chat.completion.chunk","created":\d{10}'
    tail = rb'"system_fingerprint":"fp_3d7ed3b779"\}\n\n'
    head = rb"data: " + stamp + rb',"model":"grok-4\.3","choices":'
    details = (
        rb'"prompt_tokens_details":\{"text_tokens":185,"audio_tokens":0,"image_tokens":0,'
        rb'"cached_tokens":0\},"completion_tokens_details":\{"reasoning_tokens":129,'
        rb'"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0\},'
        rb'"num_sources_used":0,"cost_in_usd_ticks":5587500'
    )
    pattern = (
        head + rb'\[\{"index":0,"delta":\{"content":"Ol\xc3\xa1","role":"assistant"\}\}\],' + tail,
        head + rb'\[\{"index":0,"delta":\{"content":"!"\}\}\],' + tail,
        head + rb'\[\{"index":0,"delta":\{\},"finish_reason":"stop"\}\],' + tail,
        head
        + rb'\[\],"usage":\{"prompt_tokens":185,"completion_tokens":2,"total_tokens":316,'
        + details
        + rb"\},"
        + tail,
        rb"data: \[DONE\]\n\n",
    )

    assert re.fullmatch(b"".join(pattern), reply.body)
    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.headers["transfer-encoding"] == "chunked"


async def test_the_headers_are_xais(post) -> None:
    """Retention, edge; timings only when nothing is streamed."""
    stream, body = await post(), await post(stream=False, stream_options=None)

    for reply in (stream, body):
        assert reply.headers["x-zero-data-retention"] == "false"
        assert reply.headers["server"] == "cloudflare"
        assert {"x-request-id", "traceparent", "cf-ray", "set-cookie"} <= reply.headers.keys()
    assert stream.headers["cache-control"] == "no-cache"
    assert "x-metrics-ttft-ms" not in stream.headers
    assert {"x-metrics-ttft-ms", "x-metrics-mean-itl-ms", "x-metrics-e2e-ms"} <= (
        body.headers.keys()
    )


async def test_usage_comes_only_if_asked_for(post) -> None:
    """Without `stream_options` the stream ends with the finish reason and `[DONE]`."""
    reply = await post(stream_options=None)

    assert b"usage" not in reply.body
    assert b'"finish_reason":"stop"' in reply.events[-2]
    assert reply.events[-1] == b"[DONE]"


async def test_there_is_one_chunk_for_each_visible_token(client: AsyncOpenAI) -> None:
    """Content chunks, `completion_tokens` and the text agree."""
    stream = await ask(
        client,
        text="Tell me a story",
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    usage = chunks[-1].usage

    assert usage is not None
    assert usage.completion_tokens == len([text for text in texts if text])
    assert "".join(text or "" for text in texts).startswith("You said “Tell me a story”.")


async def test_the_same_question_gets_the_same_answer(post) -> None:
    """Streamed or not, now or later, on any simulator."""
    body = msgspec.json.decode((await post("Why?", stream=False, stream_options=None)).body)
    events = (await post("Why?")).events[:-3]
    texts = [msgspec.json.decode(event)["choices"][0]["delta"]["content"] for event in events]

    assert "".join(texts) == body["choices"][0]["message"]["content"]


async def test_visible_tokens_are_limited(post) -> None:
    """Reasoning does not count towards the limit; the reason is `length`."""
    reply = await post(sim="chunks=50 | reasoning;tokens=80", max_completion_tokens=7)
    usage = msgspec.json.decode(reply.events[-2])["usage"]

    assert usage["completion_tokens"] == 7
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 80
    assert b'"finish_reason":"length"' in reply.body


async def test_stop_words_end_the_answer(post) -> None:
    """On models that take them."""
    reply = await post(sim="text;say=one%20two%20three", stop=[" three"], stream=False)

    assert b'"content":"one two"' in reply.body


async def test_names_are_resolved_and_echoed(post) -> None:
    """A retired name is answered under its successor's name."""
    assert b'"model":"grok-4.3"' in (await post(model="grok-4-1-fast-reasoning")).body


async def test_later_turns_are_cached(post, sim: Simulator) -> None:
    """With a conversation id, by header or by body, a longer second prompt hits the cache."""
    long = [{"role": "user", "content": "word " * 300}]
    await post(messages=long, headers={"x-grok-conv-id": "c"})
    await post(messages=[*long, *long], headers={"x-grok-conv-id": "c"})
    await post(messages=[*long, *long], prompt_cache_key="c")
    cached = [
        entry.usage.prompt_tokens_details.cached_tokens
        for entry in sim.ledger.entries(conversation="c")
        if entry.usage
    ]

    assert cached[0] == 0
    assert 256 <= cached[1] < cached[2]


async def test_a_required_tool_is_called(post) -> None:
    """`tool_choice` forces a call with arguments that fit; an unknown choice means auto."""
    named = {"type": "function", "function": {"name": "add"}}
    for choice in ("required", named):
        reply = await post(tools=[TOOL], tool_choice=choice)
        call = msgspec.json.decode(reply.events[0])["choices"][0]["delta"]["tool_calls"][0]
        assert call["function"] == {"name": "add", "arguments": '{"a":1}'}
        assert re.fullmatch(r"call_\d{8}", call["id"])
    assert b"tool_calls" not in (await post(tools=[TOOL], tool_choice="whatever")).body


async def test_an_object_fits_the_wanted_schema(post) -> None:
    """`response_format` is obeyed."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    reply = await post(
        stream=False,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    )

    assert b'"content":"{\\"n\\":1}"' in reply.body


def flat(message: str) -> tuple[int, str, bytes]:
    return 400, JSON, msgspec.json.encode({"code": "invalid-argument", "error": message})


EMPTY = flat("Invalid request content: Each message must have at least one content element.")
USER = {"role": "user", "content": "hi"}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{"}}],
}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"model": "nope"}, flat("Model not found: nope")),
        ({"model": None}, flat("Model not found: latest")),
        ({"messages": []}, flat("Messages cannot be empty")),
        ({"messages": [{"role": "assistant", "content": None}]}, EMPTY),
        ({"messages": [{"role": "assistant"}]}, EMPTY),
        ({"messages": [{"role": "user", "content": []}]}, EMPTY),
        (
            {"messages": [USER, CALLED]},
            flat("The arguments to a tool_call with ID 'c1' are not a valid JSON string"),
        ),
        (
            {"presence_penalty": 0},
            flat("Model grok-4.3 does not support parameter presencePenalty."),
        ),
        (
            {"frequency_penalty": 0.5},
            flat("Model grok-4.3 does not support parameter frequencyPenalty."),
        ),
        ({"logit_bias": {}}, flat("Model grok-4.3 does not support parameter logitBias.")),
        (
            {"model": "grok-4.6", "stop": ["x"]},
            flat("Argument not supported on this model: stop"),
        ),
        (
            {"model": "grok-4.6", "reasoning_effort": "none"},
            flat("This model does not support `reasoning_effort` value `none`"),
        ),
        (
            {"model": "grok-4.20-0309-reasoning", "reasoning_effort": "low"},
            flat("Model grok-4.20-0309-reasoning does not support parameter reasoningEffort."),
        ),
        (
            {"tool_choice": "auto"},
            flat("A tool_choice was set on the request but no tools were specified."),
        ),
        (
            {"tools": [{"type": "function"}]},
            flat("Invalid request content: Invalid function schema."),
        ),
        (
            {"tools": [{"function": {"name": "f", "parameters": {"type": "array"}}}]},
            flat("Invalid request content: The root of the schema of tool 'f' must be an object."),
        ),
        ({"tools": [TOOL] * 129}, flat("A maximum of 128 tools is allowed per request.")),
        (
            {"messages": [{"role": "user", "content": "a " * 1_000_000}]},
            flat(
                "This model's maximum prompt length is 1000000 but the request contains 1000185"
                " tokens."
            ),
        ),
        (
            {"deferred": True},
            (400, JSON, b'"A request may either be streaming or deferred, but not both."'),
        ),
        (
            {"search_parameters": {"mode": "off"}},
            (
                410,
                JSON,
                (
                    b'{"error":"Live search is deprecated. Please switch to the Agent Tools API:'
                    b' https://docs.x.ai/docs/guides/tools/overview"}'
                ),
            ),
        ),
        (
            {"messages": [USER, {"role": "user", "content": 7}]},
            (
                422,
                "text/plain; charset=utf-8",
                (
                    b"Failed to deserialize the JSON body into the target type:"
                    b" messages[1].content: invalid type: expected str | array | null, got int"
                ),
            ),
        ),
    ],
)
async def test_bad_requests_are_refused_as_by_xai(
    post, body: dict[str, object], expected: tuple[int, str, bytes]
) -> None:
    """Status, content type and bytes of each refusal."""
    reply = await post(**body)

    assert (reply.status, reply.headers["content-type"], reply.body) == expected
    assert "x-request-id" in reply.headers
    assert not any(name.startswith("x-ratelimit") for name in reply.headers)


@pytest.mark.parametrize("body", [{"temperature": 0.7}, {"n": 1, "whatever": {"new": [1]}}])
async def test_unknown_parameters_are_ignored(post, body: dict[str, object]) -> None:
    """A key that nobody knows changes nothing."""
    assert (await post(**body)).status == 200


async def test_checks_come_in_xais_order(send) -> None:
    """Media type, syntax, types, model, key, arguments: the first fault is reported."""
    chat = "/v1/chat/completions"
    messages = '"messages":[{"role":"user","content":"hi"}]'
    steps = [
        (b"{", {}, 415),
        (b"{", {"content_type": JSON}, b"Failed to parse"),
        (b'{"messages":7,"model":"nope"}', {"content_type": JSON}, 422),
        (f'{{{messages},"model":"nope"}}'.encode(), {"content_type": JSON}, b"Model not found"),
        (f'{{{messages},"model":"grok-4.3","logit_bias":{{}}}}'.encode(),
         {"content_type": JSON}, b"No credentials presented."),
        (f'{{{messages},"model":"grok-4.3","logit_bias":{{}}}}'.encode(),
         {"content_type": JSON, "authorization": "Bearer "}, b"Incorrect API key"),
        (f'{{{messages},"model":"grok-4.3","logit_bias":{{}}}}'.encode(),
         {"content_type": JSON, "authorization": AUTHORIZATION}, b"logitBias"),
    ]  # fmt: skip
    for body, headers, expected in steps:
        reply = await send("POST", chat, body, **headers)
        if isinstance(expected, int):
            assert reply.status == expected
        else:
            assert expected in reply.body


async def test_only_known_keys_are_let_in_if_there_are_any() -> None:
    """A wrong key is a 400 with 118 bytes and without a request id."""
    async with (
        Simulator(SimulatorConfig(api_keys=("right",))) as sim,
        AsyncOpenAI(base_url=sim.base_url, api_key="wrong", max_retries=0) as wrong,
        AsyncOpenAI(base_url=sim.base_url, api_key="right", max_retries=0) as right,
    ):
        with pytest.raises(BadRequestError) as refused:
            await wrong.models.list()
        models = await right.models.list()

    assert refused.value.response.headers["content-length"] == "118"
    assert refused.value.request_id is None
    assert "grok-4.3" in [model.id for model in models.data]


ROWS = {
    0: "bad-key", 1: "penalty;style=sentence", 2: "penalty", 3: "penalty-model",
    4: "stop", 5: "effort;model=grok-4.20-0309-reasoning", 6: "model-not-found;model=grok-nope",
    7: "model-no-access;model=grok-nope", 8: "context-length", 9: "tool-choice",
    10: "no-content;style=sentence", 11: "bad-schema", 12: "stream-and-deferred",
    13: "no-credentials", 14: "safety;style=sentence,model=grok-4-0709",
    15: "no-credits;style=sentence", 16: "live-search", 17: "media-type", 18: "types",
    19: "rate-limit;model=grok-4.5", 20: "capacity",
    21: "rate-limit;per=tokens,model=grok-4-0709,actual=65605,limit=16000", 22: "credits",
    23: "ok-json;style=sentence", 24: "unavailable;style=sentence",
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
async def test_recorded_errors_can_be_had_by_name(post, shared_data, row: int) -> None:
    """Each row of the recorded errors is reproduced: status, content type, body."""
    lines = (shared_data / "xai/errors.jsonl").read_bytes().splitlines()
    recorded = msgspec.json.decode(lines[row])
    reply = await post(sim=ROWS[row])
    body = reply.body.decode().replace(TEAM_ID, "<uuid>").replace(KEY_ID, "<uuid>")
    expected = recorded["body"].replace('"<not recorded>"', '"resource-exhausted"')

    assert reply.status == recorded["status"]
    assert reply.headers.get("content-type", "") == recorded["content_type"]
    assert body == expected


def test_every_recorded_error_has_a_name() -> None:
    """All rows but the last, which is an event and not a response."""
    errors = SHARED_DATA / "xai/errors.jsonl"

    assert not errors.exists() or len(errors.read_bytes().splitlines()) == len(ROWS) + 1


@pytest.mark.parametrize(
    ("style", "body"),
    [
        (
            "sentence",
            {"code": "Client specified an invalid argument", "error": "Model not found: m"},
        ),
        (
            "nested",
            {
                "error": {
                    "message": "Model not found: m",
                    "type": "invalid_request_error",
                    "param": None,
                    "code": "invalid-argument",
                }
            },
        ),
    ],
)
async def test_errors_have_other_spellings(style: str, body: dict[str, object]) -> None:
    """Sentences as before 2026, or OpenAI's nested form."""
    config = SimulatorConfig(error_style=ErrorStyle(style))
    async with (
        Simulator(config) as sim,
        AsyncOpenAI(base_url=sim.base_url, api_key="k", max_retries=0) as client,
    ):
        with pytest.raises(BadRequestError) as refused:
            await ask(client, "m")

    assert refused.value.response.json() == body


async def test_limits_are_told_where_they_are_kept_to() -> None:
    """By the headers that xAI has; without limits there are none."""
    expected: dict[SimulatorConfig, dict[str, str]] = {
        SimulatorConfig(): {},
        SimulatorConfig(requests_per_second=5): {"limit-requests": "300"},
        SimulatorConfig(published_limits=True): {
            "limit-requests": "1800",
            "limit-tokens": "10000000",
        },
    }
    for config, told in expected.items():
        async with (
            Simulator(config) as sim,
            AsyncOpenAI(base_url=sim.base_url, api_key="k", max_retries=0) as client,
        ):
            reply = await client.chat.completions.with_raw_response.create(
                model="grok-4.3", messages=[{"role": "user", "content": "hi"}]
            )
        prefix = "x-ratelimit-"
        found = {k.removeprefix(prefix): v for k, v in reply.headers.items() if prefix in k}
        assert {k: v for k, v in found.items() if "limit-" in k} == told


async def test_rate_limits_can_be_switched_on() -> None:
    """The third request of a key within a second gets the 429 with the em dash."""
    async with (
        Simulator(SimulatorConfig(requests_per_second=2)) as sim,
        AsyncOpenAI(base_url=sim.base_url, api_key="k", max_retries=0) as client,
        AsyncOpenAI(base_url=sim.base_url, api_key="other", max_retries=0) as other,
    ):
        raw = client.chat.completions.with_raw_response
        for _ in range(2):
            await raw.create(model="grok-4.3", messages=[{"role": "user", "content": "hi"}])
        with pytest.raises(Exception, match="429") as limited:
            await raw.create(model="grok-4.3", messages=[{"role": "user", "content": "hi"}])
        await ask(other)

    assert "rate limit is \u2014 Requests per Second (actual/limit): 2/2." in str(
        getattr(limited.value, "response", limited.value).text
    )


@pytest.mark.parametrize(
    ("method", "path", "status", "content"),
    [
        ("GET", "/v1/models", 200, b'"id":"grok-4.3","created":'),
        ("GET", "/v1/models/grok-4", 200, b'"id":"grok-4.3"'),
        ("GET", "/v1/models/nope", 404, b""),
        ("GET", "/v1/language-models", 200, b'"prompt_text_token_price":12500,'),
        ("GET", "/v1/language-models/grok-4", 200, b'"aliases":["grok-3","grok-4",'),
        ("GET", "/v1/language-models/grok-build-0.1", 404, b""),
        ("GET", "/v1/api-key", 200, b'"redacted_api_key"'),
        ("GET", "/v1/chat/completions", 405, b""),
        ("POST", "/v1/models", 405, b""),
        ("GET", "/v1/nothing", 404, b""),
        ("GET", "/", 404, b""),
        ("GET", "/v1/chat/deferred-completion/x", 404, b"not found"),
    ],
)
async def test_other_routes_answer(
    send, method: str, path: str, status: int, content: bytes
) -> None:
    """Lists, single resources, and what is not there."""
    reply = await send(method, path, authorization=AUTHORIZATION)

    assert reply.status == status
    assert content in reply.body


async def test_a_deferred_answer_is_given_out_once(post, send, sim: Simulator) -> None:
    """202 until it is ready, then the answer, then nothing more; its usage counts once."""
    asked = await post(
        sim="pace;ttft_ms=30,itl_ms=0", stream=False, stream_options=None, deferred=True
    )
    path = f"/v1/chat/deferred-completion/{asked.json['request_id']}"
    early = await send("GET", path, authorization=AUTHORIZATION)

    async def fetched():
        reply = await send("GET", path, authorization=AUTHORIZATION)
        return reply if reply.status != 202 else None

    answer = await wait_until(fetched, "the deferred answer")
    again = await send("GET", path, authorization=AUTHORIZATION)

    assert (early.status, early.body) == (202, b"")
    assert b'"object":"chat.completion"' in answer.body
    assert again.status == 404
    assert sim.ledger.summary().overall.total_tokens == answer.json["usage"]["total_tokens"]


async def test_connections_are_kept_and_requests_may_be_sent_ahead(sim: Simulator) -> None:
    """Two requests in one segment are answered one after the other on the same connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
    writer.write(b"GET /v1/api-key HTTP/1.1\r\nauthorization: Bearer k\r\n\r\n" * 2)
    for _ in range(2):
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(re.findall(rb"content-length: (\d+)", head)[0]))
    writer.write(b"nonsense\r\n\r\n")
    rest = await reader.read(-1)
    writer.close()
    await writer.wait_closed()

    assert rest.startswith(b"HTTP/1.1 400 ")
    assert len(sim.ledger) == 2


async def test_paced_answers_take_their_time() -> None:
    """With exact times, an answer takes as long as its tokens, streamed or not."""
    pacing = Pacing(ttft_ms=40, itl_ms=10)
    async with Simulator(SimulatorConfig(pacing=pacing)) as sim:
        async with AsyncOpenAI(base_url=sim.base_url, api_key="k", max_retries=0) as client:
            await ask(client, "grok-4.3@chunks=5")
            stream = await ask(
                client,
                "grok-4.3@chunks=5",
                stream=True,
            )
            async for _ in stream:
                pass
        body, streamed = sim.ledger.entries()

    assert body.duration_ms is not None
    assert body.duration_ms >= 79
    assert streamed.duration_ms is not None
    assert streamed.duration_ms >= 79


async def test_a_paced_event_does_not_wait_for_the_next() -> None:
    """The first text is read while the second is an hour away."""
    pacing = Pacing(ttft_ms=0, itl_ms=3_600_000)
    async with (
        Simulator(SimulatorConfig(pacing=pacing)) as sim,
        AsyncOpenAI(base_url=sim.base_url, api_key="k", max_retries=0) as client,
    ):
        stream = await ask(
            client,
            "grok-4.3@chunks=5",
            stream=True,
        )
        first = await anext(stream)
        await stream.close()

    assert first.choices[0].delta.content


async def test_a_slow_reader_slows_the_simulator_down(sim: Simulator) -> None:
    """A client that does not read makes the answer wait instead of filling memory."""
    reader, writer = await asyncio.open_connection("127.0.0.1", sim.port, limit=1024)
    body = (
        b'{"model":"grok-4.3@tiny-chunks","stream":true,"messages":[{"role":"user","content":"a"}]}'
    )
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nauthorization: Bearer k\r\n"
        b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    entry = await wait_until(
        lambda: next((e for e in sim.ledger.entries() if e.bytes_sent), None), "the first bytes"
    )
    held_back = entry.outcome, entry.tokens_streamed
    tail = b""
    while data := await reader.read(1 << 20):
        tail = (tail + data)[-100:]
    writer.close()
    await writer.wait_closed()

    assert held_back[0] == "open"
    assert held_back[1] < 100_000
    assert entry.tokens_streamed == 100_000
    assert tail.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
