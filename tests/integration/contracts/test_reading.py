"""How turns are read: live, resumed, from the record where the stream was trimmed, as text."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
import pytest
from redis.asyncio import Redis

from tests.integration.contracts.streams import IDS, KEYS, finish, publish, take, waits, whole_turn
from tests.support.wait import wait_until
from turnline.contracts import (
    InvalidCursor,
    Receipt,
    ResultTimeout,
    TextDelta,
    TurnClient,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnStarted,
    TurnUnknown,
    UserMessage,
)
from turnline.contracts.connection import AsyncRedis
from turnline.contracts.conversation import (
    AssistantEntry,
    ConversationSettings,
    SystemEntry,
    ToolEntry,
    Usage,
    UserEntry,
)
from turnline.contracts.readers import READ_COUNT
from turnline.contracts.replies import TurnRecord, encode_event

DONE = TurnCompleted(**IDS, text="Hello world", metadata={"a": "b"})


@pytest.fixture
async def receipt(client: Any) -> Receipt:
    """The turn `t`, accepted."""
    return await client.submit(UserMessage(conversation_id="c", turn_id="t", text="hi"))


async def test_events_end_with_the_terminal_one(
    client: Any, redis: Redis, receipt: Receipt
) -> None:
    """This turn's alone, in order, each with its position in the stream."""
    other = whole_turn("other")
    events = whole_turn()
    await publish(redis, other[0], *events[:2], *other[1:])
    ids = await publish(redis, *events[2:], *whole_turn("later"))

    seen = [event async for event in client.events(receipt)]

    assert [encode_event(msgspec.structs.replace(e, event_id="")) for e in seen] == [
        encode_event(event) for event in events
    ]
    assert [event.event_id for event in seen[2:]] == ids[:2]


async def test_events_are_seen_as_they_happen(client: Any, redis: Redis, receipt: Receipt) -> None:
    """A reader that came first waits."""
    events = client.events(receipt)
    first = asyncio.create_task(anext(events))
    await wait_until(lambda: waits(redis), "the reader waits")

    await publish(redis, *whole_turn())

    assert isinstance(await first, TurnStarted)
    assert len([event async for event in events]) == 3


@pytest.mark.promise("P6")
@pytest.mark.parametrize("seen", [1, 2, 3])
async def test_a_reader_goes_on_behind_what_it_has_seen(
    client: Any, redis: Redis, receipt: Receipt, seen: int
) -> None:
    """`after=` leaves no gap and repeats nothing."""
    await publish(redis, *whole_turn())
    before = await take(client.events(receipt), seen)

    rest = [event async for event in client.events(receipt, after=before[-1].event_id)]

    whole = [event async for event in client.events(receipt)]
    assert before + rest == whole


@pytest.mark.parametrize(
    "after", ["1-1\n", "-1-0", "abc", "$", "18446744073709551616-0", "+1", "\uff11"]
)
async def test_what_a_browser_makes_up_is_no_position(
    client: Any, redis: Redis, receipt: Receipt, after: str
) -> None:
    """It is refused by name before anything is sent, wherever it stands."""
    forged = msgspec.structs.replace(receipt, after=after)
    before = await _commands(redis)
    for begin in (
        lambda: client.events(receipt, after=after),
        lambda: client.events(forged),
        lambda: client.text(forged),
    ):
        with pytest.raises(InvalidCursor):
            await anext(begin())
    with pytest.raises(InvalidCursor):
        await client.result(forged)
    if after != "$":
        with pytest.raises(InvalidCursor):
            await anext(client.follow("c", after=after))

    assert await _commands(redis) == before + 1  # that question itself


async def _commands(redis: Redis) -> int:
    return int((await redis.info("stats"))["total_commands_processed"])


@pytest.mark.parametrize("after", ["0", "0-0", "00-00", "18446744073709551615-0", ""])
async def test_a_position_is_taken_in_each_form_that_redis_takes(
    client: Any, redis: Redis, receipt: Receipt, after: str
) -> None:
    """The time alone, leading zeros, beyond the newest event; and that of an event without one."""
    await publish(redis, *whole_turn()[:-1])
    await finish(redis, receipt, DONE)
    whole = [event async for event in client.events(receipt)]

    seen = [event async for event in client.events(receipt, after=after)]

    assert seen == (whole if len(after) < 10 else [DONE])


async def test_behind_the_end_there_is_nothing(client: Any, redis: Redis, receipt: Receipt) -> None:
    """A reader that comes back with the terminal event's id is done, whatever came since."""
    *_, end = await publish(redis, *whole_turn()[:-1])
    await finish(redis, receipt, DONE)
    seen = [event async for event in client.events(receipt)]
    await publish(redis, *whole_turn("later"))

    async with asyncio.timeout(5):
        assert [e async for e in client.events(receipt, after=seen[-1].event_id)] == []
        assert [e async for e in client.events(receipt, after=end)] == seen[-1:]


async def test_the_end_behind_what_was_trimmed_is_not_kept_back(
    client: Any, redis: Redis, receipt: Receipt
) -> None:
    """Whoever stands at an event that is gone, or at another turn's end, still gets the end."""
    *_, other = await publish(redis, *whole_turn()[:-1], *whole_turn("other"))
    await finish(redis, receipt, DONE)
    await redis.xtrim(KEYS.events, minid=other)
    await redis.xdel(KEYS.events, (await redis.xrevrange(KEYS.events, count=1))[0][0])

    async with asyncio.timeout(5):
        assert [e async for e in client.events(receipt, after=other)] == [DONE]
        await redis.xtrim(KEYS.events, maxlen=0)
        assert [e async for e in client.events(receipt, after=other)] == [DONE]


async def test_a_receipt_leads_past_older_events(client: Any, redis: Redis) -> None:
    """Its cursor is the end of the stream at acceptance."""
    await publish(redis, *whole_turn("older"), *whole_turn("t"))
    newest = await publish(redis, *whole_turn("newest"))

    receipt = await client.submit(UserMessage(conversation_id="c", turn_id="t", text="hi"))

    assert receipt.after == newest[-1]
    await publish(redis, TurnStarted(**IDS, attempt=7), DONE)
    assert [event.attempt async for event in client.events(receipt)] == [7, 1]


@pytest.mark.promise("P6")
async def test_the_end_of_a_trimmed_turn_is_in_its_record(
    client: Any, redis: Redis, receipt: Receipt
) -> None:
    """Events and result come from there, at once, with or without other turns in the stream."""
    await publish(redis, TurnStarted(**IDS))
    await finish(redis, receipt, DONE)
    await redis.xtrim(KEYS.events, maxlen=0)

    async with asyncio.timeout(3):
        assert [event async for event in client.events(receipt)] == [DONE]
        assert await client.result(receipt) == DONE
    await publish(redis, *whole_turn("other") * 200)
    async with asyncio.timeout(3):
        assert [event async for event in client.events(receipt)] == [DONE]
        assert await client.result(receipt, timeout_s=0) == DONE


async def test_a_reader_learns_of_the_end_while_other_turns_go_on(
    client: Any, redis: Redis, receipt: Receipt, short_waits: None
) -> None:
    """A busy conversation does not keep it from looking at the record."""
    busy = asyncio.Event()

    async def chatter() -> None:
        while not busy.is_set():
            await publish(redis, TextDelta(conversation_id="c", turn_id="other", text="x"))
            await asyncio.sleep(0)

    task = asyncio.create_task(chatter())
    reading = asyncio.create_task(anext(client.events(receipt)))
    result = asyncio.create_task(client.result(receipt))
    await wait_until(lambda: waits(redis), "the readers wait")
    record = TurnRecord(state="completed", accepted_at_ms=1, event=msgspec.Raw(encode_event(DONE)))
    await redis.hset(KEYS.turns, "t", msgspec.json.encode(record))

    try:
        async with asyncio.timeout(5):
            assert [await reading, await result] == [DONE, DONE]
    finally:
        busy.set()
        await task


async def test_a_turn_with_more_events_than_one_read_brings_is_read_whole(
    client: Any, redis: Redis, receipt: Receipt
) -> None:
    """Nothing is skipped in favour of the record."""
    for n in range(READ_COUNT + 10):
        await publish(redis, TextDelta(**IDS, text="x", offset=n))
    await finish(redis, receipt, DONE)

    events = [event async for event in client.events(receipt)]

    assert [event.offset for event in events[:-1]] == list(range(READ_COUNT + 10))
    assert isinstance(events[-1], TurnCompleted)


class Rushed:
    """A connection on which something happens just before the first look at a record."""

    def __init__(self, redis: Redis, happening: Callable[[], Awaitable[object]]) -> None:
        """Wrap a connection."""
        self._redis = redis
        self._happening = happening
        self.has_happened = False
        self.connection_pool = redis.connection_pool

    async def execute_command(self, *args: Any) -> Any:
        """Send a command."""
        if args[0] == "HGET" and not self.has_happened:
            self.has_happened = True
            await self._happening()
        return await self._redis.execute_command(*args)


async def test_events_that_come_while_the_record_is_looked_at_are_not_skipped(
    client_async: TurnClient, redis: Redis
) -> None:
    """A turn that ends just then, with more events than one read brings."""
    receipt = await client_async.submit(UserMessage(conversation_id="c", turn_id="t", text="hi"))

    async def happening() -> None:
        async with redis.pipeline() as pipe:
            for n in range(READ_COUNT + 10):
                event = TextDelta(**IDS, text="x", offset=n)
                pipe.xadd(KEYS.events, {"e": encode_event(event)})
            await pipe.execute()
        await finish(redis, receipt, DONE)

    rushed = Rushed(redis, happening)

    client = TurnClient(cast("AsyncRedis", rushed))

    events = [event async for event in client.events(receipt)]

    await client.aclose()
    assert rushed.has_happened
    assert len(events) == READ_COUNT + 11
    assert events[-1].event_id


async def test_an_unknown_turn_is_said_to_be_unknown(
    client: Any, redis: Redis, receipt: Receipt
) -> None:
    """At once where nothing is there, and to those who wait when it is forgotten."""
    unknown = Receipt(conversation_id="c", turn_id="never", status="accepted")

    for reading in (anext(client.events(unknown)), client.result(unknown), client.record(unknown)):
        with pytest.raises(TurnUnknown, match="turn never of c is not known"):
            await asyncio.wait_for(reading, 3)


async def test_a_forgotten_turn_ends_its_readers(
    client: Any, redis: Redis, receipt: Receipt, short_waits: None
) -> None:
    """They do not wait for what will never come."""
    events = client.events(receipt)
    waiting = [asyncio.create_task(anext(events)), asyncio.create_task(client.result(receipt))]
    await wait_until(lambda: waits(redis), "the readers wait")

    assert await client.forget("c")

    for task in waiting:
        with pytest.raises(TurnUnknown):
            await task


async def test_a_result_is_the_terminal_event(client: Any, redis: Redis, receipt: Receipt) -> None:
    """Whenever it is asked for: before it is there, from the stream, from a duplicate's receipt."""
    waiting = asyncio.create_task(client.result(receipt))
    await wait_until(lambda: waits(redis), "the reader waits")
    await publish(redis, *whole_turn()[:-1])
    await finish(redis, receipt, DONE)

    assert (await waiting).text == "Hello world"
    duplicate = await client.submit(UserMessage(conversation_id="c", turn_id="t", text="hi"))
    assert await client.result(duplicate) == DONE


@pytest.mark.parametrize("timeout_s", [0, 0.05])
async def test_a_result_that_is_late_can_be_asked_for_again(
    client: Any, redis: Redis, receipt: Receipt, timeout_s: float
) -> None:
    """The turn goes on; other turns' events do not count."""
    await publish(redis, *whole_turn("other"))
    with pytest.raises(ResultTimeout, match="turn t did not end within"):
        await client.result(receipt, timeout_s=timeout_s)

    await publish(redis, DONE)
    assert (await client.result(receipt, timeout_s=5)).text == "Hello world"


async def test_asking_is_submitting_and_waiting(client: Any, redis: Redis) -> None:
    """The answer is that of the message just sent."""
    asked = asyncio.create_task(client.ask("c", "hi", timeout_s=5))
    turns = await wait_until(lambda: redis.hkeys(KEYS.turns), "the message is accepted")

    await publish(redis, TurnFailed(conversation_id="c", turn_id=turns[0].decode(), code="x"))

    assert (await asked).code == "x"


@pytest.mark.promise("P6")
async def test_text_hides_that_an_attempt_was_made_again(
    client: Any, redis: Redis, receipt: Receipt
) -> None:
    """Each value is the whole reply so far; the last is what was committed."""
    await publish(
        redis,
        TurnStarted(**IDS, attempt=1),
        TextDelta(**IDS, attempt=1, text="Hel"),
        TurnStarted(**IDS, attempt=2),
        TextDelta(**IDS, attempt=1, text="lo from a zombie", offset=3),
        TextDelta(**IDS, attempt=2, text="Good "),
        TextDelta(**IDS, attempt=2, text="day", offset=5),
        TextDelta(**IDS, attempt=2, text="Good "),
        TurnCompleted(**IDS, attempt=2, text="Good day."),
    )

    shown = [text async for text in client.text(receipt)]

    assert shown == ["Hel", "", "Good ", "Good day", "Good day."]


async def test_events_of_later_versions_are_passed_over(
    client: Any, redis: Redis, receipt: Receipt
) -> None:
    """An old reader gets through a new worker's stream."""
    await redis.xadd(KEYS.events, {"e": b'{"type":"thought","conversation_id":"c","turn_id":"t"}'})
    await publish(redis, *whole_turn())

    assert len([event async for event in client.events(receipt)]) == 4
    assert len(await take(client.follow("c", after="0-0"), 4)) == 4


async def test_following_begins_now_or_behind_an_event(client: Any, redis: Redis) -> None:
    """All turns of the conversation, without an end."""
    ids = await publish(redis, *whole_turn("a"))
    live = client.follow("c")
    first = asyncio.create_task(anext(live))
    await wait_until(lambda: waits(redis), "the reader waits")

    await publish(redis, *whole_turn("b"))

    seen = [await first, *await take(live, 3)]
    assert [event.turn_id for event in seen] == ["b"] * 4
    resumed = await take(client.follow("c", after=ids[1]), 6)
    assert [event.turn_id for event in resumed] == ["a"] * 2 + ["b"] * 4
    assert resumed[2:] == seen


async def test_following_a_new_conversation_sees_its_first_event(client: Any, redis: Redis) -> None:
    """There is no stream yet when the reader comes."""
    live = client.follow("c")
    first = asyncio.create_task(anext(live))
    await wait_until(lambda: waits(redis), "the reader waits")

    await publish(redis, *whole_turn())

    assert isinstance(await first, TurnStarted)


async def test_a_history_is_the_committed_context(client: Any, redis: Redis) -> None:
    """With the system prompt beside it, and marks at replies that were cut short."""
    messages = [
        SystemEntry(content="note"),
        UserEntry(content="hi"),
        AssistantEntry(content="Hel"),
        ToolEntry(content="42", tool_call_id="1"),
    ]
    await redis.rpush(KEYS.context, *map(msgspec.json.encode, messages))
    settings = ConversationSettings(system_prompt="Be brief.")
    await redis.hset(KEYS.state, "settings", msgspec.json.encode(settings))
    for name, end, text in (("of a longer context", 9, "Hel"), ("cut", 3, "Hel"), ("none", 0, "")):
        event = TurnInterrupted(conversation_id="c", turn_id=name, text=text)
        record = TurnRecord(
            state="interrupted",
            accepted_at_ms=1,
            messages_from=max(0, end - 2),
            messages_to=end,
            event=msgspec.Raw(encode_event(event)),
        )
        await redis.hset(KEYS.turns, name, msgspec.json.encode(record))
        await redis.rpush(KEYS.log, name)

    history = await client.history("c")

    assert history.messages == tuple(messages)
    assert history.system_prompt == "Be brief."
    assert history.interrupted == (2,)


async def test_an_unknown_conversation_is_empty(client: Any, redis: Redis) -> None:
    """Nothing was ever said, nothing was spent."""
    history = await client.history("c")

    assert (history.messages, history.system_prompt, history.interrupted) == ((), None, ())
    assert (await client.usage("c")).usage == Usage()
    assert await redis.keys() == []


@pytest.mark.promise("P7")
async def test_usage_is_read_field_by_field(client: Any, redis: Redis) -> None:
    """Answers and abandoned spend apart."""
    await redis.hset(
        KEYS.state,
        mapping={
            "turns": 1,
            "calls": 6,
            "reported_calls": 3,
            "estimated_calls": 2,
            "unknown_calls": 1,
            "u.prompt_tokens": 10,
            "u.cost_usd_ticks": 70,
            "a.prompt_tokens": 4,
            "a.reasoning_tokens": 5,
        },
    )

    totals = await client.usage("c")

    assert (totals.turns, totals.calls, totals.reported_calls) == (1, 6, 3)
    assert (totals.estimated_calls, totals.unknown_calls) == (2, 1)
    assert totals.usage == Usage(prompt_tokens=10, cost_usd_ticks=70)
    assert totals.abandoned == Usage(prompt_tokens=4, reasoning_tokens=5)
