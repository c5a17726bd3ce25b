"""Metrics as OpenTelemetry has them: their labels are few and bounded."""

from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.attributes import CallPlace
from turnline.worker.telemetry.metrics import TurnMeters

PLACE = CallPlace("api.x.ai", 443)


def measured(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    """Points of all metrics by their names."""
    data = reader.get_metrics_data()
    return {
        metric.name: list(metric.data.data_points)
        for resource in (data.resource_metrics if data is not None else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def meters(reader: InMemoryMetricReader) -> TurnMeters:
    """All metrics, read by this reader."""
    provider = MeterProvider([reader], shutdown_on_exit=False)
    return TurnMeters(provider.get_meter(n.SCOPE), PLACE)


def test_labels_are_bounded() -> None:
    """Words that somebody else chooses, such as models, cannot grow a metric without end."""
    reader = InMemoryMetricReader()
    made = meters(reader)
    for number in range(1_000):
        made.cost(1, f"model-{number}")

    points = {point.attributes[n.REQUEST_MODEL]: point for point in measured(reader)[n.M_COST]}
    assert len(points) == 201
    assert points["other"].value == 800


def test_model_calls_are_measured_as_the_conventions_say() -> None:
    """By model, provider, server and operation; an empty label is left out."""
    reader = InMemoryMetricReader()
    meters(reader).call_duration(0.015, "grok", "")

    (point,) = measured(reader)[n.M_CALL_DURATION]
    assert dict(point.attributes) == {
        n.OPERATION_NAME: "chat",
        n.PROVIDER_NAME: "x_ai",
        n.REQUEST_MODEL: "grok",
        n.SERVER_ADDRESS: "api.x.ai",
        n.SERVER_PORT: 443,
    }
    assert point.bucket_counts[:3] == (0, 1, 0)
    assert point.explicit_bounds[:2] == (0.01, 0.02)
