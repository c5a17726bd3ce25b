"""Forwards TCP connections, or mistreats them as it is told; run as a script.

Usage: forwarder.py PORT

Orders come on standard input, one a line; each is answered on standard output by the number of open
connections, once it is carried out. End of file, which also comes when the starter is killed, ends
it. It listens on 127.0.0.1, and starts refusing.

    forward PORT   new connections go to this port of 127.0.0.1; open ones stay where they are
    close          new connections are taken and closed at once
    swallow        connections are taken; what comes on any, open ones included, goes nowhere
    refuse         new connections are refused
    cut            hang up on all connections
    count          nothing
"""

import asyncio
import contextlib
import sys

HOST = "127.0.0.1"
_CHUNK_BYTES = 65_536
_MOST_WAITING = 1024


class _Connection:
    """A client, and the server it was forwarded to, if there is one."""

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []
        self.is_swallowed = False
        """Once true it stays so: whoever lost bytes cannot go on."""

    async def pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter | None) -> None:
        """Pass bytes on until the source has none left, or either side is gone."""
        with contextlib.suppress(OSError):
            while data := await source.read(_CHUNK_BYTES):
                if sink is not None and not self.is_swallowed:
                    sink.write(data)
                    await sink.drain()
        if sink is not None and not self.is_swallowed:
            sink.close()  # after what is on its way

    def cut(self) -> None:
        """Hang up on both sides."""
        for writer in self.writers:
            writer.transport.abort()


class _Forwarder:
    """Takes connections on one port and does with them what it was told last."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._mode = "refuse"
        self._target = 0
        self._server: asyncio.Server | None = None
        self._open: set[_Connection] = set()

    async def obey(self, order: str) -> int:
        """Carry an order out and return the number of open connections."""
        word, *rest = order.split()
        if word == "cut":
            for connection in self._open:
                connection.cut()
            self._open.clear()
        elif word != "count":
            self._target = int(rest[0]) if word == "forward" else 0
            self._mode = word
            await self._listen()
        if word == "swallow":
            for connection in self._open:
                connection.is_swallowed = True
        return len(self._open)

    async def _listen(self) -> None:
        if self._mode == "refuse":
            if self._server is not None:
                self._server.close()
            self._server = None
        elif self._server is None:
            self._server = await asyncio.start_server(
                self._take, HOST, self._port, reuse_address=True, backlog=_MOST_WAITING
            )

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode not in {"forward", "swallow"}:
            writer.close()
            return
        connection = _Connection()
        connection.writers.append(writer)
        connection.is_swallowed = self._mode == "swallow"
        self._open.add(connection)
        try:
            await self._pass(connection, reader, writer)
        finally:
            self._open.discard(connection)
            connection.cut()

    async def _pass(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if connection.is_swallowed:
            await connection.pump(reader, None)
            return
        try:
            from_server, to_server = await asyncio.open_connection(HOST, self._target)
        except OSError:
            return
        connection.writers.append(to_server)
        await asyncio.gather(
            connection.pump(reader, to_server), connection.pump(from_server, writer)
        )


async def _serve(port: int) -> None:
    forwarder = _Forwarder(port)
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )
    while order := await orders.readline():
        print(await forwarder.obey(order.decode()), flush=True)


def main() -> None:
    """Forward until standard input ends."""
    asyncio.run(_serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
