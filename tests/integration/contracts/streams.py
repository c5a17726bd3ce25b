"""Writes what a worker would write, by hand, and takes the blocking client for an async one."""

import asyncio
from collections.abc import AsyncIterator, Generator
from typing import Any

import msgspec
from redis.asyncio import Redis

from turnline.contracts import Receipt, SyncTurnClient, TextDelta, TurnCompleted, TurnStarted
from turnline.contracts.keys import conversation_keys, shard_keys
from turnline.contracts.replies import AnyEvent, AnyTerminal, TurnRecord, encode_event
from turnline.contracts.scripts import run
from turnline.worker.store import lua

SHARD = shard_keys(0)
KEYS = conversation_keys(SHARD.tag, "c")
IDS = {"conversation_id": "c", "turn_id": "t"}
END = object()


class Blocking:
    """`SyncTurnClient` with the manners of `TurnClient`: each call runs in a thread."""

    def __init__(self, client: SyncTurnClient) -> None:
        """Wrap a client."""
        self._client = client

    def __getattr__(self, verb: str) -> Any:
        """Return the verb, awaitable or as an async iterator."""
        method = getattr(self._client, verb)
        if verb in {"events", "text", "follow", "replies"}:
            return lambda *args, **more: _stepwise(method(*args, **more))
        return lambda *args, **more: asyncio.to_thread(method, *args, **more)


async def _stepwise(items: Generator[Any]) -> AsyncIterator[Any]:
    try:
        while (item := await asyncio.to_thread(next, items, END)) is not END:
            yield item
    finally:
        items.close()


async def take(items: AsyncIterator[Any], count: int) -> list[Any]:
    """Return the next items of a stream that stays open."""
    return [await anext(items) for _ in range(count)]


async def publish(redis: Redis, *events: AnyEvent) -> list[str]:
    """Append events to their conversation's stream and say so; returns their ids."""
    ids: list[str] = []
    for event in events:
        name = conversation_keys(SHARD.tag, event.conversation_id).events
        ids.append((await redis.xadd(name, {"e": encode_event(event)})).decode())
        await redis.execute_command("SPUBLISH", name, "")
    return ids


async def emit(redis: Redis, *events: AnyEvent) -> None:
    """Append events of one conversation as a worker does."""
    keys = conversation_keys(SHARD.tag, events[0].conversation_id)
    await redis.set(keys.in_progress, "7 w1", px=60_000)
    args = lua.EmitArgs("7 w1", b"", 10_000, 60_000, "", 0, [encode_event(it) for it in events])
    answer, _ = await run(redis, lua.emit(keys, args))
    assert answer == b"emitted"


async def finish(redis: Redis, receipt: Receipt, end: AnyTerminal) -> None:
    """End a turn as a commit does: its event and its record change together."""
    keys = conversation_keys(SHARD.tag, receipt.conversation_id)
    record = TurnRecord(
        state="completed", accepted_at_ms=1, event=msgspec.Raw(encode_event(end)), digest=""
    )
    async with redis.pipeline(transaction=True) as pipe:
        pipe.xadd(keys.events, {"e": encode_event(end)})
        pipe.hset(keys.turns, receipt.turn_id, msgspec.json.encode(record))
        pipe.execute_command("SPUBLISH", keys.events, "")
        await pipe.execute()


async def reply(redis: Redis, stream: str, end: AnyTerminal) -> str:
    """Copy a terminal event into a reply stream, as a commit does, and note that."""
    name = SHARD.reply_prefix + stream
    entry_id = (await redis.xadd(name, {"e": encode_event(end)})).decode()
    await redis.pexpire(name, 60_000)
    keys = conversation_keys(SHARD.tag, end.conversation_id)
    await redis.rpush(keys.copies, f"{name} {entry_id}")
    await redis.pexpire(keys.copies, 60_000)
    await redis.execute_command("SPUBLISH", name, "")
    return entry_id


async def hold(redis: Redis, worker: str = "w1") -> None:
    """Lease the conversation to a worker."""
    await redis.set(KEYS.in_progress, f"7 {worker}", px=60_000)


async def waits(redis: Redis, stream: str = KEYS.events) -> bool:
    """Whether somebody hears the notices of a stream, or is blocked on this test's database."""
    mine = str(redis.connection_pool.connection_kwargs["db"])
    _, listeners = await redis.execute_command("PUBSUB", "SHARDNUMSUB", stream)
    return listeners or any(
        client["db"] == mine and "b" in client["flags"] for client in await redis.client_list()
    )


def whole_turn(turn_id: str = "t", text: str = "Hello world") -> list[AnyEvent]:
    """Return the events of a turn that succeeds at once."""
    ids = {"conversation_id": "c", "turn_id": turn_id}
    half = len(text) // 2
    return [
        TurnStarted(**ids),
        TextDelta(**ids, text=text[:half]),
        TextDelta(**ids, text=text[half:], offset=half),
        TurnCompleted(**ids, text=text),
    ]
