"""Runs one private Redis server and ends it with the process that asked for it; run as a script.

Usage: keeper.py PRIVATE_DIRECTORY LOCK_FILE_OR_EMPTY SERVER [ARGUMENT...]

The asking process holds the other end of standard input. Each byte on it is an order to start the
server, or to start it again after it ended; end of file, which also comes when the asking process
is killed, is the order to stop it and to remove the private directory. Answers go to standard
output, one a line: `started PID`, `exited CODE`, `locked` (another keeper holds the lock file).

A process between the two is needed because nothing else removes the directory after a SIGKILL.
Should the keeper itself be killed, the kernel ends the server on Linux (PR_SET_PDEATHSIG).
"""

import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
from types import FrameType

PR_SET_PDEATHSIG = 1
STOP_WAIT_S = 10.0


def _say(*words: object) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody is left to be told
        print(*words, flush=True)


def _end(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit


def _notice(_signal: int, _frame: FrameType | None) -> None:
    """Do nothing: having a handler is what makes the signal write to the wake-up pipe."""


def _lock(path: str) -> int | None:
    """Take the lock of a data directory; None if another keeper or its server holds it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    return lock


def _start(command: list[str], private: str, lock: int | None) -> subprocess.Popen[bytes]:
    keeper = os.getpid()
    libc = ctypes.CDLL(None)

    def bind_to_keeper() -> None:
        if sys.platform == "linux":
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != keeper:  # it died before the kernel was told to watch it
                os._exit(1)

    with open(f"{private}/server.log", "ab") as log:  # noqa: PTH123 - pathlib would slow the start
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=bind_to_keeper,  # noqa: PLW1509 - the keeper has one thread
            pass_fds=[lock] if lock is not None else [],  # held until the server itself is gone
        )


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    server.send_signal(signal.SIGCONT)  # a frozen one takes no other signal
    try:
        server.wait(STOP_WAIT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _serve(command: list[str], private: str, lock: int | None) -> None:
    wakeup, wakeup_writer = os.pipe()
    os.set_blocking(wakeup_writer, False)
    signal.set_wakeup_fd(wakeup_writer)
    signal.signal(signal.SIGCHLD, _notice)
    server: subprocess.Popen[bytes] | None = None
    try:
        while True:
            ready, _, _ = select.select([sys.stdin.fileno(), wakeup], [], [])
            if wakeup in ready:
                os.read(wakeup, 64)
                if server is not None and server.poll() is not None:
                    _say("exited", server.returncode)
                    server = None
            if sys.stdin.fileno() in ready:
                if not os.read(sys.stdin.fileno(), 1):
                    return
                server = _start(command, private, lock)
                _say("started", server.pid)
    finally:
        if server is not None:
            _stop(server)
            _say("exited", server.returncode)


def main() -> None:
    """Keep the server that the arguments describe until standard input ends."""
    private, lock_path, *command = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    lock = None
    try:
        if lock_path and (lock := _lock(lock_path)) is None:
            _say("locked")
            return
        _serve(command, private, lock)
    finally:
        shutil.rmtree(private, ignore_errors=True)


if __name__ == "__main__":
    main()
