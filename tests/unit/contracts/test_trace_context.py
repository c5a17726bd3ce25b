"""Trace context with OpenTelemetry's API, without it, and from producers who get it wrong."""

import re
import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from tests.support.recordings import REPOSITORY
from turnline.contracts import Interrupt
from turnline.contracts.messages import decode
from turnline.contracts.protocol import Requests
from turnline.contracts.trace_context import current, trace_id_of

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
SHAPE = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01")


@pytest.mark.parametrize(("flags", "shown"), [(TraceFlags.SAMPLED, "01"), (0, "00")])
def test_the_active_span_is_the_parent(flags: int, shown: str) -> None:
    """Its ids, its sampling decision and its vendors' state travel."""
    context = SpanContext(
        trace_id=int(TRACE_ID, 16),
        span_id=0xF067AA0BA902B7,
        is_remote=False,
        trace_flags=TraceFlags(flags),
        trace_state=TraceState([("vendor", "value")]),
    )

    with trace.use_span(NonRecordingSpan(context)):
        found = current()

    assert found.traceparent == f"00-{TRACE_ID}-00f067aa0ba902b7-{shown}"
    assert found.tracestate == "vendor=value"


def test_without_a_span_a_trace_begins() -> None:
    """Sampled, with fresh ids."""
    one, other = current(), current()

    assert SHAPE.fullmatch(one.traceparent)
    assert one.tracestate is None
    assert trace_id_of(one.traceparent) != trace_id_of(other.traceparent)


def test_opentelemetry_need_not_be_installed() -> None:
    """A producer without it still starts a trace."""
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from turnline.contracts.trace_context import current\n"
        "print(current().traceparent)"
    )

    run = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )

    assert SHAPE.fullmatch(run.stdout.strip())


@pytest.mark.parametrize(
    ("traceparent", "trace_id"),
    [
        (PARENT, TRACE_ID),
        (PARENT + "-of-a-later-version", TRACE_ID),
        (None, ""),
        ("", ""),
        ("nonsense", ""),
        (PARENT.upper(), ""),
        (PARENT.replace("4bf", "xyz"), ""),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", ""),
        (f"00-{TRACE_ID}-{'0' * 16}-01", ""),
        (f"ff-{TRACE_ID}-00f067aa0ba902b7-01", ""),
        (PARENT + "\n", ""),
    ],
)
def test_the_trace_id_is_that_of_a_valid_parent(traceparent: str | None, trace_id: str) -> None:
    """Anything else counts as no parent, as the specification says."""
    assert trace_id_of(traceparent) == trace_id


@pytest.mark.parametrize("given", [None, "", "nonsense", "00-user-text-here"])
def test_a_submission_without_a_valid_parent_begins_a_trace(given: str | None) -> None:
    """Workers and events always have a trace to belong to."""
    message = Interrupt(conversation_id="c", traceparent=given, tracestate="a=b")

    submission = Requests().submission(message)

    sent = decode(submission.call.args[2])
    assert SHAPE.fullmatch(sent.traceparent)
    assert sent.tracestate is None
    assert submission.trace_id == trace_id_of(sent.traceparent)


def test_a_submission_keeps_the_parent_it_was_given() -> None:
    """With its state."""
    message = Interrupt(conversation_id="c", traceparent=PARENT, tracestate="a=b")

    submission = Requests().submission(message)

    sent = decode(submission.call.args[2])
    assert (sent.traceparent, sent.tracestate) == (PARENT, "a=b")
    assert submission.trace_id == TRACE_ID
