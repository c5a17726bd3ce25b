"""Recorded dialogues: finds the one a request belongs to and what was said next in it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from turnline.ops.simulator.model.prompt import ChatMessage


class ServiceCall(msgspec.Struct, frozen=True):
    """A service that the system called before it spoke."""

    method: str
    parameters: Mapping[str, object] = {}


class RecordedTurn(msgspec.Struct, frozen=True):
    """Something that the user or the system said."""

    speaker: Literal["user", "system"]
    text: str
    call: ServiceCall | None = None
    results: list[Any] = []
    """What the service answered."""


class Dialogue(msgspec.Struct, frozen=True):
    """One line of a file of dialogues."""

    dialogue_id: str
    turns: list[RecordedTurn]

    @property
    def user_texts(self) -> list[str]:
        """What the user said, in order."""
        return [turn.text for turn in self.turns if turn.speaker == "user"]

    def answer(self, user_messages: int) -> RecordedTurn | None:
        """What the system said after the n-th user message; None behind the end."""
        seen = 0
        for turn, following in zip(self.turns, self.turns[1:], strict=False):
            seen += turn.speaker == "user"
            if seen == user_messages and turn.speaker == "user":
                return following if following.speaker == "system" else None
        return None


def load_dialogues(path: Path) -> list[Dialogue]:
    """Read a file of JSON lines.

    Raises:
        OSError: The file cannot be read.
        msgspec.DecodeError: A line is no dialogue.
    """
    return msgspec.json.Decoder(Dialogue).decode_lines(path.read_bytes())


class Next(msgspec.Struct, frozen=True):
    """The recorded continuation of a conversation: a call or words."""

    text: str
    call: ServiceCall | None
    """To be made before the text is said. None: nothing, or it was made already."""


class Dialogues:
    """All dialogues of a file, by id and by their beginning."""

    def __init__(self, dialogues: Sequence[Dialogue]) -> None:
        self._by_id = {dialogue.dialogue_id: dialogue for dialogue in dialogues}
        self._by_opening: dict[str, list[Dialogue]] = {}
        for dialogue in dialogues:
            opening = next(iter(dialogue.user_texts), None)
            if opening is not None:
                self._by_opening.setdefault(opening, []).append(dialogue)

    def __len__(self) -> int:
        return len(self._by_id)

    def next(
        self, conversation_id: str | None, messages: Sequence[ChatMessage], tools: Sequence[str]
    ) -> Next | None:
        """What was said next, if the conversation is a recorded one that goes on.

        Args:
            conversation_id: A dialogue's id, alone or behind the last slash; else the user's
                texts decide.
            messages: The conversation so far.
            tools: Names of the tools that may be called.
        """
        said = [message.text for message in messages if message.role == "user"]
        dialogue = self._find(conversation_id, said)
        if dialogue is None or not said:
            return None
        turn = dialogue.answer(_reached(dialogue.user_texts, said))
        if turn is None:
            return None
        call = turn.call
        if call is not None and (call.method not in tools or _is_answered(call, messages)):
            call = None
        return Next(turn.text, call)

    def _find(self, conversation_id: str | None, said: Sequence[str]) -> Dialogue | None:
        if conversation_id is not None:
            found = self._by_id.get(conversation_id) or self._by_id.get(
                conversation_id.rpartition("/")[2]
            )
            if found is not None:
                return found
        for dialogue in self._by_opening.get(said[0], ()) if said else ():
            if dialogue.user_texts[: len(said)] == list(said):
                return dialogue
        return None


def _reached(recorded: Sequence[str], said: Sequence[str]) -> int:
    """How many user messages of the dialogue have been said.

    As many as there are, unless the context was cut at its beginning: then the last text tells.
    """
    reached = len(said)
    if reached <= len(recorded) and recorded[reached - 1] == said[-1]:
        return reached
    for index in range(reached, len(recorded)):
        if recorded[index] == said[-1]:
            return index + 1
    return reached


def _is_answered(call: ServiceCall, messages: Sequence[ChatMessage]) -> bool:
    """Whether the call was made and answered since the user spoke last."""
    answered: set[str | None] = set()
    for message in reversed(messages):
        if message.role == "user":
            return False
        if message.role == "tool":
            answered.add(message.tool_call_id)
        for made in message.tool_calls or ():
            if made.function.name == call.method and made.id in answered:
                return True
    return False
