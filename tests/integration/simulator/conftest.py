"""A simulator per test, an SDK client for it, and a client that shows the bytes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import msgspec
import pytest
from openai import AsyncOpenAI, Timeout

from turnline.ops.simulator import Simulator

JSON = "application/json"


class Reply(msgspec.Struct, frozen=True):
    """A response as it came over the wire."""

    raw: bytes
    status: int
    headers: Mapping[str, str]
    body: bytes
    """With the framing taken away."""

    @property
    def events(self) -> list[bytes]:
        """Payloads of the `data:` lines."""
        lines = self.body.splitlines()
        return [line.removeprefix(b"data: ") for line in lines if line.startswith(b"data: ")]

    @property
    def json(self) -> dict[str, object]:
        """The body as an object."""
        return msgspec.json.decode(self.body, type=dict[str, object])


Post = Callable[..., Awaitable[Reply]]


@pytest.fixture
async def client(sim: Simulator) -> AsyncIterator[AsyncOpenAI]:
    """The SDK, without retries, impatient."""
    async with AsyncOpenAI(
        base_url=sim.base_url, api_key="xai-test", max_retries=0, timeout=Timeout(5, read=0.3)
    ) as sdk:
        yield sdk


@pytest.fixture
def send(sim: Simulator) -> Post:
    """Send any request on a connection of its own and read until it is closed."""

    async def run(method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
        reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
        lines = [f"{method} {path} HTTP/1.1", "host: sim", "connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        lines.append(f"content-length: {len(body)}")
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        raw = await reader.read(-1)
        writer.close()
        await writer.wait_closed()
        return parsed(raw)

    return run


@pytest.fixture
def post(send: Post) -> Post:
    """Send a chat request; arguments that are not given have plain values."""

    async def run(
        text: str = "Hello", *, sim: str = "", headers: dict[str, str] | None = None, **body: object
    ) -> Reply:
        body = {
            "model": "grok-4.3",
            "messages": [{"role": "user", "content": text}],
            "stream": True,
            "stream_options": {"include_usage": True},
            **body,
        }
        given = {"authorization": "Bearer xai-test", "content-type": JSON, "x-sim": sim}
        given = {**given, **(headers or {})}
        return await send("POST", "/v1/chat/completions", msgspec.json.encode(body), **given)

    return run


@pytest.fixture
def respond(send: Post) -> Post:
    """Send a request to `/v1/responses`; arguments that are not given have plain values."""

    async def run(
        given: str | list[object] = "Hello",
        *,
        sim: str = "",
        key: str = "xai-test",
        headers: dict[str, str] | None = None,
        **body: object,
    ) -> Reply:
        body = {"model": "grok-4.3", "input": given, "stream": True, "store": False, **body}
        about = {"authorization": f"Bearer {key}", "content-type": JSON, "x-sim": sim}
        about = {**about, **(headers or {})}
        return await send("POST", "/v1/responses", msgspec.json.encode(body), **about)

    return run


def parsed(raw: bytes) -> Reply:
    """Take a response apart."""
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {
        name.lower(): value.strip()
        for name, _, value in (line.partition(":") for line in lines[1:])
    }
    if headers.get("transfer-encoding") == "chunked":
        body = dechunked(body)
    return Reply(raw, int(lines[0].split(" ")[1]), headers, body)


def dechunked(body: bytes) -> bytes:
    """Join the chunks of a body."""
    joined = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        joined, body = joined + rest[:length], rest[length + 2 :]
        if length == 0:
            break
    return joined
