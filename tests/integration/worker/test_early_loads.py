"""Loads that travel right behind the claim, before anybody knows what it won."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.integration.worker.test_queue import Rig, rig, user
from tests.support.driving import SHARD, Hand, are_idle
from tests.support.wait import wait_until
from turnline.contracts import TurnClient, UserMessage
from turnline.contracts.conversation import CallEntry
from turnline.contracts.opening import open_servers
from turnline.worker.batching import Pipelines
from turnline.worker.outcome import Done, Outcome

__all__ = ["rig"]
OPEN_CALL = CallEntry(call_id="x", turn_id="x", attempt=1, model="m", state="unknown")


@pytest.fixture
async def hand(redis_url: str) -> AsyncIterator[Hand]:
    servers = open_servers(redis_url)
    services: Any = None  # no model is called here
    pipelines = Pipelines(servers)
    yield Hand(pipelines, services)
    await pipelines.close()
    await servers.aclose()


async def _steps(hand: Hand, name: str) -> int:
    return await hand.redis.execute_command("LLEN", f"turnline:{SHARD.tag}:c:{name}:steps")


async def test_what_was_loaded_early_is_not_loaded_again(hand: Hand, client: TurnClient) -> None:
    """One trip for claim and load: what the load brought counts, also after the lease has ended."""
    await client.submit(user())
    lease = await hand.must_claim()
    lease.prefetched = hand.store.prefetch("c", "hand")
    await lease.prefetched.reply
    await hand.redis.execute_command("DEL", lease.keys.in_progress)

    loaded = await hand.store.load(lease)

    assert loaded.attempt == 1
    assert [entry.fields[b"m"] for entry in loaded.entries] != []


async def test_a_conversation_of_another_worker_is_not_loaded(
    hand: Hand, client: TurnClient
) -> None:
    """Neither by who did not win it, nor by a worker whose name ends alike."""
    await client.submit(user())
    lease = await hand.claim(worker="my-hand")
    assert lease is not None
    for name in ("other", "hand", ""):
        early: Any = hand.store.prefetch("c", name)
        assert (await early.reply)[0] == b"fenced"

    assert (await hand.store.load(lease)).attempt == 1


async def test_a_load_that_comes_too_late_changes_nothing(hand: Hand, client: TurnClient) -> None:
    """A conversation that runs already keeps its open call."""
    await client.submit(user())
    lease = await hand.must_claim()
    loaded = await hand.store.load(lease)
    head = loaded.entries[0].entry_id
    await hand.store.emit(lease, [], head=head, batch=1, call=OPEN_CALL)

    early: Any = hand.store.prefetch("c", "hand")

    assert (await early.reply)[0] == b"fenced"
    assert await _steps(hand, "c") == 0


async def test_a_refused_load_is_made_again(hand: Hand, client: TurnClient) -> None:
    """An early load that lost its race costs a trip and nothing else."""
    early = hand.store.prefetch("c", "hand")
    await client.submit(user())
    lease = await hand.must_claim()
    lease.prefetched = early

    assert (await hand.store.load(lease)).attempt == 1


async def test_news_that_come_between_early_load_and_start_are_told(
    redis: Redis, rig: Rig, client: TurnClient
) -> None:
    """An interrupt that the load just missed is looked for."""
    told: dict[str, bool] = {}
    waiting = asyncio.Event()

    async def run(ctx: dict[str, Any], conversation_id: str) -> Outcome:
        told[conversation_id] = (
            ctx["lease"].prefetched is not None and ctx["lease"].inbox_changed.is_set()
        )
        waiting.set()
        await client.forget(conversation_id)
        return Done()

    def prefetch(conversation_id: str) -> object:
        if conversation_id == "busy":
            asyncio.get_running_loop().call_soon(worker._notify, f"{SHARD.tag}:busy")
        return object()

    worker = rig.start(run, prefetch=prefetch, times={"poll_s": 3600.0})
    for name in ("busy", "calm"):
        await wait_until(lambda: are_idle(redis, 1), "it sleeps until it is woken")
        await client.submit(UserMessage(conversation_id=name, text="Hello"))
        await wait_until(waiting.is_set, "it runs")
        waiting.clear()

    assert told == {"busy": True, "calm": False}
