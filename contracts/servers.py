"""Connections to the primaries that hold a fleet's shards, wherever those are at the moment.

Connections belong to servers, and all shards of a server share them. Which server a command goes to
is looked up for each; whoever is told that it asks in the wrong place, or loses a connection, puts
the table in doubt, and the next command asks anew.

Source: docs/adr/0034-connections-belong-to-servers.md
"""

import asyncio
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar, cast

import redis.asyncio
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as ConnectionTimeout

from turnline.contracts.addresses import Address
from turnline.contracts.connection import AsyncRedis, how_to_connect
from turnline.contracts.errors import CLOSED, WrongEventLoop
from turnline.contracts.redis_internals import for_a_command, quick, watched
from turnline.contracts.refusals import NoPrimary
from turnline.contracts.sentinel_watch import SentinelWatch
from turnline.contracts.topology import Node, WatchedPrimary, ask_around, slot_of, topology_of

log = logging.getLogger("turnline.servers")
T = TypeVar("T")
ASK_S: Final = 0.5
"""Time for one server to say where the primaries are."""
SILENCE_S: Final = 1.0
"""Time without a reply after which others are asked: a new primary may have taken over."""
FAILOVER_S: Final = 3.0
"""Longest wait for a new primary in the middle of a command."""
LOOK_S: Final = 0.01
_LOST: Final = (LostConnection, ConnectionTimeout, OSError)
_LEFT: Final = "the server is no primary any more"
_FOR_A_COMMAND: Final = for_a_command(redis.asyncio.ConnectionPool)


class Server:
    """One server that is, or was, a primary."""

    def __init__(self, node: Node, pool: Any, client: AsyncRedis) -> None:
        """Use a pool of connections to a node, and a client that uses the pool."""
        self.node = node
        self.address = str(node)
        """For people, and to tell servers apart."""
        self.pool = pool
        self.redis = client


class Servers(ABC):
    """All connections of one client or worker; how they block is a subclass's business."""

    def __init__(self, address: Address, max_connections: int) -> None:
        """Prepare; nothing is sent before the first command."""
        self._address = address
        self._max_connections = address.options.get("max_connections", max_connections)
        self.topology = topology_of(address)
        self._servers: dict[Node, Server] = {}
        self._in_doubt = bool(self.topology.question)
        self.is_watched: Final = isinstance(self.topology, WatchedPrimary)
        """Whether sentinels may replace a primary that goes on answering; see `check`."""
        self.on_moved: list[Callable[[], object]] = []
        """Called when a primary was replaced, or connections to it were given up."""

    # -- where commands go ------------------------------------------------------------------------

    def known(self, slot: int) -> Server | None:
        """Return the primary of a slot, if it is known beyond doubt and may be written to."""
        if self._in_doubt or self.topology.is_paused:
            return None
        node = self.topology.primary_of(slot)
        if node is None:
            return None
        server = self._servers.get(node)
        if server is None:
            server = self._servers[node] = self._open(node)
        return server

    def has(self, server: Server) -> bool:
        """Whether connections to a server are still in use, and were not given up."""
        return self._servers.get(server.node) is server

    async def find(self, slot: int) -> Server:
        """Return the primary of a slot, having asked where it is if that is in doubt.

        Raises:
            redis.exceptions.ConnectionError: Nobody knows, or a failover is under way.
        """
        if (
            not self.topology.is_paused
        ):  # else sentinels know no better, and will say so by themselves
            await self._settle_doubt()
        if self.topology.is_paused:
            await self._wait_for_primary()
            await self._settle_doubt()
        if (server := self.known(slot)) is None:
            self._in_doubt = bool(self.topology.question)
            raise NoPrimary(self.topology.why_unknown)
        return server

    async def place(self, key: str) -> Server:
        """Return the primary of a key's slot; see `find`."""
        slot = slot_of(key)
        return self.known(slot) or await self.find(slot)

    async def primaries(self) -> list[Server]:
        """Return all primaries; see `find`."""
        await self._settle_doubt()
        return [
            await self.find(self.topology.a_slot_of(it)) for it in sorted(self.topology.primaries)
        ]

    async def check(self, server: Server) -> None:
        """See that what a server has just answered counts, where that is not sure by itself.

        Raises:
            redis.exceptions.ConnectionError: Its successor may have been made before.
        """
        await self._catch_up()
        if self.topology.is_paused or server.node not in self.topology.primaries:
            raise LostConnection(_LEFT)

    # -- doubt ------------------------------------------------------------------------------------

    def doubt(self) -> None:
        """Ask before the next command: somebody was in the wrong place, or lost a connection."""
        self._in_doubt = bool(self.topology.question)

    def leave(self, node: Node) -> None:
        """Give up the connections to a server that takes no writes any more.

        Behind an address that never changes, new connections may reach its successor.
        """
        self.doubt()
        if (server := self._servers.pop(node, None)) is not None:
            self._close(server, in_use=False)
            self.tell_moved()

    async def _learn(self) -> None:
        """Ask where the primaries are, and leave those that are none any more."""
        before = self.topology.primaries
        await ask_around(self.topology, self._ask)
        self._in_doubt = False
        if before and before != self.topology.primaries:
            self.moved()

    def moved(self) -> None:
        """Leave the servers that are no primaries any more, also in the middle of a command."""
        for node in self._servers.keys() - self.topology.primaries:
            self._close(self._servers.pop(node), in_use=True)
        self.tell_moved()

    def tell_moved(self) -> None:
        """Tell those who have connections of their own."""
        for tell in tuple(self.on_moved):
            try:
                tell()
            except Exception as error:  # noqa: BLE001  one bad callback stops nobody
                log.error("servers.callback_failed", extra={"error": type(error).__name__})  # noqa: TRY400  its text may be a user's

    # -- what blocks ------------------------------------------------------------------------------

    @abstractmethod
    async def together(self, sending: Sequence[Coroutine[Any, Any, T]]) -> Sequence[T]:
        """Await all, at once where that is possible."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close all connections, those in use when they come back."""

    @abstractmethod
    async def _settle_doubt(self) -> None:
        """Learn, once for all who wait for it, if there is doubt."""

    @abstractmethod
    async def _wait_for_primary(self) -> None:
        """Wait for the end of a failover, for a bounded time."""

    @abstractmethod
    async def _catch_up(self) -> None:
        """Hear all that sentinels have said by now."""

    @abstractmethod
    async def _ask(self, node: Node) -> Any:
        """Put the topology's question to a node, on a connection of its own."""

    @abstractmethod
    def _open(self, node: Node) -> Server:
        """Prepare connections to a server."""

    @abstractmethod
    def _close(self, server: Server, *, in_use: bool) -> None:
        """Close connections: those that are idle, or all; the others when they come back."""


class _Pool(redis.asyncio.ConnectionPool):
    """The connections to one server. Once closed, those in use are closed when they come back."""

    def __init__(self, lost: Callable[[], object], **options: Any) -> None:
        cast("Any", super()).__init__(**options)
        self._lost = lost
        self._is_closed = False
        self._taken_s: dict[Any, float] = {}

    async def get_connection(self, *_: Any, **__: Any) -> Any:
        connecting = object()  # it may wait for the server's words already
        self._taken_s[connecting] = asyncio.get_running_loop().time()
        try:
            connection = await cast("Any", super()).get_connection(*_FOR_A_COMMAND)
        except _LOST:
            self._lost()
            raise
        finally:
            del self._taken_s[connecting]
        if self._is_closed:  # while it connected: nobody watches it
            await self.release(connection)
            raise LostConnection(_LEFT)
        self._taken_s[connection] = asyncio.get_running_loop().time()
        return connection

    def get_available_connection(self) -> Any:
        if self._is_closed:  # whoever queued for a place does not begin to connect
            raise LostConnection(_LEFT)
        return cast("Any", super()).get_available_connection()

    async def release(self, connection: Any) -> None:
        self._taken_s.pop(connection, None)
        await super().release(connection)
        if self._is_closed:
            await connection.disconnect()

    def is_silent(self, now_s: float) -> bool:
        """Whether a command waits for its reply for long."""
        return any(now_s - it > SILENCE_S for it in self._taken_s.values())

    async def close_all(self, *, in_use: bool) -> None:
        self._is_closed = True
        await self.disconnect(inuse_connections=in_use)

    async def leave(self) -> None:
        """Close all connections, in the end also those that are being made at the moment."""
        await self.close_all(in_use=True)
        while self._taken_s:
            await asyncio.sleep(LOOK_S)
            await self.disconnect(inuse_connections=True)


class AsyncServers(Servers):
    """Connections for asyncio, of one event loop."""

    def __init__(self, address: Address, *, max_connections: int) -> None:
        """Prepare; nothing is sent before the first command.

        Args:
            address: Of a server, of sentinels, or of some nodes of a cluster.
            max_connections: To each server, beside those that its pool's `make_connection` gives.
        """
        super().__init__(address, max_connections)
        self._learning = asyncio.Lock()
        self._watching: list[asyncio.Task[None]] = []
        self._sentinels: SentinelWatch | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._home: tuple[int, object] | None = None
        self._is_closed = False

    def known(self, slot: int) -> Server | None:
        """As in the base; refuses another event loop or process before anything is sent."""
        self._check_home()
        return super().known(slot)

    def pool(self, key: str) -> redis.asyncio.ConnectionPool:
        """Return a pool for other clients of redis-py: connections to the primary of one slot."""
        return _SlotPool(self, slot_of(key))

    async def together(self, sending: Sequence[Coroutine[Any, Any, T]]) -> Sequence[T]:
        """Await all at once."""
        return [await sending[0]] if len(sending) == 1 else await asyncio.gather(*sending)

    async def _settle_doubt(self) -> None:
        if not self._in_doubt:
            return
        if not self._watching:
            self._watching.append(asyncio.create_task(self._watch()))
            if isinstance(self.topology, WatchedPrimary):
                watch = SentinelWatch(self._address, self.topology, self.moved, self.doubt)
                self._sentinels = watch
                self._watching.append(asyncio.create_task(watch.run()))
        async with self._learning:
            if self._in_doubt:
                await self._learn()

    async def _wait_for_primary(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(FAILOVER_S):
                while self.topology.is_paused:  # noqa: ASYNC110  also told from other threads
                    await asyncio.sleep(LOOK_S)

    async def _catch_up(self) -> None:
        if self._sentinels is not None and self._sentinels.has_unheard:
            await self._sentinels.catch_up()

    async def _ask(self, node: Node) -> Any:
        is_sentinel = self._address.kind == "sentinel"
        kind, options = how_to_connect(redis.asyncio, self._address, *node, is_sentinel=is_sentinel)
        connection = kind(**options)
        try:
            async with asyncio.timeout(ASK_S):
                await connection.connect()
                await connection.send_command(*self.topology.question)
                return await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)

    async def _watch(self) -> None:
        """Doubt a server that owes an answer: what waits there ends once it was replaced."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(SILENCE_S / 2)
            if any(server.pool.is_silent(clock()) for server in self._servers.values()):
                self.doubt()
            with suppress(RedisError, OSError):  # whoever needs it hears of it
                await self._settle_doubt()

    def _open(self, node: Node) -> Server:
        kind, options = how_to_connect(redis.asyncio, self._address, *node)
        pool = _Pool(
            self.doubt,
            **{
                **options,
                "connection_class": watched(quick(kind), lambda: self.leave(node), self.doubt),
                "max_connections": self._max_connections,
            },
        )
        return Server(node, pool, cast("AsyncRedis", redis.asyncio.Redis(connection_pool=pool)))

    def _close(self, server: Server, *, in_use: bool) -> None:
        pool = server.pool
        work = pool.leave() if in_use else pool.close_all(in_use=False)
        closing = asyncio.get_running_loop().create_task(work)
        self._tasks.add(closing)
        closing.add_done_callback(self._tasks.discard)

    def _check_home(self) -> None:
        """Refuse to be used by two event loops or processes: what comes in would be mixed up."""
        if self._is_closed:
            raise RuntimeError(CLOSED)
        here = (os.getpid(), asyncio.get_running_loop())
        self._home = self._home or here
        if self._home != here:
            raise WrongEventLoop(
                "a client of Turnline belongs to one process and one event loop: open one in each"
            )

    async def aclose(self) -> None:
        """Close all connections, those in use when they come back."""
        self._is_closed = True
        for task in self._watching:
            task.cancel()
        closing: Iterator[Awaitable[None]] = (
            server.pool.close_all(in_use=True) for server in self._servers.values()
        )
        await asyncio.gather(*closing, *self._tasks, *self._watching, return_exceptions=True)
        self._servers.clear()


class _SlotPool(redis.asyncio.ConnectionPool):
    """Stands for the pool of the server that is a slot's primary at the moment."""

    def __init__(self, servers: AsyncServers, slot: int) -> None:
        cast("Any", super()).__init__(protocol=2)
        self._servers = servers
        self._slot = slot
        self._owners: dict[Any, _Pool] = {}

    async def get_connection(self, *_: Any, **__: Any) -> Any:
        server = self._servers.known(self._slot) or await self._servers.find(self._slot)
        connection = await server.pool.get_connection()
        self._owners[connection] = server.pool
        return connection

    async def release(self, connection: Any) -> None:
        await self._owners.pop(connection).release(connection)

    async def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002
        """Leave the connections to the servers: others use them too."""
