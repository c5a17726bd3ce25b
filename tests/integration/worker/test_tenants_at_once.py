"""No tenant has more conversations at work than it may; what is more waits in its order."""

import asyncio
import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from redis.asyncio import Redis

from tests.integration.worker.test_fair_order import claimed, fill, in_order, message
from tests.support.driving import SHARD, Hand, are_idle, batcher_on, ended, fleet, requests, user
from tests.support.wait import wait_until
from turnline.contracts import Interrupt, TurnClient, TurnCompleted, TurnInterrupted, UserMessage
from turnline.contracts.keys import ARQ_IN_PROGRESS, conversation_keys
from turnline.contracts.scripts import run
from turnline.ops.cli.app import turnline
from turnline.ops.simulator import Simulator, SimulatorConfig
from turnline.ops.simulator.config import Pacing
from turnline.worker.lease import Lease
from turnline.worker.outcome import Parked
from turnline.worker.queue.lua import claim, release
from turnline.worker.store.gauges import read_gauges
from turnline.worker.store.purse import Purse
from turnline.worker.turn.budgets import BudgetsFile

TWO = json.dumps({"a": 2})


async def end(redis: Redis, *conversations: str) -> None:
    """End what runs, as a commit does where nothing more waits."""
    for it in conversations:
        await redis.execute_command("DEL", ARQ_IN_PROGRESS + f"{SHARD.tag}:{it}")
        await redis.execute_command("ZREM", SHARD.queue, f"{SHARD.tag}:{it}")


async def test_no_more_than_may_run_at_once(redis: Redis, client: TurnClient) -> None:
    """Whether all that is due would fit or not; the others wait in their order."""
    await fill(client, {"a": 6, "b": 2})

    assert await claimed(redis, 10, concurrency=TWO) == ["a-00000", "b-00000", "a-00001", "b-00001"]
    assert await claimed(redis, 1, concurrency=TWO) == []
    await end(redis, "a-00001")
    assert await claimed(redis, 10, concurrency=TWO) == ["a-00002"]
    await end(redis, "a-00000", "a-00002")
    assert await claimed(redis, 10, concurrency=TWO) == ["a-00003", "a-00004"]


async def test_a_flood_above_its_limit_holds_up_nobody(redis: Redis, client: TurnClient) -> None:
    """While workers are busy; once looked at, what is held back does not count as late."""
    await fill(client, {"a": 500, "b": 20})

    names = [await claimed(redis, concurrency=TWO) for _ in range(22)]
    next_ms = 0
    while not next_ms:
        _, next_ms, *_ = await run(redis, claim(SHARD, 1, 60_000, "w", concurrency=TWO))
    _, next_ms, late_ms, *_ = await run(redis, claim(SHARD, 1, 60_000, "w", concurrency=TWO))

    assert Counter(it[0] for found in names for it in found) == {"a": 2, "b": 20}
    assert 0 < next_ms <= 250
    assert late_ms == 0


async def test_a_lease_that_ended_leaves_room(redis: Redis, client: TurnClient) -> None:
    """Whoever lost it."""
    await fill(client, {"a": 3})
    first = await claimed(redis, 3, concurrency=TWO)
    await redis.delete(ARQ_IN_PROGRESS + f"{SHARD.tag}:{first[0]}")

    assert await claimed(redis, 3, concurrency=TWO) == ["a-00002"]


async def test_what_was_held_back_is_not_charged_twice(redis: Redis, client: TurnClient) -> None:
    """It has its place among the others, once there is room."""
    await fill(client, {"a": 40})
    first = await claimed(redis, 5, concurrency=TWO)
    await fill(client, {"b": 40})
    await claimed(redis, concurrency=TWO)
    await end(redis, *first)

    counts = Counter(await in_order(redis, 20, concurrency=json.dumps({"a": 100})))

    assert abs(counts["a"] - counts["b"]) <= 2


async def test_a_limit_for_all_others(redis: Redis, client: TurnClient) -> None:
    """Each tenant that has none of its own, and who names none."""
    await fill(client, {"a": 3, "b": 3, "": 3})
    concurrency = json.dumps({"a": 2, "*": 1})

    found = Counter(it[:-6] for it in await claimed(redis, 10, concurrency=concurrency))

    assert found == {"a": 2, "b": 1, "": 1}


async def test_what_is_no_conversation_takes_no_place(redis: Redis, client: TurnClient) -> None:
    """Jobs of ARQ, which are nobody's."""
    await fill(client, {"": 3})
    conversations = [f"{SHARD.tag}:-{n:05}" for n in range(3)]
    await redis.zadd(SHARD.queue, dict.fromkeys(conversations, 3) | {"job": 2, conversations[0]: 1})

    items = await run(redis, claim(SHARD, 9, 60_000, "w", concurrency=json.dumps({"*": 2})))

    assert [it.decode() for it in items[3::3]] == ["job", *conversations[:2]]


async def test_without_the_limit_all_is_found(redis: Redis, client: TurnClient) -> None:
    """As when the file has another one now, or what was noted is lost: a minute later at most."""
    await fill(client, {"a": 5})
    await claimed(redis, 5, concurrency=TWO)
    await redis.delete(SHARD.held)

    scores = [score for _, score in await redis.zrange(SHARD.queue, 0, -1, withscores=True)]
    assert max(scores) <= time.time() * 1000 + 61_000
    await redis.zadd(SHARD.queue, {f"{SHARD.tag}:a-{n:05}": 0 for n in (2, 3, 4)})
    assert len(await claimed(redis, 5)) == 3


async def test_an_interrupt_ends_the_wait_in_line(
    redis: Redis, hand: Hand, client: TurnClient
) -> None:
    """The turn ends as soon as there is room."""
    await client.submit(user(conversation="one", tenant="a"))
    receipt = await client.submit(user(conversation="two", tenant="a"))
    one = json.dumps({"a": 1})
    assert await claimed(redis, 2, concurrency=one) == ["one"]
    await client.submit(Interrupt(conversation_id="two"))
    await end(redis, "one")

    assert await hand.run_due()
    await ended(client, receipt, TurnInterrupted)


async def test_who_is_due_otherwise_keeps_its_place(redis: Redis, client: TurnClient) -> None:
    """As by an interrupt; and who is at work is held back no more."""
    await fill(client, {"a": 4})
    await claimed(redis, 4, concurrency=TWO)
    await redis.zadd(SHARD.queue, {f"{SHARD.tag}:a-00003": 1})
    await end(redis, "a-00000")
    assert await claimed(redis, 4, concurrency=TWO) == ["a-00002"]

    held = await redis.zrange(SHARD.queue.removesuffix("queue") + "held:a", 0, -1)
    assert held == [f"{SHARD.tag}:a-00003".encode()]


@pytest.mark.parametrize("value", ["string", "list", "inf", "-inf"])
async def test_what_others_write_there_stops_nobody(
    redis: Redis, client: TurnClient, value: str
) -> None:
    """Keys of another type, or without sense."""
    base = SHARD.queue.removesuffix("queue")
    await fill(client, {"a": 4})
    await claimed(redis, 4, concurrency=TWO)
    for key in (SHARD.held, f"{base}held:a", f"{base}running:a"):
        match value:
            case "string":
                await redis.set(key, "x")
            case "list":
                await redis.delete(key)
                await redis.rpush(key, "x")
            case _:
                await redis.zadd(key, {"x": value})
    await end(redis, "a-00000", "a-00001")
    await redis.zadd(SHARD.queue, {f"{SHARD.tag}:a-{n:05}": 0 for n in (2, 3)})

    found = [it for _ in range(4) for it in await claimed(redis, 4, concurrency=TWO)]

    assert {"a-00002", "a-00003"} <= set(found)


async def test_all_of_it_expires(redis: Redis, client: TurnClient) -> None:
    """In a day."""
    await fill(client, {"a": 4})
    await claimed(redis, 4, concurrency=TWO)

    base = SHARD.queue.removesuffix("queue")
    for key in (SHARD.held, f"{base}held:a", f"{base}running:a"):
        assert 0 < await redis.pttl(key) <= 86_400_000


async def test_workers_keep_to_the_limit_of_their_file(
    redis_url: str, client: TurnClient, tmp_path: Path
) -> None:
    """Two of them; all turns end, and never more at once."""
    path = tmp_path / "budgets.toml"
    path.write_text("[tenants.a]\nconcurrency = 3\n")
    pacing: Any = Pacing(ttft_ms=20, itl_ms=5)
    async with (
        Simulator(SimulatorConfig(pacing=pacing)) as sim,
        fleet(redis_url, sim, 2, budgets=str(path)),
    ):
        receipts = [await client.submit(message(f"c{n}", "a")) for n in range(20)]
        most = 0

        def count() -> bool:
            nonlocal most
            entries = sim.ledger.entries()
            most = max(most, sum(it.outcome == "open" for it in entries))
            return len(entries) >= 20 and all(it.outcome != "open" for it in entries)

        await wait_until(count, "all are answered")
        for receipt in receipts:
            await ended(client, receipt, TurnCompleted)
    assert most == 3
    assert len(requests(sim)) == 20


async def test_operators_see_who_is_held_back(
    redis_url: str, redis: Redis, client: TurnClient
) -> None:
    """And how many; workers measure it."""
    await fill(client, {"a": 5})
    await claimed(redis, 5, concurrency=TWO)
    async with batcher_on(redis_url) as batcher:
        assert (await read_gauges(batcher, SHARD)).held == 3

    shown = await asyncio.to_thread(
        CliRunner().invoke, turnline, ["queue", "--json", "--redis", redis_url]
    )

    assert shown.exit_code == 0, shown.output
    state = json.loads(shown.output)
    assert state["tenants"] == [{"tenant": "a", "running": 2, "held": 3}]
    shown = await asyncio.to_thread(CliRunner().invoke, turnline, ["queue", "--redis", redis_url])
    assert re.search(r"a +2 +3\b", shown.output)


async def test_operators_see_which_budgets_are_used_up(
    redis_url: str, hand: Hand, client: TurnClient, tmp_path: Path
) -> None:
    """As long as producers are refused for them."""
    path = tmp_path / "budgets.toml"
    path.write_text("[tenants.acme.day]\ntokens = 1\n")
    hand.hold_to(path)
    for n in range(2):
        await client.submit(message(f"c{n}", "acme"))
    await hand.run_due()
    assert (await read_gauges(hand.batcher, SHARD)).used_up == 1

    shown = await asyncio.to_thread(
        CliRunner().invoke, turnline, ["queue", "--json", "--redis", redis_url]
    )

    (told,) = json.loads(shown.output)["used_up"]
    assert (told["budget"], told["name"], told["unit"], told["limit"]) == (
        "tenant",
        "acme",
        "tokens",
        1,
    )
    assert told["spent"] > 1
    shown = await asyncio.to_thread(CliRunner().invoke, turnline, ["queue", "--redis", redis_url])
    assert re.search(r"tenant +acme +\d+ tokens +1 tokens", shown.output)


async def test_newcomers_do_not_overtake_who_is_held_back(redis: Redis, client: TurnClient) -> None:
    """Who came first goes first, whatever it is called, and however few or many are due."""
    one = json.dumps({"a": 1})
    for name in ("z", "y", "b", "c"):
        await client.submit(message(name, "a"))
        await claimed(redis, 9, concurrency=one)
    for before, name in (("z", "y"), ("y", "b"), ("b", "c")):
        await end(redis, before)
        await client.submit(message(f"0-{name}", "a"))
        assert await claimed(redis, 9, concurrency=one) == [name]


async def test_newcomers_do_not_overtake_a_flood_that_is_held_back(
    redis: Redis, client: TurnClient
) -> None:
    """Also where it is far longer than what is due."""
    await fill(client, {"a": 300})
    await claimed(redis, 5, concurrency=TWO)
    for _ in range(30):
        await claimed(redis, 20, concurrency=TWO)
    assert not await redis.zrangebyscore(SHARD.queue, "-inf", time.time() * 1000)
    running = ["a-00000", "a-00001"]
    for n in range(2, 20):
        await client.submit(message(f"0-{n}", "a"))
        await end(redis, running.pop(0))
        found = await claimed(redis, 5 if n % 2 else 1, concurrency=TWO)
        assert found == [f"a-{n:05}"]
        running += found


async def test_a_turn_of_a_person_is_held_back_before_batch_turns(
    redis: Redis, client: TurnClient
) -> None:
    """As soon as one comes to a conversation that waits among these."""
    one = json.dumps({"a": 1})
    for n in range(4):
        await client.submit(message(f"b{n}", "a", priority="batch"))
        await claimed(redis, 9, concurrency=one)
    await client.submit(message("b3", "a"))
    assert await claimed(redis, 9, concurrency=one) == []
    await end(redis, "b0")

    assert await claimed(redis, 9, concurrency=one) == ["b3"]
    await end(redis, "b3")
    assert await claimed(redis, 9, concurrency=one) == ["b1"]


async def test_a_place_is_of_whom_the_turn_is(redis: Redis, client: TurnClient) -> None:
    """A conversation that runs for another tenant takes none of the one before."""
    one = json.dumps({"a": 1, "b": 1})
    await client.submit(message("c", "a"))
    assert await claimed(redis, 9, concurrency=one) == ["c"]
    await end(redis, "c")
    await client.forget("c")
    await client.submit(message("c", "b"))
    assert await claimed(redis, 9, concurrency=one) == ["c"]
    await client.submit(message("d", "a"))

    assert await claimed(redis, 9, concurrency=one) == ["d"]


async def test_what_is_held_back_without_a_state_leaves_none(
    redis: Redis, client: TurnClient
) -> None:
    """As where that expired: no key is made that never would. It is off the queue when it ran."""
    one = json.dumps({"*": 1})
    for name in ("c", "d"):
        await client.submit(message(name))
    assert await claimed(redis, 1, concurrency=one) == ["c"]
    state = conversation_keys(SHARD.tag, "d").state
    await redis.delete(state)
    assert await claimed(redis, 1, concurrency=one) == ["d"]

    assert not await redis.exists(state)


async def test_room_wakes_nobody_who_waits_for_something_else(
    redis: Redis, client: TurnClient
) -> None:
    """As one that was held back for another tenant, ran, and waits for the provider."""
    one = json.dumps({"a": 1})
    await client.submit(message("first", "a"))
    assert await claimed(redis, 9, concurrency=one) == ["first"]
    await client.submit(message("c", "a", priority="batch"))
    assert await claimed(redis, 9, concurrency=one) == []
    await client.submit(message("c", "b"))
    await redis.zadd(SHARD.queue, {f"{SHARD.tag}:c": 1})
    *_, job_id, lease, _ = await run(redis, claim(SHARD, 9, 60_000, "w", concurrency=one))
    assert job_id == f"{SHARD.tag}:c".encode()
    await run(redis, release(Lease(SHARD.tag, "c", lease.decode()), Parked(30_000, "backoff")))
    await end(redis, "first")

    assert await claimed(redis, 9, concurrency=one) == []
    assert await redis.zscore(SHARD.queue, job_id) > time.time() * 1000 + 20_000


async def test_a_conversation_goes_on_for_another_tenant_only_if_that_has_room(
    redis_url: str, client: TurnClient, tmp_path: Path
) -> None:
    """Its next turn is claimed anew: it takes a place of whom it is done for."""
    path = tmp_path / "budgets.toml"
    path.write_text("[tenants.b]\nconcurrency = 1\n")
    pacing: Any = Pacing(ttft_ms=40, itl_ms=5)
    async with Simulator(SimulatorConfig(pacing=pacing)) as sim:
        receipts = []
        for n in range(6):
            await client.submit(message(f"c{n}", "a"))
            receipts.append(
                await client.submit(UserMessage(conversation_id=f"c{n}", tenant="b", text="Second"))
            )
        most = 0

        def count() -> bool:
            nonlocal most
            entries = [it for it in sim.ledger.entries() if b"Second" in bytes(it.body or b"")]
            most = max(most, sum(it.outcome == "open" for it in entries))
            return len(entries) >= 6 and all(it.outcome != "open" for it in entries)

        async with fleet(redis_url, sim, budgets=str(path)):
            await wait_until(count, "all are answered")
            for receipt in receipts:
                await ended(client, receipt, TurnCompleted)
    assert most == 1


async def test_an_idle_worker_keeps_to_the_file_as_it_is(
    redis_url: str, redis: Redis, client: TurnClient, tmp_path: Path
) -> None:
    """Not as it was when it had its last turn."""
    path = tmp_path / "budgets.toml"
    path.write_text("[tenants.a]\nconcurrency = 20\n")
    pacing: Any = Pacing(ttft_ms=40, itl_ms=5)
    async with (
        Simulator(SimulatorConfig(pacing=pacing)) as sim,
        fleet(redis_url, sim, budgets=str(path)),
    ):
        await wait_until(lambda: are_idle(redis, 1), "it is idle")
        await asyncio.to_thread(path.write_text, "[tenants.a]\nconcurrency = 1\n")
        most = 0

        def count() -> bool:
            nonlocal most
            entries = sim.ledger.entries()
            most = max(most, sum(it.outcome == "open" for it in entries))
            return len(entries) >= 8 and all(it.outcome != "open" for it in entries)

        await client.submit_many([message(f"c{n}", "a") for n in range(8)])
        await wait_until(count, "all are answered")
    assert most == 1


async def test_a_shards_part_is_by_the_shards_that_the_fleet_has(
    redis: Redis, tmp_path: Path
) -> None:
    """Not by those that the worker serves; also where no budget of a day has them looked at."""
    path = tmp_path / "budgets.toml"
    path.write_text("[tenants.a]\nconcurrency = 4\nwaiting = 8\n")
    await redis.hset(SHARD.fleet, mapping={"shards": "2", "from": "", "earlier": "1"})
    purse = Purse(redis, BudgetsFile(path), shards=4, prefix="")

    assert await purse.tenants() == ("", '{"a":2}', '{"a":4}')
