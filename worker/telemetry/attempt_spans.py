"""The spans of what an attempt does for a turn. They start when that begins, and end together.

What a killed worker had not ended is told by its successor, so nothing is told twice.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from opentelemetry.trace import SpanKind

from turnline.contracts.conversation import ConversationSettings
from turnline.contracts.messages import ContextAppend, UserMessage
from turnline.contracts.trace_context import Link, TurnTrace
from turnline.worker.effects import ConversationSnapshot, Effects
from turnline.worker.pipeline.calls import LLMCall
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.attributes import (
    CallPlace,
    Ending,
    agent_attributes,
    call_attributes,
    call_error,
    chat_attributes,
    place_of,
    process_attributes,
    tool_attributes,
    turn_attributes,
)
from turnline.worker.telemetry.captured_content import CapturedContent
from turnline.worker.telemetry.evaluations import Evaluation, evaluation_of
from turnline.worker.telemetry.lost_attempts import just_lost, tell_lost
from turnline.worker.telemetry.spans import Attributes
from turnline.worker.telemetry.tracing import OpenSpan, Tracing, below
from turnline.worker.turn.gathering import ConsumedEntry

ROLLED_BACK: Final = "rolled_back"
"""Outcome of what an attempt did for a turn that was undone."""
_AGENT: Final = 0


class Around(NamedTuple):
    """What the spans of an attempt have in common."""

    tracing: Tracing
    place: CallPlace
    worker: str
    queue: str
    conversation_id: str
    loaded: ConversationSnapshot
    content: CapturedContent | None
    ns: Callable[[float], int]
    """Converts `time.monotonic` to ns since the Unix epoch, by Redis' clock."""
    waited_for: str = ""

    def ids(self, used: ConsumedEntry) -> Attributes:
        """Return what every span has."""
        return {n.CONVERSATION_ID: self.conversation_id, n.TURN_ID: used.turn_id}


def agent_of(owner: ConsumedEntry, loaded: ConversationSnapshot) -> str | None:
    """Return the agent that a message or its conversation names."""
    message = owner.message
    asked = message.agent if isinstance(message, UserMessage | ContextAppend) else None
    return asked or loaded.settings.agent


class _Tool:
    def __init__(self, span: OpenSpan, arguments: Any) -> None:
        self.span = span
        self.arguments = arguments
        self.ended_at_s: float | None = None
        self.result: Any = None
        self.failure = ""


class _Noted(NamedTuple):
    """Something short within an attempt."""

    name: str
    which: str
    start_ns: int
    end_ns: int
    attributes: Attributes


class Work:
    """What an attempt does for one turn. A rollback ends it: what follows is another turn's."""

    def __init__(
        self, around: Around, owner: ConsumedEntry, began_at_s: float, before: "Work | None"
    ) -> None:
        """Start the attempt's span.

        Args:
            around: The attempt.
            owner: Of the turn.
            began_at_s: On the clock `time.monotonic`.
            before: What was rolled back.
        """
        self.owner: Final = owner
        self.trace: Final = around.tracing.sampled(owner.trace)
        self.calls: list[LLMCall] = []
        self.is_first: Final = before is None
        self.began_at_s: Final = began_at_s
        self._around = around
        self._ids = around.ids(owner)
        self._calls_before = before.calls_so_far if before is not None else 0
        self._called: list[tuple[ConversationSettings, OpenSpan]] = []
        self._tools: dict[str, _Tool] = {}
        self._agent: OpenSpan | None = None
        self._noted: list[_Noted] = []
        attributes = process_attributes(
            self._ids, around.conversation_id, owner, around.loaded, around.queue
        )
        self.process: Final = around.tracing.start(
            n.PROCESS,
            below(self.trace, around.loaded.attempt),
            {**attributes, n.WORKER: around.worker},
            max(around.ns(began_at_s), accepted_ns(owner)),
            kind=SpanKind.CONSUMER,
            links=(owner.trace.sent,) if owner.trace.sent is not None else (),
        )

    @property
    def first_ns(self) -> int:
        """When it began."""
        return self.process.start_ns

    @property
    def calls_so_far(self) -> int:
        """Number of model calls of the attempt."""
        return self._calls_before + len(self.calls)

    @property
    def open_spans(self) -> list[OpenSpan]:
        """What has not ended."""
        agent = [self._agent] if self._agent is not None else []
        called = [span for _, span in self._called]
        tools = [tool.span for tool in self._tools.values()]
        return [self.process, *agent, *called, *tools]

    def ended_at_s(self) -> float:
        """Return when the last call for it was over, now at the latest."""
        now_s = time.monotonic()
        return min(now_s, max((it.finished_at or now_s for it in self.calls), default=now_s))

    # -- what begins and ends -------------------------------------------------------------------

    def rebuilt(self, ready_at_s: float) -> None:
        """The context was fetched and rebuilt."""
        messages = self._around.loaded.messages
        size = {n.CONTEXT_MESSAGES: len(messages), n.CONTEXT_BYTES: sum(map(len, messages))}
        ready_ns = self._around.ns(ready_at_s)
        self._noted.append(_Noted(n.REBUILD, n.REBUILD, self.first_ns, ready_ns, size))

    def aggregated(self, messages: int, since_s: float) -> None:
        """Several messages were made the turn."""
        times = (self._around.ns(since_s), self._around.ns(time.monotonic()))
        about: Attributes = {n.TURN_MESSAGES: messages}
        self._noted.append(_Noted(n.AGGREGATE, n.AGGREGATE, *times, about))

    def begin_call(self, call: LLMCall, settings: ConversationSettings) -> OpenSpan:
        """A request is about to be sent."""
        self.calls.append(call)
        span = self._start_work(
            f"{n.CHAT} {call.model}",
            len(self.calls),
            chat_attributes(call.model, place_of(call, self._around.place)),
            self._around.ns(call.started_at),
            SpanKind.CLIENT,
        )
        self._called.append((settings, span))
        return span

    def begin_tool(self, call_id: str, name: str, arguments: Any) -> None:
        """A function begins to run."""
        attributes, now_ns = tool_attributes(name, call_id), self._around.ns(time.monotonic())
        span = self._start_work(f"{n.EXECUTE_TOOL} {name}", call_id, attributes, now_ns)
        self._tools[call_id] = _Tool(span, arguments)
        if self._around.content is not None:
            self._around.content.add_tool_call(call_id, name, arguments)

    def tool_span(self, call_id: str) -> OpenSpan | None:
        """Return the span of a function that runs."""
        tool = self._tools.get(call_id)
        return tool.span if tool is not None else None

    def finish_tool(self, call_id: str, result: Any, failure: str | None) -> None:
        """A function has its result."""
        tool = self._tools.get(call_id)
        if tool is not None and tool.ended_at_s is None:
            tool.ended_at_s, tool.result, tool.failure = time.monotonic(), result, failure or ""

    def committed(self, began_at_s: float, outcome: str) -> None:
        """A commit was answered."""
        times = (self._around.ns(began_at_s), self._around.ns(time.monotonic()))
        which = f"{n.COMMIT} {len(self._noted)}"
        self._noted.append(_Noted(n.COMMIT, which, *times, {n.COMMIT_OUTCOME: outcome}))

    def end(
        self, outcome: str, error: str, now_ns: int, retry: tuple[str, float] | None = None
    ) -> None:
        """End all of it.

        Args:
            outcome: Of the attempt, in a word.
            error: Code of its failure.
            now_ns: When that was.
            retry: Why another attempt follows, and in how many seconds.
        """
        around, redact = self._around, self._around.tracing.redact
        worked: list[OpenSpan] = []
        called = zip(self.calls, self._called, strict=True)
        for number, (call, (settings, span)) in enumerate(called, self._calls_before):
            span.attributes.update(call_attributes(call, settings))
            if around.content is not None:
                span.attributes.update(around.content.of_call(number, call.finish_reason))
            end_ns = now_ns if call.finished_at is None else around.ns(call.finished_at)
            span.end(end_ns, call_error(call), redact)
            worked.append(span)
        for tool in self._tools.values():
            end_ns = now_ns if tool.ended_at_s is None else around.ns(tool.ended_at_s)
            if tool.ended_at_s is None:
                state = "sent_out" if outcome == "waiting" else "cancelled"
                tool.span.attributes[n.TOOL_STATE] = state
            if around.content is not None:
                tool.span.attributes.update(around.content.of_tool(tool.arguments, tool.result))
            tool.span.end(end_ns, tool.failure, redact)
            worked.append(tool.span)
        if self._agent is not None:
            self._agent.end(max(span.end_ns for span in worked), "", redact)
        for noted in self._noted:
            about = {**self._ids, **noted.attributes}
            span = self._start(noted.name, noted.which, about, noted.start_ns, self.process)
            span.end(noted.end_ns, "", redact)
        word = "committed" if outcome == "released" else outcome
        self.process.attributes[n.ATTEMPT_OUTCOME] = word
        if retry is not None and outcome == "retry":
            why: Attributes = {n.ERROR_TYPE: retry[0], n.RETRY_IN_S: round(retry[1], 3)}
            self.process.attributes[n.RETRY_IN_S] = why[n.RETRY_IN_S]
            self.process.told.add_event(n.RETRY_EVENT, why, now_ns)
        self.process.end(now_ns, error, redact)

    def tell_lost(self) -> None:
        """Tell of the attempts before this one whose workers died."""
        around, accepted = self._around, accepted_ns(self.owner)
        if not (lost := just_lost(around.loaded)):
            return
        tell_lost(
            lost,
            around.tracing,
            self.owner.trace._replace(sampled=self.trace.sampled),
            self._ids,
            around.place,
            agent=agent_of(self.owner, around.loaded),
            within=lambda ns: min(max(ns, accepted), self.first_ns),  # Redis gives whole ms
        )

    def _start_work(
        self,
        name: str,
        which: int | str,
        attributes: Attributes,
        start_ns: int,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> OpenSpan:
        """Start a span below the agent's, if there is one, which starts with the first."""
        agent, above = agent_of(self.owner, self._around.loaded), self.process
        attributes = {**self._ids, **attributes}
        if agent:
            attributes[n.AGENT_NAME] = agent
            if self._agent is None:
                about = {**self._ids, **agent_attributes(agent)}
                named = f"{n.INVOKE_AGENT} {agent}"
                self._agent = self._start(named, _AGENT, about, start_ns, self.process)
            above = self._agent
        return self._start(name, which, attributes, start_ns, above, kind)

    def _start(  # noqa: PLR0917  as `Tracing.start`
        self,
        name: str,
        which: int | str,
        attributes: Attributes,
        start_ns: int,
        above: OpenSpan,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> OpenSpan:
        at = below(self.process.at, which)
        start_ns = max(start_ns, self.first_ns)
        return self._around.tracing.start(name, at, attributes, start_ns, above=above, kind=kind)


def tell_turn(
    around: Around,
    ending: Ending,
    effects: Effects,
    work: Work,
    now_ns: int,
    *,
    error: str,
    used: Sequence[ConsumedEntry],
) -> None:
    """Tell the turn's own span and that of its wait, now that it has ended.

    Args:
        around: The attempt that ended it.
        ending: How.
        effects: What was committed.
        work: What the attempt did for it.
        now_ns: When it ended.
        error: Code of its failure.
        used: All messages that it used up.
    """
    owner, trace, loaded = ending.used, work.trace, around.loaded
    ids, accepted = around.ids(owner), accepted_ns(owner)
    began_here = loaded.attempt == 1 or not work.is_first
    first_ns = max(work.first_ns if began_here else loaded.since_ms * 1_000_000, accepted)
    attributes = {**ids, **turn_attributes(ending, effects, loaded, around.conversation_id)}
    if around.content is not None:
        attributes.update(around.content.of_turn(used, ending.event))
    rating = evaluation_of(ending, effects, around.conversation_id)
    into = [Link(u.trace.trace_id, u.trace.span_id) for u in used if u is not owner]
    here = [trace.sent] if trace.sent is not None else []
    begun_ns, wait_at, wait_links = accepted, below(trace, n.WAIT), list[Link]()
    if trace.waited_in is not None:
        here, begun_ns = [trace.waited_in], first_ns
        wait_at = _waited(trace, trace.waited_in)
        wait_links = [Link(trace.trace_id, trace.span_id)]
    start, redact = around.tracing.start, around.tracing.redact
    turn = start(n.TURN, trace, attributes, begun_ns, links=[*here, *into, *_rated(rating)])
    waited: dict[str, Any] = {**ids, n.WAIT_S: (first_ns - accepted) / 1e9}
    if around.waited_for:
        waited[n.WAIT_FOR] = around.waited_for
    above = turn if trace.waited_in is None else None
    wait = start(n.WAIT, wait_at, waited, accepted, above=above, links=wait_links)
    wait.end(first_ns, "", redact)
    _tell_rating(around, turn, rating, now_ns)
    turn.end(now_ns, error, redact)


def tell_other(
    around: Around, ending: Ending, effects: Effects, owner: ConsumedEntry, now_ns: int
) -> TurnTrace:
    """Tell the span of a message that ended together with a turn, in its own trace."""
    used, tracing = ending.used, around.tracing
    trace = tracing.sampled(used.trace)
    attributes: Attributes = {**around.ids(used), n.TURN_OUTCOME: ending.state}
    if ending.state == "absorbed":
        attributes[n.TURN_INTO] = owner.turn_id
    rating = evaluation_of(ending, effects, around.conversation_id)
    links = [Link(owner.trace.trace_id, owner.trace.span_id), *_rated(rating)]
    span = tracing.start(n.TURN, trace, attributes, accepted_ns(used), links=links)
    _tell_rating(around, span, rating, now_ns)
    span.end(now_ns, ending.error, tracing.redact)
    return trace


def _rated(rating: Evaluation | None) -> list[Link]:
    return [rating.turn] if rating is not None else []


def _tell_rating(around: Around, span: OpenSpan, rating: Evaluation | None, now_ns: int) -> None:
    if rating is not None:
        about = rating.told(around.tracing.redact, capture=around.content is not None)
        span.told.add_event(n.EVALUATION_EVENT, about, now_ns)


def accepted_ns(used: ConsumedEntry) -> int:
    """Return when a message was accepted."""
    return used.entry.accepted_at_ms * 1_000_000


def _waited(trace: TurnTrace, wait: Link) -> TurnTrace:
    """Return the place of the wait of a turn whose trace is another one."""
    above = trace.sent.span_id if trace.sent is not None else ""
    return trace._replace(trace_id=wait.trace_id, span_id=wait.span_id, parent_id=above)
