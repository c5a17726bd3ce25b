"""What the model is going to say, in tokens, before a wire puts it into frames."""

import enum
import re
from typing import Final

import msgspec

from turnline.ops.simulator.config import ReasoningMode

_TOKEN: Final = re.compile(r" ?\w{1,16}| ?[^\w\s]{1,3}|\s+(?!\S)|\s")
_CALL_OVERHEAD_TOKENS: Final = 12


def split(text: str) -> list[str]:
    """Cut text into tokens, one for each chunk; joined again they are the text.

    A word carries the space before it, as in the tokenizers of real models.
    """
    return _TOKEN.findall(text)


def count(text: str) -> int:
    """Count the tokens of a text."""
    return len(_TOKEN.findall(text))


class CallShape(enum.StrEnum):
    """How tool calls are spread over chunks."""

    WHOLE = "whole"
    """One chunk per call, each call complete; xAI's way."""
    ONE_CHUNK = "one_chunk"
    """All calls in one chunk."""
    SPLIT = "split"
    """Arguments in fragments that belong together by index; OpenAI's way."""


class Call(msgspec.Struct, frozen=True):
    """One tool call."""

    id: str
    name: str
    arguments: str
    """JSON, as the model wrote it; need not be valid."""

    @property
    def tokens(self) -> int:
        """Completion tokens that the call counts."""
        return count(self.name) + count(self.arguments) + _CALL_OVERHEAD_TOKENS


class HostedCall(msgspec.Struct, frozen=True, kw_only=True):
    """One use of a tool that the server runs itself."""

    tool: str
    """Type of the tool, e.g. `web_search`."""
    name: str
    """What of it was called; differs from the type for tools with several functions."""
    input: str
    """A query, code, or arguments as JSON."""
    label: str = ""
    """Label of an MCP server."""
    sources: tuple[str, ...] = ()
    """Addresses that were found."""
    result_tokens: int = 0
    """What its result counts in a prompt."""
    failed: bool = False


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of the model with everything that shapes it on the wire."""

    text: str | None = ""
    """Visible text. None: the content is null."""
    pieces: tuple[str, ...] | None = None
    """Texts of the content chunks. None: the tokens of `text`."""
    hosted: tuple[HostedCall, ...] = ()
    """Tools of the server that were used before anything visible was said."""
    calls: tuple[Call, ...] = ()
    call_shape: CallShape = CallShape.WHOLE
    calls_have_index: bool = True
    calls_have_id: bool = True
    finish_reason: str = "stop"
    reasoning_tokens: int = 0
    reasoning_text: str = ""
    """What is shown of the reasoning by the modes that show any."""
    reasoning_mode: ReasoningMode = ReasoningMode.HIDDEN
    reasoning_s: float = 0.0
    """Seconds of a silent or empty reasoning phase, before scaling by the speed."""
    refusal: str | None = None
    citations: tuple[str, ...] = ()
    repeats_last: bool = False
    """The last content delta comes twice."""
    echo_model: str | None = None
    """Model named in the answer instead of the resolved one."""

    @property
    def chunk_texts(self) -> tuple[str, ...]:
        """Texts of the content chunks, or of the refusal's."""
        if self.pieces is not None:
            return self.pieces
        return tuple(split(self.refusal or self.text or ""))

    @property
    def completion_tokens(self) -> int:
        """Visible tokens: one per content chunk, and those of the calls."""
        return len(self.chunk_texts) + sum(call.tokens for call in self.calls)
