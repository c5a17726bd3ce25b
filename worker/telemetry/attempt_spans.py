"""Makes the spans of an attempt from what was noted of it, once it is over."""

from typing import NamedTuple

from turnline.contracts.trace_context import Link, attempt_id
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.attempt_notes import (
    AttemptNotes,
    CallNote,
    Part,
    ToolNote,
    new_span_id,
)
from turnline.worker.telemetry.attributes import (
    CallPlace,
    Ending,
    call_attributes,
    call_error,
    invocation,
    process_attributes,
    tool_attributes,
    turn_attributes,
)
from turnline.worker.telemetry.lost_attempts import lost_spans
from turnline.worker.telemetry.spans import Attributes, Span, SpanEvent
from turnline.worker.turn.gathering import ConsumedEntry

ROLLED_BACK = "rolled_back"
"""Outcome of what an attempt did for a turn that was undone."""


class AttemptSpans(NamedTuple):
    """Makes spans of one attempt."""

    notes: AttemptNotes
    worker: str
    place: CallPlace
    queue: str

    def of_attempt(self, part: Part, outcome: str, error: str, now_ns: int) -> list[Span]:
        """Return the attempt's span, those below it, and those of lost attempts before it."""
        notes, owner, trace = self.notes, part.owner, part.owner.trace
        ids = self._ids(owner)
        accepted_ns = owner.entry.accepted_at_ms * 1_000_000
        began_ns = max(notes.ns(part.began_at_s), accepted_ns)
        conversation_id = notes.lease.conversation_id
        attributes = process_attributes(ids, conversation_id, owner, notes.loaded, self.queue)
        attributes[n.WORKER] = self.worker
        attributes[n.ATTEMPT_OUTCOME] = "committed" if outcome == "released" else outcome
        events: tuple[SpanEvent, ...] = ()
        if notes.retry is not None and outcome == "retry":
            code, wait_s = notes.retry
            attributes[n.RETRY_IN_S] = round(wait_s, 3)
            noted: Attributes = {n.ERROR_TYPE: code, n.RETRY_IN_S: round(wait_s, 3)}
            events = (SpanEvent(name=n.RETRY_EVENT, at_ns=now_ns, attributes=noted),)
        process = Span(
            name=n.PROCESS,
            kind="consumer",
            span_id=attempt_id(trace, notes.loaded.attempt),
            parent_id=trace.span_id,
            start_ns=began_ns,
            end_ns=now_ns,
            attributes=attributes,
            error=error,
            links=(trace.sent,) if trace.sent is not None else (),
            events=events,
        )
        below = self._work(part, ids, began_ns, now_ns, outcome)
        for span in below:
            span.parent_id = span.parent_id or process.span_id
            span.start_ns = max(span.start_ns, began_ns)
            span.end_ns = max(span.end_ns, span.start_ns)
        lost: list[Span] = []
        if part.is_first:
            lost = lost_spans(notes.lost, trace, ids, self.place, notes.agent(owner))
            for span in lost:  # Redis gives whole ms
                span.start_ns = min(max(span.start_ns, accepted_ns), began_ns)
                span.end_ns = min(max(span.end_ns, accepted_ns), began_ns)
        return [*lost, process, *below]

    def of_undone(self, part: Part | None) -> list[Span]:
        """Return what was done for a turn until it was rolled back, if it was."""
        if part is None:
            return []
        return self.of_attempt(part, ROLLED_BACK, "", self.notes.ns(part.ended_at_s))

    def of_turn(self, ending: Ending, part: Part, now_ns: int, error: str) -> list[Span]:
        """Return the turn's own span and that of its wait, now that it has ended."""
        notes, used, trace = self.notes, ending.used, ending.used.trace
        assert notes.effects is not None
        ids = self._ids(used)
        accepted_ns = used.entry.accepted_at_ms * 1_000_000
        first_ns = notes.loaded.since_ms * 1_000_000
        if notes.loaded.attempt == 1 or not part.is_first:
            first_ns = notes.ns(part.began_at_s)
        first_ns = max(first_ns, accepted_ns)
        conversation_id = notes.lease.conversation_id
        attributes = {
            **ids,
            **turn_attributes(ending, notes.effects, notes.loaded, conversation_id),
        }
        if notes.content is not None:
            attributes.update(notes.content.of_turn(notes.used, ending.event))
        into = tuple(Link(u.trace.trace_id, u.trace.span_id) for u in notes.used if u is not used)
        wait = Span(
            name=n.WAIT,
            span_id=new_span_id(),
            parent_id=trace.span_id,
            start_ns=accepted_ns,
            end_ns=first_ns,
            attributes={**ids, n.WAIT_S: (first_ns - accepted_ns) / 1e9},
        )
        here = (trace.sent,) if trace.sent is not None and trace.waited_in is None else ()
        if trace.waited_in is not None:
            wait.trace_id, wait.span_id = trace.waited_in
            wait.parent_id = trace.sent.span_id if trace.sent is not None else ""
            wait.links = (Link(trace.trace_id, trace.span_id),)
            here = (trace.waited_in,)
        turn = Span(
            name=n.TURN,
            span_id=trace.span_id,
            parent_id=trace.parent_id,
            start_ns=first_ns if trace.waited_in is not None else accepted_ns,
            end_ns=now_ns,
            attributes=attributes,
            error=error,
            links=(*here, *into),
        )
        return [turn, wait]

    def of_other(self, ending: Ending, owner: ConsumedEntry, now_ns: int) -> Span:
        """Return the span of a message that ended together with the turn, in its own trace."""
        used, trace = ending.used, ending.used.trace
        attributes: Attributes = {**self._ids(used), n.TURN_OUTCOME: ending.state}
        if ending.state == "absorbed":
            attributes[n.TURN_INTO] = owner.turn_id
        return Span(
            name=n.TURN,
            span_id=trace.span_id,
            parent_id=trace.parent_id,
            start_ns=used.entry.accepted_at_ms * 1_000_000,
            end_ns=now_ns,
            attributes=attributes,
            error=ending.error,
            links=(Link(owner.trace.trace_id, owner.trace.span_id),),
        )

    def _ids(self, used: ConsumedEntry) -> Attributes:
        return {n.CONVERSATION_ID: self.notes.lease.conversation_id, n.TURN_ID: used.turn_id}

    def _work(
        self, part: Part, ids: Attributes, began_ns: int, ended_ns: int, outcome: str
    ) -> list[Span]:
        """Return spans of what was done for a turn."""
        notes = self.notes
        below: list[Span] = []
        if part.is_first:
            below.append(self._below(n.REBUILD, ids, began_ns, notes.ready_at_s))
            below[0].attributes[n.CONTEXT_MESSAGES] = len(notes.loaded.messages)
            below[0].attributes[n.CONTEXT_BYTES] = sum(map(len, notes.loaded.messages))
            began_ns = notes.ns(notes.ready_at_s)
        if part.messages > 1:
            below.append(self._below(n.AGGREGATE, ids, began_ns, part.collected_at_s))
            below[-1].attributes[n.TURN_MESSAGES] = part.messages
        calls = list(enumerate(notes.calls))[part.calls]
        tools = list(notes.tools.items())[part.tools]
        done = [self._chat(number, called, ids, ended_ns) for number, called in calls]
        done += [self._tool(call_id, tool, ids, ended_ns, outcome) for call_id, tool in tools]
        if done and (agent := notes.agent(part.owner)):
            below.append(invocation(agent, ids, done, new_span_id()))
        below += done
        for commit in notes.commits if outcome != ROLLED_BACK else ():
            below.append(self._below(n.COMMIT, ids, notes.ns(commit.began_at_s), commit.ended_at_s))
            below[-1].attributes[n.COMMIT_OUTCOME] = commit.outcome
        return below

    def _below(self, name: str, ids: Attributes, start_ns: int, end_s: float) -> Span:
        return Span(
            name=name,
            span_id=new_span_id(),
            start_ns=start_ns,
            end_ns=self.notes.ns(end_s),
            attributes=dict(ids),
        )

    def _chat(self, number: int, called: CallNote, ids: Attributes, now_ns: int) -> Span:
        span_id, call, settings = called
        attributes = {**ids, **call_attributes(call, settings, self.place)}
        if self.notes.content is not None:
            attributes.update(self.notes.content.of_call(number))
        return Span(
            name=f"{n.CHAT} {call.model}",
            kind="client",
            span_id=span_id,
            start_ns=self.notes.ns(call.started_at),
            end_ns=now_ns if call.finished_at is None else self.notes.ns(call.finished_at),
            attributes=attributes,
            error=call_error(call),
        )

    def _tool(
        self, call_id: str, tool: ToolNote, ids: Attributes, now_ns: int, outcome: str
    ) -> Span:
        attributes = {**ids, **tool_attributes(tool.name, call_id)}
        if tool.ended_at_s is None:
            attributes[n.TOOL_STATE] = "sent_out" if outcome == "waiting" else "cancelled"
        if self.notes.content is not None:
            attributes.update(self.notes.content.of_tool(tool.arguments, tool.result))
        return Span(
            name=f"{n.EXECUTE_TOOL} {tool.name}",
            span_id=new_span_id(),
            start_ns=self.notes.ns(tool.began_at_s),
            end_ns=now_ns if tool.ended_at_s is None else self.notes.ns(tool.ended_at_s),
            attributes=attributes,
            error=tool.failure or "",
        )
