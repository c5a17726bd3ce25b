"""Records attempts at turns: notes while one runs, spans to export when it is over."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, Protocol

from turnline.contracts.conversation import ConversationSettings
from turnline.worker.effects import ConversationSnapshot, Effects
from turnline.worker.errors import WorkerError
from turnline.worker.lease import Lease
from turnline.worker.outcome import Outcome, Parked
from turnline.worker.pipeline.calls import LLMCall
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.attempt_notes import (
    AttemptNotes,
    CallNote,
    CommitNote,
    ToolNote,
    new_span_id,
)
from turnline.worker.telemetry.attempt_spans import AttemptSpans
from turnline.worker.telemetry.attributes import CallPlace, Ending, endings_of, output_tokens
from turnline.worker.telemetry.captured_content import CapturedContent
from turnline.worker.telemetry.metrics import TurnMeters
from turnline.worker.telemetry.spans import Attributes, Span, TurnSpans
from turnline.worker.turn.gathering import ConsumedEntry
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

traceparent_to_send: ContextVar[str] = ContextVar("traceparent_to_send", default="")
"""Of the call that this task is about to make."""


class SpanSink(Protocol):
    """Where spans go."""

    def export(self, turn: TurnSpans) -> None:
        """Accept the spans of one attempt at once; neither wait nor fail."""
        ...


Redactor = Callable[[str, Attributes], Attributes]
"""(span name, attributes) -> the attributes that may leave the process."""


class Recording(NamedTuple):
    """Records the turns of a worker; see `turnline.worker.turn.observer.Observer`."""

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

    def attempt(
        self, lease: Lease, loaded: ConversationSnapshot, *, began_at_s: float, loaded_at_s: float
    ) -> AttemptObserver:
        """See `turnline.worker.turn.observer.Observer`."""
        content = CapturedContent() if self.capture else None
        notes = AttemptNotes(lease, loaded, began_at_s, loaded_at_s, content)
        self.meters.began()
        return AttemptRecorder(self, notes)


def _harmless(
    method: Callable[Concatenate["AttemptRecorder", P], None],
) -> Callable[Concatenate["AttemptRecorder", P], None]:
    """Keep a defect of the recorder away from the turn; its kind is logged."""

    def guarded(self: "AttemptRecorder", /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001  a turn must not fail because it is recorded
            log.warning(
                "telemetry.defect", extra={"error": type(error).__name__, "in": method.__name__}
            )

    guarded.__doc__ = method.__doc__
    return guarded


class AttemptRecorder(AttemptObserver):
    """Watches one attempt; see `turnline.worker.turn.observer.AttemptObserver`."""

    def __init__(self, recording: Recording, notes: AttemptNotes) -> None:
        """Write into these notes."""
        self._recording = recording
        self._notes = notes
        self._committing_at_s = 0.0

    @_harmless
    def collected(self, used: Sequence[ConsumedEntry], owner: ConsumedEntry) -> None:
        """See `turnline.worker.turn.observer`."""
        self._notes.collected(used, owner)

    @_harmless
    def call_started(
        self, call: LLMCall, context: OpenAILLMContext, settings: ConversationSettings
    ) -> None:
        """See `turnline.worker.turn.observer`."""
        span_id, notes = new_span_id(), self._notes
        notes.calls.append(CallNote(span_id, call, settings))
        if notes.content is not None:
            notes.content.call_started(context)
        if self._recording.send_traceparent and notes.owner is not None:
            trace = notes.owner.trace
            flags = "01" if trace.sampled else "00"
            traceparent_to_send.set(f"00-{trace.trace_id}-{span_id}-{flags}")

    def on_text(self, text: str) -> None:
        """See `turnline.worker.turn.observer`."""
        if self._notes.content is not None:
            self._notes.content.add_text(text)

    @_harmless
    def call_finished(self, call: LLMCall) -> None:
        """See `turnline.worker.turn.observer`."""
        self._recording.meters.call(call)

    @_harmless
    def tool_started(self, call_id: str, name: str, arguments: Any) -> None:
        """See `turnline.worker.turn.observer`."""
        self._notes.tools[call_id] = ToolNote(name, arguments)

    @_harmless
    def tool_finished(self, call_id: str, result: Any, failure: str | None) -> None:
        """See `turnline.worker.turn.observer`."""
        tool = self._notes.tools.get(call_id)
        if tool is not None and tool.ended_at_s is None:
            tool.ended_at_s = time.monotonic()
            tool.result, tool.failure = result, failure
            self._recording.meters.tool(tool.name, tool.ended_at_s - tool.began_at_s, failure)

    @_harmless
    def retrying(self, code: str, wait_s: float) -> None:
        """See `turnline.worker.turn.observer`."""
        self._notes.retry = (code, wait_s)

    @_harmless
    def committing(self) -> None:
        """See `turnline.worker.turn.observer`."""
        self._committing_at_s = time.monotonic()

    @_harmless
    def committed(self, effects: Effects, outcome: str) -> None:
        """See `turnline.worker.turn.observer`."""
        commit = CommitNote(self._committing_at_s, time.monotonic(), outcome)
        self._notes.commits.append(commit)
        if outcome != "duplicate":
            self._notes.effects = effects

    @_harmless
    def ended(self, outcome: Outcome | BaseException) -> None:
        """See `turnline.worker.turn.observer`."""
        ended_at_s, notes, meters = time.monotonic(), self._notes, self._recording.meters
        waits = isinstance(outcome, Parked) and outcome.why == "input"
        if waits and not notes.calls and not notes.lost:
            meters.parked()
            return  # nothing happened yet: the next attempt records all of it
        word, error = self._outcome(outcome)
        owner = notes.owner or notes.first_entry()
        endings = endings_of(notes.effects, notes.used) if notes.effects is not None else []
        meters.ended(
            word,
            notes.loaded,
            notes.effects,
            endings,
            first_text_s=notes.first_text_s(),
            now_ms=notes.ns(ended_at_s) // 1_000_000,
            retry_code=notes.retry_code,
        )
        ending = next((end for end in endings if end.used is owner), None)
        error = error or (ending.error if ending is not None else "")
        self._log(word, error, ending, ended_at_s)
        if self._recording.sinks and word != "lease_lost":  # its next holder exports this one
            self._export(word, error, owner, endings, ended_at_s)

    def _outcome(self, outcome: Outcome | BaseException) -> tuple[str, str]:
        """Return the attempt's outcome in a word, and the error's code if that is one."""
        match outcome:
            case asyncio.CancelledError():
                return ("lease_lost" if self._notes.lease.lost else "handed_over"), ""
            case WorkerError():
                return outcome.code, ""
            case BaseException():
                return "defect", type(outcome).__name__
            case Parked():
                return ("waiting" if outcome.why == "input" else "retry"), ""
            case _:
                return (self._notes.commits[-1].outcome if self._notes.commits else "done"), ""

    def _export(
        self,
        word: str,
        error: str,
        owner: ConsumedEntry,
        endings: Sequence[Ending],
        ended_at_s: float,
    ) -> None:
        """Export what was done for the turn, and for each other that ended or was rolled back."""
        notes, recording = self._notes, self._recording
        make = AttemptSpans(notes, recording.worker, recording.place, recording.queue)
        now_ns = notes.ns(ended_at_s)
        part = notes.part(owner, ended_at_s)
        spans = make.of_attempt(part, word, error, now_ns)
        ending = next((end for end in endings if end.used is owner), None)
        if ending is not None:
            spans = [*make.of_turn(ending, part, now_ns, error), *spans]
        self._export_turn(owner, spans, ending, error, now_ns)
        undone = {part.owner.turn_id: part for part in notes.undone}
        for other in endings:
            if other is not ending:
                of_part = make.of_undone(undone.pop(other.used.turn_id, None))
                spans = [make.of_other(other, owner, now_ns), *of_part]
                self._export_turn(other.used, spans, other, other.error, now_ns)
        for part in undone.values():  # not committed yet: another attempt exports the rest
            self._export_turn(part.owner, make.of_undone(part), None, "", now_ns)

    def _export_turn(
        self, used: ConsumedEntry, spans: list[Span], ending: Ending | None, error: str, now_ns: int
    ) -> None:
        redact = self._recording.redact
        for span in spans:
            span.trace_id = span.trace_id or used.trace.trace_id
            if span.error:
                span.attributes[n.ERROR_TYPE] = span.error
            if redact is not None:
                span.attributes = redacted(redact, span.name, span.attributes)
        batch = TurnSpans(
            conversation_id=self._notes.lease.conversation_id,
            turn_id=used.turn_id,
            trace_id=used.trace.trace_id,
            attempt=self._notes.loaded.attempt,
            worker=self._recording.worker,
            state=ending.state if ending is not None else "",
            code=(ending.error if ending is not None else "") or error or self._notes.retry_code,
            duration_ms=max(0, now_ns // 1_000_000 - used.entry.accepted_at_ms),
            ended_at_ms=now_ns // 1_000_000,
            sampled=used.trace.sampled,
            has_parent=used.trace.sent is not None,
            tracestate=used.trace.tracestate,
            spans=spans,
        )
        for sink in self._recording.sinks:
            sink.export(batch)

    def _log(self, word: str, error: str, ending: Ending | None, ended_at_s: float) -> None:
        """Say in one line how the attempt went; its ids come with every line.

        The outcome is how the turn ended, where this attempt ended it.
        """
        level = _LEVELS.get(word, logging.WARNING)
        if error:
            level = max(level, logging.WARNING)
        if not turns_log.isEnabledFor(level):
            return
        if ending is not None and word in _COMMITTED:
            word = ending.state
        notes = self._notes
        usage = [entry.usage for entry in notes.effects.calls] if notes.effects is not None else []
        turns_log.log(
            level,
            "turn.attempt_ended",
            extra={
                "outcome": "committed" if word in _COMMITTED else word,
                "code": error or notes.retry_code,
                "duration_ms": round((ended_at_s - notes.began_at_s) * 1000, 1),
                "calls": len(notes.calls),
                "input_tokens": sum(u.prompt_tokens for u in usage),
                "output_tokens": sum(map(output_tokens, usage)),
            },
        )


def redacted(redact: Redactor, name: str, attributes: Attributes) -> Attributes:
    """Return what may leave; nothing, if the redactor fails."""
    try:
        return redact(name, attributes)
    except Exception as error:  # noqa: BLE001  foreign code; in doubt nothing leaves
        log.warning("telemetry.redactor_failed", extra={"error": type(error).__name__})
        return {}
