"""What `/v1/responses` refuses, with which status and words."""

from typing import Any

import httpx2
import pytest

from tests.integration.simulator.response_rules import check_stream
from tests.integration.simulator.test_sim_responses import ADD, events_of
from turnline.ops.simulator import Profile, Simulator, SimulatorConfig

USER = {"role": "user", "content": "Hello"}
CALL = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "12"}
NESTED = {"type": "function", "function": {"name": "add"}}
NO_ITEM = "data did not match any variant of untagged enum ModelInput"
NO_CHOICE = "data did not match any variant of untagged enum ModelToolChoice"


def function(schema: dict[str, Any], name: str = "add") -> dict[str, Any]:
    return {"type": "function", "name": name, "parameters": schema}


@pytest.mark.parametrize(
    ("status", "words", "body"),
    [
        (400, "Model not found: nobody", {"model": "nobody"}),
        (410, "Live search is deprecated", {"search_parameters": {}}),
        (
            400,
            "Argument not supported: instructions and previous_response_id together",
            {"instructions": "Be brief", "previous_response_id": "x"},
        ),
        (400, "does not support `reasoning_effort` value `none`", {
            "model": "grok-4.7", "reasoning": {"effort": "none"}}),
        (400, "does not support `reasoning_effort` value `xhigh`", {
            "model": "grok-4.3", "reasoning": {"effort": "xhigh"}}),
        (400, "does not support parameter reasoningEffort", {
            "model": "grok-4.20", "reasoning": {"effort": "low"}}),
        (400, "does not support parameter presencePenalty", {"presence_penalty": 0.5}),
        (400, "no tools were specified", {"tool_choice": "auto"}),
        (400, "must be an object", {"tools": [function({"type": "string"})]}),
        (400, "Duplicate tool name: add", {"tools": [ADD, ADD]}),
        (400, "Duplicate tool name", {"tools": [function({}, "web_search")]}),
        (400, "A maximum of 128 tools", {"tools": [function({}, f"t{n}") for n in range(129)]}),
        (400, "Only one of", {"tools": [
            {"type": "web_search", "allowed_domains": ["a"], "excluded_domains": ["b"]}]}),
        (400, "Argument not supported: container", {
            "tools": [{"type": "code_interpreter", "container": {}}]}),
        (400, "at least one content element", {"input": [USER, {
            "role": "assistant", "content": ""}]}),
        (400, "at least one content element", {"input": [{"role": "user", "content": []}]}),
        (400, "Input cannot be empty", {"input": []}),
        (400, "No tool output found for function call c1", {"input": [USER, CALL]}),
        (400, "No tool call found for function call output with call_id c1", {
            "input": [USER, RESULT]}),
        (400, "are not a valid JSON string", {
            "input": [USER, {**CALL, "arguments": "{"}, RESULT]}),
        (400, "Could not decode the compaction blob", {
            "input": [USER, {"type": "reasoning", "encrypted_content": "x"}]}),
        (400, "maximum prompt length is 1000000 but the request contains", {
            "input": "word " * 1_000_000}),
        (400, "max_output_tokens must be at least 1", {"max_output_tokens": 0}),
        (404, "Response with id=x not found", {"previous_response_id": "x"}),
    ],
)  # fmt: skip
async def test_refusals_say_why(respond, status: int, words: str, body: Any) -> None:
    """In a flat body, without a request id."""
    given = body.pop("input", "Hello")
    reply = await respond(given, **body)

    assert (reply.status, "error" in reply.json) == (status, True)
    assert words in str(reply.json["error"])
    assert "x-request-id" not in reply.headers
    assert not any(name.startswith("x-ratelimit") for name in reply.headers)


@pytest.mark.parametrize(
    ("words", "body"),
    [
        ("tools[0]: missing field `name`", {"tools": [NESTED]}),
        ("unknown variant `shell`", {"tools": [{"type": "shell"}]}),
        (NO_CHOICE, {"tools": [ADD], "tool_choice": NESTED}),
        (NO_ITEM, {"input": [{"role": "tool", "content": "12"}]}),
        (NO_ITEM, {"input": [{"type": "reasoning"}]}),
        (NO_ITEM, {"input": [{"type": "reasoning", "summary": [], "content": None}]}),
        (NO_ITEM, {"input": [{"type": "nothing_that_exists"}]}),
        (NO_ITEM, {"input": [{"role": "user", "content": [
            {"type": "input_image", "image_url": {"url": "https://example.com/a.png"}}]}]}),
        ("Expected `array`, got `int`", {"tools": [{"type": "web_search", "allowed_domains": 7}]}),
        ("missing field `server_url`", {"tools": [{"type": "mcp", "server_label": "docs"}]}),
        ("got int - at $.input", {"input": 7}),
    ],
)  # fmt: skip
async def test_what_cannot_be_read_is_refused_in_plain_text(respond, words: str, body: Any) -> None:
    """The shapes of chat completions among them."""
    given = body.pop("input", "Hello")
    reply = await respond(given, **body)

    assert (reply.status, reply.headers["content-type"]) == (422, "text/plain; charset=utf-8")
    start = "Failed to deserialize the JSON body into the target type: "
    assert reply.body.decode().startswith(start)
    assert words in reply.body.decode()


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": ["object"]},
        {"type": "object", "properties": {"a": True}},
        {"type": "object", "properties": {"a": {"enum": []}}},
        {"type": "object", "properties": {"a": {"anyOf": []}}},
        {"type": "object", "properties": {"a": {"type": "array", "items": [{}]}}},
        {"type": "object", "properties": {"a": {"type": "array", "minContains": 1}}},
    ],
)
async def test_schemas_have_limits(respond, schema: Any) -> None:
    """Those of tools and those of answers."""
    form = {"format": {"type": "json_schema", "name": "n", "schema": schema}}
    for body in ({"tools": [function(schema)]}, {"text": form}):
        reply = await respond("Hello", **body)

        assert (reply.status, "Invalid function schema" in reply.json["error"]) == (400, True)


@pytest.mark.parametrize(
    "body",
    [
        {"metadata": {"a": "b"}, "background": True, "truncation": "auto", "nobody_knows": 1},
        {"model": "grok-4.5", "reasoning": {"effort": "xhigh"}},
        {"model": "grok-4.3", "reasoning": {"effort": "none"}},
        {"reasoning": {"summary": "auto"}, "parallel_tool_calls": False},
        {"tools": [{"type": "function", "name": "add", "strict": True}], "tool_choice": "none"},
        {"tools": [function({"anyOf": [{"type": "object"}, {"type": "object"}]})]},
        {"input": [USER, CALL, RESULT, {"role": "developer", "content": "Be brief"}]},
        {"input": [USER, {"type": "reasoning", "summary": [], "encrypted_content": None}]},
    ],
)
async def test_what_looks_odd_and_is_accepted(respond, body: Any) -> None:
    """Unknown and unsupported keys, an effort that is another's, a blob that is null."""
    given = body.pop("input", "Hello")

    assert check_stream(events_of(await respond(given, **body)))["status"] == "completed"


async def test_there_was_no_such_route_in_2024() -> None:
    """As for any other path that nobody serves."""
    config = SimulatorConfig(profile=Profile.LEGACY2024)
    async with Simulator(config) as sim, httpx2.AsyncClient() as http:
        reply = await http.post(f"{sim.base_url}/responses", json={"input": "Hello"})

    assert (reply.status_code, "No handler found" in reply.json()["error"]) == (404, True)
