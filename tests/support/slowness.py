"""How slow this machine is at the moment: a processor that is shared gives less in a second."""

import time
from typing import Final

_QUIET_S: Final = 0.0046
"""What the work below takes on a quiet core (AMD EPYC): bounds in seconds are meant for that."""


def slowness() -> float:
    """Return how many times as long work takes now as on a quiet machine; at least 1."""
    began_s = time.process_time()
    kept: dict[int, str] = {}
    for n in range(40_000):
        kept[n & 255] = str(n)
    return max(1.0, (time.process_time() - began_s) / _QUIET_S)
