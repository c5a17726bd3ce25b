"""A model that answers nobody until it is told to, so that turns can be counted in flight."""

import asyncio
import resource
from types import TracebackType
from typing import Final, Self, cast

_FRAMES: Final = (
    b'data: {"id":"held","object":"chat.completion.chunk","model":"grok-4.3","choices":'
    b'[{"index":0,"delta":{"role":"assistant","content":"word"}}]}\n\n'
    b'data: {"id":"held","object":"chat.completion.chunk","model":"grok-4.3","choices":'
    b'[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"held","object":"chat.completion.chunk","model":"grok-4.3","choices":[],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}\n\n'
    b"data: [DONE]\n\n"
)
_RESPONSE: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n%b"
    % (len(_FRAMES), _FRAMES)
)
_BACKLOG: Final = 4096


def allow_open_files() -> None:
    """Let this process, and those that it starts, open as many files as the system permits."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class HeldModel:
    """Serves chat completions on loopback, for an `async with` block."""

    def __init__(self) -> None:
        """Begin by answering at once."""
        self.most = 0
        """The most requests that ever waited at one time."""
        self.answered = 0
        self.changed = asyncio.Event()
        """Set whenever a request came or was answered; whoever waits for it clears it."""
        self._holding = False
        self._connections: set[_Connection] = set()
        self._waiting: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    @property
    def base_url(self) -> str:
        """What a client takes as its base URL."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    @property
    def waiting(self) -> int:
        """Requests without an answer."""
        return len(self._waiting)

    def hold(self) -> None:
        """Answer nobody from now on."""
        self._holding = True

    def release(self) -> None:
        """Answer everybody, now and later."""
        self._holding = False
        for connection in list(self._waiting):
            self._answer(connection)

    async def __aenter__(self) -> Self:
        """Begin to listen."""
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self), "127.0.0.1", 0, backlog=_BACKLOG
        )
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
        for connection in list(self._connections):
            connection.transport.abort()
        await self._server.wait_closed()

    def opened(self, connection: "_Connection") -> None:
        """Take note of a connection."""
        self._connections.add(connection)

    def closed(self, connection: "_Connection") -> None:
        """Forget a connection and what it asked."""
        self._connections.discard(connection)
        self._waiting.discard(connection)
        self.changed.set()

    def asked(self, connection: "_Connection") -> None:
        """Answer a request, or keep it waiting."""
        self._waiting.add(connection)
        self.most = max(self.most, len(self._waiting))
        self.changed.set()
        if not self._holding:
            self._answer(connection)

    def _answer(self, connection: "_Connection") -> None:
        self._waiting.discard(connection)
        connection.transport.write(_RESPONSE)
        self.answered += 1
        self.changed.set()


class _Connection(asyncio.Protocol):
    """One connection, with one request at a time."""

    transport: asyncio.Transport

    def __init__(self, model: HeldModel) -> None:
        self._model = model
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._model.opened(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if end and len(body) >= int(length or 0):
            self._received = b""
            self._model.asked(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's signature
        self._model.closed(self)
