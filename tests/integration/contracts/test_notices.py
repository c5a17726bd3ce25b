"""Readers who wait for notices: thousands on two connections, and nobody misses anything."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.integration.contracts.streams import IDS, KEYS, SHARD, emit, hold, publish, take, waits
from tests.support.listening import listening
from tests.support.wait import wait_until
from turnline.contracts import (
    Receipt,
    TextDelta,
    TurnClient,
    TurnCompleted,
    TurnUnknown,
    UserMessage,
    noticed_streams,
)
from turnline.contracts.keys import conversation_keys
from turnline.contracts.notices import read_notice
from turnline.contracts.replies import encode_event
from turnline.ops.embedded import EmbeddedRedis

NEVER_S = 600.0


@pytest.fixture
def server() -> Iterator[EmbeddedRedis]:
    """A server of this test's own: it counts connections and commands."""
    with EmbeddedRedis(port=0) as server:
        yield server


@pytest.fixture
async def redis(server: EmbeddedRedis) -> AsyncIterator[Redis]:
    """A client that looks at it, and writes as workers do."""
    async with Redis.from_url(server.url, protocol=2) as client:
        yield client


@pytest.fixture
async def client(server: EmbeddedRedis) -> AsyncIterator[TurnClient]:
    """The client of the readers."""
    async with TurnClient.connect(server.url) as client:
        yield client


@pytest.fixture
async def receipt(client: TurnClient) -> Receipt:
    """A turn that was accepted."""
    return await accepted(client, "c", "t")


@pytest.fixture
def no_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a notice nothing is read."""
    for name in ("FIRST_SWEEP_S", "LONGEST_SWEEP_S", "UNHEARD_SWEEP_S"):
        monkeypatch.setattr(noticed_streams, name, NEVER_S)


async def accepted(client: TurnClient, conversation_id: str, turn_id: str) -> Receipt:
    message = UserMessage(conversation_id=conversation_id, turn_id=turn_id, text="Hi")
    return await client.submit(message)


def delta(n: int, conversation_id: str = "c", turn_id: str = "t") -> TextDelta:
    return TextDelta(conversation_id=conversation_id, turn_id=turn_id, text=str(n), offset=n)


def numbers(events: Sequence[Any]) -> list[int]:
    return [event.offset for event in events]


async def connections(redis: Redis) -> int:
    """How many there are, without that of whoever asks."""
    return len(await redis.client_list()) - 1


async def reads(redis: Redis) -> int:
    """How often a stream was read so far."""
    stats = await redis.info("commandstats")
    return int(stats.get("cmdstat_xread", {}).get("calls", 0))


async def is_settled(client: TurnClient, count: int) -> bool:
    """Whether so many readers wait, and nothing is on its way to them."""
    streams: Any = client._streams
    idle = not any(batches.is_busy for batches in streams._batches.values())
    behind = [it for reader in streams._waiting for it in reader.cursors if it.is_behind]
    return len(streams._waiting) == count and idle and not behind


async def settled(client: TurnClient, redis: Redis, *streams: str, readers: int = 1) -> None:
    """Wait until the notices of streams are heard, and so many readers wait in each."""
    for stream in streams:
        await wait_until(lambda stream=stream: waits(redis, stream), "notices are heard")
    await wait_until(lambda: is_settled(client, len(streams) * readers), "the readers wait")


async def test_many_readers_share_two_connections(client: TurnClient, redis: Redis) -> None:
    """One for commands, one for notices; each reader gets its own events, in order."""
    names = [f"c{n}" for n in range(300)]
    receipts = [await accepted(client, name, "t") for name in names]
    readers = [asyncio.create_task(take(client.events(it), 3)) for it in receipts]
    await settled(client, redis, *(conversation_keys(SHARD.tag, name).events for name in names))

    for n in range(3):
        for name in names:
            await emit(redis, delta(n, name))

    for name, events in zip(names, await asyncio.gather(*readers), strict=True):
        assert {event.conversation_id for event in events} == {name}
        assert numbers(events) == [0, 1, 2]
    assert await connections(redis) == 2


@pytest.mark.usefixtures("no_sweeps")
async def test_a_notice_brings_its_events(
    client: TurnClient, redis: Redis, receipt: Receipt
) -> None:
    """Nothing is read for them but for the first of a stream, however many readers there are."""
    readers = [client.events(receipt), client.events(receipt), client.follow("c")]
    taking = [asyncio.create_task(take(reader, 5)) for reader in readers]
    await settled(client, redis, KEYS.events, readers=3)
    await emit(redis, delta(0))
    await settled(client, redis, KEYS.events, readers=3)
    before = await reads(redis)

    await emit(redis, delta(1))
    await emit(redis, delta(2), delta(3))
    await emit(redis, TurnCompleted(**IDS, text="done"))

    for events in await asyncio.gather(*taking):
        assert numbers(events[:4]) == [0, 1, 2, 3]
        assert isinstance(events[4], TurnCompleted)
    assert await reads(redis) == before


@pytest.mark.usefixtures("no_sweeps")
async def test_what_was_written_without_a_notice_comes_before_the_next(
    client: TurnClient, redis: Redis, receipt: Receipt
) -> None:
    """A notice says behind what its events stand."""
    reading = asyncio.create_task(take(client.events(receipt), 3))
    await settled(client, redis, KEYS.events)
    await redis.xadd(KEYS.events, {"e": encode_event(delta(0))})

    await emit(redis, delta(1))
    await emit(redis, delta(2))

    assert numbers(await reading) == [0, 1, 2]


@pytest.mark.usefixtures("no_sweeps")
async def test_an_event_that_is_too_large_for_a_notice_is_read(
    client: TurnClient, redis: Redis, receipt: Receipt
) -> None:
    """The notice says that there is one; what follows comes by itself again."""
    reading = asyncio.create_task(take(client.events(receipt), 2))
    await settled(client, redis, KEYS.events)

    await emit(redis, TextDelta(**IDS, text="x" * 20_000))
    await emit(redis, TextDelta(**IDS, text="y", offset=20_000))

    assert [len(event.text) for event in await reading] == [20_000, 1]


async def test_a_slow_reader_keeps_little_and_holds_up_nobody(
    client: TurnClient, redis: Redis, receipt: Receipt
) -> None:
    """What it does not ask for stays at the server."""
    slow, quick = client.events(receipt), client.events(receipt)
    reading = [asyncio.create_task(anext(it)) for it in (slow, quick)]
    await settled(client, redis, KEYS.events, readers=2)
    await emit(redis, delta(0))
    await asyncio.gather(*reading)

    for n in range(1, 400):
        await emit(redis, delta(n))
        assert (await anext(quick)).offset == n

    opened: Any = slow._opened
    assert sum(len(entries) for _, entries in opened._found) <= noticed_streams.MOST_KEPT
    assert numbers(await take(slow, 399)) == list(range(1, 400))


async def test_a_step_may_be_cancelled_at_any_time(
    client: TurnClient, redis: Redis, receipt: Receipt
) -> None:
    """The next one goes on: nothing is lost, doubled or out of order."""
    events = client.events(receipt)
    seen: list[Any] = []

    async def write() -> None:
        for n in range(300):
            await emit(redis, delta(n))

    writing = asyncio.create_task(write())
    cancelled = 0
    while len(seen) < 300:
        try:
            seen.append(await asyncio.wait_for(anext(events), 0.0005))
        except TimeoutError:
            cancelled += 1

    await writing
    assert numbers(seen) == list(range(300))
    assert cancelled


async def test_keep_alives_come_while_nothing_happens(
    client: TurnClient, redis: Redis, receipt: Receipt
) -> None:
    """And between them, whatever happens; also where steps are cancelled."""
    events = client.events(receipt, keep_alive_s=0.05)
    assert await anext(events) is None
    cancelled = 0
    while True:
        try:
            assert await asyncio.wait_for(anext(events), 0.01) is None
            break
        except TimeoutError:
            cancelled += 1
    assert cancelled

    await emit(redis, delta(0), TurnCompleted(**IDS, text="done"))

    rest = [event async for event in events if event is not None]
    assert [type(event) for event in rest] == [TextDelta, TurnCompleted]


@pytest.mark.parametrize("rights", ["resetchannels", "allchannels"])
async def test_readers_without_rights_to_channels_look_now_and_then(
    redis: Redis, server: EmbeddedRedis, rights: str
) -> None:
    """The same holds for what is written by those who publish nothing."""
    rules = ["reset", "on", ">pw", "allkeys", "+@all", rights]
    await redis.execute_command("ACL", "SETUSER", "reader", *rules)
    async with TurnClient.connect(server.url.replace("//", "//reader:pw@")) as client:
        receipt = await accepted(client, "c", "t")
        events = client.events(receipt)
        for n in range(3):
            waiting = asyncio.create_task(anext(events))
            await wait_until(lambda: client._streams._waiting, "the reader waits")  # type: ignore[attr-defined]
            await redis.xadd(KEYS.events, {"e": encode_event(delta(n))})

            assert (await asyncio.wait_for(waiting, 5)).offset == n
            opened: Any = events._opened
            if n:  # the first may have come with the read that a confirmation is followed by
                assert opened._pause_s == noticed_streams.UNHEARD_SWEEP_S


@pytest.mark.usefixtures("no_sweeps")
async def test_what_came_while_nobody_listened_is_read(
    client: TurnClient, redis: Redis, receipt: Receipt
) -> None:
    """Once the subscription stands again."""
    reading = asyncio.create_task(take(client.events(receipt), 200))
    await settled(client, redis, KEYS.events)
    for n in range(200):
        if n % 20 == 10:
            await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await emit(redis, delta(n))

    assert numbers(await reading) == list(range(200))


@pytest.mark.usefixtures("no_sweeps")
async def test_a_reader_hears_that_its_turn_is_forgotten(
    client: TurnClient, redis: Redis, receipt: Receipt
) -> None:
    """At once."""
    events = client.events(receipt)
    waiting = [asyncio.create_task(anext(events)), asyncio.create_task(client.result(receipt))]
    await settled(client, redis, KEYS.events, readers=2)

    await client.forget("c")

    for task in waiting:
        with pytest.raises(TurnUnknown):
            await asyncio.wait_for(task, 5)


async def test_who_has_left_is_subscribed_to_nothing(
    client: TurnClient, redis: Redis, receipt: Receipt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the iterator was closed or just dropped."""
    monkeypatch.setattr(noticed_streams, "LINGER_S", 0.05)
    dropped, closed = client.events(receipt), client.follow("c")
    for events in (dropped, closed):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(anext(events), 0.05)
    await wait_until(lambda: waits(redis), "notices are heard")

    await closed.aclose()
    del dropped, events
    gc.collect()

    async def is_unheard() -> bool:
        return not await waits(redis)

    await wait_until(is_unheard, "nobody listens")
    streams: Any = client._streams
    assert not streams._topics
    assert not streams._waiting


async def test_whoever_waits_is_told_that_the_client_is_closed(
    client: TurnClient, redis: Redis, receipt: Receipt
) -> None:
    """Instead of waiting for ever."""
    waiting = asyncio.create_task(anext(client.events(receipt)))
    await settled(client, redis, KEYS.events)

    await client.aclose()

    with pytest.raises(RuntimeError, match="is closed"):
        await waiting


async def test_notices_of_a_stream_are_the_stream(redis: Redis, client: TurnClient) -> None:
    """Each begins where the one before has ended, and nothing is missing."""
    await hold(redis)
    async with listening(redis, KEYS.events) as heard:
        for n in range(5):
            await emit(redis, delta(n), delta(n + 1))
        await wait_until(lambda: len(heard) == 5, "all were heard")
        await client.forget("c")
        await wait_until(lambda: len(heard) == 6, "the end was heard")

    notices = [read_notice(data) for data in heard[:5]]
    assert notices[0].behind == b"0-0"
    for before, notice in pairwise(notices):
        assert notice.behind == before.entries[-1][0]
    assert read_notice(heard[5]).may_be_gone


async def test_a_reader_with_a_backlog_is_given_it_in_order(
    client: TurnClient, redis: Redis, receipt: Receipt
) -> None:
    """While more is written and said."""
    await publish(redis, *(delta(n) for n in range(700)))

    async def write() -> None:
        for n in range(700, 900):
            await emit(redis, delta(n))

    writing = asyncio.create_task(write())
    seen = await take(client.events(receipt), 900)

    await writing
    assert numbers(seen) == list(range(900))


async def test_whoever_asks_after_the_client_was_closed_is_told(server: EmbeddedRedis) -> None:
    """Nobody would wake such a reader."""
    async with TurnClient.connect(server.url) as client:
        receipt = await client.submit(UserMessage(conversation_id="c", text="hi"))
        events = client.events(receipt, keep_alive_s=0.01)
        assert await anext(events) is None

    with pytest.raises(RuntimeError, match="is closed"):
        await asyncio.wait_for(anext(events), 2)


async def test_an_iterator_may_be_closed_while_another_task_waits_in_it(
    server: EmbeddedRedis, redis: Redis
) -> None:
    """As a handler of disconnections does."""
    async with TurnClient.connect(server.url) as client:
        receipt = await client.submit(UserMessage(conversation_id="c", text="hi"))
        events = client.events(receipt)
        step = asyncio.ensure_future(anext(events))
        await wait_until(lambda: waits(redis), "it waits for notices")

        await events.aclose()

        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(step, 2)


@pytest.mark.parametrize("keep_alive_s", [0, -1, float("nan")])
async def test_a_keep_alive_that_is_no_time_is_refused(
    client: TurnClient, keep_alive_s: float
) -> None:
    """It would come all the time, or never."""
    receipt = Receipt(conversation_id="c", turn_id="t", status="accepted")
    with pytest.raises(ValueError, match="keep_alive_s"):
        client.events(receipt, keep_alive_s=keep_alive_s)


async def is_later(clock: Redis, written: Redis) -> bool:
    """Whether what is written now has other ids, which are times in ms."""
    (newest, _), *_ = await written.xrevrange(KEYS.events, count=1)
    seconds, microseconds = await clock.time()
    return bool(seconds * 1000 + microseconds // 1000 > int(newest.partition(b"-")[0]))


async def test_a_notice_of_another_database_shows_nothing(
    server: EmbeddedRedis, no_sweeps: None
) -> None:
    """Channels are the same for all databases: a fleet there may have a conversation of that id."""
    async with (
        Redis.from_url(server.url_of(1), protocol=2) as own,
        Redis.from_url(server.url_of(2), protocol=2) as other,
        TurnClient.connect(server.url_of(1)) as client,
    ):
        follower = client.follow("c", after="0")
        step = asyncio.create_task(anext(follower))
        await wait_until(lambda: waits(own), "it listens")
        for n in range(3):
            await emit(other, delta(n, turn_id="theirs"))
            await wait_until(lambda: is_later(own, other), "its ids are others")
            await emit(own, delta(n, turn_id="ours"))
            await wait_until(lambda: is_later(own, own), "its ids are others")
        seen = [await step, *await take(follower, 2)]

        assert [(it.turn_id, it.offset) for it in seen] == [("ours", n) for n in range(3)]
        step = asyncio.create_task(anext(follower))
        await emit(other, delta(3, turn_id="theirs"), delta(4, turn_id="theirs"))
        await emit(own, delta(5, turn_id="ours"))
        assert (await step).offset == 5  # type: ignore[union-attr]
        await follower.aclose()
