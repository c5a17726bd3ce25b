"""Rules that every answer of `/v1/responses` keeps, as recordings of the real one do."""

from collections import Counter, defaultdict
from typing import Any

Json = dict[str, Any]
TERMINAL = {"response.completed", "response.incomplete", "response.failed"}
JOINED = {
    "response.output_text": "text",
    "response.reasoning_summary_text": "text",
    "response.reasoning_text": "text",
    "response.refusal": "refusal",
    "response.function_call_arguments": "arguments",
    "response.custom_tool_call_input": "input",
    "response.code_interpreter_call_code": "code",
    "response.mcp_call_arguments": "arguments",
}
"""By the beginning of an event's type: the key with all that its deltas have said."""
PRICES = {"grok-4.3": (12_500, 2_000, 25_000)}
"""Ticks for a token of fresh input, of cached input, of output."""
TOOL_TICKS = {
    "web_search_calls": 50_000_000,
    "x_search_calls": 50_000_000,
    "code_interpreter_calls": 50_000_000,
    "file_search_calls": 25_000_000,
}


def check_usage(response: Json) -> None:
    """The arithmetic of tokens and cost."""
    usage = response["usage"]
    given, output = usage["input_tokens"], usage["output_tokens"]
    cached = usage["input_tokens_details"]["cached_tokens"]
    assert usage["total_tokens"] == given + output
    assert usage["output_tokens_details"]["reasoning_tokens"] <= output
    assert cached <= given
    assert cached % 64 == 0
    if "cost_in_usd_ticks" in usage and response["model"] in PRICES:
        fresh_price, cached_price, output_price = PRICES[response["model"]]
        tokens = (given - cached) * fresh_price + cached * cached_price + output * output_price
        used = usage.get("server_side_tool_usage_details", {})
        tools = sum(used.get(key, 0) * ticks for key, ticks in TOOL_TICKS.items())
        assert usage["cost_in_usd_ticks"] == tokens + tools


def check_stream(events: list[Json]) -> Json:
    """Numbers, order, deltas against what is done, items against the end; returns the response."""
    types = [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert types[:2] == ["response.created", "response.in_progress"]
    assert types[-1] in TERMINAL
    assert sum(type_ in TERMINAL for type_ in types) == 1
    said, pieces = defaultdict[Any, str](str), Counter[str]()
    opened: set[int] = set()
    done: dict[int, Json] = {}
    for event in events:
        base, _, verb = event["type"].rpartition(".")
        place = base, event.get("output_index"), event.get("content_index")
        if verb == "delta":
            assert event["output_index"] in opened
            said[place] += event["delta"]
            pieces[base] += 1
        elif verb == "done" and base in JOINED:
            assert said[place] == event[JOINED[base]]
        elif event["type"] == "response.output_item.added":
            opened.add(event["output_index"])
        elif event["type"] == "response.output_item.done":
            done[event["output_index"]] = event["item"]
    response: Json = events[-1]["response"]
    assert response["output"] == [done[index] for index in sorted(done)]
    kinds = {item["type"] for item in response["output"]}
    if kinds <= {"reasoning", "message"} and pieces["response.output_text"]:
        details = response["usage"]["output_tokens_details"]
        visible = response["usage"]["output_tokens"] - details["reasoning_tokens"]
        assert pieces["response.output_text"] == visible
    check_usage(response)
    return response
