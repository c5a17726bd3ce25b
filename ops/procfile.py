"""Runs the Procfile with honcho, and leaves workers the time to drain that honcho cuts to 5 s."""

import re
import runpy
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

KILL_WAIT_S: Final = 60
"""How long after the first process has ended the others may take before honcho kills them."""
_COUNT: Final = re.compile(r"[\w-]+=\d+")
_TAKE_COUNTS: Final = ("-c", "--concurrency")


def arguments(words: Sequence[str]) -> list[str]:
    """Return honcho's arguments for ours, which may name counts alone: `start worker=4`."""
    others: list[str] = []
    counts: list[str] = []
    for before, word in zip(("", *words), words, strict=False):
        is_count = _COUNT.fullmatch(word) is not None and before not in _TAKE_COUNTS
        (counts if is_count else others).append(word)
    return [*others, "-c", ",".join(counts)] if counts else others


def main() -> None:
    """Behave as `honcho` does, with the same arguments, and with counts that need no option."""
    vars(import_module("honcho.manager"))["KILL_WAIT"] = KILL_WAIT_S  # it has no option for this
    sys.argv[1:] = arguments(sys.argv[1:])
    runpy.run_module("honcho", run_name="__main__")


if __name__ == "__main__":
    main()
