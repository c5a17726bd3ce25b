"""Gives each worker of a drill a wrong clock of its own."""

import os
import random
import time
from typing import Any, Final

VARIABLE: Final = "CHAOS_CLOCK_S"


def environment(most_s: float) -> dict[str, str]:
    """Return the variable that sets a worker's clock wrong, by at most so much either way."""
    return {VARIABLE: str(most_s)}


def apply_from_environment() -> None:
    """Set this process's clock wrong, as the environment and the worker's name say."""
    most_s = float(os.environ.get(VARIABLE, "0"))
    if not most_s:
        return
    name = os.environ.get("TURNLINE_WORKER_NAME", "")
    off_s = random.Random(name).uniform(-most_s, most_s)
    seconds, nanoseconds, module = time.time, time.time_ns, time
    setters: dict[str, Any] = {
        "time": lambda: seconds() + off_s,
        "time_ns": lambda: nanoseconds() + int(off_s * 1e9),
    }
    for attribute, clock in setters.items():
        setattr(module, attribute, clock)
