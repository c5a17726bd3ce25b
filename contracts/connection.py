"""The few things that are asked of redis-py 5 to 8, as types that strict checkers accept.

redis-py leaves its commands largely untyped; here the ones in use are stated once, and its clients
are cast to them where they are made. What its versions differ in is decided here too: the protocol
and time-outs.
"""

import socket
from collections.abc import Awaitable, Iterable
from types import ModuleType
from typing import Any, Protocol, TypeVar, cast

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import TimeoutError as ConnectionTimeout
from redis.retry import Retry

from turnline.contracts.addresses import Address, read_address
from turnline.contracts.redis_internals import quick

Arg = str | bytes | int | float
Command = tuple[Arg, ...]
Reply_co = TypeVar("Reply_co", covariant=True)
Replies_co = TypeVar("Replies_co", covariant=True)
MAX_CONNECTIONS = 10_000
DEAD_AFTER_S = 10
"""Seconds without a sign of life from the other machine after which a connection is given up."""


class Pipeline(Protocol[Replies_co]):
    """Commands that travel together, not as a transaction."""

    def execute_command(self, *args: Any) -> Any:
        """Queue one command."""
        ...

    def execute(self, raise_on_error: bool = True) -> Replies_co:  # noqa: FBT001, FBT002
        """Send what is queued and return the replies in order."""
        ...


class AnyRedis(Protocol[Reply_co, Replies_co]):
    """The part in use that clients of both kinds have."""

    def execute_command(self, *args: Any) -> Reply_co:
        """Send one command and return its reply."""
        ...

    def pipeline(self, transaction: bool = True) -> Pipeline[Replies_co]:  # noqa: FBT001, FBT002
        """Begin a pipeline."""
        ...


class AsyncRedis(AnyRedis[Awaitable[Any], Awaitable[list[Any]]], Protocol):
    """The part of `redis.asyncio.Redis` in use."""

    def aclose(self) -> Awaitable[None]:
        """Close all connections."""
        ...


class SyncRedis(AnyRedis[Any, list[Any]], Protocol):
    """The part of `redis.Redis` in use."""

    def close(self) -> None:
        """Close all connections."""
        ...


async def pipelined(
    redis: AsyncRedis, commands: Iterable[Command], *, raise_on_error: bool = False
) -> list[Any]:
    """Send commands in one round trip; return the replies in order, errors among them."""
    pipe = redis.pipeline(transaction=False)
    for command in commands:
        pipe.execute_command(*command)
    return await pipe.execute(raise_on_error=raise_on_error)


def _options(retries: int) -> dict[str, Any]:
    return {
        "socket_connect_timeout": 5,
        "max_connections": MAX_CONNECTIONS,
        "retry_on_error": [LostConnection, ConnectionTimeout] if retries else [],
    }


def _keeping_alive(address: Address) -> dict[str, Any]:
    """Return options by which the kernel ends a connection whose other side vanished silently.

    Without them a reader that blocks on such a connection waits for ever, since it sends nothing
    that would be refused. A time-out of redis-py's own would double the cost of a command.

    Source: https://man7.org/linux/man-pages/man7/tcp.7.html
    """
    if address.socket_path:
        return {}
    wanted = {
        "TCP_KEEPIDLE": DEAD_AFTER_S // 2,
        "TCP_KEEPINTVL": 1,
        "TCP_KEEPCNT": DEAD_AFTER_S - DEAD_AFTER_S // 2,
        "TCP_USER_TIMEOUT": DEAD_AFTER_S * 1000,
    }
    known = {getattr(socket, name, None): value for name, value in wanted.items()}
    known.pop(None, None)  # not on every system
    return {"socket_keepalive": True, "socket_keepalive_options": known}


def open_async(url: str, *, retries: int) -> AsyncRedis:
    """Return a client for the address of a server; nothing is sent yet.

    Args:
        url: Where the server is.
        retries: Times a command is sent again after a lost connection; 0 where a command does not
            bear repetition.

    Raises:
        InvalidAddress: It is none; see `turnline.contracts.addresses`.
    """
    retry = AsyncRetry(ExponentialBackoff(cap=1.0, base=0.05), retries)
    return cast("AsyncRedis", _Client.from_pool(pool_of(url, retry=retry, **_options(retries))))


class _Client(redis.asyncio.Redis):
    """A client that leaves nothing open: redis-py closes what is connected at that moment.

    A command that is still on its way then, as one of a task that outlives the client, would
    connect behind its back, and its connection would stay open in the pool for ever.
    """

    async def aclose(self, *args: Any, **options: Any) -> None:
        """Close all connections, those in use when they come back."""
        pool: Any = self.connection_pool
        release = pool.release

        async def close(connection: Any) -> None:
            await release(connection)
            await connection.disconnect()

        pool.release = close
        await super().aclose(*args, **options)


def _pool(kind: ModuleType, url: str, **options: Any) -> Any:
    """Return a pool of `redis` or `redis.asyncio` for an address.

    What the address says wins over `options`, but it can say only what Turnline bears. The
    protocol and the time-out are said, because redis-py 8 takes others by itself: RESP3, and 5 s,
    which would end a read that blocks.
    """
    address = read_address(url)
    if address.socket_path:
        connection_class = kind.UnixDomainSocketConnection
        place: dict[str, Any] = {"path": address.socket_path}
    else:
        connection_class = kind.SSLConnection if address.is_tls else kind.Connection
        host, port = address.nodes[0]
        place = {"host": host, "port": port}
    decided = {"protocol": 2, "socket_timeout": None, **_keeping_alive(address), **options}
    return kind.ConnectionPool(
        connection_class=connection_class, **{**place, **decided, **address.options}
    )


def pool_of(url: str, **options: Any) -> redis.asyncio.ConnectionPool:
    """Return a pool for a Redis address, of quicker connections.

    Raises:
        InvalidAddress: It is none; see `turnline.contracts.addresses`.
    """
    pool: redis.asyncio.ConnectionPool = _pool(redis.asyncio, url, **options)
    pool.connection_class = quick(cast("Any", pool.connection_class))
    return pool


def open_sync(url: str, *, retries: int, timeout_s: float | None = None) -> SyncRedis:
    """As `open_async`, blocking.

    Args:
        url: Where the server is.
        retries: As in `open_async`.
        timeout_s: Seconds for which a command waits for its reply; None: for as long as the
            connection lives. More than any command blocks.
    """
    retry = Retry(ExponentialBackoff(cap=1.0, base=0.05), retries)
    options = {**_options(retries), "socket_timeout": timeout_s, "retry": retry}
    return cast("SyncRedis", redis.Redis.from_pool(_pool(redis, url, **options)))
