"""A worker of many shards: whether it serves all of them, and what it has of a server."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from redis.exceptions import RedisError

from turnline.contracts import TurnClient, TurnCompleted
from turnline.contracts.keys import shard_keys, shard_of
from turnline.contracts.servers import AsyncServers

SHARDS = 48
WORKER = "worker"
"""User of the worker: so its connections are told from others'."""
LET_IN = ("ACL", "SETUSER", WORKER, "on", "nopass", "~*", "&*", "+@all")


def as_worker(url: str) -> str:
    """The address with the worker's user in it."""
    return url.replace("://", f"://{WORKER}:any@", 1)


def one_of_each(name: str) -> list[str]:
    """Names of conversations, one of each shard in turn."""
    found: dict[int, str] = {}
    for n in itertools.count():
        found.setdefault(shard_of(f"{name}-{n}", SHARDS), f"{name}-{n}")
        if len(found) == SHARDS:
            return [found[shard] for shard in range(SHARDS)]
    raise AssertionError


async def serves_all(servers: AsyncServers) -> bool:
    """Whether a worker waits for work of each shard, and would hear of it."""
    try:
        for shard in range(SHARDS):  # one by one: this is asked often, and mostly in vain
            if not await _serves(servers, shard):
                return False
    except (RedisError, OSError):  # while one is replaced
        return False
    return True


async def _serves(servers: AsyncServers, shard: int) -> bool:
    keys = shard_keys(shard)
    redis = (await servers.place(keys.tag)).redis
    names = await redis.execute_command("ZRANGE", keys.idle, 0, -1)
    channels = [keys.wake_prefix + name.decode() for name in names]
    answer = await redis.execute_command("PUBSUB", "SHARDNUMSUB", *channels) if channels else []
    return sum(answer[1::2]) == 1  # those of workers that were killed stay


async def ask_all(client: TurnClient, name: str) -> None:
    """Have a turn answered in each shard."""
    asked = one_of_each(name)
    ends = await asyncio.gather(*(client.ask(it, "Hello", timeout_s=30) for it in asked))
    assert all(isinstance(end, TurnCompleted) for end in ends)


def connections(clients: str) -> int:
    """How many of the connections in the answer to CLIENT LIST are the worker's."""
    return sum(f" user={WORKER} " in line for line in clients.splitlines())


@asynccontextmanager
async def most_connections(servers: Sequence[Any]) -> AsyncIterator[list[int]]:
    """Look again and again how many connections the worker has to each server; the most counts."""
    most = [0] * len(servers)

    async def look() -> None:
        while True:
            for n, server in enumerate(servers):
                most[n] = max(most[n], connections(await asyncio.to_thread(server)))
            await asyncio.sleep(0.02)

    looking = asyncio.create_task(look())
    try:
        yield most
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
