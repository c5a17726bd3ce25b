"""No tenant has more conversations that wait to begin than it may: producers are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.integration.worker.test_fair_order import claimed, fill, message
from tests.support.driving import SHARD, Hand, ended, fleet, requests
from tests.support.wait import wait_until
from turnline.contracts import (
    Configure,
    Interrupt,
    Receipt,
    TenantFull,
    TurnClient,
    TurnCompleted,
    UserMessage,
)
from turnline.contracts.conversation import SettingsChange
from turnline.ops.simulator import Simulator, SimulatorConfig
from turnline.ops.simulator.config import Pacing
from turnline.worker.store.gauges import read_gauges

THREE = json.dumps({"a": 3})


async def told(redis: Redis, crowds: str = THREE) -> None:
    """Have a worker look, which finds nothing."""
    assert await claimed(redis, crowds=crowds) == []


async def test_more_than_may_wait_are_refused(redis: Redis, client: TurnClient) -> None:
    """Of that tenant; until one begins."""
    await told(redis)
    await fill(client, {"a": 3, "b": 5})

    with pytest.raises(TenantFull, match="3 conversations of this tenant") as caught:
        await client.submit(message("more", "a"))
    assert caught.value.retry_after_s > 0
    await claimed(redis, crowds=THREE)
    assert (await client.submit(message("more", "a"))).accepted
    with pytest.raises(TenantFull):
        await client.submit(message("evenmore", "a"))


async def test_who_is_held_back_still_waits(redis: Redis, client: TurnClient) -> None:
    """For others of its tenant that run: it has not begun."""
    await told(redis)
    await fill(client, {"a": 3})
    one = json.dumps({"a": 1})

    assert await claimed(redis, 9, concurrency=one, crowds=THREE) == ["a-00000"]
    await client.submit(message("third", "a"))
    with pytest.raises(TenantFull):
        await client.submit(message("fourth", "a"))


async def test_who_is_in_is_not_refused(redis: Redis, client: TurnClient) -> None:
    """More messages of a conversation that waits or runs, and what is no turn."""
    await told(redis)
    await fill(client, {"a": 3})
    (running,) = await claimed(redis, crowds=THREE)
    await client.submit(message("third", "a"))

    for conversation in (running, "third"):
        await client.submit(message(conversation, "a"))
        await client.submit(Interrupt(conversation_id=conversation))
    await client.submit(Interrupt(conversation_id="new"))


async def test_a_limit_for_all_others(redis: Redis, client: TurnClient) -> None:
    """Also for whoever names no tenant."""
    await told(redis, json.dumps({"*": 1, "a": 2}))
    await fill(client, {"": 1, "b": 1, "a": 2})

    for tenant in ("", "b", "a"):
        with pytest.raises(TenantFull):
            await client.submit(message("more", tenant))


async def test_the_tenant_of_the_settings_counts(
    redis: Redis, hand: Hand, client: TurnClient
) -> None:
    """For messages that name none."""
    await told(redis)
    for n in range(4):
        change = SettingsChange(tenant="a")
        await client.submit(Configure(conversation_id=f"s{n}", settings=change))
    await hand.run_due()
    for n in range(3):
        await client.submit(message(f"s{n}"))

    with pytest.raises(TenantFull):
        await client.submit(message("s3"))


async def test_what_waits_no_more_is_not_counted(redis: Redis, client: TurnClient) -> None:
    """As when a conversation was forgotten, or begun by a worker that knows of no limit."""
    await told(redis)
    await fill(client, {"a": 3})
    await client.forget("a-00000")
    await claimed(redis)
    await claimed(redis, crowds=THREE)

    assert await redis.zcard(SHARD.waiting) == 0


@pytest.mark.parametrize("value", ["string", "list", "inf"])
async def test_what_others_write_stops_nobody(redis: Redis, client: TurnClient, value: str) -> None:
    """Keys of another type, or without sense."""
    for key in (SHARD.waiting, SHARD.exhausted):
        match value:
            case "string":
                await redis.set(key, "x")
            case "list":
                await redis.rpush(key, "x")
            case _ if key == SHARD.waiting:
                await redis.zadd(key, {"x": "inf", "a\nx": "-inf"})
            case _:
                await redis.hset(key, mapping={"told": "inf", "w:a": "inf inf inf"})
    await client.submit(message("first", "a"))
    assert await claimed(redis, crowds=THREE) == ["first"]
    await fill(client, {"a": 3})

    with pytest.raises(TenantFull):
        await client.submit(message("more", "a"))


async def test_the_limit_ends_with_the_workers_that_tell_it(
    redis: Redis, client: TurnClient
) -> None:
    """In a minute, as do the notes; and it is no budget that is used up."""
    await told(redis)
    await fill(client, {"a": 3})

    assert 0 < await redis.pttl(SHARD.exhausted) <= 60_000
    assert 0 < await redis.pttl(SHARD.waiting) <= 86_400_000
    fields = await redis.hgetall(SHARD.exhausted)
    assert fields[b"w:a"].endswith(b" 3")
    await redis.hset(SHARD.exhausted, "w:a", "1 1 3")
    assert (await client.submit(message("more", "a"))).accepted


async def test_it_is_no_budget(hand: Hand, redis: Redis) -> None:
    """Operators are told of none."""
    await told(redis)

    assert (await read_gauges(hand.batcher, SHARD)).used_up == 0


async def test_workers_keep_to_the_number_of_their_file(
    redis_url: str, redis: Redis, sim: Simulator, client: TurnClient, tmp_path: Path
) -> None:
    """What was let in is answered, and then others are let in."""
    path = tmp_path / "budgets.toml"
    path.write_text("[tenant]\nwaiting = 4\nconcurrency = 1\n")
    accepted: list[Receipt] = []
    async with fleet(redis_url, sim, budgets=str(path)):
        await wait_until(lambda: redis.hexists(SHARD.exhausted, "w:*"), "it is told")
        outcomes = await client.submit_many(
            [UserMessage(conversation_id=f"c{n}", text="Hi") for n in range(20)]
        )
        accepted = [it for it in outcomes if isinstance(it, Receipt)]
        assert 4 <= len(accepted) < 20
        assert all(isinstance(it, Receipt | TenantFull) for it in outcomes)
        for receipt in accepted:
            await ended(client, receipt, TurnCompleted)
        assert (await client.submit(message("later"))).accepted


async def test_the_number_holds_while_all_are_busy(
    redis_url: str, redis: Redis, client: TurnClient, tmp_path: Path
) -> None:
    """Workers without a free slot tell it, too: then it matters most."""
    path = tmp_path / "budgets.toml"
    path.write_text("[tenants.a]\nwaiting = 2\n")
    pacing: Any = Pacing(ttft_ms=60_000, itl_ms=5)
    async with (
        Simulator(SimulatorConfig(pacing=pacing)) as sim,
        fleet(redis_url, sim, budgets=str(path), slots="1", poll_s="0.1"),
    ):
        await client.submit(message("long", "a"))
        await wait_until(lambda: requests(sim), "it is busy")
        await redis.delete(SHARD.exhausted)  # as a minute later

        await wait_until(lambda: redis.hexists(SHARD.exhausted, "w:a"), "it is told")
