"""Finds the program's providers of OpenTelemetry, or has the SDK make them as `OTEL_*` say.

Source: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

import asyncio
import importlib
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, cast
from urllib.parse import urlsplit

from opentelemetry import _logs, metrics, trace
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from turnline.worker.errors import StartFailed

log = logging.getLogger("turnline.telemetry")

_LOOK_S: Final = 0.02
_BASE: Final = "OTEL_EXPORTER_OTLP_"


class Providers(NamedTuple):
    """What spans and metrics go to."""

    traces: trace.TracerProvider
    metrics: metrics.MeterProvider
    is_ours: bool = False
    """Whether they have to be closed here: made here, or the whole process is a worker."""
    sends_spans: bool = True
    """Whether anybody but processors that are added here may see spans."""
    logs: _logs.LoggerProvider | None = None
    """What events go to that stand in no span, if it has to be closed here."""

    @property
    def has_metrics(self) -> bool:
        """Whether anybody may read metrics."""
        return not isinstance(self.metrics, NoOpMeterProvider)

    def add(self, processor: SpanProcessor) -> None:
        """Have a processor see all spans, if the provider knows processors."""
        add = cast(
            "Callable[[SpanProcessor], None] | None",
            getattr(self.traces, "add_span_processor", None),
        )
        if add is None:
            log.warning("telemetry.no_processors", extra={"provider": type(self.traces).__name__})
        else:
            add(processor)

    async def close(self) -> None:
        """Send what waits; may be cancelled.

        An exporter may take a minute over a collector that says nothing. So threads wait for it,
        which keep the process from nothing: not those of the loop's pool.
        """
        ends = [
            cast("Callable[[], Any]", end)
            for provider in (self.traces, self.metrics, self.logs)
            if (end := getattr(provider, "shutdown" if self.is_ours else "force_flush", None))
        ]
        threads = [threading.Thread(target=_quietly, args=(end,), daemon=True) for end in ends]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):  # noqa: ASYNC110  threads
            await asyncio.sleep(_LOOK_S)


def find_or_make(
    environ: Mapping[str, str], resource: Mapping[str, str], *, is_shown: bool, whole: bool
) -> Providers:
    """Return the program's providers; where it has none, new ones.

    New ones are the program's from then on, if `OTEL_*` or `is_shown` ask for them, or if the whole
    process is a worker. Else they are this worker's own.

    Args:
        environ: Has the `OTEL_*` variables; has to be the process' own if they ask for something.
        resource: What the worker says of itself; `OTEL_RESOURCE_ATTRIBUTES` win.
        is_shown: Whether metrics are wanted though no variable asks for them.
        whole: Whether the process is a worker and nothing else.

    Raises:
        StartFailed: A variable is unusable, or what it names is not installed.
    """
    traces, meters = trace.get_tracer_provider(), metrics.get_meter_provider()
    has_traces = not isinstance(traces, trace.ProxyTracerProvider)
    if has_traces or _is_set(meters):
        meters = meters if _is_set(meters) else NoOpMeterProvider()
        found = traces if has_traces else _own(resource)
        logs = _logs.get_logger_provider() if whole else None
        return Providers(found, meters, is_ours=whole, sends_spans=has_traces, logs=logs)
    is_disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    defaults = {} if is_disabled else _defaults(environ)
    exporters = {**defaults, **environ}
    if not is_disabled:
        _check_endpoints(environ)
    has_metrics = is_shown or (not is_disabled and _sends(exporters, "METRICS"))
    has_spans = not is_disabled and _sends(exporters, "TRACES")
    if not (whole or has_metrics or has_spans):
        return Providers(_own(resource), NoOpMeterProvider(), is_ours=True, sends_spans=False)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    before = _logs.get_logger_provider()  # the program's, if it can be shut down
    _configure(_new(resource))
    meters = metrics.get_meter_provider() if has_metrics else NoOpMeterProvider()
    return Providers(
        trace.get_tracer_provider(),
        meters,
        is_ours=True,
        sends_spans=has_spans,
        logs=None if hasattr(before, "shutdown") else _logs.get_logger_provider(),
    )


def _configure(resource: Mapping[str, str]) -> None:
    # The class that distributions build upon: it has no public name.
    configuration: Any = importlib.import_module("opentelemetry.sdk._configuration")

    try:
        configuration._OTelSDKConfigurator().configure(  # noqa: SLF001
            export_span_processor=_batched,
            resource_attributes=dict(resource),
        )
    except Exception as error:  # noqa: BLE001  of the SDK and what it loads
        # The SDK's own words name an exporter or a protocol; others may quote a header or address.
        why = error if isinstance(error, RuntimeError) else type(error).__name__
        raise StartFailed(
            f"OpenTelemetry cannot be set up as the OTEL_* variables say: {why}. Exporters are "
            "packages, such as opentelemetry-exporter-otlp-proto-grpc; http/protobuf as "
            "OTEL_EXPORTER_OTLP_PROTOCOL needs none. OTEL_SDK_DISABLED=true sends nothing."
        ) from None


def _own(resource: Mapping[str, str]) -> TracerProvider:
    """Return a provider for traces in Redis, which sends nothing."""
    return TracerProvider(resource=Resource.create(_new(resource)), shutdown_on_exit=False)


def _batched(exporter: SpanExporter) -> SpanProcessor:
    # Protobuf and what it needs are a tenth of a start: only for those who send.
    from turnline.worker.telemetry.lean_exporter import lean  # noqa: PLC0415  see above

    return BatchSpanProcessor(lean(exporter))


def _defaults(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what is meant where an endpoint is set: OTLP over HTTP, of its signals."""
    found: dict[str, str] = {}
    for signal in ("TRACES", "METRICS"):
        names = (f"{_BASE}{signal}_ENDPOINT", f"{_BASE}ENDPOINT")
        if any(environ.get(name, "").strip() for name in names):
            found[f"OTEL_{signal}_EXPORTER"] = "otlp"
    return {f"{_BASE}PROTOCOL": "http/protobuf", **found}


def _check_endpoints(environ: Mapping[str, str]) -> None:
    """Refuse an address to which nothing could be sent, without showing it: it may have a password.

    Raises:
        StartFailed: One is none.
    """
    for name in (f"{_BASE}{signal}ENDPOINT" for signal in ("", "TRACES_", "METRICS_")):
        address = environ.get(name, "").strip()
        try:
            where = urlsplit(address)
            is_usable = where.scheme in {"http", "https"} and where.hostname and where.port != 0
        except ValueError:
            is_usable = False
        if address and not is_usable:
            raise StartFailed(
                f"{name}: expected an address such as http://collector:4318. "
                "OTEL_SDK_DISABLED=true sends nothing."
            )


def _sends(environ: Mapping[str, str], signal: str) -> bool:
    return environ.get(f"OTEL_{signal}_EXPORTER", "").strip().lower() not in {"", "none"}


def _new(resource: Mapping[str, str]) -> dict[str, str]:
    """Return what the variables do not say of the worker."""
    known = OTELResourceDetector().detect().attributes
    return {name: value for name, value in resource.items() if name not in known}


def _is_set(meters: metrics.MeterProvider) -> bool:
    return type(meters).__module__ != "opentelemetry.metrics._internal"


def _quietly(end: Callable[[], object]) -> None:
    try:
        end()
    except Exception as error:  # noqa: BLE001  a collector's or a vendor's
        log.warning("telemetry.unsent", extra={"error": type(error).__name__})
