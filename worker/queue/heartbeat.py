"""The heartbeat: renews a process's leases from a thread, so that a busy event loop keeps them.

Source: docs/adr/0003-the-heartbeat-is-a-thread.md
"""

import asyncio
import contextlib
import contextvars
import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import uvloop
from redis.exceptions import ResponseError

from turnline.contracts.scripts import Call, text
from turnline.contracts.servers import AsyncServers
from turnline.worker.batching import Pipelines
from turnline.worker.lease import LeaseSettings
from turnline.worker.outage_log import Outage

log = logging.getLogger("turnline.queue")
Connect: TypeAlias = Callable[[], contextlib.AbstractAsyncContextManager[AsyncServers]]
_LOOK_S: Final = 0.01
_EVENTS: Final = ("heartbeat.failed", "heartbeat.back", "heartbeat.moved")


class Beats(NamedTuple):
    """When parts were last seen to move, by the monotonic clock."""

    loop: float
    """The event loop whose leases are renewed."""
    thread: float
    answered: float
    """The server that has been silent for longest; 0 while nobody's leases are renewed."""


class Holder(Protocol):
    """Who has leases that are to be renewed: the worker of a shard."""

    @property
    def tag(self) -> str:
        """Hash tag of the shard."""
        ...

    def active_leases(self) -> list[tuple[str, str]]:
        """Return (job id, lease) of all active leases; called in the thread."""
        ...

    def renewal(self, active: Sequence[tuple[str, str]]) -> Call:
        """Build the call that renews them; called in the thread."""
        ...

    def lose(self, lost: Sequence[tuple[str, str]]) -> None:
        """Hear of those that were lost; called in the event loop."""
        ...


class Heartbeat:
    """Renews the active leases of holders, and reports to them those that are lost.

    The thread has an event loop of its own: the renewals of all shards on one server travel
    together, and a server that is away holds up nobody else's.
    """

    def __init__(self, times: LeaseSettings, connect: Connect) -> None:
        """Prepare a heartbeat of the running event loop; it begins with the first holder.

        Args:
            times: See `LeaseSettings`.
            connect: Opens connections for the thread, in its event loop.
        """
        self._times = times
        self._connect = connect
        self._holders: tuple[Holder, ...] = ()
        self._begun: set[Holder] = set()
        self._unanswered: set[Holder] = set()
        self._beats = 0
        self._refusals = Outage(log, "heartbeat.refused", "heartbeat.accepted", "")
        self._loop = asyncio.get_running_loop()
        self._loop_seen_at = self._thread_seen_at = time.monotonic()
        self._answered_at: dict[Holder, float] = {}
        self._ticking: asyncio.TimerHandle | None = None
        self._threads_loop = uvloop.new_event_loop()
        self._is_stopped = False
        self._look = asyncio.Event()  # of the thread's loop
        self._thread: threading.Thread | None = None

    def watch(self, holder: Holder) -> None:
        """Renew the leases of a holder from now on; the first beat is sent at once."""
        self._holders = (*self._holders, holder)
        self._answered_at[holder] = time.monotonic()
        if self._ticking is None:
            self._tick()
            run = contextvars.copy_context().run  # what is not watched here is not there
            self._thread = threading.Thread(
                target=run, args=(self._run,), name="heartbeat", daemon=True
            )
            self._thread.start()
        self._threads_loop.call_soon_threadsafe(self._look.set)

    def leave(self, holder: Holder) -> None:
        """Renew them no more."""
        self._holders = tuple(it for it in self._holders if it is not holder)
        self._answered_at.pop(holder, None)

    def beats(self) -> Beats:
        """Return when everything last moved; from any thread."""
        answered = min([*self._answered_at.values()], default=0.0)
        return Beats(self._loop_seen_at, self._thread_seen_at, answered)

    async def stop(self) -> None:
        """End the thread. A beat that is under way may take as long as a lease."""
        if self._ticking is None:  # it never began
            self._threads_loop.close()
            return
        self._ticking.cancel()
        self._is_stopped = True
        with contextlib.suppress(RuntimeError):  # it has ended
            self._threads_loop.call_soon_threadsafe(self._look.set)
        until_s = time.monotonic() + self._times.lease_s
        # Not by a thread of the loop's pool: tools may have taken them all.
        while self._thread is not None and self._thread.is_alive() and time.monotonic() < until_s:  # noqa: ASYNC110  a thread
            await asyncio.sleep(_LOOK_S)

    def _tick(self) -> None:
        self._loop_seen_at = time.monotonic()
        self._ticking = self._loop.call_later(self._times.heartbeat_s, self._tick)

    # -- in the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._threads_loop) as runner:
            runner.run(self._beat_until_stopped())

    async def _beat_until_stopped(self) -> None:
        async with self._connect() as servers:
            pipelines = Pipelines(servers, silence_s=self._times.lease_s, events=_EVENTS)
            next_s = time.monotonic()
            while not self._is_stopped:
                self._look.clear()
                self._thread_seen_at = now_s = time.monotonic()
                is_due = now_s >= next_s
                if is_due:
                    next_s = now_s + self._times.heartbeat_s
                    self._beats += 1
                if now_s - self._loop_seen_at < self._times.stall_s:
                    self._beat(pipelines, is_due=is_due)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(next_s - now_s):
                        await self._look.wait()
            await pipelines.close()

    def _beat(self, pipelines: Pipelines, *, is_due: bool) -> None:
        """Send the renewals that it is time for; of holders that are new, at once."""
        for holder in self._holders:
            active = holder.active_leases()
            # Every other beat says often enough that an idle worker lives. A beat that still waits
            # for its answer is not followed by another: its server is slow or away.
            is_wanted = holder not in self._begun or (is_due and (active or self._beats % 2))
            if is_wanted and holder not in self._unanswered:
                self._begun.add(holder)
                self._unanswered.add(holder)
                renewing = pipelines.of(holder.tag).run(holder.renewal(active))
                renewing.add_done_callback(partial(self._answered, holder, active))

    def _answered(
        self, holder: Holder, active: Sequence[tuple[str, str]], renewing: "asyncio.Future[Any]"
    ) -> None:
        self._unanswered.discard(holder)
        match renewing.exception():
            case None:
                self._refusals.worked(holder.tag)
                if holder in self._answered_at:  # else it has left
                    self._answered_at[holder] = time.monotonic()
            case ResponseError() as error:
                self._refusals.failed(error, holder.tag)
                return
            case _:  # that the server is away was logged for all of them
                return
        _, _, *lost = renewing.result()
        if lost:
            values = dict(active)
            gone = [(job_id, values[job_id]) for job_id in map(text, lost)]
            self._loop.call_soon_threadsafe(holder.lose, gone)
