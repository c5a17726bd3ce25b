"""What a client asks, whatever the wire: messages and tools, their tokens, and what was cached."""

import random
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from turnline.ops.simulator.model.answer import Call, count
from turnline.ops.simulator.model.models import Model

_MESSAGE_OVERHEAD_TOKENS: Final = 3
_IMAGE_TOKENS: Final = 258
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
    """A message of the conversation so far, in the form that chat completions have."""

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


class HostedTool(msgspec.Struct, frozen=True):
    """A tool that the server may use by itself."""

    type: str
    label: str = ""
    """Label of an MCP server."""
    allowed: Sequence[str] = ()
    """Functions of an MCP server that may be called; empty: all."""


class CountedMessage(msgspec.Struct, frozen=True):
    """A message with what was worked out about it."""

    message: ChatMessage
    tokens: int
    image_tokens: int
    fingerprint: int
    """Equal for equal messages, whatever their JSON looked like."""


def counted(message: ChatMessage) -> CountedMessage:
    """Count a message."""
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
    return CountedMessage(message, tokens, image_tokens, hash(parts))


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """All that goes into the model, counted."""

    messages: list[CountedMessage]
    tool_tokens: int
    tools_fingerprint: int
    tokens: int
    """Everything, xAI's own system prompt included."""
    image_tokens: int

    @property
    def last_user_text(self) -> str:
        """What the user said last."""
        said = (it.message for it in reversed(self.messages) if it.message.role == "user")
        return next((message.text for message in said), "")

    @property
    def tool_rounds(self) -> int:
        """How often tools have answered since the user spoke last; answers in a row are one."""
        rounds, before = 0, ""
        for read in reversed(self.messages):
            role = read.message.role
            if role == "user":
                break
            rounds += role == "tool" != before
            before = role
        return rounds

    @property
    def ends_with_tool_result(self) -> bool:
        """Whether the model is to speak after a tool has answered."""
        return bool(self.messages) and self.messages[-1].message.role == "tool"


def prompt_of(messages: list[CountedMessage], tools: Sequence[object], model: Model) -> Prompt:
    """Count a prompt for a model; tools count as their JSON."""
    described = msgspec.json.encode(tools) if tools else b""
    tool_tokens = count(described.decode())
    return Prompt(
        messages=messages,
        tool_tokens=tool_tokens,
        tools_fingerprint=hash(described),
        tokens=model.hidden_tokens + tool_tokens + sum(read.tokens for read in messages),
        image_tokens=sum(read.image_tokens for read in messages),
    )


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request that will be answered: all that an answer is made from."""

    model: Model
    prompt: Prompt
    effort: str
    """Reasoning effort, asked for or the model's own."""
    tools: Sequence[ToolFunction] = ()
    hosted: Sequence[HostedTool] = ()
    """Tools that the server may use."""
    demands_any: bool = False
    """Whether some tool has to be used."""
    cites_inline: bool = True
    """Whether sources may be cited in the text."""
    demanded: ToolFunction | None = None
    """The tool that has to be called."""
    may_call: bool = True
    """Whether tools may be called at all."""
    schema: Mapping[str, object] | None = None
    """Schema of the JSON that the answer has to be. None: it may be text."""
    stops: Sequence[str] = ()
    max_visible_tokens: int | None = None
    """Limit of visible tokens; reasoning is not limited."""
    stream: bool = False
    include_usage: bool = False
    """Whether the stream ends with a usage report."""
    deferred: bool = False
    priority: bool = False
    """Whether the service with priority was asked for, which costs more."""
    rng: random.Random
    """Of this answer: the same seed gives the same ids and counts."""

    def call(self, name: str, arguments: str) -> Call:
        """Make a call with an id in xAI's form."""
        return Call(f"call_{self.rng.randrange(10**8):08d}", name, arguments)


class PromptCache:
    """Remembers the last prompt of each conversation, as a pinned server would."""

    def __init__(self) -> None:
        self._prompts: OrderedDict[tuple[str, str], tuple[int, list[int]]] = OrderedDict()

    def cached_tokens(self, key: str | None, model: Model, prompt: Prompt) -> int:
        """Return the tokens of the longest prefix shared with the last prompt under this key.

        Without a key a request lands on any server, so nothing is cached. The present prompt
        becomes the last one.
        """
        if key is None:
            return 0
        slot = (key, model.name)
        before = self._prompts.pop(slot, None)
        fingerprints = [read.fingerprint for read in prompt.messages]
        self._prompts[slot] = prompt.tools_fingerprint, fingerprints
        if len(self._prompts) > _CACHED_PROMPTS:
            self._prompts.popitem(last=False)
        if before is None:
            return 0
        shared = model.hidden_tokens
        if before[0] == prompt.tools_fingerprint:
            shared += prompt.tool_tokens
            for read, old in zip(prompt.messages, before[1], strict=False):
                if read.fingerprint != old:
                    break
                shared += read.tokens
        shared = min(shared, prompt.tokens - 1)
        return shared - shared % model.cache_step
