"""A worker moved by hand whose spans are kept for looking at, also as OpenTelemetry has them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler

from tests.integration.tools.bench import toolbox_of
from tests.support.driving import SHARD, Hand, hand
from turnline.contracts.trace_context import Link
from turnline.ops.simulator import Simulator
from turnline.worker.outcome import Outcome
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.attributes import CallPlace
from turnline.worker.telemetry.evaluations import EvaluationLog
from turnline.worker.telemetry.kept_spans import EndedSpans, SpanKeeper
from turnline.worker.telemetry.metrics import TurnMeters
from turnline.worker.telemetry.recording import Recording
from turnline.worker.telemetry.spans import Span, TurnSpans
from turnline.worker.telemetry.tracing import Redactor, Tracing, derive_ids
from turnline.worker.tools import Tool
from turnline.worker.turn.plan import Planner


class KeptSpans:
    """A store of traces, and questions about what it got."""

    def __init__(self) -> None:
        self.turns: list[TurnSpans] = []

    def keep(self, turn: TurnSpans, data: bytes) -> None:
        for span in turn.spans:
            span.trace_id = span.trace_id or turn.trace_id
        self.turns.append(turn)

    async def close(self) -> None:
        pass

    @property
    def spans(self) -> list[Span]:
        return [span for turn in self.turns for span in turn.spans]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Span:
        (span,) = self.named(name)
        return span

    def tree(self, trace_id: str) -> list[Any]:
        """Names of a trace's spans, each with those below it, by their beginning."""
        spans = {span.span_id: span for span in self.spans if span.trace_id == trace_id}
        below: dict[str, list[Span]] = {}
        for span in sorted(spans.values(), key=lambda span: (span.start_ns, span.end_ns)):
            parent = span.parent_id if span.parent_id in spans else ""
            below.setdefault(parent, []).append(span)

        def shown(parent: str) -> list[Any]:
            return [(span.name, *shown(span.span_id)) for span in below.get(parent, [])]

        return shown("")


class WatchedHand(Hand):
    """A `Hand` with telemetry, on the connection of another one."""

    def __init__(
        self,
        worker: Hand,
        kept: KeptSpans,
        *,
        sampler: Sampler | None = None,
        redact: Redactor | None = None,
        **more: Any,
    ) -> None:
        super().__init__(worker.pipelines, worker.services)
        self.kept = kept
        self.ended = EndedSpans()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(self.ended)
        self.exported = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exported))
        tracer = self.provider.get_tracer(n.SCOPE)
        derive_ids(tracer)
        self.metrics = InMemoryMetricReader()
        meter = MeterProvider([self.metrics], shutdown_on_exit=False).get_meter(n.SCOPE)
        self.logged = InMemoryLogRecordExporter()
        logs = LoggerProvider(shutdown_on_exit=False)
        logs.add_log_record_processor(SimpleLogRecordProcessor(self.logged))
        capture = more.get("capture", False)
        place = CallPlace("127.0.0.1", 443)
        self.observer = Recording(
            worker=self.settings.worker_name,
            place=place,
            tracing=Tracing(tracer, redact),
            meters=TurnMeters(meter, place),
            queue=SHARD.queue,
            keeper=SpanKeeper(self.ended, kept, redact),
            evaluations=EvaluationLog(logs.get_logger(n.SCOPE), redact, capture),
            **more,
        )

    def measured(self, name: str) -> dict[str, Any]:
        """Return the points of a metric by the values of their labels."""
        data = self.metrics.get_metrics_data()
        points = [
            point
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]
        return {" ".join(map(str, (point.attributes or {}).values())): point for point in points}

    def use_tools(self, *tools: Tool[Any, Any]) -> None:
        """Have these tools from here on."""
        self.planner = Planner(toolbox_of(*tools))

    async def run_one(self, store: Any = None) -> Outcome:
        """Claim the first due conversation, run it, and give it up as the queue does."""
        return await self.run_lease(await self.must_claim(), store)


@asynccontextmanager
async def watched(
    redis_url: str, sim: Simulator, kept: KeptSpans, **more: Any
) -> AsyncIterator[WatchedHand]:
    """Open a worker moved by hand, with telemetry."""
    async with hand(redis_url, sim) as worker:
        yield WatchedHand(worker, kept, **more)


def assert_whole(kept: KeptSpans) -> None:
    """Fail unless every span names its turn, and hangs below one that is there and spans it."""
    known = {(span.trace_id, span.span_id): span for span in kept.spans}
    assert len(known) == len(kept.spans), "span ids are used twice"
    for span in kept.spans:
        assert span.attributes[n.CONVERSATION_ID], span.name
        assert span.attributes[n.TURN_ID], span.name
        assert span.start_ns <= span.end_ns, span.name
        assert len(span.trace_id) == 32, span.name
        if span.parent_id:
            is_remote = span.name in {n.TURN, n.WAIT}
            above = known.get((span.trace_id, span.parent_id))
            assert is_remote or above is not None, span.name
            if above is not None:
                assert above.start_ns <= span.start_ns, span.name
                assert is_remote or above.end_ns >= span.end_ns, span.name
        assert all(isinstance(link, Link) for link in span.links)
        if span.error:
            assert span.attributes[n.ERROR_TYPE], span.name
