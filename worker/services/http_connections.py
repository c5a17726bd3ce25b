"""The HTTP connections to a provider: aiohttp's, with limits on what is no part of a body.

aiohttp bounds headers, not what stands around them: informational responses, chunk extensions and
answers that nobody asked for are read as long as a provider sends them.
"""

import asyncio
import functools
from typing import Any, Final, cast

import aiohttp
import httpx2
from aiohttp.client_proto import ResponseHandler
from openai import DefaultAioHttpClient

from turnline.worker.errors import ReplyTooLarge, UnusableReply, WorkerError

INFORMATIONAL_MAX: Final = 100
"""Responses with a status from 100 to 199 before the one that counts."""
FRAMING_MAX_BYTES: Final = 64 * 1024 * 1024
"""What may come for one request and is no part of a body, bytes."""
_SWITCHING_PROTOCOLS: Final = 101
"""The one status below 200 that is final."""


class HttpClient(DefaultAioHttpClient):
    """The SDK's client on aiohttp, whose connections end where a provider does not."""

    def _init_transport(self, *args: Any, **kwargs: Any) -> httpx2.AsyncBaseTransport:
        return _bounded(super()._init_transport(*args, **kwargs))

    def _init_proxy_transport(self, *args: Any, **kwargs: Any) -> httpx2.AsyncBaseTransport:
        return _bounded(super()._init_proxy_transport(*args, **kwargs))


def _bounded(transport: Any) -> httpx2.AsyncBaseTransport:
    """Let a transport make connections of this module; it makes its session when it needs it."""
    make_session = transport.get_client

    def session() -> aiohttp.ClientSession:
        transport.client = None  # else it would ask here again
        made: aiohttp.ClientSession = make_session()
        loop = asyncio.get_running_loop()
        setattr(made.connector, "_factory", functools.partial(_Connection, loop=loop))  # noqa: B010
        return made

    transport.client = session
    return cast("httpx2.AsyncBaseTransport", transport)


class _Connection(ResponseHandler):
    """One connection: what aiohttp reads, within limits."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._informational = 0
        self._body: Any = None
        """That of the final response to the latest request; None before that has come."""
        self._received = 0
        self._most = FRAMING_MAX_BYTES
        """Bytes of which some must be body."""
        self._has_ended = False

    def set_response_params(self, **params: Any) -> None:
        """Begin to read what answers a request."""
        self._informational = self._received = 0
        self._body = None
        self._most = FRAMING_MAX_BYTES
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self._received += len(data)
        if self._received > self._most and not self._has_room():
            return
        super().data_received(data)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Take the head of a response, and its body to be."""
        message, body = data
        if self._has_ended:
            return
        if self._body is not None:  # to nobody's request; what was asked for is all there
            self._end(UnusableReply("the provider answers where nothing was asked"))
        elif message.code >= 200 or message.code == _SWITCHING_PROTOCOLS:
            self._body = body
            super().feed_data(data, size)
        elif self._informational < INFORMATIONAL_MAX:
            self._informational += 1
            super().feed_data(data, size)
        else:
            self._end(
                UnusableReply(
                    "the provider sends informational responses (HTTP 1xx) and no other",
                    code="no_final_response",
                )
            )

    def _has_room(self) -> bool:
        """Compare what came with what of it was body, and look again once more of it came."""
        body = 0 if self._body is None else self._body.total_bytes
        self._most = body + FRAMING_MAX_BYTES
        if self._received <= self._most:
            return True
        self._end(ReplyTooLarge("the response is too large (framing)"))
        return False

    def _end(self, error: WorkerError) -> None:
        """Close the connection, and tell whoever reads from it."""
        self._has_ended = True
        if self._body is not None and not self._body.is_eof():
            self._body.set_exception(error)
        self.set_exception(error)
        if self.transport is not None:
            self.transport.abort()  # an orderly end would read on


def is_closed(response: Any) -> bool:
    """Tell whether a response's connection is gone although nobody said so to the reader.

    aiohttp 3.14 closes a connection whose chunked framing is broken without waking who reads
    from it. Where the SDK is built differently this sees nothing, and the time limits apply.
    """
    stream = getattr(response, "stream", None)
    stream = getattr(stream, "_stream", stream)
    connection = getattr(getattr(stream, "_aiohttp_response", None), "connection", None)
    return connection is not None and bool(connection.closed)
