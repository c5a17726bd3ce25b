"""Starts programs that end with this process, and keeps their last words."""

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from turnline import ops
from turnline.ops.cli.failures import Failed
from turnline.ops.fleet import bound

ROOT: Final = Path(ops.__file__).resolve().parents[1]
"""Where programs run: `python -m turnline.worker` is found there, installed or not."""
_LAST_BYTES: Final = 4_000


class ChildFailed(Failed):
    """A program did not start, or ended by itself; the text has its last words."""


def bound_command(*arguments: str) -> list[str]:
    """Return the command of `python ARGUMENTS` as a process that is killed with this one."""
    starter = [sys.executable, "-I", "-S", bound.__file__, str(os.getpid())]
    return [*starter, sys.executable, *arguments]


class Child:
    """One `python ARGUMENTS`, started at once, that ends with this process.

    Leaving it as a `with` block kills it.
    """

    def __init__(
        self, name: str, *arguments: str, environ: Mapping[str, str], says: bool = False
    ) -> None:
        """Start the program.

        Args:
            name: What errors call it.
            arguments: Of Python.
            environ: All its variables.
            says: Whether its standard output is read; else it goes to the log, as its errors do.
        """
        self.name = name
        self.is_ending = False
        """Whether it was told to end."""
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  without a name: no traces
        self.popen = subprocess.Popen(
            bound_command(*arguments),
            cwd=ROOT,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if says else self._log,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C in the terminal is for the starter
        )
        self.pid = self.popen.pid

    def __enter__(self) -> Self:
        """Return the running program."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Kill it."""
        self.close(wait_s=0)

    @property
    def is_running(self) -> bool:
        """Whether it has not ended; a stopped one has not."""
        return self.popen.poll() is None

    def first_line(self, timeout_s: float = 60.0) -> str:
        """Return the first line it prints.

        Raises:
            ChildFailed: There is none in time.
        """
        out = self.popen.stdout
        assert out is not None
        line = out.readline() if select.select([out], [], [], timeout_s)[0] else b""
        if not line:
            raise ChildFailed(f"{self.name} did not start:\n{self.last_words()}")
        return line.decode().strip()

    def check(self) -> None:
        """Make sure that it has not ended, unless it was told to.

        Raises:
            ChildFailed: It has.
        """
        code = self.popen.poll()
        if code is not None and not self.is_ending:
            raise ChildFailed(
                f"{self.name} ended by itself (exit code {code}):\n{self.last_words()}"
            )

    def last_words(self) -> str:
        """Return the end of its log."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LAST_BYTES))
        lines = self._log.read().decode(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-8:])

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        self.is_ending |= number in {signal.SIGTERM, signal.SIGKILL}
        if self.is_running:
            self.popen.send_signal(number)

    def close(self, *, wait_s: float) -> None:
        """End it: politely if there is time, then not."""
        self.signal(signal.SIGCONT)
        if wait_s:
            self.signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(wait_s)
        self.signal(signal.SIGKILL)
        self.popen.wait()
        if self.popen.stdout is not None:
            self.popen.stdout.close()
        self._log.close()
