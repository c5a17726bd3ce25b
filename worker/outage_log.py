"""Outages: that something fails is logged once, with the reason, and once that it works again."""

import logging
from typing import Final

from turnline.contracts.refusals import reason

LATE_S: Final = 10.0
"""A queue is late once what is claimed has been due for so long; half of it is in time again."""


class Outage:
    """Whether a server, or what is asked of it, fails at the moment."""

    def __init__(self, log: logging.Logger, begin: str, end: str, where: str) -> None:
        """Start with nothing wrong.

        Args:
            log: Gets the two events.
            begin: Name of the event that something fails.
            end: Name of the event that all works again.
            where: Which server or queue; no secrets.
        """
        self._log = log
        self._begin = begin
        self._end = end
        self._where = where
        self._failing: set[str] = set()

    @property
    def is_on(self) -> bool:
        """Whether something fails."""
        return bool(self._failing)

    def failed(self, error: Exception, who: str = "") -> None:
        """Take note of a failure; `who` tells apart those that may fail one by one."""
        if not self._failing:
            about = {"where": self._where, "error": type(error).__name__, "reason": reason(error)}
            self._log.warning(self._begin, extra=about)
        self._failing.add(who)

    def worked(self, who: str = "") -> None:
        """Take note of a success."""
        if who in self._failing:
            self._failing.discard(who)
            if not self._failing:
                self._log.info(self._end, extra={"where": self._where})


class Lateness:
    """Whether conversations wait for workers: logged once, and once that they do no more."""

    def __init__(self, log: logging.Logger) -> None:
        """Start with none that is late; `log` gets the two events."""
        self._log = log
        self._late: set[str] = set()

    def looked(self, waited_s: float, queue: str) -> None:
        """Take note for how long the first one in a queue had been due when it was claimed."""
        if waited_s >= LATE_S and queue not in self._late:
            self._late.add(queue)
            self._log.warning("queue.late", extra={"queue": queue, "waited_s": round(waited_s, 1)})
        elif waited_s < LATE_S / 2 and queue in self._late:
            self._late.discard(queue)
            self._log.info("queue.in_time", extra={"queue": queue})
