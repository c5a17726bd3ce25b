"""Ratings of turns: they become part of the record of the turn that is rated."""

from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.driving import KEYS, SHARD, Hand, ended, requests, user
from turnline.contracts import (
    Configure,
    ContextReplace,
    Feedback,
    Rating,
    Receipt,
    SyncTurnClient,
    TurnAbsorbed,
    TurnClient,
    TurnCompleted,
    TurnFailed,
)
from turnline.contracts.conversation import SettingsChange, UserEntry
from turnline.worker.effects import Effects
from turnline.worker.errors import LeaseLost, StoreUnavailable
from turnline.worker.outcome import Parked

Said = tuple[str, float | None, str | None, str | None]


async def ratings(client: TurnClient, receipt: Receipt) -> list[Said]:
    """What the record of a turn says about it."""
    record = await client.record(receipt)
    return [(it.name, it.score, it.label, it.explanation) for it in record.feedback]


async def answered(hand: Hand, text: str = "Hello") -> Receipt:
    """A turn that has ended."""
    receipt = await hand.client.submit(user(text))
    await hand.run_one()
    return receipt


@pytest.mark.promise("P2")
async def test_a_rating_becomes_part_of_the_record(hand: Hand) -> None:
    """With all it says; the rest of the record, context and spend are as they were."""
    asked = await answered(hand)
    before, totals = await hand.client.record(asked), await hand.client.usage("c")
    history = await hand.client.history("c")

    rated = await hand.client.feedback(asked, 1, label="good", explanation="It greets.")
    await hand.run_one()

    record = await hand.client.record(asked)
    at_ms = (await hand.client.record(rated)).accepted_at_ms
    assert record.feedback == (
        Rating(
            name="user_feedback",
            score=1.0,
            label="good",
            explanation="It greets.",
            feedback_id=rated.turn_id,
            at_ms=at_ms,
        ),
    )
    assert {f: getattr(record, f) for f in record.__struct_fields__ if f != "feedback"} == {
        f: getattr(before, f) for f in record.__struct_fields__ if f != "feedback"
    }
    assert record.terminal() == before.terminal()
    end = await ended(hand.client, rated, TurnCompleted)
    assert (end.text, end.usage.total_tokens) == ("", 0)
    assert await hand.client.history("c") == history
    assert (await hand.client.usage("c")) == totals
    assert len(requests(hand.sim)) == 1
    resent = await hand.client.submit(user("Hello", turn_id=asked.turn_id))
    assert resent.status == "duplicate"


async def test_a_turn_that_runs_is_rated_when_it_has_ended(hand: Hand) -> None:
    """What is sent while the reply streams, and behind it, takes effect in that order."""
    asked = await hand.client.submit(user("first"))
    await hand.client.feedback(asked, 0)
    later = await hand.client.submit(user("second"))
    await hand.client.feedback(later, 1)
    await hand.client.feedback(asked, 1)

    await hand.run_due()

    assert await ratings(hand.client, asked) == [("user_feedback", 1.0, None, None)]
    assert await ratings(hand.client, later) == [("user_feedback", 1.0, None, None)]


async def test_ratings_that_come_together_are_all_kept(hand: Hand) -> None:
    """Of one turn and of several, taken from the inbox at once; one of each name, the last."""
    one, other = await answered(hand, "one"), await answered(hand, "other")
    await hand.client.feedback(one, 0.25, name="helpful")
    await hand.client.feedback(one, name="tone", label="rude")
    await hand.client.feedback(other, 0.5)
    await hand.client.feedback(one, 0.75, name="helpful")

    await hand.run_one()

    assert await ratings(hand.client, one) == [
        ("helpful", 0.75, None, None),
        ("tone", None, "rude", None),
    ]
    assert await ratings(hand.client, other) == [("user_feedback", 0.5, None, None)]
    await hand.client.feedback(one, name="tone", label="fine")
    await hand.run_one()
    assert [label for _, _, label, _ in await ratings(hand.client, one)] == [None, "fine"]


@pytest.mark.promise("P1")
async def test_a_rating_that_is_sent_again_counts_once(hand: Hand) -> None:
    """By its own id; another rating under it is refused as any message is."""
    asked = await answered(hand)
    first = await hand.client.feedback(asked, 1, feedback_id="f")
    await hand.run_one()
    await hand.client.feedback(asked, 0)
    await hand.run_one()

    again = await hand.client.feedback(asked, 1, feedback_id="f")

    assert (first.status, again.status) == ("accepted", "duplicate")
    assert await hand.run_due() == []
    assert await ratings(hand.client, asked) == [("user_feedback", 0.0, None, None)]


async def test_an_unknown_turn_fails_the_rating_by_name(hand: Hand) -> None:
    """It holds nothing up, leaves no record of what is not there, and is no dead letter."""
    asked = await answered(hand)
    gone = Receipt(conversation_id="c", turn_id="nobody", status="accepted")
    lost = await hand.client.feedback(gone, 1)
    itself = await hand.client.feedback(
        Receipt(conversation_id="c", turn_id="f", status="accepted"), 1, feedback_id="f"
    )
    early = await hand.client.submit(
        Feedback(conversation_id="c", of_turn="later", score=1, reply_to="replies")
    )
    fine = await hand.client.feedback(asked, 1)
    later = await hand.client.submit(user("later", turn_id="later"))

    await hand.run_due()

    for receipt in (lost, itself, early):
        end = await ended(hand.client, receipt, TurnFailed, "unknown_turn")
        assert end.attempt == 1
    await ended(hand.client, fine, TurnCompleted)
    await ended(hand.client, later, TurnCompleted)
    assert await ratings(hand.client, later) == []
    assert await hand.redis.execute_command("HEXISTS", KEYS.turns, "nobody") == 0
    assert await hand.redis.execute_command("XLEN", SHARD.dead) == 0
    assert await hand.redis.execute_command("XLEN", SHARD.reply_prefix + "replies") == 1


async def test_a_record_that_nobody_can_read_is_that_of_no_turn(hand: Hand, redis: Redis) -> None:
    """Whatever another program wrote there: the conversation goes on."""
    asked = await answered(hand)
    await redis.hset(KEYS.turns, asked.turn_id, b"\xff{")  # type: ignore[misc]
    rated = await hand.client.feedback(asked, 1)
    later = await hand.client.submit(user())

    await hand.run_due()

    await ended(hand.client, rated, TurnFailed, "unknown_turn")
    await ended(hand.client, later, TurnCompleted)


async def test_a_turn_has_sixteen_ratings(hand: Hand) -> None:
    """One of another name fails; those that there are can still be changed."""
    asked = await answered(hand)
    for n in range(16):
        await hand.client.feedback(asked, n, name=f"n{n}")
    more = await hand.client.feedback(asked, 1, name="one too many")
    await hand.client.feedback(asked, -1, name="n15")

    await hand.run_due()

    end = await ended(hand.client, more, TurnFailed, "too_many_ratings")
    assert "16" in end.message
    kept = await ratings(hand.client, asked)
    assert [(name, score) for name, score, _, _ in kept] == [
        *((f"n{n}", float(n)) for n in range(15)),
        ("n15", -1.0),
    ]
    assert await hand.redis.execute_command("XLEN", SHARD.dead) == 0


async def test_what_ends_in_the_same_commit_can_be_rated(hand: Hand) -> None:
    """A setting before it; a piece of a message that goes on behind it, which was absorbed."""
    change = SettingsChange(temperature=0.5)
    configured = await hand.client.submit(Configure(conversation_id="c", settings=change))
    await hand.client.feedback(configured, 1)
    await hand.run_one()
    assert await ratings(hand.client, configured) == [("user_feedback", 1.0, None, None)]

    piece = await hand.client.submit(user("I would like", final=False))
    of_piece = await hand.client.feedback(piece, 0)
    whole = await hand.client.submit(user("to book"))
    await hand.run_one()

    await ended(hand.client, piece, TurnAbsorbed)
    await ended(hand.client, of_piece, TurnCompleted)
    assert await ratings(hand.client, piece) == [("user_feedback", 0.0, None, None)]
    assert await ratings(hand.client, whole) == []
    assert (await hand.client.record(piece)).state == "absorbed"


async def test_turns_of_any_end_can_be_rated(hand: Hand) -> None:
    """One that failed, also where the context was replaced since."""
    hand.sim.inject("status=400")
    failed = await answered(hand)
    start = (UserEntry(content="a new start"),)
    await hand.client.submit(ContextReplace(conversation_id="c", messages=start))
    await hand.client.feedback(failed, 0, explanation="It failed.")

    await hand.run_due()

    assert await ratings(hand.client, failed) == [("user_feedback", 0.0, None, "It failed.")]
    assert (await hand.client.record(failed)).state == "failed"
    assert [m.content for m in (await hand.client.history("c")).messages] == ["a new start"]


async def test_forgetting_removes_ratings(hand: Hand) -> None:
    """Also of a rating that waits, and of one that is being committed."""
    asked = await answered(hand)
    await hand.client.feedback(asked, 1)
    await hand.run_one()
    await hand.client.feedback(asked, 0)

    class Forgotten(Interposed):
        async def commit(self, *args: Any, **kwargs: Any) -> Any:
            await hand.client.forget("c")
            return await hand.store.commit(*args, **kwargs)

    lease = await hand.must_claim()
    await hand.driver(Forgotten(hand.store)).run(lease)

    assert await hand.redis.execute_command("KEYS", "*:c:*") == []
    assert await hand.redis.execute_command("EXISTS", KEYS.turns) == 0


class Interposed:
    """Stands before a store."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class CutOff(Interposed):
    """A store that hears nothing more once it was asked for records, or was sent a commit."""

    def __init__(self, store: Any, behind: str) -> None:
        super().__init__(store)
        self._behind = behind

    async def records(self, *args: Any) -> Any:
        found = await self._store.records(*args)
        if self._behind == "records":
            raise LeaseLost("the process is gone")
        return found

    async def commit(self, *args: Any, **kwargs: Any) -> Any:
        await self._store.commit(*args, **kwargs)
        raise LeaseLost("the process is gone")


@pytest.mark.promise("P1")
@pytest.mark.parametrize("behind", ["records", "commit"])
async def test_a_worker_that_dies_over_a_rating_leaves_it_whole(hand: Hand, behind: str) -> None:
    """Between reading and writing nothing was written; behind the commit all was."""
    asked = await answered(hand)
    first = await hand.client.feedback(asked, 0.5, name="first")
    await hand.client.feedback(asked, 1, name="second")

    lease = await hand.must_claim()
    await hand.driver(CutOff(hand.store, behind)).run(lease)
    if behind == "records":
        assert await ratings(hand.client, asked) == []
        await hand.expire(lease)
    await hand.run_due()

    expected = [("first", 0.5, None, None), ("second", 1.0, None, None)]
    assert await ratings(hand.client, asked) == expected
    events = await hand.redis.execute_command("XRANGE", KEYS.events, "-", "+")
    assert repr(events).count(first.turn_id) == 1


async def test_a_worker_without_its_lease_changes_no_record(hand: Hand) -> None:
    """Another one has rated the turn since it read the record: that rating stays."""
    asked = await answered(hand)
    await hand.client.feedback(asked, 0.5, name="first")

    class Late(Interposed):
        async def commit(self, lease: Any, effects: Effects, **more: Any) -> Any:
            await hand.expire(lease)
            await hand.run_due()
            await hand.client.feedback(asked, 1, name="second")
            await hand.run_due()
            return await self._store.commit(lease, effects, **more)

    await hand.driver(Late(hand.store)).run(await hand.must_claim())

    assert [name for name, *_ in await ratings(hand.client, asked)] == ["first", "second"]


async def test_a_rating_waits_for_a_redis_that_is_away(hand: Hand) -> None:
    """Nothing was lost: the next attempt reads the records."""
    asked = await answered(hand)
    await hand.client.feedback(asked, 1)

    class Away(Interposed):
        async def records(self, *_: Any) -> Any:
            raise StoreUnavailable("HMGET: ConnectionError")

    lease = await hand.must_claim()
    assert isinstance(await hand.driver(Away(hand.store)).run(lease), Parked)
    await hand.expire(lease)
    await hand.run_due()

    assert await ratings(hand.client, asked) == [("user_feedback", 1.0, None, None)]


async def test_the_blocking_client_rates_too(hand: Hand, redis_url: str) -> None:
    """The same verb, and the record as it has it."""
    asked = await answered(hand)
    with SyncTurnClient.connect(redis_url) as client:
        rated = client.feedback(asked, name="helpful", label="yes", feedback_id="f")
        await hand.run_one()
        (rating,) = client.record(asked).feedback

    assert (rated.turn_id, rated.status) == ("f", "accepted")
    assert (rating.name, rating.label, rating.feedback_id) == ("helpful", "yes", "f")
