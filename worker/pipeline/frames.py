"""What travels through a pipeline, by pipecat's names.

Frames are dataclasses, so that users can add their own: `@dataclass class Mine(DataFrame)`. What
every frame has beside its fields (id, name, metadata) is made when somebody asks for it.
"""

import itertools
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgspec

from turnline.worker.pipeline.context import Message, OpenAILLMContext

_ids = itertools.count()
_counts: "defaultdict[str, itertools.count[int]]" = defaultdict(itertools.count)


class _Traits:
    """What every frame has and no constructor takes."""

    pts: int | None = None
    """When to present it, nanoseconds; for whoever needs it."""
    transport_source: str | None = None
    transport_destination: str | None = None

    def __post_init__(self) -> None:
        """Do nothing: for frames of users that call it."""

    @cached_property
    def id(self) -> int:
        """Unique in this process; drawn at the first look."""
        return next(_ids)

    @cached_property
    def name(self) -> str:
        """The class's name and a number, drawn at the first look."""
        class_name = type(self).__name__
        return f"{class_name}#{next(_counts[class_name])}"

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Whatever somebody notes on it."""
        return {}

    def __str__(self) -> str:
        """Return the name: what a frame carries may be a user's words."""
        return self.name


@dataclass
class Frame(_Traits):
    """Base of all frames."""


@dataclass
class SystemFrame(Frame):
    """Is about the pipeline itself, or is urgent. Here as in order as any other frame."""


@dataclass
class DataFrame(Frame):
    """Carries what is talked about."""


@dataclass
class ControlFrame(Frame):
    """Tells processors what to do, in order."""


@dataclass
class ImageRawFrame:
    """An encoded image; mixed into frames."""

    image: bytes
    """An image file's bytes."""
    size: tuple[int, int]
    format: str | None
    """"JPEG", "PNG" or "WEBP"."""


# Life of a pipeline


@dataclass
class StartFrame(SystemFrame):
    """Comes first and says what to report."""

    audio_in_sample_rate: int = 16000
    audio_out_sample_rate: int = 24000
    allow_interruptions: bool = False
    enable_metrics: bool = False
    enable_usage_metrics: bool = False
    report_only_initial_ttfb: bool = False
    interruption_strategies: Sequence[Any] = field(default_factory=list[Any])
    """Of no effect: here an interruption is a producer's word, not a guess."""


@dataclass
class EndFrame(ControlFrame):
    """Comes last. Whatever is pending is finished first."""


@dataclass
class EndTaskFrame(SystemFrame):
    """Upstream: end the pipeline in order, as if an EndFrame had been queued."""


@dataclass
class CancelTaskFrame(SystemFrame):
    """Upstream: stop the pipeline now, as if a CancelFrame had been queued."""


@dataclass
class CancelFrame(SystemFrame):
    """Stop now; text received so far is kept."""


@dataclass
class ErrorFrame(SystemFrame):
    """Something went wrong upstream or downstream."""

    error: str
    fatal: bool = False


@dataclass
class FatalErrorFrame(ErrorFrame):
    """Something went wrong that nothing mends."""

    fatal: bool = field(default=True, init=False)


# Text


@dataclass(init=False)
class TextFrame(DataFrame):
    """A piece of text."""

    text: str

    def __init__(self, text: str) -> None:
        """Carry text; written out since there is one such frame for each chunk of a reply."""
        self.text = text


@dataclass(init=False)
class LLMTextFrame(TextFrame):
    """A piece of text, exactly as the model sent it."""


@dataclass
class TTSTextFrame(TextFrame):
    """A piece of text, as it was spoken."""


@dataclass
class TTSSpeakFrame(DataFrame):
    """Text to be spoken as it is, for a speech service further down."""

    text: str


@dataclass
class TranscriptionFrame(TextFrame):
    """What the user said, final."""

    user_id: str
    timestamp: str
    language: str | None = None
    result: Any = None


@dataclass
class InterimTranscriptionFrame(TextFrame):
    """What the user seems to be saying; the text is never used."""

    user_id: str
    timestamp: str
    language: str | None = None
    result: Any = None


# Speaking and interrupting


@dataclass
class UserStartedSpeakingFrame(SystemFrame):
    """The user began to speak."""

    emulated: bool = False


@dataclass
class UserStoppedSpeakingFrame(SystemFrame):
    """The user stopped speaking."""

    emulated: bool = False


@dataclass
class EmulateUserStartedSpeakingFrame(SystemFrame):
    """A transcription came although nobody was heard to speak: treat it as speech."""


@dataclass
class EmulateUserStoppedSpeakingFrame(SystemFrame):
    """The emulated speech is over."""


@dataclass
class BotStartedSpeakingFrame(SystemFrame):
    """The bot began to speak."""


@dataclass
class BotStoppedSpeakingFrame(SystemFrame):
    """The bot stopped speaking."""


@dataclass
class StartInterruptionFrame(SystemFrame):
    """Stop answering: the user has something else to say."""

    heard: str | None = None
    """What the user heard of the reply. The kept part is cut to it; None keeps all received."""


@dataclass
class StopInterruptionFrame(SystemFrame):
    """The interruption is over."""


# Context


@dataclass
class OpenAILLMContextFrame(Frame):
    """The context changed and wants an answer. Carries a reference, not a copy."""

    context: OpenAILLMContext


@dataclass
class OpenAILLMContextAssistantTimestampFrame(DataFrame):
    """When the assistant's message was added."""

    timestamp: str
    """ISO 8601, UTC."""


@dataclass
class LLMMessagesFrame(DataFrame):
    """Answer these messages, outside the conversation's context."""

    messages: list[Message]


@dataclass
class LLMMessagesAppendFrame(DataFrame):
    """Add messages to the context."""

    messages: list[Message]
    run_llm: bool | None = None
    """True: answer them too."""


@dataclass
class LLMMessagesUpdateFrame(DataFrame):
    """Replace the messages of the context."""

    messages: list[Message]
    run_llm: bool | None = None
    """True: answer them too."""


@dataclass
class LLMSetToolsFrame(DataFrame):
    """Set the tools of the context."""

    tools: Any


@dataclass
class LLMSetToolChoiceFrame(DataFrame):
    """Set the tool choice of the context."""

    tool_choice: Any


@dataclass
class LLMEnablePromptCachingFrame(DataFrame):
    """Of no effect: xAI caches by itself."""

    enable: bool


@dataclass
class ServiceUpdateSettingsFrame(ControlFrame):
    """Change settings of a service."""

    settings: Mapping[str, Any]


@dataclass
class LLMUpdateSettingsFrame(ServiceUpdateSettingsFrame):
    """Change settings of the model's service, from its next completion on."""


# The model's answer


@dataclass
class LLMFullResponseStartFrame(ControlFrame):
    """The model begins to answer."""


@dataclass
class LLMFullResponseEndFrame(ControlFrame):
    """The model's answer is over, whole or not."""


# Function calls


@dataclass
class FunctionCallFromLLM:
    """One call, as the model made it."""

    function_name: str
    tool_call_id: str
    arguments: Mapping[str, Any]
    """Decoded; an empty dict where the model sent nothing or nothing usable."""
    context: OpenAILLMContext | None = None
    raw_arguments: str | None = None
    """The JSON object as the model wrote it, if it was one."""


@dataclass
class FunctionCallResultProperties:
    """What to do with a result."""

    run_llm: bool | None = None
    """True or False decides whether the model runs on it; None leaves it to the result."""
    on_context_updated: Callable[[], Awaitable[None]] | None = None
    """Awaited once, after the result stands in the context."""
    content: str | None = None
    """What the model is told, word for word, in place of the result's JSON. The model then runs on
    it whatever the result is, unless `run_llm` is False."""


@dataclass
class FunctionCallsStartedFrame(SystemFrame):
    """The calls of one response, before any of them runs."""

    function_calls: Sequence[FunctionCallFromLLM]


@dataclass
class FunctionCallInProgressFrame(SystemFrame):
    """A call starts running."""

    function_name: str
    tool_call_id: str
    arguments: Any
    cancel_on_interruption: bool = False


@dataclass
class FunctionCallResultFrame(SystemFrame):
    """A call has its result."""

    function_name: str
    tool_call_id: str
    arguments: Any
    result: Any
    run_llm: bool | None = None
    properties: FunctionCallResultProperties | None = None
    failure: str | None = None
    """Why there is only an error for a result: a stable word, None on success."""


@dataclass
class FunctionCallCancelFrame(SystemFrame):
    """A call was cancelled by an interruption."""

    function_name: str
    tool_call_id: str


# Images


@dataclass
class InputImageRawFrame(SystemFrame, ImageRawFrame):
    """An image that came in."""


@dataclass
class UserImageRequestFrame(SystemFrame):
    """Ask for an image of the user."""

    user_id: str
    context: Any = None
    """What is asked about it; text."""
    function_name: str | None = None
    tool_call_id: str | None = None
    video_source: str | None = None


@dataclass
class UserImageRawFrame(InputImageRawFrame):
    """An image of the user."""

    user_id: str = ""
    request: UserImageRequestFrame | None = None


@dataclass
class VisionImageRawFrame(InputImageRawFrame):
    """Describe this image, outside the conversation's context."""

    text: str | None = None


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


@dataclass
class MetricsFrame(SystemFrame):
    """Measurements, reported only where the StartFrame asked for them."""

    data: Sequence[MetricsData]
