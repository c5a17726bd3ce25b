"""What travels through a pipeline, by pipecat's names."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from worker.pipeline.context import Message, OpenAILLMContext


class Frame(msgspec.Struct):
    """Base of all frames."""


# Life of a pipeline


class StartFrame(Frame):
    """Comes first and says what to report."""

    allow_interruptions: bool = False
    enable_metrics: bool = False
    enable_usage_metrics: bool = False
    report_only_initial_ttfb: bool = False


class EndFrame(Frame):
    """Comes last. Whatever is pending is finished first."""


class CancelFrame(Frame):
    """Stop now; text received so far is kept."""


class ErrorFrame(Frame):
    """Something went wrong upstream or downstream."""

    error: str
    fatal: bool = False


# Text


class TextFrame(Frame):
    """A piece of text."""

    text: str


class LLMTextFrame(TextFrame):
    """A piece of text, exactly as the model sent it."""


class TranscriptionFrame(TextFrame):
    """What the user said, final."""

    user_id: str = ""
    timestamp: str = ""
    language: str | None = None


class InterimTranscriptionFrame(TextFrame):
    """What the user seems to be saying; the text is never used."""

    user_id: str = ""
    timestamp: str = ""
    language: str | None = None


# Speaking and interrupting


class UserStartedSpeakingFrame(Frame):
    """The user began to speak."""

    emulated: bool = False


class UserStoppedSpeakingFrame(Frame):
    """The user stopped speaking."""

    emulated: bool = False


class EmulateUserStartedSpeakingFrame(Frame):
    """A transcription came although nobody was heard to speak: treat it as speech."""


class EmulateUserStoppedSpeakingFrame(Frame):
    """The emulated speech is over."""


class BotStartedSpeakingFrame(Frame):
    """The bot began to speak."""


class BotStoppedSpeakingFrame(Frame):
    """The bot stopped speaking."""


class StartInterruptionFrame(Frame):
    """Stop answering: the user has something else to say."""

    heard: str | None = None
    """What the user heard of the reply. The kept part is cut to it; None keeps all received."""


class StopInterruptionFrame(Frame):
    """The interruption is over."""


# Context


class OpenAILLMContextFrame(Frame):
    """The context changed and wants an answer. Carries a reference, not a copy."""

    context: OpenAILLMContext


class OpenAILLMContextAssistantTimestampFrame(Frame):
    """When the assistant's message was added."""

    timestamp: str
    """ISO 8601, UTC."""


class LLMMessagesFrame(Frame):
    """Answer these messages, outside the conversation's context."""

    messages: list[Message]


class LLMMessagesAppendFrame(Frame):
    """Add messages to the context."""

    messages: list[Message]
    run_llm: bool | None = None
    """True: answer them too."""


class LLMMessagesUpdateFrame(Frame):
    """Replace the messages of the context."""

    messages: list[Message]
    run_llm: bool | None = None
    """True: answer them too."""


class LLMSetToolsFrame(Frame):
    """Set the tools of the context."""

    tools: Any


class LLMSetToolChoiceFrame(Frame):
    """Set the tool choice of the context."""

    tool_choice: Any


class LLMUpdateSettingsFrame(Frame):
    """Change settings of the service, from its next completion on."""

    settings: Mapping[str, Any]


# The model's answer


class LLMFullResponseStartFrame(Frame):
    """The model begins to answer."""


class LLMFullResponseEndFrame(Frame):
    """The model's answer is over, whole or not."""


class VisionImageRawFrame(Frame):
    """Describe this image, outside the conversation's context."""

    text: str | None
    image: bytes
    size: tuple[int, int]
    format: str


# Function calls


class FunctionCallFromLLM(msgspec.Struct):
    """One call, as the model made it."""

    function_name: str
    tool_call_id: str
    arguments: Any
    """Decoded; an empty dict where the model sent nothing or nothing usable."""
    context: OpenAILLMContext | None = None
    raw_arguments: str | None = None
    """The JSON object as the model wrote it, if it was one."""


class FunctionCallResultProperties(msgspec.Struct):
    """What to do with a result."""

    run_llm: bool | None = None
    """True or False decides whether the model runs on it; None leaves it to the result."""
    on_context_updated: Callable[[], Awaitable[None]] | None = None
    """Awaited once, after the result stands in the context."""
    content: str | None = None
    """What the model is told, word for word, in place of the result's JSON. The model then runs on
    it whatever the result is, unless `run_llm` is False."""


class FunctionCallsStartedFrame(Frame):
    """The calls of one response, before any of them runs."""

    function_calls: Sequence[FunctionCallFromLLM]


class FunctionCallInProgressFrame(Frame):
    """A call starts running."""

    function_name: str
    tool_call_id: str
    arguments: Any
    cancel_on_interruption: bool = False


class FunctionCallResultFrame(Frame):
    """A call has its result."""

    function_name: str
    tool_call_id: str
    arguments: Any
    result: Any
    run_llm: bool | None = None
    properties: FunctionCallResultProperties | None = None
    failure: str | None = None
    """Why there is only an error for a result: a stable word, None on success."""


class FunctionCallCancelFrame(Frame):
    """A call was cancelled by an interruption."""

    function_name: str
    tool_call_id: str


class UserImageRequestFrame(Frame):
    """Ask for an image of the user."""

    user_id: str = ""
    context: str | None = None
    function_name: str | None = None
    tool_call_id: str | None = None


class UserImageRawFrame(Frame):
    """An image of the user, encoded as JPEG, PNG or WEBP."""

    image: bytes
    size: tuple[int, int]
    format: str
    user_id: str = ""
    request: UserImageRequestFrame | None = None


# Metrics


class LLMTokenUsage(msgspec.Struct, frozen=True):
    """Tokens of one completion."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    reasoning_tokens: int | None = None


class MetricsData(msgspec.Struct, frozen=True):
    """Base of all measurements."""

    processor: str
    model: str | None = None


class TTFBMetricsData(MetricsData, frozen=True, kw_only=True):
    """Time to the first chunk that has a choice."""

    value: float
    """Seconds."""


class ProcessingMetricsData(MetricsData, frozen=True, kw_only=True):
    """Time of one completion."""

    value: float
    """Seconds."""


class LLMUsageMetricsData(MetricsData, frozen=True, kw_only=True):
    """Tokens of one completion."""

    value: LLMTokenUsage


class MetricsFrame(Frame):
    """Measurements, reported only where the StartFrame asked for them."""

    data: Sequence[MetricsData]
