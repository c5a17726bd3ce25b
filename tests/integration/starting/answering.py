"""A provider, or anything else that listens, which answers in any way whatever."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

LIST = b'{"data":[{"id":"grok-4.3"}]}'


def http(
    body: bytes = LIST,
    status: str = "200 OK",
    kind: str = "application/json",
    headers: str = "",
) -> bytes:
    """An answer, whole."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{headers}"
    return head.encode("latin-1") + b"\r\n" + body


@asynccontextmanager
async def answering(
    data: bytes,
    *,
    then: bytes | None = None,
    every_s: float = 0,
    hold: bool = False,
    paths: Mapping[bytes, bytes] | None = None,
) -> AsyncIterator[int]:
    """Listen on the port given; to each connection that says something say `data`.

    Where the path that is asked for stands in `paths`, that is said instead. After it comes `then`
    without end, or silence, or the end.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            path = (await reader.read(4_096)).split(b" ", 2)[1:2]
            writer.write((paths or {}).get(b"".join(path), data))
            while then is not None:
                writer.write(then)
                await writer.drain()
                await asyncio.sleep(every_s)
            if hold:
                await asyncio.Event().wait()
        except OSError:
            pass
        finally:
            writer.close()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(answer(reader, writer))
        tasks.add(task)

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
