"""Keeps the text of a reply, and answers questions about it without reading all of it each time."""

import io
from typing import Final

from turnline.worker.pipeline.call_parts import whole_characters

_FIRST_HALVES: Final = ("\ud800", "\udbff")
_LOOK_BACK_CHARS: Final = 16 * 1024


class ReplyText:
    """The text so far. The work for each addition depends on its own length only."""

    def __init__(self) -> None:
        """Begin empty."""
        self._text = io.StringIO()
        self.write = self._text.write
        """Add text as it is: of whole characters, while no half of one is kept back."""
        self.half = ""
        """The first half of a character whose second may come with the next text."""
        self._measured = self._size_bytes = 0
        self._scanned = self._first = self._behind_last = 0

    def __len__(self) -> int:
        """Return the number of characters."""
        return self._text.tell()

    def add(self, text: str) -> str:
        """Add text; return what of it can be shown: half a character at its end is kept back."""
        if self.half or not text.isascii():
            text = self.half + text
            self.half = ""
            if _FIRST_HALVES[0] <= text[-1:] <= _FIRST_HALVES[1]:
                self.half, text = text[-1], text[:-1]
            text = whole_characters(text)
        self.write(text)
        return text

    def give_half(self) -> str:
        """Add a replacement for half a character whose other half did not come; return it."""
        if not self.half:
            return ""
        self.half = ""
        self.write("\ufffd")
        return "\ufffd"

    def utf8_bytes(self) -> int:
        """Return the length of the text as UTF-8; only what came since is measured."""
        text = self.between(self._measured, len(self))
        self._measured += len(text)
        self._size_bytes += len(text) if text.isascii() else len(text.encode())
        return self._size_bytes

    def begins(self, whole: str) -> bool:
        """Tell whether another text begins with this one."""
        return len(whole) >= len(self) and whole.startswith(self._text.getvalue())

    def is_same(self, whole: str) -> bool:
        """Tell whether another text is this one, apart from space around it."""
        new = self.between(self._scanned, len(self))
        if new.strip():
            if not self._behind_last:
                self._first = self._scanned + len(new) - len(new.lstrip())
            self._behind_last = self._scanned + len(new.rstrip())
        self._scanned += len(new)
        whole = whole.strip()
        is_as_long = len(whole) == self._behind_last - self._first
        return is_as_long and whole == self.between(self._first, self._behind_last)

    def ends_about(self, text: str) -> bool:
        """Tell whether another text stands in this one, not too far from its end."""
        end = len(self)
        return text in self.between(max(0, end - len(text) - _LOOK_BACK_CHARS), end)

    def between(self, start: int, end: int) -> str:
        """Return the characters from `start` up to `end`."""
        last = len(self)
        self._text.seek(start)
        text = self._text.read(end - start)
        self._text.seek(last)
        return text
