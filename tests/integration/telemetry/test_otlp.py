"""Spans and metrics at a collector, and what a bad collector cannot do."""

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.integration.telemetry.collector import Behaviour, Collector
from tests.support.processes import WorkerProcess, worker_process
from tests.support.wait import wait_until
from turnline.contracts import TurnClient, TurnCompleted, UserMessage
from turnline.ops.simulator import Simulator
from turnline.worker.ending import CLOSE_S as ENDING_S
from turnline.worker.telemetry import names as n

GONE_S = 1.0 + ENDING_S
"""Time for turns to end, and for all the rest."""


@contextmanager
def sending(
    redis_url: str, sim: Simulator, collector: Collector, **environ: str
) -> Iterator[WorkerProcess]:
    """A worker process that sends what it records; told to end, it has to be gone in time."""
    given = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with worker_process(redis_url, sim.base_url, wire="chat", drain_s="1", **given | environ) as it:
        yield it
        it.signal(signal.SIGTERM)
        it.gone_within(GONE_S + 1.5)
        assert it.process.returncode == 0, it.says()[-2000:]


def attributes(span: object) -> dict[str, object]:
    found = {}
    for pair in span.attributes:  # type: ignore[attr-defined]
        kind = pair.value.WhichOneof("value")
        found[pair.key] = getattr(pair.value, kind)
    return found


async def test_a_turn_arrives_as_it_was(redis_url: str, sim: Simulator, client: TurnClient) -> None:
    """Ids, parents, kinds, links, status, attributes and resource, over the wire."""
    named = {
        "OTEL_SERVICE_NAME": "support-bot",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
    }
    with Collector() as collector:
        parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        sim.inject("status=503")
        with sending(redis_url, sim, collector, **named):
            message = UserMessage(
                conversation_id="c", text="Hi", traceparent=parent, tracestate="vendor=1"
            )
            receipt = await client.submit(message)
            result = await client.result(receipt, timeout_s=20)
            assert isinstance(result, TurnCompleted)
        spans = collector.spans
        metrics = collector.metrics
        resources = collector.resources

    assert {span.trace_id.hex() for span in spans} == {receipt.trace_id}
    assert len({span.span_id for span in spans}) == len(spans)
    (turn,) = [span for span in spans if span.name == "turn"]
    assert turn.parent_span_id.hex() == "00f067aa0ba902b7"
    assert turn.trace_state == "vendor=1"
    processes = [span for span in spans if span.name == "process turnline"]
    assert [span.kind for span in processes] == [5, 5]
    assert {span.parent_span_id for span in processes} == {turn.span_id}
    assert [link.span_id.hex() for span in processes for link in span.links] == [
        "00f067aa0ba902b7"
    ] * 2
    (event,) = [event for span in processes for event in span.events]
    assert event.name == n.RETRY_EVENT
    failed, fine = sorted(
        (span for span in spans if span.name == "chat grok-4.3"),
        key=lambda span: span.start_time_unix_nano,
    )
    assert [span.kind for span in (failed, fine)] == [3, 3]
    assert failed.status.code == 2
    assert fine.status.code == turn.status.code == 0
    assert attributes(fine)[n.USAGE_INPUT_TOKENS] == result.usage.prompt_tokens
    assert resources[0]["service.name"] == "support-bot"
    assert resources[0]["deployment.environment.name"] == "test"
    assert resources[0]["service.instance.id"]
    tokens = metrics[n.M_TOKENS].sum
    assert tokens.is_monotonic
    assert sum(point.as_double or point.as_int for point in tokens.data_points) > 0
    assert metrics[n.M_TURN_DURATION].histogram.data_points[0].count == 1
    assert n.M_RETRIES in metrics


@pytest.mark.parametrize("behaviour", ["refuses", "hangs", "fails", "babbles"])
async def test_a_bad_collector_delays_neither_turns_nor_the_exit(
    redis_url: str, sim: Simulator, client: TurnClient, behaviour: Behaviour
) -> None:
    """Turns are answered meanwhile, and the worker ends within its grace period."""
    with (
        Collector(behaviour) as collector,
        sending(redis_url, sim, collector, OTEL_BSP_SCHEDULE_DELAY="20"),
    ):
        await client.ask("c", "Hello", timeout_s=20)
        for number in range(30):
            began_s = time.monotonic()
            await client.ask(f"c{number}", "Hello", timeout_s=5)
            assert time.monotonic() - began_s < 2


async def test_an_idle_worker_makes_no_spans(redis_url: str, sim: Simulator) -> None:
    """It polls, beats and samples; none of that is a trace, and the collector hears nothing."""
    idle = {"poll_s": "0.05", "lease_s": "0.4", "heartbeat_s": "0.1"}
    with Collector() as collector:
        traces = {"OTEL_METRICS_EXPORTER": "none"}
        with sending(redis_url, sim, collector, **traces, **idle) as worker:
            await wait_until(lambda: "worker.started" in worker.says(), "it serves", 20)
            await asyncio.sleep(1)  # what is asserted is that nothing happens
        assert collector.requests == []
        assert collector.connections == 0


@pytest.mark.parametrize(
    ("environ", "heard"),
    [
        ({"OTEL_TRACES_SAMPLER": "always_off"}, False),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}, False),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1"}, True),
        (
            {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"},
            False,
        ),
        ({"OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
    ],
)
async def test_the_standard_variables_are_heeded(
    redis_url: str, sim: Simulator, client: TurnClient, environ: dict[str, str], heard: bool
) -> None:
    """Sampling, and switching off; what is not told is not kept in Redis either."""
    with Collector() as collector:
        with sending(redis_url, sim, collector, **environ):
            await client.ask("c", "Hello", timeout_s=20)
        assert bool(collector.spans) == heard


@pytest.mark.parametrize(("flags", "heard"), [("00", False), ("01", True)])
async def test_the_producer_decides_on_sampling(
    redis_url: str, sim: Simulator, client: TurnClient, flags: str, heard: bool
) -> None:
    """What its flags say holds for the whole turn."""
    parent = f"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}"
    with Collector() as collector:
        with sending(redis_url, sim, collector):
            message = UserMessage(conversation_id="c", text="Hello", traceparent=parent)
            await client.result(await client.submit(message), timeout_s=20)
        assert bool(collector.spans) == heard


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_TRACES_EXPORTER", "nobodys"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon"),
    ],
)
async def test_what_cannot_be_set_up_is_refused(
    redis_url: str, sim: Simulator, name: str, value: str
) -> None:
    """Before the worker serves, in a sentence that says how to go on without."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", name: value}
    with worker_process(redis_url, sim.base_url, **environ) as worker:
        await wait_until(lambda: worker.process.poll() is not None, "it has ended", 20)
        assert worker.process.returncode == 2
        assert "OTEL_SDK_DISABLED=true" in worker.says()
