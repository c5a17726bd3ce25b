"""A small HTTP/1 server on loopback that writes whatever it is told: any bytes, framing and end."""

import asyncio
import contextlib
import json
import socket
import struct
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

_BACKLOG: Final = 4096
_READ_BYTES: Final = 1 << 24


class Request(NamedTuple):
    """What was received."""

    line: str
    """Such as `POST /v1 HTTP/1.1`."""
    headers: dict[str, str]
    """By lower-case name."""
    raw: bytes
    """The body."""

    @property
    def body(self) -> Any:
        """The body as JSON."""
        return json.loads(self.raw)


class Connection:
    """The server's side of one connection."""

    def __init__(
        self, server: "RawServer", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Speak over these streams."""
        self._server, self._reader, self._writer = server, reader, writer

    async def send(self, *pieces: bytes) -> None:
        """Write each piece by itself."""
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            if len(pieces) > 1:
                await asyncio.sleep(0)

    async def answer(
        self, status: int, body: bytes = b"", content_type: str = "application/json", **headers: str
    ) -> None:
        """Send a whole response."""
        lines = [f"HTTP/1.1 {status} X", f"content-type: {content_type}"]
        lines += [f"content-length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join([*lines, "", ""]).encode() + body)

    async def read_request(self) -> Request | None:
        """Return the next request; None if the client has left."""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        line, *rest = head.decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (h.partition(":") for h in rest if h)}
        body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        return Request(line, headers, body)

    async def client_left(self) -> None:
        """Wait until the client closes or resets the connection."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(4096):
                pass
        self._server.left_at.append(asyncio.get_running_loop().time())
        self._server.left.set()

    def fin(self) -> None:
        """Close cleanly."""
        self._writer.close()

    def rst(self) -> None:
        """Close with a reset."""
        sock: socket.socket = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


class RawServer:
    """Serves connections, for an `async with` block. A subclass says how requests are answered."""

    makes: type[Connection] = Connection
    """What `serve` is given."""

    def __init__(self) -> None:
        """Begin without a connection."""
        self.url = ""
        self.connections = 0
        """How many there were so far."""
        self.connected = asyncio.Event()
        self.deserted = asyncio.Event()
        """The last connection is closed, and everything that came over it was served."""
        self.left = asyncio.Event()
        """A client was seen to leave; `left_at` says when, by the loop's clock."""
        self.left_at: list[float] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        """Begin to listen."""
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", 0, limit=_READ_BYTES, backlog=_BACKLOG
        )
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close everything."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def serve(self, connection: Connection, request: Request) -> None:
        """Answer one request; the next one of the connection is read afterwards."""
        raise NotImplementedError

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.connected.set()
        connection = self.makes(self, reader, writer)
        try:
            while (request := await connection.read_request()) is not None:
                await self.serve(connection, request)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            if not self._tasks:
                self.deserted.set()
