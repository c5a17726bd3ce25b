"""The simulator's `/v1/responses`: bytes, events, usage, and that the SDK reads it."""

from typing import Any

import msgspec
import pytest
from openai import AsyncOpenAI

from tests.integration.simulator.conftest import Reply
from tests.integration.simulator.response_rules import check_stream, check_usage
from turnline.ops.simulator import Profile, Simulator, SimulatorConfig

ADD: Any = {
    "type": "function",
    "name": "add",
    "description": "Add two numbers",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
}
ENCRYPTED = "reasoning.encrypted_content"
PLAIN_EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.reasoning_summary_part.added",
    "response.reasoning_summary_text.delta",
    "response.reasoning_summary_text.done",
    "response.reasoning_summary_part.done",
    "response.output_item.done",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]
CALL_EVENTS = [
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
]


def events_of(reply: Reply) -> list[dict[str, Any]]:
    return [msgspec.json.decode(event) for event in reply.events]


def types_of(reply: Reply) -> list[str]:
    """Types of the events; deltas in a row count once."""
    types = [event["type"] for event in events_of(reply)]
    return [
        type_
        for before, type_ in zip(["", *types], types, strict=False)
        if before != type_ or not type_.endswith(".delta")
    ]


async def test_a_plain_answer_has_the_recorded_events(respond) -> None:
    """Event lines equal the types; nothing follows the last event."""
    reply = await respond("Hello", include=[ENCRYPTED])
    response = check_stream(events_of(reply))

    assert types_of(reply) == PLAIN_EVENTS
    lines = [line for line in reply.body.decode().splitlines() if line.startswith("event: ")]
    assert [line.removeprefix("event: ") for line in lines] == [
        event["type"] for event in events_of(reply)
    ]
    assert all(event.startswith(b'{"sequence_number":') for event in reply.events)
    assert reply.body.endswith(b"}\n\n")
    assert reply.headers["content-type"] == "text/event-stream"
    assert not any(name.startswith("x-metrics") for name in reply.headers)
    assert (response["temperature"], response["top_p"]) == (0.699999988079071, 0.949999988079071)
    assert response["reasoning"] == {"effort": None, "summary": None}


async def test_a_whole_answer_is_the_same_object(respond) -> None:
    """Only what is told of the request differs, as in recordings."""
    streamed = events_of(await respond("Hello", include=[ENCRYPTED]))[-1]["response"]
    whole = (await respond("Hello", include=[ENCRYPTED], stream=False)).json

    check_usage(whole)
    assert list(whole) == list(streamed)
    assert whole["reasoning"] == {"effort": "low", "summary": "detailed"}
    assert (whole["temperature"], whole["top_p"]) == (0.7, 0.95)
    assert whole["usage"] == streamed["usage"]
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message"]
    assert whole["output"][1]["content"] == streamed["output"][1]["content"]


async def test_calls_come_whole_one_after_the_other(respond) -> None:
    """One delta each; all ids of a response are made of the same parts."""
    reply = await respond("Add", sim="tools", tools=[ADD])
    events = events_of(reply)
    response = check_stream(events)
    calls = [item for item in response["output"] if item["type"] == "function_call"]

    assert types_of(reply)[-9:-1] == CALL_EVENTS * 2
    assert [call["id"] for call in calls] == [f"fc_{response['id']}_{n}" for n in (0, 1)]
    assert [call["call_id"][-2:] for call in calls] == ["-0", "-1"]
    assert len({call["call_id"][:-2] for call in calls}) == 1
    assert response["status"] == "completed"


async def test_the_sdk_reads_it(sim: Simulator) -> None:
    """Streams and whole answers, calls, stored responses, compaction."""
    async with AsyncOpenAI(base_url=sim.base_url, api_key="xai-test", max_retries=0) as client:
        stream = await client.responses.create(model="grok-4.3", input="Hello", stream=True)
        streamed = [event async for event in stream][-1].response
        stored = await client.responses.retrieve(streamed.id)
        whole = await client.responses.create(
            model="grok-4.3", input="Add", tools=[ADD], tool_choice="required"
        )
        compacted = await client.responses.compact(model="grok-4.3", input="Hello")

    assert streamed.output_text == stored.output_text != ""
    assert [item.type for item in whole.output] == ["reasoning", "function_call"]
    assert compacted.output[0].type == "compaction"


@pytest.mark.parametrize("profile", [Profile.AUG2026, Profile.OCT2026, Profile.OCT2025])
async def test_each_period_keeps_the_rules(profile: Profile) -> None:
    """What differs are ids, keys and the form of summaries."""
    async with (
        Simulator(SimulatorConfig(profile=profile)) as sim,
        AsyncOpenAI(base_url=sim.base_url, api_key="xai-test") as client,
    ):
        raw = await client.responses.with_raw_response.create(
            model="grok-4-fast-reasoning", input="Hello", stream=True
        )
        response = check_stream([event.to_dict() async for event in raw.parse()])

    assert response["id"].endswith("_us-east-1") is (profile is Profile.OCT2025)
    assert ("cost_in_usd_ticks" in response["usage"]) is (profile is not Profile.OCT2025)
    assert (raw.headers["x-request-id"] == response["id"]) is (profile is Profile.OCT2026)
    assert ("\n\n" in response["output"][0]["summary"][0]["text"]) is (profile is Profile.OCT2026)
