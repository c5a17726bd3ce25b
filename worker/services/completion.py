"""What came of one model call so far, and whether it is a whole reply."""

import re
from collections.abc import Sequence
from typing import Final, TypeAlias

from turnline.worker.errors import ReplyTooLarge, Truncated, UnusableReply, WorkerError
from turnline.worker.pipeline.call_parts import ToolCallCollector, ToolCallParts
from turnline.worker.pipeline.calls import LLMCall
from turnline.worker.pipeline.frames import LLMTokenUsage
from turnline.worker.pipeline.stream_events import (
    MalformedFrame,
    NotAStream,
    OverLimit,
    StreamFailed,
)
from turnline.worker.services.failures import failure_in_stream

Failure: TypeAlias = StreamFailed | MalformedFrame | NotAStream | OverLimit
_CALLS: Final = re.compile("tool|function", re.IGNORECASE)
"""In finish reasons that say that something is called."""


class UsageTally:
    """What one completion reports as its tokens: the provider's last report."""

    def __init__(self) -> None:
        """Begin with nothing reported."""
        self._last: LLMTokenUsage | None = None

    def add(self, tokens: LLMTokenUsage) -> None:
        """Take note of a report."""
        self._last = tokens

    def total(self) -> LLMTokenUsage | None:
        """Return what to report; None if there was nothing."""
        return self._last


class Completion:
    """State of one call; nothing of it is kept on the service."""

    def __init__(self, call: LLMCall, tally: UsageTally) -> None:
        """Begin before the request."""
        self.call = call
        self.tally = tally
        self.tool_calls = ToolCallCollector()
        self.ended = False
        """Whether what came last says that nothing follows: a finish reason, or usage by itself."""
        self.closed = False
        """Whether that stood in a chunk of its own."""
        self.late = False
        """Whether something came after a finish reason: this provider's mean nothing."""
        self.done = False
        """Whether the wire's own end was seen, such as `[DONE]`."""
        self.interrupted = False
        """Whether the rest is of no interest any more."""
        self.body = b""
        """The request's."""

    @property
    def has_content(self) -> bool:
        """Whether there is anything to use."""
        return self.call.text_chars > 0 or bool(self.tool_calls)

    @property
    def is_over(self) -> bool:
        """Whether the reply is all there, if the response ends in order."""
        call = self.call
        if self.done:
            return self.has_content or call.finish_reason is not None or call.usage is not None
        return self.ended and (call.finish_reason is not None or self.has_content)

    @property
    def is_whole(self) -> bool:
        """Whether the reply is all there, whatever becomes of the rest of the response."""
        return self.is_over and (self.done or not self.late)

    def parts(self) -> Sequence[ToolCallParts]:
        """Return the tool calls that came."""
        return self.tool_calls.calls()

    def end(self, *, closed: bool) -> None:
        """Take note of what looks like the end; `closed` if it stood by itself."""
        self.ended = True
        self.closed = closed

    def reopen(self) -> None:
        """Take note that content came after what looked like the end."""
        self.ended = self.closed = False
        if self.call.finish_reason:
            self.late = True
        else:  # an empty reason
            self.call.finish_reason = None

    def check_failure(self, event: Failure) -> None:
        """Raise the error for an event, unless the reply is whole without a doubt."""
        if isinstance(event, OverLimit) or not (self.closed and self.is_whole and self.has_content):
            raise _error(event)

    def check_end(self, *, left_unread: bool) -> None:
        """See that a response that has ended holds a whole reply.

        Args:
            left_unread: Whether it has words in fields that are not known.

        Raises:
            UnusableReply: Text or calls are missing.
            Truncated: The end is missing.
        """
        calls_nothing = _CALLS.search(self.call.finish_reason or "")
        if not self.has_content and (left_unread or calls_nothing):
            raise _unreadable("shape")
        if not self.is_over:
            raise Truncated("the stream ended without a finish reason")


def _error(event: Failure) -> WorkerError:
    match event:
        case OverLimit():
            return ReplyTooLarge(f"the response is too large ({event.what})")
        case StreamFailed():
            return failure_in_stream(event)
        case MalformedFrame():
            return _unreadable(event.reason)
        case NotAStream():
            return UnusableReply(
                "the provider sent something that is no event stream", code="not_a_stream"
            )


def _unreadable(reason: str) -> UnusableReply:
    return UnusableReply(
        f"a frame of the stream cannot be read ({reason})", code="malformed_stream"
    )
