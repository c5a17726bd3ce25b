"""One client connection: an asyncio protocol with control over every byte, FIN and RST."""

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, cast

from turnline.ops.simulator.faults.response_plan import Coding, Framing
from turnline.ops.simulator.http.http1 import BadRequest, Request, RequestReader, head

_LINGER_NONE: Final = struct.pack("ii", 1, 0)
_WRITE_BUFFER_BYTES: Final = 256 * 1024

Handle = Callable[[Request, "Connection"], Coroutine[Any, Any, None]]
"""Answers one request on a connection."""


class Connection(asyncio.Protocol):
    """Reads requests, has them handled one after another, and writes what the handler says."""

    def __init__(self, handle: Handle, connections: "set[Connection]") -> None:
        self._handle = handle
        self._connections = connections
        self._reader = RequestReader()
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._writable: asyncio.Future[None] | None = None
        self.gone_at_ms: float | None = None
        """When the client closed or broke the connection, ms since the Unix epoch."""
        self.ignores_disconnect = False
        """Whether the present request goes on when the client has gone."""
        self.closes_on_next = False
        """Whether the next bytes of the client find the connection closed."""

    # --- what the handler uses ---

    @property
    def is_open(self) -> bool:
        """Whether bytes can still be written."""
        return self._transport is not None and not self._transport.is_closing()

    def write(self, data: bytes) -> int:
        """Hand bytes to the socket; returns how many, none if it is closed."""
        if self._transport is None or self._transport.is_closing():
            return 0
        self._transport.write(data)
        return len(data)

    async def drain(self) -> None:
        """Wait while the client is slower than the answer."""
        while self._writable is not None and self.is_open:
            await asyncio.shield(self._writable)

    def close(self) -> None:
        """Send what is written and then FIN."""
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """Send RST; what is not sent yet is lost."""
        if self._transport is None:
            return
        sock: socket.socket | None = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        self._transport.abort()

    def close_if_idle_after(self, seconds: float) -> None:
        """Close the connection unannounced if no request is running by then."""
        self._idle_timer = asyncio.get_running_loop().call_later(seconds, self._close_idle)

    async def stop(self) -> None:
        """End the running request and the connection."""
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to read."""
        # uvloop's transports are no subclass of asyncio's, though they have its methods.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Take bytes; a request that is whole is handled when its turn comes."""
        if self.closes_on_next:
            self.close()
            return
        self._reader.feed(data)
        if self._task is None:
            self._begin_next()

    def eof_received(self) -> bool:
        """The client closes its side, which is its way of going."""
        self._client_went()
        return self.ignores_disconnect and self._task is not None

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # as the protocol has it
        """The connection is no more, whoever ended it."""
        self._transport = None
        self._client_went()
        if self._task is None:
            self._connections.discard(self)
        self.resume_writing()
        if self._idle_timer is not None:
            self._idle_timer.cancel()

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """The client has caught up."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # --- inside ---

    def _client_went(self) -> None:
        if self.gone_at_ms is None:
            self.gone_at_ms = time.time() * 1000
        if self._task is not None and not self.ignores_disconnect:
            self._task.cancel()

    def _close_idle(self) -> None:
        if self._task is None:
            self.close()

    def _begin_next(self) -> None:
        try:
            request = self._reader.next()
        except BadRequest as error:
            closing = head(error.status, [], Framing.LENGTH, Coding.IDENTITY, 0, closes=True)
            self.write(closing)
            self.close()
            return
        if request is None:
            return
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._task = asyncio.get_running_loop().create_task(self._handle(request, self))
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self.ignores_disconnect = False
        if self._transport is None:
            self._connections.discard(self)
        if not task.cancelled() and task.exception() is not None:
            # A bug of the simulator must not look like an answer: break the connection, and let
            # the loop's exception handler show it.
            self.reset()
            task.get_loop().call_exception_handler(
                {"message": "the simulator failed", "exception": task.exception(), "task": task}
            )
        elif self.is_open:
            self._begin_next()
