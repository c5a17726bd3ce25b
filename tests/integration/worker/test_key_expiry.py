"""How long the keys of a conversation are kept, and what its newest event is known by."""

import pytest
from redis.asyncio import Redis

from tests.support.driving import KEYS, Hand, ended, user
from turnline.contracts import ContextReplace, TurnClient, TurnCompleted
from turnline.contracts.conversation import UserEntry
from turnline.contracts.protocol import RETENTION_MS

LONG_MS = RETENTION_MS * 0.998
"""What all keys are given their time for again, and then some."""


async def kept(redis: Redis) -> dict[str, int]:
    """For how long the keys that there are of the conversation are kept, ms."""
    found = {key: await redis.pttl(key) for key in KEYS.own}
    return {key: left_ms for key, left_ms in found.items() if left_ms != -2}


async def newest(redis: Redis) -> bytes:
    """The id of the newest event."""
    ((event_id, _),) = await redis.xrevrange(KEYS.events, count=1)
    return event_id


@pytest.mark.promise("P3")
async def test_nothing_of_a_conversation_is_kept_without_an_end(
    redis: Redis, hand: Hand, client: TurnClient
) -> None:
    """Whenever a key came to be: with the first turn, with a later one, anew."""
    empty = ContextReplace(conversation_id="c", messages=())
    other = ContextReplace(conversation_id="c", messages=(UserEntry(content="Hi"),))
    for message in (empty, user(), user("again", reply_to="inbox"), empty, other, user()):
        await client.submit(message)
        assert min((await kept(redis)).values()) > LONG_MS
        await hand.run_due()
        assert min((await kept(redis)).values()) > LONG_MS

    assert {KEYS.context, KEYS.calls, KEYS.events, KEYS.copies} < (await kept(redis)).keys()
    await redis.delete(KEYS.inbox)
    await client.submit(user("others have removed it"))
    assert min((await kept(redis)).values()) > LONG_MS


@pytest.mark.promise("P3")
@pytest.mark.parametrize("at", ["long ago", "later", "words", "1e999", None])
async def test_all_keys_are_kept_for_longer_with_what_happens(
    redis: Redis, hand: Hand, client: TurnClient, at: str | None
) -> None:
    """With a message and with a commit: however it is noted when they were, that ends."""
    seconds, _ = await redis.time()
    ages = {"long ago": -RETENTION_MS // 1_000, "later": 60_000}
    noted = str(seconds * 1_000 + ages[at]) if at in ages else at
    await client.submit(user())
    await hand.run_due()

    async def shorten() -> None:
        for key in await kept(redis):
            await redis.pexpire(key, 3_600_000)
        await (redis.hset(KEYS.state, "kept", noted) if noted else redis.hdel(KEYS.state, "kept"))

    await shorten()
    await client.submit(user("again"))
    assert min((await kept(redis)).values()) > LONG_MS
    await shorten()
    await hand.run_due()
    assert min((await kept(redis)).values()) > LONG_MS


async def test_the_newest_event_is_known(redis: Redis, hand: Hand, client: TurnClient) -> None:
    """While a reply streams, and behind a turn: where a reader of the next turn starts."""
    hand.sim.inject("stall;at=tokens:2,seconds=0.3")
    running = await hand.speaking(user())
    seen = await newest(redis)
    assert await redis.hget(KEYS.state, "last") == seen
    await running.task
    assert seen != await newest(redis)
    assert await redis.hget(KEYS.state, "last") == await newest(redis)

    receipt = await client.submit(user("again"))
    assert receipt.after.encode() == await newest(redis)


@pytest.mark.promise("P5")
@pytest.mark.parametrize("noted", [None, "1-1"])
async def test_workers_that_do_not_note_the_newest_event_do_no_harm(
    redis: Redis, hand: Hand, client: TurnClient, noted: str | None
) -> None:
    """Of the version before: readers get their own turn, whole."""
    await client.submit(user())
    await hand.run_due()
    await (redis.hset(KEYS.state, "last", noted) if noted else redis.hdel(KEYS.state, "last"))

    receipt = await client.submit(user("again"))
    await hand.run_due()

    done = await ended(client, receipt, TurnCompleted)
    events = [it async for it in client.events(receipt)]
    assert {it.turn_id for it in events} == {receipt.turn_id}
    assert events[-1].text == done.text
    assert await redis.hget(KEYS.state, "last") == await newest(redis)
