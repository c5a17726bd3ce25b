"""Keeps the worker processes of a host: starts, watches, replaces and ends them; runs no turn.

Source: docs/adr/0049-a-supervisor-keeps-the-workers-of-a-host.md
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from turnline.worker.ending import CLOSE_S, FORCED
from turnline.worker.settings import Settings, SettingsError
from turnline.worker.starting.signals import ended_by
from turnline.worker.supervising.abandoned import LOOKS_S, give_back
from turnline.worker.supervising.backoff import Backoff
from turnline.worker.supervising.child_process import ChildProcess

log = logging.getLogger("turnline.supervisor")
_LATE_S: Final = 1.0
"""A child that is not gone so long after it had to be is killed."""
_MEMORY_LOOK_S: Final = 1.0
_GIVE_BACK_S: Final = 3.0
"""Longest time that the end waits for what children that died have held."""


class Ended(NamedTuple):
    """How the supervisor ended."""

    code: int
    refusal: str = ""
    """Why no child could start, for people; '' if one could, or did not say."""


class _Slot:
    """A place for one worker: whoever has it, and who is to have it next."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.child: ChildProcess | None = None
        self.backoff = Backoff()
        self.changing = asyncio.Lock()
        """Held while the next one starts: who dies meanwhile is not started again as well."""


class Supervisor:
    """The worker processes of a host, for one event loop."""

    def __init__(
        self,
        settings: Settings,
        count: int,
        command: Sequence[str],
        environ: Mapping[str, str],
        *,
        reread: Callable[[], Settings],
        on_change: Callable[["Supervisor"], object] = lambda _: None,
    ) -> None:
        """Prepare; nothing is started before `run`.

        Args:
            settings: Checked ones.
            count: How many workers to keep.
            command: Starts a worker.
            environ: Variables of the workers, but for their names.
            reread: Reads the settings again: files may have others now.
            on_change: Called whenever a child got ready, or is gone; see `children`.
        """
        self._settings = settings
        self._command = command
        self._environ = environ
        self._reread = reread
        self._on_change = on_change
        self._slots = [_Slot(f"{settings.worker_name}-{n}") for n in range(1, count + 1)]
        self._living: dict[ChildProcess, None] = {}
        self._first_failure: ChildProcess | None = None
        self._has_served = asyncio.Event()
        self._stopping = asyncio.Event()
        self._hopeless = asyncio.Event()
        self._stops = 0
        self._stopped_by = 0
        self._code = 0
        self._due: dict[_Slot, str] = {}
        """Whose worker is to be replaced, in order, and why."""
        self._has_due = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._giving: set[asyncio.Task[None]] = set()

    @property
    def children(self) -> tuple[ChildProcess, ...]:
        """All processes that have not ended, those among them that drain or start too."""
        return tuple(self._living)

    @property
    def is_stopping(self) -> bool:
        """Whether all are to end."""
        return self._stopping.is_set()

    # -- life ---------------------------------------------------------------------------------

    async def run(self) -> Ended:
        """Keep the workers until `stop`, or until none of them could start at all."""
        log.info(
            "supervisor.started", extra={"processes": len(self._slots), "workers": self._names()}
        )
        for slot in self._slots:
            slot.child = self._start(slot)
        keeping = [self._task(self._keep(slot)) for slot in self._slots]
        self._task(self._replace_what_is_due())
        self._task(self._watch_memory())
        await asyncio.wait(keeping)
        for child in list(self._living):  # those that drain, and successors
            await child.gone.wait()
        if self._giving:
            await asyncio.wait(self._giving, timeout=_GIVE_BACK_S)
        for task in list(self._tasks | self._giving):
            task.cancel()
        log.info("supervisor.stopped")
        return self._ended()

    def _ended(self) -> Ended:
        if self._hopeless.is_set() and (failed := self._first_failure) is not None:
            assert failed.code is not None
            code = failed.code if failed.code >= 0 else ended_by(-failed.code)
            return Ended(code or 1, failed.refusal)
        return Ended(self._code if self._has_served.is_set() else ended_by(self._stopped_by))

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Have all children drain and end; the second time, hand over and end at once."""
        self._stops += 1
        self._stopped_by = self._stopped_by or number
        self._stopping.set()
        if self._stops == 1:
            log.info("supervisor.stopping", extra={"processes": len(self._living)})
        if self._stops > 2:
            return
        is_first = self._stops == 1
        for child in list(self._living):
            child.signal(signal.SIGTERM if is_first or not child.is_ready else signal.SIGINT)
            drain_s = self._settings.end_s if is_first else 0.0
            self._task(self._killed_after(child, drain_s))

    def reload(self) -> None:
        """Replace all workers, one after the other, by such that read code and settings anew."""
        if self.is_stopping:
            return
        try:
            self._settings = self._reread()
        except SettingsError as error:
            log.error("supervisor.not_reloaded", extra={"reason": str(error)})  # noqa: TRY400
            return
        log.info("supervisor.reloading", extra={"processes": len(self._slots)})
        for slot in self._slots:
            self._replace(slot, "reload")

    def _task(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _names(self) -> str:
        return ",".join(slot.name for slot in self._slots)

    # -- children -----------------------------------------------------------------------------

    def _start(self, slot: _Slot) -> ChildProcess:
        environ = {**self._environ, "TURNLINE_WORKER_NAME": slot.name}
        child = ChildProcess(slot.name, self._command, environ, self._changed)
        self._living[child] = None
        return child

    def _changed(self, child: ChildProcess) -> None:
        """Hear that a child is ready, or gone."""
        if child.code is None:
            self._has_served.set()
            log.info("supervisor.child_ready", extra={"worker": child.name, "pid": child.pid})
            if self.is_stopping:  # told to end before it could listen
                child.signal(signal.SIGTERM)
        else:
            self._gone(child, child.code)
        self._on_change(self)

    def _gone(self, child: ChildProcess, code: int) -> None:
        del self._living[child]
        if child.worker_id:
            # Whatever way it ended, something may be left: it was waited for, and writes no more.
            giving = asyncio.create_task(self._give_back(child))
            self._giving.add(giving)
            giving.add_done_callback(self._giving.discard)
        facts = {"worker": child.name, "pid": child.pid, "exit_code": code}
        if self.is_stopping:
            self._note_code(child, code)
        if self.is_stopping or code == 0:
            log.info("supervisor.child_ended", extra=facts)
            return
        has_served = self._has_served.is_set()
        if has_served or not child.refusal:  # else the reason is told once all have refused
            reason = {"reason": child.refusal} if child.refusal else {}
            log.warning("supervisor.child_died", extra={**facts, **reason})
        if not has_served:
            self._first_failure = self._first_failure or child
            if not self._living:
                self._hopeless.set()

    def _note_code(self, child: ChildProcess, code: int) -> None:
        """Keep the exit code of a child that did not end as it was told to."""
        if child.worker_id and code != 0:
            self._code = self._code or (code if code > 0 else FORCED)

    async def _give_back(self, child: ChildProcess) -> None:
        # Of one that ended in order nothing is under way any more.
        looks_s = LOOKS_S if child.code != 0 else LOOKS_S[:1]
        count = await give_back(self._settings, child.worker_id, looks_s=looks_s)
        if count:
            log.info("supervisor.released", extra={"worker": child.name, "leases": count})

    async def _killed_after(self, child: ChildProcess, drain_s: float) -> None:
        """Kill a child that does not end in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s + CLOSE_S + _LATE_S):
                await child.gone.wait()
        if not child.gone.is_set():
            log.error("supervisor.child_killed", extra={"worker": child.name, "pid": child.pid})
            child.signal(signal.SIGKILL)

    async def _keep(self, slot: _Slot) -> None:
        """Start a worker again whenever it is gone, until all are to end."""
        while True:
            child = slot.child
            assert child is not None
            await child.gone.wait()
            async with slot.changing:  # its successor may be on its way
                if slot.child is not child:
                    continue
            if not await self._may_go_on():
                return
            pause_s = slot.backoff.after(child.served_s)
            if pause_s:
                log.info(
                    "supervisor.child_waits",
                    extra={"worker": slot.name, "seconds": round(pause_s, 1)},
                )
            if await _came(self._stopping, pause_s):
                return
            async with slot.changing:
                slot.child = await self._started(slot)

    async def _may_go_on(self) -> bool:
        """Wait until some child took turns; False, if all are to end or none could start."""
        events = (self._stopping, self._hopeless, self._has_served)
        waits = [asyncio.create_task(event.wait()) for event in events]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return not (self._stopping.is_set() or self._hopeless.is_set())

    async def _started(self, slot: _Slot) -> ChildProcess:
        """Start a worker, however long the system refuses to have more processes."""
        while True:
            try:
                return self._start(slot)
            except OSError as error:
                log.error("supervisor.cannot_start", extra={"error": type(error).__name__})  # noqa: TRY400
                await asyncio.sleep(_LATE_S)

    # -- replacements -------------------------------------------------------------------------

    def _replace(self, slot: _Slot, why: str) -> None:
        self._due.pop(slot, None)
        self._due[slot] = why
        self._has_due.set()

    async def _replace_what_is_due(self) -> None:
        while True:
            await self._has_due.wait()
            while self._due:
                slot = next(iter(self._due))
                why = self._due.pop(slot)
                before = slot.child
                if await self._replaced(slot) or self.is_stopping:
                    continue
                if why == "reload" and before is slot.child:  # the others would fail alike
                    self._due.clear()
            self._has_due.clear()

    async def _replaced(self, slot: _Slot) -> bool:
        """Put a new worker into the place of one; False, if the new one could not start."""
        old = slot.child
        assert old is not None
        await old.settled.wait()
        if old.gone.is_set() or self.is_stopping:
            return True  # the next one is new
        async with slot.changing:
            new = await self._started(slot)
            await new.settled.wait()
            if self.is_stopping:
                return True
            if new.gone.is_set():
                log.error(
                    "supervisor.not_replaced",
                    extra={"worker": slot.name, "reason": new.refusal, "exit_code": new.code},
                )
                return False
            slot.child = new
        old.signal(signal.SIGHUP)
        await self._killed_after(old, self._settings.replace_drain_s)
        log.info(
            "supervisor.replaced", extra={"worker": slot.name, "old_pid": old.pid, "pid": new.pid}
        )
        return True

    async def _watch_memory(self) -> None:
        """Have workers replaced that grew past the limit."""
        limit_mb = self._settings.max_rss_mb
        told: set[ChildProcess] = set()
        while limit_mb and not await _came(self._stopping, _MEMORY_LOOK_S):
            for slot in self._slots:
                child = slot.child
                if child is None or not child.is_ready or child in told:
                    continue
                used_mb = child.memory_mb() or 0.0
                if used_mb <= limit_mb:
                    continue
                told.add(child)
                facts = {"worker": slot.name, "rss_mb": round(used_mb), "limit_mb": limit_mb}
                if (child.ready_mb or 0.0) > limit_mb:  # so would be the next one
                    log.warning("supervisor.limit_too_low", extra=facts)
                else:
                    log.info("supervisor.child_grew", extra=facts)
                    self._replace(slot, "memory")
            told &= self._living.keys()


async def _came(event: asyncio.Event, within_s: float) -> bool:
    """Wait for an event, or for so long; return whether it came."""
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()
    return event.is_set()


# -- the process ------------------------------------------------------------------------------


def supervise(
    settings: Settings,
    count: int,
    command: Sequence[str],
    environ: Mapping[str, str],
    reread: Callable[[], Settings],
) -> Ended:
    """Keep worker processes until SIGTERM or SIGINT; SIGHUP replaces them.

    Args:
        settings: As of `Supervisor`, and so are the others.
        count: How many.
        command: Starts a worker.
        environ: Of the workers.
        reread: Reads the settings again.
    """

    async def main() -> Ended:
        supervisor = Supervisor(settings, count, command, environ, reread=reread)
        loop = asyncio.get_running_loop()
        has_terminal = _has_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN

        def hang_up() -> None:
            if has_terminal and not _has_terminal():  # it was closed: nobody asks for new workers
                supervisor.stop(signal.SIGHUP)
            else:
                supervisor.reload()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, supervisor.stop, number)
        loop.add_signal_handler(signal.SIGHUP, hang_up)
        return await supervisor.run()

    return asyncio.run(main())


def _has_terminal() -> bool:
    """Return whether this process is of a terminal that is open."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
