"""Splits text into the simulator's tokens: deterministic, lossless, one token per chunk."""

import re
from typing import Final

_TOKEN: Final = re.compile(r" ?\w{1,16}| ?[^\w\s]{1,3}|\s+(?!\S)|\s")


def split(text: str) -> list[str]:
    """Cut text into tokens; joined again they are the text.

    A word carries the space before it, as in the tokenizers of real models.
    """
    return _TOKEN.findall(text)


def count(text: str) -> int:
    """Count the tokens of a text."""
    return len(_TOKEN.findall(text))
