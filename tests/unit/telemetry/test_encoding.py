"""Spans and metrics as OTLP has them."""

from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans

from turnline.contracts.trace_context import Link
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.encoding import add_span, metrics_request, resource_of
from turnline.worker.telemetry.metrics import TurnMeters
from turnline.worker.telemetry.spans import Span, SpanEvent


def encoded(**more: Any) -> Any:
    span = Span(
        **{
            "name": n.TURN,
            "span_id": "01" * 8,
            "trace_id": "ab" * 16,
            "start_ns": 5,
            "end_ns": 9,
            "attributes": {},
            **more,
        }
    )
    scope = ScopeSpans()
    add_span(scope, span, "vendor=1")
    (message,) = ScopeSpans.FromString(scope.SerializeToString()).spans
    return message


def plain(attributes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in attributes:
        value = getattr(pair.value, pair.value.WhichOneof("value"))
        found[pair.key] = (
            [v.string_value for v in value.values] if pair.value.HasField("array_value") else value
        )
    return found


def test_a_span_keeps_everything() -> None:
    """Ids, state, times, kind, error, links, events and each type of attribute."""
    attributes = {"s": "é", "b": True, "i": -3, "f": 0.5, "l": ["x", "y"], "e": []}
    event = SpanEvent(name="noted", at_ns=7, attributes={"why": "x"})

    message = encoded(
        kind="client",
        parent_id="02" * 8,
        attributes=attributes,
        error="rate_limited",
        links=(Link("cd" * 16, "03" * 8),),
        events=(event,),
    )

    assert message.trace_id.hex() == "ab" * 16
    assert message.span_id.hex() == "01" * 8
    assert message.parent_span_id.hex() == "02" * 8
    assert message.trace_state == "vendor=1"
    assert (message.start_time_unix_nano, message.end_time_unix_nano) == (5, 9)
    assert message.kind == 3
    assert plain(message.attributes) == attributes
    assert (message.status.code, message.status.message) == (2, "rate_limited")
    (link,) = message.links
    assert (link.trace_id.hex(), link.span_id.hex(), link.flags) == ("cd" * 16, "03" * 8, 0x301)
    (noted,) = message.events
    assert (noted.name, noted.time_unix_nano, plain(noted.attributes)) == ("noted", 7, {"why": "x"})


def test_a_plain_span_has_no_status_and_no_parent() -> None:
    """A root's parent is empty bytes; its flags say that it is sampled."""
    message = encoded()

    assert not message.HasField("status")
    assert message.parent_span_id == b""
    assert message.flags == 0x101
    assert encoded(parent_id="02" * 8).flags == 0x301, "a turn's parent is its producer's"


def test_what_cannot_be_encoded_is_left_out() -> None:
    """A redactor may return anything; the rest of the span still leaves."""
    attributes = {"kept": 1, "big": 1 << 70, "odd": object(), "half": "\ud800", "none": None}

    assert plain(
        encoded(attributes={**attributes, "list": ["x", object()], "last": 2}).attributes
    ) == {
        "kept": 1,
        "last": 2,
    }


def test_the_resource_is_as_the_variables_say() -> None:
    """A name of its own wins over the attributes'; values are percent-decoded."""
    environ = {
        "OTEL_SERVICE_NAME": "bot",
        "OTEL_RESOURCE_ATTRIBUTES": "service.name=other, team=a%2Cb ,broken",
    }

    found = plain(resource_of(environ, worker="w-1", version="3").attributes)

    assert found["service.name"] == "bot"
    assert found["team"] == "a,b"
    assert found["service.instance.id"] == "w-1"
    assert found["service.version"] == "3"
    assert plain(resource_of({}, worker="w", version="0").attributes)["service.name"] == "turnline"


def test_metrics_of_every_kind_are_told() -> None:
    """Counters as growing sums, gauges, histograms with their bounds; those without values not."""
    meters = TurnMeters()
    meters.tokens.add(7, "grok-4.3", "input")
    meters.loop_lag.set(0.25)
    meters.queue_wait.record(0.02)
    resource = resource_of({}, worker="w", version="0")

    request = metrics_request(meters, resource, began_ns=1, now_ns=2)

    request = ExportMetricsServiceRequest.FromString(request.SerializeToString())
    (per_resource,) = request.resource_metrics
    found = {m.name: m for scope in per_resource.scope_metrics for m in scope.metrics}
    tokens = found[n.M_TOKENS].sum
    assert tokens.is_monotonic
    assert tokens.aggregation_temporality == 2
    (point,) = tokens.data_points
    assert (point.as_double, point.start_time_unix_nano, point.time_unix_nano) == (7, 1, 2)
    assert plain(point.attributes) == {n.REQUEST_MODEL: "grok-4.3", n.TOKEN_TYPE: "input"}
    assert found[n.M_LOOP_LAG].gauge.data_points[0].as_double == 0.25
    (waits,) = found[n.M_QUEUE_WAIT].histogram.data_points
    assert waits.count == sum(waits.bucket_counts) == 1
    assert len(waits.bucket_counts) == len(waits.explicit_bounds) + 1
    assert waits.sum == 0.02
    assert n.M_COST not in found
    assert found[n.M_TOKENS].unit
