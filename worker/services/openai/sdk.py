"""Reads responses by OpenAI's SDK: the slow path, where somebody else makes the requests."""

import asyncio
import contextlib
import inspect
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
)
from typing import Any, Self, TypeVar, cast

import aiohttp
import httpx2
import msgspec
import openai

from turnline.worker.errors import UnusableReply, WorkerError
from turnline.worker.pipeline.shapes import as_object, failure_of
from turnline.worker.pipeline.stream import CompletionStream
from turnline.worker.pipeline.stream_events import FinishReason, StreamEvent, StreamFailed
from turnline.worker.services.failures import failure_in_stream, failure_of_response, lost
from turnline.worker.services.llm_service import Run
from turnline.worker.services.transport import Parser, Patience, TimeLimits, stalled

_Answer = TypeVar("_Answer")


class SdkStream:
    """The chunks of one response, within time limits; closes the response.

    Read either as events (`next_events`) or, by a subclass's own code, as chunks (`async for`).
    Chunks may be the SDK's objects, dicts, or anything with attributes; they mean what the same
    bytes would. Where they do not come from the SDK their end is the end of the reply.
    """

    def __init__(
        self,
        chunks: AsyncIterable[Any],
        *,
        limits: TimeLimits,
        on_event: Callable[[StreamEvent], None] | None = None,
        parser: Parser | None = None,
    ) -> None:
        """Prepare to read.

        Args:
            chunks: As they come.
            limits: How long to wait; counted from now. Of what does not come from the SDK, only
                chunks are heard.
            on_event: Hears of each event in chunks that are read as such.
            parser: Reads them; as chunks of chat completions if None.
        """
        self._source = chunks
        self._chunks: AsyncIterator[Any] | None = None
        self._limits = limits
        self._on_event = on_event
        self._events = parser or CompletionStream()
        self._has_reason = False
        self._ends_by_itself = parser is None and not isinstance(chunks, openai.AsyncStream)
        self._at_end = False
        self._loop = asyncio.get_running_loop()
        self._patience = Patience(limits, self._loop.time())
        self._waiting: asyncio.Timeout | None = None
        self._kept_alive = False
        self.response: Any = getattr(chunks, "response", None)
        if isinstance(self.response, httpx2.Response):
            body = cast("httpx2.AsyncByteStream", self.response.stream)
            self.response.stream = _HeardBody(body, self._hear)

    async def __aenter__(self) -> Self:
        """Return this."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the response."""
        await self.close()

    def __aiter__(self) -> Self:
        """Return this."""
        return self

    async def __anext__(self) -> Any:
        """Return the next chunk.

        Raises:
            OpenAIError: See the SDK.
            Stalled: A time limit ran out.
        """
        chunk = await self._next_chunk()
        if chunk is None:
            raise StopAsyncIteration
        events = self._events_of(chunk)
        if self._on_event is not None:
            for event in events:
                self._on_event(event)
        return chunk

    async def next_events(self) -> list[StreamEvent] | None:
        """Return the events of the next chunk; None at the end.

        Raises:
            OpenAIError: See the SDK.
            Stalled: A time limit ran out.
        """
        if self._at_end:
            return None
        chunk = await self._next_chunk()
        if chunk is not None:
            return self._events_of(chunk)
        events = self._events.close()
        if self._ends_by_itself and not self._has_reason:
            events.append(FinishReason("stop"))
        return events

    def enough(self, *, within_s: float) -> None:
        """Read on for at most `within_s`: what matters has come."""
        self._patience.enough(self._loop.time() + within_s)

    def expect_more(self) -> None:
        """Read on as long as the response goes on: more has come than was expected."""
        self._patience.enough(None)

    @property
    def left_unread(self) -> bool:
        """Whether the response has words in fields that are not known."""
        return self._events.unread

    async def close(self) -> None:
        """Close the response; that it cannot be closed is of no interest any more."""
        source = self._source
        close = getattr(source, "close", None) or getattr(source, "aclose", None)
        with contextlib.suppress(httpx2.HTTPError, aiohttp.ClientError, OSError, RuntimeError):
            closed = close() if close is not None else None
            if inspect.isawaitable(closed):
                await closed

    async def _next_chunk(self) -> Any:
        """Return the next chunk; None at the end."""
        if self._chunks is None:
            self._chunks = aiter(self._source)
        patience = self._patience
        patience.heard_at = self._loop.time()  # handling what came is not the provider's time
        self._waiting = asyncio.timeout_at(patience.ends()[0])
        try:
            async with self._waiting:
                chunk = await anext(self._chunks, None)
        except TimeoutError:
            if not self._waiting.expired():
                raise
            chunk, (_, limit) = None, patience.ends()
            if limit != "enough":
                raise stalled(limit, kept_alive=self._kept_alive) from None
        finally:
            self._waiting = None
        self._at_end = chunk is None
        self._hear()
        return chunk

    def _hear(self) -> None:
        """Take note that something came."""
        self._patience.heard_at = self._loop.time()
        self._kept_alive = self._waiting is not None
        if self._waiting is not None:
            self._waiting.reschedule(self._patience.ends()[0])

    def _events_of(self, chunk: Any) -> list[StreamEvent]:
        events = self._events.feed(b"data: %b\n\n" % encode_chunk(chunk))
        self._has_reason |= any(isinstance(event, FinishReason) for event in events)
        self._kept_alive = not events
        if events:
            self._patience.progress_at, self._patience.started = self._loop.time(), True
        return events


class _HeardBody(httpx2.AsyncByteStream):
    """A response's body that says when bytes of it come: the SDK keeps comments to itself."""

    def __init__(self, body: httpx2.AsyncByteStream, hear: Callable[[], None]) -> None:
        self._stream = body
        self._hear = hear

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            self._hear()
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


async def in_time(asking: Awaitable[_Answer], limits: TimeLimits) -> _Answer:
    """Await the head of a response.

    Raises:
        Stalled: It did not come in time.
    """
    over_at, limit = Patience(limits, asyncio.get_running_loop().time()).ends()
    waiting = asyncio.timeout_at(over_at)
    try:
        async with waiting:
            return await asking
    except TimeoutError:
        if waiting.expired():
            raise stalled(limit) from None
        raise


def encode_chunk(chunk: Any) -> bytes:
    """Return a chunk as JSON in one line.

    Raises:
        UnusableReply: It has no JSON form.
    """
    try:
        if isinstance(chunk, openai.BaseModel):
            return chunk.model_dump_json(exclude_unset=True, warnings=False).encode()
        return msgspec.json.encode(chunk, enc_hook=_fields)
    except (TypeError, ValueError, RecursionError):
        raise UnusableReply("a chunk of the stream has no JSON form") from None


def _fields(value: Any) -> dict[str, Any]:
    """Return the attributes of an object that was made by hand.

    Raises:
        TypeError: It has none.
    """
    if isinstance(value, openai.BaseModel):
        return value.model_dump(exclude_unset=True, warnings=False)
    return cast("dict[str, Any]", vars(value))


@contextlib.contextmanager
def sdk_failures() -> Generator[None]:
    """Turn what the SDK raises into the worker's errors; everything else passes.

    Raises:
        ProviderUnavailable: No connection, no answer in time, or one that says try later.
        ProviderRejected: The provider refuses the request.
        ContextTooLong: The model does not take a context of this length.
        Stalled: A time limit ran out.
        WorkerError: What our own connections end with.
    """
    try:
        yield
    except openai.APIStatusError as error:
        response = error.response
        raise failure_of_response(
            error.status_code, response.headers, _content_of(response)
        ) from None
    except (openai.APITimeoutError, httpx2.TimeoutException):
        raise stalled("idle") from None
    except openai.APIConnectionError as error:
        if isinstance(error.__cause__, WorkerError):  # what our connections end with
            raise error.__cause__ from None
        raise lost(error) from None
    except (httpx2.HTTPError, aiohttp.ClientError) as error:
        raise lost(error) from None
    except openai.APIError as error:
        said = as_object(error.body)  # where xAI says it: in a field of its own
        failure = failure_of(said) if said is not None else None
        if failure is None:
            failure = StreamFailed(str(error.code or error.type or ""), str(error.body or error))
        raise failure_in_stream(failure) from None


def _content_of(response: Any) -> bytes:
    try:
        return bytes(response.content)
    except RuntimeError:  # it was never read
        return b""


async def run_hooks(run: Run, making: Coroutine[Any, Any, None]) -> None:
    """Make a response by the code of a subclass, in a task that an interruption can end.

    Raises:
        Retryable: See `OpenAILLMService.process_frame`.
        Terminal: See `OpenAILLMService.process_frame`.
    """
    run.inner = asyncio.create_task(making)
    try:
        await asyncio.wait([run.inner])
    finally:
        inner, run.inner = run.inner, None
        if not inner.done():
            inner.cancel()
            await asyncio.wait([inner])
    if inner.cancelled() and run.interrupted:
        return
    with sdk_failures():
        inner.result()
