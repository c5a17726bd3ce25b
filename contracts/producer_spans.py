"""A `send` span for each message that a producer submits from within a span of its own.

With OpenTelemetry's API alone: whoever configured a provider gets the spans; all others get
nothing, and pay for nothing.

Source: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
"""

from collections.abc import Sequence
from typing import Any, Final, Self

from turnline.contracts.messages import Inbound
from turnline.contracts.protocol import Requests, Submission
from turnline.contracts.replies import Receipt
from turnline.contracts.trace_context import otel

SPAN: Final = "send turnline"
STATUS: Final = "turnline.submit.status"
"""`accepted` or `duplicate`."""


class ProducerSpans:
    """Messages on their way in, for a `with` block.

    The context of its span travels in the message, so that the turn hangs below it. A message that
    brings a context of its own, or is encoded already, gets no span.
    """

    def __init__(self, make: Requests, messages: Sequence[Inbound | bytes]) -> None:
        """Prepare to send these; entering the block begins their spans."""
        self._make = make
        self._messages = messages
        self._spans: list[Any] = []
        self.submissions: list[Submission] = []

    def __enter__(self) -> Self:
        """Validate and build.

        Raises:
            InvalidMessage: One of the messages breaks the contract.
        """
        if otel is None or not otel.get_current_span().is_recording():
            self.submissions = [self._make.submission(message) for message in self._messages]
            return self
        try:
            self.submissions = [self._traced(message) for message in self._messages]
        except BaseException as error:  # whatever it is, the spans begun must end; it is passed on
            self.__exit__(type(error), error, None)
            raise
        return self

    def outcomes(self, outcomes: Sequence[Receipt | Exception]) -> list[Receipt | Exception]:
        """Tell what became of each message, and return it."""
        for span, outcome in zip(self._spans, outcomes, strict=False):
            if span is None:
                continue
            if isinstance(outcome, Exception):
                _fail(span, outcome)
            else:
                span.set_attribute(STATUS, outcome.status)
        return list(outcomes)

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """End the spans."""
        for span in self._spans:
            if span is not None:
                if error is not None:
                    _fail(span, error)
                span.end()

    def _traced(self, message: Inbound | bytes) -> Submission:
        assert otel is not None
        if isinstance(message, bytes) or getattr(message, "traceparent", None) is not None:
            self._spans.append(None)
            return self._make.submission(message)
        span = otel.get_tracer("turnline").start_span(
            SPAN,
            kind=otel.SpanKind.PRODUCER,
            attributes={
                "messaging.system": "redis",
                "messaging.operation.type": "send",
                "messaging.operation.name": "send",
            },
        )
        self._spans.append(span)
        with otel.use_span(span, record_exception=False, set_status_on_exception=False):
            submission = self._make.submission(message)
        span.set_attributes(
            {
                "messaging.destination.name": submission.shard.queue,
                "messaging.message.id": submission.turn_id,
                "messaging.message.conversation_id": submission.conversation_id,
                "gen_ai.conversation.id": submission.conversation_id,
                "turnline.turn.id": submission.turn_id,
            }
        )
        return submission


def _fail(span: Any, error: BaseException) -> None:
    """Mark a span; an error's text stays here."""
    assert otel is not None
    kind = type(error).__name__
    span.set_attribute("error.type", kind)
    span.set_status(otel.StatusCode.ERROR, kind)
