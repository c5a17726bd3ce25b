"""Plans of answers: a stream of frames at a pace, or one body after as long as it would take."""

from turnline.ops.simulator.faults.response_plan import Frame, FrameKind, Framing, Headers, Plan
from turnline.ops.simulator.http import headers
from turnline.ops.simulator.model.pacing import Tempo
from turnline.ops.simulator.model.usage import Usage


def stream_plan(head: Headers, prefix: bytes, steps: list[Frame], tempo: Tempo) -> Plan:
    """Return the plan of a stream; `prefix` goes before the time of stamped frames."""
    plan = Plan(
        headers=head,
        framing=Framing.CHUNKED,
        prefix=prefix,
        steps=list(steps),
        is_stream=True,
        is_answer=True,
    )
    tempo.lay(plan)
    return plan


def whole_plan(head: Headers, body: bytes, counted: Usage, tempo: Tempo) -> Plan:
    """Return the plan of an answer that is not streamed."""
    tokens = counted.completion_tokens + counted.completion_tokens_details.reasoning_tokens
    ttft_s = tempo.first_s()
    itl_s = 0.0 if tempo.is_instant else tempo.next_s()
    total_s = ttft_s + itl_s * max(0, tokens - 1)
    frame = Frame(
        kind=FrameKind.BODY,
        data=body,
        stamped=False,
        tokens=counted.completion_tokens,
        finishes=True,
        reports_usage=True,
    )
    return Plan(
        headers=head + headers.metric_headers(ttft_s, itl_s, total_s),
        head_delay_s=total_s,
        steps=[frame],
        is_answer=True,
    )
