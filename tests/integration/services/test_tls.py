"""Connections with TLS: whom the environment says to trust, also behind a proxy."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.services.wire import Turn, delta, finish, sse
from turnline.worker.errors import ProviderUnavailable
from turnline.worker.services.provider_client import ProviderClient

CERTIFICATE = Path(__file__).with_name("localhost.pem")
BODY = sse(delta(content="hello"), finish(), b"[DONE]")
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(
    BODY
)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(asyncio.IncompleteReadError, ssl.SSLError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER + BODY)
        await writer.drain()
    writer.close()


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """The port of a provider with a certificate of its own making, for `localhost`."""
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(CERTIFICATE)
    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls) as server:
        yield server.sockets[0].getsockname()[1]


async def said(base_url: str) -> str:
    client = ProviderClient("xai-test", base_url)
    turn = Turn(client)
    try:
        await turn.run()
    finally:
        await client.close()
    return turn.text


async def test_only_who_has_a_trusted_certificate_gets_the_key(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `SSL_CERT_FILE`, and by its name: the address has to be the certificate's."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    assert await said(f"https://localhost:{port}/v1") == "hello"
    with pytest.raises(ProviderUnavailable):
        await said(f"https://127.0.0.1:{port}/v1")

    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(ProviderUnavailable):
        await said(f"https://localhost:{port}/v1")


async def test_a_proxy_sees_its_own_credentials_and_no_key(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for a tunnel, and the rest is between the provider and us."""
    seen: list[bytes] = []

    async def pass_on(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                seen.append(data)
                to.write(data)
        to.close()

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        there = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(pass_on(reader, there[1]), pass_on(there[0], writer))

    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    async with await asyncio.start_server(tunnel, "127.0.0.1", 0) as proxy:
        proxy_port = proxy.sockets[0].getsockname()[1]
        monkeypatch.setenv("HTTPS_PROXY", f"http://u:p@127.0.0.1:{proxy_port}")
        assert await said(f"https://localhost:{port}/v1") == "hello"

    assert seen[0].startswith(b"CONNECT localhost:%d HTTP/1.1\r\n" % port)
    assert b"Proxy-Authorization: Basic dTpw\r\n" in seen[0]
    assert b"xai-test" not in b"".join(seen)
