"""Delayed messages against a real server: their place is their time, and they hold up nothing.

Time passes by `pass_by`, which moves what is delayed, so that no test waits for a clock.
"""

import time

import pytest
from redis.asyncio import Redis

from tests.support.driving import KEYS, SHARD, Hand, are_idle, fleet, pass_by, user
from tests.support.wait import wait_until
from turnline.contracts import (
    ContextAppend,
    InboxFull,
    InvalidMessage,
    Transcription,
    TurnClient,
    TurnCompleted,
    UserMessage,
)
from turnline.contracts.conversation import UserEntry
from turnline.contracts.messages import decode
from turnline.contracts.protocol import DELAY_MAX_MS, Limits
from turnline.contracts.scripts import run
from turnline.ops.simulator import Simulator
from turnline.worker.effects import Effects
from turnline.worker.outcome import Done, Parked
from turnline.worker.queue import lua

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def after(ms: int) -> int:
    """A time so far from now."""
    return int(time.time() * 1000) + ms


def later(text: str, ms: int = HOUR_MS, **more) -> UserMessage:
    return user(text, turn_id=text, deliver_at_ms=after(ms), **more)


async def inbox(redis: Redis) -> list[str]:
    return [fields[b"t"].decode() for _, fields in await redis.xrange(KEYS.inbox)]


async def due_in_ms(redis: Redis) -> float:
    score = await redis.zscore(SHARD.queue, KEYS.job_id)
    assert score is not None, "it is off the queue"
    seconds, micros = await redis.time()
    return score - (seconds * 1000 + micros / 1000)


async def said(client: TurnClient) -> list[str]:
    """What the user said, in the order of the conversation."""
    messages = (await client.history("c")).messages
    return [str(it.content) for it in messages if isinstance(it, UserEntry)]


async def run_all(hand: Hand) -> None:
    """Run what is due until nothing is."""
    while (lease := await hand.claim()) is not None:
        outcome = await hand.driver().run(lease)
        if not lease.released:
            await run(hand.redis, lua.release(lease, outcome))


async def test_a_delayed_message_is_accepted_and_waits(redis: Redis, hand: Hand) -> None:
    """Its record says until when; the conversation is due then, and off the inbox."""
    message = later("one")
    receipt = await hand.client.submit(message)

    assert (receipt.status, receipt.position) == ("accepted", 0)
    record = await hand.client.record(receipt)
    assert (record.state, record.deliver_at_ms) == ("accepted", message.deliver_at_ms)
    assert await redis.zscore(SHARD.queue, KEYS.job_id) == message.deliver_at_ms
    assert await inbox(redis) == []
    assert await hand.claim() is None
    again = await hand.client.submit(later("one", 2 * HOUR_MS))
    assert again.status == "duplicate"
    assert await redis.zcard(KEYS.later) == 1


async def test_its_turn_comes_with_its_time(redis: Redis, hand: Hand) -> None:
    """As any other turn; the record keeps its time, and nothing is left."""
    message = later("one")
    receipt = await hand.client.submit(message)
    await pass_by(redis, HOUR_MS)

    await run_all(hand)

    record = await hand.client.record(receipt)
    assert (record.state, record.deliver_at_ms) == ("completed", message.deliver_at_ms)
    assert await said(hand.client) == ["one"]
    assert await redis.zcard(SHARD.queue) == 0
    assert (await redis.exists(KEYS.later), await redis.xlen(KEYS.inbox)) == (0, 0)


@pytest.mark.promise("P2")
async def test_what_is_delayed_holds_up_nothing(redis: Redis, hand: Hand) -> None:
    """Another message is due at once; behind its turn the conversation waits again."""
    await hand.client.submit(later("tomorrow"))
    await hand.client.submit(user("now"))
    assert await due_in_ms(redis) <= 0

    await run_all(hand)

    assert await said(hand.client) == ["now"]
    assert HOUR_MS - 60_000 < await due_in_ms(redis) <= HOUR_MS
    await pass_by(redis, HOUR_MS)
    await run_all(hand)
    assert await said(hand.client) == ["now", "tomorrow"]


@pytest.mark.promise("P2")
async def test_places_go_by_time_and_then_by_acceptance(redis: Redis, hand: Hand) -> None:
    """Whoever is accepted after a delayed message was due is behind it, also if nobody looked."""
    at_ms = after(2 * HOUR_MS)
    for name, when in (("d", 3 * HOUR_MS), ("a", HOUR_MS)):
        await hand.client.submit(later(name, when))
    for name in ("b", "c"):
        await hand.client.submit(user(name, turn_id=name, deliver_at_ms=at_ms))
    assert 0 < await due_in_ms(redis) <= HOUR_MS
    await pass_by(redis, 2 * HOUR_MS + 60_000)

    receipt = await hand.client.submit(user("now", turn_id="now"))

    assert receipt.position == 3
    assert await inbox(redis) == ["a", "b", "c", "now"]
    await run_all(hand)
    assert await said(hand.client) == ["a", "b", "c", "now"]
    assert await redis.zcard(KEYS.later) == 1


async def test_its_position_counts_what_is_due_before_it(redis: Redis, hand: Hand) -> None:
    """Waiting messages, and delayed ones with an earlier time."""
    await hand.client.submit(later("b", 2 * HOUR_MS))
    await hand.client.submit(user("now"))

    assert (await hand.client.submit(later("c", 3 * HOUR_MS))).position == 2
    assert (await hand.client.submit(later("a", HOUR_MS))).position == 1


async def test_what_falls_due_while_a_turn_runs_follows_it(redis: Redis, hand: Hand) -> None:
    """The commit finds it, as anything that came in meanwhile."""
    await hand.client.submit(user("now", turn_id="now"))
    lease = await hand.must_claim()
    loaded = await hand.store.load(lease)
    await hand.client.submit(later("one"))
    assert await redis.xlen(KEYS.inbox) == 1
    await pass_by(redis, HOUR_MS)

    effects = Effects(turn_id="now", entries=[loaded.entries[0].entry_id])
    done = await hand.store.commit(lease, effects, keep_lease=True)

    assert [entry.turn_id for entry in done.entries] == ["one"]
    assert done.outcome == "committed"


async def test_a_release_leaves_the_conversation_due_with_the_next_one(
    redis: Redis, hand: Hand
) -> None:
    """As where a worker finds that nothing is due yet after all."""
    await hand.client.submit(later("one"))
    await redis.zadd(SHARD.queue, {KEYS.job_id: 0})
    lease = await hand.must_claim()

    assert await run(hand.redis, lua.release(lease, Done())) == [b"later", 0]

    assert HOUR_MS - 60_000 < await due_in_ms(redis) <= HOUR_MS
    assert await redis.hget(KEYS.state, "parked") == b"later"


async def woken(redis: Redis) -> int:
    """How many workers were to be woken since the last call: nobody hears it here."""
    count = await redis.llen(SHARD.wake)
    await redis.delete(SHARD.wake)
    return count


async def test_a_time_before_all_others_wakes_a_worker(redis: Redis, hand: Hand) -> None:
    """Idle workers sleep until the first one that they know of, or look by themselves."""
    for name, ms, wakes in (("b", 4, 1), ("c", 5, 0), ("a", 2, 1)):
        await hand.client.submit(later(name, ms * HOUR_MS))
        assert await woken(redis) == wakes, name
    await hand.client.submit(later("other", HOUR_MS, conversation="other"))
    assert await woken(redis) == 1
    await hand.client.submit(later("behind", HOUR_MS + 60_000))
    assert await woken(redis) == 0


async def test_a_turn_that_leaves_such_a_time_behind_wakes_a_worker(
    redis: Redis, hand: Hand
) -> None:
    """By its commit, or as it is released, for good or while it waits for input."""
    await hand.client.submit(user("now", turn_id="now"))
    lease = await hand.must_claim()
    loaded = await hand.store.load(lease)
    await hand.client.submit(later("one"))
    await woken(redis)
    await hand.store.commit(
        lease, Effects(turn_id="now", entries=[loaded.entries[0].entry_id]), keep_lease=False
    )
    assert await woken(redis) == 1

    await hand.make_due("c")
    await hand.release(await hand.must_claim(), Done())
    assert await woken(redis) == 1

    await hand.client.submit(Transcription(conversation_id="c", text="so", turn_id="t"))
    lease = await hand.must_claim()
    await woken(redis)
    await hand.release(lease, Parked(DAY_MS, "input"))
    assert await woken(redis) == 1


async def test_it_ends_a_wait_for_input(redis: Redis, hand: Hand) -> None:
    """As any message does: when it is due, whether it came before the wait or in it."""
    await hand.client.submit(later("two", 2 * HOUR_MS))
    await hand.client.submit(Transcription(conversation_id="c", text="so", turn_id="t"))
    lease = await hand.must_claim()
    await hand.store.load(lease)
    answer = await run(hand.redis, lua.release(lease, Parked(DAY_MS, "input")))

    assert answer == [b"parked", 1]
    assert HOUR_MS < await due_in_ms(redis) <= 2 * HOUR_MS
    await hand.client.submit(later("one"))
    assert await due_in_ms(redis) <= HOUR_MS


async def test_it_does_not_end_a_backoff(redis: Redis, hand: Hand) -> None:
    """As no message does."""
    await hand.client.submit(user("now"))
    lease = await hand.must_claim()
    await hand.store.load(lease)
    await hand.client.submit(later("one"))
    await run(hand.redis, lua.release(lease, Parked(DAY_MS, "backoff")))
    await hand.client.submit(later("two"))

    assert await due_in_ms(redis) > DAY_MS - 60_000


async def test_an_interrupt_stops_nothing_that_is_delayed(redis: Redis, hand: Hand) -> None:
    """There is no turn; what is delayed comes with its time."""
    await hand.client.submit(later("one"))
    await hand.client.interrupt("c")
    await run_all(hand)
    assert await redis.zcard(KEYS.later) == 1

    await pass_by(redis, HOUR_MS)
    await run_all(hand)

    assert await said(hand.client) == ["one"]


async def test_all_keys_outlive_it(redis: Redis, hand: Hand) -> None:
    """Also after a turn, which moves their expiry: 60 days, with a retention of 30."""
    await hand.client.submit(user("before"))
    await run_all(hand)
    await hand.client.submit(later("one", 60 * DAY_MS))
    await hand.client.submit(user("now"))
    await run_all(hand)

    for key in (KEYS.state, KEYS.context, KEYS.turns, KEYS.log, KEYS.later, KEYS.job):
        assert await redis.pttl(key) > 60 * DAY_MS, key


async def test_it_counts_for_the_limit_of_the_inbox(redis: Redis, redis_url: str) -> None:
    """Of what waits, now or later."""
    limits = Limits(inbox=2, records=10)
    async with TurnClient.connect(redis_url, limits=limits) as client:
        for name in ("one", "two"):
            await client.submit(later(name))

        for message in (later("three"), user("now")):
            with pytest.raises(InboxFull):
                await client.submit(message)

    assert await redis.zcard(KEYS.later) == 2


@pytest.mark.promise("P1")
async def test_its_record_stays_until_its_turn_is_over(
    redis: Redis, redis_url: str, hand: Hand
) -> None:
    """However many turns come meanwhile; then it goes in its order."""
    async with TurnClient.connect(redis_url, limits=Limits(inbox=3, records=4)) as client:
        for name in ("one", "two"):
            await client.submit(later(name))
        for n in range(6):
            await client.submit(user(turn_id=f"t{n}"))
            await run_all(hand)

        for name in ("one", "two"):
            assert (await client.submit(later(name))).status == "duplicate"
        assert await redis.lrange(KEYS.log, 0, -1) == [b"one", b"two", b"t4", b"t5"]
        assert sorted(await redis.hkeys(KEYS.turns)) == [b"one", b"t4", b"t5", b"two"]
        await pass_by(redis, HOUR_MS)
        await run_all(hand)
        await client.submit(user(turn_id="t6"))

    assert await redis.lrange(KEYS.log, 0, -1) == [b"two", b"t4", b"t5", b"t6"]


async def test_it_is_forgotten_with_its_conversation(redis: Redis, hand: Hand) -> None:
    """Off the queue, and every key."""
    await hand.client.submit(later("one"))

    assert await hand.client.forget("c")

    assert await redis.zcard(SHARD.queue) == 0
    assert not await redis.exists(*KEYS.own)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"deliver_at_ms": after(DELAY_MAX_MS + DAY_MS)}, "deliver_at_ms: at most 366 days ahead"),
        ({"when_busy": "interrupt"}, "when_busy: `enqueue` for a message with deliver_at_ms"),
        ({"deadline_at_ms": after(HOUR_MS)}, "deadline_at_ms: later than deliver_at_ms"),
    ],
)
async def test_what_does_not_go_together_is_refused(
    hand: Hand, more: dict[str, int | str], field: str
) -> None:
    """By the name of the field."""
    message = user("one", **{"deliver_at_ms": after(2 * HOUR_MS), **more})
    with pytest.raises(InvalidMessage, match=field):
        await hand.client.submit(message)


async def test_a_time_that_is_over_means_now(redis: Redis, hand: Hand) -> None:
    """Also one before the epoch."""
    for at_ms in (1, -5):
        await hand.client.submit(user(str(at_ms), deliver_at_ms=at_ms))
    await run_all(hand)

    assert await said(hand.client) == ["1", "-5"]


async def test_what_is_appended_may_be_delayed(redis: Redis, hand: Hand) -> None:
    """With the turn that it starts."""
    messages = (UserEntry(content="Look again."),)
    receipt = await hand.client.submit(
        ContextAppend(
            conversation_id="c", messages=messages, run=True, deliver_at_ms=after(HOUR_MS)
        )
    )
    assert await hand.claim() is None
    await pass_by(redis, HOUR_MS)
    await run_all(hand)

    assert isinstance((await hand.client.record(receipt)).terminal(), TurnCompleted)


async def test_a_message_is_kept_byte_for_byte(redis: Redis, hand: Hand) -> None:
    """Spaces, line ends and what is not ASCII, in ids too."""
    text = "a  b\nc\r\n\t\N{PILE OF POO} \x01 %s %d"
    await hand.client.submit(
        later(text).__class__(
            conversation_id="c",
            turn_id="\N{LATIN SMALL LETTER E WITH ACUTE}:1",
            text=text,
            deliver_at_ms=after(HOUR_MS),
        )
    )
    await pass_by(redis, HOUR_MS)
    lease = await hand.must_claim()
    (entry,) = (await hand.store.load(lease)).entries

    assert (entry.turn_id, decode(entry.data).text) == ("\xe9:1", text)


@pytest.mark.parametrize("score", [1, 1e13 + 0.5, 1e300, float("inf"), float("-inf")])
async def test_what_others_wrote_there_holds_up_nobody(
    redis: Redis, hand: Hand, score: float
) -> None:
    """It is dropped when it is due, and never, where that is never."""
    await redis.zadd(KEYS.later, {"nonsense": score})
    await hand.client.submit(user("now"))
    await hand.client.submit(later("later"))
    await run_all(hand)

    assert await said(hand.client) == ["now"]
    assert await redis.zrange(KEYS.later, 1, -1) == ([] if score <= 1 else [b"nonsense"])
    await pass_by(redis, HOUR_MS)
    await run_all(hand)
    assert await said(hand.client) == ["now", "later"]
    assert await redis.pttl(KEYS.context) > 0


async def test_a_fleet_waits_for_the_clock(
    redis: Redis, redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """A real worker, a delay of a third of a second, another message before it."""
    async with fleet(redis_url, sim, poll_s="0.05"):
        message = later("soon", 300)
        delayed = await client.submit(message)
        await client.ask("c", "now", timeout_s=10)
        assert isinstance(await client.result(delayed, timeout_s=10), TurnCompleted)
        await wait_until(lambda: is_empty(redis), "the conversation leaves the queue")

    assert await said(client) == ["now", "soon"]
    placed_ms = (await client.record(delayed)).accepted_at_ms
    assert (
        placed_ms >= message.deliver_at_ms - 1
    )  # of a script's time and the clock's one is rounded


async def test_a_worker_that_looks_once_an_hour_is_in_time(
    redis: Redis, redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """It is told, and sleeps until then."""
    async with fleet(redis_url, sim, poll_s="3600"):
        await wait_until(lambda: are_idle(redis, 1), "the worker is idle")
        soon = await client.submit(later("soon", 200))
        assert isinstance(await client.result(soon, timeout_s=10), TurnCompleted)


async def is_empty(redis: Redis) -> bool:
    return not await redis.exists(SHARD.queue)
