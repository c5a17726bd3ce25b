"""Lets a drill hold up a worker's event loop, and nothing else of it, by a signal."""

import os
import signal
import time
from types import FrameType
from typing import Final

VARIABLE: Final = "CHAOS_STALL_S"
SIGNAL: Final = signal.SIGUSR1


def apply_from_environment() -> None:
    """Have the signal hold up the main thread for as long as the environment says, if it does."""
    stall_s = float(os.environ.get(VARIABLE, "0"))

    def stall(_signal: int, _frame: FrameType | None) -> None:
        time.sleep(stall_s)

    if stall_s:
        signal.signal(SIGNAL, stall)
