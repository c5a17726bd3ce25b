"""Tells the spans of turns to OpenTelemetry, under ids that everybody can work out."""

import logging
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from itertools import islice
from typing import Any, Final, NamedTuple, cast

from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Decision, Sampler
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, TraceState

from turnline.contracts.trace_context import Link, TurnTrace, child_id
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.spans import Attributes

log = logging.getLogger("turnline.telemetry")

_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_wanted: ContextVar[tuple[int, int] | None] = ContextVar("wanted", default=None)
"""Trace and span id of the span that is being started."""

Redactor = Callable[[str, Attributes], Attributes]
"""(span name, attributes) -> the attributes that may leave the process."""


class DerivedIds(IdGenerator):
    """Gives the spans of turns their derived ids, and leaves all others to another generator."""

    def __init__(self, others: IdGenerator) -> None:
        """Leave the ids of other spans to this one."""
        self._others = others

    def generate_trace_id(self) -> int:
        """Return the id of a new trace."""
        wanted = _wanted.get()
        return wanted[0] if wanted is not None else self._others.generate_trace_id()

    def generate_span_id(self) -> int:
        """Return the id of a new span."""
        wanted = _wanted.get()
        return wanted[1] if wanted is not None else self._others.generate_span_id()

    def is_trace_id_random(self) -> bool:
        """Whether trace ids are spread evenly: derived ones are hashes."""
        return _wanted.get() is not None or self._others.is_trace_id_random()


class OpenSpan:
    """A span that was started."""

    def __init__(
        self, told: otel.Span, name: str, attributes: Attributes, start_ns: int, at: TurnTrace
    ) -> None:
        """Hold what was started; see `Tracing.start`."""
        self.told: Final = told
        self.name: Final = name
        self.attributes: Final = attributes
        """What is known so far; it leaves with the end."""
        self.start_ns: Final = start_ns
        self.end_ns = start_ns
        self.at: Final = at
        """`span_id` is its own."""
        self._known = len(attributes)
        self._context: Context | None = None

    @property
    def context(self) -> Context:
        """That of spans below."""
        if self._context is None:
            self._context = otel.set_span_in_context(self.told, Context())
        return self._context

    def end(self, end_ns: int, error: str, redact: Redactor | None) -> None:
        """End it; `error` is the code of what went wrong."""
        self.end_ns = max(end_ns, self.start_ns)
        if error:
            self.attributes[n.ERROR_TYPE] = error
        if self.told.is_recording():
            if redact is not None:
                with otel.use_span(self.told, record_exception=False):
                    self.told.set_attributes(redacted(redact, self.name, self.attributes))
            elif len(self.attributes) > self._known:  # the others have been told
                self.told.set_attributes(dict(islice(self.attributes.items(), self._known, None)))
            if error:
                self.told.set_status(otel.StatusCode.ERROR, error)
        try:
            self.told.end(self.end_ns)
        except Exception as failed:  # noqa: BLE001  a processor's; the others still end
            log.warning("telemetry.processor_failed", extra={"error": type(failed).__name__})


class Tracing(NamedTuple):
    """A tracer, and what may leave through it."""

    tracer: otel.Tracer
    redact: Redactor | None = None

    def sampled(self, trace: TurnTrace) -> TurnTrace:
        """Return the place of a turn with the decision whether it is told.

        Its producer has decided, or else the sampler does, by what it is told of the root. All
        attempts ask in the same words, so those that go by ids decide alike.
        """
        sampler = getattr(self.tracer, "sampler", None)
        if trace.parent_id or not isinstance(sampler, Sampler):
            return trace
        if sampler is DEFAULT_ON and trace.sampled:  # as it is where nobody sets one
            return trace
        asked = sampler.should_sample(None, int(trace.trace_id, 16), n.TURN, SpanKind.INTERNAL)
        return trace._replace(sampled=asked.decision is Decision.RECORD_AND_SAMPLE)

    def start(
        self,
        name: str,
        at: TurnTrace,
        attributes: Attributes,
        start_ns: int,
        *,
        above: OpenSpan | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        links: Sequence[Link] = (),
    ) -> OpenSpan:
        """Start a span.

        Args:
            name: Its name.
            at: Where it belongs; `span_id` is its own, `parent_id` that of the one above.
            attributes: What is known of it by now.
            start_ns: Since the Unix epoch, by Redis' clock.
            above: The span above, if this process has it.
            kind: Its kind.
            links: Other spans that have to do with it.
        """
        if above is not None:
            context = above.context
        elif at.parent_id:
            context = otel.set_span_in_context(NonRecordingSpan(_remote(at)), Context())
        else:
            context = Context()
        allowed = redacted(self.redact, name, attributes)
        token = _wanted.set((int(at.trace_id, 16), int(at.span_id, 16)))
        try:
            told = self.tracer.start_span(
                name,
                context,
                kind,
                allowed,
                [otel.Link(place(*link, at.sampled)) for link in links],
                start_ns,
                record_exception=False,
                set_status_on_exception=False,
            )
        finally:
            _wanted.reset(token)
        return OpenSpan(told, name, attributes, start_ns, at)


def below(at: TurnTrace, which: int | str) -> TurnTrace:
    """Return the place of a span below another one; see `child_id`."""
    # In order, since `_replace` takes as long as the rest.
    return TurnTrace(at.trace_id, child_id(at, which), at.span_id, *at[3:])


def traceparent_of(span: otel.Span) -> str:
    """Return the W3C trace context of a span; '' if it has none."""
    at = span.get_span_context()
    flags = at.trace_flags & TraceFlags.SAMPLED
    return f"00-{at.trace_id:032x}-{at.span_id:016x}-{flags:02x}" if at.is_valid else ""


def derive_ids(tracer: otel.Tracer) -> None:
    """Have the spans of a tracer get derived ids, whatever its provider's generator is."""
    ids = getattr(tracer, "id_generator", None)
    if isinstance(ids, DerivedIds):
        return
    if isinstance(ids, IdGenerator):
        vars(tracer)["id_generator"] = DerivedIds(ids)
    elif not isinstance(tracer, otel.NoOpTracer):
        log.warning("telemetry.ids_not_derived", extra={"tracer": type(tracer).__name__})


def redacted(redact: Redactor | None, name: str, attributes: Attributes) -> Attributes:
    """Return what may leave; nothing, if the redactor fails."""
    if redact is None:
        return attributes
    try:
        allowed: Any = redact(name, attributes)
        if isinstance(allowed, dict):
            return cast("Attributes", allowed)
        kind = type(allowed).__name__
    except (Exception, SystemExit) as error:  # noqa: BLE001  foreign code
        kind = type(error).__name__
    log.warning("telemetry.redactor_failed", extra={"error": kind})
    return {}  # in doubt nothing leaves


def _remote(at: TurnTrace) -> SpanContext:
    return place(at.trace_id, at.parent_id, at.sampled, at.tracestate)


def place(trace_id: str, span_id: str, sampled: bool, state: str = "") -> SpanContext:  # noqa: FBT001
    """Return where a span of another process is, by the hexadecimal digits of its ids."""
    return SpanContext(
        int(trace_id, 16),
        int(span_id, 16),
        is_remote=True,
        trace_flags=_SAMPLED if sampled else TraceFlags.get_default(),
        trace_state=TraceState.from_header([state]) if state else None,
    )
