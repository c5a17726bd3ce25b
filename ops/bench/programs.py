"""Starts the processes that are compared, freezes those that are not being measured, ends all."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from turnline import ops
from turnline.ops.fleet import bound

_SETTINGS: Final = ("TURNLINE_", "OTEL_")
_ROOT: Final = Path(ops.__file__).resolve().parents[1]


class ProgramFailed(Exception):
    """A process that is to be measured did not start, or ended; the text has its last words."""


class Program:
    """One `python -m <module>` that ends with this process, for a `with` block."""

    def __init__(
        self, module: str, *arguments: str, environ: Mapping[str, str] | None = None
    ) -> None:
        """Describe the process.

        Args:
            module: What to run.
            arguments: Its arguments.
            environ: Variables beside those inherited, of which those that set up workers
                (`TURNLINE_`, `OTEL_`) are left out.
        """
        self._module = module
        self._arguments: Sequence[str] = arguments
        self._environ = dict(environ or {})
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._popen is not None
        return self._popen.pid

    def __enter__(self) -> Self:
        """Start it."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(_SETTINGS)}
        starter = [sys.executable, "-I", "-S", bound.__file__, str(os.getpid())]
        self._popen = subprocess.Popen(
            [*starter, sys.executable, "-m", self._module, *self._arguments],
            cwd=_ROOT,
            env={**inherited, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **self._environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C in the terminal is for the benchmark
        )
        return self

    def first_line(self) -> str:
        """Wait for the first line that it prints.

        Raises:
            ProgramFailed: It ended before.
        """
        assert self._popen is not None
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline().decode().strip()
        if not line:
            raise ProgramFailed(f"{self._module} did not start:\n{self.last_words()}")
        return line

    def check(self) -> None:
        """Make sure that it runs.

        Raises:
            ProgramFailed: It ended.
        """
        if self._popen is not None and self._popen.poll() is not None:
            raise ProgramFailed(f"{self._module} ended by itself:\n{self.last_words()}")

    def freeze(self) -> None:
        """Stop it, so that it takes nothing from the others."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def last_words(self) -> str:
        """Return the end of what it wrote to its standard error."""
        self._log.seek(0)
        return "\n".join(self._log.read().decode(errors="replace").splitlines()[-8:])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it: nothing in it is worth waiting for."""
        self._signal(signal.SIGKILL)
        if self._popen is not None:
            with self._popen:
                pass
        self._log.close()

    def _signal(self, number: int) -> None:
        if self._popen is not None and self._popen.poll() is None:
            self._popen.send_signal(number)
