"""Meters, and how Prometheus reads them."""

from turnline.worker.telemetry.metrics import Meter, TurnMeters, prometheus_name, prometheus_text


def test_a_counter_grows_by_labels() -> None:
    """Each set of labels by itself."""
    meter = Meter("counter", "a.b", "{thing}", "Things.", "kind")
    meter.add(1, "x")
    meter.add(2, "x")
    meter.add(5, "y")

    assert meter.numbers == {("x",): 3, ("y",): 5}


def test_a_histogram_counts_below_its_bounds() -> None:
    """A bound belongs to its own bucket; what is larger than all falls into the last."""
    meter = Meter("histogram", "a.b", "s", "Times.", bounds=(1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        meter.record(value)

    assert meter.buckets == {(): ([2, 1, 1], [12.0])}


def test_labels_are_bounded() -> None:
    """Words that somebody else chooses, such as models, cannot grow a metric without end."""
    meter = Meter("counter", "a.b", "{thing}", "Things.", "model")
    for number in range(1_000):
        meter.add(1, f"model-{number}")

    assert len(meter.numbers) == 201
    assert meter.numbers[("other",)] == 800


def test_prometheus_reads_all_kinds() -> None:
    """Names with units, cumulative buckets, escaped labels; empty labels are left out."""
    meters = TurnMeters()
    meters.calls.add(2, 'gr"ok\n', "completed")
    meters.call_duration.record(0.015, "grok", "")
    meters.shards.depth.set(3, "s0")

    text = prometheus_text(meters)

    assert (
        'turnline_llm_calls_total{gen_ai_request_model="gr\\"ok\\n",status="completed"} 2\n' in text
    )
    name = "gen_ai_client_operation_duration_seconds"
    assert f"# TYPE {name} histogram\n" in text
    assert f'{name}_bucket{{gen_ai_request_model="grok",le="0.01"}} 0\n' in text
    assert f'{name}_bucket{{gen_ai_request_model="grok",le="0.02"}} 1\n' in text
    assert f'{name}_bucket{{gen_ai_request_model="grok",le="+Inf"}} 1\n' in text
    assert f'{name}_count{{gen_ai_request_model="grok"}} 1\n' in text
    assert 'turnline_queue_depth{shard="s0"} 3\n' in text


def test_names_are_unique_and_labels_are_few() -> None:
    """No metric is labelled with anything that grows with conversations."""
    meters = list(TurnMeters())

    assert len({prometheus_name(meter) for meter in meters}) == len(meters)
    for meter in meters:
        assert not [word for word in meter.labels if "id" in word.split(".")], meter.name
        assert len(meter.labels) <= 2
