"""The `send` span of producers that are inside a span of their own, with OpenTelemetry's SDK."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.integration.contracts.streams import Blocking
from tests.integration.telemetry.watching import KeptSpans, WatchedHand
from turnline.contracts import (
    InboxFull,
    InvalidMessage,
    StoreUnavailable,
    SyncTurnClient,
    TurnClient,
    UserMessage,
)
from turnline.contracts.opening import open_async
from turnline.contracts.producer_spans import SPAN, STATUS
from turnline.contracts.protocol import Limits
from turnline.worker.telemetry import names as n

TEXT = "nobody's business"


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What a producer's provider exports."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


@pytest.fixture(params=["async", "sync"])
async def producer(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Any]:
    """Each of the two clients; an inbox takes two messages."""
    limits = Limits(inbox=2)
    if request.param == "async":
        async with TurnClient.connect(redis_url, limits=limits) as client:
            yield client
    else:
        with SyncTurnClient.connect(redis_url, limits=limits) as blocking:
            yield Blocking(blocking)


def message(turn_id: str = "t", **more: Any) -> UserMessage:
    return UserMessage(**{"conversation_id": "c", "turn_id": turn_id, "text": TEXT, **more})


def sends(exported: InMemorySpanExporter) -> list[ReadableSpan]:
    return [span for span in exported.get_finished_spans() if span.name == SPAN]


def shown(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


async def test_a_turn_hangs_below_the_span_that_sent_it(
    producer: Any, exported: InMemorySpanExporter, hand: WatchedHand, kept: KeptSpans
) -> None:
    """The producer's span, `send`, `turn`: one trace, and the attempt is linked to `send`."""
    with trace.get_tracer("shop").start_as_current_span("checkout") as checkout:
        receipt = await producer.submit(message())
        again = await producer.submit(message())
    await hand.run_one()

    send, repeated = sends(exported)
    assert send.parent is not None
    assert send.parent.span_id == checkout.get_span_context().span_id
    assert send.kind is trace.SpanKind.PRODUCER
    assert send.status.is_unset
    assert dict(send.attributes or {}) == {
        n.MESSAGING_SYSTEM: "redis",
        n.MESSAGING_OPERATION_TYPE: "send",
        n.MESSAGING_OPERATION_NAME: "send",
        n.MESSAGING_DESTINATION: "turnline:{s0}:queue",
        n.MESSAGING_MESSAGE_ID: "t",
        n.MESSAGING_CONVERSATION_ID: "c",
        n.CONVERSATION_ID: "c",
        n.TURN_ID: "t",
        STATUS: "accepted",
    }
    assert (repeated.attributes or {})[STATUS] == again.status == "duplicate"
    turn = kept.one(n.TURN)
    assert turn.parent_id == shown(send)
    assert turn.trace_id == receipt.trace_id
    assert [link.span_id for link in kept.one(n.PROCESS).links] == [shown(send)]


async def test_each_of_many_has_its_own(producer: Any, exported: InMemorySpanExporter) -> None:
    """A refused one is marked, the others are not."""
    with trace.get_tracer("shop").start_as_current_span("checkout"):
        outcomes = await producer.submit_many([message("a"), message("b"), message("d")])

    assert isinstance(outcomes[2], InboxFull)
    found = {(span.attributes or {})[n.TURN_ID]: span for span in sends(exported)}
    assert [found[turn_id].status.is_unset for turn_id in "abd"] == [True, True, False]
    assert (found["d"].attributes or {})[n.ERROR_TYPE] == "InboxFull"
    assert len({shown(span) for span in found.values()}) == 3


@pytest.mark.promise("P10")
@pytest.mark.parametrize(
    ("bad", "error"),
    [(message(conversation_id=""), InvalidMessage), ({"text": TEXT}, InvalidMessage)],
)
async def test_what_is_refused_says_so_and_quotes_nothing(
    producer: Any, exported: InMemorySpanExporter, bad: Any, error: type[Exception]
) -> None:
    """The error's kind is in the span, its text is not."""
    with (
        trace.get_tracer("shop").start_as_current_span("checkout", record_exception=False),
        pytest.raises(error),
    ):
        await producer.submit(bad)

    (span,) = sends(exported)
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.status.description == error.__name__
    assert span.events == ()
    assert TEXT not in span.to_json()


async def test_a_lost_connection_ends_the_span(exported: InMemorySpanExporter) -> None:
    """With what happened."""
    redis = open_async("redis://127.0.0.1:1")
    with (
        trace.get_tracer("shop").start_as_current_span("checkout"),
        pytest.raises(StoreUnavailable),
    ):
        await TurnClient(redis, patience_s=0.05).submit(message())
    await redis.aclose()

    (span,) = sends(exported)
    assert (span.attributes or {})[n.ERROR_TYPE] == "StoreUnavailable"


async def test_without_an_active_span_there_is_none(
    producer: Any, exported: InMemorySpanExporter, hand: WatchedHand, kept: KeptSpans
) -> None:
    """The turn itself begins the trace; so it does for a message that brings a context."""
    await producer.submit(message("a"))
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with trace.get_tracer("shop").start_as_current_span("checkout"):
        receipt = await producer.submit(message("b", traceparent=parent))
    await hand.run_one()

    assert sends(exported) == []
    assert receipt.trace_id in parent
    assert [span.parent_id for span in kept.named(n.TURN)] == ["", "00f067aa0ba902b7"]
