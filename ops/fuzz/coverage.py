"""Records which lines of chosen source files a call executes, and in which order.

One mechanism on every Python version: docs/adr/0012-a-fuzzer-of-our-own.md.
"""

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Final, TypeVar

T = TypeVar("T")
_Tracer = Callable[[FrameType, str, Any], Any]
_FILE: Final = 100_000
"""Lines that a file may have."""
_EDGE: Final = 10_000_000
"""Larger than any line's number."""


class Edges:
    """Collects pairs of lines that followed each other; a pair never seen before is new code."""

    def __init__(self, files: Sequence[str]) -> None:
        """Look at these source files, named as code objects name theirs."""
        self.seen: set[int] = set()
        """Each pair as one number, the same in every process that looks at the same files."""
        self.steps = 0
        """Lines that the last call went through."""
        self._last = 0
        self._lines = {file: self._tracer(n * _FILE) for n, file in enumerate(files)}

    def _tracer(self, base: int) -> _Tracer:
        seen = self.seen

        def trace(frame: FrameType, event: str, _: object) -> _Tracer:
            if event == "line":
                line = base + frame.f_lineno
                self.steps += 1
                seen.add(self._last * _EDGE + line)
                self._last = line
            return trace

        return trace

    def _enter(self, frame: FrameType, _event: str, _arg: object) -> _Tracer | None:
        return self._lines.get(frame.f_code.co_filename)

    def watch(self, call: Callable[[bytes], T], data: bytes) -> T:
        """Call with `data` and follow what it does; whatever it raises comes through."""
        self.steps = self._last = 0
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            return call(data)
        finally:
            sys.settrace(before)
