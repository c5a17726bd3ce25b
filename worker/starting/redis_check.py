"""Asks Redis for all that a worker needs of it: an answer, its version, rights, writes, shards."""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple, cast

import msgspec
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import TimeoutError as ConnectionTimeout

from turnline.contracts.addresses import Address, read_address
from turnline.contracts.connection import AsyncRedis
from turnline.contracts.keys import shard_keys
from turnline.contracts.layout import FIELDS, Layout, read_layout
from turnline.contracts.opening import open_servers
from turnline.contracts.refusals import reason
from turnline.contracts.routed import RoutedRedis
from turnline.contracts.servers import AsyncServers, Server
from turnline.worker.errors import StartFailed
from turnline.worker.files import UnusableFile, read_text
from turnline.worker.settings import Settings
from turnline.worker.starting.redis_rights import missing
from turnline.worker.starting.stage import WORDS_CHARS, plain, within

log = logging.getLogger("turnline.worker")

LIMIT_S: Final = 10.0
"""Time for all questions to Redis."""
PATIENCE_S: Final = 3.0
"""How long a server that refuses connections is tried again: it may be restarting."""
_PAUSE_S: Final = 0.1
_MOST_SHARDS: Final = 64
"""Shards that are tried; more have names like these."""
_MOST_NAMED: Final = 12
_TRY_MS: Final = 10_000
_OLDEST: Final = 7
_RIGHTS: Final = "docs/starting.md has the rights of a worker."
_START_ONE: Final = (
    "Start one (`turnline redis` runs a private one) or point TURNLINE_REDIS_URL at yours."
)


class RedisFound(NamedTuple):
    """What was found."""

    where: str
    version: str
    """Empty where the server does not say."""
    warnings: tuple[str, ...] = ()


async def check_redis(settings: Settings) -> RedisFound:
    """Ask the server whether it is there, new enough, lets a worker work, and has as many shards.

    What is written for it is removed, and expires by itself.

    Raises:
        StartFailed: It cannot be reached or used; says why, in the server's words where it has any.
    """
    address = read_address(settings.redis_url)
    _check_files(address)
    try:
        return await within(LIMIT_S, f"Redis at {address.where}", _Asking(settings, address).all())
    except TimeoutError:
        raise StartFailed(
            f"Redis at {address.where} cannot be used: it did not answer all questions within "
            f"{LIMIT_S:g} s. {_START_ONE}"
        ) from None


class _Asking:
    """The questions to one server."""

    def __init__(self, settings: Settings, address: Address) -> None:
        self._settings = settings
        self._address = address
        self._where = f"Redis at {address.where}"
        self._warnings: list[str] = []

    async def all(self) -> RedisFound:
        servers = open_servers(self._settings.redis_url)
        redis = cast("AsyncRedis", RoutedRedis(servers))
        try:
            await self._answer(servers)
            found = [await self._about(server) for server in await servers.primaries()]
            await self._rights(servers)
            await self._writes(redis)
            await self._shards(redis)
            if self._settings.wait_replicas:
                await redis.execute_command("WAIT", 0, 1)  # whether it may be called
        except (RedisError, OSError) as error:
            raise self._failed(error) from None
        finally:
            await servers.aclose()
        versions = ", ".join(dict.fromkeys(filter(None, found)))
        return RedisFound(self._address.where, versions, tuple(self._warnings))

    async def _answer(self, servers: AsyncServers) -> None:
        """Wait until all answer: not for long where nobody is there, longer while one loads."""
        began_s = time.monotonic()
        while True:
            try:
                for server in await servers.primaries():
                    await server.redis.execute_command("PING")
            except BusyLoadingError:
                pass
            except NoPermissionError:
                return  # an answer
            except (LostConnection, ConnectionTimeout, OSError) as error:
                if not _may_pass(error) or time.monotonic() - began_s > PATIENCE_S:
                    raise (await _parting_words(self._address) or error) from None
            else:
                return
            await asyncio.sleep(_PAUSE_S)

    async def _about(self, server: Server) -> str:
        """Judge what a server says of itself, as far as it does, and return its version."""
        redis = server.redis
        info = _facts(await _allowed(lambda: redis.execute_command("INFO")))
        info = info or _facts(await _allowed(lambda: redis.execute_command("HELLO")))
        mode, role = (info.get(key, "") for key in ("redis_mode", "role"))
        if mode == "sentinel":
            raise StartFailed(
                f"{self._where} is a Sentinel: write redis+sentinel://HOST:PORT/NAME/0, with the "
                "name that it has for the primary."
            )
        if role in {"slave", "replica"}:
            raise StartFailed(
                f"{self._where} is a replica, which takes no writes: name its primary."
            )
        version = plain(info.get("redis_version", info.get("version", "")), 40)
        number = re.match(r"\d{1,5}", version)
        if number is not None and int(number[0]) < _OLDEST:
            raise StartFailed(
                f"{self._where} is version {version}; Turnline needs {_OLDEST}.0 or newer."
            )
        policy = plain(info.get("maxmemory_policy", "noeviction"), 40)
        if policy != "noeviction" and info.get("maxmemory", "0") != "0":
            raise StartFailed(
                f"{self._where} evicts what it accepted when its memory is full ({policy}): turns "
                "would be lost. Set `maxmemory-policy noeviction`; producers are then told when it "
                "is full."
            )
        if policy != "noeviction":
            self._warn(f"maxmemory-policy is {policy}: with a maxmemory, turns would be lost")
        if self._address.kind == "sentinel" and info and "min_slaves_good_slaves" not in info:
            self._warn(
                "min-replicas-to-write is 0: a primary that is cut off goes on accepting turns, "
                "which are lost when a replica takes over"
            )
        return version

    async def _rights(self, servers: AsyncServers) -> None:
        """Ask for the rights to every command, key and channel in use."""
        for number in self._settings.served_shards[:_MOST_SHARDS]:
            shard = shard_keys(number, self._settings.prefix)
            refused, words = await missing((await servers.place(shard.tag)).redis, shard)
            if refused:
                named = ", ".join(refused[:_MOST_NAMED])
                more = (
                    f" and {len(refused) - _MOST_NAMED} more" if len(refused) > _MOST_NAMED else ""
                )
                raise StartFailed(
                    f"{self._where}: its user may not {named}{more} ({self._plain(words)}). "
                    f"{_RIGHTS}"
                )

    async def _writes(self, redis: AsyncRedis) -> None:
        """Write a key to each shard, and delete it."""
        for number in self._settings.served_shards[:_MOST_SHARDS]:
            key = f"{shard_keys(number, self._settings.prefix).fleet}:try"
            try:
                await redis.execute_command("SET", key, "", "PX", _TRY_MS)
                await redis.execute_command("DEL", key)
            except OutOfMemoryError:  # it is workers that make room again
                self._warn("its memory is full")

    async def _shards(self, redis: AsyncRedis) -> None:
        """Compare the number of shards with the fleet's; the first worker says it.

        Each shard knows it, and refuses producers who reckon with another one.
        """
        prefix, shards = self._settings.prefix, self._settings.shards
        layout = await self._layout(redis, shard_keys(0, prefix).fleet, shards)
        for number in self._settings.served_shards:
            await self._layout(redis, shard_keys(number, prefix).fleet, layout.shards)
        if shards < max(layout.homes):
            raise StartFailed(
                f"The fleet at {self._address.where} has {max(layout.homes)} shards, "
                f"TURNLINE_SHARDS says {shards}. `turnline reshard {shards}` changes the fleet's "
                "number; until it has ended, workers serve the larger one."
            )
        if shards > max(layout.homes):
            self._warn(
                f"TURNLINE_SHARDS is {shards}, the fleet has {layout.shards} shards: "
                f"`turnline reshard {shards}` makes use of them"
            )

    async def _layout(self, redis: AsyncRedis, fleet: str, shards: int) -> Layout:
        """Read what a shard knows of the number of shards; one that knows nothing is told."""
        for _ in range(2):
            values = await redis.execute_command("HMGET", fleet, *FIELDS)
            if (layout := read_layout(values)) is not None:
                return layout
            await redis.execute_command("HSETNX", fleet, "shards", shards)
        raise StartFailed(
            f"{self._where}: {fleet} has no number of shards in `shards`. Turnline writes it there "
            "once; it may be written again with HSET."
        )

    def _failed(self, error: Exception) -> StartFailed:
        """Return the error, with what the server or the system says and what to do."""
        kind, words = type(error).__name__, self._plain(str(error))
        match error:
            case AuthenticationError() | AuthorizationError():
                what = f"wants a (different) user and password ({words})."
            case NoPermissionError():
                what = f"lets its user do too little ({words}). {_RIGHTS}"
            case ReadOnlyError():
                what = f"takes no writes ({words}): name its primary."
            case OutOfMemoryError():
                what = f"has no memory left ({words})."
            case ResponseError() if words.startswith(("MOVED", "CLUSTERDOWN", "CROSSSLOT")):
                what = (
                    f"is a node of a cluster ({words}): write redis+cluster://HOST:PORT, with the "
                    "host and port of one node or of several."
                )
            case ResponseError():
                what = f"cannot be used ({words})."
            case _:
                what = f"cannot be used: {reason(error)} ({kind}: {words}). {_START_ONE}"
        return StartFailed(f"{self._where} {what}")

    def _warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.append(text)
            log.warning("redis.warning", extra={"redis": self._address.where, "reason": text})

    def _plain(self, words: str) -> str:
        return plain(words, WORDS_CHARS, self._address.passwords)


def _check_files(address: Address) -> None:
    """Look into the files of certificates: a connection would only say that something is missing.

    Raises:
        StartFailed: One cannot be read.
    """
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        if path := address.options.get(name):
            try:
                read_text(path)
            except UnusableFile as error:
                raise StartFailed(f"TURNLINE_REDIS_URL, {name}: {error}.") from None


def _may_pass(error: Exception) -> bool:
    """Whether trying again may help: not against a wrong certificate or password."""
    return not isinstance(error, (AuthenticationError, AuthorizationError)) and "SSL" not in str(
        error
    )


async def _parting_words(address: Address) -> LostConnection | None:
    """Ask nothing and read why a server hangs up, if it says so.

    One without places says it and closes; whoever has written by then reads nothing any more.
    """
    if address.is_tls:
        return None
    try:
        async with asyncio.timeout(1.0):
            if address.socket_path:
                reader, writer = await asyncio.open_unix_connection(address.socket_path)
            else:
                reader, writer = await asyncio.open_connection(*address.nodes[0])
            try:
                answer = await reader.read(1_000)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
    if not answer.startswith(b"-"):
        return None
    return LostConnection(answer[1:].decode(errors="replace").strip().removeprefix("ERR "))


async def _allowed(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Ask an optional question; None if the server refuses to answer it."""
    try:
        return await ask()
    except (LostConnection, ConnectionTimeout):
        raise
    except ResponseError:
        return None


def _facts(reply: Any) -> dict[str, str]:
    """Return what INFO (parsed) or HELLO (names and values in turn) says; nothing if neither."""
    if isinstance(reply, Mapping):
        facts = msgspec.convert(reply, dict[str, Any])
        return {name: _word(value) for name, value in facts.items()}
    words = [_word(it) for it in msgspec.convert(reply or [], list[Any])]
    found = dict(zip(words[::2], words[1::2], strict=False))
    return {"redis_mode": found.pop("mode", ""), **found} if found else {}


def _word(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
