"""Ratings of turns as the conventions' event, in the turn's trace and beside the rating's own span.

It is a log record with a name, within the span of the turn that was rated. That span has ended, so
it gets nothing more; whoever sees spans alone finds event and link on the span of the rating.

Source: https://github.com/open-telemetry/semantic-conventions-genai, gen-ai-events
"""

from collections.abc import Iterable
from typing import NamedTuple

from opentelemetry import trace as otel
from opentelemetry._logs import Logger
from opentelemetry.context import Context

from turnline.contracts.messages import Feedback
from turnline.contracts.replies import TurnCompleted
from turnline.contracts.trace_context import Link, root_of
from turnline.worker.effects import Effects
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.attributes import Ending
from turnline.worker.telemetry.spans import Attributes
from turnline.worker.telemetry.tracing import Redactor, place, redacted


class Evaluation(NamedTuple):
    """A rating that was committed."""

    turn: Link
    """The own span of the turn that was rated."""
    sampled: bool
    """Of the rating's own trace; nobody knows that of the other."""
    attributes: Attributes
    explanation: str | None

    def told(self, redact: Redactor | None, *, capture: bool) -> Attributes:
        """Return the attributes that may leave; with `capture`, content is among them."""
        attributes = dict(self.attributes)
        if capture and self.explanation is not None:
            attributes[n.EVALUATION_EXPLANATION] = self.explanation
        return redacted(redact, n.EVALUATION_EVENT, attributes)


def evaluation_of(ending: Ending, effects: Effects, conversation_id: str) -> Evaluation | None:
    """Return what a message that ended said of a turn; None if it was no rating, or failed."""
    message = ending.used.message
    if not isinstance(message, Feedback) or not isinstance(ending.event, TurnCompleted):
        return None
    trace_id = dict(effects.records)[message.of_turn].trace_id
    if not trace_id:  # of a version that did not note it
        return None
    said = {n.EVALUATION_SCORE: message.score, n.EVALUATION_LABEL: message.label}
    return Evaluation(
        root_of(trace_id, conversation_id, message.of_turn),
        ending.used.trace.sampled,
        {
            n.CONVERSATION_ID: conversation_id,
            n.TURN_ID: message.of_turn,
            n.EVALUATION_NAME: message.name,
            **{name: value for name, value in said.items() if value is not None},
        },
        message.explanation,
    )


class EvaluationLog(NamedTuple):
    """Where the events go that stand in no span."""

    logger: Logger
    redact: Redactor | None = None
    capture: bool = False
    """Whether explanations are told."""

    def emit(self, found: Iterable[Evaluation], now_ns: int) -> None:
        """Emit an event for each rating."""
        for it in found:
            at = otel.NonRecordingSpan(place(*it.turn, it.sampled))
            self.logger.emit(
                timestamp=now_ns,
                context=otel.set_span_in_context(at, Context()),
                event_name=n.EVALUATION_EVENT,
                attributes=it.told(self.redact, capture=self.capture),
            )
