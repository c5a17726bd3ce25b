"""Spend by tenant, agent, model and day: what the ledgers say, to the tick, and kept longer."""

import datetime as dt
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from tests.support.driving import SHARD, Hand, ended, user
from turnline.contracts import (
    ContextAppend,
    InvalidMessage,
    Spend,
    Transcription,
    TurnClient,
    TurnCompleted,
    TurnFailed,
    UserMessage,
)
from turnline.contracts.conversation import CallEntry, Usage, UserEntry
from turnline.contracts.daily_spend import spent_by
from turnline.contracts.keys import conversation_keys
from turnline.ops.simulator import Simulator
from turnline.worker.store.cache import ContextCache
from turnline.worker.store.conversations import Conversations, StoreLimits

_decode = msgspec.json.Decoder(CallEntry).decode


async def ledger(redis: Redis, *conversations: str) -> list[CallEntry]:
    """All entries of these conversations."""
    found: list[CallEntry] = []
    for name in conversations or ("c",):
        keys = conversation_keys(SHARD.tag, name)
        found += [_decode(it) for it in await redis.lrange(keys.calls, 0, -1)]
    return found


async def today(redis: Redis) -> str:
    seconds, _ = await redis.time()
    return dt.datetime.fromtimestamp(seconds, dt.UTC).date().isoformat()


def rows(calls: list[CallEntry]) -> dict[tuple[str, str, str], tuple[int, Usage]]:
    """What the ledger says of each tenant, agent and model: calls and their sum."""
    found: dict[tuple[str, str, str], tuple[int, Usage]] = {}
    for it in calls:
        whose = (it.tenant, it.agent, it.model)
        count, usage = found.get(whose, (0, Usage()))
        found[whose] = (count + 1, usage + it.usage)
    return found


async def assert_spend_is_the_ledger(redis: Redis, client: TurnClient, *names: str) -> list[Spend]:
    """Field by field."""
    calls = await ledger(redis, *names)
    spend = await client.spend(by=("tenant", "agent", "model"))
    told = {(it.tenant, it.agent, it.model): (it.calls, it.usage) for it in spend}
    assert told == rows(calls)
    return spend


@pytest.mark.promise("P7")
async def test_spend_is_what_the_ledgers_say(redis: Redis, hand: Hand, client: TurnClient) -> None:
    """By tenant: the message's wins over the conversation's. By agent and model likewise."""
    await client.configure("b", tenant="acme")
    await client.configure("d", tenant="acme", model="grok-4.7")
    messages: list[Any] = [
        user("nobody's"),
        user("acme's", "b"),
        user("globex's", "b", tenant="globex"),
        user("again", "d"),
        Transcription(conversation_id="e", text="spoken", tenant="globex"),
        ContextAppend(
            conversation_id="f", messages=(UserEntry(content="hi"),), run=True, tenant="globex"
        ),
    ]
    receipts = [await client.submit(it) for it in messages]
    await hand.run_due()
    for receipt in receipts:
        await ended(client, receipt, TurnCompleted)

    spend = await assert_spend_is_the_ledger(redis, client, *"bcdef")
    by_tenant = await client.spend(by=["tenant"])
    assert [(it.tenant, it.calls, it.day, it.model) for it in by_tenant] == [
        ("", 1, None, None),
        ("acme", 2, None, None),
        ("globex", 3, None, None),
    ]
    assert sum((it.usage for it in spend), Usage()) == sum((it.usage for it in by_tenant), Usage())
    assert by_tenant[1].usage.cost_usd_ticks > 0
    models = {it.model for it in await client.spend(tenant="acme")}
    assert len(models) == 2
    assert [it.model for it in await client.spend(model=min(models), by=("model",))] == [
        min(models)
    ]
    assert await client.spend(tenant="nobody") == []
    day = await today(redis)
    assert {it.day for it in await client.spend()} == {day}
    assert await client.spend(since=day, until=day) == await client.spend()
    assert await client.spend(until="2026-01-01") == []


@pytest.mark.promise("P7", "P12")
async def test_spend_without_an_answer_counts_too(
    redis: Redis, hand: Hand, client: TurnClient, sim: Simulator
) -> None:
    """Abandoned calls, and turns that fail: the ledger has them, and so has the spend."""
    sim.inject("truncated-json;at=tokens:2", conversation="c")
    sim.inject("status=400", conversation="b")
    done = await client.submit(user(tenant="acme"))
    failed = await client.submit(user(conversation="b", tenant="acme"))
    for _ in range(4):
        await hand.run_due()
        await hand.make_due("c")
    await ended(client, done, TurnCompleted)
    await ended(client, failed, TurnFailed)

    calls = await ledger(redis, "b", "c")
    assert sum(it.abandoned for it in calls) >= 1
    (row,) = await client.spend(by=("tenant",))
    assert (row.tenant, row.calls) == ("acme", len(calls))
    await assert_spend_is_the_ledger(redis, client, "b", "c")


@pytest.mark.promise("P3", "P7")
async def test_what_was_spent_stays_when_a_conversation_is_forgotten(
    redis: Redis, hand: Hand, client: TurnClient
) -> None:
    """Its ledger goes; who paid is still known."""
    await client.submit(user(tenant="acme"))
    await hand.run_due()
    before = await client.spend()

    assert await client.forget("c")
    assert await client.spend() == before != []


@pytest.mark.promise("P3", "P7")
async def test_a_commit_that_is_sent_again_counts_nothing(
    redis: Redis, hand: Hand, client: TurnClient
) -> None:
    """As a worker does that was not answered."""

    class Stuttering(Conversations):
        async def _run(self, lease: Any, call: Any) -> list[Any]:
            reply = await super()._run(lease, call)
            if call.script.name == "commit":
                assert await super()._run(lease, call) == [b"duplicate"]
            return reply

    await client.submit(user())
    await hand.run_one(Stuttering(hand.batcher, SHARD, cache=ContextCache(0)))

    (row,) = await assert_spend_is_the_ledger(redis, client)
    assert row.calls == 1


async def test_a_sum_that_is_none_is_counted_anew(
    redis: Redis, hand: Hand, client: TurnClient
) -> None:
    """Others wrote words among the day's sums."""
    key = SHARD.spend_prefix + await today(redis)
    await client.submit(user())
    await hand.run_due()
    fields = await redis.hkeys(key)
    await redis.hset(key, mapping=dict.fromkeys(fields, "9" * 40))
    await client.submit(user("again"))
    await hand.run_due()

    (row,) = await client.spend()
    assert row.calls == 1


@pytest.mark.parametrize("value", ["words", ["a"], {"a": 1}], ids=repr)
async def test_what_others_wrote_there_stops_no_turn(
    redis: Redis, hand: Hand, client: TurnClient, value: Any
) -> None:
    """The turn ends as ever, and is counted; a hash of others keeps what it has."""
    key = SHARD.spend_prefix + await today(redis)
    if isinstance(value, dict):
        await redis.hset(key, mapping=value)
    else:
        await (redis.set(key, value) if isinstance(value, str) else redis.rpush(key, *value))
    receipt = await client.submit(user())
    await hand.run_due()

    await ended(client, receipt, TurnCompleted)
    assert (await ledger(redis))[0].usage.total_tokens > 0
    (row,) = await client.spend()
    assert row.calls == 1


async def test_a_days_spend_expires(redis: Redis, hand: Hand, client: TurnClient) -> None:
    """After the time that is set."""
    store = Conversations(
        hand.batcher, SHARD, cache=ContextCache(0), limits=StoreLimits(spend_ms=86_400_000)
    )
    await client.submit(user())
    await hand.run_one(store)

    assert 86_000_000 < await redis.pttl(SHARD.spend_prefix + await today(redis)) <= 86_400_000


async def test_days_are_read_in_their_order_and_as_they_are_asked_for(
    redis: Redis, client: TurnClient
) -> None:
    """Both ends belong to it."""
    for n, day in enumerate(("2026-02-27", "2026-02-28", "2026-03-01"), 1):
        call = CallEntry(
            call_id="t/1/1", turn_id="t", attempt=1, model="m", state="reported",
            usage=Usage(total_tokens=n),
        )  # fmt: skip
        await redis.hset(SHARD.spend_prefix + day, mapping=dict(spent_by([call])))

    found = await client.spend(since="2026-02-28", until=dt.date(2026, 3, 1), by=("day",))
    assert [(it.day, it.usage.total_tokens) for it in found] == [
        ("2026-02-28", 2),
        ("2026-03-01", 3),
    ]
    assert (await client.spend(since="2026-01-01", until="2026-12-31", by=()))[0].calls == 3


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"since": "yesterday"}, "since: expected a day"),
        ({"until": "2026-02-30"}, "until: expected a day"),
        ({"since": "2026-03-01", "until": "2026-02-01"}, "is not 1 to"),
        ({"by": ("week",)}, "by: 'week' is none of day, tenant, agent, model"),
    ],
)
async def test_questions_that_make_no_sense_are_refused(
    client: TurnClient, asked: dict[str, Any], said: str
) -> None:
    """By what is wrong with them."""
    with pytest.raises(ValueError, match=said):
        await client.spend(**asked)


async def test_a_tenant_is_held_to_what_can_be_seen(client: TurnClient) -> None:
    """As other names."""
    for name in ("a b", "a\u200bb", "x" * 201, "e\u0301"):
        with pytest.raises(InvalidMessage, match="tenant"):
            await client.submit(UserMessage(conversation_id="c", text="hi", tenant=name))
        with pytest.raises(InvalidMessage, match=r"settings\.tenant"):
            await client.configure("c", tenant=name)
