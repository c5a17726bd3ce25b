"""Holds the messages of a conversation, as bytes for as long as nobody looks at them."""

import base64
import io
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias, cast

import msgspec

from turnline.contracts.numbers import number
from turnline.worker.pipeline.reply_items import (
    BESIDE_MARKS,
    ITEMS_MARK,
    REPLY_ITEMS,
    fit,
    inputs_of,
    without_items,
)
from turnline.worker.pipeline.tool_schemas import NOT_GIVEN, NotGiven, ToolsSchema

Message: TypeAlias = dict[str, Any]
"""A message in the shape of OpenAI's chat API."""

IN_PROGRESS = "IN_PROGRESS"
COMPLETED = "COMPLETED"
CANCELLED = "CANCELLED"

_encoder = msgspec.json.Encoder()
_decode = msgspec.json.Decoder(Message, float_hook=number).decode
_IMAGE_TYPES: Mapping[str, str] = {
    "JPEG": "image/jpeg",
    "JPG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
}


class MessageAdapter:
    """Gives messages the form that a model takes; this one leaves them as they are."""

    def encode_message(self, message: Mapping[str, Any]) -> bytes:
        """Return the message as compact JSON. The same message always gives the same bytes."""
        return _encoder.encode(message)


PLAIN: Final = MessageAdapter()


class OpenAILLMContext:
    """The context of one conversation: messages, tools, tool choice.

    Messages that were loaded as bytes (`from_stored`) stay bytes: adding to them and building a
    request from them decodes nothing. Reading `messages` decodes them once and hands out the live
    list, which may then be changed freely; `prefix_intact` tells whether the loaded part is still
    what was stored, so that the caller knows whether appending is enough.
    """

    def __init__(
        self,
        messages: Iterable[Message] | None = None,
        tools: Any = NOT_GIVEN,
        tool_choice: Any = NOT_GIVEN,
        *,
        system_prompt: str | None = None,
    ) -> None:
        """Start from messages, of which a new list is made: the caller's list is not aliased.

        Args:
            messages: Oldest first.
            tools: A `ToolsSchema`, a list in the shape of OpenAI's API, or NOT_GIVEN.
            tool_choice: "none", "auto", "required", a dict, or NOT_GIVEN.
            system_prompt: Sent before all messages; not part of them and never stored.
        """
        self._stored: Sequence[bytes] = ()
        self._joined: bytes | None = None
        self._pristine: list[Message] | None = None
        self._live: list[Message] | None = None
        self._added: list[Message] = list(messages or ())
        self._adapter: MessageAdapter = PLAIN
        self._tools: Any = NOT_GIVEN
        self._tool_choice: Any = tool_choice
        self.system_prompt = system_prompt
        self.set_tools(tools)

    @classmethod
    def from_stored(
        cls,
        encoded: Sequence[bytes],
        tools: Any = NOT_GIVEN,
        tool_choice: Any = NOT_GIVEN,
        *,
        system_prompt: str | None = None,
    ) -> "OpenAILLMContext":
        """Hold messages as the bytes they were committed as, without decoding them.

        Args:
            encoded: JSON of one message each, oldest first. Kept, not copied: do not change it.
            tools: As in the constructor.
            tool_choice: As in the constructor.
            system_prompt: As in the constructor.
        """
        context = cls(None, tools, tool_choice, system_prompt=system_prompt)
        context._stored = encoded
        return context

    @classmethod
    def from_messages(cls, messages: Iterable[Message]) -> "OpenAILLMContext":
        """Make a context of copies of the messages; the caller's dicts stay as they are."""
        return cls([dict(message) for message in messages])

    # Reading

    @property
    def messages(self) -> list[Message]:
        """The live list: the same object each time, decoded at the first look."""
        if self._live is None:
            if self._stored:
                self._live = [_decode(raw) for raw in self._stored] + self._added
            else:
                self._live = self._added
        return self._live

    @property
    def _messages(self) -> list[Message]:
        """The live list, by the name that subclasses know."""
        return self.messages

    def get_messages(self) -> list[Message]:
        """Return the live list; what a subclass returns instead is what is sent."""
        return self.messages

    @property
    def message_count(self) -> int:
        """Number of messages; none is decoded to count them."""
        if self._live is not None:
            return len(self._live)
        return len(self._stored) + len(self._added)

    def get_messages_for_persistent_storage(self) -> list[Message]:
        """Return a new list of the messages, each as `to_standard_messages` gives it."""
        return [
            standard for message in self.messages for standard in self.to_standard_messages(message)
        ]

    def get_messages_for_initializing_history(self) -> list[Message]:
        """Return the live list."""
        return self.messages

    def get_messages_for_logging(self) -> str:
        """Return the messages as JSON with inline images and audio left out.

        User text is in it: for a person at a terminal, not for logs.
        """
        return json.dumps([_without_media(m) for m in self.messages], ensure_ascii=False)

    def get_messages_json(self) -> str:
        """Return the messages as indented JSON; of a file in memory, its first bytes in hex."""
        return json.dumps(self.messages, ensure_ascii=False, indent=2, default=_start_of_bytes)

    @staticmethod
    def to_standard_messages(message: Message) -> list[Message]:
        """Return the message in OpenAI's format, which it already has."""
        return [message]

    @staticmethod
    def from_standard_message(message: Message) -> Message:
        """Return the message in OpenAI's format, which it already has."""
        return message

    # Changing

    def add_message(self, message: Message) -> None:
        """Append one message."""
        (self._added if self._live is None else self._live).append(message)

    def add_messages(self, messages: Iterable[Message]) -> None:
        """Append messages, oldest first."""
        (self._added if self._live is None else self._live).extend(messages)

    def set_messages(self, messages: Iterable[Message]) -> None:
        """Replace all messages. The live list keeps its identity; the given list is not kept."""
        if self._live is None:
            self._live = self._added
        self._live[:] = list(messages)

    def last_answer(self) -> list[Message]:
        """Return what was added since the user's last message: the same dicts, oldest first."""
        added = self._added if self._live is None else self._live
        first = self.intact_count() if self._live is not None else 0
        spoke = (n for n in range(len(added), first, -1) if added[n - 1].get("role") == "user")
        return added[next(spoke, first) :]

    def set_said(self, message: Message, text: str) -> None:
        """Change what an assistant message says; one that is left with nothing goes."""
        if text:
            message["content"] = text
            fit(message)
        elif message.get("tool_calls"):
            message.pop("content", None)
            fit(message)
        else:
            added = self._added if self._live is None else self._live
            added[:] = [other for other in added if other is not message]

    def add_image_frame_message(
        self,
        *,
        format: str,  # noqa: A002 - pipecat's name
        size: tuple[int, int],  # noqa: ARG002 - pipecat's signature
        image: bytes,
        text: str | None = None,
    ) -> None:
        """Append a user message with an encoded image, after its text where there is one.

        Args:
            format: "JPEG", "PNG" or "WEBP": what `image` is encoded as.
            size: (width, height), pixels; not sent.
            image: An image file's bytes.
            text: What the user says about it.

        Raises:
            ValueError: The format is a raw pixel format or unknown.
        """
        media_type = _IMAGE_TYPES.get(format.removeprefix("image/").upper())
        if media_type is None:
            raise ValueError(f"image of format {format!r}: encode it as JPEG, PNG or WEBP first")
        data = base64.b64encode(image).decode("ascii")
        content: list[dict[str, Any]] = [] if not text else [{"type": "text", "text": text}]
        url = f"data:{media_type};base64,{data}"
        content.append({"type": "image_url", "image_url": {"url": url}})
        self.add_message({"role": "user", "content": content})

    def add_audio_frames_message(
        self, *, audio_frames: Sequence[Any], text: str | None = None
    ) -> None:
        """Do nothing: chat completions take no audio here."""

    def set_tool_result(self, tool_call_id: str, content: str) -> bool:
        """Replace the content of a tool message that is still in progress.

        Messages added since loading are searched first; a loaded one is decoded only where its
        bytes hold the id.

        Returns:
            False if no tool message in progress has this id.
        """
        added = self._added if self._live is None else self._live
        if self._live is None and not any(_awaits(m, tool_call_id) for m in added):
            needle = msgspec.json.encode(tool_call_id)
            if not any(needle in raw and b"IN_PROGRESS" in raw for raw in self._stored):
                return False
            added = self.messages
        for message in reversed(added):
            if _awaits(message, tool_call_id):
                message["content"] = content
                return True
        return False

    def names_call(self, tool_call_id: str) -> bool:
        """Tell whether a tool call of this id may stand in the context; nothing is decoded."""
        needle = _encoder.encode(tool_call_id)
        return any(needle in raw for raw in self.encoded_messages())

    def in_progress_ids(self) -> list[str]:
        """Return the ids of tool calls without a result, in call order."""
        if not self._holds_in_progress():
            return []
        return [str(m.get("tool_call_id", "")) for m in self.messages if _is_in_progress(m)]

    def repair_in_progress(self) -> int:
        """Say of every tool call without a result that it was cancelled: contexts are sent whole.

        Returns:
            The number of tool messages changed.
        """
        if not self._holds_in_progress():
            return 0
        orphans = [m for m in self.messages if _is_in_progress(m)]
        for message in orphans:
            message["content"] = CANCELLED
        return len(orphans)

    def _holds_in_progress(self) -> bool:
        """Tell whether a tool message may be in progress, by one search through the bytes."""
        if self._live is not None:
            return any(_is_in_progress(m) for m in self._live)
        return any(_is_in_progress(m) for m in self._added) or (
            b'"IN_PROGRESS"' in self._stored_joined()
        )

    def last_message(self) -> Message | None:
        """Return the message that was added last, the same dict; None if none was added."""
        added = self._added if self._live is None else self._live
        return added[-1] if added else None

    @property
    def has_reply_items(self) -> bool:
        """Whether there is something that replies left for the model alone."""
        return any(ITEMS_MARK in raw for raw in self.encoded_messages())

    def drop_reply_items(self) -> bool:
        """Forget the items that a model refuses; whether there were any."""
        if not self.has_reply_items:
            return False
        for message in self.messages:
            message.pop(REPLY_ITEMS, None)
        return True

    # Tools

    @property
    def tools(self) -> Any:
        """Tools in the shape of OpenAI's API, or NOT_GIVEN."""
        if isinstance(self._tools, ToolsSchema):
            return self._tools.to_openai() or NOT_GIVEN
        return self._tools

    def set_tools(self, tools: Any = NOT_GIVEN) -> None:
        """Set the tools; an empty list is the same as none."""
        empty = tools is None or (isinstance(tools, (list, tuple)) and not tools)
        self._tools = NOT_GIVEN if empty else tools

    @property
    def tool_choice(self) -> Any:
        """As it was set."""
        return self._tool_choice

    def set_tool_choice(self, tool_choice: Any) -> None:
        """Set the tool choice: "none", "auto", "required", a dict, or NOT_GIVEN."""
        self._tool_choice = tool_choice

    def get_llm_adapter(self) -> MessageAdapter:
        """Return what gives messages the form that the model takes."""
        return self._adapter

    def set_llm_adapter(self, adapter: MessageAdapter) -> None:
        """Set what gives messages the form that the model takes."""
        self._adapter = adapter

    # Bytes

    def encoded_messages(self) -> list[bytes]:
        """Return each message as JSON: loaded ones as they were stored, others encoded now."""
        encode = self._adapter.encode_message
        if self._live is None:
            return [*self._stored, *map(encode, self._added)]
        intact = self.intact_count()
        return [*self._stored[:intact], *map(encode, self._live[intact:])]

    def new_messages_encoded(self) -> list[bytes]:
        """Return what comes after the intact part of the loaded messages, as JSON.

        With `prefix_intact()` this is what a commit appends; else the loaded messages from
        `intact_count()` on must go first.
        """
        return [*map(self._adapter.encode_message, self.new_messages)]

    @property
    def new_messages(self) -> Sequence[Message]:
        """What comes after the intact part of the loaded messages: the same dicts."""
        return self._added if self._live is None else self._live[self.intact_count() :]

    @property
    def own_messages(self) -> Sequence[Message]:
        """What was added to those that were loaded, also where these were changed: the same dicts.

        All of them where the loaded ones were replaced.
        """
        if self._live is None or self._live is self._added:
            return self._added
        return self._live[len(self._stored) :]

    def intact_count(self) -> int:
        """Count the leading messages that are still what was loaded."""
        if self._live is None or not self._stored:
            return len(self._stored)
        if self._live is self._added:
            return 0  # replaced before anybody looked
        if self._pristine is None:
            self._pristine = [_decode(raw) for raw in self._stored]
        count = len(self._stored)
        if self._live[:count] == self._pristine:
            return count
        pairs = zip(self._live, self._pristine, strict=False)
        return next((i for i, (live, old) in enumerate(pairs) if live != old), len(self._live))

    def prefix_intact(self) -> bool:
        """Tell whether every loaded message is still in place and unchanged."""
        return self.intact_count() == len(self._stored)

    def encoded_request_messages(self) -> bytes:
        """Return the JSON array of the system prompt and all messages, for chat.

        Loaded messages are spliced in as the bytes they were stored as, so that a request is the
        former one plus what was added. Items that chat has no place for are left out.
        """
        return self._encoded_request(without_items, BESIDE_MARKS)

    def encoded_request_input(self, is_same: Callable[[str], bool]) -> bytes:
        """Return the JSON array of the system prompt and all items, for `/v1/responses`.

        As `encoded_request_messages`, with the items of earlier replies in their places.

        Args:
            is_same: Tells whether a model, by its name, is the one that is asked.
        """
        return self._encoded_request(lambda messages: inputs_of(messages, is_same))

    def _encoded_request(
        self,
        convert: Callable[[Iterable[bytes]], list[bytes]],
        marks: Collection[bytes] = (b"",),
    ) -> bytes:
        """Return the array; where stored messages hold no mark, they are sent as they are."""
        encode = self._adapter.encode_message
        stored: Sequence[bytes] = self._stored
        if type(self) is not OpenAILLMContext and overridden(
            self, OpenAILLMContext, ("get_messages", "messages")
        ):
            stored, rest = (), self.get_messages()
        elif self._live is None:
            rest = self._added
        else:
            intact = self.intact_count()
            stored, rest = stored[:intact], self._live[intact:]
        joined = self._stored_joined() if len(stored) == len(self._stored) else b",".join(stored)
        parts = convert(stored) if any(mark in joined for mark in marks) else [joined]
        if self.system_prompt is not None:
            parts.insert(0, encode({"role": "system", "content": self.system_prompt}))
        parts += convert(map(encode, rest))
        return b"[%b]" % b",".join(filter(None, parts))

    def _stored_joined(self) -> bytes:
        if self._joined is None:
            self._joined = b",".join(self._stored)
        return self._joined


def _start_of_bytes(value: object) -> str:
    """Return the first bytes of a file in memory, for a person to see.

    Raises:
        TypeError: It is none, and nothing else that JSON has.
    """
    if isinstance(value, io.BytesIO):
        return f"{value.getbuffer()[:8].hex()}..."
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _is_in_progress(message: Message) -> bool:
    return message.get("role") == "tool" and message.get("content") == IN_PROGRESS


def _awaits(message: Message, tool_call_id: str) -> bool:
    return _is_in_progress(message) and message.get("tool_call_id") == tool_call_id


def _without_media(message: Message) -> Message:
    """Copy a message, inline images and audio replaced by `...`."""
    shown = dict(message)
    if isinstance(shown.get("content"), list):
        parts: list[Any] = shown["content"]
        shown["content"] = [_part_without_media(part) for part in parts]
    if str(shown.get("mime_type", "")).startswith(("image/", "audio/")):
        shown["data"] = "..."
    return shown


def _part_without_media(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    fields = cast("dict[str, Any]", part)
    image: Any = fields.get("image_url")
    if isinstance(image, dict):
        url = cast("dict[str, Any]", image)
        if str(url.get("url", "")).startswith("data:image/"):
            return {**fields, "image_url": {**url, "url": "data:image/..."}}
    if "input_audio" in fields:
        return {**fields, "input_audio": "..."}
    return fields


def is_given(value: object) -> bool:
    """Tell whether a value was given: neither this module's NOT_GIVEN nor the SDK's."""
    return not isinstance(value, NotGiven) and type(value).__name__ not in {"NotGiven", "Omit"}


def overridden(owner: object, base: type, names: Collection[str]) -> bool:
    """Tell whether any of these methods of `base` is replaced, in a subclass or on the object."""
    cls = type(owner)
    if cls is not base and any(getattr(cls, name) is not getattr(base, name) for name in names):
        return True
    return not owner.__dict__.keys().isdisjoint(names)
