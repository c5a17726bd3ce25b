"""Posts protobuf messages to a collector over HTTP, each within a bounded time and memory.

Source: https://opentelemetry.io/docs/specs/otel/protocol/exporter/
"""

import asyncio
import contextlib
import gzip
import logging
import random
import re
import socket
import ssl
import threading
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import unquote

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from turnline.contracts.addresses import host_and_port
from turnline.contracts.errors import InvalidAddress
from turnline.worker.files import UnusableFile, read_text

log = logging.getLogger("turnline.telemetry")

_TIMEOUT_S: Final = 10.0
_MOST_TIMEOUT_S: Final = 3_600.0
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}", re.ASCII)
_VALUE: Final = re.compile(r"[ -~]{0,8000}", re.ASCII)
_GZIP_LEVEL: Final = 1
"""A third of the time of the highest level, for a tenth more bytes."""
_RETRYABLE: Final = frozenset({429, 502, 503, 504})
_FIRST_WAIT_S: Final = 0.5
_GOODBYE_S: Final = 0.5
_ANSWER_BYTES: Final = 65_536
"""Most that is read of an answer."""

Signal = Literal["traces", "metrics"]


class BadVariable(Exception):
    """An `OTEL_*` variable with which nothing could ever be sent; repeats nothing of its value."""


class Target(NamedTuple):
    """A collector, as the standard variables describe it."""

    url: str
    headers: Mapping[str, str]
    timeout_s: float = _TIMEOUT_S
    """Of one message, its repetitions included."""
    compression: str = "gzip"
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""


def target_of(environ: Mapping[str, str], signal: Signal) -> Target:
    """Read the `OTEL_EXPORTER_OTLP_*` variables; those of the signal win.

    Time-outs are in seconds, as in OpenTelemetry's other Python programs. A number or a name that
    is none is warned of and ignored, as OpenTelemetry has it.

    Raises:
        BadVariable: No address, header or certificate, so that nothing would ever arrive.
    """
    base = "OTEL_EXPORTER_OTLP_"

    def variable(name: str) -> str:
        own = f"{base}{signal.upper()}_{name}"
        return own if environ.get(own, "").strip() else base + name

    def given(name: str) -> str:
        return environ.get(variable(name), "").strip()

    if given("PROTOCOL") not in {"", "http/protobuf"}:
        log.warning("telemetry.protocol_ignored", extra={"uses": "http/protobuf"})
    url = environ.get(f"{base}{signal.upper()}_ENDPOINT", "").strip()
    _check_url(variable("ENDPOINT"), url or given("ENDPOINT"))
    headers = {"content-type": "application/x-protobuf"}
    for pair in given("HEADERS").split(","):
        name, found, value = pair.partition("=")
        if found:
            headers[unquote(name.strip()).lower()] = unquote(value.strip())
    if not all(_HEADER.fullmatch(name) and _VALUE.fullmatch(it) for name, it in headers.items()):
        raise BadVariable(
            f"{variable('HEADERS')}: written NAME=VALUE,NAME=VALUE; what is not visible ASCII, "
            "or a comma, as %20 and the like"
        )
    for name in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"):
        _check_file(variable(name), given(name))
    timeout_s = _seconds(given("TIMEOUT"))
    return Target(
        url=url or f"{given('ENDPOINT').rstrip('/')}/v1/{signal}",
        headers=headers,
        timeout_s=timeout_s,
        compression=given("COMPRESSION").lower() or "gzip",
        ca_file=given("CERTIFICATE"),
        certificate_file=given("CLIENT_CERTIFICATE"),
        key_file=given("CLIENT_KEY"),
    )


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text or _TIMEOUT_S)) <= _MOST_TIMEOUT_S:
            return seconds
    log.warning("telemetry.timeout_ignored", extra={"uses_s": _TIMEOUT_S})
    return _TIMEOUT_S


def _check_url(variable: str, url: str) -> None:
    """Check that an address of a collector is one; it may hold a password."""
    scheme, _, rest = url.partition("://")
    netloc = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if scheme.lower() not in {"http", "https"}:
        raise BadVariable(f"{variable}: it begins with http:// or https://")
    if not re.fullmatch(r"[!-~]{1,2048}", url, re.ASCII) or "\\" in url:
        raise BadVariable(f"{variable}: up to 2048 visible ASCII characters without spaces")
    try:
        host_and_port(netloc.rpartition("@")[2], 4318)
    except InvalidAddress as error:
        raise BadVariable(f"{variable}: {error}") from None


def _check_file(variable: str, path: str) -> None:
    if path:
        try:
            read_text(path)
        except UnusableFile as error:
            raise BadVariable(f"{variable}: {error}") from None


class Answer(NamedTuple):
    """What became of a message."""

    problem: str = ""
    """Why the collector did not take it: a status, or an error's kind; empty: it did."""
    body: bytes = b""
    """What it said about a message that it took."""


class Sender:
    """Posts one message after the other. To be used by one task."""

    def __init__(self, target: Target) -> None:
        """Prepare; nothing is opened before the first message."""
        self._target = target
        self._headers, self._compress = _compression(target)
        self._session: aiohttp.ClientSession | None = None
        self._problem = ""
        self._hurried = asyncio.Event()

    def hurry(self) -> None:
        """Try nothing again from here on: the process is about to end."""
        self._hurried.set()

    async def send(self, body: bytes) -> Answer:
        """Send a message; what may get better is tried again until the target's time is over."""
        self._problem = ""
        try:
            async with asyncio.timeout(self._target.timeout_s):
                return await self._send(self._compress(body))
        except Exception as error:  # noqa: BLE001  whatever a collector provokes, sending goes on
            return Answer(self._problem or type(error).__name__)

    async def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GOODBYE_S):
                    await self._session.close()

    async def _send(self, body: bytes) -> Answer:
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                status, answer = await self._post(body)
            except aiohttp.ClientConnectionError as error:
                self._problem = type(error).__name__
            else:
                if 200 <= status < 300:
                    return Answer(body=answer)
                self._problem = str(status)
                if status not in _RETRYABLE:
                    return Answer(self._problem)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s * random.uniform(0.8, 1.2)):
                    await self._hurried.wait()
                return Answer(self._problem)
            wait_s *= 2

    async def _post(self, body: bytes) -> tuple[int, bytes]:
        if self._session is None:
            self._session = self._open()
        async with self._session.post(
            self._target.url, data=body, headers=self._headers, allow_redirects=False
        ) as response:
            answer = b""
            while part := await response.content.readany():
                answer += part
                if len(answer) > _ANSWER_BYTES:
                    response.close()
                    break
            return response.status, answer

    def _open(self) -> aiohttp.ClientSession:
        target = self._target
        secure: ssl.SSLContext | bool = True
        if target.ca_file or target.certificate_file:
            secure = ssl.create_default_context(cafile=target.ca_file or None)
            if target.certificate_file:
                secure.load_cert_chain(target.certificate_file, target.key_file or None)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1, ssl=secure, resolver=_DaemonResolver()),
            auto_decompress=False,
            trust_env=True,
            timeout=aiohttp.ClientTimeout(total=target.timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
        )


def _compression(target: Target) -> tuple[Mapping[str, str], Callable[[bytes], bytes]]:
    match target.compression:
        case "gzip":
            return {**target.headers, "content-encoding": "gzip"}, _gzipped
        case "deflate":
            return {**target.headers, "content-encoding": "deflate"}, zlib.compress
        case "none":
            pass
        case _:
            log.warning("telemetry.compression_ignored", extra={"uses": "none"})
    return target.headers, bytes


def _gzipped(body: bytes) -> bytes:
    return gzip.compress(body, _GZIP_LEVEL)


class _DaemonResolver(AbstractResolver):
    """Looks names up in daemon threads: those of executors are waited for when a process ends."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return a host's addresses.

        Raises:
            OSError: It has none.
        """
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[Any]] = loop.create_future()

        def tell(addresses: list[Any], error: OSError | None) -> None:
            if not found.done():
                if error is None:
                    found.set_result(addresses)
                else:
                    found.set_exception(error)

        def look() -> None:
            addresses: list[Any] = []
            failure: OSError | None = None
            try:
                addresses = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
            except (OSError, UnicodeError):
                failure = OSError("it has no address")
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(tell, addresses, failure)

        threading.Thread(target=look, name="telemetry-resolver", daemon=True).start()
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=address[1],
                family=kind,
                proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, proto, _, address in await found
        ]

    async def close(self) -> None:
        """Nothing to close."""
