"""What `/v1/responses` remembers: reasoning, the cache, stored responses, what came back."""

from typing import Any

import msgspec
import pytest

from tests.integration.simulator.test_sim_ledger_and_faults import admin
from tests.integration.simulator.test_sim_responses import ADD, ENCRYPTED, events_of
from turnline.ops.simulator import Simulator

Json = dict[str, Any]
SYSTEM = {"role": "system", "content": "Be brief. " * 40}
QUESTION = {"role": "user", "content": "Add them all, please"}


class Chat:
    """A client that sends every item back, but for what a test takes away."""

    def __init__(self, respond: Any, key: str | None = "conv", **body: Any) -> None:
        self._respond = respond
        self._body = {"tools": [ADD], "include": [ENCRYPTED], "stream": False, **body}
        if key is not None:
            self._body["prompt_cache_key"] = key
        self.items: list[Json] = [SYSTEM, QUESTION]

    async def ask(self, sim: str = "tool;loop=1") -> Json:
        """Ask, keep what is said, and answer the calls."""
        reply = await self._respond(self.items, sim=sim, **self._body)
        assert reply.status == 200, reply.body
        response = reply.json
        self.items += response["output"]
        for item in response["output"]:
            if item["type"] == "function_call":
                self.items.append(result(item["call_id"]))
        return response


def result(call_id: str) -> Json:
    return {"type": "function_call_output", "call_id": call_id, "output": "12"}


def reasoning_of(response: Json) -> int:
    return response["usage"]["output_tokens_details"]["reasoning_tokens"]


def is_thought(item: Json) -> bool:
    return item.get("type") == "reasoning"


async def test_a_prompt_grows_by_the_whole_output(respond) -> None:
    """Reasoning that comes back counts as many tokens as it had."""
    chat = Chat(respond)
    first = (await chat.ask())["usage"]
    second = (await chat.ask())["usage"]

    grown = second["input_tokens"] - first["input_tokens"]
    assert first["output_tokens"] < grown <= first["output_tokens"] + 35


@pytest.mark.parametrize(("store", "found"), [(True, True), (True, False), (False, True)])
async def test_reasoning_without_its_blob_counts_nothing(respond, store: bool, found: bool) -> None:
    """Unless the server has stored it, and finds it by its id: which it may not."""
    chat = Chat(respond, include=[], store=store)
    first = await chat.ask()
    assert "encrypted_content" not in first["output"][0]
    second = await chat.ask(f"tool;loop=1 | reasoning-ids;found={found:d}")

    grown = second["usage"]["input_tokens"] - first["usage"]["input_tokens"]
    counts = store and found
    visible = first["usage"]["output_tokens"] - (0 if counts else reasoning_of(first))
    assert visible < grown <= visible + 35


async def test_the_ledger_sees_nothing_lost_where_nothing_is(respond, sim: Simulator) -> None:
    """Four rounds, each with its reasoning: all of it cached, nothing broken."""
    chat = Chat(respond)
    for _ in range(4):
        assert reasoning_of(await chat.ask()) > 0
    entries = sim.ledger.entries()
    totals = (await admin(sim, "GET", "/ledger?summary=1&conversation=conv"))["overall"]

    assert [entry.continuity.previous_seq for entry in entries] == [None, 1, 2, 3]
    assert [entry.continuity.tool_rounds for entry in entries] == [0, 1, 2, 3]
    assert all(entry.continuity.cached_share > 0.8 for entry in entries[1:])
    counted = ("prefix_breaks", "reply_breaks", "lost_reasoning", "punished")
    assert [totals[name] for name in counted] == [0, 0, 0, 0]


async def test_items_may_come_back_without_ids_and_status(respond, sim: Simulator) -> None:
    """As clients send them that build items from their own record of what was said."""
    chat = Chat(respond)
    for _ in range(3):
        await chat.ask("tool-with-content;loop=1")
        chat.items = [
            {key: value for key, value in item.items() if key not in {"id", "status"}}
            if item.get("role") != "assistant"
            else {"role": "assistant", "content": item["content"][0]["text"]}
            if isinstance(item["content"], list)
            else item
            for item in chat.items
        ]
    await chat.ask()

    assert sim.ledger.summary().overall.reply_breaks == 0
    assert sim.ledger.summary().overall.prefix_breaks == 0


def missing(items: list[Json]) -> None:
    """Take the last thought away."""
    items.remove(next(item for item in reversed(items) if is_thought(item)))


def changed(items: list[Json]) -> None:
    """Change its summary, which is not sealed."""
    thought = next(item for item in reversed(items) if is_thought(item))
    thought["summary"] = [{"type": "summary_text", "text": "Something else"}]


def moved(items: list[Json]) -> None:
    """Put it behind its call."""
    at = max(index for index, item in enumerate(items) if is_thought(item))
    items[at], items[at + 1] = items[at + 1], items[at]


@pytest.mark.parametrize("spoil", [missing, changed, moved])
@pytest.mark.parametrize("rounds", [1, 2, 3])
async def test_lost_reasoning_is_punished_without_an_error(
    respond, sim: Simulator, spoil: Any, rounds: int
) -> None:
    """From the third round on the model stops to reason; the cache ends at what was lost."""
    chat = Chat(respond)
    for _ in range(rounds):
        before = await chat.ask()
    spoil(chat.items)
    response = await chat.ask()
    entry = sim.ledger.entries()[-1]
    is_late = rounds >= 2

    assert (reasoning_of(response) == 0) is is_late
    assert any(map(is_thought, response["output"])) is not is_late
    assert (entry.continuity.lost_reasoning, entry.continuity.punished) == (1, is_late)
    assert (entry.continuity.reply_kept, entry.continuity.lost_items) == (False, [0])
    assert entry.continuity.prefix_kept
    cached = response["usage"]["input_tokens_details"]["cached_tokens"]
    assert cached <= before["usage"]["input_tokens"]
    assert sim.ledger.summary().overall.lost_reasoning == 1


async def test_reasoning_of_earlier_rounds_is_not_forgotten(respond, sim: Simulator) -> None:
    """What was there in one request and is gone in the next breaks the prefix too."""
    chat = Chat(respond)
    for _ in range(3):
        await chat.ask()
    chat.items = [item for item in chat.items if not is_thought(item)]
    response = await chat.ask()
    found = sim.ledger.entries()[-1].continuity

    assert (reasoning_of(response), found.lost_reasoning, found.prefix_kept) == (0, 3, False)
    kept = msgspec.json.encode([SYSTEM, QUESTION])
    assert len(kept) <= found.first_difference < len(kept) + 20


async def test_a_new_turn_starts_afresh(respond, sim: Simulator) -> None:
    """Lost reasoning of earlier turns is counted once, and the model reasons again."""
    chat = Chat(respond)
    for _ in range(3):
        await chat.ask()
    chat.items = [item for item in chat.items if not is_thought(item)]
    chat.items.append(QUESTION)

    assert reasoning_of(await chat.ask()) > 0
    assert reasoning_of(await chat.ask()) > 0
    assert [entry.continuity.punished for entry in sim.ledger.entries()] == [False] * 5


async def test_a_request_that_is_asked_again_has_lost_nothing(respond, sim: Simulator) -> None:
    """Nor has one after an answer that was cut: the client cannot have its items."""
    chat = Chat(respond)
    await chat.ask()
    items = list(chat.items)
    await chat.ask()
    chat.items = items
    await chat.ask()
    await respond(
        chat.items, sim="tool;loop=1 | eof;at=events:4", tools=[ADD], prompt_cache_key="c"
    )
    await respond(
        [*chat.items, {"role": "user", "content": "Well?"}], tools=[ADD], prompt_cache_key="c"
    )

    assert [entry.continuity.previous_seq for entry in sim.ledger.entries()] == [
        None,
        1,
        2,
        None,
        4,
    ]
    assert sim.ledger.summary().overall.reply_breaks == 0


@pytest.mark.parametrize("fault", ["failed", "finish=failed", "incomplete", "terminal-output"])
async def test_what_was_told_with_a_fault_is_not_missed(
    respond, sim: Simulator, fault: str
) -> None:
    """The client may have nothing of it, or another item than the one that was meant."""
    chat = Chat(respond, stream=True)
    about = {"tools": [ADD], "prompt_cache_key": "conv"}
    await respond(chat.items, sim=fault, **about)
    await respond([*chat.items, {"role": "user", "content": "Well?"}], **about)

    assert sim.ledger.entries()[-1].continuity.previous_seq == 1
    assert sim.ledger.summary().overall.reply_breaks == 0


@pytest.mark.parametrize("change", ["system", "tools", "order"])
async def test_what_comes_first_breaks_everything(respond, sim: Simulator, change: str) -> None:
    """Only the hidden prompt is cached then, which all users share, and tools that are the same."""
    chat = Chat(respond)
    await chat.ask()
    given: Json = {}
    if change == "system":
        chat.items[0] = {"role": "system", "content": "Be verbose"}
    elif change == "order":
        chat.items[:2] = chat.items[1::-1]
    else:
        given = {"tools": [{**ADD, "description": "Another"}]}
    body = {"tools": [ADD], "include": [ENCRYPTED], "prompt_cache_key": "conv", **given}
    reply = await respond(chat.items, **body)
    found = sim.ledger.entries()[-1].continuity

    usage = events_of(reply)[-1]["response"]["usage"]
    assert usage["input_tokens_details"]["cached_tokens"] == (128 if change == "tools" else 192)
    assert (found.prefix_kept, found.head_kept) == (change == "tools", change != "tools")
    assert sim.ledger.summary().overall.prefix_breaks == 1


async def test_without_a_key_only_the_hidden_prompt_is_cached(respond, sim: Simulator) -> None:
    """The header counts as the key in the body does."""
    chat = Chat(respond, key=None)
    await chat.ask()
    await chat.ask()
    entry = sim.ledger.entries()[-1]

    assert entry.usage.prompt_tokens_details.cached_tokens == 128
    assert entry.continuity.previous_seq is None
    for _ in range(2):
        await respond("Hello", headers={"x-grok-conv-id": "by-header"})
    assert sim.ledger.entries()[-1].continuity.previous_seq == 3


@pytest.mark.parametrize(
    ("blob", "given"),
    [
        (lambda blob: blob[:-4], {}),
        (lambda blob: "A" + blob[1:] if blob[0] != "A" else "B" + blob[1:], {}),
        (lambda blob: blob, {"key": "xai-other"}),
        (lambda blob: blob, {"model": "grok-4.5"}),
    ],
)
async def test_reasoning_that_is_not_as_given_is_refused(respond, blob: Any, given: Json) -> None:
    """Cut, changed, of another caller, for another family of models."""
    chat = Chat(respond)
    await chat.ask("")
    thought = next(filter(is_thought, chat.items))
    thought["encrypted_content"] = blob(thought["encrypted_content"])
    reply = await respond(chat.items, **given)

    assert (reply.status, reply.json["code"]) == (400, "invalid-argument")
    assert "Could not decrypt the provided encrypted_content." in str(reply.json["error"])
    assert "x-request-id" not in reply.headers


async def test_it_can_be_refused_for_good_and_stripped_once(respond) -> None:
    """`decrypt` refuses sealed reasoning, and nothing but that."""
    chat = Chat(respond)
    await chat.ask("")
    refused = await respond(chat.items, sim="decrypt")
    chat.items = [item for item in chat.items if not is_thought(item)]

    assert (refused.status, (await respond(chat.items, sim="decrypt")).status) == (400, 200)


async def test_stored_responses_can_be_continued_and_deleted(respond, send) -> None:
    """The whole history counts again; afterwards the id is unknown."""
    first = (await respond("Hello", store=True, stream=False)).json
    path, about = f"/v1/responses/{first['id']}", {"authorization": "Bearer xai-test"}
    kept = await send("GET", path, **about)
    second = await respond("And then?", previous_response_id=first["id"], store=True, stream=False)
    gone = await send("DELETE", path, **about)

    assert kept.json == first
    assert second.json["previous_response_id"] == first["id"]
    assert second.json["usage"]["input_tokens"] > first["usage"]["total_tokens"]
    assert gone.json == {"id": first["id"], "object": "response", "deleted": True}
    for again in (
        await send("GET", path, **about),
        await send("DELETE", path, **about),
        await respond("Hm?", previous_response_id=first["id"]),
    ):
        assert (again.status, again.json["error"]) == (
            404,
            f"Response with id={first['id']} not found",
        )


async def test_a_compaction_stands_for_what_was_said(respond, send) -> None:
    """It is one item, weighs little, and is refused if it was changed."""
    long = [SYSTEM, {"role": "user", "content": "word " * 2_000}]
    body = msgspec.json.encode({"model": "grok-4.3", "input": long})
    about = {"authorization": "Bearer xai-test", "content-type": "application/json"}
    compacted = (await send("POST", "/v1/responses/compact", body, **about)).json
    (item,) = compacted["output"]
    after = await respond([item, QUESTION], stream=False)
    item["encrypted_content"] = item["encrypted_content"][:-1]
    refused = await respond([item, QUESTION])

    assert compacted["object"] == "response.compaction"
    assert compacted["usage"]["dropped_message_count"] == 2
    assert after.json["usage"]["input_tokens"] < compacted["usage"]["input_tokens"] / 2
    assert (refused.status, "compaction blob" in refused.json["error"]) == (400, True)
