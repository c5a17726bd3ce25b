"""Connections to the primaries for code without an event loop; threads may share them."""

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final, TypeVar, cast

import redis
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import TimeoutError as ConnectionTimeout

from turnline.contracts.addresses import Address
from turnline.contracts.connection import Pipeline, SyncRedis, how_to_connect
from turnline.contracts.patience import Waiting
from turnline.contracts.redis_internals import (
    connect_socket,
    for_a_command,
    hang_up,
    hear,
    set_timeout,
)
from turnline.contracts.sentinel_watch import SentinelWatch
from turnline.contracts.servers import ASK_S, FAILOVER_S, LOOK_S, Server, Servers
from turnline.contracts.topology import Node, WatchedPrimary

T = TypeVar("T")
_LOST: Final = (LostConnection, ConnectionTimeout, OSError)
_FOR_A_COMMAND: Final = for_a_command(redis.ConnectionPool)
_limit_s: ContextVar[float | None] = ContextVar("limit_s", default=None)
"""How long the command may take that is being sent; None: as long as its connection says."""


def run(verb: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never pauses."""
    try:
        verb.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    verb.throw(AssertionError("a verb of the blocking client waits for an event loop"))
    raise AssertionError("and goes on waiting")


class _Blocking:
    silence_s = 2.0

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  it blocks

    async def within(self, seconds: float, reply: Awaitable[T]) -> T:
        token = _limit_s.set(seconds)
        try:
            return await reply
        finally:
            _limit_s.reset(token)


BLOCKING: Final[Waiting] = _Blocking()
"""Time as it passes where commands block: a socket waits for so long."""


class BlockingServers(Servers):
    """Its coroutines block and never pause; see `run`."""

    def __init__(self, address: Address, *, max_connections: int, timeout_s: float | None) -> None:
        """Prepare; nothing is sent before the first command.

        Args:
            address: Of a server, of sentinels, or of some nodes of a cluster.
            max_connections: To each server.
            timeout_s: Seconds for which a command waits for its reply; None: for as long as the
                connection lives. More than any command blocks.
        """
        super().__init__(address, max_connections)
        self._timeout_s = timeout_s
        self._learning = threading.Lock()
        self._pid = os.getpid()
        self._watching: _WatchingThread | None = None

    def known(self, slot: int) -> Server | None:
        """As in the base."""
        self._begin_anew_in_child()
        return super().known(slot)

    def _begin_anew_in_child(self) -> None:
        """Use nothing that a thread of the parent has, or held: it is not there."""
        if self._pid != os.getpid():
            self._pid, self._learning, self._watching = os.getpid(), threading.Lock(), None
            self.doubt()
            if isinstance(self.topology, WatchedPrimary):
                self.topology.go_on()  # who heard of the end is the parent

    async def together(self, sending: Sequence[Coroutine[Any, Any, T]]) -> Sequence[T]:
        """Do one after the other."""
        return [await it for it in sending]

    async def _settle_doubt(self) -> None:
        self._begin_anew_in_child()
        if self._in_doubt:
            with self._learning:
                if self._watching is None and isinstance(self.topology, WatchedPrimary):
                    watch = SentinelWatch(self._address, self.topology, self.moved, self.doubt)
                    self._watching = _WatchingThread(watch)
                    self._watching.start()
                if self._in_doubt:
                    await self._learn()

    async def _wait_for_primary(self) -> None:
        until_s = time.monotonic() + FAILOVER_S
        while self.topology.is_paused and time.monotonic() < until_s:
            time.sleep(LOOK_S)  # noqa: ASYNC251  it blocks

    async def _catch_up(self) -> None:
        if self._watching is not None:
            self._watching.catch_up()

    async def _ask(self, node: Node) -> Any:
        is_sentinel = self._address.kind == "sentinel"
        host, port = node
        kind, options = how_to_connect(
            redis, self._address, host, port, is_sentinel=is_sentinel, socket_timeout=ASK_S
        )
        connection = kind(**{**options, "socket_connect_timeout": ASK_S})
        try:
            connection.connect()
            connection.send_command(*self.topology.question)
            return connection.read_response()
        finally:
            connection.disconnect()

    def _open(self, node: Node) -> Server:
        kind, options = how_to_connect(redis, self._address, *node, socket_timeout=self._timeout_s)
        pool = _Pool(
            self.doubt,
            connection_class=_watched(kind, lambda: self.leave(node), self.doubt),
            max_connections=self._max_connections,
            **options,
        )
        return Server(node, pool, AsIfAsync(redis.Redis(connection_pool=pool)))

    def _close(self, server: Server, *, in_use: bool) -> None:
        server.pool.close_all(in_use=in_use)

    async def aclose(self) -> None:
        """Close all connections, those in use when they come back."""
        if self._watching is not None:
            self._watching.stop()
            self._watching = None
            self.doubt()  # whoever goes on all the same begins anew
        for server in self._servers.values():
            server.pool.close_all(in_use=False)
        self._servers.clear()


class _WatchingThread(threading.Thread):
    """Listens to sentinels beside code that blocks."""

    def __init__(self, watch: SentinelWatch) -> None:
        super().__init__(name="sentinels", daemon=True)
        self._watch = watch
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None

    def run(self) -> None:
        self._task = self._loop.create_task(self._watch.run())
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)
        self._loop.run_until_complete(self._watch.catch_up())  # connections close a turn later
        self._loop.close()

    def catch_up(self) -> None:
        """Hear what has come; the way to this thread is long where others keep it busy.

        Raises:
            redis.exceptions.ConnectionError: It could not be heard.
        """
        if not self._watch.has_unheard:
            return
        heard = threading.Event()

        def hear() -> None:
            hearing = self._loop.create_task(self._watch.catch_up())
            hearing.add_done_callback(lambda _: heard.set())

        try:
            self._loop.call_soon_threadsafe(hear)
        except RuntimeError:  # it has ended: the client is being closed
            return
        if not heard.wait(ASK_S):
            raise LostConnection("what sentinels say is not heard in time")

    def stop(self) -> None:
        def cancel() -> None:
            if self._task is not None:
                self._task.cancel()

        with suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(cancel)
        self.join(1.0)


class _Pool(redis.ConnectionPool):
    """As that of asyncio: once closed, connections in use are closed when they come back."""

    def __init__(self, lost: Callable[[], object], **options: Any) -> None:
        self._is_closed = False
        cast("Any", super()).__init__(**options)
        self._lost = lost
        self._taken: set[Any] = set()

    def get_connection(self, *_: Any, **__: Any) -> Any:
        try:
            connection = cast("Any", super()).get_connection(*_FOR_A_COMMAND)
        except _LOST:
            self._lost()
            raise
        self._taken.add(connection)
        set_timeout(connection, _limit_s.get() or connection.socket_timeout)
        return connection

    def release(self, connection: Any) -> None:
        self._taken.discard(connection)
        super().release(connection)
        if self._is_closed:
            connection.disconnect()

    def close_all(self, *, in_use: bool) -> None:
        self._is_closed = True
        self.disconnect(inuse_connections=False)
        for connection in self._taken.copy() if in_use else ():
            hang_up(connection)


def _watched(
    connection_class: Any, demoted: Callable[[], object], doubtful: Callable[[], object]
) -> Any:
    """As `redis_internals.watched`, for connections that block."""

    def read_response(it: Any, *args: Any, **options: Any) -> Any:
        try:
            return connection_class.read_response(it, *args, **options)
        except Exception as error:  # whatever it is, it is passed on
            hear(error, demoted, doubtful)
            raise

    def connect(it: Any) -> None:
        """Connect in the time that there is, also to a server that takes it and says nothing."""
        told, told_connect = it.socket_timeout, it.socket_connect_timeout
        if (limit_s := _limit_s.get()) is not None:
            it.socket_timeout, it.socket_connect_timeout = limit_s, min(limit_s, told_connect)
        try:
            connection_class.connect(it)
        finally:
            it.socket_timeout, it.socket_connect_timeout = told, told_connect

    changed: dict[str, Any] = {"read_response": read_response, "connect": connect}
    if issubclass(connection_class, redis.UnixDomainSocketConnection):
        changed["_connect"] = connect_socket
    return type(connection_class.__name__, (connection_class,), changed)


class AsIfAsync:
    """A client of redis-py whose commands block, for code that awaits them."""

    def __init__(self, client: SyncRedis) -> None:
        """Call `client`."""
        self._client = client

    async def execute_command(self, *args: Any) -> Any:
        """Send one command and return its reply."""
        return self._client.execute_command(*args)

    def pipeline(self, transaction: bool = True) -> "_PipelineAsIfAsync":  # noqa: FBT001, FBT002
        """Begin a pipeline."""
        return _PipelineAsIfAsync(self._client.pipeline(transaction))

    async def aclose(self) -> None:
        """Close all connections."""
        self._client.close()


class _PipelineAsIfAsync:
    def __init__(self, pipeline: Pipeline[list[Any]]) -> None:
        self.execute_command = pipeline.execute_command
        self._execute = pipeline.execute

    async def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001, FBT002
        return self._execute(raise_on_error)
