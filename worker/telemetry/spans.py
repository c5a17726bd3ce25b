"""Spans as values: complete when they are made, and the same for every sink."""

from typing import Any, Literal

import msgspec

from turnline.contracts.trace_context import Link

Kind = Literal["internal", "producer", "consumer", "client"]
Attributes = dict[str, Any]
"""Strings, numbers, booleans and lists of strings, by the names in `names`."""


class SpanEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A moment within a span."""

    name: str
    at_ns: int
    attributes: Attributes = {}


class Span(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Something that took time. Times are ns since the Unix epoch, by Redis' clock."""

    name: str
    span_id: str
    parent_id: str = ""
    """Empty: a root."""
    trace_id: str = ""
    """Empty: that of the turn."""
    kind: Kind = "internal"
    start_ns: int
    end_ns: int
    attributes: Attributes
    error: str = ""
    """Code of what went wrong; not empty: the span's status is an error."""
    links: tuple[Link, ...] = ()
    events: tuple[SpanEvent, ...] = ()

    def __post_init__(self) -> None:
        # Redis gives its clock in ms, and a worker goes on from there by its own.
        self.end_ns = max(self.end_ns, self.start_ns)


class TurnSpans(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All spans of one attempt at one turn, and what helps to find them."""

    conversation_id: str
    turn_id: str
    trace_id: str
    attempt: int
    worker: str = ""
    state: str = ""
    """How the turn ended; empty: this attempt did not end it."""
    code: str = ""
    """Why it failed, or why another attempt is needed."""
    duration_ms: int = 0
    """From acceptance to the end of this attempt."""
    ended_at_ms: int = 0
    spans: list[Span]
