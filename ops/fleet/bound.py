"""Runs a program that is killed with the process that started it; run as a script.

Usage: bound.py STARTER_PID PROGRAM [ARGUMENT...]

The kernel's promise (Linux only) holds over exec, so the program itself needs to know nothing.
"""

import ctypes
import os
import signal
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1


def bind(starter: int) -> None:
    """Have this process killed when the one that started it ends.

    Args:
        starter: Process id of the starter.

    Raises:
        SystemExit: It has ended before the kernel was told to watch it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != starter:
            raise SystemExit(1)


def main() -> None:
    """Bind this process to its starter, then become the program."""
    starter, *command = sys.argv[1:]
    bind(int(starter))
    os.execv(command[0], command)  # noqa: S606  a list of words, no shell


if __name__ == "__main__":
    main()
