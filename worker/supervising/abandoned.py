"""Gives back what a dead worker process held, so that its turns go on elsewhere at once."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from redis.exceptions import RedisError

from turnline.contracts.keys import ShardKeys, shard_keys
from turnline.contracts.opening import open_servers
from turnline.contracts.scripts import text
from turnline.worker.batching import Pipelines
from turnline.worker.queue import lua
from turnline.worker.settings import Settings

log = logging.getLogger("turnline.supervisor")
LOOKS_S: Final = (0.0, 0.05, 0.25)
"""Pauses before each look: what a process had sent before it died may reach Redis after that."""
_AGAIN_S: Final = 0.1
"""Pause before a server is asked again that could not be reached."""
_MOST: Final = 200
"""Leases that one script looks at: bounds the time for which it holds the server."""
_BEYOND_MS: Final = 1_000
"""Leases are looked for that end so much later than they can."""


async def give_back(
    settings: Settings, worker_id: str, *, looks_s: Sequence[float] = LOOKS_S
) -> int:
    """End all leases of a worker whose process is known to be dead; return how many there were.

    Gives up once the leases have ended by themselves.

    Args:
        settings: The worker's own.
        worker_id: The worker's, which no other one has or had.
        looks_s: Pauses before each look.
    """
    count = 0
    try:
        async with asyncio.timeout(settings.lease_s + sum(looks_s)), _opened(settings) as pipes:
            for pause_s in looks_s:
                await asyncio.sleep(pause_s)
                shards = [shard_keys(it, settings.prefix) for it in settings.served_shards]
                giving = (_give_back(pipes, it, worker_id, settings.lease_s) for it in shards)
                count += sum(await asyncio.gather(*giving))
    except TimeoutError:
        log.warning("supervisor.unreleased", extra={"worker": worker_id})
    return count


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncGenerator[Pipelines, None]:
    """Open connections for this alone: those that are kept may be dead when they are needed."""
    servers = open_servers(settings.redis_url)
    pipelines = Pipelines(servers)
    try:
        yield pipelines
    finally:
        await pipelines.close()
        await servers.aclose()


async def _give_back(pipes: Pipelines, shard: ShardKeys, worker_id: str, lease_s: float) -> int:
    while True:
        try:
            return await _look(pipes, shard, worker_id, lease_s)
        except (RedisError, OSError):  # the pipelines log it
            await asyncio.sleep(_AGAIN_S)


async def _look(pipes: Pipelines, shard: ShardKeys, worker_id: str, lease_s: float) -> int:
    """Look at all that is leased in a shard, and end what this worker has of it."""
    batcher = pipes.of(shard.tag)
    seconds, micros = await batcher.send("TIME")
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    till_ms = now_ms + int(lease_s * 1000) + _BEYOND_MS
    found: list[Any] = await batcher.send("ZRANGEBYSCORE", shard.queue, now_ms, till_ms)
    job_ids = [it for it in map(_name, found) if it]
    groups = [job_ids[n : n + _MOST] for n in range(0, len(job_ids) or 1, _MOST)]
    answers = await asyncio.gather(
        *(batcher.run(lua.abandon(shard, worker_id, group)) for group in groups)
    )
    return sum(int(count) for _, count in answers)


def _name(found: object) -> str:
    """Return a job id; '' for what no job is called."""
    try:
        return text(found)
    except UnicodeDecodeError:
        return ""
