"""Records attempts at turns: takes notes while one runs, and makes its spans when it is over."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, Protocol

from turnline.contracts.conversation import ConversationSettings
from turnline.contracts.messages import ContextAppend, UserMessage
from turnline.contracts.trace_context import Link, attempt_id
from turnline.worker.effects import ConversationSnapshot, Effects
from turnline.worker.errors import WorkerError
from turnline.worker.lease import Lease
from turnline.worker.outcome import Outcome, Parked
from turnline.worker.pipeline.calls import LLMCall
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.attributes import (
    CallPlace,
    Ending,
    call_attributes,
    call_error,
    endings_of,
    invocation,
    output_tokens,
    process_attributes,
    turn_attributes,
)
from turnline.worker.telemetry.captured_content import CapturedContent
from turnline.worker.telemetry.lost_attempts import just_lost, lost_spans
from turnline.worker.telemetry.metrics import TurnMeters
from turnline.worker.telemetry.spans import Attributes, Span, SpanEvent, TurnSpans
from turnline.worker.turn.gathering import ConsumedEntry, trace_of
from turnline.worker.turn.observer import AttemptObserver

log = logging.getLogger("turnline.telemetry")
turns_log = logging.getLogger("turnline.turns")
_COMMITTED: Final = frozenset({"committed", "released"})
_LEVELS: Final = {
    **dict.fromkeys(("committed", "released", "done", "waiting", "handed_over"), logging.INFO),
    "duplicate": logging.INFO,
    "defect": logging.ERROR,
}
"""How loud an attempt's outcome is; all others are failures of something."""
P = ParamSpec("P")
_ROLLED_BACK: Final = "rolled_back"

traceparent_to_send: ContextVar[str] = ContextVar("traceparent_to_send", default="")
"""Of the call that this task is about to make."""


class SpanSink(Protocol):
    """Where spans go. Takes them at once, and neither waits nor fails."""

    def take(self, turn: TurnSpans) -> None:
        """Take the spans of one attempt."""
        ...


Redactor = Callable[[str, Attributes], Attributes]
"""(span name, attributes) -> the attributes that may leave the process."""


class Recording(NamedTuple):
    """What all recorders of a worker share."""

    worker: str
    place: CallPlace
    sinks: Sequence[SpanSink]
    meters: TurnMeters
    queue: str
    """Name of the queue, as spans show it."""
    capture: bool = False
    """Whether what people and models say goes into spans."""
    redact: Redactor | None = None
    send_traceparent: bool = False


class Tracer:
    """Makes a recorder for each attempt."""

    def __init__(self, recording: Recording) -> None:
        """Record as `recording` says."""
        self._recording = recording

    def attempt(
        self, lease: Lease, loaded: ConversationSnapshot, *, began_at_s: float, loaded_at_s: float
    ) -> AttemptObserver:
        """See `turnline.worker.turn.observer.Observer`."""
        return AttemptRecorder(self._recording, lease, loaded, began_at_s, loaded_at_s)


def _harmless(
    method: Callable[Concatenate["AttemptRecorder", P], None],
) -> Callable[Concatenate["AttemptRecorder", P], None]:
    """Keep a defect of the recorder away from the turn; its kind is logged."""

    def guarded(self: "AttemptRecorder", /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001  a turn must not fail of being watched
            log.warning(
                "telemetry.defect", extra={"error": type(error).__name__, "in": method.__name__}
            )

    guarded.__doc__ = method.__doc__
    return guarded


class _Part(NamedTuple):
    """What an attempt did for one turn. A rollback ends it: what follows is another turn's."""

    owner: ConsumedEntry
    began_at_s: float
    ended_at_s: float
    messages: int
    """Inbox entries that were aggregated."""
    collected_at_s: float
    calls: slice
    tools: slice
    is_first: bool


class _Tool:
    """A function call on its way."""

    def __init__(self, name: str, arguments: Any) -> None:
        self.name = name
        self.arguments = arguments
        self.began_at_s = time.monotonic()
        self.ended_at_s: float | None = None
        self.result: Any = None
        self.failure: str | None = None


class _Called(NamedTuple):
    """A model call, and what it was asked with."""

    span_id: str
    call: LLMCall
    settings: ConversationSettings


class AttemptRecorder(AttemptObserver):
    """Watches one attempt. All clocks are turned into Redis' clock, which all workers share."""

    def __init__(
        self,
        recording: Recording,
        lease: Lease,
        loaded: ConversationSnapshot,
        began_at_s: float,
        loaded_at_s: float,
    ) -> None:
        """Begin; see `turnline.worker.turn.observer.Observer`."""
        self._made = recording
        self._lease = lease
        self._loaded = loaded
        self._began_at_s = began_at_s
        self._ready_at_s = time.monotonic()
        self._offset_ns = loaded.now_ms * 1_000_000 - int(loaded_at_s * 1e9)
        if loaded.entries:  # Redis tells whole ms: an attempt would begin before what it is about
            accepted_ns = loaded.entries[0].accepted_at_ms * 1_000_000
            self._offset_ns += max(0, accepted_ns - self._ns(began_at_s))
        self._lost = just_lost(loaded)
        self._collected_at_s: float | None = None
        self._messages = 0
        self._used: Sequence[ConsumedEntry] = ()
        self._owner: ConsumedEntry | None = None
        self._undone: list[_Part] = []
        self._calls: list[_Called] = []
        self._content: CapturedContent | None = CapturedContent() if recording.capture else None
        self._tools: dict[str, _Tool] = {}
        self._retry: tuple[str, float] | None = None
        self._commits: list[tuple[float, float, str]] = []
        self._committing_at_s = 0.0
        self._effects: Effects | None = None
        recording.meters.began()

    # -- AttemptObserver ------------------------------------------------------------------------

    @_harmless
    def collected(self, used: Sequence[ConsumedEntry], owner: ConsumedEntry) -> None:
        """See `turnline.worker.turn.observer`."""
        now_s = time.monotonic()
        if self._owner is not None and self._owner.turn_id != owner.turn_id:
            ended_at_s = max((it.call.finished_at or now_s for it in self._calls), default=now_s)
            self._undone.append(self._part(self._owner, min(ended_at_s, now_s)))
        self._collected_at_s, self._messages = now_s, len(used)
        self._used, self._owner = used, owner

    @_harmless
    def call_started(
        self, call: LLMCall, context: OpenAILLMContext, settings: ConversationSettings
    ) -> None:
        """See `turnline.worker.turn.observer`."""
        span_id = _new_id()
        self._calls.append(_Called(span_id, call, settings))
        if self._content is not None:
            self._content.call_started(context)
        if self._made.send_traceparent and self._owner is not None:
            trace = self._owner.trace
            flags = "01" if trace.sampled else "00"
            traceparent_to_send.set(f"00-{trace.trace_id}-{span_id}-{flags}")

    def on_text(self, text: str) -> None:
        """See `turnline.worker.turn.observer`."""
        if self._content is not None:
            self._content.said(text)

    @_harmless
    def call_finished(self, call: LLMCall) -> None:
        """See `turnline.worker.turn.observer`."""
        self._made.meters.call(call)

    @_harmless
    def tool_started(self, call_id: str, name: str, arguments: Any) -> None:
        """See `turnline.worker.turn.observer`."""
        self._tools[call_id] = _Tool(name, arguments)

    @_harmless
    def tool_finished(self, call_id: str, result: Any, failure: str | None) -> None:
        """See `turnline.worker.turn.observer`."""
        tool = self._tools.get(call_id)
        if tool is not None and tool.ended_at_s is None:
            tool.ended_at_s = time.monotonic()
            tool.result, tool.failure = result, failure
            self._made.meters.tool(tool.name, tool.ended_at_s - tool.began_at_s, failure)

    @_harmless
    def retrying(self, code: str, wait_s: float) -> None:
        """See `turnline.worker.turn.observer`."""
        self._retry = (code, wait_s)

    @_harmless
    def committing(self) -> None:
        """See `turnline.worker.turn.observer`."""
        self._committing_at_s = time.monotonic()

    @_harmless
    def committed(self, effects: Effects, outcome: str) -> None:
        """See `turnline.worker.turn.observer`."""
        self._commits.append((self._committing_at_s, time.monotonic(), outcome))
        if outcome != "duplicate":
            self._effects = effects

    @_harmless
    def ended(self, outcome: Outcome | BaseException) -> None:
        """See `turnline.worker.turn.observer`."""
        ended_at_s = time.monotonic()
        waits = isinstance(outcome, Parked) and outcome.why == "input"
        if waits and not self._calls and not self._lost:
            self._made.meters.parked()
            return  # nothing happened yet: the attempt after this one tells it all
        word, error = self._outcome(outcome)
        owner = self._owner or self._head()
        endings = endings_of(self._effects, self._used) if self._effects is not None else []
        now_ns = self._ns(ended_at_s)
        self._made.meters.ended(
            word,
            self._loaded,
            self._effects,
            endings,
            first_text_s=self._first_text_s(),
            now_ms=now_ns // 1_000_000,
            retry_code=self._retry[0] if self._retry is not None else "",
        )
        ending = next((end for end in endings if end.used is owner), None)
        error = error or (ending.error if ending is not None else "")
        self._log(word, error, ending, ended_at_s)
        if not self._made.sinks or word == "lease_lost":  # who holds it now tells of this attempt
            return
        part = self._part(owner, ended_at_s)
        spans = self._attempt_spans(part, word, error, now_ns)
        if ending is not None:
            spans = [*self._turn_spans(ending, part, now_ns, error), *spans]
        self._emit(owner, spans, ending, error, now_ns)
        undone = {part.owner.turn_id: part for part in self._undone}
        for other in endings:
            if other is not ending:
                part_of = undone.pop(other.used.turn_id, None)
                spans = [self._other(other, owner, now_ns), *self._undone_spans(part_of)]
                self._emit(other.used, spans, other, "", now_ns)
        for part in undone.values():  # not committed yet: another attempt will tell the rest
            self._emit(part.owner, self._undone_spans(part), None, "", now_ns)

    def _part(self, owner: ConsumedEntry, ended_at_s: float) -> _Part:
        """Return what was done since the last rollback."""
        before = self._undone[-1] if self._undone else None
        collected_at_s = self._collected_at_s
        return _Part(
            owner,
            self._began_at_s if before is None else before.ended_at_s,
            ended_at_s,
            self._messages,
            self._ready_at_s if collected_at_s is None else collected_at_s,
            slice(0 if before is None else before.calls.stop, len(self._calls)),
            slice(0 if before is None else before.tools.stop, len(self._tools)),
            before is None,
        )

    # -- making spans -----------------------------------------------------------------------------

    def _outcome(self, outcome: Outcome | BaseException) -> tuple[str, str]:
        """Return the attempt's outcome in a word, and the error's code if that is one."""
        match outcome:
            case asyncio.CancelledError():
                return ("lease_lost" if self._lease.lost else "handed_over"), ""
            case WorkerError():
                return outcome.code, ""
            case BaseException():
                return "defect", type(outcome).__name__
            case Parked():
                return ("waiting" if outcome.why == "input" else "retry"), ""
            case _:
                return (self._commits[-1][2] if self._commits else "done"), ""

    def _attempt_spans(self, part: _Part, word: str, error: str, now_ns: int) -> list[Span]:
        """Return the attempt's span and those below it, and attempts that could not tell."""
        loaded, owner, trace = self._loaded, part.owner, part.owner.trace
        ids = _ids(self._lease.conversation_id, owner.turn_id)
        accepted_ns = owner.entry.accepted_at_ms * 1_000_000
        began_ns = max(self._ns(part.began_at_s), accepted_ns)
        attributes = process_attributes(
            ids, self._lease.conversation_id, owner, loaded, self._made.queue
        )
        attributes[n.WORKER] = self._made.worker
        attributes[n.ATTEMPT_OUTCOME] = "committed" if word == "released" else word
        events: tuple[SpanEvent, ...] = ()
        if self._retry is not None and word == "retry":
            code, wait_s = self._retry
            attributes[n.RETRY_IN_S] = round(wait_s, 3)
            noted: Attributes = {n.ERROR_TYPE: code, n.RETRY_IN_S: round(wait_s, 3)}
            events = (SpanEvent(name=n.RETRY_EVENT, at_ns=now_ns, attributes=noted),)
        process_id = attempt_id(trace, loaded.attempt)
        process = Span(
            name=n.PROCESS,
            kind="consumer",
            span_id=process_id,
            parent_id=trace.span_id,
            start_ns=began_ns,
            end_ns=now_ns,
            attributes=attributes,
            error=error,
            links=(trace.sent,) if trace.sent is not None else (),
            events=events,
        )
        below = self._work(part, ids, began_ns, now_ns, word)
        if word != _ROLLED_BACK:
            for from_s, to_s, outcome in self._commits:
                below.append(self._below(n.COMMIT, ids, from_s, to_s))
                below[-1].attributes[n.COMMIT_OUTCOME] = outcome
        for span in below:
            span.parent_id = span.parent_id or process_id
            span.start_ns = max(span.start_ns, began_ns)
            span.end_ns = max(span.end_ns, span.start_ns)
        lost: list[Span] = []
        if part.is_first:
            lost = lost_spans(self._lost, owner.trace, ids, self._made.place, self._agent(owner))
            for span in lost:  # Redis tells whole ms
                span.start_ns = min(max(span.start_ns, accepted_ns), began_ns)
                span.end_ns = min(max(span.end_ns, accepted_ns), began_ns)
        return [*lost, process, *below]

    def _work(
        self, part: _Part, ids: Attributes, began_ns: int, ended_ns: int, word: str
    ) -> list[Span]:
        """Return spans of what was done for a turn, without the commit."""
        below: list[Span] = []
        began_at_s = (began_ns - self._offset_ns) / 1e9
        if part.is_first:
            below.append(self._below(n.REBUILD, ids, began_at_s, self._ready_at_s))
            below[0].attributes[n.CONTEXT_MESSAGES] = len(self._loaded.messages)
            below[0].attributes[n.CONTEXT_BYTES] = sum(map(len, self._loaded.messages))
            began_at_s = self._ready_at_s
        if part.messages > 1:
            below.append(self._below(n.AGGREGATE, ids, began_at_s, part.collected_at_s))
            below[-1].attributes[n.TURN_MESSAGES] = part.messages
        calls = list(enumerate(self._calls))[part.calls]
        tools = list(self._tools.items())[part.tools]
        done = [self._chat(number, called, ids, ended_ns) for number, called in calls]
        done += [self._tool(call_id, tool, ids, ended_ns, word) for call_id, tool in tools]
        if done and (agent := self._agent(part.owner)):
            below.append(invocation(agent, ids, done, _new_id()))
        return below + done

    def _agent(self, owner: ConsumedEntry) -> str | None:
        """Return the agent that a message or its conversation names."""
        message = owner.message
        asked = message.agent if isinstance(message, UserMessage | ContextAppend) else None
        return asked or self._loaded.settings.agent

    def _undone_spans(self, part: _Part | None) -> list[Span]:
        """Return what was done for a turn until it was rolled back, if it was."""
        if part is None:
            return []
        return self._attempt_spans(part, _ROLLED_BACK, "", self._ns(part.ended_at_s))

    def _below(self, name: str, ids: Attributes, from_s: float, to_s: float) -> Span:
        return Span(
            name=name,
            span_id=_new_id(),
            start_ns=self._ns(from_s),
            end_ns=self._ns(max(from_s, to_s)),
            attributes=dict(ids),
        )

    def _chat(self, number: int, called: _Called, ids: Attributes, now_ns: int) -> Span:
        span_id, call, settings = called
        attributes = {**ids, **call_attributes(call, settings, self._made.place)}
        if self._content is not None:
            attributes.update(self._content.of_call(number))
        return Span(
            name=f"{n.CHAT} {call.model}",
            kind="client",
            span_id=span_id,
            start_ns=self._ns(call.started_at),
            end_ns=now_ns if call.finished_at is None else self._ns(call.finished_at),
            attributes=attributes,
            error=call_error(call),
        )

    def _tool(self, call_id: str, tool: _Tool, ids: Attributes, now_ns: int, word: str) -> Span:
        attributes = {
            **ids,
            n.OPERATION_NAME: n.EXECUTE_TOOL,
            n.TOOL_NAME: tool.name,
            n.TOOL_TYPE: "function",
            n.TOOL_CALL_ID: call_id,
        }
        if tool.ended_at_s is None:
            attributes[n.TOOL_STATE] = "sent_out" if word == "waiting" else "cancelled"
        if self._content is not None:
            attributes.update(self._content.of_tool(tool.arguments, tool.result))
        return Span(
            name=f"{n.EXECUTE_TOOL} {tool.name}",
            span_id=_new_id(),
            start_ns=self._ns(tool.began_at_s),
            end_ns=now_ns if tool.ended_at_s is None else self._ns(tool.ended_at_s),
            attributes=attributes,
            error=tool.failure or "",
        )

    def _turn_spans(self, ending: Ending, part: _Part, now_ns: int, error: str) -> list[Span]:
        """Return the turn's own span and that of its wait, now that it has ended."""
        assert self._effects is not None
        used, trace, loaded = ending.used, ending.used.trace, self._loaded
        ids = _ids(self._lease.conversation_id, used.turn_id)
        accepted_ns = used.entry.accepted_at_ms * 1_000_000
        first_ns = loaded.since_ms * 1_000_000
        if loaded.attempt == 1 or not part.is_first:
            first_ns = self._ns(part.began_at_s)
        first_ns = max(first_ns, accepted_ns)
        attributes = {
            **ids,
            **turn_attributes(ending, self._effects, loaded, self._lease.conversation_id),
        }
        if self._content is not None:
            attributes.update(self._content.of_turn(self._used, ending.event))
        into = tuple(Link(u.trace.trace_id, u.trace.span_id) for u in self._used if u is not used)
        wait = Span(
            name=n.WAIT,
            span_id=_new_id(),
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

    def _other(self, ending: Ending, owner: ConsumedEntry, now_ns: int) -> Span:
        """Return the span of a message that ended together with the turn, in its own trace."""
        used, trace = ending.used, ending.used.trace
        return Span(
            name=n.TURN,
            span_id=trace.span_id,
            parent_id=trace.parent_id,
            start_ns=used.entry.accepted_at_ms * 1_000_000,
            end_ns=now_ns,
            attributes={
                **_ids(self._lease.conversation_id, used.turn_id),
                n.TURN_OUTCOME: ending.state,
                **({n.TURN_INTO: owner.turn_id} if ending.state == "absorbed" else {}),
            },
            error=ending.error,
            links=(Link(owner.trace.trace_id, owner.trace.span_id),),
        )

    def _emit(
        self, used: ConsumedEntry, spans: list[Span], ending: Ending | None, error: str, now_ns: int
    ) -> None:
        redact = self._made.redact
        for span in spans:
            span.trace_id = span.trace_id or used.trace.trace_id
            if span.error:
                span.attributes[n.ERROR_TYPE] = span.error
            if redact is not None:
                span.attributes = redacted(redact, span.name, span.attributes)
        code = error or (self._retry[0] if self._retry is not None else "")
        batch = TurnSpans(
            conversation_id=self._lease.conversation_id,
            turn_id=used.turn_id,
            trace_id=used.trace.trace_id,
            attempt=self._loaded.attempt,
            worker=self._made.worker,
            state=ending.state if ending is not None else "",
            code=(ending.error if ending is not None and ending.used is used else "") or code,
            duration_ms=max(0, now_ns // 1_000_000 - used.entry.accepted_at_ms),
            ended_at_ms=now_ns // 1_000_000,
            sampled=used.trace.sampled,
            has_parent=used.trace.sent is not None,
            tracestate=used.trace.tracestate,
            spans=spans,
        )
        for sink in self._made.sinks:
            sink.take(batch)

    def _log(self, word: str, error: str, ending: Ending | None, ended_at_s: float) -> None:
        """Say in one line how the attempt went; its ids come with every line.

        The outcome is how the turn ended, where this attempt ended it.
        """
        level = _LEVELS.get(word, logging.WARNING)
        if error and level < logging.WARNING:
            level = logging.WARNING
        if not turns_log.isEnabledFor(level):
            return
        if ending is not None and word in _COMMITTED:
            word = ending.state
        usage = [entry.usage for entry in self._effects.calls] if self._effects is not None else []
        turns_log.log(
            level,
            "turn.attempt_ended",
            extra={
                "outcome": "committed" if word in _COMMITTED else word,
                "code": error or (self._retry[0] if self._retry is not None else ""),
                "duration_ms": round((ended_at_s - self._began_at_s) * 1000, 1),
                "calls": len(self._calls),
                "input_tokens": sum(u.prompt_tokens for u in usage),
                "output_tokens": sum(map(output_tokens, usage)),
            },
        )

    # -- pieces -----------------------------------------------------------------------------------

    def _ns(self, clock_s: float) -> int:
        """Convert `time.monotonic` to ns since the Unix epoch by Redis' clock."""
        return int(clock_s * 1e9) + self._offset_ns

    def _head(self) -> ConsumedEntry:
        """Return the head of the inbox as it would be used: nothing was collected yet."""
        entry = self._loaded.entries[0]
        turn_id, message = entry.turn_id or entry.entry_id, entry.message
        conversation_id, since_ms = self._lease.conversation_id, self._loaded.since_ms
        trace = trace_of(conversation_id, turn_id, entry, message, since_ms=since_ms)
        return ConsumedEntry(entry, turn_id, message, None, trace)

    def _first_text_s(self) -> float | None:
        """Return the time from acceptance to the first text of this attempt, seconds."""
        if self._owner is None:
            return None
        undone = self._undone[-1].calls.stop if self._undone else 0
        for _, call, _ in self._calls[undone:]:
            if call.first_text_at is not None:
                accepted_ns = self._owner.entry.accepted_at_ms * 1_000_000
                return max(0.0, (self._ns(call.first_text_at) - accepted_ns) / 1e9)
        return None


def redacted(redact: Redactor, name: str, attributes: Attributes) -> Attributes:
    """Return what may leave; nothing, if the redactor fails."""
    try:
        return redact(name, attributes)
    except Exception as error:  # noqa: BLE001  foreign code; in doubt nothing leaves
        log.warning("telemetry.redactor_failed", extra={"error": type(error).__name__})
        return {}


def _ids(conversation_id: str, turn_id: str) -> Attributes:
    return {n.CONVERSATION_ID: conversation_id, n.TURN_ID: turn_id}


def _new_id() -> str:
    return f"{random.getrandbits(64) or 1:016x}"
