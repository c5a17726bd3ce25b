"""Where the spans of a turn belong, as all workers work it out by themselves."""

from turnline.contracts.trace_context import (
    LATE_MS,
    Link,
    TraceContext,
    TurnTrace,
    child_id,
    current,
    root_of,
    trace_id_of,
    turn_trace,
)

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SENT = "00f067aa0ba902b7"


def of(context: TraceContext | None, *, turn_id: str = "t", waited_ms: int = 0) -> TurnTrace:
    return turn_trace("c", turn_id, context, entry_id="1-0", waited_ms=waited_ms)


def test_a_producers_span_is_the_parent_and_is_linked() -> None:
    """The turn's own id differs from turn to turn and is the same for every worker."""
    context = TraceContext(f"00-{TRACE_ID}-{SENT}-01", "vendor=1")

    trace = of(context)

    assert trace.trace_id == TRACE_ID
    assert trace.parent_id == SENT
    assert trace.sent == Link(TRACE_ID, SENT)
    assert trace.tracestate == "vendor=1"
    assert trace == of(context)
    assert trace.span_id != of(context, turn_id="u").span_id
    assert len(trace.span_id) == 16


def test_a_fresh_context_makes_the_turn_the_root() -> None:
    """The client gives the turn's own id away: whoever sees it knows that nobody is above."""
    context = current("c", "t")

    trace = of(context)

    assert trace.trace_id == trace_id_of(context.traceparent)
    assert trace.span_id == context.traceparent.split("-")[2]
    assert trace.parent_id == ""
    assert trace.sent is None


def test_without_a_context_one_is_derived() -> None:
    """From the message's place in the inbox, so that attempts agree and turns differ."""
    trace = of(None)

    assert trace == of(TraceContext("nonsense", None))
    assert trace.parent_id == ""
    assert trace.trace_id != of(None, turn_id="u").trace_id


def test_what_waited_long_is_a_trace_of_its_own() -> None:
    """Linked to the span that stands for the wait in the trace it came from."""
    context = TraceContext(f"00-{TRACE_ID}-{SENT}-01", None)
    here = of(context)

    late = of(context, waited_ms=LATE_MS + 1)

    assert of(context, waited_ms=LATE_MS) == here
    assert late.trace_id != TRACE_ID
    assert late.parent_id == ""
    assert late.waited_in == Link(TRACE_ID, here.span_id)
    assert late == of(context, waited_ms=LATE_MS * 2)


def test_sampling_is_the_producers_decision() -> None:
    """Its flags, of which only the first bit counts."""
    for flags, sampled in (("00", False), ("01", True), ("03", True), ("02", False)):
        context = TraceContext(f"00-{TRACE_ID}-{SENT}-{flags}", None)
        assert of(context).sampled is sampled


def test_attempts_have_their_own_ids() -> None:
    """So that a worker can tell of an attempt that another one did not finish."""
    trace = of(None)

    ids = {child_id(trace, number) for number in range(1, 5)}
    assert len(ids | {trace.span_id}) == 5
    assert child_id(trace, 1) == child_id(of(None), 1)


def test_the_root_is_found_by_the_record() -> None:
    """Whoever has the trace id of a turn that ended knows its own span."""
    sent, late = TraceContext(f"00-{TRACE_ID}-{SENT}-01", None), LATE_MS + 1

    for trace in (of(current("c", "t")), of(sent), of(None), of(sent, waited_ms=late)):
        assert root_of(trace.trace_id, "c", "t") == (trace.trace_id, trace.span_id)
