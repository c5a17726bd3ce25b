"""Puts tool calls together from the parts in which providers send them."""

import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from turnline.contracts.numbers import number
from turnline.worker.errors import ReplyTooLarge

CALLS_MAX: Final = 128
"""Tool calls of one response."""
ARGUMENTS_MAX_BYTES: Final = 1024 * 1024
"""Longest arguments of one call, UTF-8 bytes."""
ALL_ARGUMENTS_MAX_BYTES: Final = 4 * 1024 * 1024
"""Arguments of all calls of one response, UTF-8 bytes."""
NAME_MAX_CHARS: Final = 200
"""Longest name, and longest id, of a call: what the contract can read back."""
LEGACY: Final = -1
"""The index of the one call that `function_call` may hold."""


class ToolCallDelta(msgspec.Struct, frozen=True, gc=False):
    """A part of a tool call, or the whole of it."""

    index: int | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None


class ToolCallParts(msgspec.Struct):
    """A tool call as collected so far."""

    call_id: str = ""
    name: str = ""
    arguments: str = ""


_decode = msgspec.json.Decoder(dict[str, Any], float_hook=number).decode
_raw_decode: Final = json.JSONDecoder(strict=False).raw_decode
_ESCAPE: Final = re.compile(r"\\.", re.DOTALL)
_SPACE: Final = re.compile(r"\s*")


class _Arguments:
    """Arguments as they come: parts of a text, or the text so far again and again.

    Each character is looked at a fixed number of times, however many deltas there are.
    """

    def __init__(self) -> None:
        self._joined = io.StringIO()
        self._last = ""
        self._grows = True
        """Whether each part so far began with the one before it, and was longer."""
        self._scanned = 0
        """Where the characters begin whose brackets are not counted yet."""
        self._depth = 0
        self._has_ended = False
        """Whether any bracket was closed."""
        self._quoted = False
        self._values = _RepeatedValue()
        self._decoded = 0
        """Where the values begin that are not decoded yet."""
        self.bytes = 0

    def add(self, part: str) -> int:
        """Add a part; return by how much the arguments grew, UTF-8 bytes."""
        size, before = _bytes(part), self.bytes
        self._grows = self._grows and len(part) > len(self._last) and part.startswith(self._last)
        self._last = part
        self.bytes = before + size
        if self.bytes <= ARGUMENTS_MAX_BYTES:
            self._joined.write(part)
        elif self._grows and size <= ARGUMENTS_MAX_BYTES:  # these are not to be joined
            self.bytes = max(before, size)
        return self.bytes - before

    def is_complete(self) -> bool:
        """Tell whether the text is one object, or several.

        Brackets are counted, not walked through: a million of them would hold up other turns.
        """
        text = _ESCAPE.sub("", self._text_from(self._scanned))
        self._scanned = self._joined.tell() - text.endswith("\\")  # it escapes what is to come
        pieces = text.split('"')
        outside = "".join(pieces[self._quoted :: 2])
        self._quoted ^= len(pieces) % 2 == 0
        closed = outside.count("}") + outside.count("]")
        self._depth += outside.count("{") + outside.count("[") - closed
        self._has_ended |= closed > 0
        return self._has_ended and self._depth == 0

    def value(self) -> dict[str, Any] | None:
        """Return the object that complete arguments are; None if they are no single one.

        Only the text that came since the last time is decoded: brackets that are closed stay so.
        """
        if self._decoded < self._joined.tell():
            self._values.add(whole_characters(self._text_from(self._decoded)))
            self._decoded = self._joined.tell()
            if self._values.value is None and self._grows:
                self._values.value = _object(self._last)
        return self._values.value

    def settled(self) -> str:
        """Return the arguments: a whole that came again is one."""
        text = whole_characters(self._joined.getvalue())
        if _object(text) is not None:
            return text
        if self._grows and self._last != text and _object(self._last) is not None:
            return self._last
        values = _RepeatedValue()
        values.add(text)
        return text if values.value is None else values.text

    def _text_from(self, start: int) -> str:
        self._joined.seek(start)
        return self._joined.read()


class _RepeatedValue:
    """The one object that a text repeats; the first other value ends it for good."""

    def __init__(self) -> None:
        self.value: dict[str, Any] | None = None
        self.text = "{}"
        self._count = 0
        self._is_spoiled = False

    def add(self, text: str) -> None:
        """Add text that ends where a value ends."""
        try:
            for part in () if self._is_spoiled else _values_in(text):
                value = _object(part)
                self._count += 1
                if value is None or (value and self.value and value != self.value):
                    self._is_spoiled = True
                    break
                if self.value is None or (value and not self.value):
                    self.value, self.text = value, part if value else "{}"
        except (ValueError, RecursionError):
            self._is_spoiled = True
        if self._is_spoiled or self._count > CALLS_MAX:
            self._is_spoiled, self.value = True, None


def _values_in(text: str) -> Iterator[str]:
    """Yield the values of a text that is nothing but a few of them in a row.

    Raises:
        ValueError: It is something else.
        RecursionError: Likewise.
    """
    at = _end_of_space(text, 0)
    for _ in range(CALLS_MAX):
        if at == len(text):
            return
        _, end = _raw_decode(text, at)
        yield text[at:end]
        at = _end_of_space(text, end)
    if at < len(text):
        raise ValueError("more values than a response has calls")


def _end_of_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found is not None else at


def whole_characters(text: str) -> str:
    """Join halves of characters that came in different pieces; one that is alone is replaced."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _object(text: str) -> dict[str, Any] | None:
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


class _Call:
    def __init__(self, index: int | None, place: int) -> None:
        self.index = index
        self.place = place
        self.call_id = self.name = ""
        self.arguments = _Arguments()


class ToolCallCollector:
    """Puts tool calls together, whatever shape their deltas have.

    A delta belongs to the call with its id; else to the latest with its index; else to the last
    one. A new id or name opens a new call, unless it can only be the same one going on: an id that
    changes with every piece of the arguments, a name that is repeated with it or comes in pieces.
    A call that comes again as a whole is the same call.
    """

    def __init__(self) -> None:
        """Begin with no calls."""
        self._calls: list[_Call] = []
        self._by_id: dict[str, _Call] = {}
        self._by_index: dict[int, _Call] = {}
        self._bytes = 0

    def __bool__(self) -> bool:
        """Tell whether there is any call."""
        return bool(self._calls)

    def __len__(self) -> int:
        """Return how many calls there are."""
        return len(self._calls)

    def add(self, delta: ToolCallDelta) -> None:
        """Add one delta.

        Raises:
            ReplyTooLarge: There are too many calls, or their arguments are too long.
        """
        call = self._of(delta)
        if call is None or _opens(call, delta):
            call = self._open(delta)
        if delta.call_id and not call.call_id:
            call.call_id = delta.call_id
            self._by_id[delta.call_id] = call
        if delta.name and delta.name != call.name:
            whole = delta.name.startswith(call.name)
            call.name = (delta.name if whole else call.name + delta.name)[: NAME_MAX_CHARS + 1]
        if delta.arguments and not _says_again(call, delta):
            self._bytes += call.arguments.add(delta.arguments)
            if call.arguments.bytes > ARGUMENTS_MAX_BYTES or self._bytes > ALL_ARGUMENTS_MAX_BYTES:
                raise ReplyTooLarge(
                    "the arguments of a tool call are too long", code="arguments_too_large"
                )

    def calls(self) -> Sequence[ToolCallParts]:
        """Return the calls, in the order of their indices and then as they came."""
        ordered = sorted(self._calls, key=lambda call: call.place)
        parts = [
            ToolCallParts(
                whole_characters(call.call_id),
                whole_characters(call.name),
                call.arguments.settled(),
            )
            for call in ordered
        ]
        is_legacy = [call.index == LEGACY for call in ordered]
        if len(set(is_legacy)) < 2:
            return parts
        # The call of a `function_call` may stand among the tool calls as well.
        values = [(part.name, _object(part.arguments)) for part in parts]
        others = [value for value, legacy in zip(values, is_legacy, strict=True) if not legacy]
        return [
            part
            for part, value, legacy in zip(parts, values, is_legacy, strict=True)
            if not (legacy and value[1] is not None and value in others)
        ]

    def _of(self, delta: ToolCallDelta) -> _Call | None:
        """Return the call that a delta may belong to."""
        known = self._by_id.get(delta.call_id) if delta.call_id else None
        at = self._by_index.get(delta.index) if delta.index is not None else None
        if known is not None:
            moved = delta.index is not None and known.index not in {None, delta.index}
            if not (moved and delta.name):  # else one id for all calls
                return known
            return at if at is not None and at.call_id == delta.call_id else None
        if delta.index is None:
            return self._calls[-1] if self._calls else None
        if at is None and self._calls and not (delta.call_id or delta.name):
            last = self._calls[-1]  # an index that moves on with every piece
            return None if last.arguments.is_complete() else last
        return at

    def _open(self, delta: ToolCallDelta) -> _Call:
        if len(self._calls) >= CALLS_MAX:
            raise ReplyTooLarge("a response has too many tool calls", code="too_many_calls")
        last = max((call.place for call in self._calls), default=-1)
        index = delta.index
        call = _Call(index, last + 1 if index is None else index)
        self._calls.append(call)
        if index is not None:
            self._by_index[index] = call
        return call


def _opens(call: _Call, delta: ToolCallDelta) -> bool:
    """Tell whether a delta opens a new call beside the one it may belong to."""
    call_id, name = delta.call_id, delta.name
    if call_id and call.call_id and call_id != call.call_id:
        return bool(name) or not delta.arguments or call.arguments.is_complete()
    if not name or not call.name:
        return False
    if call_id and call_id == call.call_id:
        return call.arguments.is_complete() and _says_otherwise(call, delta)
    if delta.index is None and (name != call.name or call_id):
        return True
    if name != call.name:
        is_longer = name.startswith(call.name) and not call.arguments.is_complete()
        return call.arguments.bytes > 0 and not is_longer
    is_again = delta.index is not None and _says_again(call, delta)
    return not is_again and call.arguments.is_complete()


def _says_otherwise(call: _Call, delta: ToolCallDelta) -> bool:
    """Tell whether a delta is another whole call, under an id that the provider gives to all."""
    if delta.name != call.name:
        return True
    before, now = call.arguments.value(), _object(delta.arguments or "")
    if not before or now is None:  # begun as an empty one, or going on
        return False
    return any(now.get(key) != value for key, value in before.items())


def _says_again(call: _Call, delta: ToolCallDelta) -> bool:
    """Tell whether a delta is the whole call once more."""
    if not (delta.name and delta.arguments and delta.name == call.name):
        return False
    value = call.arguments.value() if call.arguments.is_complete() else None
    return value is not None and value == _object(delta.arguments)
