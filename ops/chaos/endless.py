"""The drill of endless replies: what a worker and Redis keep of what a provider sends for ever."""

import asyncio
import contextlib
import gzip
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

from turnline.contracts import TurnClient, UserMessage
from turnline.contracts.connection import SyncRedis, open_sync
from turnline.contracts.replies import TERMINAL, AnyTerminal, TurnFailed
from turnline.ops.chaos.figures import Drilled, Row, Tell
from turnline.ops.cli.failures import Failed
from turnline.ops.fleet.stack import Stack

RSS_MOST_MB: Final = 200.0
"""Resident memory of a worker, at any moment."""
REDIS_MOST_MB: Final = 5.0
"""By how much one turn may make Redis grow."""
_BUDGET_S: Final = 30.0
"""The turn's budget: what fails in a way that may pass is not tried for longer."""
_PATIENCE_S: Final = 120.0
_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n"


def _delta(fields: str) -> bytes:
    return f'data: {{"id":"r","model":"m","choices":[{{"index":0,"delta":{fields}}}]}}\n\n'.encode()


def _for_ever(piece: bytes) -> Callable[[], Iterator[bytes]]:
    """Return what gives the same bytes again and again, some 64 KiB at a time."""
    return lambda: itertools.repeat(piece * max(1, 65_536 // len(piece)))


def _calls() -> Iterator[bytes]:
    for n in itertools.count():
        function = f'{{"name":"f","arguments":"{{\\"n\\":{n}}}"}}'
        yield _delta(f'{{"tool_calls":[{{"index":{n},"id":"c{n}","function":{function}}}]}}')


def _headers() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    for n in itertools.count():
        yield b"x-header-%d: %b\r\n" % (n, b"y" * 4_000)


def _arguments(piece: str) -> bytes:
    function = f'{{"name":"f","arguments":"{piece}"}}'
    return _delta(f'{{"tool_calls":[{{"index":0,"function":{function}}}]}}')


def _repeated(fields: str, n: int = 1) -> Callable[[], Iterator[bytes]]:
    """Return what sends deltas of these fields, in which `#` is a number that grows."""

    def pieces() -> Iterator[bytes]:
        for number in itertools.count(n):
            yield _delta(fields.replace("#", str(number)))

    return pieces


def _growing() -> Iterator[bytes]:
    """Send all of a message so far, again and again."""
    for n in itertools.count(1):
        text = f'{{"content":"{"word " * n}"}}'
        yield f'data: {{"choices":[{{"index":0,"message":{text}}}]}}\n\n'.encode()


def _trailers() -> Iterator[bytes]:
    yield b"0\r\n"
    for n in itertools.count():
        yield b"x-trailer-%d: %b\r\n" % (n, b"y" * 4_000)


def _extensions() -> Iterator[bytes]:
    yield b"1;x="
    yield from _for_ever(b"y")()


_BOMB: Final = gzip.compress(_delta('{"content":"x"}') * 400_000)
KINDS: Final[Mapping[str, tuple[bytes, Callable[[], Iterator[bytes]]]]] = {
    "text": (_HEAD, _for_ever(_delta('{"content":"word "}'))),
    "text in large pieces": (_HEAD, _for_ever(_delta(f'{{"content":"{"x" * 100_000}"}}'))),
    "two characters at a time": (_HEAD, _for_ever(_delta('{"content":"xy"}'))),
    "reasoning": (_HEAD, _for_ever(_delta('{"reasoning_content":"word "}'))),
    "arguments": (_HEAD, _for_ever(_arguments("word "))),
    "calls": (_HEAD, _calls),
    "empty deltas": (_HEAD, _for_ever(_delta("{}"))),
    "comments": (_HEAD, _for_ever(b": keepalive\n\n")),
    "blank lines": (_HEAD, _for_ever(b"\n")),
    "one line": (_HEAD, lambda: itertools.chain([b"data: "], _for_ever(b"x")())),
    "one JSON body": (_HEAD, lambda: itertools.chain([b'{"a":"'], _for_ever(b"x")())),
    "a page": (_HEAD, lambda: itertools.chain([b"<html>"], _for_ever(b"x")())),
    "finish reasons": (
        _HEAD,
        _for_ever(b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'),
    ),
    "compressed": (_HEAD + b"content-encoding: gzip\r\n", lambda: itertools.repeat(_BOMB)),
    "headers": (b"", _headers),
    "trailers": (_HEAD + b"transfer-encoding: chunked\r\n", _trailers),
    "informational responses": (b"", _for_ever(b"HTTP/1.1 100 Continue\r\n\r\n")),
    "informational responses with headers": (
        b"",
        _for_ever(b"HTTP/1.1 103 Early Hints\r\n" + b"link: </x>\r\n" * 100 + b"\r\n"),
    ),
    "empty lines ahead": (b"", _for_ever(b"\r\n")),
    "a status line": (b"", lambda: itertools.chain([b"HTTP/1.1 200 "], _for_ever(b"x")())),
    "a header's name": (
        b"",
        lambda: itertools.chain([b"HTTP/1.1 200 OK\r\n"], _for_ever(b"x")()),
    ),
    "a header's value": (
        b"",
        lambda: itertools.chain([b"HTTP/1.1 200 OK\r\nx: "], _for_ever(b"x")()),
    ),
    "a header in lines": (
        b"",
        lambda: itertools.chain([b"HTTP/1.1 200 OK\r\nx: y\r\n"], _for_ever(b" x\r\n")()),
    ),
    "chunk extensions": (_HEAD + b"transfer-encoding: chunked\r\n", _extensions),
    "extensions of every chunk": (
        _HEAD + b"transfer-encoding: chunked\r\n",
        _for_ever(b"1;x=" + b"y" * 4_000 + b"\r\n\n\r\n"),
    ),
    "a chunk's length": (_HEAD + b"transfer-encoding: chunked\r\n", _for_ever(b"0")),
    "chunks of one byte": (_HEAD + b"transfer-encoding: chunked\r\n", _for_ever(b"1\r\n\n\r\n")),
    "a trailer": (
        _HEAD + b"transfer-encoding: chunked\r\n",
        lambda: itertools.chain([b"0\r\nx: "], _for_ever(b"x")()),
    ),
    "other protocols": (
        b"",
        lambda: itertools.chain(
            [b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"],
            _for_ever(b"x")(),
        ),
    ),
    "nothing, and then more": (
        b"",
        lambda: itertools.chain([b"HTTP/1.1 204 No Content\r\n\r\n"], _for_ever(b"x")()),
    ),
    "redirects": (
        b"",
        lambda: itertools.chain(
            [b"HTTP/1.1 307 X\r\nlocation: /v1/chat/completions\r\n\r\n"], _for_ever(b"x")()
        ),
    ),
    "refusals of the request": (
        b"",
        lambda: itertools.chain([b"HTTP/1.1 400 X\r\n\r\n"], _for_ever(b"x")()),
    ),
    "a compressed refusal": (
        b"",
        lambda: itertools.chain(
            [b"HTTP/1.1 400 X\r\ncontent-encoding: gzip\r\n\r\n"], itertools.repeat(_BOMB)
        ),
    ),
    "names of calls": (
        _HEAD,
        _for_ever(_delta('{"tool_calls":[{"index":0,"function":{"name":"word"}}]}')),
    ),
    "ids of calls": (_HEAD, _repeated('{"tool_calls":[{"index":0,"id":"c#","function":{}}]}')),
    "changing calls": (
        _HEAD,
        _repeated('{"tool_calls":[{"index":0,"id":"c#","function":{"arguments":"{"}}]}'),
    ),
    "usage": (
        _HEAD,
        _for_ever(b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'),
    ),
    "usage with text": (
        _HEAD,
        _for_ever(
            b'data: {"choices":[{"delta":{"content":"xy"}}],"usage":{"prompt_tokens":1}}\n\n'
        ),
    ),
    "refusals": (_HEAD, _for_ever(_delta('{"refusal":"word "}'))),
    "parts": (_HEAD, _for_ever(_delta('{"content":[{"type":"text","text":"xy"}]}'))),
    "a message that grows": (_HEAD, _growing),
    "reasoning in parts": (
        _HEAD,
        _for_ever(_delta('{"content":[{"type":"thinking","thinking":"word "}]}')),
    ),
    "halves of characters": (_HEAD, _for_ever(_delta('{"content":"\\ud83c"}'))),
    "lines of one event": (_HEAD, _for_ever(_delta('{"content":"xy"}')[:-1])),
    "deep JSON": (_HEAD, lambda: itertools.chain([b'data: {"choices":'], _for_ever(b"[")())),
    "other choices": (
        _HEAD,
        _for_ever(b'data: {"choices":[{"index":1,"delta":{"content":"xy"}}]}\n\n'),
    ),
}
"""What is sent: the beginning of the response, and what follows it without end."""


class _Provider:
    """Sends one kind of reply for as long as somebody reads; in a thread of its own."""

    def __init__(self) -> None:
        self.kind = "text"
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        serving = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(serving, self._loop).result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        """Listen no more, and end what is still being sent."""
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET"):
                models = b'{"data":[{"id":"grok-4.3"}]}'
                length = b"content-length: %d\r\n\r\n" % len(models)
                writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n" + length + models)
                await writer.drain()
            else:
                await self._send(writer)
        writer.close()

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        head, pieces = KINDS[self.kind]
        if head:
            writer.write(head + b"\r\n")
        for piece in pieces():
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)


async def drill(rounds: int, tell: Tell, *, kinds: Iterable[str] = ()) -> Drilled:
    """Send each kind of reply without end to a worker of its own, `rounds` times over.

    Args:
        rounds: How often.
        tell: Called with how it is going.
        kinds: Of `KINDS`; all of them if none is named.

    Raises:
        Failed: A turn did not end.
    """
    rows: list[Row] = []
    with _Provider() as provider:
        environ = {
            **os.environ,
            "XAI_API_KEY": "xai-drill",
            "TURNLINE_BASE_URL": provider.url,
            "TURNLINE_TURN_BUDGET_S": f"{_BUDGET_S:g}",
            "TURNLINE_LOG_LEVEL": "error",
        }
        for n, kind in itertools.product(range(rounds), kinds or KINDS):
            tell(f"endless {kind}, {n + 1} of {rounds}")
            provider.kind = kind
            with Stack(1, live=True, environ=environ) as stack:
                rows += await _measure(stack, kind, n)
    return Drilled("endless", "a provider that sends for ever", rows)


async def _measure(stack: Stack, kind: str, n: int) -> list[Row]:
    """Let one turn get such a reply, and return what it came to."""
    connection = open_sync(stack.redis_url, retries=0)
    before = _memory(connection)
    most = 0.0
    began_s = time.monotonic()
    async with TurnClient.connect(stack.redis_url) as client:
        name = f"endless-{kind.replace(' ', '-')}-{n}"
        receipt = await client.submit(UserMessage(conversation_id=name, text="tell me everything"))
        waiting = asyncio.ensure_future(_end_of(client, receipt))
        while not waiting.done():
            most = max(most, rss_mb(stack.pid(0)))
            if time.monotonic() - began_s > _PATIENCE_S:
                waiting.cancel()
                raise Failed(f"the turn with endless {kind} does not end")
            await asyncio.sleep(0.02)
        end = await waiting
    took_s = time.monotonic() - began_s
    grown = (_memory(connection) - before) / 1e6
    code = end.code if isinstance(end, TurnFailed) else type(end).__name__
    connection.close()
    return [
        Row(f"{kind}: ended as {code} after", took_s, "s"),
        Row(f"{kind}: not by name", float(not isinstance(end, TurnFailed)), "", 0),
        Row(f"{kind}: worker's memory", most, "MB", RSS_MOST_MB),
        Row(f"{kind}: Redis grew by", grown, "MB", REDIS_MOST_MB),
    ]


async def _end_of(client: TurnClient, receipt: Any) -> AnyTerminal:
    async for event in client.events(receipt):
        if isinstance(event, TERMINAL):
            return event
    raise Failed("the turn's events ended without an end")


def _memory(connection: SyncRedis) -> int:
    info: Any = connection.execute_command("INFO", "memory")
    return int(info["used_memory"]) - int(info.get("mem_clients_normal", 0))


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    text = Path(f"/proc/{pid}/statm").read_text()
    return int(text.split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
