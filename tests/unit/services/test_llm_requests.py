"""What a request holds: parameters, tools, and nothing that the environment slips in."""

import inspect
import logging
import timeit

import aiohttp
import httpx2
import msgspec
import openai
import pytest
from aiohttp.client_proto import ResponseHandler
from openai import AsyncOpenAI

from turnline.worker.pipeline.aggregators import (
    LLMAssistantAggregatorParams,
    LLMUserAggregatorParams,
)
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.pipeline.frames import LLMUpdateSettingsFrame
from turnline.worker.pipeline.processor import DOWNSTREAM
from turnline.worker.pipeline.tool_schemas import NOT_GIVEN, FunctionSchema, ToolsSchema
from turnline.worker.services.grok.llm import GrokContextAggregatorPair, GrokLLMService
from turnline.worker.services.openai.chat_request import chat_body
from turnline.worker.services.openai.llm import OpenAILLMService, create_client
from turnline.worker.services.openai.sdk_client import CUSTOM_HEADERS, has_transport

Params = OpenAILLMService.InputParams
TOOLS = ToolsSchema([FunctionSchema("f", "does f", {"a": {"type": "integer"}}, ["a"])])


@pytest.fixture
async def client():
    """A client that is never used for a request."""
    made = create_client("xai-test", "http://127.0.0.1:9/v1")
    yield made
    await made.close()


def request(service: OpenAILLMService, context: OpenAILLMContext | None = None) -> dict:
    body = chat_body(
        context or OpenAILLMContext(), service._model, service._settings, service._remove_refused
    )
    return msgspec.json.decode(body)


ALL = {
    "temperature": 0.5,
    "top_p": 0.9,
    "seed": 7,
    "max_tokens": 5,
    "max_completion_tokens": 6,
    "frequency_penalty": 1.0,
    "presence_penalty": -1.0,
    "top_k": 3,
    "extra": {"reasoning_effort": "low", "temperature": 0.1},
}


@pytest.mark.parametrize("service_class", [OpenAILLMService, GrokLLMService])
async def test_every_parameter_is_sent_but_top_k_and_extra_wins(
    client: AsyncOpenAI, service_class: type[OpenAILLMService]
) -> None:
    """Everything is sent but top_k, and extra wins; also by Grok's service with its own default."""
    model = "grok-3-beta"
    service = service_class(api_key="k", client=client, model=model, params=Params(**ALL))

    sent = {k: v for k, v in ALL.items() if k not in {"top_k", "extra"}}
    assert request(service) == {
        "messages": [],
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        **sent,
        "reasoning_effort": "low",
        "temperature": 0.1,
    }


async def test_none_is_sent_as_null_and_what_was_not_given_is_left_out(client: AsyncOpenAI) -> None:
    """An explicit None is sent as null; what was not given is left out."""
    params = Params(temperature=None, top_p=openai.NOT_GIVEN)  # type: ignore[arg-type]
    service = GrokLLMService(api_key="k", client=client, params=params)

    body = request(service)

    assert body["temperature"] is None
    assert "top_p" not in body


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 2.1},
        {"temperature": -0.1},
        {"top_p": 1.1},
        {"top_p": -0.1},
        {"seed": -1},
        {"top_k": -1},
        {"max_tokens": 0},
        {"max_completion_tokens": 0},
        {"frequency_penalty": 2.5},
        {"frequency_penalty": -2.5},
        {"presence_penalty": 2.5},
        {"presence_penalty": -2.5},
        {"temperature": "hot"},
        {"temperature": float("nan")},
        {"max_tokens": 1.5},
        {"seed": True},
    ],
)
def test_a_value_out_of_range_is_refused_by_name(wrong: dict[str, object]) -> None:
    """A value out of its range, or of another type, is refused by name."""
    (name,) = wrong

    with pytest.raises(ValueError, match=name):
        Params(**wrong)  # type: ignore[arg-type]


async def test_tools_are_sent_in_openais_shape_and_a_choice_only_with_them(
    client: AsyncOpenAI,
) -> None:
    """No tools, no key; a schema becomes OpenAI's list; a choice goes along with tools only."""
    service = GrokLLMService(api_key="k", client=client)
    context = OpenAILLMContext(tools=NOT_GIVEN, tool_choice="auto")
    assert not {"tools", "tool_choice"} & request(service, context).keys()

    context.set_tools([])
    assert not {"tools", "tool_choice"} & request(service, context).keys()

    context.set_tools(TOOLS)
    body = request(service, context)
    assert body["tools"] == TOOLS.to_openai()
    assert body["tool_choice"] == "auto"


async def test_settings_hold_from_the_next_request_on(
    client: AsyncOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    """Settings hold from the next request on; an unknown one is only warned about."""
    service = GrokLLMService(api_key="k", client=client)
    frame = LLMUpdateSettingsFrame({"temperature": 0.9, "model": "grok-4", "bogus": 1})

    with caplog.at_level(logging.WARNING):
        await service.process_frame(frame, DOWNSTREAM)

    body = request(service)
    assert (body["temperature"], body["model"], service.model_name) == (0.9, "grok-4", "grok-4")
    assert "bogus" not in body
    assert [getattr(record, "setting", None) for record in caplog.records] == ["bogus"]


async def test_an_own_create_client_is_called_once_with_key_and_address(
    client: AsyncOpenAI,
) -> None:
    """An override is called once, in the constructor, with key and address."""
    made: list[dict[str, object]] = []

    class Mine(GrokLLMService):
        def create_client(self, api_key=None, base_url=None, **kwargs):
            made.append({"api_key": api_key, "base_url": base_url, **kwargs})
            return client

    Mine(
        api_key="k", base_url="http://127.0.0.1:9/v1", organization="o", default_headers={"a": "b"}
    )

    assert made == [
        {
            "api_key": "k",
            "base_url": "http://127.0.0.1:9/v1",
            "organization": "o",
            "project": None,
            "default_headers": {"a": "b"},
        }
    ]


@pytest.mark.parametrize("api_key", [None, ""])
async def test_no_key_is_looked_up_elsewhere(
    api_key: str | None, client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a key there is an error, whatever keys lie about for other providers."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("XAI_API_KEY", "xai-other")

    with pytest.raises(ValueError, match="api_key"):
        GrokLLMService(api_key=api_key)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="api_key"):
        GrokLLMService(api_key=api_key, client=client)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="api_key"):
        create_client(api_key)
    with pytest.raises(TypeError):
        GrokLLMService()  # type: ignore[call-arg]


async def test_nothing_of_another_provider_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's environment variables do not reach the client."""
    for name in ("API_KEY", "ORG_ID", "PROJECT_ID", "ADMIN_KEY", "BASE_URL", "WEBHOOK_SECRET"):
        monkeypatch.setenv(f"OPENAI_{name}", "http://other")
    monkeypatch.setenv(
        "OPENAI_CUSTOM_HEADERS", "x-other: http://other\nauthorization: http://other"
    )

    client = create_client("xai-test", "http://127.0.0.1:9/v1", default_headers={"x-own": "1"})
    try:
        headers = {k: v for k, v in client.default_headers.items() if isinstance(v, str)}

        assert "http://other" not in f"{headers} {client.auth_headers} {client.base_url}"
        assert client.auth_headers == {"Authorization": "Bearer xai-test"}
        assert headers["x-own"] == "1"
        assert (client.organization, client.project, client.max_retries) == (None, None, 0)
    finally:
        await client.close()


REFUSED = [
    ("grok-4.7", {"stop": ["x"], "reasoning_effort": "xhigh"}, {"reasoning_effort": "xhigh"}),
    ("grok-4.7", {"reasoning_effort": "none"}, {"reasoning_effort": "low"}),
    ("grok-4.6", {"stop": ["x"]}, {}),
    ("grok-4.5", {"reasoning_effort": "xhigh"}, {"reasoning_effort": "high"}),
    ("grok-4.3", {"reasoning_effort": "xhigh"}, {"reasoning_effort": "high"}),
    ("grok-4.5", {"reasoning_effort": "new"}, {}),
    ("grok-4.5", {"reasoning_effort": "high"}, {"reasoning_effort": "high"}),
    ("grok-4.3", {"stop": ["x"], "reasoning_effort": "none"}, None),
    ("grok-4.20-0309-reasoning", {"stop": ["x"], "reasoning_effort": "low"}, {"stop": ["x"]}),
    ("grok-4.20-multi-agent-0309", {"reasoning_effort": "xhigh"}, None),
    ("grok-build-0.1", {"reasoning_effort": "low"}, {}),
    ("grok-code-fast-1", {"reasoning_effort": "low"}, {}),
    ("grok-4", {"reasoning_effort": "xhigh"}, {"reasoning_effort": "high"}),
    ("grok-3", {"presence_penalty": 0.0, "seed": 1}, {"seed": 1}),
    ("grok-9", {"presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}}, {}),
    ("grok-9", {"reasoning_effort": "new", "stop": ["x"]}, None),
    (
        "grok-9",
        {"search_parameters": {}, "tool_choice": "auto", "temperature": 1},
        {"temperature": 1},
    ),
    ("grok-3-beta", {"presence_penalty": 1, "stop": ["x"]}, None),
]


@pytest.mark.parametrize(("model", "extra", "sent"), REFUSED)
async def test_grok_is_not_sent_what_it_refuses(
    client: AsyncOpenAI, model: str, extra: dict[str, object], sent: dict[str, object] | None
) -> None:
    """Each model gets what it takes; an unknown one all but what every model refuses."""
    service = GrokLLMService(api_key="k", client=client, model=model, params=Params(extra=extra))

    body = request(service)

    for name in ("messages", "model", "stream", "stream_options"):
        del body[name]
    assert body == (extra if sent is None else sent)


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        (
            {"role": "assistant", "tool_calls": [{"id": "c"}]},
            {"role": "assistant", "tool_calls": [{"id": "c"}], "content": " "},
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": []},
            {"role": "assistant", "content": " ", "tool_calls": []},
        ),
        (
            {"role": "assistant", "content": "a", "name": "assistant"},
            {"role": "assistant", "content": "a"},
        ),
        (
            {"role": "user", "content": "ü", "name": "Ann"},
            {"role": "user", "content": "ü", "name": "Ann"},
        ),
    ],
)
async def test_messages_have_the_form_that_grok_takes(
    client: AsyncOpenAI, message: dict[str, object], sent: dict[str, object]
) -> None:
    """No name but a user's, no message without content; what is committed is what was sent."""
    service = GrokLLMService(api_key="k", client=client)
    context = OpenAILLMContext([message])
    service.create_context_aggregator(context)

    body = chat_body(context, service._model, service._settings, service._remove_refused)

    assert msgspec.json.decode(body)["messages"] == [sent]
    assert context.encoded_messages()[0] in body
    assert context.messages == [message]


async def test_pairs_share_a_context_and_nothing_else(client: AsyncOpenAI) -> None:
    """Both aggregators work on one context; default parameters are fresh for each pair."""
    service = GrokLLMService(api_key="k", client=client)
    context = OpenAILLMContext()

    pair = service.create_context_aggregator(context)
    other = service.create_context_aggregator(OpenAILLMContext())

    assert isinstance(pair, GrokContextAggregatorPair)
    assert pair.user().context is pair.assistant().context is context
    assert pair.user()._params is not other.user()._params
    assert pair.user()._params == LLMUserAggregatorParams(aggregation_timeout=0.5)
    assert pair.assistant()._params == LLMAssistantAggregatorParams(expect_stripped_words=True)


async def test_name_model_and_metrics_are_as_the_seed_has_them(client: AsyncOpenAI) -> None:
    """Name, model and metrics as the seed has them."""
    service = GrokLLMService(api_key="k", client=client)

    assert (service.model_name, service.can_generate_metrics()) == ("grok-3-beta", True)
    service.set_model_name("grok-4.3")
    assert service.model_name == "grok-4.3"


async def test_a_service_per_turn_is_cheap(client: AsyncOpenAI) -> None:
    """Building service and pair around a shared client costs microseconds."""

    def build() -> None:
        service = GrokLLMService(api_key="k", client=client, extra_headers={"x": "y"})
        service.create_context_aggregator(OpenAILLMContext())

    cost_s = min(timeit.repeat(build, number=200, repeat=5)) / 200

    assert cost_s < 200e-6, f"{cost_s * 1e6:.0f} us"


async def test_the_private_parts_of_the_sdk_that_are_used_exist() -> None:
    """A new release that renames one is found here, not by a slower path or a leaked header."""
    client = create_client("k", "http://127.0.0.1:9/v1", default_headers={"a": "b"})
    try:
        assert has_transport(client)
        assert vars(AsyncOpenAI(api_key="k"))[CUSTOM_HEADERS] == {}
        assert client.default_headers["a"] == "b"
    finally:
        await client.close()


async def test_without_the_private_transport_the_sdk_makes_the_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is the plain slow path, and the same as for a client of another class."""
    service = GrokLLMService(api_key="k")
    try:
        assert not service._uses_sdk()
        monkeypatch.setattr(
            "turnline.worker.services.openai.sdk_client.TRANSPORT_FOR_URL", "_renamed"
        )
        assert service._uses_sdk()
    finally:
        await service.close()


def test_the_private_parts_of_aiohttp_and_httpx_that_are_used_exist() -> None:
    """Without them connections have no limits around a body, and a dead one is found by time."""
    assert "self._factory" in inspect.getsource(aiohttp.BaseConnector.__init__)
    for name in ("_init_transport", "_init_proxy_transport"):
        assert callable(getattr(httpx2.AsyncClient, name))
    for name in ("set_response_params", "data_received", "feed_data", "set_exception"):
        assert callable(getattr(ResponseHandler, name))
    assert isinstance(inspect.getattr_static(aiohttp.ClientResponse, "connection"), property)
