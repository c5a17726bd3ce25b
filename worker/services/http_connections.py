"""The HTTP connections to a provider: aiohttp's, with limits on what is no part of a body.

aiohttp bounds headers, not what stands around them: informational responses, chunk extensions and
answers that nobody asked for are read as long as a provider sends them.
"""

import asyncio
import base64
import functools
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from typing import Any, Final, cast

import aiohttp
import httpx2
from aiohttp.client_proto import ResponseHandler

from turnline.worker.errors import ReplyTooLarge, UnusableReply, WorkerError

INFORMATIONAL_MAX: Final = 100
"""Responses with a status from 100 to 199 before the one that counts."""
FRAMING_MAX_BYTES: Final = 64 * 1024 * 1024
"""What may come for one request and is no part of a body, bytes."""
_SWITCHING_PROTOCOLS: Final = 101
"""The one status below 200 that is final."""


KEEPALIVE_S: Final = 30.0
"""How long a connection waits for its next request."""
_PIECE_BYTES: Final = 16 * 1024
_MEANS: Final[Mapping[type[aiohttp.ClientError], type[httpx2.TransportError]]] = {
    aiohttp.SocketTimeoutError: httpx2.ReadTimeout,
    aiohttp.ClientConnectionError: httpx2.ConnectTimeout,
    aiohttp.ClientPayloadError: httpx2.ReadError,
    aiohttp.ClientHttpProxyError: httpx2.ProxyError,
    aiohttp.NonHttpUrlClientError: httpx2.UnsupportedProtocol,
    aiohttp.InvalidUrlClientError: httpx2.UnsupportedProtocol,
}
"""What aiohttp's errors are for who reads httpx's, as the SDK has it; the first that fits."""
_KNOWN: Final = (aiohttp.ClientError, OSError, WorkerError)
"""What readers of a body know."""


class HttpClient(httpx2.AsyncClient):
    """A client on aiohttp, whose connections end where a provider does not.

    It heeds proxies and certificates of the environment, as httpx does, and has as many connections
    as it is asked for: the number of turns is limited elsewhere.
    """

    def __init__(self) -> None:
        """Prepare; nothing is opened before the first request."""
        super().__init__(follow_redirects=True, timeout=httpx2.Timeout(600, connect=5))

    def _init_transport(self, *_: Any, **__: Any) -> httpx2.AsyncBaseTransport:
        return _Transport(self)

    def _init_proxy_transport(
        self, proxy: httpx2.Proxy, *_: Any, **__: Any
    ) -> httpx2.AsyncBaseTransport:
        return _Transport(self, proxy)

    @functools.cached_property
    def tls(self) -> ssl.SSLContext:
        """Whom to trust. To find out takes a tenth of a second, which plain HTTP need not wait."""
        return httpx2.create_ssl_context()


class _Transport(httpx2.AsyncBaseTransport):
    """Sends requests by one session of aiohttp, which is made when it is needed."""

    def __init__(self, client: HttpClient, proxy: httpx2.Proxy | None = None) -> None:
        self._client = client
        self._proxy = None if proxy is None else str(proxy.url)
        self._proxy_headers: dict[str, str] = {}
        if proxy is not None and proxy.raw_auth is not None:
            pair = base64.b64encode(b":".join(proxy.raw_auth)).decode()
            self._proxy_headers["Proxy-Authorization"] = f"Basic {pair}"
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        session = self._session = self._session or self._open()
        timeout = request.extensions.get("timeout", {})
        if request.url.scheme == "http":  # else they go with CONNECT
            request.headers.update(self._proxy_headers)
        with _HTTPX_ERRORS:
            response = await session.request(
                request.method,
                str(request.url),
                headers=request.headers,
                data=_body_of(request),
                allow_redirects=False,
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(
                    connect=timeout.get("pool"),
                    sock_connect=timeout.get("connect"),
                    sock_read=timeout.get("read"),
                ),
                ssl=self._client.tls if self._needs_tls(request.url) else True,
                server_hostname=request.extensions.get("sni_hostname"),
                proxy=self._proxy,
                proxy_headers=self._proxy_headers,
            )
        return httpx2.Response(
            response.status, headers=response.raw_headers, stream=_Pieces(response), request=request
        )

    def _needs_tls(self, url: httpx2.URL) -> bool:
        return url.scheme == "https" or (self._proxy or "").startswith("https:")

    def _open(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S)
        factory = functools.partial(_Connection, loop=asyncio.get_running_loop())
        setattr(connector, "_factory", factory)  # noqa: B010
        return aiohttp.ClientSession(connector=connector)

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()


def _body_of(request: httpx2.Request) -> Any:
    """Return what aiohttp sends as the body."""
    try:
        return request.content or None
    except httpx2.RequestNotRead:
        request.headers.pop("transfer-encoding", None)  # aiohttp's own business
        return aiohttp.AsyncIterablePayload(cast("AsyncIterable[bytes]", request.stream))


class _Pieces(httpx2.AsyncByteStream):
    """The body of a response, as it comes."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._aiohttp_response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _HTTPX_ERRORS:
            async for piece in self._aiohttp_response.content.iter_chunked(_PIECE_BYTES):
                yield piece

    async def aclose(self) -> None:
        response = self._aiohttp_response
        response.release()
        with _HTTPX_ERRORS:
            await response.wait_for_close()


class _HttpxErrors:
    """Gives aiohttp's errors the names of httpx's; a generator would take three times as long."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        if isinstance(error, aiohttp.ClientError):
            for known, meaning in _MEANS.items():
                if isinstance(error, known):
                    raise meaning(str(error)) from error


_HTTPX_ERRORS: Final = _HttpxErrors()


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

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        """Take note that the connection is of no use; whoever reads the body is told as well.

        Of broken framing aiohttp 3.14 tells nobody. Who waits would wait for ever, and who comes
        back to read on gets a bare `RuntimeError`.
        """
        super().set_exception(exc, *filter(None, [exc_cause]))
        body = self._body
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(exc if isinstance(exc, _KNOWN) else aiohttp.ClientPayloadError())

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
        self.set_exception(error)
        if self.transport is not None:
            self.transport.abort()  # an orderly end would read on
