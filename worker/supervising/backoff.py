"""How long a process that died waits before it is started again."""

import random
from typing import Final

_BASE_S: Final = 1.0
MOST_S: Final = 30.0
GOOD_LIFE_S: Final = 30.0
"""Whoever took turns for so long begins anew."""


class Backoff:
    """Full jitter, bounded: at once after a good life, then ever later."""

    def __init__(self, rng: random.Random | None = None) -> None:
        """Begin with no failure."""
        self._rng = rng or random.Random()
        self._failures = 0

    def after(self, served_s: float) -> float:
        """Return the seconds to wait behind a process that took turns for so long."""
        if served_s >= GOOD_LIFE_S:
            self._failures = 0
        failures, self._failures = self._failures, self._failures + 1
        if failures == 0:
            return 0.0
        return self._rng.uniform(0, min(MOST_S, _BASE_S * 2 ** min(failures - 1, 16)))
