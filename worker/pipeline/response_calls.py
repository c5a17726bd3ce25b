"""Function calls of a response of `/v1/responses`: in pieces, whole, or both for the same call.

Calls are told apart by their place in the output. What collects them is told of each piece once,
and of none before its call has a name.
"""

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from turnline.worker.pipeline.call_parts import ToolCallDelta
from turnline.worker.pipeline.reply_text import ReplyText
from turnline.worker.pipeline.response_frames import more_of, string_of, word_of
from turnline.worker.pipeline.shapes import Fields, Unreadable


class _Call(msgspec.Struct):
    call_id: str | None = None
    is_told: bool = False
    arguments: ReplyText = msgspec.field(default_factory=ReplyText)
    begun_with: str = ""
    """Arguments that it was announced with: they may come again, in pieces."""


class ResponseCalls:
    """The calls so far, by their place in the output."""

    def __init__(self) -> None:
        """Begin with none."""
        self._calls: dict[int, _Call] = {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._calls)

    def __iter__(self) -> Iterator[int]:
        """Return their places."""
        return iter(self._calls)

    def before(self, index: int) -> int:
        """Return how many calls stand before a place."""
        return sum(at < index for at in self._calls)

    def add(self, index: int, piece: str) -> list[ToolCallDelta]:
        """Take a piece of a call's arguments; return what is new."""
        call = self._of(index)
        piece = call.arguments.add(piece) if piece else ""
        return [ToolCallDelta(index, None, None, piece)] if piece and call.is_told else []

    def begin(self, index: int, item: Fields) -> list[ToolCallDelta]:
        """Take the announcement of a call; return what is new.

        Raises:
            Unreadable: It is no call, or another one.
        """
        call = self._of(index)
        call.begun_with = call.begun_with or _arguments_of(item)
        return self._tell(index, call, item)

    def complete(self, index: int, item: Fields, *, is_cut: bool) -> list[ToolCallDelta]:
        """Take a call, or its arguments, as a whole; return what is new.

        Args:
            index: Its place.
            item: What is said of it.
            is_cut: Whether the response was cut, so that less may stand here than came.

        Raises:
            Unreadable: It contradicts what came of it.
        """
        call = self._of(index)
        whole = _arguments_of(item)
        more = more_of(call.arguments, whole, is_cut=is_cut) if whole else ""
        if more:
            call.arguments.half = ""  # the whole holds all of that character
            more = call.arguments.add(more)
        if not call.is_told:
            return self._tell(index, call, item)
        _check_same(call, item)
        return [ToolCallDelta(index, None, None, more)] if more else []

    def place_of(self, item: Fields, index: int) -> int:
        """Return the place of a whole call: where it came before, else this or another free one.

        Args:
            item: The call.
            index: Where it stands now.

        Raises:
            Unreadable: It has no id, and something came before.
        """
        call_id, here = _id_of(item), self._calls.get(index)
        if here is not None and (call_id is None or here.call_id in {None, call_id}):
            return index
        if call_id is None and self._calls:
            raise Unreadable
        known = (at for at, call in self._calls.items() if call.call_id == call_id)
        return next(known, index if here is None else max(self._calls) + 1)

    def settle(self) -> list[ToolCallDelta]:
        """Return what is still to be told when the response is over.

        Raises:
            Unreadable: A call has no name.
        """
        told: list[ToolCallDelta] = []
        for index, call in self._calls.items():
            more = call.arguments.give_half()
            if not len(call.arguments):
                more = call.arguments.add(call.begun_with)
            if not call.is_told:
                raise Unreadable
            if more:
                told.append(ToolCallDelta(index, None, None, more))
        return told

    def _of(self, index: int) -> _Call:
        return self._calls.setdefault(index, _Call())

    def _tell(self, index: int, call: _Call, item: Fields) -> list[ToolCallDelta]:
        """Tell of a call once it has a name, with all that came of it."""
        name = word_of(item.get("name"))
        if call.is_told or name is None:
            _check_same(call, item)
            return []
        call.is_told, call.call_id = True, _id_of(item)
        arguments = call.arguments.between(0, len(call.arguments))
        return [ToolCallDelta(index, call.call_id, name, arguments or None)]


def _check_same(call: _Call, item: Fields) -> None:
    call_id = word_of(item.get("call_id"))
    if call.call_id is not None and call_id not in {None, call.call_id}:
        raise Unreadable


def _id_of(item: Fields) -> str | None:
    return word_of(item.get("call_id") or item.get("id"))


def _arguments_of(item: Fields) -> str:
    arguments: Any = item.get("arguments")
    if isinstance(arguments, dict):
        return json.dumps(arguments, separators=(",", ":"))
    return string_of(arguments)
