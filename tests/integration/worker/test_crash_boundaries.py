"""Crash at every boundary: the first attempt dies before or after each effect, the second finishes.

All effects of a turn pass through the store's port, so crash points are its calls, each before and
after. A dead worker does nothing more, not even in `finally`.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.driving import SHARD, Hand, ended
from tests.support.keys import assert_keys_expire
from turnline.contracts import TurnClient, TurnCompleted, UserMessage
from turnline.contracts.keys import conversation_keys
from turnline.contracts.protocol import TextAssembler
from turnline.contracts.replies import TERMINAL, read_event
from turnline.ops.simulator import Simulator
from turnline.worker.errors import LeaseLost

BOUNDARIES = 8
"""load, emit (turn started, call open), emit (text), commit: each before and after. A short answer
may be published by the commit alone, which makes two fewer."""


class Killed(Exception):
    """The process is gone."""


class MortalStore:
    """The store of a worker that dies at the n-th boundary and then does nothing any more."""

    def __init__(self, store: Any, dies_at: int | None) -> None:
        self._store = store
        self._dies_at = dies_at
        self._main = asyncio.current_task()
        self.boundary = 0
        self.names: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.names.append(name)
            await self._maybe_die()
            result = await method(*args, **kwargs)
            await self._maybe_die()
            return result

        return call

    async def _maybe_die(self) -> None:
        if self._dies_at is not None and self.boundary >= self._dies_at:
            if asyncio.current_task() is self._main:
                raise Killed
            raise LeaseLost("the process is gone")  # stops the rest of it as well
        self.boundary += 1


async def run_and_die(hand: Hand, dies_at: int) -> MortalStore:
    lease = await hand.must_claim()
    store = MortalStore(hand.store, dies_at)
    with contextlib.suppress(Killed, asyncio.CancelledError):
        await hand.driver(store).run(lease)
    await hand.expire(lease)
    return store


async def finish(hand: Hand) -> None:
    """Let other workers do what is left."""
    while (lease := await hand.claim()) is not None:
        outcome = await hand.driver().run(lease)
        if not lease.released:
            await hand.release(lease, outcome)


@pytest.mark.promise("P1", "P3", "P6", "P7")
@pytest.mark.parametrize("dies_at", range(BOUNDARIES))
async def test_one_crash_anywhere_still_commits_the_turn_once(
    redis: Redis, hand: Hand, client: TurnClient, sim: Simulator, dies_at: int
) -> None:
    """One reply, one set of tokens, readers see one truth, no call is forgotten."""
    receipt = await client.submit(UserMessage(conversation_id="c", text="What is a fence?"))

    await run_and_die(hand, dies_at)
    await finish(hand)

    history = await client.history("c")
    result = await ended(client, receipt, TurnCompleted)
    assert [m.content for m in history.messages] == ["What is a fence?", result.text]
    shown = TextAssembler()
    events = [event async for event in client.events(receipt)]
    for event in events:
        shown.feed(event)
    assert shown.text == result.text
    assert sum(isinstance(event, TERMINAL) for event in events) == 1
    totals = await client.usage("c")
    assert totals.turns == 1
    assert totals.usage == result.usage
    served = [entry for entry in sim.ledger.entries() if entry.path.endswith("completions")]
    assert totals.calls - len(served) in {0, 1}  # noted, but died before it was sent
    assert totals.usage.total_tokens == served[-1].usage.total_tokens
    (spent,) = await client.spend(by=())
    assert (spent.calls, spent.usage) == (totals.calls, totals.usage + totals.abandoned)
    assert await redis.exists("turnline:{s0}:queue") == 0
    await assert_keys_expire(redis)


async def test_the_number_of_boundaries_is_known(hand: Hand, client: TurnClient) -> None:
    """A new effect of a plain turn must be added to the drill."""
    await client.submit(UserMessage(conversation_id="c", text="Hello"))
    store = MortalStore(hand.store, None)

    await hand.run_one(store)

    assert (*store.names[:2], store.names[-1]) == ("load", "emit", "commit")
    assert store.boundary <= BOUNDARIES


@pytest.mark.promise("P2")
@pytest.mark.parametrize("dies_at", range(BOUNDARIES))
async def test_crash_of_a_turn_with_another_one_waiting(hand: Hand, dies_at: int) -> None:
    """What waits behind a crashed turn comes after it, once."""
    receipts = [
        await hand.client.submit(UserMessage(conversation_id="c", text=text))
        for text in ("one", "two")
    ]

    await run_and_die(hand, dies_at)
    await finish(hand)

    results = [await hand.client.result(receipt, timeout_s=5) for receipt in receipts]
    history = await hand.client.history("c")
    assert [m.content for m in history.messages] == [
        *("one", results[0].text),
        *("two", results[1].text),
    ]


@pytest.mark.promise("P1", "P7", "P9", "P12")
@pytest.mark.parametrize("more", [0, 1])
async def test_three_crashes_make_a_dead_letter_and_the_conversation_goes_on(
    redis: Redis, hand: Hand, client: TurnClient, more: int
) -> None:
    """A turn that takes its worker down three times is set aside with its bytes, and counted.

    Also if a worker dies while it does so.
    """
    poison = await client.submit(UserMessage(conversation_id="c", text="poison"))
    fine = await client.submit(UserMessage(conversation_id="c", text="fine"))

    for _ in range(3):
        await run_and_die(hand, dies_at=3)
    for _ in range(more):
        await run_and_die(hand, dies_at=2)
    await finish(hand)

    failed = await client.result(poison, timeout_s=5)
    assert failed.code == "crashed"
    await ended(client, fine, TurnCompleted)
    ((_, letter),) = await redis.xrange("turnline:{s0}:dead")
    assert (letter[b"c"], letter[b"t"], letter[b"code"]) == (
        b"c",
        poison.turn_id.encode(),
        b"crashed",
    )
    assert b'"text":"poison"' in letter[b"m"]
    history = await client.history("c")
    assert history.messages[0].content == "fine"
    totals = await client.usage("c")
    assert (totals.unknown_calls, totals.turns) == (3, 2)


@pytest.mark.parametrize("others", [0, 1])
async def test_attempts_count_on_where_the_first_of_several_is_set_aside(
    redis: Redis, hand: Hand, client: TurnClient, others: int
) -> None:
    """They were answered together, as the last one's turn: its readers see no attempt go back."""
    first = await client.submit(UserMessage(conversation_id="c", text="first", final=False))
    last = await client.submit(UserMessage(conversation_id="c", text="and more"))

    for _ in range(3):
        await run_and_die(hand, dies_at=3)
    await run_and_die(hand, dies_at=2)
    lease = await hand.must_claim()
    for n in range(others):  # else the conversation would be left to them behind its first end
        await client.submit(UserMessage(conversation_id=f"other{n}", text="Hello"))
    await hand.run_lease(lease)
    await finish(hand)

    assert (await client.result(first, timeout_s=5)).code == "crashed"
    await ended(client, last, TurnCompleted)
    entries = await redis.xrange(conversation_keys(SHARD.tag, "c").events)
    events = [read_event(fields[b"e"], "0-1") for _, fields in entries]
    attempts = [it.attempt for it in events if it is not None and it.turn_id == last.turn_id]
    assert attempts == sorted(attempts)
    assert attempts[-1] == 6
