"""Sends spans and metrics to a collector over OTLP/HTTP.

Imported only where a collector is configured. Spans are encoded as they come, wait in a bounded
queue and are sent by a task in bounded time: a collector that is slow, down or hostile costs spans,
never turns. OpenTelemetry's own exporter would do, at four times the processor time for a span.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Mapping
from typing import Final, Protocol

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans

from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.encoding import add_span, metrics_request
from turnline.worker.telemetry.metrics import TurnMeters
from turnline.worker.telemetry.otlp_http import Answer
from turnline.worker.telemetry.spans import TurnSpans

log = logging.getLogger("turnline.telemetry")

_QUEUE: Final = 2_048
_BATCH: Final = 128
_EVERY_MS: Final = 1_000
_METRICS_EVERY_MS: Final = 15_000
_WARN_EVERY_S: Final = 60.0


class Sender(Protocol):
    """Sends a message to a collector, in bounded time; see `otlp_http`."""

    async def send(self, body: bytes) -> Answer:
        """Send a message; never fails."""
        ...

    def hurry(self) -> None:
        """Try nothing again from here on."""
        ...

    async def close(self) -> None:
        """Close the connection."""
        ...


_SAMPLER: Final = "parentbased_always_on"
_SAMPLERS: Final = frozenset(
    f"{of}{how}"
    for of in ("", "parentbased_")
    for how in ("always_on", "always_off", "traceidratio")
)
_MOST_NUMBER: Final = 86_400_000
"""As milliseconds, a day."""


class Sampler:
    """Decides once per trace, by its id alone, so that all workers decide alike.

    Source: https://opentelemetry.io/docs/specs/otel/trace/sdk/#traceidratiobased
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Read `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`."""
        name = environ.get("OTEL_TRACES_SAMPLER", "").strip().lower() or _SAMPLER
        if name not in _SAMPLERS:
            log.warning("telemetry.sampler_ignored", extra={"uses": _SAMPLER})
            name = _SAMPLER
        self._heeds_parent = name.startswith("parentbased")
        ratio = 0.0 if name.endswith("always_off") else 1.0
        if name.endswith("traceidratio"):
            ratio = _ratio(environ.get("OTEL_TRACES_SAMPLER_ARG") or "1")
        self._bound = int(ratio * (1 << 64))

    def samples(self, turn: TurnSpans) -> bool:
        """Whether a trace is exported: as its producer decided, or else by its id."""
        if self._heeds_parent and not turn.sampled:
            return False
        if self._heeds_parent and turn.has_parent:
            return True
        return int(turn.trace_id[16:], 16) < self._bound


class _Batch:
    """Spans that are sent together."""

    def __init__(self, resource: Resource) -> None:
        self.request = ExportTraceServiceRequest()
        self.scope: ScopeSpans = self.request.resource_spans.add(
            resource=resource
        ).scope_spans.add()
        self.scope.scope.name = n.SCOPE

    def __len__(self) -> int:
        return len(self.scope.spans)


class OtlpSpans:
    """A sink that sends to a collector."""

    def __init__(
        self, environ: Mapping[str, str], resource: Resource, meters: TurnMeters, sender: Sender
    ) -> None:
        """Prepare; `open` begins to send.

        Args:
            environ: The standard `OTEL_*` variables.
            resource: Sent with every batch.
            meters: Told what was sent and what was not.
            sender: Sends.
        """
        self._resource = resource
        self._meters = meters
        self._sender = sender
        self._sampler = Sampler(environ)
        self._most = _whole(environ, "OTEL_BSP_MAX_QUEUE_SIZE", _QUEUE)
        batch = _whole(environ, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", _BATCH)
        self._batch = min(batch, self._most)
        self._every_s = _whole(environ, "OTEL_BSP_SCHEDULE_DELAY", _EVERY_MS) / 1000
        self._full: deque[_Batch] = deque()
        self._filling: _Batch | None = None
        self._waiting = 0
        """Spans not yet sent, those on their way included."""
        self._wake = asyncio.Event()
        self._closing = False
        self._warned_at_s = -_WARN_EVERY_S
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to send, in the running loop."""
        self._task = asyncio.create_task(self._run())

    def export(self, turn: TurnSpans) -> None:
        """Queue the spans of one attempt."""
        if not self._sampler.samples(turn):
            return
        count = len(turn.spans)
        if self._closing or self._waiting + count > self._most:
            self._meters.spans_dropped.add(count, "otlp")
            return
        if self._filling is None:
            self._filling = _Batch(self._resource)
        before = len(self._filling)
        try:
            for span in turn.spans:
                add_span(self._filling.scope, span, turn.tracestate)
        finally:
            self._waiting += len(self._filling) - before
        if len(self._filling) >= self._batch:
            self._end_batch()
            self._wake.set()

    async def close(self) -> None:
        """Send what waits, until the collector fails to take something; may be cancelled."""
        self._closing = True
        self._sender.hurry()
        self._wake.set()
        try:
            if self._task is not None:
                await self._task
        finally:
            self._meters.spans_dropped.add(self._waiting, "otlp")
            self._waiting = 0
            await self._sender.close()

    async def _run(self) -> None:
        while not self._closing:
            try:
                async with asyncio.timeout(self._every_s):
                    await self._wake.wait()
                self._wake.clear()
            except TimeoutError:
                self._end_batch()  # it has waited for long enough
            await self._send_batches()
        self._end_batch()
        await self._send_batches()

    def _end_batch(self) -> None:
        if self._filling is not None:
            self._full.append(self._filling)
            self._filling = None

    async def _send_batches(self) -> None:
        while self._full:
            batch = self._full.popleft()
            answer = await self._sender.send(batch.request.SerializeToString())
            self._waiting -= len(batch)
            self._count(len(batch), answer)
            if answer.problem and self._closing:
                return

    def _count(self, spans: int, answer: Answer) -> None:
        lost = spans if answer.problem else min(spans, _rejected(answer.body))
        if spans > lost:
            self._meters.spans_sent.add(spans - lost, "otlp")
        if not lost:
            return
        self._meters.spans_dropped.add(lost, "otlp")
        if time.monotonic() - self._warned_at_s >= _WARN_EVERY_S:
            self._warned_at_s = time.monotonic()
            problem = answer.problem or "rejected"
            log.warning("telemetry.export_failed", extra={"spans": lost, "problem": problem})


class OtlpMetrics:
    """Sends all metrics to a collector, every now and then and at the end."""

    def __init__(
        self, environ: Mapping[str, str], resource: Resource, meters: TurnMeters, sender: Sender
    ) -> None:
        """Prepare; see `OtlpSpans`."""
        self._resource = resource
        self._meters = meters
        self._sender = sender
        self._began_ns = time.time_ns()
        every_ms = _whole(environ, "OTEL_METRIC_EXPORT_INTERVAL", _METRICS_EVERY_MS)
        self._every_s = every_ms / 1000
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to send, in the running loop."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Send a last time; may be cancelled."""
        self._closing.set()
        self._sender.hurry()
        try:
            if self._task is not None:
                await self._task
        finally:
            await self._sender.close()

    async def _run(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._closing.wait()
            request = metrics_request(
                self._meters, self._resource, began_ns=self._began_ns, now_ns=time.time_ns()
            )
            await self._sender.send(request.SerializeToString())


def _rejected(body: bytes) -> int:
    """Return how many spans a collector did not take of a batch that it took."""
    try:
        answer = ExportTraceServiceResponse.FromString(body)
    except Exception:  # noqa: BLE001  it speaks another language, which is none of our business
        return 0
    return max(0, int(answer.partial_success.rejected_spans))


def _ratio(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (ratio := float(text)) <= 1:
            return ratio
    log.warning("telemetry.sampler_ignored", extra={"uses": 1.0})
    return 1.0


def _whole(environ: Mapping[str, str], name: str, default: int) -> int:
    with contextlib.suppress(ValueError):
        if 1 <= (number := int(environ.get(name, "").strip() or default)) <= _MOST_NUMBER:
            return number
    log.warning("telemetry.number_ignored", extra={"variable": name, "uses": default})
    return default
