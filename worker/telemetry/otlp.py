"""Sends spans and metrics to a collector over OTLP/HTTP, by OpenTelemetry's own exporters.

Imported only where a collector is configured. Everything happens in daemon threads with bounded
queues and times: a collector that is slow, down or hostile costs spans, never turns.

Source: https://opentelemetry.io/docs/specs/otel/protocol/exporter/
"""

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import export as m
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from worker.telemetry import names as n
from worker.telemetry.metrics import Meter, TurnMeters
from worker.telemetry.spans import Kind, Span, TurnSpans

log = logging.getLogger("turnline.telemetry")

_QUEUE: Final = 2_048
_BATCH: Final = 128
_EVERY_MS: Final = 1_000
_TIMEOUT_S: Final = 2.0
"""Of one request, its repetitions included."""
_METRICS_EVERY_MS: Final = 15_000
_WARN_EVERY_S: Final = 60.0
_KINDS: Final[Mapping[Kind, SpanKind]] = {
    "internal": SpanKind.INTERNAL,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
    "client": SpanKind.CLIENT,
}
_OK: Final = Status(StatusCode.UNSET)
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_SCOPE: Final = InstrumentationScope(n.SCOPE)
_NO_STATE: Final = TraceState()


def resource_of(environ: Mapping[str, str], *, worker: str, version: str) -> Resource:
    """Return what the worker says about itself with all it sends.

    `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` are heeded and win.
    """
    attributes: dict[str, Any] = {
        "service.name": environ.get("OTEL_SERVICE_NAME") or n.SCOPE,
        "service.version": version,
        "service.instance.id": worker,
    }
    for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        name, found, value = pair.partition("=")
        if found and (name.strip() != "service.name" or not environ.get("OTEL_SERVICE_NAME")):
            attributes[name.strip()] = value.strip()
    return Resource({**attributes, "telemetry.sdk.language": "python"})


class Sampler:
    """Decides once per trace, by its id alone, so that all workers decide alike.

    Source: https://opentelemetry.io/docs/specs/otel/trace/sdk/#traceidratiobased
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Read `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`."""
        name = environ.get("OTEL_TRACES_SAMPLER", "parentbased_always_on").strip().lower()
        self._heeds_parent = name.startswith("parentbased")
        ratio = 0.0 if name.endswith("always_off") else 1.0
        if name.endswith("traceidratio"):
            try:
                ratio = min(1.0, max(0.0, float(environ.get("OTEL_TRACES_SAMPLER_ARG", "1"))))
            except ValueError:
                log.warning("telemetry.sampler_ignored", extra={"sampler": name})
        self._bound = int(ratio * (1 << 64))

    def takes(self, turn: TurnSpans) -> bool:
        """Whether a trace is exported: as its producer decided, or else by its id."""
        if self._heeds_parent and not turn.sampled:
            return False
        if self._heeds_parent and turn.has_parent:
            return True
        return int(turn.trace_id[16:], 16) < self._bound


def readable(span: Span, resource: Resource, state: TraceState) -> ReadableSpan:
    """Return a span as OpenTelemetry's SDK has them."""
    trace_id = int(span.trace_id, 16)
    parent = None
    if span.parent_id:
        remote = span.name == n.TURN
        parent = SpanContext(trace_id, int(span.parent_id, 16), remote, _SAMPLED, state)
    return ReadableSpan(
        name=span.name,
        context=SpanContext(trace_id, int(span.span_id, 16), False, _SAMPLED, state),
        parent=parent,
        resource=resource,
        attributes=span.attributes,
        events=[Event(event.name, event.attributes, event.at_ns) for event in span.events],
        links=[
            Link(SpanContext(int(link.trace_id, 16), int(link.span_id, 16), True, _SAMPLED))
            for link in span.links
        ],
        kind=_KINDS[span.kind],
        status=Status(StatusCode.ERROR, span.error) if span.error else _OK,
        start_time=span.start_ns,
        end_time=span.end_ns,
        instrumentation_scope=_SCOPE,
    )


class _Counting(SpanExporter):
    """Counts what an exporter could send, and tells of failures now and then."""

    def __init__(self, exporter: SpanExporter, meters: TurnMeters) -> None:
        self._exporter = exporter
        self._meters = meters
        self._warned_at_s = -_WARN_EVERY_S
        self.taken = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self._meters.spans_sent.add(len(spans), "otlp")
        else:
            self._meters.spans_dropped.add(len(spans), "otlp")
            if time.monotonic() - self._warned_at_s >= _WARN_EVERY_S:
                self._warned_at_s = time.monotonic()
                log.warning("telemetry.export_failed", extra={"spans": len(spans)})
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class OtlpSpans:
    """A sink that sends to a collector."""

    def __init__(
        self,
        environ: Mapping[str, str],
        resource: Resource,
        meters: TurnMeters,
        exporter: SpanExporter | None = None,
    ) -> None:
        """Start the sending thread.

        Args:
            environ: The standard `OTEL_*` variables; the exporter reads the process's own.
            resource: Sent with every span.
            meters: Told what was sent and what was not.
            exporter: Instead of OTLP over HTTP.
        """
        hush()
        self._resource = resource
        self._meters = meters
        self._sampler = Sampler(environ)
        self._exporter = _Counting(exporter or OTLPSpanExporter(**_options("TRACES")), meters)
        self._queue = int(environ.get("OTEL_BSP_MAX_QUEUE_SIZE", _QUEUE))
        self._processor: Any = BatchSpanProcessor(
            self._exporter,
            max_queue_size=self._queue,
            max_export_batch_size=min(
                self._queue, int(environ.get("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", _BATCH))
            ),
            schedule_delay_millis=float(environ.get("OTEL_BSP_SCHEDULE_DELAY", _EVERY_MS)),
        )
        self._given = 0

    def take(self, turn: TurnSpans) -> None:
        """Take the spans of one attempt."""
        if not self._sampler.takes(turn):
            return
        if self._given - self._exporter.taken + len(turn.spans) > self._queue:
            self._meters.spans_dropped.add(len(turn.spans), "otlp")
            return
        self._given += len(turn.spans)
        state = TraceState.from_header([turn.tracestate]) if turn.tracestate else _NO_STATE
        for span in turn.spans:
            self._processor.on_end(readable(span, self._resource, state))

    def close(self) -> None:
        """Send what waits. Blocks for as long as the collector makes it."""
        self._processor.shutdown()


class OtlpMetrics:
    """Sends all metrics to a collector, every now and then and at the end."""

    def __init__(self, environ: Mapping[str, str], resource: Resource, meters: TurnMeters) -> None:
        """Start the sending thread; see `OtlpSpans`."""
        hush()
        self._resource = resource
        self._meters = meters
        self._began_ns = time.time_ns()
        self._exporter: Any = OTLPMetricExporter(**_options("METRICS"))
        every_ms = float(environ.get("OTEL_METRIC_EXPORT_INTERVAL", _METRICS_EVERY_MS))
        self._every_s = every_ms / 1000
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otlp-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send a last time. Blocks for as long as the collector makes it."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self._exporter.export(metrics_data(self._meters, self._resource, self._began_ns))
        self._exporter.export(metrics_data(self._meters, self._resource, self._began_ns))
        self._exporter.shutdown()


def metrics_data(meters: TurnMeters, resource: Resource, began_ns: int) -> m.MetricsData:
    """Return all metrics as OpenTelemetry's SDK has them."""
    now_ns = time.time_ns()
    metrics = [
        m.Metric(meter.name, meter.help_text, meter.unit, data)
        for meter in meters
        if (data := _data(meter, began_ns, now_ns)) is not None
    ]
    scope = m.ScopeMetrics(_SCOPE, metrics, "")
    return m.MetricsData([m.ResourceMetrics(resource, [scope], "")])


def _data(meter: Meter, began_ns: int, now_ns: int) -> m.Sum | m.Gauge | m.Histogram | None:
    def labelled(labels: tuple[str, ...]) -> dict[str, str]:
        return {name: v for name, v in zip(meter.labels, labels, strict=True) if v}

    if meter.kind == "histogram":
        none = cast("float", None)  # the SDK wants them, the protocol does not
        histograms = [
            m.HistogramDataPoint(
                labelled(labels),
                began_ns,
                now_ns,
                sum(counts),
                total[0],
                list(counts),
                meter.bounds,
                none,
                none,
            )
            for labels, (counts, total) in list(meter.buckets.items())
        ]
        if not histograms:
            return None
        return m.Histogram(histograms, m.AggregationTemporality.CUMULATIVE)
    points = [
        m.NumberDataPoint(labelled(labels), began_ns, now_ns, value)
        for labels, value in list(meter.numbers.items())
    ]
    if not points:
        return None
    if meter.kind == "gauge":
        return m.Gauge(points)
    return m.Sum(points, m.AggregationTemporality.CUMULATIVE, is_monotonic=True)


def _options(signal: str) -> dict[str, Any]:
    """Return our defaults for what the standard variables leave open."""
    options: dict[str, Any] = {}
    base = "OTEL_EXPORTER_OTLP_"
    if not {base + "TIMEOUT", f"{base}{signal}_TIMEOUT"} & os.environ.keys():
        options["timeout"] = _TIMEOUT_S
    if not {base + "COMPRESSION", f"{base}{signal}_COMPRESSION"} & os.environ.keys():
        options["compression"] = Compression.Gzip
    return options


def hush() -> None:
    """Keep the SDK's own words out of the logs: it logs each failure; we tell now and then."""
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
