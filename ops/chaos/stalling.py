"""Lets a drill block a worker's event loop, and only that, by a signal."""

import os
import signal
import time
from types import FrameType
from typing import Final

VARIABLE: Final = "CHAOS_STALL_S"
SIGNAL: Final = signal.SIGUSR1


def apply_from_environment() -> None:
    """Have the signal block the main thread, if the environment says for how long."""
    stall_s = float(os.environ.get(VARIABLE, "0"))

    def stall(_signal: int, _frame: FrameType | None) -> None:
        time.sleep(stall_s)

    if stall_s:
        signal.signal(SIGNAL, stall)
