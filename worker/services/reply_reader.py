"""Reads the events of one response into a completion, and hands its text on as it comes."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from turnline.worker.pipeline.call_parts import ToolCallDelta
from turnline.worker.pipeline.calls import LLMCall
from turnline.worker.pipeline.frames import Frame, LLMTextFrame, LLMTokenUsage
from turnline.worker.pipeline.reply_frames import (
    LLMCitationFrame,
    LLMReplyItemFrame,
    LLMServerToolFrame,
    LLMThoughtTextFrame,
)
from turnline.worker.pipeline.shapes import short
from turnline.worker.pipeline.stream_events import (
    CitationFound,
    FinishReason,
    MalformedFrame,
    NotAStream,
    OverLimit,
    ProviderUsage,
    ReasoningDelta,
    Refusal,
    ReplyItem,
    ResponseNamed,
    ServerTool,
    StreamDone,
    StreamEvent,
    StreamFailed,
    TextDelta,
    UsageReport,
)
from turnline.worker.services.completion import Completion, let_others_send
from turnline.worker.services.llm_service import LLMService
from turnline.worker.services.transport import ResponseStream, TimeLimits

if TYPE_CHECKING:
    from turnline.worker.services.openai.sdk import SdkStream

_USAGE_SEEN_S: Final = 0.25
"""How long to wait for the wire's end once finish reason and usage have come."""


EventSource: TypeAlias = "ResponseStream | SdkStream"


class ReplyReader:
    """Reads one response."""

    def __init__(
        self,
        receiver: LLMService,
        completion: Completion,
        stream: EventSource,
        *,
        limits: TimeLimits,
        now: Callable[[], float],
    ) -> None:
        """Prepare to read what `stream` gives."""
        self._receiver = receiver
        self._completion = completion
        self._call = completion.call
        self._stream = stream
        self._limits = limits
        self._now = now

    async def read(self) -> None:
        """Read to the end, or until the completion is interrupted.

        Raises:
            ProviderUnavailable: The response failed.
            ProviderRejected: The provider refuses the request or its content.
            UnusableReply: Text or calls may be missing.
            ReplyTooLarge: The response holds more than one may.
        """
        call, completion, stream = self._call, self._completion, self._stream
        push_frame = self._receiver.push_frame
        while (events := await stream.next_events()) is not None:
            for event in events:
                if completion.interrupted:
                    return
                if type(event) is TextDelta:
                    call.text_chunks += 1
                    call.text_chars += len(event.text)
                    if completion.ended:
                        self._reopen()
                    if call.first_text_at is None:
                        call.first_text_at = self._now()
                        await self._note_first(call.first_text_at)
                        await push_frame(LLMTextFrame(event.text))
                        await let_others_send()
                    else:
                        await push_frame(LLMTextFrame(event.text))
                else:
                    await self._note(event)

    def _reopen(self) -> None:
        self._completion.reopen()
        self._stream.expect_more()

    async def _note(self, event: StreamEvent) -> None:
        """Take note of an event that is not text."""
        call, completion = self._call, self._completion
        match event:
            case UsageReport():
                await self._note_usage(event.usage)
                if event.alone:
                    completion.end(closed=True)
                    if call.finish_reason:
                        self._expect_the_end(_USAGE_SEEN_S)
            case ResponseNamed():
                call.response_id, call.response_model = event.response_id, event.model
            case StreamDone():
                completion.done = True
                self._stream.enough(within_s=self._limits.drain_s)
            case StreamFailed() | MalformedFrame() | NotAStream() | OverLimit():
                call.refused = isinstance(event, StreamFailed) and call.first_chunk_at is None
                completion.check_failure(event)
            case _:
                if completion.ended and isinstance(event, ToolCallDelta | Refusal):
                    self._reopen()
                await self._note_choice(event)

    def _expect_the_end(self, wait_s: float) -> None:
        """Wait less long from here on, where what came may be believed to be all."""
        if self._completion.has_content and not self._completion.late:
            self._stream.enough(within_s=min(wait_s, self._limits.tail_s))

    async def _note_choice(self, event: StreamEvent) -> None:
        call, completion = self._call, self._completion
        if call.first_chunk_at is None:
            await self._note_first(self._now())
        match event:
            case FinishReason():
                call.finish_reason = event.reason
                completion.end(closed=event.alone)
                if event.alone and event.reason:
                    self._expect_the_end(self._limits.tail_s)
            case ToolCallDelta():
                completion.tool_calls.add(event)
            case ReasoningDelta():
                call.reasoning_chunks += 1
                if self._receiver.shows_thoughts:
                    await self._receiver.push_frame(LLMThoughtTextFrame(event.text))
            case Refusal():
                call.text_chars += len(event.text)
                await self._receiver.push_frame(LLMTextFrame(event.text))
            case _:
                frame = self._frame_of(event)
                if frame is not None:
                    await self._receiver.push_frame(frame)

    def _frame_of(self, event: StreamEvent) -> Frame | None:
        """Return the frame for what stands beside text and calls; None for other events."""
        match event:
            case ReplyItem():
                model = self._call.response_model or self._call.model
                return LLMReplyItemFrame(
                    event.index, event.item, model, self._call.model, event.chars, event.calls
                )
            case ServerTool():
                return LLMServerToolFrame(event.call_id, event.name, event.ok)
            case CitationFound():
                return LLMCitationFrame(event.url, event.title, event.start, event.end)
            case _:
                return None

    async def _note_first(self, now: float) -> None:
        if self._call.first_chunk_at is None:
            self._call.first_chunk_at = now
            await self._receiver.push_ttfb(now - self._call.started_at)

    async def _note_usage(self, usage: ProviderUsage) -> None:
        self._call.usage = usage
        await self._receiver.start_llm_usage_metrics(
            LLMTokenUsage(
                usage.prompt_tokens,
                usage.completion_tokens,
                usage.total_tokens,
                cache_read_input_tokens=usage.cached_tokens,
                reasoning_tokens=usage.reasoning_tokens,
            )
        )


def note_response(call: LLMCall, response: Any, now: Callable[[], float]) -> None:
    """Take note of status and request id, once the response's headers have come."""
    if response is not None:
        call.status = response.status_code
        call.request_id = short(response.headers.get("x-request-id"))
        if call.response_at is None:
            call.response_at = now()
            if call.on_headers is not None:
                call.on_headers(response.headers)


def note_unread(event: StreamEvent, call: LLMCall, now: Callable[[], float]) -> None:
    """Take note of an event of a response that a subclass reads by itself."""
    match event:
        case TextDelta() | Refusal():
            call.text_chunks += 1
            call.text_chars += len(event.text)
            if call.first_text_at is None:
                call.first_text_at = now()
        case ReasoningDelta():
            call.reasoning_chunks += 1
        case UsageReport():
            call.usage = event.usage
        case FinishReason():
            call.finish_reason = event.reason
        case ResponseNamed():
            call.response_id, call.response_model = event.response_id, event.model
        case _:
            pass
    if call.first_chunk_at is None and not isinstance(event, ResponseNamed | UsageReport):
        call.first_chunk_at = now()
