"""Tells linear work from quadratic work on any machine, however fast or busy it is."""

import gc
import math
import time
from collections.abc import Callable


def is_linear(work: Callable[[int], object], size: int) -> bool:
    """Tell whether four times as much work takes about four times as long, and not 16 times.

    `size` has to be large enough for quadratic work to show. Processor time counts, the shortest
    of several runs: of more of them while a busy machine may be why it looks as if it were not.
    """
    once = four_times = math.inf
    for turn in range(16):
        once = min(once, took_s(work, size))
        four_times = min(four_times, took_s(work, 4 * size))
        if turn >= 3 and four_times < 8 * once:
            return True
    return False


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
