"""A model that answers nobody until it is told to, so that turns can be counted in flight."""

import asyncio
import resource
from typing import Final

from turnline.ops.bench.raw_http import Connection, RawServer, Request

_FRAMES: Final = (
    b'data: {"id":"held","object":"chat.completion.chunk","model":"grok-4.3","choices":'
    b'[{"index":0,"delta":{"role":"assistant","content":"word"}}]}\n\n'
    b'data: {"id":"held","object":"chat.completion.chunk","model":"grok-4.3","choices":'
    b'[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"held","object":"chat.completion.chunk","model":"grok-4.3","choices":[],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}\n\n'
    b"data: [DONE]\n\n"
)


def allow_open_files() -> None:
    """Let this process, and those that it starts, open as many files as the system permits."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class HeldModel(RawServer):
    """Serves chat completions on loopback, for an `async with` block."""

    def __init__(self) -> None:
        """Begin by answering at once."""
        super().__init__()
        self.most = 0
        """The most requests that ever waited at one time."""
        self.waiting = 0
        """Requests without an answer."""
        self.answered = 0
        self.changed = asyncio.Event()
        """Set whenever a request came or was answered; whoever waits for it clears it."""
        self._released = asyncio.Event()
        self._released.set()

    @property
    def base_url(self) -> str:
        """What a client takes as its base URL."""
        return f"{self.url}/v1"

    def hold(self) -> None:
        """Answer nobody from now on."""
        self._released.clear()

    def release(self) -> None:
        """Answer everybody, now and later."""
        self._released.set()

    async def serve(self, connection: Connection, request: Request) -> None:  # noqa: ARG002  all get the same
        """Answer a request, or keep it waiting."""
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        self.changed.set()
        try:
            await self._released.wait()
            await connection.answer(200, _FRAMES, "text/event-stream")
            self.answered += 1
        finally:
            self.waiting -= 1
            self.changed.set()
