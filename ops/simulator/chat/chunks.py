"""The JSON of chat completions, streamed and whole, with xAI's key order and absent keys."""

from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from turnline.ops.simulator.model.usage import Usage


class Function(msgspec.Struct, frozen=True):
    """Name and arguments of a call; either may be absent in a split delta."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call in a delta or in a message; only deltas have an index."""

    id: str | UnsetType = UNSET
    function: Function
    index: int | UnsetType = UNSET
    type: str | UnsetType = UNSET


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """What a chunk adds. Absent keys are absent, never null."""

    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    refusal: str | UnsetType = UNSET
    role: str | UnsetType = UNSET
    tool_calls: tuple[ToolCall, ...] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The one choice of a chunk."""

    index: int = 0
    delta: Delta
    finish_reason: str | UnsetType = UNSET


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of one `data:` line."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    usage: Usage | UnsetType = UNSET
    system_fingerprint: str
    citations: tuple[str, ...] | UnsetType = UNSET
    service_tier: str | UnsetType = UNSET


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a response that is not streamed."""

    role: str = "assistant"
    content: str | None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: tuple[ToolCall, ...] | UnsetType = UNSET
    refusal: str | None = None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The one choice of a response that is not streamed."""

    index: int = 0
    message: Message
    finish_reason: str


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A response body that is not streamed."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: Usage
    system_fingerprint: str
    citations: tuple[str, ...] | UnsetType = UNSET
    service_tier: str | UnsetType = UNSET


_encode: Final = msgspec.json.encode


class ChunkWriter:
    """Encodes the chunks of one answer as tails: all that stands behind the value of `created`.

    The moment of writing decides `created`, so it is left out here and the `prefix` goes before
    it. Plain content chunks are put together from bytes that do not change within the answer.
    """

    def __init__(self, completion_id: str, model: str, fingerprint: str, tier: str | None) -> None:
        self._model = model
        self._fingerprint = fingerprint
        self._tier = UNSET if tier is None else tier
        self.prefix = (
            b'data: {"id":' + _encode(completion_id) + b',"object":"chat.completion.chunk",'
            b'"created":'
        )
        """Bytes of every chunk up to the value of `created`."""
        empty = self.tail(Delta(content=""))
        cut = empty.index(b'"content":""') + len(b'"content":')
        self._before_content = empty[:cut]
        self._after_content = empty[cut + 2 :]

    def content(self, text: str) -> bytes:
        """Tail of a chunk that has nothing but content."""
        return self._before_content + _encode(text) + self._after_content

    def tail(
        self,
        delta: Delta | None,
        *,
        finish_reason: str | UnsetType = UNSET,
        usage: Usage | UnsetType = UNSET,
        citations: tuple[str, ...] | UnsetType = UNSET,
        model: str | None = None,
    ) -> bytes:
        """Tail of any chunk; without a delta, `choices` is empty."""
        chunk = Chunk(
            id="",
            created=0,
            model=model or self._model,
            choices=()
            if delta is None
            else (ChunkChoice(delta=delta, finish_reason=finish_reason),),
            usage=usage,
            system_fingerprint=self._fingerprint,
            citations=citations,
            service_tier=self._tier,
        )
        return _after_created(_encode(chunk)) + b"\n\n"


def _after_created(chunk: bytes) -> bytes:
    return chunk[len(b'{"id":"","object":"chat.completion.chunk","created":0') :]
