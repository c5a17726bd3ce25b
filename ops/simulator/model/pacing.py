"""Draws the times of tokens and lays them onto the frames of a plan."""

import math
import random
from typing import Final

from turnline.ops.simulator.config import Pacing
from turnline.ops.simulator.faults.response_plan import Frame, FrameKind, Plan

_TTFT_SIGMA: Final = 0.5
"""Gives the recorded p90 of 587 ms for a median of 311 ms."""
_ITL_SIGMA: Final = 0.3
_PACED: Final = {FrameKind.REASONING, FrameKind.CONTENT, FrameKind.TOOL}


class Tempo:
    """The pace of one answer; the same seed gives the same times."""

    def __init__(self, pacing: Pacing, rng: random.Random) -> None:
        self._pacing = pacing
        self._rng = rng

    @property
    def is_instant(self) -> bool:
        """Whether nothing is ever waited for."""
        pacing = self._pacing
        return not pacing.speed and not pacing.ttft_ms and not pacing.itl_ms

    def first_s(self) -> float:
        """Time to the first token."""
        return self._draw(self._pacing.ttft_ms, self._pacing.ttft_median_ms, _TTFT_SIGMA)

    def next_s(self) -> float:
        """Time between two tokens."""
        return self._draw(self._pacing.itl_ms, self._pacing.itl_median_ms, _ITL_SIGMA)

    def scaled_s(self, seconds: float) -> float:
        """A given time at this speed."""
        return seconds / self._pacing.speed if self._pacing.speed else 0.0

    def keepalives(self, seconds: float) -> tuple[int, float]:
        """How many keep-alive comments a silence has, and the time between two."""
        every_s = self._pacing.keepalive_s
        return int(seconds // every_s), self.scaled_s(every_s)

    def lay(self, plan: Plan) -> None:
        """Give each frame of a stream its delay, and group frames into writes."""
        frames = [step for step in plan.steps if isinstance(step, Frame)]
        if not self.is_instant:
            self._delay(frames)
        if self._pacing.coalesce is not None:
            self._group(frames, *self._pacing.coalesce)

    def _delay(self, frames: list[Frame]) -> None:
        is_first = True
        for frame in frames:
            if frame.kind in _PACED:
                frame.delay_s += self.first_s() if is_first else self.next_s()
                is_first = False

    def _group(self, frames: list[Frame], fewest: int, most: int) -> None:
        """Events of a group wait for the last of them, as segments on a real network do."""
        start = 0
        while start < len(frames):
            group = frames[start : start + self._rng.randint(fewest, most)]
            delay_s = sum(frame.delay_s for frame in group)
            for frame in group:
                frame.delay_s = 0.0
            group[0].delay_s, group[0].opens_write = delay_s, True
            start += len(group)

    def _draw(self, exact_ms: float | None, median_ms: float, sigma: float) -> float:
        if exact_ms is not None:
            return exact_ms / 1000
        if not self._pacing.speed:
            return 0.0
        drawn_ms = self._rng.lognormvariate(math.log(median_ms), sigma)
        return drawn_ms / 1000 / self._pacing.speed
