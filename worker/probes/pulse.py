"""Whether a worker lives and is ready, judged by when its parts were last seen to move.

All is read from any thread; times are of the monotonic clock.
"""

import time
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

Stage = Literal["starting", "serving", "draining"]


class Beats(Protocol):
    """When the parts of a heartbeat moved; see `turnline.worker.queue.heartbeat`."""

    @property
    def loop(self) -> float: ...  # noqa: D102
    @property
    def thread(self) -> float: ...  # noqa: D102
    @property
    def answered(self) -> float: ...  # noqa: D102


class PulseLimits(NamedTuple):
    """For how long a part may stand still, seconds."""

    stall_s: float
    """The event loop of the turns, and the thread of the heartbeat."""
    answer_s: float
    """Redis' answers to the heartbeat."""
    look_s: float
    """Looks at the queue of a shard."""


class Pulse:
    """What a worker's probes look at."""

    def __init__(
        self,
        limits: PulseLimits,
        beats: Callable[[], Beats],
        looked: Callable[[], float],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look at nothing yet.

        Args:
            limits: See `PulseLimits`.
            beats: Tells when the heartbeat moved.
            looked: Tells when the shard that looked longest ago for work had its answer.
            clock: Of the same seconds.
        """
        self.stage: Stage = "starting"
        self._limits = limits
        self._beats = beats
        self._looked = looked
        self._clock = clock

    def standing(self) -> list[str]:
        """Return what stands still that no worker lives without; nothing before it serves."""
        if self.stage == "starting":  # what may take long then has limits of its own
            return []
        beats, now_s, most_s = self._beats(), self._clock(), self._limits.stall_s
        parts = (("the event loop", beats.loop), ("the heartbeat", beats.thread))
        return [
            f"{name} has stood still for {now_s - at_s:.1f} s"
            for name, at_s in parts
            if now_s - at_s > most_s
        ]

    def unready(self) -> list[str]:
        """Return why no new turns should be expected to begin here."""
        if self.stage != "serving":
            return [f"it is {self.stage}"]
        beats, looked_s, now_s = self._beats(), self._looked(), self._clock()
        faults = self.standing()
        if now_s - beats.answered > self._limits.answer_s:
            faults.append(f"Redis has not answered for {now_s - beats.answered:.1f} s")
        if not looked_s:
            faults.append("it has not looked for work yet")
        elif now_s - looked_s > self._limits.look_s:
            faults.append(f"it has not looked for work for {now_s - looked_s:.1f} s")
        return faults
