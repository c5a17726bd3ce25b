"""What a check returns or raises."""

import re
from collections.abc import Sequence
from typing import NamedTuple


class Violation(Exception):
    """Something that must always hold does not; the text says what, never the input."""


class Verdict(NamedTuple):
    """What became of an input that broke nothing."""

    refused: str = ""
    """The name it was refused by; empty: it was accepted."""
    outcomes: Sequence[str] = ()
    """What happened, in words of a bounded number: a new one is worth as much as new code, since
    much of the code that decides is not Python."""


def must(holds: bool, rule: str) -> None:  # noqa: FBT001  reads as an assertion
    """Raise `Violation(rule)` unless it holds."""
    if not holds:
        raise Violation(rule)


def plain(text: str) -> str:
    """Return a sentence without its numbers, so that the number of sentences is bounded."""
    return re.sub(r"\d+", "N", text)[:200]
