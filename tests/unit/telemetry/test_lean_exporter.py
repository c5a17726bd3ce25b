"""Spans are encoded as the SDK encodes them."""

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from turnline.worker.telemetry.lean_exporter import encoded


def test_it_is_what_the_sdk_makes_of_them() -> None:
    """To the byte: kinds, links, events, status, all types of attributes, two scopes."""
    kept = InMemorySpanExporter()
    resource = Resource(
        {"service.name": "it", "cores": 2}, "https://opentelemetry.io/schemas/1.1.0"
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    values = {
        "text": "words \N{GRINNING FACE}",
        "whole": -5,
        "yes": True,
        "part": 0.5,
        "bytes": b"\xff",
        "many": ["a", "b"],
        "numbers": (1, 2),
        "none": [],
    }
    for scope in ("turnline", "other"):
        tracer = provider.get_tracer(scope, "1", attributes={"a": 1})
        with tracer.start_as_current_span("above", kind=SpanKind.CONSUMER) as above:
            above.add_event("event", {"a": 1}, 5)
            above.set_status(StatusCode.ERROR, "code")
            links = [trace.Link(above.get_span_context(), {"b": "c"})]
            tracer.start_span("below", kind=SpanKind.CLIENT, attributes=values, links=links).end()
    spans = kept.get_finished_spans()

    assert len(spans) == 4
    assert encoded(spans) == encode_spans(spans)
