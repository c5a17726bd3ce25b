"""What submit does to Redis: accepted once, in order, in one round trip, or not at all."""

import itertools
import re
from collections.abc import Awaitable
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from tests.integration.contracts.streams import KEYS, SHARD, hold
from tests.support.keys import assert_keys_expire, kept
from turnline.contracts import (
    Configure,
    ConversationBusy,
    InboxFull,
    Interrupt,
    InvalidMessage,
    QueueFull,
    QueueLate,
    Receipt,
    Refused,
    SyncTurnClient,
    ToolResult,
    TurnClient,
    TurnIdReused,
    UserMessage,
    protocol,
)
from turnline.contracts.conversation import SettingsChange
from turnline.contracts.job_format import deserialize_job
from turnline.contracts.messages import Inbound, decode
from turnline.contracts.protocol import Limits

pytestmark = pytest.mark.quick

LEASED_MS = 32_503_680_000_000
TOOL_RESULT = ToolResult(conversation_id="c", call_id="call_1", result=1)


def user(text: str = "hi", **more: Any) -> UserMessage:
    return UserMessage(**{"conversation_id": "c", "text": text, **more})


async def inbox(redis: Redis) -> list[dict[bytes, bytes]]:
    return [fields for _, fields in await redis.xrange(KEYS.inbox)]


async def due_ms(redis: Redis) -> float | None:
    return await redis.zscore(SHARD.queue, KEYS.job_id)


async def sent_by(work: Awaitable[Any], redis: Redis) -> list[str]:
    """Do something and return the commands that clients sent meanwhile, without the scripts' own.

    Those that a new connection begins with are left out.
    """
    async with redis.monitor() as monitor:
        await work
        await redis.echo("done")
        sent: list[str] = []
        while True:
            seen = await monitor.next_command()
            word = seen["command"].partition(" ")[0]
            if word == "ECHO":
                return sent
            if seen["client_type"] != "lua" and word not in {"CLIENT", "SELECT"}:
                sent.append(word)


async def test_an_accepted_message_waits_and_somebody_is_woken(client: Any, redis: Redis) -> None:
    """The inbox has it, the queue has the conversation with its job, the record says accepted."""
    receipt = await client.submit(user(turn_id="t", metadata={"a": "b"}))

    assert receipt == Receipt(
        conversation_id="c",
        turn_id="t",
        status="accepted",
        position=0,
        after="0-0",
        trace_id=receipt.trace_id,
    )
    (entry,) = await inbox(redis)
    message = decode(entry[b"m"])
    assert entry.keys() == {b"t", b"m", b"a", b"d"}
    assert (entry[b"t"], entry[b"a"]) == (b"t", b"0-0")
    assert (message.text, message.metadata) == ("hi", {"a": "b"})
    assert message.sent_at_ms > 0
    assert receipt.trace_id in message.traceparent
    assert (await client.record(receipt)).state == "accepted"
    now_s, _ = await redis.time()
    assert abs(await due_ms(redis) - now_s * 1000) < 60_000
    assert deserialize_job(await redis.get(KEYS.job))["a"] == ["c"]
    assert await redis.llen(SHARD.wake) == 1


@pytest.mark.promise("P2")
async def test_the_order_of_acceptance_is_the_order_of_the_inbox(client: Any, redis: Redis) -> None:
    """Positions count up, and one conversation is on the queue once."""
    receipts = [await client.submit(user(f"message {n}", turn_id=f"t{n}")) for n in range(5)]

    assert [receipt.position for receipt in receipts] == [0, 1, 2, 3, 4]
    assert [entry[b"t"].decode() for entry in await inbox(redis)] == [f"t{n}" for n in range(5)]
    assert await redis.zcard(SHARD.queue) == 1
    assert await redis.llen(SHARD.wake) == 1


@pytest.mark.promise("P1", "P3")
@pytest.mark.real_server
async def test_a_repeated_message_is_a_duplicate(client: Any, redis: Redis) -> None:
    """Also with another time, trace and deadline, and metadata in another order."""
    await redis.xadd(KEYS.events, {"e": "{}"}, id="5-1")
    first = await client.submit(user(turn_id="t", metadata={"a": "1", "b": "2"}))
    before = await kept(redis)

    again = await client.submit(
        user(turn_id="t", metadata={"b": "2", "a": "1"}, sent_at_ms=1, deadline_at_ms=2)
    )

    assert (again.status, again.accepted, again.position) == ("duplicate", False, None)
    assert again.after == first.after == "5-1"
    assert await kept(redis) == before


async def test_a_duplicate_is_told_the_trace_of_the_first(client: Any) -> None:
    """Also while the first still waits, and with a trace context of its own."""
    first = await client.submit(user(turn_id="t"))
    waiting = await client.record(first)

    other = f"00-{'7' * 32}-{'7' * 16}-01"
    again = [await client.submit(user(turn_id="t", traceparent=of)) for of in (None, other)]

    assert re.fullmatch("[0-9a-f]{32}", first.trace_id)
    assert {receipt.trace_id for receipt in (*again, waiting)} == {first.trace_id}
    assert [receipt.status for receipt in again] == ["duplicate", "duplicate"]


@pytest.mark.real_server
async def test_an_id_used_for_another_content_is_refused(client: Any, redis: Redis) -> None:
    """The producer is told instead of getting another turn's answer."""
    await client.submit(user("one", turn_id="t"))
    before = await kept(redis)

    for other in (user("two", turn_id="t"), user("one", turn_id="t", run=False)):
        with pytest.raises(TurnIdReused, match="turn_id t was accepted before"):
            await client.submit(other)

    assert await kept(redis) == before


@pytest.mark.real_server
async def test_a_full_inbox_refuses(client: Any, redis: Redis) -> None:
    """Nothing is written, and the error says when to come again."""
    for _ in range(5):
        await client.submit(user())
    before = await kept(redis)

    with pytest.raises(InboxFull, match="5 messages already wait in c") as caught:
        await client.submit(user())

    assert caught.value.retry_after_s > 0
    assert isinstance(caught.value, Refused)
    assert await kept(redis) == before


@pytest.mark.parametrize("emptying", [Interrupt(conversation_id="c"), TOOL_RESULT])
async def test_a_full_inbox_takes_what_empties_it(
    client: Any, redis: Redis, monkeypatch: pytest.MonkeyPatch, emptying: Inbound
) -> None:
    """An interrupt, the result that a turn waits for: some of them, and no other message."""
    monkeypatch.setattr(protocol, "HEADROOM", 2)
    for _ in range(5):
        await client.submit(user())

    for n in range(2):
        more = msgspec.structs.replace(emptying, turn_id=f"t{n}")
        assert (await client.submit(more)).position == 5 + n

    for refused in (emptying, user(), user(when_busy="interrupt")):
        with pytest.raises(InboxFull, match="7 messages already wait in c"):
            await client.submit(refused)
    assert await redis.xlen(KEYS.inbox) == 7


@pytest.mark.promise("P1")
@pytest.mark.parametrize("records", [5, 2])
async def test_records_that_go_before_the_turns_they_belong_to_are_refused(records: int) -> None:
    """A message that still waits would be accepted a second time."""
    limits, url = Limits(inbox=5, records=records), "redis://127.0.0.1:1"
    with pytest.raises(ValueError, match="records must be more than inbox"):
        async with TurnClient.connect(url, limits=limits):
            pass
    with (
        pytest.raises(ValueError, match="records must be more than inbox"),
        SyncTurnClient.connect(url, limits=limits),
    ):
        pass


@pytest.mark.real_server
async def test_a_full_queue_refuses_only_what_is_not_on_it(client: Any, redis: Redis) -> None:
    """Conversations that wait already take more messages."""
    for name in "abc":
        await client.submit(user(conversation_id=name))
    before = await kept(redis)

    with pytest.raises(QueueFull, match="3 conversations already wait"):
        await client.submit(user(conversation_id="d"))

    assert await kept(redis) == before
    assert (await client.submit(user(conversation_id="a"))).position == 1


async def due_since(redis: Redis, conversation_id: str, seconds: float) -> None:
    """Put a conversation on the queue that has been due for so long; less than 0: is not yet."""
    now_s, us = await redis.time()
    due_ms = int((now_s + us / 1e6 - seconds) * 1000)
    await redis.zadd(SHARD.queue, {f"{SHARD.tag}:{conversation_id}": due_ms})


async def test_a_late_queue_refuses_only_what_is_not_on_it(client: Any, redis: Redis) -> None:
    """Nothing is written, the error says when to come again, and what waits already is let in."""
    await due_since(redis, "c", 301)
    before = await kept(redis)

    with pytest.raises(QueueLate, match=r"wait for 30\d s in this shard; try again") as caught:
        await client.submit(user(conversation_id="d"))

    assert caught.value.retry_after_s > 0
    assert isinstance(caught.value, Refused)
    assert await kept(redis) == before
    for message in (user(), Interrupt(conversation_id="c"), TOOL_RESULT):
        assert (await client.submit(message)).accepted
    (outcome,) = await client.submit_many([user(conversation_id="d")])
    assert isinstance(outcome, QueueLate)


@pytest.mark.parametrize("seconds", [299, -60, -3_000_000])
async def test_what_is_leased_deferred_or_due_not_long_ago_makes_no_queue_late(
    client: Any, redis: Redis, seconds: float
) -> None:
    """Their times lie ahead, or within what is allowed."""
    await due_since(redis, "other", seconds)

    assert (await client.submit(user())).accepted


async def test_the_age_that_a_queue_may_have_is_the_producers_choice(
    redis: Redis, redis_url: str
) -> None:
    """As the other limits are."""
    await due_since(redis, "other", 2)

    async with TurnClient.connect(redis_url, limits=Limits(queue_age_s=1.5)) as client:
        with pytest.raises(QueueLate):
            await client.submit(user())


@pytest.mark.parametrize("why", ["waiting", "running"])
@pytest.mark.real_server
async def test_reject_refuses_while_the_conversation_is_busy(
    client: Any, redis: Redis, why: str
) -> None:
    """A message waits, or a worker holds the conversation."""
    assert (await client.submit(user(when_busy="reject", turn_id="idle"))).accepted
    if why == "running":
        await redis.delete(KEYS.inbox)
        await hold(redis)
    before = await kept(redis)

    with pytest.raises(ConversationBusy, match="c has a turn running or waiting"):
        await client.submit(user(when_busy="reject"))

    assert await kept(redis) == before
    assert (await client.submit(user(when_busy="reject", turn_id="idle"))).status == "duplicate"


@pytest.mark.promise("P9")
async def test_a_broken_message_reaches_no_server(client: Any, redis: Redis) -> None:
    """It is refused by name on the producer's side."""
    for broken in (b"{", user(turn_id="a b"), b'{"type":"user_message","conversation_id":"c"}'):
        with pytest.raises(InvalidMessage):
            await client.submit(broken)
    with pytest.raises(InvalidMessage, match="text"):
        await client.ask("c", "")
    with pytest.raises(InvalidMessage, match=r"settings\.temperature"):
        await client.configure("c", temperature=3)

    assert await redis.keys() == []


@pytest.mark.real_server
async def test_a_submission_is_one_command(client: Any, redis: Redis) -> None:
    """One EVALSHA; where the server does not know the script, one EVAL more.

    Before its first message a client asks how many shards there are.
    """
    assert (await sent_by(client.submit(user()), redis))[0] == "HMGET"
    await redis.script_flush()

    assert await sent_by(client.submit(user()), redis) == ["EVALSHA", "EVAL"]
    assert await sent_by(client.submit(user()), redis) == ["EVALSHA"]
    batch = client.submit_many([user(), user()])
    assert await sent_by(batch, redis) == ["SCRIPT", "EVALSHA", "EVALSHA"]


@pytest.mark.real_server
async def test_the_server_may_forget_the_scripts(client: Any, redis: Redis) -> None:
    """After SCRIPT FLUSH, or a fail-over, they are sent again."""
    await client.submit(user())
    await redis.script_flush()

    assert (await client.submit(user())).position == 1
    await redis.script_flush()
    assert [r.position for r in await client.submit_many([user(), user()])] == [2, 3]
    await redis.script_flush()
    assert await client.forget("c")


async def test_everything_of_a_conversation_expires(client: Any, redis: Redis) -> None:
    """Only the queue stays."""
    await client.submit(user())
    await client.submit(user(when_busy="interrupt"))

    await assert_keys_expire(redis, [SHARD.queue])


async def test_a_message_moves_the_expiry_of_the_whole_conversation(
    client: Any, redis: Redis
) -> None:
    """No part of an active conversation goes before the others."""
    parts = [KEYS.context, KEYS.steps, KEYS.calls, KEYS.copies]
    for key in parts:
        await redis.rpush(key, "x")
        await redis.pexpire(key, 1_000)

    await client.submit(user())

    for key in (*parts, KEYS.inbox, KEYS.turns, KEYS.log, KEYS.state, KEYS.job):
        assert await redis.pttl(key) > 29 * 24 * 3600 * 1000, key


@pytest.mark.parametrize(
    ("message", "act"),
    [
        (Interrupt(conversation_id="c", heard="Hel"), b"interrupt"),
        (Interrupt(conversation_id="c", when_busy="reject"), b"interrupt"),
        (user(when_busy="interrupt"), b"interrupt"),
        (user(when_busy="rollback"), b"rollback"),
    ],
)
async def test_what_acts_names_the_entry_at_the_head(
    client: Any, redis: Redis, message: Any, act: bytes
) -> None:
    """So that a late interrupt never stops a turn that came after it."""
    await client.submit(user())
    await client.submit(user())
    (head, _), _ = await redis.xrange(KEYS.inbox)

    await client.submit(message)

    entry = (await inbox(redis))[2]
    assert (entry[b"on"], entry[b"act"]) == (head, act)


async def test_what_acts_on_nothing_is_a_plain_entry(client: Any, redis: Redis) -> None:
    """An idle conversation has nothing to interrupt."""
    await client.interrupt("c", turn_id="t")

    (entry,) = await inbox(redis)
    assert entry.keys() == {b"t", b"m", b"a", b"d", b"l"}


async def test_the_holder_is_told(client: Any, redis: Redis) -> None:
    """On its own channel, and nobody else is woken."""
    await hold(redis, "w1")
    await redis.zadd(SHARD.queue, {KEYS.job_id: LEASED_MS})
    async with redis.pubsub(ignore_subscribe_messages=True) as news:
        await news.subscribe(SHARD.channel_prefix + "w1")
        await news.get_message(timeout=5)

        await client.submit(user())

        message = await news.get_message(timeout=5)
    assert message["data"] == b"c"
    assert await due_ms(redis) == LEASED_MS
    assert await redis.llen(SHARD.wake) == 0


@pytest.mark.parametrize(
    ("parked", "when_busy", "is_due"),
    [
        ("input", "enqueue", True),
        ("input", "interrupt", True),
        ("backoff", "enqueue", False),
        ("backoff", "interrupt", True),
        ("backoff", "rollback", True),
        (None, "interrupt", False),
    ],
)
async def test_a_deferred_conversation_is_due_when_that_ends_the_wait(
    client: Any, redis: Redis, parked: str | None, when_busy: Any, is_due: bool
) -> None:
    """One that waits for input by any message; one that backs off by what acts on its turn."""
    await client.submit(user())
    await redis.delete(SHARD.wake)
    await redis.zadd(SHARD.queue, {KEYS.job_id: LEASED_MS})
    if parked:
        await redis.hset(KEYS.state, "parked", parked)

    await client.submit(user(when_busy=when_busy))

    assert (await due_ms(redis) < LEASED_MS) == is_due
    assert await redis.llen(SHARD.wake) == is_due


async def test_a_deferred_conversation_that_somebody_holds_stays_with_the_holder(
    client: Any, redis: Redis
) -> None:
    """The lease's end is not moved, whatever stands in the state."""
    await client.submit(user())
    await hold(redis)
    await redis.hset(KEYS.state, "parked", "input")
    await redis.zadd(SHARD.queue, {KEYS.job_id: LEASED_MS})

    await client.submit(user())

    assert await due_ms(redis) == LEASED_MS


async def test_a_conversation_that_is_due_keeps_its_place(client: Any, redis: Redis) -> None:
    """A speaker whose words keep coming must not be sent to the end of a long queue."""
    await client.submit(user())
    await redis.delete(SHARD.wake)
    await redis.zadd(SHARD.queue, {KEYS.job_id: 1_000})
    await redis.hset(KEYS.state, "parked", "input")

    await client.submit(user())

    assert await due_ms(redis) == 1_000
    assert await redis.llen(SHARD.wake) == 0


async def test_the_lists_are_capped(client: Any, redis: Redis) -> None:
    """Wake tokens, and records with them the idempotency keys: the oldest go."""
    await redis.rpush(SHARD.wake, *["x"] * 1_000)
    for n in range(10):
        await client.submit(user(turn_id=f"t{n}"))
        await redis.delete(KEYS.inbox, SHARD.queue)

    assert await redis.llen(SHARD.wake) == 1_000
    assert await redis.lrange(SHARD.wake, 9, 10) == [b"{s0}:c", b"x"]
    assert await redis.lrange(KEYS.log, 0, -1) == [b"t%d" % n for n in range(2, 10)]
    assert set(await redis.hkeys(KEYS.turns)) == {b"t%d" % n for n in range(2, 10)}


async def test_the_epoch_is_set_once(client: Any, redis: Redis) -> None:
    """It tells caches whether the context is the one they know."""
    await client.submit(user())
    epoch = await redis.hget(KEYS.state, "epoch")

    await client.submit(user())

    assert re.fullmatch(rb"\d+", epoch)
    assert await redis.hget(KEYS.state, "epoch") == epoch


async def test_many_messages_travel_together(client: Any, redis: Redis) -> None:
    """Each has its own outcome, in order; a refused one does not stop the others."""
    await client.submit(user("one", turn_id="reused"))
    names = ["c", "c", "a", "b", "d", "c", "c", "c"]
    batch = [user(conversation_id=name, turn_id=f"t{n}") for n, name in enumerate(names)]
    batch.insert(1, user("two", turn_id="reused"))
    batch.insert(2, user("one", turn_id="reused"))

    outcomes = await client.submit_many(batch)

    assert [getattr(one, "status", type(one)) for one in outcomes] == [
        *("accepted", TurnIdReused, "duplicate", "accepted", "accepted", "accepted", QueueFull),
        *("accepted", "accepted", InboxFull),
    ]
    positions = [r.position for r in outcomes if getattr(r, "conversation_id", "") == "c"]
    assert [position for position in positions if position is not None] == [1, 2, 3, 4]
    turns = [entry[b"t"].decode() for entry in await inbox(redis)]
    assert turns == ["reused", "t0", "t1", "t5", "t6"]


async def test_a_batch_with_a_broken_message_is_refused_whole(client: Any, redis: Redis) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidMessage):
        await client.submit_many([user(), user(turn_id="a b")])

    assert await redis.keys() == []


async def test_an_empty_batch_is_no_work(client: Any, redis: Redis) -> None:
    """And no error."""
    assert await client.submit_many([]) == []


async def test_configure_sends_what_is_named(client: Any, redis: Redis) -> None:
    """None clears; what is not named is not sent."""
    await client.configure("c", temperature=0.5, model=None)

    (entry,) = await inbox(redis)
    message = decode(entry[b"m"])
    assert isinstance(message, Configure)
    assert message.settings == SettingsChange(temperature=0.5, model=None)
    assert msgspec.json.decode(entry[b"m"])["settings"] == {"temperature": 0.5, "model": None}


@pytest.mark.promise("P8")
async def test_shards_have_their_own_queues(redis_url: str, redis: Redis) -> None:
    """All keys of a submission carry the tag of the conversation's shard."""
    async with TurnClient.connect(redis_url, shards=4) as client:
        for n in range(8):
            await client.submit(user(conversation_id=f"conversation-{n}"))

    keys = [key.decode() for key in await redis.keys()]
    by_tag = {tag: [*names] for tag, names in itertools.groupby(sorted(keys), key=tag_of)}
    assert len({tag_of(key) for key in keys}) > 1
    assert all(tag in {"s0", "s1", "s2", "s3"} for tag in by_tag)


def tag_of(key: str) -> str:
    return key.partition("{")[2].partition("}")[0]
