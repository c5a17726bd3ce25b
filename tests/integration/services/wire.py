"""A server that writes exactly the bytes a test scripts, and a turn that talks to it."""

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Self, TypeVar

import pytest

from turnline.ops.bench import raw_http
from turnline.worker.pipeline.aggregators import LLMAssistantAggregatorParams
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.pipeline.frames import (
    Frame,
    LLMTextFrame,
    LLMUsageMetricsData,
    MetricsFrame,
    OpenAILLMContextFrame,
    StartFrame,
    StartInterruptionFrame,
)
from turnline.worker.pipeline.processor import FrameDirection, FrameProcessor, Pipeline
from turnline.worker.services.grok.llm import GrokLLMService
from turnline.worker.services.openai.sdk_client import Client
from turnline.worker.services.provider_client import ProviderClient
from turnline.worker.services.transport import TimeLimits

QUICK = TimeLimits(first_token_s=1, idle_s=0.3, total_s=10, tail_s=0.3)
"""Limits of tests in which the provider is to be found stalled."""
HEARING = TimeLimits(silence_s=0.6, total_s=20)
"""Limits of tests in which a connection is to be found silent, and nothing else a fault."""
PATIENT = TimeLimits(tail_s=30)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"x-request-id: req-1\r\ntransfer-encoding: chunked\r\n\r\n"
)
CLOSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
END_OF_BODY = b"0\r\n\r\n"

Failure = TypeVar("Failure", bound=BaseException)
Script = Callable[["Connection"], Awaitable[None]]


def frame(**fields: Any) -> bytes:
    """Encode a chunk as xAI does."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def delta(**fields: Any) -> bytes:
    """A chunk with one delta."""
    return frame(id="r-1", model="grok-4.3", choices=[{"index": 0, "delta": fields}])


def finish(reason: str = "stop") -> bytes:
    """The chunk with the finish reason."""
    return frame(id="r-1", choices=[{"index": 0, "delta": {}, "finish_reason": reason}])


def usage(prompt: int, completion: int, **more: Any) -> bytes:
    """The chunk with the usage report."""
    counts = {"prompt_tokens": prompt, "completion_tokens": completion}
    return frame(choices=[], usage={**counts, "total_tokens": prompt + completion, **more})


def call(index: int, call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """A whole tool call."""
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": call_id, "function": function, "type": "function"}


def sse(*payloads: bytes) -> bytes:
    """Payloads as server-sent events."""
    return b"".join(b"data: " + payload + b"\n\n" for payload in payloads)


def chunk(data: bytes) -> bytes:
    """One piece of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Connection(raw_http.Connection):
    """The server's side of one connection, which also knows what a stream looks like."""

    async def reply(self, *payloads: bytes) -> None:
        """Send a whole stream, `[DONE]` included, and keep the connection."""
        await self.send(STREAM_HEAD + chunk(sse(*payloads, b"[DONE]")) + END_OF_BODY)


class WireServer(raw_http.RawServer):
    """Answers each request with the next script; the last one again when they run out."""

    makes = Connection

    def __init__(self, *scripts: Script) -> None:
        super().__init__()
        self._scripts = list(scripts)
        self.requests: list[raw_http.Request] = []

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.url += "/v1"
        self.client = ProviderClient("xai-test", self.url)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.client.close()
        await super().__aexit__(*error)

    async def serve(self, connection: Any, request: raw_http.Request) -> None:
        self.requests.append(request)
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        await script(connection)


def streaming(*payloads: bytes) -> Script:
    """A script: a whole stream at once."""

    async def script(connection: Connection) -> None:
        await connection.reply(*payloads)

    return script


class FrameTap(FrameProcessor):
    """Shows each passing frame to a function and passes it on."""

    def __init__(self, on_frame: Callable[[Frame], None]) -> None:
        super().__init__()
        self._on_frame = on_frame

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        self._on_frame(frame)
        await self.push_frame(frame, direction)


class Turn:
    """One turn around a Grok service: what a worker builds, with everything recorded."""

    def __init__(self, client: Client, **kwargs: Any) -> None:
        metrics = kwargs.pop("metrics", True)
        self.context = kwargs.pop("context", None) or OpenAILLMContext(
            [{"role": "user", "content": "hi"}]
        )
        kwargs = {"limits": PATIENT, **kwargs}
        service_class: type[GrokLLMService] = kwargs.pop("service_class", GrokLLMService)
        self.service = service_class(api_key="xai-test", client=client, **kwargs)
        pair = self.service.create_context_aggregator(
            self.context,
            assistant_params=LLMAssistantAggregatorParams(expect_stripped_words=False),
        )
        self.frames: list[Frame] = []
        self.on_text: Callable[[str], None] = lambda _: None
        self.assistant = pair.assistant()
        self.pipeline = Pipeline([pair.user(), self.service, FrameTap(self._saw), self.assistant])
        self._start = StartFrame(enable_metrics=metrics, enable_usage_metrics=metrics)

    def _saw(self, frame: Frame) -> None:
        self.frames.append(frame)
        if isinstance(frame, LLMTextFrame):
            self.on_text(frame.text)

    async def run(self) -> None:
        await self.pipeline.queue_frame(self._start)
        await self.pipeline.queue_frame(OpenAILLMContextFrame(self.context))

    async def interrupt(self) -> None:
        await self.pipeline.queue_frame(StartInterruptionFrame())

    @property
    def text(self) -> str:
        return "".join(f.text for f in self.frames if isinstance(f, LLMTextFrame))

    @property
    def names(self) -> list[str]:
        """Names of the frames that passed, metrics left out."""
        return [type(f).__name__ for f in self.frames if not isinstance(f, MetricsFrame)]

    @property
    def reported(self) -> list[tuple[int, int, int]]:
        """Usage reports: prompt, completion, total."""
        return [
            (d.value.prompt_tokens, d.value.completion_tokens, d.value.total_tokens)
            for f in self.frames
            if isinstance(f, MetricsFrame)
            for d in f.data
            if isinstance(d, LLMUsageMetricsData)
        ]

    @property
    def said(self) -> list[dict[str, Any]]:
        """The context without its first message."""
        return self.context.messages[1:]


@contextlib.asynccontextmanager
async def turn(*scripts: Script, **kwargs: Any) -> AsyncIterator[tuple[Turn, WireServer]]:
    """A turn and the server it talks to."""
    async with WireServer(*scripts) as server:
        yield Turn(server.client, **kwargs), server


async def ran(*scripts: Script, **kwargs: Any) -> tuple[Turn, WireServer]:
    """A turn that was run, and the server that it talked to."""
    async with turn(*scripts, **kwargs) as (run, server):
        await run.run()
    return run, server


async def failed(
    error: type[Failure], *scripts: Script, **kwargs: Any
) -> tuple[Turn, WireServer, Failure]:
    """A turn that failed with this error, the server that it talked to, and the error."""
    async with turn(*scripts, **kwargs) as (run, server):
        with pytest.raises(error) as caught:
            await run.run()
    return run, server, caught.value
