"""The records of a service's model calls: begun, told to an observer, closed with an estimate."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from turnline.worker.pipeline.calls import CallObserver, LLMCall, estimated_tokens
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.pipeline.frames import LLMTokenUsage
from turnline.worker.pipeline.stream_events import ProviderUsage
from turnline.worker.services.completion import Completion


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

    @property
    def reported_usage(self) -> LLMTokenUsage:
        """The sum of what the calls reported as their tokens."""
        reports = [call.metric for call in self.calls if call.metric is not None]
        return LLMTokenUsage(
            sum(r.prompt_tokens for r in reports),
            sum(r.completion_tokens for r in reports),
            sum(r.total_tokens for r in reports),
            cache_read_input_tokens=sum(r.cache_read_input_tokens or 0 for r in reports),
            reasoning_tokens=sum(r.reasoning_tokens or 0 for r in reports),
        )

    @property
    def provider_usage(self) -> ProviderUsage:
        """The sum of what the provider counted, or else of estimates."""
        return sum((call.counted_usage for call in self.calls), start=ProviderUsage())


async def let_others_send() -> None:
    """Give what was pushed two turns of the event loop, in which it reaches a socket."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
