"""Keeps spans of turns for `turnline trace`: a span processor, and where it hands them on.

What instrumented libraries do inside a tool or a model call is kept with it.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Final, NamedTuple, Protocol

import msgspec
from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace import Span as StartedSpan
from opentelemetry.trace import SpanContext, SpanKind

from turnline.contracts.trace_context import Link, TurnTrace
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.spans import Attributes, Kind, Span, SpanEvent, TurnSpans
from turnline.worker.telemetry.tracing import Redactor, redacted

_TRACES: Final = 4_096
"""Traces that may be under way; what comes on top pushes out the oldest."""
_FOREIGN: Final = 256
"""Spans of other libraries that are kept of a trace, between two attempts' ends."""
_KINDS: Final[Mapping[SpanKind, Kind]] = {
    SpanKind.INTERNAL: "internal",
    SpanKind.SERVER: "internal",
    SpanKind.PRODUCER: "producer",
    SpanKind.CONSUMER: "consumer",
    SpanKind.CLIENT: "client",
}
_encode = msgspec.json.Encoder(enc_hook=repr).encode


class TraceStore(Protocol):
    """Keeps traces where `turnline trace` finds them; see `turnline.worker.store.traces`."""

    def keep(self, turn: TurnSpans, data: bytes) -> None:
        """Keep the spans of one attempt, and their JSON."""
        ...

    async def close(self) -> None:
        """Write what waits, for a bounded time."""
        ...


class _Trace:
    """What has ended of a trace and was not taken yet."""

    def __init__(self) -> None:
        self.ended: list[Span] = []
        self.open = 0
        """Spans of turns that have not ended."""


class EndedSpans(SpanProcessor):
    """Notes the spans of turns that have ended, and what other libraries did below them."""

    def __init__(self) -> None:
        """Begin with none."""
        self._traces: OrderedDict[int, _Trace] = OrderedDict()

    def on_start(self, span: StartedSpan, parent_context: Context | None = None) -> None:  # noqa: ARG002  the SDK's
        """See `opentelemetry.sdk.trace.SpanProcessor`."""
        if not _is_ours(span):
            return
        trace_id = _place(span).trace_id
        found = self._traces.get(trace_id)
        if found is None:
            found = self._traces[trace_id] = _Trace()
            if len(self._traces) > _TRACES:
                self._traces.popitem(last=False)
        found.open += 1

    def on_end(self, span: ReadableSpan) -> None:
        """See `opentelemetry.sdk.trace.SpanProcessor`."""
        found = self._traces.get(_place(span).trace_id)
        if found is None:
            return
        is_ours = _is_ours(span)
        found.open -= is_ours
        if is_ours or len(found.ended) < _FOREIGN:
            found.ended.append(value_of(span))

    def take(self, trace_id: str, top: str) -> list[Span]:
        """Return what has ended of a trace: a span, and what is below."""
        trace = self._traces.get(int(trace_id, 16))
        if trace is None:
            return []
        above, found = {top}, list[Span]()
        while taken := [it for it in trace.ended if it.span_id in above or it.parent_id in above]:
            above.update(it.span_id for it in taken)
            found += taken
            trace.ended = [it for it in trace.ended if it.span_id not in above]
        if not trace.open and not trace.ended:  # else another turn is in the same trace
            del self._traces[int(trace_id, 16)]
        return found

    def below(self, open_spans: Sequence[Span]) -> list[Span]:
        """Return what has ended directly below these spans, which have not; it stays here."""
        above = {it.span_id for it in open_spans}
        traces = {int(it.trace_id, 16) for it in open_spans} & self._traces.keys()
        ended = (copy(it) for trace_id in traces for it in self._traces[trace_id].ended)
        return [it for it in ended if it.parent_id in above]


class SpanKeeper(NamedTuple):
    """Hands the spans of one shard's turns to its store."""

    ended: EndedSpans
    store: TraceStore
    redact: Redactor | None = None
    """Also sees what tools added to their spans, and spans of other libraries."""

    def keep(self, turn: TurnSpans, trace: TurnTrace) -> None:
        """Keep what was recorded of an attempt that has just ended."""
        turn.spans.extend(self.ended.take(trace.trace_id, trace.span_id))
        if trace.waited_in is not None:
            turn.spans.extend(self.ended.take(*trace.waited_in))
        self._keep(turn)

    def show(self, turn: TurnSpans, spans: Sequence[otel.Span], now_ns: int) -> None:
        """Keep spans of an attempt that has not ended, as if they ended now."""
        open_spans = [value_of(it, now_ns) for it in spans if isinstance(it, ReadableSpan)]
        turn.spans.extend([*open_spans, *self.ended.below(open_spans)])
        self._keep(turn)

    def _keep(self, turn: TurnSpans) -> None:
        for span in turn.spans:
            if span.trace_id == turn.trace_id:
                span.trace_id = ""
            span.attributes = redacted(self.redact, span.name, span.attributes)
        if turn.spans:
            self.store.keep(turn, _encode(turn))


def _is_ours(span: ReadableSpan) -> bool:
    scope = span.instrumentation_scope
    return scope is not None and scope.name == n.SCOPE


def _place(span: ReadableSpan) -> SpanContext:
    found = span.get_span_context()
    assert found is not None  # it has been started
    return found


def _link(link: otel.Link) -> Link:
    return Link(f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}")


def _event(event: Event) -> SpanEvent:
    return SpanEvent(
        name=event.name, at_ns=event.timestamp, attributes=dict(event.attributes or {})
    )


def value_of(span: ReadableSpan, now_ns: int = 0) -> Span:
    """Return a span as a value; one that has not ended, as if it ended now."""
    at, parent, start_ns = _place(span), span.parent, span.start_time or 0
    told: Any = (
        span.attributes or {}
    )  # a proxy, whose own `copy` takes a sixth of the time of `dict`
    attributes: Attributes = told.copy()
    links, events = span.links, span.events  # made anew with each look
    return Span(
        name=span.name,
        span_id=f"{at.span_id:016x}",
        parent_id="" if parent is None else f"{parent.span_id:016x}",
        trace_id=f"{at.trace_id:032x}",
        kind=_KINDS[span.kind],
        start_ns=start_ns,
        end_ns=span.end_time or max(start_ns, now_ns),
        attributes=attributes,
        error="" if span.status.is_ok else str(attributes.get(n.ERROR_TYPE, "error")),
        links=tuple(map(_link, links)) if links else (),
        events=tuple(map(_event, events)) if events else (),
    )
