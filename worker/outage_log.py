"""Outages: that something fails is logged once, with the reason, and once that it works again."""

import logging

from turnline.contracts.refusals import reason


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
