"""The dashboard and the alert rules ask only for metrics that there are, by labels they have."""

import json
import re
from typing import NamedTuple

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import REGISTRY

from tests.support.recordings import REPOSITORY
from turnline.ops.fleet.exporting import NAMES
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.attributes import CallPlace
from turnline.worker.telemetry.metrics import Labelled, TurnMeters

DEPLOY = REPOSITORY / "ops" / "deploy"
ALERTS = (DEPLOY / "prometheus" / "alerts.yaml").read_text()
FOREIGN_LABELS = {"le", "instance", "worker"}


class _Named(NamedTuple):
    """A metric by its name in Prometheus."""

    name: str
    labels: set[str]
    is_histogram: bool


def metrics() -> list[_Named]:
    """All metrics, each with the labels it has, as its page shows them."""
    reader = PrometheusMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    made = TurnMeters(provider.get_meter(n.SCOPE), CallPlace("api.x.ai", 443))
    for meter in [*vars(made).values(), *vars(made.shards).values()]:
        if isinstance(meter, Labelled):
            meter(1, *("x" for _ in meter.names))
    found = [
        _Named(
            family.name + ("_total" if family.type == "counter" else ""),
            {label for sample in family.samples for label in sample.labels},
            family.type == "histogram",
        )
        for family in REGISTRY.collect()
        if family.name.startswith(("turnline_", "gen_ai_"))
    ]
    provider.shutdown()
    return [*found, *(_Named(name, set(), is_histogram=False) for name in NAMES)]


METRICS = metrics()


def series() -> dict[str, set[str]]:
    """Names of all series, each with the labels it has."""
    return {
        metric.name + ending: metric.labels
        for metric in METRICS
        for ending in (("_bucket", "_sum", "_count") if metric.is_histogram else ("",))
    }


def queries() -> list[str]:
    """Every query of the dashboard and the rules."""
    dashboard = json.loads((DEPLOY / "grafana" / "turnline.json").read_text())
    panels = [target["expr"] for p in dashboard["panels"] for target in p.get("targets", ())]
    variables = [
        one["query"]["query"] for one in dashboard["templating"]["list"] if one["type"] == "query"
    ]
    rules = re.findall(r"expr: (?:>-\n)?((?:.|\n)*?)\n        (?:for|labels):", ALERTS)
    return [*panels, *variables, *rules]


@pytest.mark.parametrize("query", queries())
def test_a_query_asks_for_what_there_is(query: str) -> None:
    """A renamed metric or label is noticed here, not on the wall."""
    known = series()

    asked = set(re.findall(r"\b(?:turnline|gen_ai)_\w+(?=[\[{)\s,]|$)", query))
    names = asked - {label for labels in known.values() for label in labels}
    labels = set(re.findall(r"(\w+)=~?\"", query))
    for group in re.findall(r"by \(([^)]*)\)", query):
        labels |= {label.strip() for label in group.split(",")}

    assert names, query
    assert names - set(known) == set()
    allowed = FOREIGN_LABELS.union(*(known[name] for name in names))
    assert labels - allowed == set()


def test_all_metrics_are_on_the_dashboard() -> None:
    """What is measured is shown somewhere."""
    text = (DEPLOY / "grafana" / "turnline.json").read_text()

    missing = [metric.name for metric in METRICS if metric.name not in text]
    assert missing == []


def test_each_alert_says_what_to_do() -> None:
    """A summary and an action, in the words of whoever is woken by it."""
    count = ALERTS.count("- alert:")

    assert count >= 13
    assert ALERTS.count("summary: ") == ALERTS.count("action: ") == count
