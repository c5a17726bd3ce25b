"""W3C trace context: what travels with a message, and where the spans of its turn belong.

Everything here follows from the message alone, so that all workers agree without talking.

Source: https://www.w3.org/TR/trace-context/, docs/adr/0007-one-trace-per-turn.md
"""

import hashlib
import os
import re
from types import ModuleType
from typing import NamedTuple

try:
    from opentelemetry import baggage as _baggage
    from opentelemetry import trace as _trace
    from opentelemetry.baggage.propagation import W3CBaggagePropagator
except ImportError:  # OpenTelemetry is optional for producers; other parts of it make the package
    otel: ModuleType | None = None

    def _put_baggage(carrier: dict[str, str]) -> None:
        """Put nothing in."""
else:
    otel = _trace

    def _put_baggage(carrier: dict[str, str]) -> None:
        """Put the active baggage in."""
        if _baggage.get_all():
            W3CBaggagePropagator().inject(carrier)


_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
BAGGAGE_MAX_CHARS = 8_192
"""As W3C has it."""
LATE_MS = 600_000
"""A turn that waited for longer is a trace of its own, linked to the one it came from."""


class TraceContext(NamedTuple):
    """What travels in a message."""

    traceparent: str
    tracestate: str | None


class Link(NamedTuple):
    """A span elsewhere that has to do with this one."""

    trace_id: str
    span_id: str


class TurnTrace(NamedTuple):
    """Where the spans of a turn belong."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """Of the turn's own span, 16 hexadecimal digits."""
    parent_id: str = ""
    """The producer's span; empty: the turn is the root of its trace."""
    sampled: bool = True
    tracestate: str = ""
    sent: Link | None = None
    """The producer's span, where there was one."""
    waited_in: Link | None = None
    """The span that stands for the wait in the producer's trace, if this trace is another one."""


def current(conversation_id: str = "", turn_id: str = "") -> TraceContext:
    """Return the active span's context; if there is none, a new one, sampled, of this turn's own.

    The span id of a new one is that of the turn's span, which thereby is the root of its trace.
    """
    if otel is not None:
        context = otel.get_current_span().get_span_context()
        if context.is_valid:
            flags = "01" if context.trace_flags.sampled else "00"
            return TraceContext(
                f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags}",
                context.trace_state.to_header() or None,
            )
    trace_id = os.urandom(16).hex()
    return TraceContext(f"00-{trace_id}-{_own_id(trace_id, conversation_id, turn_id)}-01", None)


def current_baggage() -> str | None:
    """Return the active baggage as W3C's header, None if there is none or it is too long."""
    carrier: dict[str, str] = {}
    _put_baggage(carrier)
    header = carrier.get("baggage", "")
    return header if 0 < len(header) <= BAGGAGE_MAX_CHARS else None


def trace_id_of(traceparent: str | None) -> str:
    """Return the 32 hexadecimal digits of the trace id, '' if there is none or it is malformed."""
    match = _TRACEPARENT.fullmatch(traceparent or "")
    return match[1] if match else ""


def turn_trace(
    conversation_id: str,
    turn_id: str,
    context: TraceContext | None,
    *,
    entry_id: str,
    waited_ms: int,
) -> TurnTrace:
    """Return where the spans of a turn belong.

    Args:
        conversation_id: Whose turn.
        turn_id: Of the message that carries the reply.
        context: As the message has it; without a valid one a trace is derived from the rest.
        entry_id: Of the message in the inbox; makes a derived trace unique.
        waited_ms: From acceptance to the beginning of the first attempt.
    """
    match = _TRACEPARENT.fullmatch(context.traceparent) if context is not None else None
    if context is None or match is None:
        trace_id = _hash(16, conversation_id, turn_id, entry_id)
        here = TurnTrace(trace_id, _own_id(trace_id, conversation_id, turn_id))
    else:
        trace_id, sent_id = match[1], match[2]
        own_id = _own_id(trace_id, conversation_id, turn_id)
        is_root = sent_id == own_id
        here = TurnTrace(
            trace_id,
            own_id,
            parent_id="" if is_root else sent_id,
            sampled=bool(int(match[3], 16) & 1),
            tracestate=context.tracestate or "",
            sent=None if is_root else Link(trace_id, sent_id),
        )
    if waited_ms <= LATE_MS:
        return here
    trace_id = _hash(16, here.trace_id, here.span_id, "late")
    return here._replace(
        trace_id=trace_id,
        span_id=_own_id(trace_id, conversation_id, turn_id),
        parent_id="",
        waited_in=Link(here.trace_id, here.span_id),
    )


def child_id(above: TurnTrace, which: int | str) -> str:
    """Return the id of a span below the turn's or an attempt's, the same for whoever tells it.

    Args:
        above: `span_id` is that of the span above.
        which: Number of an attempt or, below that, of a model call; id of a tool call; name of
            what there is only once; 0: the agent.
    """
    return _hash(8, above.trace_id, above.span_id, str(which))


def root_of(trace_id: str, conversation_id: str, turn_id: str) -> Link:
    """Return the own span of a turn that has ended, by the trace id in its record."""
    return Link(trace_id, _own_id(trace_id, conversation_id, turn_id))


def _own_id(trace_id: str, conversation_id: str, turn_id: str) -> str:
    return _hash(8, trace_id, conversation_id, turn_id)


def _hash(size_bytes: int, *words: str) -> str:
    """Return hexadecimal digits that depend on all words; never all zero, which is no valid id."""
    words_together = "\0".join(words).encode(errors="replace")
    digits = hashlib.blake2b(words_together, digest_size=size_bytes).hexdigest()
    return digits if digits.strip("0") else "1".zfill(size_bytes * 2)
