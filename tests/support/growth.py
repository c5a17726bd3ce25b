"""Tells linear work from quadratic work on any machine, however fast or busy it is."""

import gc
import time
from collections.abc import Callable


def growth(work: Callable[[int], object], size: int) -> float:
    """Return how many times longer twice as much work takes.

    2 for linear work and 4 for quadratic work, if `size` is large enough for both to show.
    Processor time counts, the shortest of several runs.
    """
    once, twice = (min(took_s(work, n) for _ in range(5)) for n in (size, 2 * size))
    return twice / once


def took_s(work: Callable[[int], object], size: int) -> float:
    """Return the processor time of a piece of work."""
    gc.collect()
    gc.disable()
    try:
        began_s = time.process_time()
        work(size)
        return time.process_time() - began_s
    finally:
        gc.enable()
