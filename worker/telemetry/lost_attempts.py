"""Tells the spans of lost attempts, whose workers died, from what they left in the turn's steps."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import msgspec
from opentelemetry.trace import SpanKind

from turnline.contracts.conversation import CallEntry
from turnline.contracts.trace_context import TurnTrace
from turnline.worker.effects import ConversationSnapshot
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.attributes import (
    CallPlace,
    agent_attributes,
    chat_attributes,
    tool_attributes,
    usage_attributes,
)
from turnline.worker.telemetry.spans import Attributes
from turnline.worker.telemetry.tracing import Tracing, below
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


class _Past(NamedTuple):
    """Something that a lost attempt did."""

    name: str
    which: int | str
    kind: SpanKind
    attributes: Attributes
    start_ns: int
    end_ns: int
    error: str


def tell_lost(
    attempts: Sequence[LostAttempt],
    tracing: Tracing,
    trace: TurnTrace,
    ids: Attributes,
    place: CallPlace,
    *,
    agent: str | None,
    within: Callable[[int], int],
) -> None:
    """Tell the spans of lost attempts, under the ids that their workers would have used.

    Args:
        attempts: Which.
        tracing: To whom.
        trace: Of their turn.
        ids: What every span has.
        place: Where their calls went.
        agent: Whose work it was.
        within: Keeps a time between the acceptance of the turn and the next attempt, ns.
    """
    for attempt in attempts:
        lost = attempt.lost
        ended_ns = within(lost.found_at_ms * 1_000_000)
        process = tracing.start(
            n.PROCESS,
            below(trace, lost.attempt),
            {**ids, n.ATTEMPT: lost.attempt, n.ATTEMPT_OUTCOME: "crashed"},
            min(within(lost.began_at_ms * 1_000_000), ended_ns),
            kind=SpanKind.CONSUMER,
            links=(trace.sent,) if trace.sent is not None else (),
        )
        done = _done(attempt, place, process.start_ns, ended_ns)
        above, of_agent = process, {n.AGENT_NAME: agent} if agent else {}
        if agent and done:
            named = f"{n.INVOKE_AGENT} {agent}"
            about, first_ns = {**ids, **agent_attributes(agent)}, min(it.start_ns for it in done)
            at = below(process.at, 0)
            above = tracing.start(named, at, about, first_ns, above=process)
        for it in done:
            about, at = {**ids, **it.attributes, **of_agent}, below(process.at, it.which)
            if above is not process:
                at = at._replace(parent_id=above.at.span_id)
            span = tracing.start(it.name, at, about, it.start_ns, above=above, kind=it.kind)
            span.end(it.end_ns, it.error, tracing.redact)
        if above is not process:
            above.end(max(it.end_ns for it in done), "", tracing.redact)
        process.end(ended_ns, WORKER_LOST, tracing.redact)


def _done(attempt: LostAttempt, place: CallPlace, began_ns: int, ended_ns: int) -> list[_Past]:
    """Return what an attempt did between two moments; the clock of its worker may have differed."""
    chats: dict[int, _Past] = {}
    for which, (number, call) in enumerate(attempt.calls, 1):
        start_ns = min(max(call.started_at_ms * 1_000_000, began_ns), ended_ns)
        end_ns = ended_ns if _is_open(call) else start_ns + call.duration_ms * 1_000_000
        error = WORKER_LOST if _is_open(call) else call.error or ""
        attributes, name = _call_attributes(call, place), f"{n.CHAT} {call.model}"
        times = (start_ns, min(end_ns, ended_ns))
        chats[number] = _Past(name, which, SpanKind.CLIENT, attributes, *times, error)
    tools: list[_Past] = []
    for tool in attempt.tools:
        asked = chats.get(tool.after_call)
        start_ns = end_ns = asked.end_ns if asked is not None else began_ns
        attributes = tool_attributes(tool.name, tool.call_id)
        if tool.state == "finished":
            later = (it.start_ns for number, it in chats.items() if number > tool.after_call)
            end_ns = max(start_ns, min(later, default=ended_ns))
        else:
            end_ns = ended_ns
            attributes[n.TOOL_STATE] = tool.state
        error = WORKER_LOST if tool.state == "unknown" else ""
        name = f"{n.EXECUTE_TOOL} {tool.name}"
        tools.append(
            _Past(name, tool.call_id, SpanKind.INTERNAL, attributes, start_ns, end_ns, error)
        )
    return [*chats.values(), *tools]


def _is_open(call: CallEntry) -> bool:
    """Whether this is the note made before a request: nothing was added when it ended."""
    return call.state == "unknown" and call.error is None and not call.duration_ms


def _call_attributes(call: CallEntry, place: CallPlace) -> Attributes:
    attributes: Attributes = {
        **chat_attributes(call.model, place),
        **usage_attributes(call.state, call.usage),
    }
    if call.response_id is not None:
        attributes[n.RESPONSE_ID] = call.response_id
    if call.finish_reason:
        attributes[n.RESPONSE_FINISH_REASONS] = [call.finish_reason]
    return attributes
