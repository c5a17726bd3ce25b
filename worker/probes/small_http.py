"""Answers a few paths over HTTP, and asks others: short requests, one a connection, all bounded."""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

import msgspec

from turnline.worker.http_places import Place, unlink

REQUEST_S: Final = 5.0
"""Seconds for a request to come, and for its answer to be taken."""
_HEAD_BYTES: Final = 16 * 1024
_CONNECTIONS: Final = 64
"""Beyond these, a connection is closed at once."""
_ANSWER_BYTES: Final = 64 * 1024 * 1024
_PLAIN: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_REQUEST: Final = re.compile(rb"([A-Z]{1,16}) (/[!-~]*) HTTP/1\.[01]\r\n")
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) ")


class Answer(NamedTuple):
    """What is answered."""

    status: int
    body: bytes
    kind: str = _PLAIN


Answering = Callable[[], Awaitable[Answer]]


def verdict(faults: list[str], **facts: object) -> Answer:
    """Return 200 where nothing is wrong, else 503; in words that programs can read."""
    body = msgspec.json.encode({"ok": not faults, "faults": faults, **facts}) + b"\n"
    return Answer(503 if faults else 200, body, _JSON)


class SmallServer:
    """Answers GET and HEAD at a few paths, in the running event loop."""

    def __init__(self, listening: socket.socket, answers: Mapping[str, Answering]) -> None:
        """Prepare to answer at a socket that listens, which is closed with this."""
        self._listening = listening
        self._answers = answers
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to answer."""
        is_unix = self._listening.family == socket.AF_UNIX
        start = asyncio.start_unix_server if is_unix else asyncio.start_server
        self._server = await start(self._serve, sock=self._listening, limit=_HEAD_BYTES)

    async def close(self) -> None:
        """Answer no more."""
        unlink(self._listening)
        if self._server is not None:
            self._server.close()
        self._listening.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            if len(self._open) < _CONNECTIONS:
                self._open.add(task)
                await self._exchange(reader, writer)
        except (TimeoutError, EOFError, OSError, asyncio.CancelledError):
            pass  # whoever asks has gone, or takes too long
        finally:
            self._open.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method = b"GET"
        try:
            async with asyncio.timeout(REQUEST_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            answer = Answer(400, b"the request is too long\n")
        else:
            method, answer = await self._answer(head)
        headers = (
            f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}\r\n"
            f"Content-Type: {answer.kind}\r\nContent-Length: {len(answer.body)}\r\n"
            "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        writer.write(headers.encode() + (b"" if method == b"HEAD" else answer.body))
        async with asyncio.timeout(REQUEST_S):
            await writer.drain()

    async def _answer(self, head: bytes) -> tuple[bytes, Answer]:
        request = _REQUEST.match(head)
        if request is None:
            return b"GET", Answer(400, b"this is no request of HTTP/1.1\n")
        method, path = request[1], request[2].partition(b"?")[0].decode()
        if method not in {b"GET", b"HEAD"}:
            return method, Answer(405, b"only GET and HEAD\n")
        answering = self._answers.get(path)
        if answering is None:
            return method, Answer(404, f"there are {' '.join(self._answers)}\n".encode())
        try:
            return method, await answering()
        except Exception as error:  # noqa: BLE001  whoever asks must hear that there is a defect
            return method, Answer(500, f"{type(error).__name__}\n".encode())


async def ask(place: Place, path: str, *, limit_s: float) -> Answer:
    """Ask what answers at a place.

    Raises:
        OSError, TimeoutError: Nobody answers, not in HTTP, or not in time.
    """
    async with asyncio.timeout(limit_s):
        if place.path:
            reader, writer = await asyncio.open_unix_connection(place.path, limit=_HEAD_BYTES)
        else:
            reader, writer = await asyncio.open_connection(
                place.host, place.port, limit=_HEAD_BYTES
            )
        try:
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: turnline\r\nConnection: close\r\n\r\n".encode()
            )
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.read(_ANSWER_BYTES)
            while piece := await reader.read(_ANSWER_BYTES):
                body += piece
                if len(body) > _ANSWER_BYTES:
                    break
        except (EOFError, asyncio.LimitOverrunError):
            raise ConnectionError("what answers there speaks no HTTP") from None
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
    status, kind = _STATUS.match(head), re.search(rb"(?i)\r\ncontent-type: *([!-~ ]*)", head)
    if status is None:
        raise ConnectionError("what answers there speaks no HTTP")
    return Answer(int(status[1]), body, kind[1].decode() if kind else _PLAIN)
