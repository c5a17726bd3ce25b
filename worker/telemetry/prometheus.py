"""Shows metrics to Prometheus on a loopback port, where that is asked for."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

_PATIENCE_S: Final = 5.0
_HEAD_BYTES: Final = 16_384
_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class PrometheusPort:
    """An HTTP server that knows one page."""

    def __init__(self, page: Callable[[], str]) -> None:
        """Serve `page()` as `/metrics`."""
        self._page = page
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def open(self, port: int) -> None:
        """Listen on a loopback port; 0 takes any.

        Raises:
            OSError: It is in use.
        """
        self._server = await asyncio.start_server(
            self._answer, "127.0.0.1", port, limit=_HEAD_BYTES
        )

    async def close(self) -> None:
        """Listen no longer."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                head = await reader.readuntil(b"\r\n\r\n")
                words = head.split(b"\r\n", 1)[0].split(b" ")
                path = words[1].partition(b"?")[0] if len(words) > 1 else b""
                found = words[0] == b"GET" and path == b"/metrics"
                body = (self._page() if found else "the metrics are at /metrics\n").encode()
                status = "200 OK" if found else "404 Not Found"
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: {_TYPE}\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        except (OSError, EOFError, TimeoutError, ValueError, asyncio.LimitOverrunError):
            pass  # whoever asked did not ask properly, or went away
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
