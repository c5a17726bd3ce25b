"""A bare reader of streamed chat completions: one connection kept open, nothing handled."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

_READ: Final = 2**16


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta


class _Frame(msgspec.Struct):
    choices: list[_Choice] = []


_decode = msgspec.json.Decoder(_Frame).decode
_encode = msgspec.json.encode
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class BareModel:
    """Asks a model over connections that stay open. It handles no error."""

    def __init__(self, base_url: str) -> None:
        """Prepare for an `http://host:port/prefix` address."""
        parts = urlsplit(base_url)
        self._host, self._port = parts.hostname, parts.port
        self._head = (
            f"POST {parts.path}/chat/completions HTTP/1.1\r\nhost: {parts.netloc}\r\n"
            "authorization: Bearer xai-bench\r\ncontent-type: application/json\r\n"
        ).encode()
        self._idle: list[_Connection] = []

    async def stream(self, messages: list[Any], conversation_id: str) -> AsyncIterator[str]:
        """Yield what each read from the socket adds to the answer; JSON messages are spliced."""
        body = _encode(
            {
                "model": "grok-4.3",
                "stream": True,
                "stream_options": {"include_usage": True},
                "messages": [msgspec.Raw(message) for message in messages],
            }
        )
        connection = self._idle.pop() if self._idle else await self._open()
        reader, writer = connection
        writer.write(
            b"%bx-grok-conv-id: %b\r\ncontent-length: %d\r\n\r\n%b"
            % (self._head, conversation_id.encode(), len(body), body)
        )
        await reader.readuntil(b"\r\n\r\n")
        raw, events, done = b"", b"", False
        while not done:
            raw += await reader.read(_READ)
            raw, payload, done = _dechunked(raw)
            *complete, events = (events + payload).split(b"\n\n")
            if text := "".join(map(_text, complete)):
                yield text
        self._idle.append(connection)

    async def _open(self) -> _Connection:
        return await asyncio.open_connection(self._host, self._port, limit=2**20)


def _dechunked(raw: bytes) -> tuple[bytes, bytes, bool]:
    """Return (what is left, the content of the complete HTTP chunks, whether it was the last)."""
    start, parts = 0, list[bytes]()
    while (line := raw.find(b"\r\n", start)) >= 0:
        size = int(raw[start:line], 16)
        end = line + 2 + size
        if len(raw) < end + 2:
            break
        if not size:
            return b"", b"".join(parts), True
        parts.append(raw[line + 2 : end])
        start = end + 2
    return raw[start:], b"".join(parts), False


def _text(event: bytes) -> str:
    if event.startswith(b"data: {"):
        choices = _decode(event[6:]).choices
        return (choices[0].delta.content or "") if choices else ""
    return ""
