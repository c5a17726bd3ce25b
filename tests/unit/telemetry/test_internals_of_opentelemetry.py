"""The private names of OpenTelemetry's SDK that are used are there, and what happens if not."""

import inspect
import logging

import pytest
from opentelemetry import _logs
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk import _configuration
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import NoOpTracer, ProxyTracer

from turnline.worker.telemetry.lean_exporter import CLIENT, LeanExporter, lean
from turnline.worker.telemetry.tracing import DerivedIds, derive_ids


def test_distributions_build_upon_the_configurator() -> None:
    """So does Turnline."""
    assert callable(_configuration._OTelSDKConfigurator().configure)


def test_an_event_is_a_log_record_with_a_name() -> None:
    """By the API of logs, which has no public name yet."""
    taken = inspect.signature(_logs.Logger.emit).parameters

    assert {"timestamp", "context", "attributes", "event_name"} <= taken.keys()
    assert callable(_logs.get_logger)
    assert not hasattr(_logs.NoOpLoggerProvider(), "shutdown")


def test_a_tracers_ids_come_from_an_attribute() -> None:
    """It is replaced once, and only on our tracer."""
    provider = TracerProvider(shutdown_on_exit=False)
    tracer, other = provider.get_tracer("turnline"), provider.get_tracer("other")
    for _ in range(2):
        derive_ids(tracer)

    ids = vars(tracer)["id_generator"]
    assert isinstance(ids, DerivedIds)
    assert isinstance(ids._others, RandomIdGenerator)
    assert isinstance(vars(other)["id_generator"], RandomIdGenerator)


def test_a_tracer_that_has_other_ids_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """One of a vendor's; not one that makes no spans."""
    with caplog.at_level(logging.WARNING):
        derive_ids(NoOpTracer())
        assert caplog.messages == []
        derive_ids(ProxyTracer("turnline"))
    assert caplog.messages == ["telemetry.ids_not_derived"]


def test_an_exporter_sends_by_a_client() -> None:
    """One that does not, or is somebody else's, encodes by itself."""
    exporter = OTLPSpanExporter(endpoint="http://127.0.0.1:9/v1/traces")
    assert callable(vars(exporter)[CLIENT].export)
    assert isinstance(lean(exporter), LeanExporter)
    del vars(exporter)[CLIENT]
    others: list[SpanExporter] = [exporter, ConsoleSpanExporter()]
    assert [lean(it) for it in others] == others
