"""Spans and metrics as OTLP's protobuf messages, by OpenTelemetry's own definitions of them.

Source: https://opentelemetry.io/docs/specs/otlp/
"""

from collections.abc import Mapping
from typing import Any, Final, cast
from urllib.parse import unquote

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as m
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Status
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.metrics import Labels, Meter, TurnMeters
from turnline.worker.telemetry.spans import Kind, Span

_KINDS: Final[Mapping[Kind, SpanMessage.SpanKind.ValueType]] = {
    "internal": SpanMessage.SPAN_KIND_INTERNAL,
    "producer": SpanMessage.SPAN_KIND_PRODUCER,
    "consumer": SpanMessage.SPAN_KIND_CONSUMER,
    "client": SpanMessage.SPAN_KIND_CLIENT,
}
_SAMPLED: Final = 0x01
_LOCAL: Final = 0x100
"""It is known where the parent is: in this process."""
_REMOTE: Final = 0x300
"""The parent, or the span that a link names, is in another process."""


def resource_of(environ: Mapping[str, str], *, worker: str, version: str) -> Resource:
    """Return what the worker says about itself with all it sends.

    `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` are heeded and win.

    Source: https://opentelemetry.io/docs/specs/otel/resource/sdk/
    """
    attributes = {
        "service.name": n.SCOPE,
        "service.version": version,
        "service.instance.id": worker,
        "telemetry.sdk.language": "python",
    }
    for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        name, found, value = pair.partition("=")
        if found:
            attributes[name.strip()] = unquote(value.strip())
    if service := environ.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = service
    resource = Resource()
    for name, value in attributes.items():
        _put(resource.attributes, name, value)
    return resource


def add_span(scope: ScopeSpans, span: Span, tracestate: str) -> None:
    """Add a span. An attribute that no protobuf message can hold is left out."""
    message = scope.spans.add(
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        parent_span_id=bytes.fromhex(span.parent_id),
        trace_state=tracestate,
        name=span.name,
        kind=_KINDS[span.kind],
        start_time_unix_nano=span.start_ns,
        end_time_unix_nano=span.end_ns,
        flags=_SAMPLED | (_REMOTE if span.name == n.TURN and span.parent_id else _LOCAL),
    )
    attributes = message.attributes
    for name, value in span.attributes.items():
        _put(attributes, name, value)
    if span.error:
        message.status.code = Status.STATUS_CODE_ERROR
        message.status.message = span.error
    for event in span.events:
        noted = message.events.add(name=event.name, time_unix_nano=event.at_ns)
        for name, value in event.attributes.items():
            _put(noted.attributes, name, value)
    for link in span.links:
        message.links.add(
            trace_id=bytes.fromhex(link.trace_id),
            span_id=bytes.fromhex(link.span_id),
            flags=_SAMPLED | _REMOTE,
        )


def _put(attributes: Any, name: str, value: Any) -> None:
    # Filling a message in place is several times cheaper than making its parts first.
    message: KeyValue = attributes.add()
    try:
        message.key = name
        _set(message.value, value)
    except (TypeError, ValueError):  # a redactor's: no such type, a number or text out of range
        del attributes[-1]


def _set(message: AnyValue, value: Any) -> None:
    if isinstance(value, str):
        message.string_value = value
    elif isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, int):
        message.int_value = value
    elif isinstance(value, float):
        message.double_value = value
    elif isinstance(value, list | tuple):
        message.array_value.SetInParent()
        for one in cast("list[Any]", value):
            _set(message.array_value.values.add(), one)
    else:
        raise TypeError(type(value).__name__)


def metrics_request(
    meters: TurnMeters, resource: Resource, *, began_ns: int, now_ns: int
) -> ExportMetricsServiceRequest:
    """Return all metrics that have values.

    Args:
        meters: Where they are.
        resource: Whose they are.
        began_ns: Since when they count, ns since the Unix epoch.
        now_ns: Until when.
    """
    request = ExportMetricsServiceRequest()
    per_resource = request.resource_metrics.add(resource=resource)
    scope = per_resource.scope_metrics.add()
    scope.scope.name = n.SCOPE
    for meter in meters:
        if meter.numbers or meter.buckets:
            metric = scope.metrics.add(
                name=meter.name, description=meter.help_text, unit=meter.unit
            )
            _add_points(metric, meter, began_ns, now_ns)
    return request


def _add_points(metric: m.Metric, meter: Meter, began_ns: int, now_ns: int) -> None:
    points: Any
    match meter.kind:
        case "gauge":
            points = metric.gauge.data_points
        case "counter":
            metric.sum.is_monotonic = True
            metric.sum.aggregation_temporality = m.AGGREGATION_TEMPORALITY_CUMULATIVE
            points = metric.sum.data_points
        case "histogram":
            temporality = m.AGGREGATION_TEMPORALITY_CUMULATIVE
            metric.histogram.aggregation_temporality = temporality
            points = metric.histogram.data_points
    for labels, value in meter.numbers.items():
        point = points.add(start_time_unix_nano=began_ns, time_unix_nano=now_ns, as_double=value)
        _put_labels(point.attributes, meter, labels)
    for labels, (counts, total) in meter.buckets.items():
        point = points.add(
            start_time_unix_nano=began_ns,
            time_unix_nano=now_ns,
            count=sum(counts),
            sum=total[0],
            bucket_counts=counts,
            explicit_bounds=meter.bounds,
        )
        _put_labels(point.attributes, meter, labels)


def _put_labels(attributes: Any, meter: Meter, labels: Labels) -> None:
    for name, value in zip(meter.labels, labels, strict=True):
        if value:
            _put(attributes, name, value)
