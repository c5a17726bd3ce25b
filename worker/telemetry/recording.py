"""Records attempts at turns: notes while one runs, and spans, which end when it is over."""

import asyncio
import logging
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec

from opentelemetry import context as otel_context
from opentelemetry import trace as otel
from opentelemetry.baggage.propagation import W3CBaggagePropagator

from turnline.contracts.conversation import ConversationSettings
from turnline.contracts.trace_context import TurnTrace
from turnline.worker.effects import ConversationSnapshot, Effects
from turnline.worker.errors import WorkerError
from turnline.worker.lease import Lease
from turnline.worker.outcome import Outcome, Parked
from turnline.worker.pipeline.calls import LLMCall
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.telemetry.attempt_spans import (
    ROLLED_BACK,
    Around,
    Work,
    agent_of,
    tell_other,
    tell_turn,
)
from turnline.worker.telemetry.attributes import CallPlace, Ending, endings_of, output_tokens
from turnline.worker.telemetry.captured_content import CapturedContent
from turnline.worker.telemetry.evaluations import EvaluationLog, evaluation_of
from turnline.worker.telemetry.kept_spans import SpanKeeper
from turnline.worker.telemetry.metrics import TurnMeters
from turnline.worker.telemetry.spans import TurnSpans
from turnline.worker.telemetry.tracing import OpenSpan, Tracing, traceparent_of
from turnline.worker.turn.gathering import ConsumedEntry, trace_of
from turnline.worker.turn.observer import AttemptObserver

log = logging.getLogger("turnline.telemetry")
turns_log = logging.getLogger("turnline.turns")
SHOWN_AFTER_S: Final = 3.0
"""What runs for longer is shown to `turnline trace`, and again after three times as long."""
_BAGGAGE: Final = W3CBaggagePropagator()
_COMMITTED: Final = frozenset({"committed", "released"})
_LEVELS: Final = {
    **dict.fromkeys(("committed", "released", "done", "waiting", "handed_over"), logging.INFO),
    "duplicate": logging.INFO,
    "defect": logging.ERROR,
}
"""How loud an attempt's outcome is; all others are failures of something."""
P = ParamSpec("P")


class Recording(NamedTuple):
    """Records the turns of a worker; see `turnline.worker.turn.observer.Observer`."""

    worker: str
    place: CallPlace
    tracing: Tracing | None
    """None: no spans are made."""
    meters: TurnMeters
    queue: str
    """Name of the queue, as spans show it."""
    keeper: SpanKeeper | None = None
    """Keeps spans where `turnline trace` finds them."""
    capture: bool = False
    """Whether what people and models say goes into spans."""
    evaluations: EvaluationLog | None = None
    """Emits events for ratings that no span has."""

    def attempt(
        self, lease: Lease, loaded: ConversationSnapshot, *, began_at_s: float, loaded_at_s: float
    ) -> AttemptObserver:
        """See `turnline.worker.turn.observer.Observer`."""
        self.meters.began()
        return AttemptRecorder(self, lease, loaded, began_at_s, loaded_at_s)


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

    def __init__(
        self,
        recording: Recording,
        lease: Lease,
        loaded: ConversationSnapshot,
        began_at_s: float,
        loaded_at_s: float,
    ) -> None:
        """Begin; see `turnline.worker.turn.observer.Observer`."""
        self._recording = recording
        self._lease = lease
        self._loaded = loaded
        self._began_at_s = began_at_s
        self._ready_at_s = time.monotonic()
        self._ns = redis_clock(loaded, began_at_s, loaded_at_s)
        self._around: Around | None = None
        if recording.tracing is not None:
            self._around = Around(
                tracing=recording.tracing,
                place=recording.place,
                worker=recording.worker,
                queue=recording.queue,
                conversation_id=lease.conversation_id,
                loaded=loaded,
                content=CapturedContent() if recording.capture else None,
                ns=self._ns,
            )
        self._used: Sequence[ConsumedEntry] = ()
        self._owner: ConsumedEntry | None = None
        self._works: list[Work] = []
        """The last one is that of the turn; the others were rolled back."""
        self._calls: list[LLMCall] = []
        self._calls_undone = 0
        self._tools: dict[str, tuple[str, float]] = {}
        """Names of functions that run, and since when."""
        self._effects: Effects | None = None
        self._committing_at_s = 0.0
        self._outcomes: list[str] = []
        """Of its commits."""
        self._retry: tuple[str, float] | None = None
        self._active = otel_context.get_current()
        """The context in which the attempt runs, but for its calls and tools."""
        self._shown: asyncio.TimerHandle | None = None

    @_harmless
    def collected(self, used: Sequence[ConsumedEntry], owner: ConsumedEntry) -> None:
        """See `turnline.worker.turn.observer`."""
        is_other = self._owner is not None and self._owner.turn_id != owner.turn_id
        if is_other:
            self._calls_undone = len(self._calls)
        is_new = self._owner is None or is_other
        self._used, self._owner = used, owner  # more may be used up later
        if self._around is None or not is_new:
            return
        work = self._work(owner)
        since_s = self._ready_at_s
        if work.is_first:
            work.rebuilt(since_s)
        if len(used) > 1:
            work.aggregated(len(used), since_s if work.is_first else work.began_at_s)
        if self._recording.keeper is not None and self._shown is None:
            self._show_in(SHOWN_AFTER_S)

    def _work(self, owner: ConsumedEntry) -> Work:
        assert self._around is not None
        before = self._works[-1] if self._works else None
        began_at_s = self._began_at_s if before is None else before.ended_at_s()
        self._works.append(Work(self._around, owner, began_at_s, before))
        return self._works[-1]

    @_harmless
    def call_started(
        self, call: LLMCall, context: OpenAILLMContext, settings: ConversationSettings
    ) -> None:
        """See `turnline.worker.turn.observer`."""
        self._calls.append(call)
        if self._around is None or not self._works:
            return
        if self._around.content is not None:
            self._around.content.call_started(context)
        self._activate(self._works[-1].begin_call(call, settings))

    def on_text(self, text: str) -> None:
        """See `turnline.worker.turn.observer`."""
        if self._around is not None and self._around.content is not None:
            self._around.content.add_text(text)

    @_harmless
    def call_finished(self, call: LLMCall) -> None:
        """See `turnline.worker.turn.observer`."""
        self._recording.meters.call(call)
        self._activate(None)

    @_harmless
    def tool_started(self, call_id: str, name: str, arguments: Any) -> None:
        """See `turnline.worker.turn.observer`."""
        self._tools[call_id] = (name, time.monotonic())
        if self._works:
            self._works[-1].begin_tool(call_id, name, arguments)

    def traceparent(self, call_id: str) -> str:
        """See `turnline.worker.turn.observer`."""
        span = self._works[-1].tool_span(call_id) if self._works else None
        return traceparent_of(span.told) if span is not None else ""

    @contextmanager
    def tool_runs(self, call_id: str) -> Generator[None]:
        """See `turnline.worker.turn.observer`."""
        span = self._works[-1].tool_span(call_id) if self._works else None
        if span is None:
            yield
            return
        token = otel_context.attach(self._within(span))
        try:
            yield
        finally:
            otel_context.detach(token)

    @_harmless
    def tool_finished(self, call_id: str, result: Any, failure: str | None) -> None:
        """See `turnline.worker.turn.observer`."""
        found = self._tools.pop(call_id, None)
        if found is not None:
            name, began_at_s = found
            self._recording.meters.tool(name, time.monotonic() - began_at_s, failure)
            if self._works:
                self._works[-1].finish_tool(call_id, result, failure)

    @_harmless
    def waited(self, what: str) -> None:
        """See `turnline.worker.turn.observer`."""
        if self._around is not None:
            self._around = self._around._replace(waited_for=what)

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
        self._outcomes.append(outcome)
        if self._works:
            self._works[-1].committed(self._committing_at_s, outcome)
        if outcome != "duplicate":
            self._effects = effects

    @_harmless
    def ended(self, outcome: Outcome | BaseException) -> None:
        """See `turnline.worker.turn.observer`."""
        ended_at_s, meters = time.monotonic(), self._recording.meters
        self._activate(None)
        if self._shown is not None:
            self._shown.cancel()
        waits = isinstance(outcome, Parked) and outcome.why in {"input", "limit"}
        if waits and not self._calls and not self._loaded.crashes:
            meters.parked(self._retry_code)
            return  # nothing happened yet: the next attempt records all of it
        word, error = self._outcome(outcome)
        owner = self._owner or self._first_entry()
        endings = endings_of(self._effects, self._used) if self._effects is not None else []
        now_ns = self._ns(ended_at_s)
        meters.ended(
            word,
            self._loaded,
            self._effects,
            endings,
            first_text_s=self._first_text_s(),
            now_ms=now_ns // 1_000_000,
            retry_code=self._retry_code,
        )
        agent, calls = agent_of(owner, self._loaded), self._calls[self._calls_undone :]
        if agent and calls:
            meters.agent_duration(ended_at_s - calls[0].started_at, agent, calls[0].model)
        ending = next((end for end in endings if end.used is owner), None)
        error = error or (ending.error if ending is not None else "")
        self._log(word, error, ending, ended_at_s)
        if self._around is not None and word != "lease_lost":  # its next holder tells this one
            if not self._works:
                self._work(owner).rebuilt(self._ready_at_s)
            self._tell(word, error, endings, now_ns)
        if self._recording.evaluations is not None and self._effects is not None:
            conversation_id, effects = self._lease.conversation_id, self._effects
            found = [evaluation_of(it, effects, conversation_id) for it in endings]
            if any(found):
                self._recording.evaluations.emit(filter(None, found), now_ns)

    @property
    def _retry_code(self) -> str:
        """Why another attempt follows; empty if none does."""
        return self._retry[0] if self._retry is not None else ""

    def _first_entry(self) -> ConsumedEntry:
        """Return the first inbox entry as it would be used, where nothing was collected yet."""
        entry = self._loaded.entries[0]
        turn_id, message = entry.turn_id or entry.entry_id, entry.message
        conversation_id, since_ms = self._lease.conversation_id, self._loaded.since_ms
        trace = trace_of(conversation_id, turn_id, entry, message, since_ms=since_ms)
        return ConsumedEntry(entry, turn_id, message, None, trace)

    def _first_text_s(self) -> float | None:
        """Return the time from acceptance to the first text of this attempt, seconds."""
        if self._owner is None:
            return None
        for call in self._calls[self._calls_undone :]:
            if call.first_text_at is not None:
                accepted = self._owner.entry.accepted_at_ms * 1_000_000
                return max(0.0, (self._ns(call.first_text_at) - accepted) / 1e9)
        return None

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
                return (self._outcomes[-1] if self._outcomes else "done"), ""

    # -- spans ----------------------------------------------------------------------------------

    def _within(self, span: OpenSpan) -> otel_context.Context:
        """Return the context of what happens within a span, with the producer's baggage."""
        assert self._owner is not None
        return otel.set_span_in_context(span.told, baggage_of(self._owner))

    def _activate(self, span: OpenSpan | None) -> None:
        """Have what this task does next belong to a span; to none of ours, if that is None."""
        if self._around is not None:
            otel_context.attach(self._active if span is None else self._within(span))

    def _show_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._shown = loop.call_later(seconds, self._show, 3 * seconds)

    @_harmless
    def _show(self, again_s: float) -> None:
        """Let an attempt that runs for long be seen, as far as it has come."""
        assert self._recording.keeper is not None
        work, now_ns = self._works[-1], self._ns(time.monotonic())
        spans = [span.told for span in work.open_spans]
        self._recording.keeper.show(self._turn(work.owner, None, "", now_ns), spans, now_ns)
        self._show_in(again_s)

    def _tell(self, word: str, error: str, endings: Sequence[Ending], now_ns: int) -> None:
        """Tell what was done for the turn, and for each other that ended or was rolled back."""
        assert self._around is not None
        *undone, work = self._works
        (undone[0] if undone else work).tell_lost()
        work.end(word, error, now_ns, self._retry)
        for it in undone:
            it.end(ROLLED_BACK, "", self._ns(it.ended_at_s()))
        ended = {ending.used.turn_id: ending for ending in endings}
        ending = ended.pop(work.owner.turn_id, None)
        if ending is not None:
            assert self._effects is not None
            tell_turn(
                self._around, ending, self._effects, work, now_ns, error=error, used=self._used
            )
        self._keep(work.trace, work.owner, ending, error, now_ns)
        for other in ended.values():
            assert self._effects is not None
            trace = tell_other(self._around, other, self._effects, work.owner, now_ns)
            self._keep(trace, other.used, other, other.error, now_ns)
        for it in undone:  # not committed yet: another attempt tells the rest
            if it.owner.turn_id not in ended:
                self._keep(it.trace, it.owner, None, "", now_ns)

    def _keep(
        self,
        trace: TurnTrace,
        used: ConsumedEntry,
        ending: Ending | None,
        error: str,
        now_ns: int,
    ) -> None:
        if self._recording.keeper is not None:
            self._recording.keeper.keep(self._turn(used, ending, error, now_ns), trace)

    def _turn(
        self, used: ConsumedEntry, ending: Ending | None, error: str, now_ns: int
    ) -> TurnSpans:
        """Return what helps to find the spans of an attempt at a turn."""
        return TurnSpans(
            conversation_id=self._lease.conversation_id,
            turn_id=used.turn_id,
            trace_id=used.trace.trace_id,
            attempt=self._loaded.attempt,
            worker=self._recording.worker,
            state=ending.state if ending is not None else "",
            code=(ending.error if ending is not None else "") or error or self._retry_code,
            duration_ms=max(0, now_ns // 1_000_000 - used.entry.accepted_at_ms),
            ended_at_ms=now_ns // 1_000_000,
            spans=[],
        )

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
        usage = [it.usage for it in self._effects.calls] if self._effects is not None else []
        turns_log.log(
            level,
            "turn.attempt_ended",
            extra={
                "outcome": "committed" if word in _COMMITTED else word,
                "code": error or self._retry_code,
                "duration_ms": round((ended_at_s - self._began_at_s) * 1000, 1),
                "calls": len(self._calls),
                "input_tokens": sum(u.prompt_tokens for u in usage),
                "output_tokens": sum(map(output_tokens, usage)),
            },
        )


def baggage_of(used: ConsumedEntry) -> otel_context.Context:
    """Return a context with the baggage that came with a message, and nothing else."""
    given = used.message.baggage if used.message is not None else None
    return (
        _BAGGAGE.extract({"baggage": given}, otel_context.Context())
        if given
        else otel_context.Context()
    )


def redis_clock(
    loaded: ConversationSnapshot, began_at_s: float, loaded_at_s: float
) -> Callable[[float], int]:
    """Return what converts `time.monotonic` to ns since the Unix epoch, by Redis' clock."""
    offset_ns = loaded.now_ms * 1_000_000 - int(loaded_at_s * 1e9)
    if loaded.entries:  # Redis gives whole ms: an attempt could begin before its message
        accepted = loaded.entries[0].accepted_at_ms * 1_000_000
        offset_ns += max(0, accepted - int(began_at_s * 1e9) - offset_ns)

    def ns(clock_s: float) -> int:
        return int(clock_s * 1e9) + offset_ns

    return ns
