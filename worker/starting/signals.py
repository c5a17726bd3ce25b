"""What SIGTERM and SIGINT do before a worker serves: they end it, whatever it is doing."""

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NamedTuple

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
def obeyed(
    listen: Callable[[], None], told: list[int], grace_s: float = GRACE_S
) -> Generator[None]:
    """Begin to listen to signals; if one comes within the block, the process has `grace_s` to end.

    What runs in the block is foreign code, which may hold up the thread of the loop. So the bytes
    by which the interpreter tells the loop of signals go to a thread first, which hands them on.

    Args:
        listen: Lets the signals call what stops the program.
        told: Takes the numbers of the signals that came within the block.
        grace_s: Seconds from the first of them until the process is ended.
    """
    inside, outside = socket.socketpair()
    inside.setblocking(False)
    over = threading.Event()
    of_loop = signal.set_wakeup_fd(inside.fileno(), warn_on_full_buffer=False)
    watch = _Watch(inside, outside, of_loop, over, told, grace_s)
    thread = threading.Thread(target=watch.run, name="turnline-signals", daemon=True)
    thread.start()
    listen()
    yield
    over.set()
    signal.set_wakeup_fd(of_loop, warn_on_full_buffer=False)
    inside.close()
    thread.join()


class _Watch(NamedTuple):
    """Hands signals on; after the first, ends the process unless the block is over in time."""

    inside: socket.socket
    """Written to by the interpreter; held here, since an exception leaves the block without it."""
    signals: socket.socket
    of_loop: int
    over: threading.Event
    told: list[int]
    grace_s: float

    def run(self) -> None:
        deadline_s: float | None = None
        with self.signals:
            while True:
                left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
                if not select.select([self.signals], [], [], left_s)[0]:
                    os._exit(ended_by(self.told[0]))
                if not (numbers := self.signals.recv(64)):
                    return
                self.told.extend(number for number in numbers if number in STOP)
                if self.of_loop >= 0:
                    os.write(self.of_loop, numbers)
                if deadline_s is None and self.told and not self.over.is_set():
                    deadline_s = time.monotonic() + self.grace_s
