"""The index of conversations: what it finds, in which order, what it costs, and when it goes."""

import datetime as dt
from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.driving import KEYS, SHARD, Hand, ended, user
from turnline.contracts import (
    ConversationPage,
    InvalidCursor,
    SyncTurnClient,
    TurnClient,
    TurnCompleted,
    TurnFailed,
)
from turnline.contracts.index_lines import mark, marks_of, read_line, slowness
from turnline.contracts.keys import conversation_keys
from turnline.contracts.lookup import Query, look_up
from turnline.contracts.protocol import RETENTION_MS
from turnline.ops.simulator import Simulator
from turnline.worker.store.cache import ContextCache
from turnline.worker.store.conversations import Conversations, StoreLimits


def ids(page: ConversationPage) -> list[str]:
    return [it.conversation_id for it in page.conversations]


async def talk(hand: Hand, client: TurnClient, *messages: Any) -> None:
    """Have these answered, one after the other."""
    for message in messages:
        receipt = await client.submit(message)
        await hand.run_due()
        await client.result(receipt, timeout_s=5)


async def lines(redis: Redis, conversation_id: str = "c") -> Sequence[str]:
    """What a conversation's page of the index has."""
    text = await redis.get(conversation_keys(SHARD.tag, conversation_id).page)
    return (text or b"").decode().split("\n")[1:]


async def test_conversations_are_listed_by_when_they_were_active(
    hand: Hand, client: TurnClient
) -> None:
    """The newest first, each once, with what its last turn was."""
    await talk(
        hand,
        client,
        user("a", "one", tenant="acme", metadata={"user": "7"}),
        user("b", "two"),
        user("c", "three"),
        user("again", "one", metadata={"user": "7", "page": "2"}),
    )

    page = await client.conversations()

    assert ids(page) == ["one", "three", "two"]
    assert page.after is None
    first = page.conversations[0]
    assert (first.turns, first.outcome, first.failed_at_ms) == (2, "completed", None)
    assert first.metadata == {"user": "7", "page": "2"}
    assert first.usage.completion_tokens > 0
    assert first.active_at_ms >= page.conversations[1].active_at_ms


async def test_each_filter_finds_what_fits(hand: Hand, client: TurnClient, sim: Simulator) -> None:
    """Tenant, agent, metadata, failures, time: alone and together, also of an earlier turn."""
    sim.inject("status=400", conversation="bad")
    await client.configure("set", tenant="acme")
    await talk(
        hand,
        client,
        user("a", "one", tenant="acme", metadata={"user": "7", "plan": "free"}),
        user("b", "two", tenant="globex", metadata={"user": "7"}),
        user("c", "bad", tenant="acme", metadata={"user": "8"}),
        user("d", "set"),
        user("e", "two", metadata={"user": "9"}),
    )

    async def found(**asked: Any) -> set[str]:
        return set(ids(await client.conversations(**asked)))

    assert await found(tenant="acme") == {"one", "bad", "set"}
    assert await found(tenant="globex") == {"two"}
    assert await found(metadata={"user": "7"}) == {"one", "two"}
    assert await found(metadata={"user": "9"}) == {"two"}
    assert await found(metadata={"user": "7", "plan": "free"}) == {"one"}
    assert await found(tenant="acme", metadata={"user": "8"}, failed=True) == {"bad"}
    assert await found(failed=True) == {"bad"}
    assert await found(tenant="globex", failed=True) == set()
    assert await found(tenant="nobody") == set()
    assert await found(agent="nobody") == set()
    assert await found(since=dt.timedelta(hours=1)) == {"one", "two", "bad", "set"}
    assert await found(since=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)) == set()


async def test_a_failure_is_found_when_the_conversation_has_gone_on(
    hand: Hand, client: TurnClient, sim: Simulator
) -> None:
    """The last turn's end is told beside it."""
    sim.inject("status=400", conversation="c")
    failed = await client.submit(user())
    await hand.run_due()
    await ended(client, failed, TurnFailed)
    await talk(hand, client, user("again"))

    (found,) = (await client.conversations(failed=True)).conversations

    assert found.outcome == "completed"
    assert found.failed_at_ms is not None
    assert found.failed_at_ms < found.active_at_ms
    (turn,) = (await client.turns(failed=True)).turns
    assert (turn.turn_id, turn.state, turn.code) == (failed.turn_id, "failed", "bad_request")


async def test_pages_follow_each_other(hand: Hand, client: TurnClient) -> None:
    """Each conversation once, in one order, whatever the size of a page."""
    await talk(hand, client, *(user("a", f"c{n}", tenant="acme") for n in range(7)))
    everything = ids(await client.conversations(tenant="acme"))
    assert everything == [f"c{n}" for n in reversed(range(7))]

    for limit in (1, 2, 7, 100):
        seen: list[str] = []
        after: str | None = None
        while True:
            page = await client.conversations(limit=limit, after=after)
            seen += ids(page)
            after = page.after
            if after is None:
                break
        assert seen == everything


@pytest.mark.parametrize("after", ["", "x", "1", ":", "x:c", "-1:c", "9" * 17 + ":c"])
async def test_a_cursor_that_is_none_is_refused(client: TurnClient, after: str) -> None:
    """By name."""
    with pytest.raises(InvalidCursor, match="cursor"):
        await client.conversations(after=after)
    with pytest.raises(InvalidCursor, match="cursor"):
        await client.turns(after=after)


@pytest.mark.parametrize("limit", [0, -1, 10_001])
async def test_a_limit_out_of_range_is_refused(client: TurnClient, limit: int) -> None:
    """It is said what may be."""
    with pytest.raises(ValueError, match="10000"):
        await client.conversations(limit=limit)


async def test_slow_turns_are_found(hand: Hand, client: TurnClient, redis: Redis) -> None:
    """By how long they took, waits included."""
    quick = user("quick")
    await talk(hand, client, quick)
    slow = await client.submit(user("slow", "slow"))
    keys = conversation_keys(SHARD.tag, "slow")
    ((entry_id, fields),) = await redis.xrange(keys.inbox)
    await redis.delete(keys.inbox)
    ms = int(entry_id.partition(b"-")[0]) - 60_000
    await redis.xadd(keys.inbox, fields, f"{ms}-0")
    await hand.run_due()
    await ended(client, slow, TurnCompleted)

    (turn,) = (await client.turns(slow_s=30)).turns

    assert (turn.conversation_id, turn.turn_id) == ("slow", slow.turn_id)
    assert turn.took_ms >= 60_000
    assert not (await client.turns(slow_s=300)).turns
    assert len((await client.turns(slow_s=0)).turns) == 2
    assert len((await client.turns()).turns) == 2


async def test_a_turn_is_found_by_its_id_alone(hand: Hand, client: TurnClient) -> None:
    """In each conversation that has one of that id."""
    await talk(hand, client, *(user("a", f"c{n}", turn_id=f"t{n % 2}") for n in range(3)))

    assert await client.find_turn("t1") == ("c1",)
    assert set(await client.find_turn("t0")) == {"c0", "c2"}
    assert await client.find_turn("t2") == ()


async def test_the_blocking_client_finds_the_same(
    hand: Hand, client: TurnClient, redis_url: str
) -> None:
    """It has the same verbs."""
    await talk(hand, client, user("a", "one", tenant="acme"), user("b", "two"))
    with SyncTurnClient.connect(redis_url) as blocking:
        assert blocking.conversations(tenant="acme") == await client.conversations(tenant="acme")
        assert blocking.turns() == await client.turns()
        turn_id = blocking.turns().turns[0].turn_id
        assert blocking.find_turn(turn_id) == ("two",)


async def test_a_line_is_changed_in_place(hand: Hand, client: TurnClient, redis: Redis) -> None:
    """A conversation has one line, and another turn of the same kind moves nothing."""
    await talk(hand, client, user("a", tenant="acme"))
    (before,) = await lines(redis)
    await talk(hand, client, user("b", tenant="acme"))
    (after,) = await lines(redis)

    assert before.startswith(mark("tenant", "acme") + " c")
    assert len(after) == len(before)
    assert after > before
    noted = await redis.hget(KEYS.state, "kept")
    assert noted.partition(b".")[2] == b"0"


async def test_marks_are_kept_up_to_a_number(hand: Hand, client: TurnClient, redis: Redis) -> None:
    """The newest, with what each turn has: a conversation cannot take more and more."""
    for n in range(25):
        await talk(
            hand, client, user("a", tenant="acme", metadata={"user": "7", "request": str(n)})
        )

    (line,) = await lines(redis)

    assert len(line.partition(" ")[0]) == 18 * 6
    for asked in ({"user": "7"}, {"request": "24"}, {"request": "20"}):
        assert ids(await client.conversations(tenant="acme", metadata=asked)) == ["c"]
    assert not ids(await client.conversations(metadata={"request": "1"}))


async def test_lines_that_have_moved_are_found(
    hand: Hand, client: TurnClient, redis: Redis
) -> None:
    """Where a conversation's line was is no longer where it is: it is still changed, once."""
    await talk(hand, client, user("a", tenant="acme"))
    (line,) = await lines(redis)
    await redis.set(KEYS.page, f"\n{line.replace(' c', ' i')}x\n{line}")

    await talk(hand, client, user("b", tenant="acme"))

    other, own = await lines(redis)
    assert other.endswith("x")
    assert own != line
    assert own.endswith(" c")


async def test_what_is_forgotten_is_not_listed(
    hand: Hand, client: TurnClient, redis: Redis
) -> None:
    """Its line goes with it, and the page if it was the only one."""
    await talk(hand, client, user("a", tenant="acme"), user("b", "other"))
    before = await redis.get(conversation_keys(SHARD.tag, "other").page)

    await client.forget("c")

    assert ids(await client.conversations()) == ["other"]
    assert await redis.exists(KEYS.page) == 0
    number = KEYS.page.rpartition(":")[2]
    assert await redis.zscore(SHARD.pages, number) is None
    assert await redis.hget(SHARD.page_marks, number) is None
    assert await redis.get(conversation_keys(SHARD.tag, "other").page) == before


async def test_the_index_expires_with_the_conversations(
    hand: Hand, client: TurnClient, redis: Redis
) -> None:
    """All of its keys; and what is past its retention goes before, when others come."""
    await talk(hand, client, user("a", tenant="acme"))
    for key in KEYS.in_index:
        assert RETENTION_MS * 0.99 < await redis.pttl(key) <= RETENTION_MS
    (line,) = await lines(redis)
    found = read_line(line)
    assert found is not None
    old = line.replace(str(found.at_ms), str(found.at_ms - RETENTION_MS - 1))
    crowd = "".join(f"\n{old}-{n}" for n in range(100))

    for n in range(300):
        await redis.set(KEYS.page, crowd)
        await redis.zadd(SHARD.pages, {"99999": found.at_ms - RETENTION_MS - 1})
        await talk(hand, client, user(f"a{n}"))
        if len(await lines(redis)) == 1:
            break

    assert len(await lines(redis)) == 1
    assert await redis.zscore(SHARD.pages, "99999") is None
    assert ids(await client.conversations()) == ["c"]


async def test_an_index_that_is_switched_off_is_not_written(
    hand: Hand, client: TurnClient, redis: Redis
) -> None:
    """Nothing of it."""
    hand.store = Conversations(
        hand.batcher, SHARD, cache=ContextCache(1 << 20), limits=StoreLimits(is_indexed=False)
    )
    await talk(hand, client, user("a", tenant="acme"))

    assert await redis.exists(*KEYS.in_index) == 0
    assert ids(await client.conversations()) == []


@pytest.mark.parametrize("value", ["words", "\nacme", {"a": "1"}, ["a"], {"a"}], ids=repr)
@pytest.mark.parametrize("which", ["pages", "page_marks", "page"])
async def test_what_others_wrote_there_stops_no_turn(
    hand: Hand, client: TurnClient, redis: Redis, which: str, value: Any
) -> None:
    """Nor a reader: the conversation is found with its next turn."""
    await talk(hand, client, user("a", tenant="acme"))
    key = getattr(KEYS, which)
    await redis.delete(key)
    match value:
        case dict():
            await redis.hset(key, mapping=value)
        case list():
            await redis.rpush(key, *value)
        case set():
            await redis.sadd(key, *value)
        case _:
            await redis.set(key, value)
    await client.conversations(tenant="acme")

    await talk(hand, client, user("b", tenant="acme", metadata={"user": "7"}))

    assert ids(await client.conversations(metadata={"user": "7"})) == ["c"]
    assert await client.forget("c")


async def crowd(redis: Redis, count: int) -> None:
    """Put the lines of so many conversations into the index, of which the 77th is somebody's."""
    pages: dict[str, str] = {}
    begins: dict[str, str] = {}
    newest: dict[str, int] = {}
    for n in range(count):
        name = f"crowd-{n}"
        page = conversation_keys(SHARD.tag, name).page
        marks = marks_of("acme", "support", [("user", "7" if n == 77 else f"u{n}")])
        pages[page] = f"{pages.get(page, '')}\n{marks} cb{1_750_000_000_000 + n} {name}"
        begins[page] = begins.get(page, "") + "".join(marks[at : at + 3] for at in (0, 6, 12))
        newest[page] = 1_750_000_000_000 + n
    async with redis.pipeline(transaction=False) as pipe:
        for page, text in pages.items():
            number = page.rpartition(":")[2]
            pipe.set(page, text)
            pipe.hset(SHARD.page_marks, number, begins[page])
            pipe.zadd(SHARD.pages, {number: newest[page]})
        await pipe.execute()


async def test_few_pages_are_read_of_many(client: TurnClient, redis: Redis) -> None:
    """Where many conversations fit, the newest pages; where few fit, those that have them."""
    await crowd(redis, 60_000)

    async def read(query: Query) -> tuple[list[str], int]:
        await redis.config_resetstat()
        found, _ = await look_up(redis, (SHARD,), query, None, 20)
        stats = await redis.info("commandstats")
        return [it.line.conversation_id for it in found], stats["cmdstat_get"]["calls"]

    newest = [f"crowd-{n}" for n in range(59_999, 59_979, -1)]
    assert await read(Query()) == (newest, 64)
    assert await read(Query(tenant="acme")) == (newest, 64)
    names, count = await read(Query(metadata={"user": "7"}))
    assert (names, count < 100) == (["crowd-77"], True)
    names, count = await read(Query(tenant="acme", metadata={"user": "7"}))
    assert (names, count < 100) == (["crowd-77"], True)


def test_letters_say_how_long() -> None:
    """The next one each time that it doubles."""
    assert [slowness(it) for it in (-1, 0, 0.9, 1, 2, 3.9, 4, 8, 1e9)] == [*"aaabccdez"]
