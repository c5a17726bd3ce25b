"""Tells linear work from quadratic work on any machine, however fast or busy it is."""

import gc
import time
from collections.abc import Callable


def is_linear(work: Callable[[int], object], size: int) -> bool:
    """Tell whether four times as much work takes about four times as long, and not 16 times.

    `size` has to be large enough for quadratic work to show. Processor time counts, the shortest
    of several runs.
    """
    pairs = [(took_s(work, size), took_s(work, 4 * size)) for _ in range(4)]
    once, four_times = map(min, zip(*pairs, strict=True))
    return four_times < 8 * once


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
