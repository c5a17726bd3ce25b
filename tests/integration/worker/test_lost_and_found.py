"""What comes at the wrong moment, what a server lost, what must not be kept: none is missed."""

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as LostConnection

from tests.support.driving import SHARD, Hand, batcher_on, ended, fleet, user
from tests.support.driving import hand as open_hand
from tests.support.wait import wait_until
from turnline.contracts import (
    Interrupt,
    Transcription,
    TurnAbsorbed,
    TurnClient,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    UserStartedSpeaking,
    UserStoppedSpeaking,
)
from turnline.contracts.conversation import CallEntry
from turnline.contracts.keys import conversation_keys
from turnline.contracts.scripts import Call
from turnline.ops.embedded import EmbeddedRedis
from turnline.ops.simulator import Simulator
from turnline.worker.batching import ScriptBatcher
from turnline.worker.effects import ConversationSnapshot, Copy, Entry
from turnline.worker.errors import LeaseLost
from turnline.worker.lease import Lease
from turnline.worker.outcome import Parked
from turnline.worker.queue.lua import renew
from turnline.worker.store.breakers import Breakers
from turnline.worker.store.cache import ContextCache
from turnline.worker.store.conversations import Conversations, StoreLimits
from turnline.worker.store.traces import TraceLimits, Traces
from turnline.worker.telemetry.spans import TurnSpans
from turnline.worker.turn.driver import ConversationDriver
from turnline.worker.turn.event_writer import EventWriter

KEYS = conversation_keys(SHARD.tag, "c")


async def due_in_ms(redis: Redis) -> float:
    """When the conversation is due, from now; 0 or less: now."""
    due = await redis.zscore(SHARD.queue, KEYS.job_id)
    assert due is not None, "it is off the queue"
    now_s, more_us = await redis.time()
    return due - (now_s * 1000 + more_us // 1000)


def limited(hand: Hand, **limits: int) -> Conversations:
    """A store that keeps less."""
    return Conversations(hand.batcher, SHARD, cache=ContextCache(0), limits=StoreLimits(**limits))


async def parked_by(hand: Hand) -> tuple[Lease, Parked]:
    """Run what is due up to the moment before the queue parks it."""
    lease = await hand.must_claim()
    outcome = await hand.driver().run(lease)
    assert isinstance(outcome, Parked)
    return lease, outcome


# -- news at the wrong moment -------------------------------------------------------------------


async def test_a_word_between_the_end_of_a_speech_run_and_its_park_ends_the_wait(
    redis_url: str, redis: Redis, sim: Simulator, client: TurnClient
) -> None:
    """Nobody looked at it, and no submission finds the conversation parked: it is due now."""
    async with open_hand(redis_url, sim, speech_timeout_s=0.05) as hand:
        await client.submit(UserStartedSpeaking(conversation_id="c"))
        await client.submit(Transcription(conversation_id="c", text="hello"))
        lease, parked = await parked_by(hand)

        await client.submit(UserStoppedSpeaking(conversation_id="c"))
        await hand.release(lease, parked)

        assert await due_in_ms(redis) <= 0
        await hand.run_one()
    history = await client.history("c")
    assert history.messages[0].content == "hello"


@pytest.mark.parametrize(
    ("news", "is_due"),
    [
        (Interrupt(conversation_id="c"), True),
        (user("stop that", when_busy="interrupt"), True),
        (user("and this", when_busy="rollback"), True),
        (user("another"), False),
        (UserStoppedSpeaking(conversation_id="c"), False),
    ],
)
async def test_only_what_acts_ends_a_backoff_that_has_just_begun(
    redis: Redis, hand: Hand, client: TurnClient, sim: Simulator, news: Any, is_due: bool
) -> None:
    """Between the decision to wait and the park as later: a plain message calls no provider."""
    sim.inject("rate-limit;retry_after=60")
    await client.submit(user("hi"))
    lease, parked = await parked_by(hand)
    assert parked.why == "backoff"

    await client.submit(news)
    await hand.release(lease, parked)

    assert (await due_in_ms(redis) <= 0) is is_due
    assert (await hand.claim() is not None) is is_due


class LateStore:
    """The store, on a day when a look into the inbox takes until the provider has failed."""

    def __init__(self, store: Conversations, client: TurnClient) -> None:
        self._store = store
        self._client = client
        self.failed = asyncio.Event()
        self.looked = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def load(self, lease: Lease) -> ConversationSnapshot:
        loaded = await self._store.load(lease)
        await self._client.interrupt("c")
        lease.notify()
        return loaded

    async def more(self, lease: Lease, after: str) -> list[Entry]:
        await self.failed.wait()
        entries = await self._store.more(lease, after)
        self.looked.set()
        return entries


class LateBreakers(Breakers):
    """Breakers whose answer comes behind the look into the inbox."""

    store: LateStore

    async def failed(self, name: str, conversation_id: str) -> None:
        await super().failed(name, conversation_id)
        self.store.failed.set()
        await self.store.looked.wait()


@pytest.mark.promise("P7")
@pytest.mark.parametrize("scenario", ["status=503", "rst;at=tokens:3"])
async def test_an_interrupt_while_the_provider_fails_ends_the_turn_as_interrupted(
    redis: Redis, hand: Hand, client: TurnClient, sim: Simulator, scenario: str
) -> None:
    """There is nothing to try again, and each call stands in the ledger exactly once."""
    sim.inject(scenario, times=None)
    receipt = await client.submit(user("hi"))
    store = LateStore(hand.store, client)
    breakers = LateBreakers(hand.batcher, SHARD)
    breakers.store = store
    driver = ConversationDriver(store, hand.services, breakers, SHARD, hand.settings)

    async with asyncio.timeout(5):
        assert not isinstance(await driver.run(await hand.must_claim()), Parked)

    await ended(client, receipt, TurnInterrupted)
    calls = [
        msgspec.json.decode(it, type=CallEntry) for it in await redis.lrange(KEYS.calls, 0, -1)
    ]
    requests = [it for it in sim.ledger.entries() if it.path.endswith("completions")]
    assert len(calls) == len({call.call_id for call in calls}) == len(requests) == 1
    assert (await client.usage("c")).calls == 1


# -- what the server lost -----------------------------------------------------------------------


async def saved(redis: Redis) -> dict[bytes, bytes]:
    """What a server would find on its disk."""
    return {key: await redis.dump(key) for key in await redis.keys()}


async def lose_all_since(redis: Redis, then: dict[bytes, bytes]) -> None:
    """A server that comes back without its last second."""
    await redis.flushdb()
    for key, value in then.items():
        await redis.restore(key, 0, value)


async def test_a_cache_does_not_believe_in_messages_that_the_server_lost(
    redis_url: str, redis: Redis, hand: Hand, client: TurnClient, sim: Simulator
) -> None:
    """As many as before do not mean the same ones: what the server has is what was said."""
    await client.submit(user("one"))
    await hand.run_one()
    then = await saved(redis)
    await client.submit(user("lost"))
    await hand.run_one()
    await lose_all_since(redis, then)
    async with open_hand(redis_url, sim) as other:
        await client.submit(user("found"))
        await other.run_one()

    await client.submit(user("three"))
    await hand.run_one()

    last = [it for it in sim.ledger.entries() if it.path.endswith("completions")][-1]
    asked = msgspec.json.decode(last.body)["messages"]
    assert [it["content"] for it in asked if it["role"] == "user"] == ["one", "found", "three"]
    history = (await client.history("c")).messages
    assert [it["content"] for it in asked] == [it.content for it in history][:-1]


@pytest.mark.promise("P4")
async def test_the_value_of_a_lease_is_never_given_twice(redis: Redis, hand: Hand) -> None:
    """Also where the server lost the counter: the first holder's writes stay refused."""
    await hand.client.submit(user("hi"))
    values: list[str] = []
    then = await saved(redis)
    for _ in range(3):
        values.append((await hand.must_claim()).value)
        await lose_all_since(redis, then)
    lease = await hand.must_claim()
    for _ in range(3):
        values.append(lease.value)
        await hand.expire(lease)
        lease = await hand.must_claim()

    assert len({*values, lease.value}) == 7
    tokens = [int(value.split()[0]) for value in (*values, lease.value)]
    assert tokens == sorted(tokens)


# -- what was not answered ----------------------------------------------------------------------


class LossyBatcher(ScriptBatcher):
    """A batcher that loses the first batch of text on a connection that has just ended."""

    has_lost = False

    def run(self, call: Call) -> "asyncio.Future[Any]":
        is_text = call.script.name == "emit" and not call.args[1]
        if self.has_lost or not is_text:
            return super().run(call)
        self.has_lost = True
        lost: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        lost.set_exception(LostConnection("gone"))
        return lost


@pytest.mark.promise("P6")
async def test_a_batch_of_events_that_is_tried_again_is_not_overtaken(
    redis: Redis, hand: Hand, client: TurnClient
) -> None:
    """What overtook it would make the server take it for a repetition, and drop it."""
    receipt = await client.submit(user("hi"))
    lease = await hand.must_claim()
    entry_id = (await hand.store.load(lease)).entries[0].entry_id
    batcher = LossyBatcher(hand.pipelines, SHARD.tag)
    writer = EventWriter(
        Conversations(batcher, SHARD, cache=ContextCache(0)),
        lease,
        {"conversation_id": "c", "turn_id": receipt.turn_id, "attempt": 1, "trace_id": ""},
        entry_id=entry_id,
        batches=itertools.count(1),
        coalesce_s=0.01,
        coalesce_bytes=512,
    )
    call = CallEntry(call_id="x", turn_id=receipt.turn_id, attempt=1, model="m", state="unknown")

    writer.text("one ")
    await wait_until(lambda: batcher.has_lost, "the first batch is lost")
    writer.text("two ")
    await writer.begin_call(call)

    events = [msgspec.json.decode(fields[b"e"]) for _, fields in await redis.xrange(KEYS.events)]
    assert [event["text"] for event in events] == ["one ", "two "]


def any_call(argument: Any) -> Call:
    return renew(SHARD, argument, [], lease_s=1, about=b"{}")


@pytest.mark.promise("P7", "P11")
async def test_no_call_is_made_that_a_failover_left_no_note_of(redis: Redis, hand: Hand) -> None:
    """The new primary has the claim, but not the load: a call would be in nobody's ledger."""
    await hand.client.submit(user())
    lease = await hand.must_claim()
    loaded = await hand.store.load(lease)
    head = loaded.entries[0].entry_id
    call = CallEntry(
        call_id="t/1/1", turn_id="t", attempt=1, model="m", state="unknown", abandoned=True
    )
    await redis.hdel(KEYS.state, "head", "attempt", "running")  # as replicated: not at all

    await hand.store.emit(lease, [b"{}"], head=head, batch=1)  # readers get the text with the end
    assert not await redis.exists(KEYS.events)
    with pytest.raises(LeaseLost):
        await hand.store.emit(lease, [], head=head, batch=2, call=call)


@pytest.mark.promise("P7")
async def test_no_call_is_made_that_is_taken_for_a_repetition(hand: Hand) -> None:
    """Were its number that of an earlier batch, nobody would note it."""
    await hand.client.submit(user())
    lease = await hand.must_claim()
    head = (await hand.store.load(lease)).entries[0].entry_id
    call = CallEntry(call_id="t/1/1", turn_id="t", attempt=1, model="m", state="unknown")

    await hand.store.emit(lease, [], head=head, batch=2, call=call)
    await hand.store.emit(lease, [], head=head, batch=2, call=call)  # the reply was lost
    with pytest.raises(LeaseLost):
        await hand.store.emit(lease, [], head=head, batch=1, call=call)


async def test_a_call_that_cannot_be_sent_ends_for_all_that_travel_with_it(redis_url: str) -> None:
    """Whatever goes wrong is heard by whoever waits, and the next call is sent as ever."""
    async with batcher_on(redis_url) as batcher, asyncio.timeout(5):
        futures = [batcher.run(any_call(argument)) for argument in ("x", "\ud800")]
        ends = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(end) for end in ends] == [UnicodeEncodeError] * 2
        with pytest.raises(UnicodeEncodeError):
            await batcher.run(any_call("\ud800"))
        await batcher.run(any_call("x"))


@pytest.mark.promise("P11")
async def test_a_call_to_a_server_that_says_nothing_ends() -> None:
    """As one that could not be reached: callers try again, on a new connection."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        async with batcher_on(url, silence_s=0.05) as batcher:
            began_s = time.monotonic()
            with pytest.raises(OSError):
                await batcher.run(any_call("x"))
            assert time.monotonic() - began_s < 2


class Wire:
    """A TCP address of a server whose connections can vanish without a word to either side."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._tasks = set[asyncio.Task[None]]()
        self._dead = set[asyncio.Task[None]]()

    @contextlib.asynccontextmanager
    async def url(self) -> AsyncIterator[str]:
        """Listen, and end all connections with it."""
        listening = await asyncio.start_server(self._take, "127.0.0.1", 0)
        try:
            yield f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}/0"
        finally:
            listening.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def vanish(self) -> None:
        """What is sent on the connections of now arrives nowhere, and nobody is told."""
        self._dead |= self._tasks

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.create_task(self._connect(reader, writer)))

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(self._path)
        own = asyncio.current_task()

        async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(1 << 16):
                    if own not in self._dead:
                        target.write(data)
            if own not in self._dead:
                target.close()

        try:
            await asyncio.gather(carry(reader, far_writer), carry(far_reader, writer))
        finally:
            for each in (writer, far_writer):
                each.close()
                with contextlib.suppress(OSError):
                    await each.wait_closed()


@pytest.mark.promise("P11")
async def test_a_worker_notices_connections_that_vanished_without_a_word(
    sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scripts, and the ear for work and interrupts, each begin again on new ones."""
    monkeypatch.setattr("turnline.worker.batching.SILENCE_S", 0.2)
    for name in ("PING_AFTER_S", "GONE_AFTER_S"):
        monkeypatch.setattr(f"turnline.contracts.subscriber_link.{name}", 0.2)
    with EmbeddedRedis() as server:
        wire = Wire(server.url.removeprefix("unix://").partition("?")[0])
        async with (
            wire.url() as url,
            TurnClient.connect(server.url) as client,
            fleet(url, sim),
        ):
            assert isinstance(await client.ask("c", "one", timeout_s=5), TurnCompleted)
            wire.vanish()

            assert isinstance(await client.ask("c", "two", timeout_s=5), TurnCompleted)
            sim.inject("stall;at=tokens:3")
            receipt = await client.submit(user("three"))
            async for _ in client.text(receipt):
                break
            await client.interrupt("c")
            await ended(client, receipt, TurnInterrupted)


# -- what is kept, and for how long -------------------------------------------------------------


@pytest.mark.parametrize("why", ["input", "backoff"])
async def test_a_conversation_outlives_what_it_waits_for(
    redis: Redis, hand: Hand, client: TurnClient, why: Any
) -> None:
    """A park may be longer than the retention: all that the conversation has is still there."""
    await client.submit(user("hi", reply_to="inbox"))
    await hand.run_one()
    await client.submit(user("wait"))
    lease = await hand.must_claim()
    await hand.store.load(lease)
    await hand.store.checkpoint(lease, 0, [b"m{}"])
    lasting = [key for key in await redis.keys("*c:c*") if key != KEYS.in_progress.encode()]
    for key in lasting:
        await redis.pexpire(key, 60_000)  # a retention of a minute

    await hand.release(lease, Parked(3_600_000, why))

    assert {KEYS.inbox, KEYS.context, KEYS.steps} < {key.decode() for key in lasting}
    for key in (*lasting, KEYS.job.encode()):
        assert await redis.pttl(key) > 3_600_000, key
    for key in (SHARD.queue, SHARD.token):
        assert await redis.pttl(key) == -1


async def copies_left(redis: Redis) -> dict[str, int]:
    keys = await redis.keys(f"{SHARD.reply_prefix}*")
    return {key.decode().removeprefix(SHARD.reply_prefix): await redis.xlen(key) for key in keys}


async def test_copies_that_forget_could_not_find_are_not_kept(redis: Redis, hand: Hand) -> None:
    """The notes of them are capped, and what falls out is deleted: by commit and by checkpoint."""
    hand.store = limited(hand, copies=3)
    for n in range(5):
        await hand.client.submit(user(f"m{n}", reply_to=f"r{n}"))
    await hand.run_one()
    assert {name for name, count in (await copies_left(redis)).items() if count} == {
        *("r2", "r3", "r4")
    }

    await hand.client.submit(user("more"))
    lease = await hand.must_claim()
    copies = [Copy(SHARD.reply_prefix + name, {"e": "x"}) for name in ("s0", "s1")]
    await hand.store.checkpoint(lease, 0, [b"m{}"], copies)
    assert {name for name, count in (await copies_left(redis)).items() if count} == {
        *("r4", "s0", "s1")
    }
    assert await redis.llen(KEYS.copies) == 3

    assert await hand.client.forget("c")
    assert sum((await copies_left(redis)).values()) == 0


async def test_traces_that_forget_could_not_find_are_not_kept(redis: Redis, hand: Hand) -> None:
    """As with replies: what is noted no longer is deleted."""
    receipt = await hand.client.submit(user("hi"))
    await hand.run_one()
    traces = Traces(hand.batcher, SHARD, limits=TraceLimits(copies=2))
    for n in range(4):
        turn = TurnSpans(
            conversation_id="c", turn_id=receipt.turn_id, trace_id=f"{n:032}", attempt=1, spans=[]
        )
        traces.keep(turn, b"[]")
    await traces.close()

    kept = [fields[b"i"] for _, fields in await redis.xrange(SHARD.traces)]
    assert kept == [b"%032d" % n for n in (2, 3)]
    assert await hand.client.forget("c")
    assert await redis.xlen(SHARD.traces) == 0


async def test_shared_streams_keep_nothing_past_the_retention(redis: Redis, hand: Hand) -> None:
    """Their expiry slides with each entry, so that those that are old go by themselves."""
    hand.store = limited(hand, retention_ms=60_000)
    for stream in (SHARD.dead, SHARD.reply_prefix + "inbox", SHARD.tool_calls):
        await redis.xadd(stream, {"c": "old", "e": "secret"}, id="5-1")
    failing = await hand.client.submit(user("hi", deadline_at_ms=1, reply_to="inbox"))
    await hand.run_one()
    await ended(hand.client, failing, TurnFailed)
    await hand.client.submit(user("more"))
    lease = await hand.must_claim()
    await hand.store.checkpoint(lease, 0, [b"m{}"], [Copy(SHARD.tool_calls, {"e": "new"})])

    for stream in (SHARD.dead, SHARD.reply_prefix + "inbox", SHARD.tool_calls):
        ((_, fields),) = await redis.xrange(stream)
        assert fields.get(b"c") != b"old"


@pytest.mark.promise("P1")
async def test_each_part_of_a_merged_turn_that_failed_has_its_dead_letter(
    redis: Redis, hand: Hand, client: TurnClient, sim: Simulator
) -> None:
    """Its words are in no context, so they are kept where the others of that turn are."""
    sim.inject("stop")
    one = await client.submit(user("first words", final=False))
    two = await client.submit(user("second words"))
    await hand.run_one()

    absorbed = await ended(client, one, TurnAbsorbed)
    assert absorbed.into == two.turn_id
    failed = await ended(client, two, TurnFailed)
    letters = [fields for _, fields in await redis.xrange(SHARD.dead)]
    assert {(it[b"t"].decode(), it[b"code"].decode()) for it in letters} == {
        (one.turn_id, failed.code),
        (two.turn_id, failed.code),
    }
    assert [b"first words" in it[b"m"] for it in letters].count(True) == 1


async def test_parts_of_a_merged_turn_that_went_well_have_no_dead_letter(
    redis: Redis, hand: Hand, client: TurnClient
) -> None:
    """Their words are in the context."""
    await client.submit(user("first words", final=False))
    last = await client.submit(user("second words"))
    await hand.run_one()

    await ended(client, last, TurnCompleted)
    assert await redis.exists(SHARD.dead) == 0
