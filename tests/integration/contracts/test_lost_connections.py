"""A server that restarts under its readers: nothing is missed, nothing comes twice."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.integration.contracts.streams import IDS, KEYS, Blocking, publish, waits, whole_turn
from tests.support.wait import wait_until
from turnline.contracts import SyncTurnClient, TextDelta, TurnClient, UserMessage
from turnline.ops.embedded import EmbeddedRedis


async def restart(server: EmbeddedRedis) -> None:
    """Kill it once all it has acknowledged is in its file, and start it again."""
    async with Redis.from_url(server.url) as redis:
        await redis.config_set("appendfsync", "always")  # else a slow fsync delays the write itself
        await redis.ping()
    await asyncio.to_thread(server.restart)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedRedis]:
    """A server of this test's own, which keeps its data."""
    with EmbeddedRedis(tmp_path) as server:
        yield server


@pytest.fixture(params=["async", "sync"])
async def client(request: pytest.FixtureRequest, server: EmbeddedRedis) -> AsyncIterator[Any]:
    """Each of the two clients, at that server."""
    if request.param == "async":
        async with TurnClient.connect(server.url) as client:
            yield client
    else:
        with SyncTurnClient.connect(server.url) as blocking:
            yield Blocking(blocking)


@pytest.mark.promise("P6", "P11")
async def test_readers_go_on_after_a_restart(client: Any, server: EmbeddedRedis) -> None:
    """In the middle of a turn, while waiting, with the same iterator."""
    receipt = await client.submit(UserMessage(conversation_id="c", turn_id="t", text="hi"))
    first, second, *rest = whole_turn()
    async with Redis.from_url(server.url) as redis:
        await publish(redis, first, second)
        events = client.events(receipt)
        seen = [await anext(events), await anext(events)]
        waiting = asyncio.create_task(anext(events))
        await wait_until(lambda: waits(redis), "the reader waits")

    await restart(server)

    async with Redis.from_url(server.url) as redis:
        await publish(redis, *rest)
    seen += [await waiting, *[event async for event in events]]
    assert [event.event_id for event in seen] == sorted({event.event_id for event in seen})
    assert [type(event) for event in seen] == [type(event) for event in (first, second, *rest)]


@pytest.mark.promise("P1", "P11")
async def test_a_submission_after_a_restart_is_accepted_once(
    client: Any, server: EmbeddedRedis
) -> None:
    """The pool's dead connection and the forgotten script are the client's business."""
    message = UserMessage(conversation_id="c", turn_id="t", text="hi")
    await client.submit(message)
    await restart(server)

    assert (await client.submit(message)).status == "duplicate"
    assert (await client.submit(UserMessage(conversation_id="c", text="more"))).position == 1
    await restart(server)
    assert (await client.submit_many([message]))[0].status == "duplicate"


@pytest.mark.promise("P6", "P11")
async def test_a_follower_goes_on_after_a_restart(client: Any, server: EmbeddedRedis) -> None:
    """Behind the last event it has given out."""
    async with Redis.from_url(server.url) as redis:
        await publish(redis, *whole_turn("a"))
    following = client.follow("c", after="0-0")
    seen = [await anext(following) for _ in range(2)]
    await restart(server)

    async with Redis.from_url(server.url) as redis:
        await publish(redis, TextDelta(**IDS, text="later"))
        stored = [entry_id.decode() for entry_id, _ in await redis.xrange(KEYS.events)]
    seen += [await anext(following) for _ in range(3)]
    assert [event.event_id for event in seen] == stored
