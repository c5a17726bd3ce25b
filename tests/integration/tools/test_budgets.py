"""Budgets: what a turn, a conversation, a tenant or the fleet may spend, and no call beyond it."""

import asyncio
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from tests.integration.tools.bench import Bench, calling
from tests.support.driving import SHARD, Hand, ended, fleet, requests, settings_for, user
from turnline.contracts import (
    BudgetExceeded,
    SyncTurnClient,
    TurnCompleted,
    TurnFailed,
    UserMessage,
)
from turnline.contracts.conversation import CallEntry, Usage
from turnline.contracts.daily_spend import day_of, spent_by
from turnline.contracts.messages import new_turn_id
from turnline.worker.errors import StartFailed
from turnline.worker.main import make_fleet
from turnline.worker.tools import tool
from turnline.worker.turn.budgets import BadBudgets, BudgetsFile, read_budgets
from turnline.worker.turn.plan import ToolLimits


@tool
async def weather(city: str) -> str:
    """Tell the weather."""
    return f"clear in {city}"


def budgets(folder: Path, text: str) -> Path:
    """A file of budgets."""
    path = folder / "budgets.toml"
    path.write_text(text)
    return path


async def asked(bench: Bench, hand: Hand, message: UserMessage) -> Any:
    """The end of a turn."""
    receipt = await bench.client.submit(message)
    await hand.run_due()
    return await bench.client.result(receipt, timeout_s=5)


async def spent(redis: Redis, tenant: str, **usage: int) -> None:
    """Have a tenant spend something, as other workers do."""
    seconds, _ = await redis.time()
    call = CallEntry(
        call_id="t/1/1",
        turn_id="t",
        attempt=1,
        model="m",
        state="reported",
        usage=Usage(**usage),
        tenant=tenant,
    )
    key = SHARD.spend_prefix + day_of(seconds * 1000)
    for field, amount in spent_by([call]):
        await redis.hincrby(key, field, amount)


@pytest.mark.promise("P12")
@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("[turn]\ntokens = 1", "this turn is used up: [0-9]+ tokens spent, the limit is 1$"),
        ("[turn]\nusd = 0.0000001", r"this turn is used up: \$0\.[0-9]+ spent, the limit is \$0"),
        ("[conversation]\ntokens = 1", "this conversation is used up"),
        ("[tenant.day]\ntokens = 1", "this tenant for the day is used up"),
        ("[tenants.acme.day]\ntokens = 1", "this tenant for the day is used up"),
        ("[fleet.day]\nusd = 1e-9", "the fleet for the day is used up"),
    ],
)
async def test_a_turn_is_over_its_budget_by_one_call_at_most(
    bench: Bench, redis: Redis, tmp_path: Path, table: str, said: str
) -> None:
    """The model wants tools again and again; it is asked once, and what that cost stays known."""
    bench.sim.inject(calling("weather", {"city": "Łódź"}), times=None)
    async with bench.hand(weather, limits=ToolLimits(max_tool_rounds=8)) as hand:
        hand.hold_to(budgets(tmp_path, table))
        receipt = await bench.client.submit(user(tenant="acme"))
        await hand.run_due()

    failed = await ended(bench.client, receipt, TurnFailed, "budget_exceeded")
    assert re.search(said, failed.message), failed.message
    assert len(requests(bench.sim)) == 1
    totals = await bench.client.usage("c")
    assert totals.calls == 1
    (row,) = await bench.client.spend(tenant="acme", by=())
    assert (row.calls, row.usage) == (1, totals.usage + totals.abandoned)
    assert row.usage.cost_usd_ticks > 0


@pytest.mark.promise("P12")
async def test_a_budget_that_is_used_up_is_not_asked_of_the_model(
    bench: Bench, tmp_path: Path
) -> None:
    """By conversation and by tenant: the next turn ends before any call. Others go on."""
    table = "[conversation]\ntokens = 1\n[tenants.acme.day]\ntokens = 1"
    async with bench.hand() as hand:
        hand.hold_to(budgets(tmp_path, table))
        assert isinstance(await asked(bench, hand, user("1")), TurnCompleted)
        over = await asked(bench, hand, user("2"))
        assert "this conversation" in over.message
        first = await asked(bench, hand, user("3", "b", tenant="acme"))
        assert isinstance(first, TurnCompleted)
        over = await asked(bench, hand, user("4", "d", tenant="acme"))
        assert "this tenant" in over.message
        assert isinstance(await asked(bench, hand, user("5", "e", tenant="globex")), TurnCompleted)

    assert len(requests(bench.sim)) == 3


@pytest.mark.promise("P12")
async def test_what_other_workers_spent_counts(bench: Bench, redis: Redis, tmp_path: Path) -> None:
    """Of all shards that the fleet has or had; read before the first turn."""
    await redis.hset(SHARD.fleet, mapping={"shards": "1", "from": "", "earlier": "1"})
    await spent(redis, "acme", total_tokens=60)
    await spent(redis, "globex", total_tokens=50)
    async with bench.hand() as hand:
        hand.hold_to(budgets(tmp_path, "[tenant.day]\ntokens = 60\n[fleet.day]\ntokens = 10_000"))
        assert (await asked(bench, hand, user("1", "a", tenant="acme"))).code == "budget_exceeded"
        assert isinstance(await asked(bench, hand, user("2", "b", tenant="globex")), TurnCompleted)
        hand.hold_to(budgets(tmp_path, "[fleet.day]\ntokens = 110"))
        over = await asked(bench, hand, user("3", "d"))
    assert "the fleet for the day is used up" in over.message


@pytest.mark.promise("P12")
async def test_turns_that_run_at_once_count_each_others_calls(bench: Bench, tmp_path: Path) -> None:
    """Before any of them is committed; and once each, whatever was read meanwhile."""
    async with bench.hand() as hand:
        hand.hold_to(budgets(tmp_path, "[tenant.day]\nusd = 1000"))
        purse = hand.purse
        assert purse is not None
        receipts = [await bench.client.submit(user(conversation=f"c{n}")) for n in range(6)]
        leases = [await hand.must_claim() for _ in receipts]
        await asyncio.gather(*(hand.run_lease(it) for it in leases))
        for receipt in receipts:
            await ended(bench.client, receipt, TurnCompleted)
        (row,) = await bench.client.spend(by=())
        for _ in range(2):
            tenant, fleet = await purse.today("")
            assert tenant.ticks == fleet.ticks == row.usage.cost_usd_ticks
            await purse.refresh()


async def used_up(bench: Bench, hand: Hand, message: UserMessage) -> None:
    """Have a worker find that a budget is used up: the first turn is one call over it."""
    await asked(bench, hand, message)
    again = msgspec.structs.replace(message, turn_id=new_turn_id())
    assert (await asked(bench, hand, again)).code == "budget_exceeded"


async def let_it_end(redis: Redis) -> None:
    """Have all marks end, as time does."""
    for field, mark in (await redis.hgetall(SHARD.exhausted)).items():
        if field != b"tenants":
            await redis.hset(SHARD.exhausted, field, b"1 " + mark.partition(b" ")[2])


@pytest.mark.promise("P12")
@pytest.mark.parametrize(
    ("table", "budget", "refused", "accepted"),
    [
        ("[conversation]\ntokens = 1", "conversation", [("c", "")], [("b", "acme")]),
        (
            "[tenant.day]\ntokens = 1",
            "tenant",
            [("c", "acme"), ("b", "acme"), ("settled", "")],
            [("c", "globex"), ("b", ""), ("settled", "globex")],
        ),
        ("[fleet.day]\nusd = 1e-9", "fleet", [("c", "acme"), ("b", "globex"), ("d", "")], []),
    ],
)
async def test_submit_refuses_what_could_only_fail(
    bench: Bench,
    redis: Redis,
    tmp_path: Path,
    table: str,
    budget: str,
    refused: list[tuple[str, str]],
    accepted: list[tuple[str, str]],
) -> None:
    """By name, with what was spent and the limit; others, and what runs no model, are let in."""
    client = bench.client
    await client.configure("settled", tenant="acme")
    async with bench.hand() as hand:
        hand.hold_to(budgets(tmp_path, table))
        await used_up(bench, hand, user(tenant="acme"))

        for conversation, tenant in refused:
            with pytest.raises(BudgetExceeded, match="is used up") as raised:
                await client.submit(user("more", conversation, tenant=tenant))
            error = raised.value
            assert (error.code, error.budget) == ("budget_exceeded", budget)
            assert error.spent >= error.limit > 0
            assert error.unit == ("usd" if "usd" in table else "tokens")
            assert 0 < error.retry_after_s <= 86_400
            assert f"try again in {error.retry_after_s:g} s" in str(error)
        (one,) = await client.submit_many([user("more", refused[0][0], tenant=refused[0][1])])
        assert isinstance(one, BudgetExceeded)
        for conversation, tenant in accepted:
            assert (await client.submit(user("more", conversation, tenant=tenant))).accepted
        assert (await client.submit(user("kept", run=False, tenant="acme"))).accepted
        assert (await client.configure("c", temperature=0.5)).accepted
        assert (await client.interrupt("c")).accepted
        with SyncTurnClient.connect(bench.redis_url) as blocking, pytest.raises(BudgetExceeded):
            blocking.submit(user("more", tenant="acme"))

        await let_it_end(redis)
        assert (await client.submit(user("after", *refused[0][:1], tenant="acme"))).accepted
    assert 0 < await redis.pttl(SHARD.exhausted) <= 60_000


async def test_a_message_that_was_accepted_is_a_duplicate_all_the_same(
    bench: Bench, tmp_path: Path
) -> None:
    """Its producer may not know that it was."""
    message = user(tenant="acme")
    async with bench.hand() as hand:
        hand.hold_to(budgets(tmp_path, "[tenant.day]\ntokens = 1"))
        await used_up(bench, hand, message)

    assert (await bench.client.submit(message)).status == "duplicate"


@pytest.mark.parametrize(
    "value",
    ["words", ["a"], {"fleet": "words"}, {"fleet": "1 2 {}"}, {"t:acme": "x", "tenants": "x"}],
    ids=repr,
)
async def test_what_others_wrote_among_the_marks_refuses_nobody(
    bench: Bench, redis: Redis, tmp_path: Path, value: Any
) -> None:
    """And goes when the next mark is made."""
    key = SHARD.exhausted
    if isinstance(value, dict):
        await redis.hset(key, mapping=value)
    else:
        await (redis.set(key, value) if isinstance(value, str) else redis.rpush(key, *value))
    async with bench.hand() as hand:
        hand.hold_to(budgets(tmp_path, "[conversation]\ntokens = 1"))
        await used_up(bench, hand, user(tenant="acme"))
    assert {*await redis.hkeys(key)} - {b"tenants"} == {b"c:c"}

    await redis.hset(key, "fleet", f"{2**53} {2**53} no JSON")
    with pytest.raises(BudgetExceeded, match="a budget is used up"):
        await bench.client.submit(user("more", "b"))


async def test_a_days_sums_of_another_type_stop_no_turn(
    bench: Bench, redis: Redis, tmp_path: Path
) -> None:
    """Others wrote that; what a worker spends itself counts all the same."""
    seconds, _ = await redis.time()
    await redis.set(SHARD.spend_prefix + day_of(seconds * 1000), "words")
    async with bench.hand() as hand:
        hand.hold_to(budgets(tmp_path, "[tenant.day]\ntokens = 1"))
        await used_up(bench, hand, user(tenant="acme"))


async def test_a_turn_without_a_budget_says_nothing_of_the_provider(
    bench: Bench, redis: Redis, tmp_path: Path
) -> None:
    """It did not ask: what the breaker counted stays."""
    async with bench.hand() as hand:
        bench.sim.inject("status=503", conversation="b")
        await bench.client.submit(user("fails", "b"))
        await hand.run_due()
        before = await redis.hgetall(SHARD.breakers)
        assert before

        await spent(redis, "acme", total_tokens=60)
        hand.hold_to(budgets(tmp_path, "[tenant.day]\ntokens = 60"))
        assert (await asked(bench, hand, user(tenant="acme"))).code == "budget_exceeded"

    assert await redis.hgetall(SHARD.breakers) == before


@pytest.mark.promise("P12")
async def test_workers_keep_the_budgets_that_their_settings_name(
    bench: Bench, tmp_path: Path
) -> None:
    """As processes run them."""
    path = budgets(tmp_path, "[tenant.day]\ntokens = 1")
    async with fleet(bench.redis_url, bench.sim, budgets=str(path)):
        first = await bench.client.ask("a", "1", timeout_s=10)
        second = await bench.client.ask("b", "2", timeout_s=10)
    assert isinstance(first, TurnCompleted)
    assert isinstance(second, TurnFailed)
    assert second.code == "budget_exceeded"


async def test_a_file_that_changes_is_read_again(
    bench: Bench, redis: Redis, tmp_path: Path
) -> None:
    """A broken one changes nothing."""
    path = budgets(tmp_path, "[conversation]\ntokens = 1")
    async with bench.hand() as hand:
        hand.hold_to(path)
        assert isinstance(await asked(bench, hand, user("1")), TurnCompleted)
        assert (await asked(bench, hand, user("2"))).code == "budget_exceeded"
        await let_it_end(redis)
        path.write_text("[conversation\n")
        assert (await asked(bench, hand, user("3"))).code == "budget_exceeded"
        await let_it_end(redis)
        path.write_text("[conversation]\ntokens = 1_000_000")
        assert isinstance(await asked(bench, hand, user("4")), TurnCompleted)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it has no budget"),
        ("[turn]", "it limits nothing"),
        ("[turn]\nusd = 0", "Expected `float` > 0"),
        ("[turn]\neur = 1", "unknown field `eur`"),
        ("[tenant]\nusd = 1", "unknown field `usd`"),
        ("[tenant]", "it limits nothing: day, concurrency, waiting or rate"),
        ("[tenant]\nconcurrency = 0", "Expected `int` >= 1"),
        ("[tenants.a]\nwaiting = 0", "Expected `int` >= 1"),
        ('[tenants.a]\nrate = "5 per second"', "expected limits such as `37rps"),
        ("[week]\nusd = 1", "unknown field `week`"),
        ('[tenants."a b".day]\nusd = 1', "tenants"),
        ("usd", "it is no TOML"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_by_what_is_wrong(
    tmp_path: Path, text: str, said: str
) -> None:
    """And where."""
    path = budgets(tmp_path, text)
    with pytest.raises(BadBudgets, match=said) as raised:
        BudgetsFile(path)
    assert str(path) in str(raised.value)


async def test_a_worker_does_not_start_with_it(bench: Bench, tmp_path: Path) -> None:
    """Nor without the file."""
    for path in (tmp_path / "none.toml", budgets(tmp_path, "[turn]")):
        with pytest.raises(StartFailed, match="The budgets cannot be used"):
            make_fleet(settings_for(bench.redis_url, bench.sim, budgets=str(path)))
    assert read_budgets(budgets(tmp_path, "[turn]\nusd = 1")).of_tenant("") is None
