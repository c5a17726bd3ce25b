"""SIGTERM ends a command as Ctrl-C does: every `with` block is left in order."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

EXIT_CODE = 128 + signal.SIGTERM


def _end(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(EXIT_CODE)


@contextmanager
def ends_in_order() -> Generator[None]:
    """Turn SIGTERM into `SystemExit` for the block."""
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
