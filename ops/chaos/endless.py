"""The drill of endless replies: how much memory a worker and Redis use for one."""

import asyncio
import gzip
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any, Final

from turnline.contracts import TurnClient, UserMessage
from turnline.contracts.connection import SyncRedis
from turnline.contracts.opening import open_sync
from turnline.contracts.replies import TERMINAL, AnyTerminal, TurnFailed
from turnline.ops.bench.measuring import rss_mb
from turnline.ops.bench.raw_http import Connection, RawServer, Request
from turnline.ops.chaos.figures import Drilled, Figure, Tell
from turnline.ops.cli.failures import Failed
from turnline.ops.fleet.stack import Stack

RSS_MOST_MB: Final = 190.0
"""Most resident memory of a worker at any moment, in MiB: just below 200 million bytes."""
REDIS_MOST_MB: Final = 5.0
"""Most that Redis may grow in one turn."""
_BUDGET_S: Final = 30.0
"""The turn's budget: failures that may pass are retried for so long."""
_PATIENCE_S: Final = 120.0
Pieces = Callable[[], Iterator[bytes]]
"""Gives what is sent, piece by piece, without end."""


def _delta(fields: str) -> bytes:
    return f'data: {{"id":"r","model":"m","choices":[{{"index":0,"delta":{fields}}}]}}\n\n'.encode()


def _call(fields: str) -> str:
    return f'{{"tool_calls":[{{{fields}}}]}}'


def _for_ever(piece: bytes, start: bytes = b"") -> Pieces:
    """Return a source that repeats a piece without end, some 64 KiB at a time, after a start."""
    again = piece * max(1, 65_536 // len(piece))
    return lambda: itertools.chain([start], itertools.repeat(again))


def _counting(piece: bytes, start: bytes = b"") -> Pieces:
    """Return a source that repeats a piece without end; `#` in it is a growing number."""
    return lambda: itertools.chain(
        [start], (piece.replace(b"#", b"%d" % n) for n in itertools.count())
    )


def _growing() -> Iterator[bytes]:
    """Send all of a message so far, again and again."""
    for n in itertools.count(1):
        text = f'{{"content":"{"word " * n}"}}'
        yield f'data: {{"choices":[{{"index":0,"message":{text}}}]}}\n\n'.encode()


_BOMB: Final = gzip.compress(_delta('{"content":"x"}') * 400_000)
_STREAMS: Final[Mapping[str, Pieces]] = {
    "text": _for_ever(_delta('{"content":"word "}')),
    "text in large pieces": _for_ever(_delta(f'{{"content":"{"x" * 100_000}"}}')),
    "two characters at a time": _for_ever(_delta('{"content":"xy"}')),
    "reasoning": _for_ever(_delta('{"reasoning_content":"word "}')),
    "arguments": _for_ever(_delta(_call('"index":0,"function":{"name":"f","arguments":"word "}'))),
    "calls": _counting(
        _delta(_call('"index":#,"id":"c#","function":{"name":"f","arguments":"{\\"n\\":#}"}'))
    ),
    "empty deltas": _for_ever(_delta("{}")),
    "comments": _for_ever(b": keepalive\n\n"),
    "blank lines": _for_ever(b"\n"),
    "one line": _for_ever(b"x", b"data: "),
    "one JSON body": _for_ever(b"x", b'{"a":"'),
    "a page": _for_ever(b"x", b"<html>"),
    "finish reasons": _for_ever(b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'),
    "names of calls": _for_ever(_delta(_call('"index":0,"function":{"name":"word"}'))),
    "ids of calls": _counting(_delta(_call('"index":0,"id":"c#","function":{}'))),
    "changing calls": _counting(_delta(_call('"index":0,"id":"c#","function":{"arguments":"{"}'))),
    "usage": _for_ever(
        b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
    ),
    "usage with text": _for_ever(
        b'data: {"choices":[{"delta":{"content":"xy"}}],"usage":{"prompt_tokens":1}}\n\n'
    ),
    "refusals": _for_ever(_delta('{"refusal":"word "}')),
    "parts": _for_ever(_delta('{"content":[{"type":"text","text":"xy"}]}')),
    "a message that grows": _growing,
    "reasoning in parts": _for_ever(_delta('{"content":[{"type":"thinking","thinking":"word "}]}')),
    "halves of characters": _for_ever(_delta('{"content":"\\ud83c"}')),
    "lines of one event": _for_ever(_delta('{"content":"xy"}')[:-1]),
    "deep JSON": _for_ever(b"[", b'data: {"choices":'),
    "other choices": _for_ever(b'data: {"choices":[{"index":1,"delta":{"content":"xy"}}]}\n\n'),
}
_CHUNKS: Final[Mapping[str, Pieces]] = {
    "trailers": _counting(b"x-trailer-#: %b\r\n" % (b"y" * 4_000), b"0\r\n"),
    "chunk extensions": _for_ever(b"y", b"1;x="),
    "extensions of every chunk": _for_ever(b"1;x=" + b"y" * 4_000 + b"\r\n\n\r\n"),
    "a chunk's length": _for_ever(b"0"),
    "chunks of one byte": _for_ever(b"1\r\n\n\r\n"),
    "a trailer": _for_ever(b"x", b"0\r\nx: "),
}
_OK: Final = b"HTTP/1.1 200 OK\r\n"
_RESPONSES: Final[Mapping[str, Pieces]] = {
    "headers": _counting(b"x-header-#: %b\r\n" % (b"y" * 4_000), _OK),
    "informational responses": _for_ever(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "informational responses with headers": _for_ever(
        b"HTTP/1.1 103 Early Hints\r\n" + b"link: </x>\r\n" * 100 + b"\r\n"
    ),
    "empty lines ahead": _for_ever(b"\r\n"),
    "a status line": _for_ever(b"x", b"HTTP/1.1 200 "),
    "a header's name": _for_ever(b"x", _OK),
    "a header's value": _for_ever(b"x", _OK + b"x: "),
    "a header in lines": _for_ever(b" x\r\n", _OK + b"x: y\r\n"),
    "other protocols": _for_ever(
        b"x", b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"
    ),
    "nothing, and then more": _for_ever(b"x", b"HTTP/1.1 204 No Content\r\n\r\n"),
    "redirects": _for_ever(b"x", b"HTTP/1.1 307 X\r\nlocation: /v1/chat/completions\r\n\r\n"),
    "refusals of the request": _for_ever(b"x", b"HTTP/1.1 400 X\r\n\r\n"),
    "a compressed refusal": _for_ever(_BOMB, b"HTTP/1.1 400 X\r\ncontent-encoding: gzip\r\n\r\n"),
}
_HEAD: Final = _OK + b"content-type: text/event-stream\r\nconnection: close\r\n"
KINDS: Final[Mapping[str, tuple[bytes, Pieces]]] = {
    **{kind: (_HEAD + b"\r\n", pieces) for kind, pieces in _STREAMS.items()},
    "compressed": (_HEAD + b"content-encoding: gzip\r\n\r\n", _for_ever(_BOMB)),
    **{
        kind: (_HEAD + b"transfer-encoding: chunked\r\n\r\n", pieces)
        for kind, pieces in _CHUNKS.items()
    },
    **{kind: (b"", pieces) for kind, pieces in _RESPONSES.items()},
}
"""What is sent: the beginning of the response, and what follows it without end."""


class _Provider(RawServer):
    """Sends one kind of reply for as long as somebody reads."""

    kind = "text"

    async def serve(self, connection: Connection, request: Request) -> None:  # noqa: ARG002  all get the same
        """Send without end."""
        head, pieces = KINDS[self.kind]
        await connection.send(head)
        for piece in pieces():
            await connection.send(piece)
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
    rows: list[Figure] = []
    async with _Provider() as provider:
        environ = {
            **os.environ,
            "XAI_API_KEY": "xai-drill",
            "TURNLINE_BASE_URL": f"{provider.url}/v1",
            "TURNLINE_CHECK_MODEL": "false",  # nobody answers while the stack starts
            "TURNLINE_TURN_BUDGET_S": f"{_BUDGET_S:g}",
            "TURNLINE_LOG_LEVEL": "error",
            "TURNLINE_WIRE": "chat",
        }
        for n, kind in itertools.product(range(rounds), kinds or KINDS):
            tell(f"endless {kind}, {n + 1} of {rounds}")
            provider.kind = kind
            with Stack(1, live=True, environ=environ) as stack:
                rows += await _measure(stack, kind, n)
    return Drilled("endless", "a provider that sends for ever", rows)


async def _measure(stack: Stack, kind: str, n: int) -> list[Figure]:
    """Run one turn with such a reply and measure it."""
    most, began_s = 0.0, time.monotonic()
    with closing(open_sync(stack.redis_url)) as redis:
        before = _memory(redis)
        async with TurnClient.connect(stack.redis_url) as client:
            name = f"endless-{kind.replace(' ', '-')}-{n}"
            message = UserMessage(conversation_id=name, text="tell me everything")
            waiting = asyncio.ensure_future(_end_of(client, await client.submit(message)))
            while not waiting.done():
                most = max(most, rss_mb(stack.pid(0)))
                if time.monotonic() - began_s > _PATIENCE_S:
                    waiting.cancel()
                    raise Failed(f"the turn with endless {kind} does not end")
                await asyncio.sleep(0.02)
            end = await waiting
        took_s = time.monotonic() - began_s
        grown = (_memory(redis) - before) / 1e6
    code = end.code if isinstance(end, TurnFailed) else type(end).__name__
    return [
        Figure(f"{kind}: ended as {code} after", took_s, "s"),
        Figure(f"{kind}: not by name", float(not isinstance(end, TurnFailed)), most=0),
        Figure(f"{kind}: worker's memory", most, "MB", RSS_MOST_MB),
        Figure(f"{kind}: Redis grew by", grown, "MB", REDIS_MOST_MB),
    ]


async def _end_of(client: TurnClient, receipt: Any) -> AnyTerminal:
    async for event in client.events(receipt):
        if isinstance(event, TERMINAL):
            return event
    raise Failed("the turn's events ended without an end")


def _memory(connection: SyncRedis) -> int:
    info: Any = connection.execute_command("INFO", "memory")
    return int(info["used_memory"]) - int(info.get("mem_clients_normal", 0))
