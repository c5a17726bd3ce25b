"""Sends one request and reads its response, within time limits and without retries."""

import asyncio
import contextlib
import functools
import zlib
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Final, Literal, Protocol, Self, TypeAlias, cast

import aiohttp
import httpx2
import msgspec

from turnline.worker.errors import Stalled, UnusableReply
from turnline.worker.pipeline.stream_events import StreamEvent
from turnline.worker.services.failures import failure_of_response, lost
from turnline.worker.services.openai.sdk_client import Client, transport_of

_FOREIGN: Final = (httpx2.HTTPError, aiohttp.ClientError, OSError)
"""What the transport raises when a connection fails; some of it may quote headers or bodies."""

Limit: TypeAlias = Literal["silence", "first_token", "idle", "total", "enough"]
StopReason: TypeAlias = Limit | Literal["interrupted"]
_LOOK_S: Final = 0.5
"""Seconds between two looks at a call that waits."""
_INFLATED_MOST: Final = 65_536
"""Bytes that are decompressed at a time."""
_ANY_WINDOW: Final = 32 + zlib.MAX_WBITS
"""For zlib: either wrapping."""
_MOST_OF_AN_ERROR: Final = 65_536
"""Bytes read of a response that refuses."""


class TimeLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait for a model: not long for a connection, and long for a thought."""

    connect_s: float = 10.0
    silence_s: float = 60.0
    """Without a single byte, from the request on; comments that keep the connection alive count."""
    first_token_s: float | None = None
    """From the request to the first chunk; comments do not count. None: no limit of its own."""
    idle_s: float | None = None
    """Between two chunks; likewise."""
    total_s: float = 3600.0
    """For the whole call."""
    tail_s: float = 5.0
    """After the finish reason, for the usage report."""
    drain_s: float = 0.02
    """After `[DONE]`, for the end of the response, which makes the connection reusable."""


def stalled(limit: Limit, *, kept_alive: bool = False) -> Stalled:
    """Return the error for a time limit that ran out.

    Args:
        limit: Which one.
        kept_alive: Whether bytes came meanwhile that were no chunk.
    """
    error = Stalled(f"the provider sent nothing in time ({limit})", code=f"{limit}_timeout")
    error.recurs = limit == "total" or (limit != "silence" and kept_alive)
    return error


class Patience:
    """When a wait for a response is over. Whoever reads moves numbers; nothing else is done then.

    Times are the event loop's, seconds.
    """

    __slots__ = ("_enough_at", "_last", "_limits", "heard_at", "progress_at", "started")

    def __init__(self, limits: TimeLimits, now: float) -> None:
        """Begin to wait."""
        self._limits = limits
        self._last = now + limits.total_s
        self._enough_at: float | None = None
        self.heard_at = now
        """When anything came."""
        self.progress_at = now
        """When a chunk came."""
        self.started = False
        """Whether one ever came."""

    @property
    def is_enough(self) -> bool:
        """Whether what matters has come."""
        return self._enough_at is not None

    def enough(self, until: float | None) -> None:
        """Wait until then for what may still come; None: as long as the response goes on."""
        self._enough_at = until

    def ends(self) -> tuple[float, Limit]:
        """Return when the wait is over, and by which limit, if nothing comes until then."""
        limits = self._limits
        over: tuple[float, Limit] = (self._last, "total")
        if self._enough_at is not None:
            return min((self._enough_at, "enough"), over)
        over = min((self.heard_at + limits.silence_s, "silence"), over)
        if self.started:
            if limits.idle_s is not None:
                over = min((self.progress_at + limits.idle_s, "idle"), over)
        elif limits.first_token_s is not None:
            over = min((self.progress_at + limits.first_token_s, "first_token"), over)
        return over


class Parser(Protocol):
    """Turns the bytes of a response into events; see `turnline.worker.pipeline.stream`."""

    unread: bool

    def feed(self, data: bytes) -> list[StreamEvent]: ...  # noqa: D102

    def close(self) -> list[StreamEvent]: ...  # noqa: D102

    def forget(self) -> None: ...  # noqa: D102


class ResponseStream:
    """One POST and its response: an async context manager that always closes the response.

    One timer watches over the whole call. It is looked at lazily: a chunk only moves a number.
    """

    def __init__(
        self,
        client: Client,
        path: str,
        body: bytes,
        parser: Parser,
        *,
        headers: Mapping[str, str],
        limits: TimeLimits,
        after: "asyncio.Future[None] | None" = None,
    ) -> None:
        """Prepare a call; nothing is sent yet.

        Args:
            client: Its transport, address and credentials are used.
            path: Below the client's address.
            body: The request as JSON.
            parser: Reads the response's bytes.
            headers: Sent besides the client's own.
            limits: How long to wait.
            after: Nothing of the body is sent before this is done, and never if it fails.
        """
        self._client = client
        self._path = path
        self._body = body
        self._headers = headers
        self._limits = limits
        self._after = after
        self._events = parser
        self._chunks: AsyncIterator[bytes] | None = None
        self._at_end = False
        self._waiting = False
        self._has_heard = False
        self._progressed: bool | None = None
        """Whether the latest bytes held events; None before any came."""
        self._handle: asyncio.TimerHandle | None = None
        self.stopped: StopReason | None = None
        """Why reading ended before the response did."""
        self.response: httpx2.Response | None = None

    async def __aenter__(self) -> Self:
        """Send the request and wait for the response's headers.

        Raises:
            ProviderUnavailable: No connection, no answer in time, or one that says try later.
            ProviderRejected: The provider refuses the request.
            ContextTooLong: The model does not take a context of this length.
            Exception: What `after` raises, as it is.
        """
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._patience = Patience(self._limits, self._loop.time())
        self._handle = self._loop.call_at(self._next_look(), self._check)
        try:
            await self._send()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the response. The connection is reused only if the response was read to its end."""
        await self._close()

    async def next_events(self) -> list[StreamEvent] | None:
        """Return the events of the next bytes; None at the end or once it was stopped.

        Raises:
            ProviderUnavailable: The connection was lost.
            Stalled: A time limit ran out.
        """
        chunks = self._chunks
        if self.stopped is not None or self._at_end or chunks is None:
            return None
        if self._has_heard:  # counted from here: handling what came is not the provider's time
            self._has_heard = False
            patience = self._patience
            patience.heard_at = now = self._loop.time()
            if self._progressed:
                patience.progress_at, patience.started = now, True
        try:
            self._waiting = True
            data = await anext(chunks, None)
        except asyncio.CancelledError:
            if not self._was_stopped():
                raise
            return self._stopped_events()
        except _FOREIGN as error:
            self._at_end = True
            raise lost(error) from None
        finally:
            self._waiting = False
        if data is None:
            self._at_end = True
            return self._events.close()
        events = self._events.feed(data)
        self._has_heard, self._progressed = True, bool(events)
        return events

    def enough(self, *, within_s: float) -> None:
        """Read on for at most `within_s`: what matters has come."""
        until = self._loop.time() + within_s
        self._patience.enough(until)
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._loop.call_at(until, self._check)

    def expect_more(self) -> None:
        """Read on as long as the response goes on: more has come than was expected."""
        self._patience.enough(None)

    @property
    def left_unread(self) -> bool:
        """Whether the response has words in fields that are not known."""
        return self._events.unread

    def abort(self) -> None:
        """Stop reading now; `next_events` returns None from here on. From any task."""
        if self.stopped is None:
            self.stopped = "interrupted"
            if self._waiting:
                self._task.cancel()

    # Time

    def _next_look(self) -> float:
        """Return when to look again: deadlines move both ways."""
        now = self._loop.time()
        return min(max(self._patience.ends()[0], now + 0.01), now + _LOOK_S)

    def _check(self) -> None:
        """Stop the call if it has waited for the provider too long."""
        if self.stopped is not None:
            return
        over_at, limit = self._patience.ends()
        if self._waiting and self._loop.time() >= over_at:
            self.stopped = limit
        else:  # moved on since, or busy with what came
            self._handle = self._loop.call_at(self._next_look(), self._check)
            return
        self._task.cancel()

    def _was_stopped(self) -> bool:
        """Tell whether a cancellation was ours and nobody else wants the task cancelled too."""
        if self.stopped is None:
            return False
        return self._task.uncancel() <= self._cancelling

    def _stopped_events(self) -> list[StreamEvent] | None:
        match self.stopped:
            case "silence" | "first_token" | "idle" | "total":
                raise stalled(self.stopped, kept_alive=self._progressed is False) from None
            case _:
                return None

    # HTTP

    async def _send(self) -> None:
        """Hand the request to the client's transport. Source: docs/adr/0013."""
        try:
            self._waiting = True
            request = self._request()
            transport = transport_of(self._client, request.url)
            response = self.response = await transport.handle_async_request(request)
            self._patience.heard_at = self._loop.time()
            response.headers.encoding = "iso-8859-1"  # takes any byte; likewise
            if not response.is_success:
                body = await _start_of(response)
                raise failure_of_response(response.status_code, response.headers, body)
        except asyncio.CancelledError:
            if not self._was_stopped():
                raise
            self._stopped_events()
            return
        except _FOREIGN as error:
            if self._after is not None:
                await self._after
            raise lost(error) from None
        finally:
            self._waiting = False
        self._chunks = _body_of(response)

    def _request(self) -> httpx2.Request:
        """Return the request as the client would send it: its address, key and headers."""
        client = self._client
        merged = {**client.auth_headers, **client.default_headers, **self._headers}
        headers = {name.lower(): value for name, value in merged.items()}
        headers["content-length"] = str(len(self._body))
        query = tuple((name, str(value)) for name, value in client.default_query.items())
        request = httpx2.Request(
            "POST",
            _url(client.base_url, self._path, query),
            headers={name: value for name, value in headers.items() if isinstance(value, str)},
            stream=_Body(self._body, self._after, self._patience),
            extensions={"timeout": {"connect": self._limits.connect_s}},
        )
        request.headers.encoding = "ascii"  # else each look decodes all of them to find out
        return request

    async def _close(self) -> None:
        self._events.forget()  # megabytes, and a failure's traceback holds this in a cycle
        if self._handle is not None:
            self._handle.cancel()
        if self.response is not None:
            with contextlib.suppress(*_FOREIGN):
                await self.response.aclose()


class _Body(httpx2.AsyncByteStream):
    """A request's body that is kept back until something else is done.

    Meanwhile the transport finds a connection; aiohttp sends the headers with the body.
    """

    def __init__(
        self, body: bytes, after: "asyncio.Future[None] | None", patience: Patience
    ) -> None:
        self._body = body
        self._after = after
        self._patience = patience  # not the call, which holds its response, which holds this

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._after is not None:
            await asyncio.shield(self._after)  # a broken connection does not undo it
        self._patience.heard_at = asyncio.get_running_loop().time()
        yield self._body


@functools.lru_cache(maxsize=64)
def _url(base_url: httpx2.URL, path_below: str, query: tuple[tuple[str, str], ...]) -> httpx2.URL:
    path, _, _ = base_url.raw_path.partition(b"?")
    url = base_url.copy_with(raw_path=path.rstrip(b"/") + path_below.encode())
    return url.copy_merge_params(query) if query else url


def _body_of(response: httpx2.Response) -> AsyncIterator[bytes]:
    """Return a response's body as it comes, decompressed piece by piece.

    Raises:
        UnusableReply: It is encoded in a way that was not asked for.
    """
    chunks = aiter(cast("httpx2.AsyncByteStream", response.stream))
    match response.headers.get("content-encoding", "identity").strip().lower():
        case "" | "identity":
            return chunks
        case "gzip" | "x-gzip" | "deflate":
            return _inflated(chunks)
        case _:
            raise UnusableReply(
                "the provider's answer is compressed in an unknown way", code="not_a_stream"
            )


async def _inflated(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Decompress gzip or deflate: a few bytes may stand for many, so each piece has a limit.

    Raises:
        httpx2.DecodingError: It is neither.
    """
    inflate = zlib.decompressobj(_ANY_WINDOW)
    begun = b""
    async for chunk in chunks:
        data = chunk
        while data:
            if inflate.eof:  # another member
                inflate = zlib.decompressobj(_ANY_WINDOW)
            try:
                piece = inflate.decompress(data, _INFLATED_MOST)
            except zlib.error:
                if begun:
                    raise httpx2.DecodingError("the body is no gzip or deflate") from None
                inflate = zlib.decompressobj(-zlib.MAX_WBITS)  # deflate without its wrapping
                begun = data
                continue
            begun = begun or data
            data = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
            yield piece
            if data:
                await asyncio.sleep(0)


async def _start_of(response: httpx2.Response) -> bytes:
    """Return a response's body, of a very long one the start."""
    parts: list[bytes] = []
    size = 0
    with contextlib.suppress(UnusableReply):  # then the status says it all
        async for part in _body_of(response):
            parts.append(part)
            size += len(part)
            if size >= _MOST_OF_AN_ERROR:
                break
    return b"".join(parts)
