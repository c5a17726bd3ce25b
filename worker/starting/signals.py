"""What SIGTERM and SIGINT do before a worker serves: they end it, whatever it is doing."""

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final, NamedTuple, Protocol

STOP: Final = (signal.SIGTERM, signal.SIGINT)
GRACE_S: Final = 1.5
"""Seconds in which resources of tools that are being opened may be closed again."""


def ended_by(number: int) -> int:
    """Return the exit code that says which signal ended a process, as shells do."""
    return 128 + number


def end_at_once() -> None:
    """Let the signals end this process, even while it waits in foreign code that never returns.

    The system does that, by their default; of a container's first process it would ignore them.
    """
    for number in STOP:
        signal.signal(number, _leave if os.getpid() == 1 else signal.SIG_DFL)


def _leave(number: int, _: FrameType | None) -> None:
    os._exit(ended_by(number))


@contextmanager
def obeyed(listen: Callable[[], Callable[[int], None]], received: list[int]) -> Generator[None]:
    """Begin to listen to signals; if one comes within the block, the process has `GRACE_S` to end.

    What runs in the block is foreign code, which may hold up the thread of the loop. So the bytes
    by which the interpreter tells the loop of signals go to a thread first, which hands them on.
    It does so behind the block too. Of two signals in quick succession the system may give both to
    another thread than the loop's, and where that one waits in foreign code it is not woken, so
    that its handlers do not run: that thread sees them all the same.

    Args:
        listen: Lets the signals call what stops the program; returns what the thread calls too.
        received: Gets the numbers of the signals that come within the block.
    """
    inside, outside = socket.socketpair()
    inside.setblocking(False)
    over = threading.Event()
    of_loop = signal.set_wakeup_fd(inside.fileno(), warn_on_full_buffer=False)
    of_loop = os.dup(of_loop) if of_loop >= 0 else of_loop  # the loop closes its own
    watch = _Watch(inside, outside, of_loop, over, received, listen())
    threading.Thread(target=watch.run, name="turnline-signals", daemon=True).start()
    yield
    over.set()


class OnHangup(Protocol):
    """Called in the main thread for each SIGHUP."""

    def __call__(self, *, is_alone: bool) -> None:
        """`is_alone`: the process had a terminal, which has gone."""
        ...


def on_hangup(call: OnHangup) -> None:
    """Have SIGHUP mean that files are to be read again; one that was told to ignore it does so.

    It is also what a shell sends to its programs when its window is closed.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as `nohup` has it
        return
    had_terminal = _has_terminal()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        call(is_alone=had_terminal and not _has_terminal())

    signal.signal(signal.SIGHUP, on_signal)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


class _Watch(NamedTuple):
    """Passes signals on; after the first, ends the process unless the block is over in time."""

    inside: socket.socket
    """Written to by the interpreter; held here, since nothing else lives as long."""
    signals: socket.socket
    of_loop: int
    over: threading.Event
    received: list[int]
    on_signal: Callable[[int], None]

    def run(self) -> None:
        deadline_s: float | None = None
        while True:
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            if select.select([self.signals], [], [], left_s)[0]:
                numbers = self.signals.recv(64)
                stop = [number for number in numbers if number in STOP]
                for number in stop:
                    self.on_signal(number)
                if not self.over.is_set():
                    self.received.extend(stop)
                    if stop and deadline_s is None:
                        deadline_s = time.monotonic() + GRACE_S
                if self.of_loop >= 0:
                    with suppress(OSError):  # the loop is closed, or has enough to read
                        os.write(self.of_loop, numbers)
            elif self.over.is_set():
                deadline_s = None
            else:
                os._exit(ended_by(self.received[0]))
