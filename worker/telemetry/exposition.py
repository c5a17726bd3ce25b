"""Shows metrics as Prometheus reads them: whoever asks gets them, nothing is sent."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, cast
from weakref import WeakSet

from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from prometheus_client import REGISTRY, generate_latest

log = logging.getLogger("turnline.telemetry")
_NAME: Final = "prometheus"
_shown: "WeakSet[metrics.MeterProvider]" = WeakSet()
"""Providers that are shown already: the workers of a process share one."""


def shown_by(
    provider: metrics.MeterProvider, environ: Mapping[str, str]
) -> Callable[[], bytes] | None:
    """Have a provider's metrics shown, and return what writes them; None: it does not let them.

    Args:
        provider: Of the worker, or of the program that it is part of.
        environ: The `OTEL_*` variables: they may ask for the same by the SDK's own means.
    """
    add = cast("Callable[[Any], None] | None", getattr(provider, "add_metric_reader", None))
    is_there = _NAME in environ.get("OTEL_METRICS_EXPORTER", "")
    if provider not in _shown and not is_there:
        if add is None:
            log.warning("telemetry.no_readers", extra={"provider": type(provider).__name__})
            return None
        add(PrometheusMetricReader())
        _shown.add(provider)
    return _written


def _written() -> bytes:
    return generate_latest(REGISTRY)
