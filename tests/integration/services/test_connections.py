"""What a provider sends around a body is bounded, where the bytes are read."""

import asyncio
import contextlib
import itertools
from collections.abc import Iterable

import pytest

from tests.integration.services.wire import (
    END_OF_BODY,
    STREAM_HEAD,
    Connection,
    Script,
    Turn,
    WireServer,
    chunk,
    delta,
    finish,
    sse,
)
from turnline.worker.errors import (
    ProviderUnavailable,
    ReplyTooLarge,
    Truncated,
    UnusableReply,
    WorkerError,
)
from turnline.worker.pipeline.frames import Frame, LLMTextFrame
from turnline.worker.pipeline.processor import DOWNSTREAM, FrameDirection
from turnline.worker.services.grok.llm import GrokLLMService
from turnline.worker.services.http_connections import INFORMATIONAL_MAX

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
HELLO = STREAM_HEAD + chunk(sse(delta(content="hello"), finish(), b"[DONE]")) + END_OF_BODY


class BySdk(GrokLLMService):
    """Has its requests made by the SDK."""

    async def get_chat_completions(self, context, messages):
        """As it is."""
        return await super().get_chat_completions(context, messages)


def for_ever(piece: bytes, *before: bytes) -> Script:
    """Send something, and then the same again and again."""

    async def run(connection: Connection) -> None:
        pieces: Iterable[bytes] = itertools.repeat(piece * (65_536 // len(piece)))
        for it in itertools.chain(before, pieces):
            await connection.send(it)

    return run


ENDLESS = {
    "100": (for_ever(CONTINUE), UnusableReply, "no_final_response"),
    "103": (for_ever(HINTS), UnusableReply, "no_final_response"),
    "empty lines": (for_ever(b"\r\n"), ReplyTooLarge, "reply_too_large"),
    "an extension": (for_ever(b"x", STREAM_HEAD, b"1;x="), ReplyTooLarge, "reply_too_large"),
    "extensions": (
        for_ever(b"1;x=%b\r\n\n\r\n" % (b"y" * 4_000), STREAM_HEAD),
        ReplyTooLarge,
        "reply_too_large",
    ),
    "a chunk's length": (for_ever(b"0", STREAM_HEAD), ReplyTooLarge, "reply_too_large"),
}


@pytest.mark.parametrize("service", [GrokLLMService, BySdk])
@pytest.mark.parametrize("what", ENDLESS)
@pytest.mark.timeout(60)
async def test_what_stands_around_a_body_has_an_end(
    what: str, service: type[GrokLLMService]
) -> None:
    """The call ends by name long before any time limit, whoever makes the request."""
    script, error, code = ENDLESS[what]
    async with WireServer(script) as server:
        with pytest.raises(WorkerError) as raised:
            await Turn(server.client, service_class=service).run()

    assert (type(raised.value), raised.value.code) == (error, code)


@pytest.mark.parametrize("answer", [CONTINUE, HINTS])
async def test_some_informational_responses_do_no_harm(answer: bytes) -> None:
    """As many as are allowed are read over, in each request on a connection."""

    async def script(connection: Connection) -> None:
        await connection.send(answer * INFORMATIONAL_MAX + HELLO)

    async with WireServer(script) as server:
        for _ in range(3):
            turn = Turn(server.client)
            await turn.run()
            assert turn.text == "hello"

    assert server.connections == 1


@pytest.mark.parametrize("more", [CONTINUE, HELLO, b"\r\n" * 40_000_000])
@pytest.mark.timeout(60)
async def test_a_connection_with_answers_to_nobody_is_closed(more: bytes) -> None:
    """What was asked for stands, and nothing that came behind it is taken for the next answer."""
    closed = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.send(HELLO)
        await asyncio.sleep(0.05)  # the reply is read, the connection waits for the next one
        with contextlib.suppress(OSError):
            await connection.send(more)
        await connection.client_left()
        closed.set()

    async with WireServer(script) as server:
        turn = Turn(server.client)
        await turn.run()
        await asyncio.wait_for(closed.wait(), 30)

    assert turn.text == "hello"


BROKEN = {
    "a length that is none": b"zz\r\n",
    "a length with a sign": b"-1\r\n",
    "a chunk that is longer than it says": b"1\r\nxyz\r\n",
    "a bare end of a line": b"\n\n",
    "nothing more": b"",
    "half a length": b"1f",
    "half a chunk": b"1f\r\nda",
}
"""What may come where the next chunk is due, before the connection is closed."""


@pytest.mark.parametrize("service", [GrokLLMService, BySdk])
@pytest.mark.parametrize("reads", ["waits", "is busy"])
@pytest.mark.parametrize("ends", ["fin", "rst"])
@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.timeout(20)
async def test_a_connection_that_ends_is_the_providers_fault(
    what: str, ends: str, reads: str, service: type[GrokLLMService]
) -> None:
    """Whenever the reader learns of it: while it waits, or when it comes back to read on."""
    begun, gone = asyncio.Event(), asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.send(STREAM_HEAD + chunk(sse(delta(content="hello"))))
        await begun.wait()
        await connection.send(BROKEN[what])
        await _turns()  # a reset discards what nobody has read
        getattr(connection, ends)()
        await connection.client_left()
        await _turns()
        gone.set()

    class Reader(service):  # type: ignore[valid-type, misc]
        """Does something else between two pieces, if it is to be busy."""

        async def push_frame(self, frame: Frame, direction: FrameDirection = DOWNSTREAM) -> None:
            await super().push_frame(frame, direction)
            if isinstance(frame, LLMTextFrame):
                begun.set()
                if reads == "is busy":
                    await gone.wait()

    async with WireServer(script) as server:
        turn = Turn(server.client, service_class=Reader)
        with pytest.raises((ProviderUnavailable, Truncated)):
            await turn.run()

    assert turn.text == "hello"


async def _turns() -> None:
    """Let this loop's other tasks and connections go on."""
    for _ in range(20):
        await asyncio.sleep(0)
