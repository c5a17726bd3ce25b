"""A server that can be killed and restarted, and ends with the process that asked for it."""

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from turnline.ops.embedded import keeper
from turnline.ops.embedded.errors import DirectoryInUse, EmbeddedRedisError, ServerNotReady
from turnline.ops.embedded.held_port import HOST

LONGEST_SOCKET_PATH: Final = 100
"""Systems take 104 to 108 bytes."""
_ANSWER_PAUSE_S: Final = 0.003
_SIGNAL_PAUSE_S: Final = 1.0


def private_directory() -> Path:
    """Make a directory of mode 0700 whose name is short enough for a socket in it."""
    private = Path(tempfile.mkdtemp(prefix="turnline-redis-"))
    if len(os.fsencode(private)) > LONGEST_SOCKET_PATH - len("/redis.sock"):
        private.rmdir()
        private = Path(tempfile.mkdtemp(prefix="turnline-redis-", dir="/tmp"))
    return private


class KeptServer:
    """A Redis or Valkey process under a keeper, which ends it and removes its private directory.

    Making it starts the keeper alone; `start` and `wait_ready` start the server.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        private: Path,
        listens_at: Path | int,
        *,
        lock: Path | None = None,
    ) -> None:
        """Start the keeper.

        Args:
            name: What errors call the server, such as `node-1`.
            command: The program and its arguments.
            private: Directory of the log, removed with the server.
            listens_at: The server's Unix socket, or its TCP port of 127.0.0.1.
            lock: File that one server at a time may hold.
        """
        self._name = name
        self._private = private
        self._listens_at = listens_at
        self._lock = lock
        self._unread = b""
        self._pid: int | None = None
        kept: list[str | Path] = [sys.executable, "-I", "-S", keeper.__file__, private]
        self._keeper = subprocess.Popen(
            [*kept, lock or "", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C in the terminal is for the workers
        )

    @property
    def pid(self) -> int:
        """Process id of the running server.

        Raises:
            EmbeddedRedisError: It is not running.
        """
        if self._pid is None:
            raise EmbeddedRedisError(f"{self._name} is not running.")
        return self._pid

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended; a stopped one has not."""
        if self._pid is not None and self._read_line(0) is not None:
            self._pid = None  # all that the keeper says of a running server is that it ended
        return self._pid is not None and self._keeper.poll() is None

    def start(self) -> None:
        """Start the server, for the first time or after it ended; see `wait_ready`."""
        stdin = self._keeper.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):  # said by `wait_ready`
            stdin.write(b"s")

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until the server that was started serves commands.

        Raises:
            ServerNotReady: It ended again or did not answer in time.
            DirectoryInUse: Another server holds the lock.
        """
        deadline = time.monotonic() + timeout_s
        started = self._read_line(timeout_s)
        if started == "locked":
            assert self._lock is not None
            raise DirectoryInUse(
                f"Another embedded server writes into {self._lock.parent}: "
                "stop it or choose another."
            )
        if started is None:
            raise ServerNotReady(f"The keeper of {self._name} did not start.")
        self._pid = int(started.removeprefix("started "))
        while not self._answers():
            # Waiting for the keeper's word paces the attempts, and stops them if the server ended.
            if (line := self._read_line(_ANSWER_PAUSE_S)) is not None:
                self._pid = None
                raise ServerNotReady(f"{self._name} ended ({line}).\n{self._last_words()}")
            if time.monotonic() > deadline:
                raise ServerNotReady(
                    f"{self._name} did not answer within {timeout_s:g} s.\n{self._last_words()}"
                )

    def kill(self) -> None:
        """End the server as a crash does (SIGKILL); returns when it is gone."""
        with contextlib.suppress(ProcessLookupError):  # somebody else was quicker
            os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def restart(self, timeout_s: float) -> None:
        """Start the server again and wait until it serves commands; kill it first if it runs.

        Raises:
            ServerNotReady: It ended again or did not answer in time.
        """
        if self._pid is not None:
            self.kill()
        self.start()
        self.wait_ready(timeout_s)

    def wait(self) -> int:
        """Block until the server has ended; returns its exit code, negative for a signal."""
        while (line := self._read_line(None)) is not None:
            word, _, value = line.partition(" ")
            if word == "exited":
                self._pid = None
                return int(value)
        raise EmbeddedRedisError(f"The keeper was killed: {self._name}.")

    def close(self) -> None:
        """Stop the server, wait until it is gone and its private directory is removed."""
        with self._keeper:  # closes its standard input: the order to end
            self._pid, self._unread = None, b""
        shutil.rmtree(self._private, ignore_errors=True)  # if the keeper was killed

    def _answers(self) -> bool:
        """True once it serves commands: it listens before it has loaded its data."""
        at = self._listens_at
        is_tcp = isinstance(at, int)
        family = socket.AF_INET if is_tcp else socket.AF_UNIX
        with socket.socket(family) as connection, contextlib.suppress(OSError):
            connection.settimeout(1.0)
            connection.connect((HOST, at) if is_tcp else str(at))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        return False

    def _read_line(self, timeout_s: float | None) -> str | None:
        """The keeper's next line, or None if there is none in time or the keeper has ended."""
        stdout = self._keeper.stdout
        assert stdout is not None
        while b"\n" not in self._unread:
            # Python misses a signal that comes right before the call until that ends.
            wait_s = _SIGNAL_PAUSE_S if timeout_s is None else timeout_s
            if not select.select([stdout], [], [], wait_s)[0]:
                if timeout_s is None:
                    continue
                return None
            read = os.read(stdout.fileno(), 256)
            if not read:
                return None
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            log = (self._private / "server.log").read_text(errors="replace")
            return "\n".join(log.splitlines()[-5:])
        return ""
