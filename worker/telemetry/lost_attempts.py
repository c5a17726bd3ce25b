"""Makes the spans of lost attempts, whose workers died, from what they left in the turn's steps."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import msgspec

from turnline.contracts.conversation import CallEntry
from turnline.contracts.trace_context import TurnTrace, attempt_id
from turnline.worker.effects import ConversationSnapshot
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.attributes import (
    CallPlace,
    chat_attributes,
    invocation,
    tool_attributes,
    usage_attributes,
)
from turnline.worker.telemetry.spans import Attributes, Span
from turnline.worker.turn.checkpoints import (
    Lost,
    decode_external,
    decode_finished,
    decode_lost,
    decode_message,
)

WORKER_LOST = "worker_lost"
"""Error type of a lost attempt, and of what it had begun."""
_decode_call = msgspec.json.Decoder(CallEntry).decode


class LostTool(NamedTuple):
    """A function that was called."""

    call_id: str
    name: str
    attempt: int
    """That called it, or that had to see to it again."""
    after_call: int
    """Number of model calls of the turn that had been noted before, this one's included."""
    state: Literal["finished", "unknown", "sent_out", "cancelled"] = "unknown"


class LostAttempt(NamedTuple):
    """All that is known of an attempt whose worker died."""

    lost: Lost
    calls: Sequence[tuple[int, CallEntry]]
    """Model calls by their number in the turn."""
    tools: Sequence[LostTool]


def just_lost(loaded: ConversationSnapshot) -> list[LostAttempt]:
    """Return the lost attempts just before this one, oldest first.

    Lost attempts further back were exported by the attempt that followed them.
    """
    if not loaded.crashes:
        return []
    found = {it.lost.attempt: it for it in _read(loaded.steps)}
    attempts: list[LostAttempt] = []
    while (lost := found.get(loaded.attempt - 1 - len(attempts))) is not None:
        attempts.insert(0, lost)
    return attempts


def _read(steps: Sequence[bytes]) -> list[LostAttempt]:
    found: list[LostAttempt] = []
    calls: list[tuple[int, CallEntry]] = []
    tools: dict[str, LostTool] = {}
    """Of the last response, and finished ones since the last attempt that was lost."""
    number = attempt = 0
    for step in steps:
        kind, data = step[:1], step[1:]
        match kind:
            case b"c":
                call = _decode_call(data)
                number, attempt = number + 1, call.attempt
                calls.append((number, call))
            case b"m":
                tools |= _asked_for(data, attempt, number)
            case b"w":
                _set(tools, decode_external(data).call_id, "sent_out")
            case b"r":
                _set(tools, decode_finished(data).call_id, "finished")
            case b"x":
                tools = {call_id: _rolled_back(tool) for call_id, tool in tools.items()}
            case b"l":
                lost = decode_lost(data)
                own = [it for it in calls if it[1].attempt == lost.attempt]
                done = [it for it in tools.values() if _is_of(it, lost.attempt)]
                found.append(LostAttempt(lost, own, done))
                calls = []
                tools = {
                    tool.call_id: tool._replace(attempt=lost.attempt + 1)
                    for tool in tools.values()
                    if tool.state == "unknown"
                }
            case _:
                pass
    return found


def _asked_for(data: bytes, attempt: int, number: int) -> dict[str, LostTool]:
    calls = cast("list[dict[str, Any]]", decode_message(data).get("tool_calls") or [])
    return {
        call["id"]: LostTool(call["id"], call["function"]["name"], attempt, number)
        for call in calls
    }


def _set(tools: dict[str, LostTool], call_id: str, state: Literal["finished", "sent_out"]) -> None:
    if call_id in tools:
        tools[call_id] = tools[call_id]._replace(state=state)


def _rolled_back(tool: LostTool) -> LostTool:
    return tool._replace(state="cancelled") if tool.state == "unknown" else tool


def _is_of(tool: LostTool, attempt: int) -> bool:
    """Whether this attempt called the function, or found it without a result and ran it again."""
    return tool.attempt == attempt or (tool.state == "unknown" and tool.attempt < attempt)


def lost_spans(
    attempts: Sequence[LostAttempt],
    trace: TurnTrace,
    ids: Attributes,
    place: CallPlace,
    agent: str | None,
) -> list[Span]:
    """Return the spans of lost attempts."""
    return [span for it in attempts for span in _spans_of(it, trace, ids, place, agent)]


def _spans_of(
    attempt: LostAttempt, trace: TurnTrace, ids: Attributes, place: CallPlace, agent: str | None
) -> list[Span]:
    lost = attempt.lost
    span_id = attempt_id(trace, lost.attempt)
    below_it = trace._replace(span_id=span_id)
    began_ns, ended_ns = lost.began_at_ms * 1_000_000, lost.found_at_ms * 1_000_000
    process = Span(
        name=n.PROCESS,
        kind="consumer",
        span_id=span_id,
        parent_id=trace.span_id,
        start_ns=min(began_ns, ended_ns),
        end_ns=ended_ns,
        attributes={**ids, n.ATTEMPT: lost.attempt, n.ATTEMPT_OUTCOME: "crashed"},
        error=WORKER_LOST,
        links=(trace.sent,) if trace.sent is not None else (),
    )
    chats: dict[int, Span] = {}
    for number, call in attempt.calls:
        chats[number] = chat = _chat(call, attempt_id(below_it, number), ids, place)
        # These times are by the clock of the lost worker: they are kept within the attempt.
        chat.start_ns = min(max(call.started_at_ms * 1_000_000, process.start_ns), ended_ns)
        chat.end_ns = min(chat.start_ns + call.duration_ms * 1_000_000, ended_ns)
        if _is_open(call):
            chat.end_ns = ended_ns
    tools = [
        _tool(tool, attempt_id(below_it, 1_000 + place_), ids, ended_ns)
        for place_, tool in enumerate(attempt.tools)
    ]
    for span, tool in zip(tools, attempt.tools, strict=True):
        asked = chats.get(tool.after_call)
        span.start_ns = asked.end_ns if asked is not None else process.start_ns
        later = (it.start_ns for number, it in chats.items() if number > tool.after_call)
        if tool.state == "finished":
            span.end_ns = max(span.start_ns, min(later, default=ended_ns))
    below = [*chats.values(), *tools]
    for span in below:
        span.parent_id = span_id
    if agent and below:
        around = invocation(agent, ids, below, attempt_id(below_it, 0))
        around.parent_id = span_id
        below.insert(0, around)
    return [process, *below]


def _is_open(call: CallEntry) -> bool:
    """Whether this is the note made before a request: nothing was added when it ended."""
    return call.state == "unknown" and call.error is None and not call.duration_ms


def _chat(call: CallEntry, span_id: str, ids: Attributes, place: CallPlace) -> Span:
    attributes: Attributes = {
        **ids,
        **chat_attributes(call.model, place),
        **usage_attributes(call.state, call.usage),
    }
    if call.response_id is not None:
        attributes[n.RESPONSE_ID] = call.response_id
    if call.finish_reason:
        attributes[n.RESPONSE_FINISH_REASONS] = [call.finish_reason]
    error = WORKER_LOST if _is_open(call) else call.error or ""
    return Span(
        name=f"{n.CHAT} {call.model}",
        kind="client",
        span_id=span_id,
        start_ns=0,
        end_ns=0,
        attributes=attributes,
        error=error,
    )


def _tool(tool: LostTool, span_id: str, ids: Attributes, ended_ns: int) -> Span:
    attributes: Attributes = {**ids, **tool_attributes(tool.name, tool.call_id)}
    if tool.state != "finished":
        attributes[n.TOOL_STATE] = tool.state
    return Span(
        name=f"{n.EXECUTE_TOOL} {tool.name}",
        span_id=span_id,
        start_ns=0,
        end_ns=ended_ns,
        attributes=attributes,
        error=WORKER_LOST if tool.state == "unknown" else "",
    )
