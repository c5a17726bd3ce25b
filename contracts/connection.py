"""The few things that are asked of redis-py 5 to 8, as types that strict checkers accept.

redis-py leaves its commands largely untyped; here the ones in use are stated once, and its clients
are cast to them where they are made. What its versions differ in is decided here too: the protocol
and time-outs.
"""

import socket
from collections.abc import Awaitable, Iterable
from types import ModuleType
from typing import Any, Protocol, TypeVar

import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from turnline.contracts.addresses import Address

Arg = str | bytes | int | float
Command = tuple[Arg, ...]
Reply_co = TypeVar("Reply_co", covariant=True)
Replies_co = TypeVar("Replies_co", covariant=True)
CONNECT_S = 5.0
"""Longest time for a server to take a connection."""
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


class RawConnection(Protocol):
    """The part in use of redis-py's asyncio connections, for those who keep one for themselves."""

    socket_timeout: float | None
    """Seconds for a reply; None: no limit."""

    async def connect(self) -> None:
        """Connect, unless it is connected."""
        ...

    async def disconnect(self, nowait: bool = False) -> None:  # noqa: FBT001, FBT002
        """Close it; `nowait`: without waiting until it is closed."""
        ...

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        """Return the bytes of commands."""
        ...

    async def send_packed_command(
        self,
        command: list[bytes],
        check_health: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        """Send the bytes of commands."""
        ...

    async def read_response(
        self,
        disable_decoding: bool = False,  # noqa: FBT001, FBT002
        *,
        disconnect_on_error: bool = True,
    ) -> Any:
        """Return the next reply; an error is raised."""
        ...


async def pipelined(
    redis: AsyncRedis, commands: Iterable[Command], *, raise_on_error: bool = False
) -> list[Any]:
    """Send commands in one round trip; return the replies in order, errors among them."""
    pipe = redis.pipeline(transaction=False)
    for command in commands:
        pipe.execute_command(*command)
    return await pipe.execute(raise_on_error=raise_on_error)


def how_to_connect(
    kind: ModuleType,
    address: Address,
    host: str,
    port: int,
    *,
    is_sentinel: bool = False,
    **decided: Any,
) -> tuple[Any, dict[str, Any]]:
    """Return the class of a connection to one server, and its options; secrets are among them.

    What the address says wins over `decided`, but it can say only what Turnline bears. The protocol
    and the time-out are said, because redis-py 8 takes others by itself: RESP3, and 5 s, which
    would end a read that blocks.

    Args:
        kind: `redis` or `redis.asyncio`.
        address: How to come in.
        host: Of the server, or the path of its socket; then the port is 0.
        port: Of the server.
        is_sentinel: Whether it is one, which has users of its own.
        decided: Further options of redis-py.
    """
    if port:
        connection_class = kind.SSLConnection if address.is_tls else kind.Connection
        place: dict[str, Any] = {"host": host, "port": port, **_keeping_alive()}
    else:
        connection_class, place = kind.UnixDomainSocketConnection, {"path": host}
    given = dict(address.sentinel_options if is_sentinel else address.options)
    given.pop("max_connections", None)
    options: dict[str, Any] = {
        "protocol": 2,
        "retry": (AsyncRetry if kind is redis.asyncio else Retry)(NoBackoff(), 0),
        "socket_connect_timeout": CONNECT_S,
        "socket_timeout": None,
    }
    return connection_class, {**place, **options, **decided, **given}


def _keeping_alive() -> dict[str, Any]:
    """Return options by which the kernel ends a connection whose other side vanished silently.

    Without them a reader that blocks on such a connection waits for ever, since it sends nothing
    that would be refused. A time-out of redis-py's own would double the cost of a command.

    Source: https://man7.org/linux/man-pages/man7/tcp.7.html
    """
    wanted = {
        "TCP_KEEPIDLE": DEAD_AFTER_S // 2,
        "TCP_KEEPINTVL": 1,
        "TCP_KEEPCNT": DEAD_AFTER_S - DEAD_AFTER_S // 2,
        "TCP_USER_TIMEOUT": DEAD_AFTER_S * 1000,
    }
    known = {getattr(socket, name, None): value for name, value in wanted.items()}
    known.pop(None, None)  # not on every system
    return {"socket_keepalive": True, "socket_keepalive_options": known}
