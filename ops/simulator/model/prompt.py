"""What a client asks: the request body, its messages, their tokens and what of them was cached."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Raw

from turnline.ops.simulator.model.models import Model
from turnline.ops.simulator.model.tokens import count

_MESSAGE_OVERHEAD_TOKENS: Final = 3
_IMAGE_TOKENS: Final = 258
_MEMORY_BYTES: Final = 64 * 1024 * 1024
_CACHED_PROMPTS: Final = 4096


class Part(msgspec.Struct, frozen=True):
    """One part of a message's content."""

    type: str
    text: str | None = None


class CalledFunction(msgspec.Struct, frozen=True):
    """Name and arguments of an earlier call."""

    name: str
    arguments: str = "{}"


class EarlierCall(msgspec.Struct, frozen=True):
    """A tool call in an assistant message."""

    function: CalledFunction
    id: str = ""


class ChatMessage(msgspec.Struct, frozen=True):
    """A message of the conversation so far."""

    role: str
    content: str | list[Part] | None = None
    tool_calls: list[EarlierCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """Its text, whatever form the content has."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text or "" for part in self.content or ())

    @property
    def images(self) -> int:
        """How many images it has."""
        if not isinstance(self.content, list):
            return 0
        return sum(part.type == "image_url" for part in self.content)


class ToolFunction(msgspec.Struct, frozen=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, object] | None = None


class Tool(msgspec.Struct, frozen=True):
    """A tool of the request."""

    type: str = "function"
    function: ToolFunction | None = None


class StreamOptions(msgspec.Struct, frozen=True):
    """Whether the stream ends with a usage report."""

    include_usage: bool | None = None


class JsonSchema(msgspec.Struct, frozen=True):
    """A schema that the answer has to fit."""

    name: str = "answer"
    schema: dict[str, object] | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """The form of the answer."""

    type: str = "text"
    json_schema: JsonSchema | None = None


class ChatRequest(msgspec.Struct, frozen=True):
    """The body of a chat completion. Unknown keys are ignored, as xAI does."""

    messages: list[Raw]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    tools: list[Tool] | None = None
    tool_choice: object = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    search_parameters: dict[str, object] | None = None
    deferred: bool | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    user: str | None = None
    n: int | None = None
    seed: int | None = None


class ReadMessage(msgspec.Struct, frozen=True):
    """A message with what was worked out about it."""

    message: ChatMessage
    tokens: int
    image_tokens: int
    fingerprint: int
    """Equal for equal messages, whatever their JSON looked like."""


class BadMessage(ValueError):
    """A message of the request has the wrong types; the text names where."""


class MessageReader:
    """Decodes and counts messages; equal bytes are worked out once.

    Contexts grow at their end, so nearly all messages of a request have been seen before.
    """

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(ChatMessage).decode
        self._seen: OrderedDict[bytes, ReadMessage] = OrderedDict()
        self._bytes = 0

    def read(self, messages: Sequence[Raw]) -> list[ReadMessage]:
        """Read all messages of a request.

        Raises:
            BadMessage: One of them has the wrong types.
        """
        return [self._read(index, bytes(raw)) for index, raw in enumerate(messages)]

    def _read(self, index: int, raw: bytes) -> ReadMessage:
        known = self._seen.get(raw)
        if known is not None:
            self._seen.move_to_end(raw)
            return known
        try:
            message = self._decode(raw)
        except msgspec.ValidationError as error:
            raise BadMessage(place(str(error), f"messages[{index}]")) from None
        read = _read(message)
        self._seen[raw] = read
        self._bytes += len(raw)
        while self._bytes > _MEMORY_BYTES and len(self._seen) > 1:
            oldest, _ = self._seen.popitem(last=False)
            self._bytes -= len(oldest)
        return read


def place(error: str, prefix: str = "") -> str:
    """Turn msgspec's description of a wrong type round: place first, as xAI has it."""
    problem, _, path = error.partition(" - at `$")
    where = (prefix + path.rstrip("`")).lstrip(".")
    problem = problem[:1].lower() + problem[1:].replace("`", "")
    return f"{where}: invalid type: {problem}" if where else f"invalid type: {problem}"


def _read(message: ChatMessage) -> ReadMessage:
    text, calls = message.text, message.tool_calls or []
    image_tokens = message.images * _IMAGE_TOKENS
    tokens = _MESSAGE_OVERHEAD_TOKENS + count(text) + image_tokens
    tokens += sum(count(call.function.name) + count(call.function.arguments) for call in calls)
    parts = (
        message.role,
        text,
        message.images,
        message.tool_call_id,
        *((call.id, call.function.name, call.function.arguments) for call in calls),
    )
    return ReadMessage(message, tokens, image_tokens, hash(parts))


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """All that goes into the model, counted."""

    messages: list[ReadMessage]
    tool_tokens: int
    tools_fingerprint: int
    tokens: int
    """Everything, xAI's own system prompt included."""
    image_tokens: int

    @property
    def last_user_text(self) -> str:
        """What the user said last."""
        for read in reversed(self.messages):
            if read.message.role == "user":
                return read.message.text
        return ""

    @property
    def ends_with_tool_result(self) -> bool:
        """Whether the model is to speak after a tool has answered."""
        return bool(self.messages) and self.messages[-1].message.role == "tool"


def prompt_of(messages: list[ReadMessage], tools: Sequence[Tool], model: Model) -> Prompt:
    """Count a prompt for a model."""
    described = msgspec.json.encode(tools) if tools else b""
    tool_tokens = count(described.decode())
    return Prompt(
        messages=messages,
        tool_tokens=tool_tokens,
        tools_fingerprint=hash(described),
        tokens=model.hidden_tokens + tool_tokens + sum(read.tokens for read in messages),
        image_tokens=sum(read.image_tokens for read in messages),
    )


class _Cached(msgspec.Struct, frozen=True):
    tools: int
    messages: tuple[int, ...]


class PromptCache:
    """Remembers the last prompt of each conversation, as a pinned server would."""

    def __init__(self) -> None:
        self._prompts: OrderedDict[tuple[str, str], _Cached] = OrderedDict()

    def cached_tokens(self, key: str | None, model: Model, prompt: Prompt) -> int:
        """Tokens of the longest prefix shared with the last prompt under this key.

        Without a key a request lands on any server, so nothing is cached. The present prompt
        becomes the last one.
        """
        if key is None:
            return 0
        now = _Cached(prompt.tools_fingerprint, tuple(read.fingerprint for read in prompt.messages))
        slot = (key, model.name)
        before = self._prompts.pop(slot, None)
        self._prompts[slot] = now
        if len(self._prompts) > _CACHED_PROMPTS:
            self._prompts.popitem(last=False)
        if before is None:
            return 0
        shared = model.hidden_tokens
        if before.tools == now.tools:
            shared += prompt.tool_tokens
            for read, old in zip(prompt.messages, before.messages, strict=False):
                if read.fingerprint != old:
                    break
                shared += read.tokens
        shared = min(shared, prompt.tokens - 1)
        return shared - shared % model.cache_step
