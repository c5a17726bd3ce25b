"""Metrics of several workers on one page."""

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from turnline.worker.probes.merging import merged


def values(page: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """All samples of a page, read as Prometheus reads them."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def page_of(count: int, *, label: str = "a") -> bytes:
    registry = CollectorRegistry()
    Counter("turns", "Turns.", ["kind"], registry=registry).labels(label).inc(count)
    Histogram("wait", "Waits.", registry=registry, buckets=(1, 2)).observe(count)
    return generate_latest(registry)


def test_each_sample_says_whose_it_is() -> None:
    """All of all workers, each metric once, in a form that a parser of Prometheus takes."""
    page = merged({"w1": page_of(1), "w2": page_of(2)})

    assert page.count(b"# TYPE turns_total counter\n") == 1
    assert page.count(b"# HELP wait Waits.\n") == 1
    found = values(page)
    for name, count in (("w1", 1), ("w2", 2)):
        worker = ("worker", name)
        assert found["turns_total", frozenset({worker, ("kind", "a")})] == count
        assert found["wait_sum", frozenset({worker})] == count
        assert found["wait_bucket", frozenset({worker, ("le", "+Inf")})] == 1
        assert found["turnline_worker_up", frozenset({worker})] == 1
    assert len(found) == 2 * (len(values(page_of(1))) + 1)


def test_a_family_stands_together() -> None:
    """Samples of one metric that are not in a row are refused by strict readers."""
    lines = merged({"w1": page_of(1), "w2": page_of(2)}).decode().splitlines()
    names = [line.partition("{")[0] for line in lines if line.startswith("turns_total")]

    at = lines.index(next(it for it in lines if it.startswith("turns_total")))
    assert names == ["turns_total"] * 2
    assert [it.partition("{")[0] for it in lines[at : at + 2]] == names


def test_a_worker_that_says_nothing_is_told() -> None:
    """It is there, with no other metric."""
    found = values(merged({"w1": page_of(1), "gone": None, "odd": b"<html>\nno metrics\n"}))

    assert found["turnline_worker_up", frozenset({("worker", "gone")})] == 0
    assert [it for it in found if ("worker", "odd") in it[1]] == [
        ("turnline_worker_up", frozenset({("worker", "odd")}))
    ]


def test_names_and_labels_of_any_kind_stay_apart() -> None:
    """Quotes, backslashes, braces; a label `worker` that is there already."""
    registry = CollectorRegistry()
    odd = 'x,worker="y"} \\ {'
    Counter("odd", "Odd.", ["text", "worker"], registry=registry).labels(odd, "z").inc()
    found = values(merged({'w"1\\': generate_latest(registry)}))

    labels = frozenset({("worker", 'w"1\\'), ("text", odd), ("exported_worker", "z")})
    assert found["odd_total", labels] == 1


def test_pages_of_the_sdk_are_merged() -> None:
    """With units, scopes and information on the target, as workers show them."""
    provider = MeterProvider([PrometheusMetricReader()], shutdown_on_exit=False)
    meter = provider.get_meter("turnline")
    meter.create_histogram("turnline.turn.duration", "s").record(1.5, {"outcome": "completed"})
    page = generate_latest(REGISTRY)
    provider.shutdown()

    found = values(merged({"w1": page, "w2": page}))
    for name in ("w1", "w2"):
        (total,) = (
            value
            for (metric, labels), value in found.items()
            if metric == "turnline_turn_duration_seconds_sum" and ("worker", name) in labels
        )
        assert total == 1.5
