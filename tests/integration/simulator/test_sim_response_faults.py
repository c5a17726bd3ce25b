"""Faults of `/v1/responses`: its events, its ends, and those that both wires have."""

import contextlib
import itertools
import random
from typing import Any

import msgspec
import pytest
from openai import AsyncOpenAI

from tests.integration.simulator.response_rules import check_stream, check_usage
from tests.integration.simulator.test_sim_ledger_and_faults import NEVER_ENDS
from tests.integration.simulator.test_sim_responses import ADD, ENCRYPTED, events_of, types_of
from tests.support.wait import wait_until
from turnline.ops.simulator import Simulator
from turnline.ops.simulator.faults.catalogue import GROUPS
from turnline.ops.simulator.faults.stream_faults import STREAM
from turnline.ops.simulator.responses.odd_events import SHAPES

Json = dict[str, Any]
CHAT_ONLY = {"bent-choices", "usage-before-finish", "two-usages", "decreasing-usage"}
HOSTED = [
    {"type": "web_search"},
    {"type": "x_search"},
    {"type": "code_interpreter"},
    {"type": "file_search", "vector_store_ids": ["collection"]},
    {"type": "mcp", "server_label": "docs", "server_url": "https://example.com/mcp"},
]


async def faulty(respond: Any, sim: str, **body: Any) -> list[Json]:
    """Events of a stream with a fault, those that are JSON objects."""
    reply = await respond("Hello there", sim=sim, include=[ENCRYPTED], **body)
    found: list[Json] = []
    for event in reply.events:
        with contextlib.suppress(msgspec.DecodeError):
            found.append(msgspec.json.decode(event, type=dict[str, Any]))
    return found


# --- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "kinds", "reason"),
    [
        ("length-reasoning", ["reasoning"], "max_output_tokens"),
        ("length", ["reasoning", "message"], "max_output_tokens"),
        ("finish=max_time_limit", ["reasoning", "message"], "max_time_limit"),
        ("content-filter", ["reasoning"], "content_filter"),
        ("chunks=10|incomplete;at=tokens:4", ["message"], "max_output_tokens"),
        ("incomplete;at=events:3", ["reasoning"], "max_output_tokens"),
        ("tool-split|incomplete;at=events:23,reason=max_time_limit", ["reasoning", "function_call"],
         "max_time_limit"),
    ],
)  # fmt: skip
async def test_incomplete_responses(respond, wish: str, kinds: list[str], reason: str) -> None:
    """With reasoning only, half a text, half of the arguments."""
    given = {"tools": [ADD]} if wish.startswith("tool") else {}
    events = await faulty(respond, wish, **given)
    response = events[-1]["response"]

    assert events[-1]["type"] == "response.incomplete"
    assert (response["status"], response["incomplete_details"]) == (
        "incomplete",
        {"reason": reason},
    )
    assert [item["type"] for item in response["output"]] == kinds
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    if "reasoning" not in kinds[-1:]:
        assert response["output"][-1]["status"] == "incomplete"


async def test_half_of_the_arguments_is_half(respond) -> None:
    """An item that is cut off is told as far as it came."""
    arguments = "%7B%22text%22%3A%22long enough to be cut into pieces%22%7D"
    sim = f"tool-split;arguments={arguments}|reasoning;tokens=0|incomplete;at=events:5"
    response = (await faulty(respond, sim, tools=[ADD]))[-1]["response"]

    assert response["output"][0]["arguments"] == '{"text":"long en'


@pytest.mark.parametrize(("given", "error"), [("", True), (";error=0", False)])
async def test_failed_responses(respond, sim: Simulator, given: str, error: bool) -> None:
    """The usage is never told; the ledger knows."""
    events = await faulty(respond, f"failed{given}")
    response = events[-1]["response"]

    assert (events[-1]["type"], response["status"]) == ("response.failed", "failed")
    assert (response["error"] is not None, response["usage"]) == (error, None)
    assert sim.ledger.summary().overall.unreported == 1
    assert (await respond("Hi", sim="finish=failed", stream=False)).json["status"] == "failed"


@pytest.mark.parametrize("shape", ["flat", "nested", "untyped"])
@pytest.mark.parametrize("at", ["after_headers", "tokens:2", "before_finish"])
async def test_error_events(respond, shape: str, at: str) -> None:
    """Before anything, in the middle, behind the last item."""
    events = await faulty(respond, f"error-event;shape={shape},at={at}")

    assert events[-1].get("type") == (None if shape == "untyped" else "error")
    assert not any(event.get("type") == "response.completed" for event in events)
    assert (len(events) == 1) is (at == "after_headers")


@pytest.mark.parametrize("events", [*range(0, 37, 3), 37])
async def test_a_stream_can_end_behind_any_event(respond, sim: Simulator, events: int) -> None:
    """So early that nothing was said, or so late that only the end is missing."""
    reply = await respond("Hello", sim=f"chunks=30|eof;at=events:{events}")
    (entry,) = sim.ledger.entries()

    assert len(reply.events) == events
    assert (entry.outcome, entry.finished, entry.usage_reported) == ("cut", False, False)


# --- events --------------------------------------------------------------------------------------


async def test_terminals_that_tell_another_story(respond) -> None:
    """The items before them are right."""
    for shape, expected in (("empty", []), ("null", None), ("missing", "missing")):
        events = await faulty(respond, f"terminal-output;shape={shape}")
        assert events[-1]["response"].get("output", "missing") == expected
    other = await faulty(respond, "terminal-output;shape=other")
    assert other[-1]["response"]["output"][1]["content"][0]["text"] == "Another text."
    assert other[-2]["item"]["content"][0]["text"] != "Another text."


async def test_usage_that_tells_another_story(respond) -> None:
    """Null, absent, or with the reasoning outside."""
    right = (await faulty(respond, ""))[-1]["response"]["usage"]
    reasoning = right["output_tokens_details"]["reasoning_tokens"]

    assert (await faulty(respond, "usage-null"))[-1]["response"]["usage"] is None
    assert "usage" not in (await faulty(respond, "usage-missing"))[-1]["response"]
    chat = (await faulty(respond, "usage-chat"))[-1]["response"]["usage"]
    assert chat["output_tokens"] == right["output_tokens"] - reasoning
    assert chat["total_tokens"] == right["total_tokens"]


async def test_items_and_events_out_of_order(respond) -> None:
    """Same ids, turns taken, events left out or late."""
    same = await faulty(respond, "same-ids")
    assert len({event["item_id"] for event in same if "item_id" in event}) == 1
    mixed = await faulty(respond, "tools|interleaved", tools=[ADD])
    indexes = [event["output_index"] for event in mixed if "output_index" in event]
    assert indexes[-8:] == [1, 2] * 4
    assert check_stream(mixed)
    done = await faulty(respond, "done-only")
    assert not any(event["type"].endswith(".delta") for event in done)
    deltas = [event["type"] for event in await faulty(respond, "deltas-only")]
    assert not any(type_.endswith(".done") for type_ in deltas)
    late = [event["type"] for event in await faulty(respond, "late-added")]
    first = late.index("response.output_item.added")
    assert late[first - 1] == "response.reasoning_summary_text.delta"


async def test_numbers_lines_and_strangers(respond) -> None:
    """Sequence numbers, `event:` lines, events and items that nobody knows, other ends."""
    for shape, numbers in (("gap", 10), ("repeat", 4), ("missing", None)):
        events = await faulty(respond, f"sequence;shape={shape},at=events:5")
        assert events[5].get("sequence_number") == numbers
    assert b"event: " not in (await respond("Hi", sim="no-event-line")).body
    assert (await respond("Hi", sim="event-mismatch")).body.count(b"event: message\n") > 5
    known = [event["type"] for event in await faulty(respond, "unknown-event|doom-loop")]
    assert {"response.new_thing.delta", "response.doom_loop_check"} <= set(known)
    item = (await faulty(respond, "unknown-item"))[-1]["response"]["output"][-1]
    assert item["type"] == "new_thing_call"
    assert (await respond("Hi", sim="done-marker")).body.endswith(b"}\n\ndata: [DONE]\n\n")
    assert (await faulty(respond, "response-done"))[-1]["type"] == "response.done"
    assert (await faulty(respond, "no-created"))[0]["type"] == "response.output_item.added"


async def test_reasoning_in_other_forms(respond) -> None:
    """As text, without an item, with a blob that is not there."""
    text = await faulty(respond, "reasoning-text|reasoning;tokens=5")
    assert sum(event["type"] == "response.reasoning_text.delta" for event in text) == 5
    assert check_stream(text)["output"][0]["content"][0]["type"] == "reasoning_text"
    bare = (await faulty(respond, "no-reasoning-item"))[-1]["response"]
    assert [item["type"] for item in bare["output"]] == ["message"]
    assert bare["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    for shape, blob in (("missing", "no key"), ("null", None), ("empty", "")):
        events = await faulty(respond, f"encrypted;shape={shape}")
        item = events[-1]["response"]["output"][0]
        assert item.get("encrypted_content", "no key") == blob


async def test_refusals_are_parts(respond) -> None:
    """With events of their own."""
    reply = await respond("Hi", sim="refusal")
    response = check_stream(events_of(reply))

    assert "response.refusal.delta" in types_of(reply)
    part = {"type": "refusal", "refusal": "I cannot help with that."}
    assert response["output"][-1]["content"] == [part]


# --- both wires ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("group", GROUPS)
async def test_no_scenario_breaks_this_wire(respond, group: str, stream: bool) -> None:
    """Each by its name alone; after each the simulator still answers."""

    async def answered() -> bool:
        try:
            reply = await respond("Still there?", stream=False)
        except OSError:
            return False
        return reply.json["status"] == "completed"

    for name in GROUPS[group]:
        text = f"{name};seconds=0.01" if name in NEVER_ENDS | {"refuse"} else name
        text = {"tiny-chunks": f"{name};n=100", "slow-close": f"{name};ms=5"}.get(name, text)
        with contextlib.suppress(OSError, ValueError, IndexError):
            await respond("Hi", sim=text, stream=stream, tools=[ADD, *HOSTED])
        await wait_until(answered, f"a faultless answer after {name}")


async def test_faults_of_chunks_work_on_events(respond) -> None:
    """They change what is sent."""
    for name in sorted(STREAM.keys() - CHAT_ONLY):
        whole = (await respond("Hi")).body
        reply = await respond("Hi", sim=name)
        has_another_id = b"11111111-2222" in reply.body

        assert reply.status == 200, name
        assert len(reply.body) != len(whole) or has_another_id or name == "no-done", name


async def test_no_two_scenarios_break_each_other(respond, sim: Simulator) -> None:
    """A seeded choice of pairs: what one has changed, the other leaves alone or changes too."""
    names = [*GROUPS["events"], *sorted(STREAM.keys() - CHAT_ONLY)]
    for pair in random.Random(7).sample(list(itertools.permutations(names, 2)), 120):
        reply = await respond("Hi", sim="|".join(pair), tools=[ADD])

        assert reply.status == 200 or reply.json["code"] == "simulator:bad-scenario", pair
    assert sim.ledger.summary().overall.open == 0


@pytest.mark.parametrize("end", ["", "|eof;at=before_usage", "|eof;at=before_done"])
async def test_usage_counts_as_reported_when_it_was(respond, sim: Simulator, end: str) -> None:
    """Wherever a fault lets the stream end: the ledger says what the bytes say."""
    for name in ["chunks=3", *GROUPS["events"], *sorted(STREAM.keys() - CHAT_ONLY)]:
        reply = await respond("Hello there", sim=f"{name}{end}")
        told = b'"usage":{' in reply.body

        assert sim.ledger.entries()[-1].usage_reported == told, name


async def test_faults_of_one_wire_are_refused_on_the_other(respond, post) -> None:
    """By their names, rather than doing nothing."""
    refused = [await respond("Hi", sim=name) for name in sorted(CHAT_ONLY)]
    refused.append(await post("Hi", sim="incomplete"))

    assert {reply.status for reply in refused} == {400}
    assert {reply.json["code"] for reply in refused} == {"simulator:bad-scenario"}


@pytest.mark.parametrize("shape", SHAPES)
async def test_odd_replies(respond, shape: str) -> None:
    """Each begins as a stream does, or is another thing from its first byte."""
    reply = await respond("Hi", sim=f"odd-reply;shape={shape},size=20000")

    assert reply.status == 200
    assert b"response.created" in reply.body or shape == "whole-json"
    assert b"response.completed" not in reply.body or shape in {"parts", "surrogates", "garbage"}


async def test_the_sdk_raises_for_none_of_the_ends(sim: Simulator) -> None:
    """A response that did not end well looks to its users like one that did."""
    async with AsyncOpenAI(base_url=sim.base_url, api_key="xai-test", max_retries=0) as client:
        for fault in ("eof;at=before_finish", "incomplete", "failed", "error-event", "ok-json"):
            stream = await client.responses.create(
                model="grok-4.3", input="Hi", stream=True, extra_headers={"x-sim": fault}
            )
            types = [event.type async for event in stream]
            assert "response.completed" not in types


# --- tools of the server -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Search the web for tea", "web_search_call"),
        ("What do people say on X about tea?", "custom_tool_call"),
        ("Calculate 2 to the power of 70", "code_interpreter_call"),
        ("What is in my files about tea?", "file_search_call"),
        ("Ask docs about tea", "mcp_call"),
    ],
)
async def test_tools_of_the_server_are_used_when_words_ask_for_them(
    respond, sim: Simulator, text: str, kind: str
) -> None:
    """Their items, results sealed as reasoning, price and counts."""
    reply = await respond(text, tools=HOSTED, include=[ENCRYPTED], prompt_cache_key="conv")
    response = check_stream(events_of(reply))
    kinds = [item["type"] for item in response["output"]]
    usage = response["usage"]

    assert kinds == ["reasoning", kind, "reasoning", "reasoning", "message"]
    result = response["output"][2]
    assert result["id"].startswith(f"tco_{response['id']}_call-")
    assert result["encrypted_content"].startswith(result["id"])
    assert 5_800 <= len(result["encrypted_content"]) <= 7_400
    assert usage["num_server_side_tools_used"] == 1
    assert sum(usage["server_side_tool_usage_details"].values()) == 1
    assert usage["context_details"]["input_tokens"] < usage["input_tokens"]
    again = await respond(
        [{"role": "user", "content": text}, *response["output"], {"role": "user", "content": "Ok"}],
        tools=HOSTED,
        prompt_cache_key="conv",
    )
    context = usage["context_details"]["input_tokens"] + usage["output_tokens"]
    grown = check_stream(events_of(again))["usage"]["input_tokens"] - context
    assert 0 < grown < 60  # the marker of a source is one token when it is said, and many later
    found = sim.ledger.entries()[-1].continuity
    assert (found.reply_kept, found.lost_reasoning) == (True, 0)
    assert sim.ledger.summary().overall.server_tool_calls == 1


async def test_sources_are_cited_in_the_text(respond) -> None:
    """The marker is one delta; the annotation tells where it stands."""
    reply = await respond("Search for tea", tools=[{"type": "web_search"}])
    response = check_stream(events_of(reply))
    part = response["output"][-1]["content"][0]
    marker = part["annotations"][0]

    assert len(part["annotations"]) == 2
    cited = part["text"][marker["start_index"] : marker["end_index"]]
    assert cited == f"[[1]]({marker['url']})"
    assert cited in [event.get("delta") for event in events_of(reply)]
    plain = await respond(
        "Search for tea", tools=[{"type": "web_search"}], include=["no_inline_citations"]
    )
    assert check_stream(events_of(plain))["output"][-1]["content"][0]["annotations"] == []


async def test_a_scenario_uses_tools_as_often_as_it_says(respond) -> None:
    """Those that fail cost nothing."""
    reply = await respond(
        "Hello", sim="server-tool=web_search;n=3,fail=1", tools=HOSTED, stream=False
    )
    searches = [it for it in reply.json["output"] if it["type"] == "web_search_call"]

    check_usage(reply.json)
    assert [it["status"] for it in searches] == ["failed", "completed", "completed"]
    assert reply.json["usage"]["num_server_side_tools_used"] == 2
    unasked = await respond("Hello", tools=HOSTED, stream=False)
    assert "server_side_tool_usage_details" not in unasked.json["usage"]


# --- content -------------------------------------------------------------------------------------


async def test_answers_fit_a_schema(respond) -> None:
    """The echo has no name."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = {"type": "json_schema", "name": "number", "schema": schema, "strict": True}
    response = check_stream(events_of(await respond("How many?", text={"format": form})))

    assert isinstance(msgspec.json.decode(response["output"][-1]["content"][0]["text"])["n"], int)
    assert response["text"]["format"] == {"type": "json_schema", "schema": schema}


async def test_images_count(respond) -> None:
    """In a message and in a tool's result."""
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    text = {"type": "input_text", "text": "Hello"}
    call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c"}
    used = []
    for content in ([text], [text, image]):
        items = [{"role": "user", "content": content}, call, {**output, "output": content}]
        response = check_stream(events_of(await respond(items)))
        used.append(response["usage"]["input_tokens"])

    assert used[1] - used[0] == 2 * 258


@pytest.mark.parametrize(("model", "texts"), [("grok-4.3", 1), ("grok-4.7", 0)])
async def test_a_limit_may_count_reasoning(respond, model: str, texts: int) -> None:
    """The newer models are told to; the recorded one did not."""
    events = await faulty(respond, "", model=model, max_output_tokens=3)
    response = check_stream(events)

    kinds = [item["type"] for item in response["output"]]
    assert (response["status"], kinds.count("message")) == ("incomplete", texts)
    assert response["max_output_tokens"] == 3


async def test_turns_can_have_as_many_rounds_as_a_test_needs(respond) -> None:
    """`rounds` ends the calls by themselves."""
    items: list[Json] = [{"role": "user", "content": "Add"}]
    calls = 0
    for _ in range(6):
        response = (await respond(items, sim="tools;rounds=3", tools=[ADD], stream=False)).json
        made = [it for it in response["output"] if it["type"] == "function_call"]
        items += response["output"]
        items += [
            {"type": "function_call_output", "call_id": it["call_id"], "output": "1"} for it in made
        ]
        calls += len(made)
        if not made:
            break

    assert calls == 6
