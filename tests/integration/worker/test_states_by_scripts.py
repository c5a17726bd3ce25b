"""Every state and every event: the scripts do what the tables of `turnline.worker.states` say."""

import time
from itertools import product
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.driving import SHARD, Hand
from turnline.contracts import Interrupt, TurnClient, UserMessage
from turnline.contracts.keys import conversation_keys
from turnline.contracts.replies import TurnCompleted, TurnRecord, decode_record
from turnline.contracts.scripts import run, text
from turnline.worker.effects import Effects
from turnline.worker.errors import LeaseLost
from turnline.worker.lease import Lease
from turnline.worker.outcome import Done, Outcome, Parked
from turnline.worker.queue import lua
from turnline.worker.states import ENTRY, TURN, EntryEvent, EntryState, TurnEvent, TurnState

KEYS = conversation_keys(SHARD.tag, "c")
HOUR_MS = 3_600_000
ENDS = {
    TurnEvent.COMPLETE: "completed",
    TurnEvent.FAIL: "failed",
    TurnEvent.INTERRUPT: "interrupted",
    TurnEvent.ABSORB: "absorbed",
}
OUTCOMES: dict[EntryEvent, Outcome] = {
    EntryEvent.RELEASE: Done(),
    EntryEvent.PARK_FOR_INPUT: Parked(HOUR_MS, "input"),
    EntryEvent.PARK_FOR_BACKOFF: Parked(HOUR_MS, "backoff"),
}


class Conversation:
    """One conversation on a real server; events are the scripts that workers and clients send."""

    def __init__(self, redis: Redis, client: TurnClient, hand: Hand) -> None:
        self.redis, self.client, self.hand = redis, client, hand
        self.lease = Lease(SHARD.tag, "c", "1 stale")
        """The last that was claimed, whether or not it still counts."""
        self.entries: dict[str, str] = {}

    async def submit(self, turn_id: str, deliver_at_ms: int | None = None) -> bool:
        message = UserMessage(
            conversation_id="c", turn_id=turn_id, text="hi", deliver_at_ms=deliver_at_ms
        )
        receipt = await self.client.submit(message)
        if receipt.accepted and deliver_at_ms is None:
            self.entries[turn_id] = text((await self.redis.xrevrange(KEYS.inbox, count=1))[0][0])
        return receipt.accepted

    async def claim(self) -> bool:
        lease = await self.hand.claim()
        self.lease = lease or self.lease
        return lease is not None

    async def commit(
        self, *turn_ids: str, state: Any = "completed", keep_lease: bool = True
    ) -> bool:
        """False: refused, as fenced or as a repetition."""
        effects = Effects(
            turn_id=turn_ids[0],
            entries=[self.entries.get(it, "0-1") for it in turn_ids],
            messages=[b"{}"],
            turns=1,
            events=[TurnCompleted(conversation_id="c", turn_id=turn_ids[0])],
            records=[(it, TurnRecord(state=state, accepted_at_ms=1)) for it in turn_ids],
        )
        lease = Lease(SHARD.tag, "c", self.lease.value)
        try:
            done = await self.hand.store.commit(lease, effects, keep_lease=keep_lease)
        except LeaseLost:
            return False
        return done.outcome != "duplicate"

    async def load(self) -> bool:
        try:
            await self.hand.store.load(Lease(SHARD.tag, "c", self.lease.value))
        except LeaseLost:
            return False
        return True

    async def content(self) -> dict[str, Any]:
        """All that is kept of the conversation, and its place in the queue."""
        found: dict[str, Any] = {"score": await self.redis.zscore(KEYS.queue, KEYS.job_id)}
        for key in KEYS.own:
            match await self.redis.type(key):
                case b"string":
                    found[key] = await self.redis.get(key)
                case b"hash":
                    found[key] = await self.redis.hgetall(key)
                case b"list":
                    found[key] = await self.redis.lrange(key, 0, -1)
                case b"stream":
                    found[key] = await self.redis.xrange(key)
                case b"zset":
                    found[key] = await self.redis.zrange(key, 0, -1, withscores=True)
        return found


@pytest.fixture
def conversation(redis: Redis, client: TurnClient, hand: Hand) -> Conversation:
    """Nothing yet."""
    return Conversation(redis, client, hand)


# -- entries --------------------------------------------------------------------------------------


async def entry_state(redis: Redis) -> EntryState:
    """What the keys mean."""
    score = await redis.zscore(KEYS.queue, KEYS.job_id)
    holder, parked = await redis.get(KEYS.in_progress), await redis.hget(KEYS.state, "parked")
    seconds, micros = await redis.time()
    if score is None:
        assert (holder, await redis.xlen(KEYS.inbox)) == (None, 0)
        return EntryState.IDLE
    if score <= seconds * 1000 + micros / 1000:
        assert holder is None
        return EntryState.DUE
    if holder is not None:
        return EntryState.LEASED
    return EntryState(f"parked: {text(parked)}")


def in_an_hour() -> int:
    return int(time.time() * 1000) + HOUR_MS


async def bring_entry(to: EntryState, it: Conversation) -> None:
    """By scripts alone."""
    if to == EntryState.PARKED_LATER:
        await it.submit("t1", in_an_hour())
    elif to != EntryState.IDLE:
        await it.submit("t1")
        await it.submit("t2")
    if to not in {EntryState.IDLE, EntryState.DUE, EntryState.PARKED_LATER}:
        assert await it.claim()
        await it.load()
    if to == EntryState.PARKED_INPUT:
        await run(it.hand.redis, lua.release(it.lease, Parked(HOUR_MS, "input")))
    if to == EntryState.PARKED_BACKOFF:
        await run(it.hand.redis, lua.release(it.lease, Parked(HOUR_MS, "backoff")))
    assert await entry_state(it.redis) == to


async def happens_to_entry(event: EntryEvent, it: Conversation) -> bool:
    """Send the event's script; return whether it was taken."""
    match event:
        case EntryEvent.SUBMIT:
            return await it.submit("t3")
        case EntryEvent.SUBMIT_LATER:
            return await it.submit("t4", in_an_hour())
        case EntryEvent.INTERRUPT:
            return (await it.client.submit(Interrupt(conversation_id="c"))).accepted
        case EntryEvent.CLAIM:
            return await it.claim()
        case EntryEvent.RENEW:
            held = [(KEYS.job_id, it.lease.value)]
            call = lua.renew(SHARD, "hand", held, lease_s=60, about=b"{}")
            _, renewed, *_ = await run(it.hand.redis, call)
            return renewed == 1
        case EntryEvent.COMMIT_AND_KEEP:
            return await it.commit("t1")
        case EntryEvent.COMMIT_AND_YIELD:
            return await it.commit("t1", keep_lease=False)
        case EntryEvent.COMMIT_THE_LAST | EntryEvent.COMMIT_ALL_BUT_DELAYED:
            return await it.commit("t1", "t2")
        case EntryEvent.LAPSE:
            await it.hand.expire(it.lease)
            return await it.redis.zscore(KEYS.queue, KEYS.job_id) is not None
        case EntryEvent.FORGET:
            await it.client.forget("c")
            return True
        case _:
            word, _ = await run(it.hand.redis, lua.release(it.lease, OUTCOMES[event]))
            return text(word) != "fenced"


@pytest.mark.promise("P1", "P2", "P4")
@pytest.mark.parametrize(("state", "event"), [*product(EntryState, EntryEvent)])
async def test_a_queue_entry_changes_only_as_its_table_says(
    conversation: Conversation, state: EntryState, event: EntryEvent
) -> None:
    """Every pair; what the table does not have is refused and changes nothing."""
    await bring_entry(state, conversation)
    if (state, event) == (EntryState.LEASED, EntryEvent.COMMIT_ALL_BUT_DELAYED):
        await conversation.submit("t4", in_an_hour())
    before = await conversation.content()

    taken = await happens_to_entry(event, conversation)

    assert taken == ((state, event) in ENTRY)
    assert await entry_state(conversation.redis) == ENTRY.get((state, event), state)
    if not taken:
        assert await conversation.content() == before


# -- turns ----------------------------------------------------------------------------------------


async def turn_state(redis: Redis) -> TurnState:
    """What the keys mean for the turn `t1`."""
    record = await redis.hget(KEYS.turns, "t1")
    if record is None:
        return TurnState.UNKNOWN
    state = decode_record(record).state
    if state != "accepted":
        return TurnState(state)
    head, running = await redis.hmget(KEYS.state, "head", "running")
    entries = await redis.xrange(KEYS.inbox)
    is_first = entries and entries[0][1][b"t"] == b"t1" and entries[0][0] == head
    return TurnState.RUNNING if is_first and running else TurnState.ACCEPTED


async def bring_turn(to: TurnState, it: Conversation) -> None:
    """By scripts alone; a second turn waits behind it, so that the lease is kept."""
    if to == TurnState.UNKNOWN:
        return
    await it.submit("t1")
    await it.submit("t2")
    await it.claim()
    if to != TurnState.ACCEPTED:
        await it.load()
    if to not in {TurnState.ACCEPTED, TurnState.RUNNING}:
        assert await it.commit("t1", state=to.value)
    assert await turn_state(it.redis) == to


async def happens_to_turn(event: TurnEvent, it: Conversation) -> bool:
    """Send the event's script; return whether it was taken."""
    match event:
        case TurnEvent.SUBMIT:
            return await it.submit("t1")
        case TurnEvent.LOAD:
            first = await it.redis.xrange(KEYS.inbox, count=1)
            return await it.load() and bool(first) and first[0][1][b"t"] == b"t1"
        case TurnEvent.EMIT:
            before = await it.redis.xlen(KEYS.events)
            entry_id = it.entries.get("t1", "0-1")
            lease = Lease(SHARD.tag, "c", it.lease.value)
            try:
                await it.hand.store.emit(lease, [b"{}"], head=entry_id, batch=9)
            except LeaseLost:
                return False
            return await it.redis.xlen(KEYS.events) > before
        case TurnEvent.FORGET:
            await it.client.forget("c")
            return True
        case _:
            return await it.commit("t1", state=ENDS[event])


@pytest.mark.promise("P1", "P3", "P6")
@pytest.mark.parametrize(("state", "event"), [*product(TurnState, TurnEvent)])
async def test_a_turn_changes_only_as_its_table_says(
    conversation: Conversation, state: TurnState, event: TurnEvent
) -> None:
    """Every pair; what the table does not have is refused and changes nothing."""
    await bring_turn(state, conversation)
    before = await conversation.content()

    taken = await happens_to_turn(event, conversation)

    assert taken == ((state, event) in TURN)
    assert await turn_state(conversation.redis) == TURN.get((state, event), state)
    if not taken and event != TurnEvent.LOAD:  # which begins an attempt at the turn behind it
        assert await conversation.content() == before
