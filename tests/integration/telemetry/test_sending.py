"""How messages reach a collector, and how little a bad one can do with an answer."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.integration.telemetry.collector import Behaviour, Collector
from tests.support.wait import wait_until
from turnline.worker.telemetry.encoding import resource_of
from turnline.worker.telemetry.metrics import TurnMeters
from turnline.worker.telemetry.otlp import OtlpSpans
from turnline.worker.telemetry.otlp_http import Answer, Sender, Target, target_of
from turnline.worker.telemetry.spans import Span, TurnSpans

TURN = TurnSpans(
    conversation_id="c",
    turn_id="t",
    trace_id="ab" * 16,
    attempt=1,
    spans=[
        Span(
            name=f"span {number}",
            span_id=f"{number + 1:016x}",
            trace_id="ab" * 16,
            start_ns=1,
            end_ns=2,
            attributes={},
        )
        for number in range(5)
    ],
)


@asynccontextmanager
async def sender_to(collector: Collector, **more: object) -> AsyncIterator[Sender]:
    target = target_of({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}, "traces")
    sender = Sender(target._replace(**{"timeout_s": 5.0, **more}))  # type: ignore[arg-type]
    try:
        yield sender
    finally:
        await sender.close()


@pytest.mark.parametrize("compression", ["gzip", "deflate", "none", "snappy"])
async def test_messages_arrive_however_they_are_packed(compression: str) -> None:
    """And over one connection; what nobody knows is sent as it is."""
    with Collector() as collector:
        async with sender_to(collector, compression=compression) as sender:
            answers = [await sender.send(b"first"), await sender.send(b"second")]
        assert answers == [Answer(), Answer()]
        assert collector.requests == [("/v1/traces", b"first"), ("/v1/traces", b"second")]
        assert collector.connections == 1


async def test_a_busy_collector_is_asked_again() -> None:
    """After a while, within the time-out."""
    with Collector("is busy") as collector:
        async with sender_to(collector) as sender:
            assert await sender.send(b"x") == Answer()
        assert [body for _, body in collector.requests] == [b"x"]
        assert len(collector.headers) == 2


@pytest.mark.parametrize(
    ("behaviour", "problem", "least_s"),
    [
        ("fails", "500", 0),
        ("refuses", "ClientConnectorError", 0.3),
        ("hangs", "TimeoutError", 0.3),
        ("dribbles", "TimeoutError", 0.3),
        ("babbles", "ClientResponseError", 0),
    ],
)
async def test_a_bad_collector_costs_a_bounded_time(
    behaviour: Behaviour, problem: str, least_s: float
) -> None:
    """The time-out is that of the whole exchange, whatever keeps coming."""
    with Collector(behaviour) as collector:
        async with sender_to(collector, timeout_s=0.3) as sender:
            began_s = time.monotonic()
            answer = await sender.send(b"x")
            took_s = time.monotonic() - began_s

    assert answer.problem == problem
    assert least_s <= took_s + 0.05
    assert took_s < 10  # and not for as long as the collector goes on


async def test_an_endless_answer_is_not_read() -> None:
    """The connection is closed after a little of it."""
    with Collector("floods") as collector:
        async with sender_to(collector) as sender:
            began_s = time.monotonic()
            answer = await sender.send(b"x")
            took_s = time.monotonic() - began_s

    assert not answer.problem
    assert len(answer.body) < 1_000_000
    assert took_s < 2


async def test_a_name_server_that_does_not_answer_delays_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not the sender beyond its time-out, and not the end of the process."""
    answered = threading.Event()
    looked: list[threading.Thread] = []

    def hang(*_: object) -> list[object]:
        looked.append(threading.current_thread())
        answered.wait(30)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    sender = Sender(Target("http://collector.invalid:4318/v1/traces", {}, timeout_s=0.2))

    answer = await sender.send(b"x")
    await sender.close()

    assert answer.problem == "TimeoutError"
    assert looked[0].daemon
    answered.set()


async def test_names_are_looked_up() -> None:
    """A host's name does as well as its address."""
    with Collector() as collector:
        url = collector.url.replace("127.0.0.1", "localhost")
        sender = Sender(Target(url + "/v1/traces", {}))
        assert await sender.send(b"x") == Answer()
        await sender.close()
        assert len(collector.requests) == 1


def test_the_variables_of_a_signal_win(tmp_path: Path) -> None:
    """Over those for all; a path is added only to the endpoint for all."""
    authority = tmp_path / "ca.pem"
    authority.touch()
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://all:4318/base/",
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=a%20b, tenant=t",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "7",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(authority),
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://traces:1/exactly",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "API-Key=mine",
        "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "none",
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "soon",
    }
    kind = {"content-type": "application/x-protobuf"}

    traces, metrics = target_of(environ, "traces"), target_of(environ, "metrics")

    assert traces.url == "http://traces:1/exactly"
    assert traces.headers == {**kind, "api-key": "mine"}
    assert (traces.compression, traces.timeout_s, traces.ca_file) == ("none", 10.0, str(authority))
    assert metrics.url == "https://all:4318/base/v1/metrics"
    assert metrics.headers == {**kind, "api-key": "a b", "tenant": "t"}
    assert (metrics.compression, metrics.timeout_s) == ("gzip", 7.0)


async def test_what_a_collector_rejects_is_counted() -> None:
    """It took the batch, but not all of it."""
    meters = TurnMeters()
    with Collector("rejects") as collector:
        async with sender_to(collector) as sender:
            spans = OtlpSpans({}, resource_of({}, worker="w", version="0"), meters, sender)
            spans.open()
            spans.export(TURN)
            await spans.close()

    assert meters.spans_sent.numbers == {("otlp",): 3}
    assert meters.spans_dropped.numbers == {("otlp",): 2}


async def test_full_batches_leave_at_once_and_the_rest_at_the_end() -> None:
    """No span is lost between the two, and none is sent twice."""
    meters = TurnMeters()
    environ = {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10", "OTEL_BSP_SCHEDULE_DELAY": "60000"}
    with Collector() as collector:
        async with sender_to(collector) as sender:
            spans = OtlpSpans(environ, resource_of({}, worker="w", version="0"), meters, sender)
            spans.open()
            for _ in range(5):
                spans.export(TURN)
            await wait_until(lambda: len(collector.requests) >= 2, "two batches arrived")
            assert len(collector.spans) == 20
            await spans.close()
        assert len(collector.spans) == 25
    assert meters.spans_sent.numbers == {("otlp",): 25}


async def test_what_was_not_sent_when_time_is_over_counts_as_dropped() -> None:
    """And what comes later is not even taken."""
    meters = TurnMeters()
    with Collector("hangs") as collector:
        async with sender_to(collector, timeout_s=60) as sender:
            spans = OtlpSpans({}, resource_of({}, worker="w", version="0"), meters, sender)
            spans.open()
            spans.export(TURN)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await spans.close()
            spans.export(TURN)

    assert meters.spans_dropped.numbers == {("otlp",): 10}


async def test_the_end_does_not_wait_for_better_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector that is away is tried again while there is time, but not when all ends."""
    monkeypatch.setattr("turnline.worker.telemetry.otlp_http._FIRST_WAIT_S", 30.0)
    meters = TurnMeters()
    environ = {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "5"}
    with Collector("refuses") as collector:
        async with sender_to(collector, timeout_s=15) as sender:
            spans = OtlpSpans(environ, resource_of({}, worker="w", version="0"), meters, sender)
            spans.open()
            for _ in range(4):
                spans.export(TURN)
            await asyncio.sleep(0.1)  # it tries already
            began_s = time.monotonic()
            await spans.close()
            took_s = time.monotonic() - began_s

    assert took_s < 10
    assert meters.spans_dropped.numbers == {("otlp",): 20}


async def test_the_end_gives_up_with_the_first_batch_that_fails() -> None:
    """A collector that hangs is waited for once, not once for each batch."""
    meters = TurnMeters()
    environ = {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "5"}
    with Collector("hangs") as collector:
        async with sender_to(collector, timeout_s=0.4) as sender:
            spans = OtlpSpans(environ, resource_of({}, worker="w", version="0"), meters, sender)
            spans.open()
            for _ in range(6):
                spans.export(TURN)
            await spans.close()

    assert len(collector.headers) <= 1
    assert meters.spans_dropped.numbers == {("otlp",): 30}
