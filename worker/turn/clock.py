"""What time it is for a turn: by Redis' clock, within its budget, before its deadline."""

import time

from turnline.worker.effects import ConversationSnapshot
from turnline.worker.turn.gathering import ConsumedEntry


class TurnClock:
    """Runs from the load of a conversation on."""

    def __init__(self, loaded: ConversationSnapshot) -> None:
        """Begin now."""
        self._loaded = loaded
        self.began_at_s = time.monotonic()
        self.budget_s = 0.0
        """Seconds that the attempts at the turn may take."""

    def now_ms(self) -> int:
        """Return Redis' clock, ms since the Unix epoch."""
        return self._loaded.now_ms + int((time.monotonic() - self.began_at_s) * 1000)

    def left_ms(self, primary: ConsumedEntry) -> float:
        """Return the time to the producer's deadline; infinity if there is none."""
        assert primary.message is not None
        deadline_at_ms = primary.message.deadline_at_ms
        return float("inf") if deadline_at_ms is None else deadline_at_ms - self.now_ms()

    def is_in_budget(self, wait_s: float, *, of_attempt: bool) -> bool:
        """Whether the turn may wait so long.

        Args:
            wait_s: How long, seconds.
            of_attempt: Whether only this attempt counts: most of earlier ones may have been a wait.
        """
        spent_s = time.monotonic() - self.began_at_s
        if not of_attempt:
            spent_s += (self._loaded.now_ms - self._loaded.since_ms) / 1000
        return spent_s + wait_s <= self.budget_s
