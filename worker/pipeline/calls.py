"""Records each model call, so that none is missing in a ledger or a trace."""

from collections.abc import Awaitable
from typing import Literal, Protocol

import msgspec

from worker.pipeline.frames import LLMTokenUsage
from worker.pipeline.stream import ProviderUsage

UsageState = Literal["reported", "estimated", "unknown"]
Outcome = Literal["running", "completed", "failed", "cancelled", "interrupted"]


class LLMCall(msgspec.Struct, kw_only=True):
    """One request to a model: filled in while it runs, complete when `finished_at` is set."""

    number: int
    """Counts the calls of a service, from 1."""
    model: str
    """As requested."""
    message_count: int
    """Messages in the request, the system prompt included."""
    started_at: float
    """On the service's clock, seconds."""
    request_bytes: int = 0
    """Length of the request body."""
    response_at: float | None = None
    """When the response's headers had come, seconds."""
    first_chunk_at: float | None = None
    """When the first chunk with a choice came, seconds."""
    first_text_at: float | None = None
    """When the first text came, seconds."""
    finished_at: float | None = None
    """When the call was over, seconds."""
    status: int | None = None
    """HTTP status."""
    request_id: str | None = None
    """The provider's name for the request, from the response's headers."""
    response_id: str | None = None
    response_model: str | None = None
    finish_reason: str | None = None
    text_chunks: int = 0
    """Chunks with text. Grok sends one token in each."""
    reasoning_chunks: int = 0
    text_chars: int = 0
    tool_calls: int = 0
    usage: ProviderUsage | None = None
    """The provider's last report."""
    metric: LLMTokenUsage | None = None
    """What the call reported as its tokens, by the service's rule."""
    outcome: Outcome = "running"
    error: str | None = None
    """Code of the error that ended the call."""

    @property
    def usage_state(self) -> UsageState:
        """Who counted the tokens: the provider, we from what was streamed, or nobody."""
        if self.usage is not None:
            return "reported"
        return "estimated" if self.text_chunks or self.reasoning_chunks else "unknown"

    @property
    def counted_usage(self) -> ProviderUsage:
        """The provider's report; else what was streamed, one token a chunk; else zero.

        The prompt of a call that was cut off is not counted: nobody knows its tokens.
        """
        if self.usage is not None:
            return self.usage
        return ProviderUsage(
            completion_tokens=self.text_chunks,
            reasoning_tokens=self.reasoning_chunks,
            total_tokens=self.text_chunks + self.reasoning_chunks,
        )

    @property
    def time_to_first_chunk_s(self) -> float | None:
        """Seconds from the request to the first chunk with a choice."""
        return None if self.first_chunk_at is None else self.first_chunk_at - self.started_at

    @property
    def duration_s(self) -> float | None:
        """Seconds from the request to the end of the call."""
        return None if self.finished_at is None else self.finished_at - self.started_at


class CallObserver(Protocol):
    """Watches the calls of a service, for a ledger or a trace."""

    def on_call_started(self, call: LLMCall) -> Awaitable[None]:
        """Take note of a call: its request is sent only once what is returned is done."""
        ...

    async def on_call_finished(self, call: LLMCall) -> None:
        """Take note of a call that is over, in whatever way: also failed or cancelled."""
        ...
