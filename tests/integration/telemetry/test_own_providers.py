"""A program that has set OpenTelemetry up and runs a worker within itself."""

import asyncio
import json
import os
import subprocess
import sys

import pytest

from tests.support.recordings import REPOSITORY
from turnline.ops.simulator import Simulator

TURNS = 200
PROGRAM = '''
import asyncio, json, os, sys
from collections import Counter

from opentelemetry import _logs, metrics, trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler


class Asked(Sampler):
    """Notes what it is asked about, and says yes."""

    names = Counter()
    attributes = set()

    def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None, links=None):
        self.names[name] += 1
        self.attributes |= set(attributes or ())
        return ALWAYS_ON.should_sample(parent_context, trace_id, name, kind, attributes, links)

    def get_description(self):
        return "asked"


class Seen(SpanProcessor):
    """Counts what begins and ends."""

    begun, ended = Counter(), Counter()

    def on_start(self, span, parent_context=None):
        self.begun[span.name] += 1

    def on_end(self, span):
        self.ended[span.name] += 1


exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
provider = TracerProvider(sampler=Asked())
provider.add_span_processor(Seen())
provider.add_span_processor(BatchSpanProcessor(exporter))
trace.set_tracer_provider(provider)
metrics.set_meter_provider(MeterProvider([reader]))
logged, logs = InMemoryLogRecordExporter(), LoggerProvider()
logs.add_log_record_processor(SimpleLogRecordProcessor(logged))
_logs.set_logger_provider(logs)

from turnline.contracts import TurnClient, UserMessage
from turnline.contracts.trace_context import TurnTrace, child_id
from turnline.worker.main import make_fleet
from turnline.worker.settings import from_env


async def main():
    turns = int(sys.argv[1])
    fleet = make_fleet(from_env(os.environ))
    serving = asyncio.create_task(fleet.run())
    async with TurnClient.connect(os.environ["TURNLINE_REDIS_URL"]) as client:
        receipts = [
            await client.submit(UserMessage(conversation_id=f"c{n % 20}", text="Hi"))
            for n in range(turns)
        ]
        for receipt in receipts:
            await client.result(receipt, timeout_s=60)
        await client.result(await client.feedback(receipts[0], 1), timeout_s=60)
    fleet.stop()
    await serving
    provider.force_flush()
    spans = exporter.get_finished_spans()
    ids = {f"{s.context.trace_id:032x}/{s.context.span_id:016x}" for s in spans}
    tracing = provider.get_tracer("mine").start_span("mine").get_span_context().is_valid
    names = [
        metric.name
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    ]
    traces = {f"{s.context.trace_id:032x}" for s in spans} & {r.trace_id for r in receipts}
    attempts = {s.context.span_id for s in spans if s.name == "process turnline"}
    roots = [s for s in spans if s.name == "turn"]
    expected = {
        int(child_id(TurnTrace(f"{s.context.trace_id:032x}", f"{s.context.span_id:016x}"), 1), 16)
        for s in roots
    }
    logs.get_logger("mine").emit(event_name="mine")
    *events, mine = [it.log_record for it in logged.get_finished_logs()]
    print(json.dumps({
        "events": [[it.event_name, f"{it.trace_id:032x}"] for it in events],
        "rated": receipts[0].trace_id, "still_logs": mine.event_name == "mine",
        "names": Counter(s.name for s in spans), "once": len(ids) == len(spans),
        "begun": Seen.begun, "ended": Seen.ended, "asked": Asked.names,
        "attributes": sorted(Asked.attributes), "traces": len(traces), "metrics": names,
        "derived": attempts == expected, "still_open": tracing,
    }))


asyncio.run(main())
'''


@pytest.mark.parametrize("store", ["1000", "0"])
async def test_every_span_passes_through_what_the_program_has_set_up(
    redis_url: str, sim: Simulator, store: str
) -> None:
    """Its sampler, processors and exporter, once each, under derived ids; its metrics, too."""
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith("TURNLINE_")},
        "TURNLINE_REDIS_URL": redis_url,
        "TURNLINE_BASE_URL": sim.base_url,
        "TURNLINE_TRACE_STORE": store,
        "XAI_API_KEY": "xai-test",
    }
    run = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, str(TURNS)),
        cwd=REPOSITORY,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    said, failed = await run.communicate()

    assert run.returncode == 0, failed.decode()
    found = json.loads(said.splitlines()[-1])
    each = dict.fromkeys(
        ("turn", "wait", "process turnline", "rebuild_context", "commit"), TURNS + 1
    )
    each["chat grok-4.3"] = TURNS  # the rating runs no model
    assert found["names"] == each
    assert found["once"]
    assert {k: v for k, v in found["begun"].items() if k != "mine"} == found["ended"] == each
    assert {name: found["asked"][name] for name in each} == {**each, "turn": 2 * (TURNS + 1)}
    assert {"gen_ai.conversation.id", "gen_ai.request.model"} <= set(found["attributes"])
    assert found["traces"] == TURNS
    assert found["derived"]
    assert found["still_open"], "the program's provider is the program's to close"
    assert "gen_ai.client.operation.duration" in found["metrics"]
    assert found["events"] == [["gen_ai.evaluation.result", found["rated"]]]
    assert found["still_logs"]
