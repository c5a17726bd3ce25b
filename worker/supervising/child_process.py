"""One worker process as its supervisor sees it: started, ready, gone."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from turnline.worker.supervising.child_side import VARIABLE, Told

_PAGE_MB: Final = os.sysconf("SC_PAGE_SIZE") / 1_048_576 if hasattr(os, "sysconf") else 0.0


def own_command() -> list[str]:
    """Return the command by which this process was started: children are started in the same way.

    So they find the same modules, and read them anew.
    """
    return [sys.executable, *sys.orig_argv[1:]]


def memory_mb(pid: int) -> float | None:
    """Return the memory that a process takes (RSS); None, if the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_MB
    except (OSError, ValueError, IndexError):
        return None


class ChildProcess:
    """A worker process, started at once, in a session of its own: Ctrl-C is for the supervisor."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        on_change: Callable[["ChildProcess"], None],
    ) -> None:
        """Start it, in a running event loop.

        Args:
            name: Of the worker.
            command: What to run.
            environ: Its variables.
            on_change: Called once it is ready, and once it is gone.

        Raises:
            OSError: The system does not start it.
        """
        self.name = name
        self.worker_id = ""
        """Of the worker, once it takes turns; no other one has or had it."""
        self.refusal = ""
        """Why it could not start, as it said."""
        self.code: int | None = None
        """How it ended, negative for a signal; None, while it has not been waited for."""
        self.ready_at_s: float | None = None
        self.ready_mb: float | None = None
        """Memory that it took when it was ready."""
        self.settled = asyncio.Event()
        """Set once it is ready or gone."""
        self.gone = asyncio.Event()
        self._on_change = on_change
        self._heard = b""
        self._loop = asyncio.get_running_loop()
        self._link, theirs = socket.socketpair()
        self._link.setblocking(False)
        with theirs:
            self._popen = subprocess.Popen(  # noqa: S603  as this process was started
                command,
                env={**environ, VARIABLE: str(theirs.fileno())},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.pid = self._popen.pid
        self._loop.add_reader(self._link, self._hear)
        threading.Thread(target=self._wait, name=f"wait-{name}", daemon=True).start()

    @property
    def is_ready(self) -> bool:
        """Whether it takes turns, or did and drains."""
        return self.ready_at_s is not None and self.code is None

    @property
    def served_s(self) -> float:
        """Seconds for which it has taken turns."""
        return 0.0 if self.ready_at_s is None else time.monotonic() - self.ready_at_s

    def memory_mb(self) -> float | None:
        """Return the memory that it takes (RSS); None, if the system does not say."""
        return memory_mb(self.pid)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it has not ended."""
        if self.code is None:
            with suppress(ProcessLookupError):
                self._popen.send_signal(number)

    def _wait(self) -> None:
        """Wait for the process, in a thread: then the system has closed all that it had open."""
        self._popen.wait()
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._hear()  # what it said before
        self._loop.remove_reader(self._link)
        self._link.close()
        self.code = self._popen.returncode
        self.settled.set()
        self.gone.set()
        self._on_change(self)

    def _hear(self) -> None:
        try:
            heard = self._link.recv(65_536)
        except OSError:  # nothing more yet, or ever
            return
        if not heard:
            self._loop.remove_reader(self._link)
            return
        *lines, self._heard = (self._heard + heard).split(b"\n")
        for line in lines:
            with suppress(msgspec.DecodeError):
                self._told(msgspec.json.decode(line, type=Told))

    def _told(self, told: Told) -> None:
        self.refusal = told.refused or self.refusal
        if told.ready and not self.worker_id:
            self.worker_id = told.ready
            self.ready_at_s = time.monotonic()
            self.ready_mb = self.memory_mb()
            self.settled.set()
            self._on_change(self)
