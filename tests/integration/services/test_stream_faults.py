"""What goes wrong between us and a provider, over real bytes: each fault has its error."""

import asyncio
import gzip
import time

import pytest

from tests.integration.services.wire import (
    CLOSE_HEAD,
    END_OF_BODY,
    PATIENT,
    QUICK,
    STREAM_HEAD,
    Connection,
    Script,
    Turn,
    WireServer,
    chunk,
    delta,
    failed,
    finish,
    frame,
    ran,
    sse,
    streaming,
    turn,
    usage,
)
from tests.support.wait import wait_until
from turnline.worker.errors import (
    ProviderRejected,
    ProviderUnavailable,
    RateLimited,
    Stalled,
    Truncated,
    UnusableReply,
    WorkerError,
)
from turnline.worker.pipeline.frames import Frame, LLMTextFrame
from turnline.worker.pipeline.processor import FrameDirection
from turnline.worker.services.transport import TimeLimits

PAR = sse(delta(content="par"))
WHOLE = sse(delta(content="par"), finish(), usage(5, 1), b"[DONE]")
KEEPALIVE = chunk(b": keepalive\n\n")


def script(*pieces: bytes, then: str = "keep") -> Script:
    """Write pieces, then keep the connection, close it, reset it, or say nothing more."""

    async def run(connection: Connection) -> None:
        await connection.send(*pieces)
        match then:
            case "fin":
                connection.fin()
            case "rst":
                await asyncio.sleep(0.02)  # let the bytes arrive: a reset discards them
                connection.rst()
            case "stall":
                await connection.client_left()
            case _:
                pass

    return run


def body(status: int, content: bytes, content_type: str = "application/json") -> Script:
    """Answer with a response that is no stream."""

    async def run(connection: Connection) -> None:
        await connection.answer(status, content, content_type)

    return run


async def keepalives(connection: Connection) -> None:
    """Send comments for ever."""
    await connection.send(STREAM_HEAD)
    while True:
        await connection.send(KEEPALIVE)
        await asyncio.sleep(0.02)


async def refusing_without_end(connection: Connection) -> None:
    """Begin a response that says no, and never come to its end."""
    await connection.send(b"HTTP/1.1 500 X\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        await connection.send(chunk(b"no" * 10_000))


async def redirecting(connection: Connection) -> None:
    """Send the client elsewhere."""
    await connection.answer(307, b"", location="/v1/elsewhere")


ERROR_BODY = b'{"code":"The service is currently unavailable","error":"Timed out waiting"}'
CAPACITY = b'{"type":"error","error":{"message":"The model is currently at capacity due to x"}}'
SAFETY = frame(code="denied", error="Content violates usage guidelines. Failed check: X")

# name: (script, error, its code, text kept)
FAULTS: dict[tuple[type[WorkerError], str, str], dict[str, Script]] = {
    (ProviderUnavailable, "stream_error", ""): {
        "0.1 200 with a JSON error": body(200, ERROR_BODY),
        "0.1 the same without its content type": body(200, ERROR_BODY, "text/event-stream"),
        "capacity frame": streaming(CAPACITY),
    },
    (UnusableReply, "not_a_stream", ""): {
        "200 with HTML": body(200, b"<html>502</html>", "text/html"),
    },
    (Truncated, "truncated", ""): {
        "200 with text": body(200, b"oops", "text/plain"),
        "200 with nothing": body(200, b"", "text/event-stream"),
        "[DONE] only": streaming(),
    },
    (Truncated, "truncated", "par"): {
        "0.2 clean end of a close-delimited body": script(CLOSE_HEAD, PAR, then="fin"),
        "clean end of a chunked body": script(STREAM_HEAD, chunk(PAR), END_OF_BODY),
    },
    (ProviderUnavailable, "connection", "par"): {
        "FIN in a chunked body": script(STREAM_HEAD, chunk(PAR), then="fin"),
        "FIN in the middle of an event": script(
            STREAM_HEAD, chunk(PAR + b'data: {"cho'), then="fin"
        ),
        "short content-length": script(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9999\r\n\r\n",
            PAR,
            then="fin",
        ),
        "bad chunk size": script(STREAM_HEAD, chunk(PAR), b"zz\r\n", then="stall"),
        "RST": script(STREAM_HEAD, chunk(PAR), then="rst"),
    },
    (ProviderUnavailable, "connection", ""): {
        "close before headers": script(then="fin"),
        "RST before headers": script(then="rst"),
        "garbage before headers": script(b"\x16\x03\x01 garbage\r\n\r\n", then="fin"),
        "bad gzip": script(
            STREAM_HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n"),
            chunk(b"this is no gzip at all"),
            END_OF_BODY,
        ),
    },
    (Stalled, "first_token_timeout", ""): {
        "stall before headers": script(then="stall"),
        "stall before the first chunk": script(STREAM_HEAD, then="stall"),
        "0.6 keep-alive comments for ever": keepalives,
    },
    (Stalled, "idle_timeout", "par"): {
        "28 stall after text": script(STREAM_HEAD, chunk(PAR), then="stall"),
    },
    (UnusableReply, "malformed_stream", "par"): {
        "truncated JSON": script(STREAM_HEAD, chunk(PAR + sse(b'{"choices":[')), then="stall"),
        "invalid UTF-8": script(
            STREAM_HEAD, chunk(PAR + sse(b'{"choices":[{"delta":{"content":"\xff"}}]}'))
        ),
    },
    (UnusableReply, "reply_error", "par"): {
        "flat error frame": streaming(delta(content="par"), frame(code="c", error="text")),
        "nested error frame": streaming(
            delta(content="par"), frame(error={"message": "m", "code": "c"})
        ),
    },
    (UnusableReply, "reply_error", ""): {
        "typed error frame without an error key": streaming(frame(type="error", message="m")),
        "error event without an error key": script(
            STREAM_HEAD, chunk(b"event: error\n" + sse(frame(message="m"))), END_OF_BODY
        ),
    },
    (ProviderRejected, "safety", "par"): {
        "safety frame in mid-answer": streaming(delta(content="par"), SAFETY),
    },
    (ProviderRejected, "credits", ""): {
        "402": body(402, b'{"error":"no money"}'),
    },
    (ProviderRejected, "unsupported_parameter", ""): {
        "410": body(410, b'{"error":"Live search is deprecated."}'),
    },
    (ProviderRejected, "bad_request", ""): {
        "415 with an empty body": body(415, b"", ""),
        "422 in plain text": body(422, b"Failed to deserialize", "text/plain"),
    },
    (ProviderRejected, "redirected", ""): {
        "307": redirecting,
    },
    (ProviderUnavailable, "server_error", ""): {
        "524 in HTML": body(524, b"<html>", "text/html"),
        "500 without end": refusing_without_end,
        "529": body(529, b"{}"),
        "503": body(503, ERROR_BODY),
    },
    (RateLimited, "rate_limited", ""): {
        "429": body(429, b"{}"),
    },
}


@pytest.mark.parametrize(
    ("how", "name"), [(how, name) for how, faults in FAULTS.items() for name in faults]
)
async def test_faults(how: tuple[type[WorkerError], str, str], name: str) -> None:
    """One request, the right error, the text so far kept, and the end pushed before the error."""
    error, code, text = how
    fault = FAULTS[how][name]
    limits = QUICK if error is Stalled else PATIENT
    async with turn(fault, limits=limits) as (run, server):
        with pytest.raises(error) as caught:
            await run.run()

        assert type(caught.value) is error
        assert caught.value.code == code
        assert caught.value.__context__ is None or caught.value.__suppress_context__
        assert len(server.requests) == 1
        assert run.names[-1] == "LLMFullResponseEndFrame"
        assert run.said == ([{"role": "assistant", "content": text}] if text else [])
        (call,) = run.service.calls
        assert (call.outcome, call.error) == ("failed", code)
        assert call.finished_at is not None
        assert "xai-test" not in str(caught.value)


HARMLESS: dict[str, Script] = {
    "plain": script(STREAM_HEAD, chunk(WHOLE), END_OF_BODY),
    "keep-alive comments": script(
        STREAM_HEAD, KEEPALIVE, chunk(PAR), KEEPALIVE, chunk(WHOLE[len(PAR) :]), END_OF_BODY
    ),
    "bom": script(STREAM_HEAD, chunk(b"\xef\xbb\xbf" + WHOLE), END_OF_BODY),
    "crlf": script(STREAM_HEAD, chunk(WHOLE.replace(b"\n", b"\r\n")), END_OF_BODY),
    "garbage line": script(STREAM_HEAD, chunk(b"garbage\n\n" + WHOLE), END_OF_BODY),
    "byte by byte": script(
        STREAM_HEAD, *(chunk(WHOLE[i : i + 1]) for i in range(len(WHOLE))), END_OF_BODY
    ),
    "last event without a blank line": script(
        STREAM_HEAD,
        chunk(sse(delta(content="par"), finish()) + b"data: " + usage(5, 1)),
        END_OF_BODY,
    ),
    "no [DONE]": script(
        STREAM_HEAD, chunk(sse(delta(content="par"), finish(), usage(5, 1))), END_OF_BODY
    ),
    "usage on every chunk": streaming(
        frame(
            choices=[{"delta": {"content": "par"}}],
            usage={"prompt_tokens": 5, "completion_tokens": 1},
        ),
        frame(
            choices=[{"delta": {}, "finish_reason": "stop"}],
            usage={"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
        ),
    ),
    "usage before finish": streaming(delta(content="par"), usage(5, 1), finish()),
    "two usages": streaming(delta(content="par"), usage(9, 9), finish(), usage(5, 1)),
    "data after [DONE]": script(
        STREAM_HEAD, chunk(WHOLE + sse(delta(content="lost"))), END_OF_BODY
    ),
    "empty finish reason": streaming(delta(content="par"), finish(""), usage(5, 1)),
    "null, number and list": streaming(
        b"null", b"17", b"[]", delta(content="par"), finish(), usage(5, 1)
    ),
    "unknown and null fields": streaming(
        frame(choices=None),
        frame(choices=[{"delta": None}]),
        delta(content="par", x=1),
        finish(),
        usage(5, 1),
    ),
    "gzip": script(
        STREAM_HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n"),
        chunk(gzip.compress(WHOLE)),
        END_OF_BODY,
    ),
    "wrong content type": script(
        STREAM_HEAD.replace(b"text/event-stream", b"text/plain"), chunk(WHOLE), END_OF_BODY
    ),
    "slow close after [DONE]": script(STREAM_HEAD, chunk(WHOLE), then="stall"),
    "lost after the finish reason": script(STREAM_HEAD, chunk(WHOLE[:-14]), then="rst"),
    "error after the finish reason": streaming(
        delta(content="par"), usage(5, 1), finish(), frame(error="late")
    ),
}


@pytest.mark.parametrize("name", HARMLESS)
async def test_harmless_oddities(name: str) -> None:
    """The whole text and the last usage, without an error."""
    run, server = await ran(HARMLESS[name], limits=PATIENT)

    assert run.said == [{"role": "assistant", "content": "par"}]
    (call,) = run.service.calls
    assert call.outcome == "completed"
    assert call.usage is not None
    assert (call.usage.prompt_tokens, call.usage.completion_tokens) == (5, 1)
    assert len(server.requests) == 1


async def test_eight_megabytes_in_one_chunk() -> None:
    """A long chunk arrives whole."""
    text = "x" * (8 << 20)
    run, _ = await ran(streaming(delta(content=text), finish()))

    assert run.text == text


async def test_utf8_split_at_every_byte() -> None:
    """Characters cut between reads come out whole."""
    data = sse(delta(content="Olá 👋 ü"), finish(), b"[DONE]")
    pieces = [chunk(data[i : i + 1]) for i in range(len(data))]
    run, _ = await ran(script(STREAM_HEAD, *pieces, END_OF_BODY))

    assert run.text == "Olá 👋 ü"


async def test_a_stall_is_one_request_and_keeps_the_partial_text() -> None:
    """A stall after "par": one request, the text kept, the call marked, nothing appended."""
    second = streaming(delta(content="second"), finish())
    stall = script(STREAM_HEAD, chunk(PAR), then="stall")
    async with turn(stall, second, limits=QUICK) as (run, server):
        with pytest.raises(Stalled):
            await run.run()

        assert (run.text, len(server.requests)) == ("par", 1)
        assert run.service.calls[0].usage_state == "estimated"
        await server.left.wait()


async def test_connection_refused() -> None:
    """No server: one error that may be retried."""
    async with WireServer(streaming()) as server:
        server._server.close()
        await server._server.wait_closed()
        with pytest.raises(ProviderUnavailable) as caught:
            await Turn(server.client).run()

    assert caught.value.code == "connection"


async def test_meaningful_chunks_extend_the_wait() -> None:
    """A slow answer whose chunks keep coming outlives the idle limit, and ends at the total."""

    async def slow(connection: Connection) -> None:
        await connection.send(STREAM_HEAD)
        for _ in range(100):
            await connection.send(chunk(sse(delta(content="x"))))
            await asyncio.sleep(0.03)

    limits = TimeLimits(first_token_s=0.2, idle_s=0.2, total_s=0.6)
    run, _, error = await failed(Stalled, slow, limits=limits)

    assert error.code == "total_timeout"
    assert len(run.text) > 8


async def test_a_missing_usage_report_is_not_waited_for_long() -> None:
    """Once the finish reason came, only a short tail is waited for; the answer is whole."""
    part = chunk(sse(delta(content="par"), finish()))
    limits = TimeLimits(first_token_s=30, idle_s=30, tail_s=0.05)
    async with turn(script(STREAM_HEAD, part, then="stall"), limits=limits) as (run, _):
        began = time.monotonic()
        await run.run()

        assert time.monotonic() - began < 5
        assert run.service.calls[0].outcome == "completed"
        assert run.service.calls[0].usage_state == "estimated"


async def test_a_busy_reader_is_not_a_stalled_provider() -> None:
    """Time spent on handling a chunk does not count against the provider."""
    go_on = asyncio.Event()

    async def waits(connection: Connection) -> None:
        await connection.send(STREAM_HEAD + chunk(PAR))
        await go_on.wait()
        await connection.send(chunk(WHOLE[len(PAR) :]) + END_OF_BODY)

    async with turn(waits, limits=QUICK) as (run, _):
        original = run.assistant.process_frame

        async def slow(frame: Frame, direction: FrameDirection) -> None:
            await original(frame, direction)
            if isinstance(frame, LLMTextFrame):
                await asyncio.sleep(2 * QUICK.idle_s)
                asyncio.get_running_loop().call_later(0.1, go_on.set)

        run.assistant.process_frame = slow  # type: ignore[method-assign]
        await run.run()

        assert run.text == "par"


async def test_cancelling_closes_the_connection_at_once() -> None:
    """The server sees the client leave within 50 ms; the partial text is there to keep."""
    got_text = asyncio.Event()
    async with turn(script(STREAM_HEAD, chunk(PAR), then="stall")) as (run, server):
        run.on_text = lambda _: got_text.set()
        task = asyncio.create_task(run.run())
        await got_text.wait()

        loop = asyncio.get_running_loop()
        cancelled_at = loop.time()
        task.cancel()
        await asyncio.wait([task])
        await server.left.wait()

        assert task.cancelled()
        assert server.left_at[0] - cancelled_at < 0.05
        assert run.assistant.pending_text == "par"
        await run.interrupt()
        assert run.said == [{"role": "assistant", "content": "par"}]


@pytest.mark.parametrize("head", [b"", STREAM_HEAD], ids=["before headers", "before text"])
async def test_cancelling_early_closes_the_connection(head: bytes) -> None:
    """A turn cancelled while it waits leaves nothing open."""
    async with turn(script(head, then="stall")) as (run, server):
        task = asyncio.create_task(run.run())
        await wait_until(lambda: server.requests, "the request to arrive")
        task.cancel()
        await asyncio.wait([task])
        await server.left.wait()

        assert run.service.calls[0].outcome == "cancelled"
        assert run.service.calls[0].usage_state != "reported"
        assert run.service.calls[0].is_unpriced


async def test_interrupting_stops_the_stream_and_keeps_the_partial() -> None:
    """An interruption from another task ends the turn without an error, the partial kept."""
    got_text = asyncio.Event()
    async with turn(script(STREAM_HEAD, chunk(PAR), then="stall")) as (run, server):
        run.on_text = lambda _: got_text.set()
        task = asyncio.create_task(run.run())
        await got_text.wait()

        await run.interrupt()
        assert run.said == [{"role": "assistant", "content": "par"}]
        await task
        await server.left.wait()

        assert run.names[-1] == "StartInterruptionFrame"
        assert run.service.calls[0].outcome == "interrupted"
        assert task.cancelling() == 0


async def test_interrupting_from_within_drops_the_rest_of_the_read() -> None:
    """An interruption by whoever handles the text stops what was already received too."""
    async with turn(streaming(*(delta(content=c) for c in "abc"), finish())) as (run, _):
        original = run.assistant.process_frame

        async def interrupting(frame: Frame, direction: FrameDirection) -> None:
            await original(frame, direction)
            if run.text == "a" and run.names[-1] == "LLMTextFrame":
                await run.interrupt()

        run.assistant.process_frame = interrupting  # type: ignore[method-assign]
        await run.run()

        assert run.said == [{"role": "assistant", "content": "a"}]
        assert run.text == "a"


async def test_an_outside_cancellation_wins_over_a_limit() -> None:
    """Cancelled and out of time at once: the cancellation is never swallowed."""
    async with turn(script(STREAM_HEAD, chunk(PAR), then="stall")) as (run, _):
        task = asyncio.create_task(run.run())
        runs = run.service._runs
        await wait_until(lambda: [r for r in runs.values() if r.stream], "the call to begin")
        (active,) = runs.values()
        await wait_until(lambda: run.text and active.stream._waiting, "the call to wait")
        active.stream.abort()
        task.cancel()
        await asyncio.wait([task])

        assert task.cancelled()


async def test_a_stale_pooled_connection_is_an_error_that_may_be_retried() -> None:
    """A connection closed while idle fails one request at most, never with a foreign error."""

    async def once(connection: Connection) -> None:
        await connection.reply(delta(content="done"), finish())
        connection.fin()

    async with turn(once) as (run, server):
        await run.run()
        for _ in range(3):
            outcome = await asyncio.gather(run.run(), return_exceptions=True)
            assert outcome[0] is None or getattr(outcome[0], "code", None) == "connection"

        assert len(server.requests) >= 2
