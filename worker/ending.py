"""Ends a process when it is told to, whatever its tools do, and when its event loop hangs.

Exit codes: 0 it was told to end and has, 1 a defect, 2 it cannot start, `STALLED` its event loop
stood still, `FORCED` it was told to end and something did not let it.
"""

import asyncio
import faulthandler
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from types import FrameType
from typing import Any, Final, TypeVar

from turnline.worker.logs import facts_of, on_loop_error

STALLED: Final = 70
FORCED: Final = 75
CLOSE_S: Final = 2.0
"""Seconds behind the grace period after which a process that was told to end is gone."""
_LOOK_S: Final = 0.1
_ARM_S: Final = 1.0
_FORCE_S: Final = 0.4
"""Seconds before that moment at which the thread ends it, which a busy machine may delay; ..."""
_MARGIN_S: Final = 0.2
"""... and how much later the interpreter's timer does."""
_CANCEL_S: Final = 0.2
_LOG_S: Final = 1.0
"""A log that nobody reads must not hold up an end."""
_HELD_S: Final = 60.0
_FRAMES: Final = 32

log = logging.getLogger("turnline.process")
_T = TypeVar("_T")
Listen = Callable[[Callable[[int], None]], Callable[[int], None]]
"""Has the function called in the loop, with its number, at each signal from here on that asks for
the end. Returns one that limits the time to the end of the process: for a thread that sees a signal
before the loop does."""


async def within(seconds: float, what: str, closing: Awaitable[Any]) -> None:
    """Await a step of a closing; what it raises, or that it takes too long, is logged."""
    task = asyncio.ensure_future(closing)
    await asyncio.wait({task}, timeout=max(0.0, seconds))
    if not task.done():
        task.cancel()
        log.warning("close.left_behind", extra={"part": what})
    elif not task.cancelled() and (error := task.exception()) is not None:
        log.warning("close.failed", extra={"part": what, **facts_of(error)})


class Watchdog:
    """A thread that ends the process: when its event loop stands still, or at a given moment.

    Time in which the process did not run (it was stopped, its machine slept) does not count as
    standing still. Where native code keeps the interpreter's lock no thread can look. If it
    computes, the system ends the process (SIGVTALRM) once it had the processor for so long that the
    lock was held for `stall_s` on any number of cores; stopped time is none of the processor's.
    If it waits, the stacks of all threads are written after `_HELD_S`, and that is all: by the
    clock it looks like a process that was stopped.
    """

    def __init__(self, stall_s: float) -> None:
        """Give a loop so many seconds, once `watch` was called."""
        self._stall_s = stall_s
        self._every_s = min(1.0, stall_s / 10)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._beats = 0
        self._watched = threading.get_ident()
        self._end_at_s: float | None = None
        self._armed_at_s = 0.0
        self._processor_s = (stall_s + _ARM_S) * _cores()

    def start(self) -> None:
        """Start the thread; from the one that runs the loop."""
        with suppress(OSError, ValueError, RuntimeError, AttributeError, io.UnsupportedOperation):
            faulthandler.register(signal.SIGVTALRM, chain=True)  # the system's default ends it
        threading.Thread(target=self._look, name="watchdog", daemon=True).start()

    def watch(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Watch this running loop from here on; none, if that is None."""
        self._loop = loop
        if loop is not None:
            self._beat(loop)
            self._arm(time.monotonic())  # the first turn may come before the thread's next look

    def end_within(self, seconds: float) -> None:
        """End the process in so many seconds, or at the moment given before, if that is earlier.

        Takes no lock: it is called from signal handlers, whatever the thread was doing. What it did
        may keep the interpreter's lock again afterwards, so the timer is set here already.
        """
        now_s = time.monotonic()
        at_s = now_s + seconds
        self._end_at_s = at_s if self._end_at_s is None else min(at_s, self._end_at_s)
        self._arm(now_s)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._beats += 1
        if self._loop is loop:
            loop.call_later(self._every_s, self._beat, loop)

    def _look(self) -> None:
        pause = threading.Event()
        beats, stood_s, looked_at_s = 0, 0.0, time.monotonic()
        while True:
            pause.wait(_LOOK_S)
            now_s = time.monotonic()
            passed_s = min(now_s - looked_at_s, 2 * _LOOK_S)
            looked_at_s = now_s
            is_still = self._loop is not None and self._beats == beats
            stood_s = stood_s + passed_s if is_still else 0.0
            beats = self._beats
            if stood_s >= self._stall_s + self._every_s:
                _leave("worker.stalled", STALLED, stood_s=round(stood_s, 1), stack=self._stack())
            if self._end_at_s is not None and now_s >= self._end_at_s:
                threads = [it.name for it in threading.enumerate() if not it.daemon]
                _leave("worker.forced", FORCED, threads=threads, stack=self._stack())
            self._arm(now_s)

    def _arm(self, now_s: float) -> None:
        """Have the interpreter's and the system's timers look after this thread."""
        with suppress(OSError, ValueError, RuntimeError, AttributeError, io.UnsupportedOperation):
            if self._end_at_s is not None:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)  # the end comes by the clock
                after_s = max(_MARGIN_S, self._end_at_s - now_s + _MARGIN_S)
                faulthandler.dump_traceback_later(after_s, exit=True)
            elif self._loop is not None and now_s - self._armed_at_s >= _ARM_S:
                self._armed_at_s = now_s
                signal.setitimer(signal.ITIMER_VIRTUAL, self._processor_s)
                faulthandler.dump_traceback_later(self._stall_s + _HELD_S)

    def _stack(self) -> list[str]:
        """Return where the loop's thread is, the innermost place last."""
        frames = sys._current_frames()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        frame = frames.get(self._watched)
        found: list[str] = []
        while frame is not None and len(found) < _FRAMES:
            code = frame.f_code
            found.append(f"{code.co_filename}:{frame.f_lineno} {code.co_qualname}")
            frame = frame.f_back
        return found[::-1]


def _cores() -> int:
    """Return how many threads of this process can compute at once."""
    own = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(own(0)) if own is not None else os.cpu_count() or 1


def _leave(event: str, code: int, **facts: object) -> None:
    """Log it and end. A thread of its own logs: whatever hangs may hold the log's lock."""
    facts = {"exit_code": code, **facts}
    logging_thread = threading.Thread(target=log.critical, args=(event,), kwargs={"extra": facts})
    logging_thread.daemon = True
    logging_thread.start()
    logging_thread.join(_LOG_S if code == STALLED else _MARGIN_S / 2)
    os._exit(code)


def run_until_stopped(
    loop: asyncio.AbstractEventLoop,
    main: Callable[[Listen], Coroutine[Any, Any, _T]],
    watchdog: Watchdog,
    *,
    drains_s: Mapping[int, float],
) -> _T:
    """Run a process's main task, and see that the process is gone soon after it was told to end.

    Tasks of others that raise `SystemExit` or the like do not take the loop with them. Afterwards
    the interpreter may exit: threads that do not let it are not waited for.

    Args:
        loop: Not running; it is closed.
        main: What to run; it is given the function that begins to listen to signals.
        watchdog: Not started.
        drains_s: Signals that ask for the end, and the grace period that each gives: the process
            is gone `CLOSE_S` behind it.

    Raises:
        Exception: As `main` raises it.
    """

    def limit_end(number: int) -> None:
        watchdog.end_within(drains_s[number] + CLOSE_S - _FORCE_S)

    def listen(stop: Callable[[int], None]) -> Callable[[int], None]:
        def on_signal(number: int, _frame: FrameType | None) -> None:
            # Runs between two instructions of the main thread, also where the loop hangs.
            limit_end(number)
            with suppress(RuntimeError):  # the loop is closed: all is over
                loop.call_soon_threadsafe(stop, number)

        for number in drains_s:
            signal.signal(number, on_signal)
        return limit_end

    loop.set_exception_handler(on_loop_error)
    watchdog.start()
    try:
        return _drive(loop, loop.create_task(main(listen)))
    finally:
        watchdog.end_within(CLOSE_S - _FORCE_S)
        watchdog.watch(None)
        _close(loop)


def _drive(loop: asyncio.AbstractEventLoop, task: "asyncio.Task[_T]") -> _T:
    """Run the loop until a task is over, whatever others raise through the loop."""
    while True:
        try:
            return loop.run_until_complete(task)
        except BaseException as error:  # what a callback raised: it ends the loop, not the task
            if task.done():
                raise
            log.error("loop.escaped", extra=facts_of(error))  # noqa: TRY400  not its text


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what is left; a task that does not heed it stays where it is."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    _drive(loop, loop.create_task(_ended(left)))
    left = {task for task in left if not task.done()}
    if left:
        log.warning("worker.left_behind", extra={"tasks": len(left)})
        loop.set_exception_handler(_ignore)  # it would log once more that they are left
    else:
        loop.close()


def _ignore(_loop: asyncio.AbstractEventLoop, _context: dict[str, Any]) -> None:
    """Log nothing: it was logged already."""


async def _ended(tasks: "set[asyncio.Task[Any]]") -> None:
    closing = asyncio.ensure_future(asyncio.get_running_loop().shutdown_asyncgens())
    await asyncio.wait({*tasks, closing}, timeout=_CANCEL_S)
    closing.cancel()
