"""HTTP/1.1 without a framework: reads requests from bytes, writes heads and framed bodies."""

import http
import sys
import zlib
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from turnline.ops.simulator.faults.response_plan import Coding, Framing, Headers

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_BODY_BYTES: Final = 64 * 1024 * 1024
_PROMISED_TOO_MUCH_BYTES: Final = 64


class BadRequest(Exception):
    """The bytes are no request that could be served."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request whose body has arrived."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """Names in lower case; the last of equal ones counts."""
    keeps_alive: bool
    body: bytes = b""


class RequestReader:
    """Cuts a connection's bytes into requests."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: tuple[Request, int | None] | None = None
        """A request whose body has not arrived, and its length; None: it comes in chunks."""
        self._body = bytearray()

    @property
    def buffered_bytes(self) -> int:
        """Bytes that wait for the rest of their request or for their turn."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Add bytes."""
        self._buffer += data

    def next(self) -> Request | None:
        """Return the next whole request, if it has arrived.

        Raises:
            BadRequest: What has arrived is no request.
        """
        if self._head is None:
            self._head = self._read_head()
        if self._head is None:
            return None
        request, length = self._head
        body = self._read_chunks() if length is None else self._read(length)
        if body is None:
            return None
        self._head = None
        return msgspec.structs.replace(request, body=body)

    def _read_head(self) -> tuple[Request, int | None] | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise BadRequest(431)
            return None
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        request_line = lines[0].split(" ")
        if len(request_line) != 3 or not request_line[2].startswith("HTTP/1."):
            raise BadRequest(400)
        method, target, version = request_line
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise BadRequest(400)
            headers[sys.intern(name.lower())] = sys.intern(value.strip())
        wish = headers.get("connection", "").lower()
        keeps_alive = "close" not in wish and (version != "HTTP/1.0" or "keep-alive" in wish)
        parts = urlsplit(target)
        request = Request(
            method=method,
            path=unquote(parts.path),
            query=dict(parse_qsl(parts.query, keep_blank_values=True)) if parts.query else {},
            headers=headers,
            keeps_alive=keeps_alive,
        )
        return request, _length(headers)

    def _read(self, length: int) -> bytes | None:
        if len(self._buffer) < length:
            return None
        body = bytes(self._buffer[:length])
        del self._buffer[:length]
        return body

    def _read_chunks(self) -> bytes | None:
        while True:
            end = self._buffer.find(b"\r\n")
            if end < 0:
                return None
            try:
                size = int(self._buffer[:end].partition(b";")[0], 16)
            except ValueError:
                raise BadRequest(400) from None
            if len(self._body) + size > MAX_BODY_BYTES:
                raise BadRequest(413)
            if len(self._buffer) < end + 2 + size + 2:
                return None
            self._body += self._buffer[end + 2 : end + 2 + size]
            del self._buffer[: end + 2 + size + 2]
            if size == 0:
                body = bytes(self._body)
                self._body.clear()
                return body


def _length(headers: Mapping[str, str]) -> int | None:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return None
    text = headers.get("content-length", "0")
    if not text.isdigit():
        raise BadRequest(400)
    length = int(text)
    if length > MAX_BODY_BYTES:
        raise BadRequest(413)
    return length


def head(
    status: int, headers: Headers, framing: Framing, coding: Coding, length: int, *, closes: bool
) -> bytes:
    """Write the head of a response; `length` is that of the body if it is announced."""
    try:
        reason = http.HTTPStatus(status).phrase
    except ValueError:
        reason = "Unknown"
    lines = [f"HTTP/1.1 {status} {reason}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if coding is not Coding.IDENTITY:
        lines.append("content-encoding: gzip")
    match framing:
        case Framing.CHUNKED:
            lines.append("transfer-encoding: chunked")
        case Framing.LENGTH:
            lines.append(f"content-length: {length}")
        case Framing.OVERLONG:
            lines.append(f"content-length: {length + _PROMISED_TOO_MUCH_BYTES}")
        case Framing.CLOSE:
            pass
    if closes or framing is Framing.CLOSE:
        lines.append("connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class BodyEncoder:
    """Codes and frames a body piece by piece."""

    def __init__(self, framing: Framing, coding: Coding) -> None:
        self._is_chunked = framing is Framing.CHUNKED
        self._coding = coding
        self._gzip = zlib.compressobj(wbits=31) if coding is not Coding.IDENTITY else None

    def encode(self, data: bytes) -> bytes:
        """Code and frame a piece; compressed pieces are flushed, so that they can be read."""
        if self._gzip is not None:
            data = self._spoil(self._gzip.compress(data) + self._gzip.flush(zlib.Z_SYNC_FLUSH))
        return self._frame(data)

    def end(self) -> bytes:
        """The end of the body."""
        data = b"" if self._gzip is None else self._frame(self._spoil(self._gzip.flush()))
        return data + b"0\r\n\r\n" if self._is_chunked else data

    def _frame(self, data: bytes) -> bytes:
        if not self._is_chunked or not data:
            return data
        return b"%x\r\n%b\r\n" % (len(data), data)

    def _spoil(self, data: bytes) -> bytes:
        if self._coding is not Coding.BROKEN_GZIP:
            return data
        return bytes(byte ^ 0x55 for byte in data)
