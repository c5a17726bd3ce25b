"""A collector of traces that throws them away, as a process: what sending costs the sender."""

import asyncio
from typing import cast

import click
import uvloop

_TAKEN = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


class _Connection(asyncio.Protocol):
    """Answers every POST that came to its end; clients send one at a time."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._head = b""
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self._missing:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            self._head, self._missing = b"", int(length or 0)
        self._missing -= len(data)
        if not self._missing:
            self.transport.write(_TAKEN)


async def serve() -> None:
    """Listen on loopback for ever; prints the address first."""
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0)
    click.echo(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
