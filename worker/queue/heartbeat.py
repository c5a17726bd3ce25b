"""The heartbeat: renews all leases of a worker from a thread, so that a busy event loop keeps them.

Source: docs/adr/0003-the-heartbeat-is-a-thread.md
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence

from redis.exceptions import RedisError

from turnline.contracts.connection import SyncRedis
from turnline.contracts.opening import open_sync
from turnline.contracts.scripts import Call, run_sync, text
from turnline.worker.lease import LeaseSettings

log = logging.getLogger("turnline.queue")
_LOOK_S = 0.01


class Heartbeat:
    """Renews the active leases, and reports those that are lost."""

    def __init__(
        self,
        times: LeaseSettings,
        redis_url: str,
        active: Callable[[], list[tuple[str, str]]],
        renewal: Callable[[Sequence[tuple[str, str]]], Call],
        lose: Callable[[Sequence[tuple[str, str]]], None],
    ) -> None:
        """Prepare a heartbeat of the running event loop's worker.

        Args:
            times: See `LeaseSettings`.
            redis_url: For a connection of its own.
            active: Returns (job id, lease) of all active leases; called in the thread.
            renewal: Builds the call that renews them; called in the thread.
            lose: Is given those that were lost; called in the event loop.
        """
        self._times = times
        self._redis_url = redis_url
        self._active = active
        self._renewal = renewal
        self._lose = lose
        self._stop = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._loop_seen_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._ticking: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin; the first beat is sent at once."""
        self._tick()
        self._thread.start()

    async def stop(self) -> None:
        """End the thread. A beat that is under way may take as long as a lease."""
        self._stop.set()
        if self._ticking is not None:
            self._ticking.cancel()
        until_s = time.monotonic() + self._times.lease_s
        # Not by a thread of the loop's pool: tools may have taken them all.
        while self._thread.is_alive() and time.monotonic() < until_s:  # noqa: ASYNC110  a thread
            await asyncio.sleep(_LOOK_S)

    def _tick(self) -> None:
        self._loop_seen_at = time.monotonic()
        self._ticking = self._loop.call_later(self._times.heartbeat_s, self._tick)

    def _run(self) -> None:
        redis = open_sync(self._redis_url, timeout_s=self._times.lease_s)
        try:
            while True:
                if time.monotonic() - self._loop_seen_at < self._times.stall_s:
                    self._beat(redis)
                if self._stop.wait(self._times.heartbeat_s):
                    return
        finally:
            redis.close()

    def _beat(self, redis: SyncRedis) -> None:
        active = self._active()
        try:
            _, _, *lost = run_sync(redis, self._renewal(active))
        except (RedisError, OSError) as error:
            log.warning("heartbeat.failed", extra={"error": type(error).__name__})
            return
        if lost:
            values = dict(active)
            gone = [(job_id, values[job_id]) for job_id in map(text, lost)]
            self._loop.call_soon_threadsafe(self._lose, gone)
