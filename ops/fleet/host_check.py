"""Checks one host's part of a fleet: settings, Redis, the way to the provider, a living worker."""

import asyncio
import platform
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from redis.exceptions import RedisError

from turnline.contracts.addresses import where
from turnline.contracts.keys import shard_keys
from turnline.contracts.opening import open_servers
from turnline.contracts.refusals import reason
from turnline.contracts.servers import AsyncServers
from turnline.ops.fleet.queue_state import read_worker
from turnline.worker.settings import Settings, SettingsError, from_env

LIMIT_S: Final = 3.0
"""Seconds for each part; all are looked at together."""
PARTS: Final = ("settings", "redis", "provider", "worker")
_PROXIES: Final = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")


class Checked(NamedTuple):
    """What was found of a part."""

    part: str
    ok: bool
    found: str
    """In words."""


class _NotSo(Exception):
    """A part is not as it should be; the text says how."""


async def checked(environ: Mapping[str, str], parts: tuple[str, ...]) -> list[Checked]:
    """Check these parts, in the order of `PARTS`, in about `LIMIT_S`."""
    try:
        settings = await asyncio.to_thread(from_env, environ)
    except SettingsError as error:  # nothing else can be looked at
        return [Checked("settings", ok=False, found=str(error))]
    finding: dict[str, Callable[[], Awaitable[str]]] = {
        "settings": partial(_settings, settings),
        "redis": partial(_redis, settings),
        "provider": partial(_provider, settings, environ),
        "worker": partial(_worker, settings),
    }
    wanted = [part for part in PARTS if part in parts]
    return await asyncio.gather(*(_checked(part, finding[part], settings) for part in wanted))


async def _checked(part: str, find: Callable[[], Awaitable[str]], settings: Settings) -> Checked:
    try:
        async with asyncio.timeout(LIMIT_S):
            return Checked(part, ok=True, found=await find())
    except _NotSo as error:
        return Checked(part, ok=False, found=str(error))
    except TimeoutError:
        whom = "the provider" if part == "provider" else f"Redis at {where(settings.redis_url)}"
        return Checked(part, ok=False, found=f"{whom} has not answered within {LIMIT_S:g} s")
    except (RedisError, OSError) as error:
        found = f"Redis at {where(settings.redis_url)}: {reason(error)} ({type(error).__name__})"
        return Checked(part, ok=False, found=found)


async def _settings(settings: Settings) -> str:
    if not settings.api_key.value:
        raise _NotSo("XAI_API_KEY is not set, nor XAI_API_KEY_FILE: a worker would not start")
    return "they can be used"


async def _redis(settings: Settings) -> str:
    servers = open_servers(settings.redis_url)
    try:
        for server in await servers.primaries():
            await server.redis.execute_command("PING")
    finally:
        await servers.aclose()
    return f"Redis at {where(settings.redis_url)} answers"


async def _provider(settings: Settings, environ: Mapping[str, str]) -> str:
    """Open a connection to each address; one is enough."""
    if set_ := next((it for it in _PROXIES if environ.get(it) or environ.get(it.lower())), None):
        return f"not looked at: {set_} is set"
    urls = list(dict.fromkeys(it.base_url for it in settings.members))
    found = await asyncio.gather(*map(_reached, urls))
    if not any(found):
        raise _NotSo(f"no connection to {', '.join(urls)} can be opened")
    reached = [url for url, is_there in zip(urls, found, strict=True) if is_there]
    return f"{', '.join(reached)} can be reached"


async def _reached(url: str) -> bool:
    parts = urlsplit(url)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        async with asyncio.timeout(LIMIT_S - 0.5):
            _, writer = await asyncio.open_connection(parts.hostname, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def _worker(settings: Settings) -> str:
    servers, host = open_servers(settings.redis_url), platform.node()
    try:
        names = await _living(servers, settings, host)
    finally:
        await servers.aclose()
    if not names:
        raise _NotSo(f"no worker of this host ({host}) lives")
    return f"{len(names)} of this host: {', '.join(sorted(names)[:5])}"


async def _living(servers: AsyncServers, settings: Settings, host: str) -> set[str]:
    """Return the names of the host's workers that are alive by the clock of Redis."""
    names: set[str] = set()
    for number in settings.served_shards:
        shard = shard_keys(number, settings.prefix)
        redis = (await servers.place(shard.tag)).redis
        seconds, _ = await redis.execute_command("TIME")
        ids = await redis.execute_command(
            "ZRANGEBYSCORE", shard.workers, int(seconds) * 1000, "+inf"
        )
        for id_ in ids:  # one by one: a worker's own user may not send MGET
            record = await redis.execute_command("GET", shard.worker_prefix.encode() + id_)
            worker = read_worker(id_, record)
            if worker is not None and worker.host == host:
                names.add(worker.name or worker.id)
        if names:
            break  # one that serves this shard is alive
    return names
