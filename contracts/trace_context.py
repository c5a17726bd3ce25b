"""W3C trace context of a submission, with or without OTel.

Source: https://www.w3.org/TR/trace-context/
"""

import secrets
from types import ModuleType
from typing import NamedTuple

try:
    from opentelemetry import trace as _trace
except ModuleNotFoundError:  # OpenTelemetry is optional for producers
    _otel: ModuleType | None = None
else:
    _otel = _trace


class TraceContext(NamedTuple):
    """What travels in a message."""

    traceparent: str
    tracestate: str | None


def current() -> TraceContext:
    """Return the active span's context, or a new, sampled one if there is none."""
    if _otel is not None:
        context = _otel.get_current_span().get_span_context()
        if context.is_valid:
            flags = "01" if context.trace_flags.sampled else "00"
            return TraceContext(
                f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags}",
                context.trace_state.to_header() or None,
            )
    return TraceContext(f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01", None)


def trace_id_of(traceparent: str | None) -> str:
    """Return the 32 hexadecimal digits of the trace id, '' if there is none."""
    parts = (traceparent or "").split("-")
    return parts[1] if len(parts) >= 4 and len(parts[1]) == 32 else ""
