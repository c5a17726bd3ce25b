"""Items of replies in a context: what they take, what is dropped, that they are forgotten."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from tests.support.driving import KEYS, Hand, ended, hand, user
from tests.support.keys import kept
from turnline.contracts import ContextAppend, ContextReplace, TurnClient, TurnFailed
from turnline.contracts.conversation import (
    AssistantEntry,
    ContextEntry,
    PlacedItem,
    ReplyItems,
    UserEntry,
)
from turnline.ops.simulator import Simulator
from turnline.worker.turn.kept_reasoning import bound_reasoning, reasoning_bytes

BOUND = 4_000
HALF = 1_500


def thought(mark: str, size: int = HALF) -> ReplyItems:
    """Items of about so many bytes."""
    item = {"type": "reasoning", "summary": [], "encrypted_content": mark * (size // len(mark))}
    return ReplyItems(
        model="grok-4.7", items=(PlacedItem(item=msgspec.Raw(msgspec.json.encode(item))),)
    )


def spoken(mark: str, size: int = HALF) -> tuple[ContextEntry, ...]:
    """A question and its answer, with thoughts."""
    reply = AssistantEntry(content=f"answer {mark}", reply_items=thought(mark, size))
    return UserEntry(content=f"question {mark}"), reply


async def append(worker: Hand, *entries: ContextEntry, run: bool = False) -> None:
    await worker.client.submit(ContextAppend(conversation_id="c", messages=entries, run=run))
    await worker.run_one()


async def stored(redis: Redis) -> list[dict[str, Any]]:
    return [msgspec.json.decode(data) for data in await redis.lrange(KEYS.context, 0, -1)]


def holders(context: Sequence[dict[str, Any]]) -> list[str]:
    return [entry["content"] for entry in context if "reply_items" in entry]


async def measured(redis: Redis) -> int:
    """What the items in the context take, counted anew."""
    context = await stored(redis)
    return sum(len(msgspec.json.encode(it["reply_items"])) for it in context if "reply_items" in it)


@pytest.fixture
async def bounded(redis_url: str, sim: Simulator, client: TurnClient) -> Any:
    """A worker with a small bound."""
    async with hand(redis_url, sim, reasoning_max_bytes=BOUND) as worker:
        worker.client, worker.sim = client, sim
        yield worker


async def test_what_items_take_stands_in_the_totals(redis: Redis, hand: Hand) -> None:
    """As bytes of the context now: it grows with turns, and is counted anew after a replacement."""
    await append(hand, *spoken("a"))
    await append(hand, *spoken("ü"))
    await hand.client.submit(user("no thoughts"))
    await hand.run_one()
    assert (await hand.client.usage("c")).reasoning_bytes == await measured(redis) > 2 * HALF - 10

    await hand.client.submit(ContextReplace(conversation_id="c", messages=spoken("b")))
    await hand.run_one()
    assert (await hand.client.usage("c")).reasoning_bytes == await measured(redis) > HALF - 10

    await hand.client.submit(ContextReplace(conversation_id="c", messages=()))
    await hand.run_one()
    assert (await hand.client.usage("c")).reasoning_bytes == await measured(redis) == 0


async def test_items_come_back_as_they_were_brought(redis: Redis, hand: Hand) -> None:
    """Byte for byte, wherever the worker had them in hands meanwhile."""
    await append(hand, *spoken("é"))
    await hand.client.submit(user("more"))
    await hand.run_one()

    assert (await redis.lrange(KEYS.context, 0, 1)) == [*map(msgspec.json.encode, spoken("é"))]


async def test_items_that_do_not_fit_are_refused_by_the_worker_too(
    redis: Redis, hand: Hand
) -> None:
    """A producer in another language is held to the same; its message ends by name."""
    entry = AssistantEntry(content="Hi", reply_items=thought("a"))
    receipt = await hand.client.submit(ContextAppend(conversation_id="c", messages=(entry,)))
    ((entry_id, fields),) = await redis.xrange(KEYS.inbox)
    message = fields[b"m"].replace(b'{"item":', b'{"chars":3,"item":')
    await redis.xdel(KEYS.inbox, entry_id)
    await redis.xadd(KEYS.inbox, {**fields, b"m": message})

    await hand.run_one()

    failed = await ended(hand.client, receipt, TurnFailed, "invalid_message")
    assert "messages[0].reply_items.items[0].chars: 0 to 2" in failed.message
    assert await stored(redis) == []


async def test_too_much_of_it_goes_at_once(redis: Redis, bounded: Hand) -> None:
    """What is older than the turn goes in one step; all else stays, byte for byte."""
    for mark in ("a", "b"):
        await append(bounded, *spoken(mark))
    assert len(holders(await stored(redis))) == 2
    epoch = await redis.hget(KEYS.state, "epoch")

    await append(bounded, *spoken("c"))

    bare = [
        msgspec.structs.replace(entry, reply_items=None)
        if isinstance(entry, AssistantEntry)
        else entry
        for mark in ("a", "b")
        for entry in spoken(mark)
    ]
    assert await redis.lrange(KEYS.context, 0, -1) == [
        *map(msgspec.json.encode, (*bare, *spoken("c")))
    ]
    assert await redis.hget(KEYS.state, "epoch") != epoch  # other workers fetch it anew
    assert (await bounded.client.usage("c")).reasoning_bytes == await measured(redis)


async def test_afterwards_contexts_only_grow_again(redis: Redis, bounded: Hand) -> None:
    """A drop is rare: the next one comes when as much has gathered anew."""
    epochs = list[bytes | None]()
    for mark in "abcdefgh":
        await append(bounded, *spoken(mark))
        epochs.append(await redis.hget(KEYS.state, "epoch"))

    changes = [one != other for one, other in pairwise(epochs)]
    assert changes == [False, True, False, True, False, True, False]


async def test_turns_of_one_lease_count_together(redis: Redis, bounded: Hand) -> None:
    """A worker that goes on with what waits knows what the turn before it left."""
    for mark in "abcd":
        entries = spoken(mark)
        await bounded.client.submit(ContextAppend(conversation_id="c", messages=entries, run=True))

    await bounded.run_one()

    assert holders(await stored(redis)) == ["answer c", "answer d"]
    assert (await bounded.client.usage("c")).reasoning_bytes == await measured(redis)


async def test_a_turn_keeps_all_its_own_items(redis: Redis, bounded: Hand) -> None:
    """However much that is: the model is in the middle of its thoughts."""
    await append(bounded, *spoken("a"))
    replies = [entry for mark in "bcdef" for entry in spoken(mark)[1:]]

    await append(bounded, UserEntry(content="question"), *replies)

    assert holders(await stored(redis)) == [f"answer {mark}" for mark in "bcdef"]
    assert await measured(redis) > BOUND


async def test_a_turn_that_rewrites_keeps_what_follows_the_last_question(
    redis: Redis, bounded: Hand
) -> None:
    """A replaced context has no turns; what the user said last begins the one at hand."""
    whole = (*spoken("a"), *spoken("b"), *spoken("c"), AssistantEntry(content="and on"))

    await bounded.client.submit(ContextReplace(conversation_id="c", messages=whole))
    await bounded.run_one()

    assert holders(await stored(redis)) == ["answer c"]
    assert (await bounded.client.usage("c")).reasoning_bytes == await measured(redis)


async def test_a_bound_of_nothing_leaves_nothing_behind(
    redis: Redis, redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """Not even of the turn itself, so that contexts are appended to and never rewritten."""
    async with hand(redis_url, sim) as before:
        before.client = client
        await append(before, *spoken("a"))
    epoch = await redis.hget(KEYS.state, "epoch")
    async with hand(redis_url, sim, reasoning_max_bytes=0) as worker:
        worker.client = client
        await append(worker, *spoken("b"))
        assert holders(await stored(redis)) == []
        assert await redis.hget(KEYS.state, "epoch") != epoch
        epoch = await redis.hget(KEYS.state, "epoch")

        await append(worker, *spoken("c"))

    assert holders(await stored(redis)) == []
    assert await redis.hget(KEYS.state, "epoch") == epoch
    assert (await client.usage("c")).reasoning_bytes == 0
    assert [entry["content"] for entry in await stored(redis)][-1] == "answer c"


async def test_workers_agree_on_the_context_after_a_drop(
    redis_url: str, redis: Redis, sim: Simulator, client: TurnClient
) -> None:
    """One that had the context in its memory asks the model with what is committed."""
    async with (
        hand(redis_url, sim, reasoning_max_bytes=BOUND) as one,
        hand(redis_url, sim, reasoning_max_bytes=BOUND) as other,
    ):
        for worker in (one, other):
            worker.client = client
        for worker, mark in zip((one, other, one, other, one), "abcde", strict=True):
            await append(worker, *spoken(mark))

    assert holders(await stored(redis)) == ["answer e"]
    assert len(await stored(redis)) == 10


@pytest.mark.promise("P4")
async def test_forget_forgets_the_thoughts(redis: Redis, hand: Hand) -> None:
    """They stand in the context and nowhere else that outlives it."""
    await append(hand, *spoken("sECRETb1ob"))
    await hand.client.submit(user("go on"))
    await hand.run_one()
    assert [key for key, value in (await kept(redis)).items() if "sECRETb1ob" in repr(value)]

    assert await hand.client.forget("c")

    assert not [key for key, value in (await kept(redis)).items() if "sECRETb1ob" in repr(value)]


class Unsearched(bytes):
    """A message that nobody may look into."""

    def __contains__(self, _key: object) -> bool:
        raise AssertionError("searched")


def test_far_below_the_bound_nothing_is_searched() -> None:
    """What is kept is known, so that earlier messages cost nothing, whatever their number."""
    added = msgspec.json.encode(spoken("a")[1])
    messages = [*(Unsearched(b"{}") for _ in range(1_000)), added]
    own = reasoning_bytes([added])

    assert bound_reasoning(messages, 1_000, 2_000, 2_000 + own) == (1_000, own)
    with pytest.raises(AssertionError, match="searched"):
        bound_reasoning(messages, 1_000, 2_001, 2_000 + own)


def test_a_total_that_says_too_much_drops_nothing() -> None:
    """An earlier version that replaced the context did not count."""
    messages = [*map(msgspec.json.encode, (*spoken("a"), *spoken("b")))]

    first, _ = bound_reasoning([*messages], 2, 10**9, BOUND)
    assert first == 2


@pytest.mark.parametrize(
    "message",
    [
        b'{"role":"user","content":"about \\"reply_items\\":{}"}',
        b'{"role":"user","content":[{"type":"text","text":"a","reply_items":"not the entry\'s"}]}',
        b'no JSON "reply_items"',
        b'["reply_items"]',
    ],
)
def test_what_only_looks_like_items_is_left_alone(message: bytes) -> None:
    """The user's words, and what another program wrote into the context."""
    messages = [message, b'{"role":7}', b"\xff"]

    assert reasoning_bytes(messages) == 0
    assert bound_reasoning(messages, 0, 10, 0) == (0, 0)
    assert bound_reasoning(messages, 2, 10, 0) == (2, 0)
    assert messages[0] == message
