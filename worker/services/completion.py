"""The calls of a service: their records, what came of each so far, whether it is a whole reply."""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final, TypeAlias

from turnline.worker.errors import ReplyTooLarge, Truncated, UnusableReply, WorkerError
from turnline.worker.pipeline.call_parts import ToolCallCollector, ToolCallParts
from turnline.worker.pipeline.calls import CallObserver, LLMCall, estimated_tokens
from turnline.worker.pipeline.context import OpenAILLMContext
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


class CallRecords:
    """Every call of a service, in the order of their requests."""

    def __init__(self, observer: CallObserver | None, now: Callable[[], float]) -> None:
        """Begin with no calls; `now` is a clock, seconds."""
        self.calls: list[LLMCall] = []
        self.now = now
        self._observer = observer

    def begin(self, model: str, context: OpenAILLMContext) -> LLMCall:
        """Return the record of a call that is about to be made."""
        call = LLMCall(
            number=len(self.calls) + 1,
            model=model,
            message_count=context.message_count + (context.system_prompt is not None),
            started_at=self.now(),
        )
        self.calls.append(call)
        return call

    async def note(self, call: LLMCall) -> None:
        """Have the observer take note of a call, before its request."""
        if self._observer is not None:
            await self._observer.on_call_started(call)

    @contextlib.asynccontextmanager
    async def noted(self, call: LLMCall) -> AsyncGenerator["asyncio.Future[None] | None"]:
        """Have the observer take note of a call; the request is made ready meanwhile."""
        if self._observer is None:
            yield None
            return
        noted = asyncio.ensure_future(self._observer.on_call_started(call))
        try:
            await let_others_send()
            yield noted
        finally:
            if not noted.done():
                noted.cancel()
                await asyncio.wait([noted])
            if not noted.cancelled():
                noted.exception()  # raised already, or of no interest beside what is

    def close(self, completion: Completion) -> None:
        """Complete the record of a call that is over, however it ended."""
        call = completion.call
        call.finished_at = self.now()
        parts = completion.parts()
        call.tool_calls = len(parts)
        call.metric = completion.tally.total()
        if call.usage is not None or not call.is_accepted:
            return
        # Nobody counted the tokens: estimate them from an earlier call, or from bytes.
        call.argument_chars = sum(len(part.name) + len(part.arguments) for part in parts)
        call.prompt_estimate = estimated_tokens(completion.body)
        for earlier in reversed(self.calls):
            if earlier.usage is not None and earlier.usage.prompt_tokens:
                grown = (call.request_bytes - earlier.request_bytes) // 4
                call.prompt_estimate = max(1, earlier.usage.prompt_tokens + grown)
                break

    async def tell(self, call: LLMCall) -> None:
        """Tell the observer of a call that is over."""
        if self._observer is not None:
            await self._observer.on_call_finished(call)


async def let_others_send() -> None:
    """Give what was pushed two turns of the event loop, in which it reaches a socket."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
