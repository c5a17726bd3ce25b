"""Says in words what happened in a turn, and why: from its spans, its record and its ledger."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import msgspec

from turnline.ops.cli import output
from turnline.ops.traces.causes import cause_of
from turnline.ops.traces.kept_traces import TracedTurn
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.spans import Span

_NOTED_MS: Final = 500.0
"""What takes less explains nothing, if it is no trouble."""
_SHARE: Final = 0.2
"""Of a turn's time that explains something."""
_WAITED: Final[Mapping[str, str]] = {
    "provider_limit": "what the provider allows was used up (`turnline queue` shows the limits)",
    "tenant_limit": "its tenant had used up what it may ask for (docs/tenants.md)",
    "": "no worker had a free slot, or its tenant ran as many turns as it may "
    "(`turnline queue` shows both)",
}
_OUTCOMES: Final[Mapping[str, str]] = {
    "completed": "was answered after",
    "failed": "failed after",
    "interrupted": "was interrupted after",
    "absorbed": "became part of another turn after",
    "running": "has not ended; it was accepted before",
}


class Step(msgspec.Struct, frozen=True):
    """One thing that happened."""

    after_ms: float
    """Since the turn was accepted."""
    text: str


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """A turn in words."""

    conversation_id: str
    turn_id: str
    state: str
    code: str
    headline: str
    causes: tuple[str, ...]
    """Why it failed or took long, the weightiest first."""
    advice: str
    """What to do; empty: nothing."""
    cost: str
    steps: tuple[Step, ...]


class _Weighed(NamedTuple):
    lost_ms: float
    is_trouble: bool
    text: str
    advice: str = ""


def explain(turn: TracedTurn, workers: Mapping[int, str] | None = None) -> Explanation:
    """Explain a turn.

    Args:
        turn: With its spans.
        workers: Names of workers by the attempts they made, as readers were told; spans of lost
            attempts do not know.
    """
    told = _Told(turn, workers or {})
    weighed = sorted(told.weighed(), key=lambda it: (not it.is_trouble, -it.lost_ms))
    least_ms = max(_NOTED_MS, _SHARE * turn.duration_ms)
    found = [it for it in weighed if it.is_trouble or it.lost_ms >= least_ms]
    cause = cause_of(turn.code)
    causes = [it.text for it in found]
    failed = turn.state == "failed"
    if not causes and not failed:
        causes = ["Nothing went wrong, and nothing took long."]
    return Explanation(
        conversation_id=turn.conversation_id,
        turn_id=turn.turn_id,
        state=turn.state,
        code=turn.code,
        headline=_headline(turn, cause.what if failed else ""),
        causes=tuple(causes),
        advice=cause.advice if failed else next((it.advice for it in found if it.advice), ""),
        cost=_cost(turn),
        steps=tuple(sorted(told.steps(), key=lambda it: it.after_ms)),
    )


def _headline(turn: TracedTurn, why: str) -> str:
    said = f"Turn {turn.turn_id} {_OUTCOMES.get(turn.state, turn.state)} "
    said += output.duration(turn.duration_ms)
    if turn.attempts > 1:
        said += f", at attempt {turn.attempts}"
    return f"{said}: {why} ({turn.code})." if why else f"{said}."


def _cost(turn: TracedTurn) -> str:
    calls = sum(span.kind == "client" for span in turn.spans)
    if not calls:
        return "No model was called, so it cost nothing."
    many = "1 model call" if calls == 1 else f"{calls} model calls"
    return f"It took {many}: {output.tokens(turn.usage)}, {output.dollars(turn.usage)}."


class _Told:
    """What the spans of one turn say."""

    def __init__(self, turn: TracedTurn, workers: Mapping[int, str]) -> None:
        self._turn = turn
        self._workers = workers
        self._zero_ns = turn.began_ms * 1_000_000
        spans = turn.spans
        self._attempts = [span for span in spans if span.name == n.PROCESS]
        self._calls = [span for span in spans if span.kind == "client" and _is(span, n.CHAT)]
        self._tools = [span for span in spans if _is(span, n.EXECUTE_TOOL)]
        self._waits = [span for span in spans if span.name == n.WAIT]

    # -- why ------------------------------------------------------------------------------------

    def weighed(self) -> Iterator[_Weighed]:
        """Yield what cost time, and whether that was trouble."""
        yield from self._waiting()
        for attempt, following in pairwise([*self._attempts, None]):
            assert attempt is not None
            yield from self._lost(attempt, following)
        for call in self._calls:
            yield from self._call(call)
        for tool in self._tools:
            yield from self._tool(tool)

    def _waiting(self) -> Iterator[_Weighed]:
        for wait in self._waits:
            waited_ms, why = _ms(wait), str(wait.attributes.get(n.WAIT_FOR, ""))
            text = f"It waited {output.duration(waited_ms)} before it began: "
            yield _Weighed(waited_ms, bool(why), text + f"{_WAITED.get(why, why)}.")
        if not self._attempts and not self._calls and self._turn.state == "running":
            waited_ms = float(self._turn.duration_ms)
            text = f"No worker has begun it for {output.duration(waited_ms)}: {_WAITED['']}."
            yield _Weighed(waited_ms, is_trouble=True, text=text)
        elif not self._attempts and self._calls:
            waited_ms = (self._calls[0].start_ns - self._zero_ns) / 1e6
            text = f"It waited {output.duration(waited_ms)} before the model was first asked."
            yield _Weighed(waited_ms, is_trouble=False, text=text)

    def _lost(self, attempt: Span, following: Span | None) -> Iterator[_Weighed]:
        """Say why an attempt was not the last one, and what that took."""
        which, until_ns = self._attempt(attempt), (following or attempt).start_ns
        lost_ms = max(_ms(attempt), (until_ns - attempt.start_ns) / 1e6)
        outcome = attempt.attributes.get(n.ATTEMPT_OUTCOME)
        if outcome == "crashed":
            cause = cause_of("worker_lost")
            text = (
                f"{which} was lost with its worker (killed, out of memory, or cut off from Redis)"
            )
            if following is not None:
                text += (
                    f"; {self._by(following)} took over {output.duration(lost_ms)} after it began"
                )
            yield _Weighed(lost_ms, is_trouble=True, text=f"{text}.", advice=cause.advice)
        for event in attempt.events:
            if event.name == n.RETRY_EVENT and following is not None:
                code = str(event.attributes.get(n.ERROR_TYPE, ""))
                cause = cause_of(code)
                text = (
                    f"{which} failed: {cause.what} ({code}); the next one began "
                    f"{output.duration(lost_ms)} after it"
                )
                yield _Weighed(lost_ms, is_trouble=True, text=f"{text}.", advice=cause.advice)

    def _call(self, call: Span) -> Iterator[_Weighed]:
        first_ms = float(call.attributes.get(n.RESPONSE_TIME_TO_FIRST_CHUNK, 0)) * 1000
        model = call.name.partition(" ")[2]
        took_ms = _ms(call)
        if not self._attempts and (call.error or _is_lost(call)):  # all that the ledger knows
            if call.error == self._turn.code:
                return
            cause = cause_of(call.error or "worker_lost")
            text = f"The call of {self._number(call)} came to nothing: {cause.what}."
            yield _Weighed(took_ms, is_trouble=True, text=text, advice=cause.advice)
        elif call.error:
            return
        elif first_ms >= took_ms / 2:
            text = f"The model {model} took {output.duration(first_ms)} until its first words."
            yield _Weighed(first_ms, is_trouble=False, text=text)
        else:
            text = f"The model {model} was at work for {output.duration(took_ms)}."
            yield _Weighed(took_ms, is_trouble=False, text=text)

    def _tool(self, tool: Span) -> Iterator[_Weighed]:
        name, took = tool.name.partition(" ")[2], output.duration(_ms(tool))
        if tool.error and tool.error != "worker_lost":
            text = f"The tool {name} failed ({tool.error}) after {took}."
            advice = "The model was told, and went on. The workers' logs have the tool's error."
            yield _Weighed(_ms(tool), is_trouble=True, text=text, advice=advice)
        else:
            yield _Weighed(_ms(tool), is_trouble=False, text=f"The tool {name} took {took}.")

    # -- what -----------------------------------------------------------------------------------

    def steps(self) -> Iterator[Step]:
        """Yield what happened, in no order."""
        yield Step(0, "accepted")
        for attempt in self._attempts:
            yield self._step(
                attempt.start_ns, f"{self._by(attempt)} begins {self._number(attempt)}"
            )
            for event in attempt.events:
                wait_ms = float(event.attributes.get(n.RETRY_IN_S, 0)) * 1000
                code = event.attributes.get(n.ERROR_TYPE, "")
                text = f"{self._number(attempt)} ends: {code}; again in {output.duration(wait_ms)}"
                yield self._step(event.at_ns, text)
            if attempt.attributes.get(n.ATTEMPT_OUTCOME) == "crashed":
                yield self._step(attempt.end_ns, f"{self._number(attempt)} is found to be lost")
        for call in self._calls:
            yield self._step(call.start_ns, f"{call.name.partition(' ')[2]} is asked")
            if first_s := call.attributes.get(n.RESPONSE_TIME_TO_FIRST_CHUNK):
                yield self._step(call.start_ns + int(first_s * 1e9), "its first words come")
            if call.error:
                yield self._step(call.end_ns, f"the call ends: {call.error}")
        for tool in self._tools:
            name = tool.name.partition(" ")[2]
            yield self._step(tool.start_ns, f"the tool {name} is called")
            how = f"fails: {tool.error}" if tool.error else "is done"
            yield self._step(tool.end_ns, f"{name} {how}")
        if self._turn.state != "running":
            yield Step(float(self._turn.duration_ms), self._turn.state)

    def _step(self, at_ns: int, text: str) -> Step:
        return Step(round(max(0.0, (at_ns - self._zero_ns) / 1e6), 1), text)

    @staticmethod
    def _number(attempt: Span) -> str:
        return f"attempt {attempt.attributes.get(n.ATTEMPT, '?')}"

    def _attempt(self, attempt: Span) -> str:
        by = self._by(attempt)
        number = self._number(attempt).capitalize()
        return number if by == _SOMEBODY else f"{number} ({by})"

    def _by(self, attempt: Span) -> str:
        number = int(attempt.attributes.get(n.ATTEMPT, 0))
        return str(self._workers.get(number) or attempt.attributes.get(n.WORKER) or _SOMEBODY)


_SOMEBODY: Final = "a worker"


def _is(span: Span, kind: str) -> bool:
    return span.name.split(" ", maxsplit=1)[0] == kind


def _is_lost(call: Span) -> bool:
    """Whether nothing is known of a call but that it was to be made."""
    of = call.attributes
    return of.get(n.USAGE_STATE) == "unknown" and not _ms(call) and n.CALL_OUTCOME not in of


def _ms(span: Span) -> float:
    return (span.end_ns - span.start_ns) / 1e6


def lines(it: Explanation) -> Sequence[str]:
    """Return what is read first: how it ended and why, what to do, what it cost."""
    advice = [it.advice] if it.advice else []
    why = [*advice, *it.causes] if it.state == "failed" else [*it.causes, *advice]
    return [it.headline, *why, it.cost]
