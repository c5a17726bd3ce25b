"""Records each model call, so that none is missing in a ledger or a trace."""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Literal, Protocol

import msgspec

from turnline.worker.pipeline.frames import LLMTokenUsage
from turnline.worker.pipeline.stream_events import ProviderUsage

UsageState = Literal["reported", "estimated", "unknown"]
Outcome = Literal["running", "completed", "failed", "cancelled", "interrupted"]
_CHARS_A_TOKEN: Final = 4
_LONG_CHUNK_CHARS: Final = 16
_IMAGE_TOKENS: Final = 1_024
"""Of an image in a prompt, about: 256 to 1,792, says xAI."""
_IMAGE: Final = re.compile(rb'"image_url":\{"url":"(?:data:[^"]*)?')


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
    prompt_estimate: int = 0
    """Tokens of the prompt, where a call that the provider took ended without a report."""
    argument_chars: int = 0
    """Of the function calls that came, where the call ended without a report."""
    refused: bool = False
    """Whether an error came in place of a reply, under HTTP 200."""
    on_headers: Callable[[Mapping[str, str]], object] | None = None
    """Called with the headers of the response, once they have come."""
    member: str = ""
    """Name of the key and address by which it was made, where there are several."""
    server: tuple[str, int] | None = None
    """Host and port that it went to, where there are several."""
    outcome: Outcome = "running"
    error: str | None = None
    """Code of the error that ended the call."""

    @property
    def usage_state(self) -> UsageState:
        """Who counted the tokens: the provider, we from what was sent and streamed, or nobody."""
        if self.usage is not None:
            return "reported"
        return "estimated" if self.is_accepted else "unknown"

    @property
    def is_accepted(self) -> bool:
        """Whether the provider took the request: what it was asked may have to be paid."""
        if self.first_chunk_at is not None or (self.error or "").endswith("_timeout"):
            return True
        return self.status is not None and self.status < 300 and not self.refused

    @property
    def is_unpriced(self) -> bool:
        """Whether the call may have cost something that nobody told."""
        if (
            self.usage is not None and self.usage.cost_usd_ticks
        ):  # 0 is what hosts say without prices
            return False
        return self.is_accepted or (self.status is None and not self.refused)

    @property
    def counted_usage(self) -> ProviderUsage:
        """The provider's report; else an estimate of prompt and output; else zero.

        Grok streams one token a chunk. Where chunks are much longer, their characters count.
        """
        if self.usage is not None:
            return self.usage
        if not self.is_accepted:
            return ProviderUsage()
        text = self.text_chunks
        if self.text_chars > _LONG_CHUNK_CHARS * text:
            text = self.text_chars // _CHARS_A_TOKEN
        output = text + self.argument_chars // _CHARS_A_TOKEN
        return ProviderUsage(
            prompt_tokens=self.prompt_estimate,
            completion_tokens=output,
            reasoning_tokens=self.reasoning_chunks,
            total_tokens=self.prompt_estimate + output + self.reasoning_chunks,
        )

    @property
    def time_to_first_chunk_s(self) -> float | None:
        """Seconds from the request to the first chunk with a choice."""
        return None if self.first_chunk_at is None else self.first_chunk_at - self.started_at

    @property
    def duration_s(self) -> float | None:
        """Seconds from the request to the end of the call."""
        return None if self.finished_at is None else self.finished_at - self.started_at


def estimated_tokens(request: bytes) -> int:
    """Return about how many tokens a request's body is: four bytes each, and so many an image."""
    data_bytes = images = 0
    for image in _IMAGE.finditer(request):
        images += 1
        data_bytes += len(image[0])
    return (len(request) - data_bytes) // _CHARS_A_TOKEN + images * _IMAGE_TOKENS


class CallObserver(Protocol):
    """Watches the calls of a service, for a ledger or a trace."""

    def on_call_started(self, call: LLMCall) -> Awaitable[None]:
        """Take note of a call: its request is sent only once what is returned is done."""
        ...

    async def on_call_finished(self, call: LLMCall) -> None:
        """Take note of a call that is over, in whatever way: also failed or cancelled."""
        ...
