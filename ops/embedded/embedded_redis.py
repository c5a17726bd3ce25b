"""Runs a private Redis or Valkey server that ends with the process that started it."""

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
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

from turnline.ops.embedded import keeper
from turnline.ops.embedded.errors import DirectoryInUse, EmbeddedRedisError, ServerNotReady
from turnline.ops.embedded.finding import find_server
from turnline.worker.settings import value_or_file

URL_VARIABLES: Final = ("TURNLINE_REDIS_URL", "REDIS_URL")
"""Environment variables, or with `_FILE` files, that name a running server, first one first."""

_LONGEST_SOCKET_PATH: Final = 100
"""Systems take 104 to 108 bytes."""


def given_url(url: str | None = None, environ: Mapping[str, str] = os.environ) -> str | None:
    """Tell which running server the user named: the argument, else the environment, else None.

    Raises:
        SettingsError: The file that a variable names cannot be used.
    """
    named = (value_or_file(environ, name) for name in URL_VARIABLES)
    return url or next(filter(None, named), None)


@contextmanager
def redis_url(
    url: str | None = None,
    *,
    directory: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Generator[str]:
    """Give the URL of the server the user named, or of an embedded one for the block.

    Args:
        url: A running server; wins over the environment.
        directory: Where an embedded server keeps its data; without it they end with the server.
        environ: Where `TURNLINE_REDIS_URL` and `REDIS_URL` are looked up.

    Raises:
        EmbeddedRedisError: None was named and none can be started.
    """
    if named := given_url(url, environ):
        yield named
    else:
        with EmbeddedRedis(directory) as server:
            yield server.url


class EmbeddedRedis:
    """A private server on a Unix socket in a directory of mode 0700, for a `with` block.

    It stays up when Ctrl-C is pressed in the terminal, so that workers can drain, and it ends,
    leaving nothing behind, when the starting process ends in whatever way. It evicts nothing and,
    without a data directory, saves nothing. Any process of the same user can connect to `url`.
    """

    def __init__(
        self,
        directory: Path | None = None,
        databases: int = 16,
        port: int | None = None,
        *,
        ready_timeout_s: float = 30.0,
    ) -> None:
        """Describe the server; `with` starts it.

        Args:
            directory: Where to keep the data (an append-only file); they outlive the server.
            databases: How many numbered databases it has.
            port: Listen on this TCP port of 127.0.0.1 too; 0 takes a free one.
            ready_timeout_s: How long it may take to answer, which includes loading its data.
        """
        self._directory = directory
        self._databases = databases
        self._asked_port = port
        self._ready_timeout_s = ready_timeout_s
        self._private: Path | None = None
        self._port: int | None = None
        self._keeper: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._pid: int | None = None

    @property
    def url(self) -> str:
        """Database 0, over TCP if a port was asked for, else over the Unix socket."""
        return self.url_of(0)

    @property
    def pid(self) -> int:
        """Process id of the running server.

        Raises:
            EmbeddedRedisError: It is not running.
        """
        if self._pid is None:
            raise EmbeddedRedisError("The embedded server is not running.")
        return self._pid

    def url_of(self, database: int) -> str:
        """Give the URL of one numbered database."""
        if self._port is not None:
            return f"redis://127.0.0.1:{self._port}/{database}"
        return f"unix://{quote(str(self._socket))}?db={database}"

    def kill(self) -> None:
        """End the server as a crash does (SIGKILL); returns when it is gone."""
        with contextlib.suppress(ProcessLookupError):  # somebody else was quicker
            os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def restart(self) -> None:
        """Start it again with the same URL and data directory; kill it first if it runs.

        Raises:
            ServerNotReady: It ended again or did not answer in time.
        """
        if self._pid is not None:
            self.kill()
        self._start()

    def wait(self) -> int:
        """Block until the server has ended; returns its exit code, negative for a signal."""
        while (line := self._read_line(None)) is not None:
            word, _, value = line.partition(" ")
            if word == "exited":
                self._pid = None
                return int(value)
        raise EmbeddedRedisError("The embedded server's keeper was killed.")

    def __enter__(self) -> Self:
        """Start the server and wait until it answers.

        Raises:
            ServerMissing: No server program was found.
            ServerNotReady: It ended or did not answer in time.
            DirectoryInUse: Another server writes into the data directory.
        """
        program = find_server()
        private = Path(tempfile.mkdtemp(prefix="turnline-redis-"))
        if len(os.fsencode(private)) > _LONGEST_SOCKET_PATH - len("/redis.sock"):
            private.rmdir()
            private = Path(tempfile.mkdtemp(prefix="turnline-redis-", dir="/tmp"))
        self._private = private
        self._port = _free_port() if self._asked_port == 0 else self._asked_port
        data = private
        if self._directory is not None:
            data = self._directory.resolve()
            data.mkdir(parents=True, exist_ok=True)
        command: list[str | Path] = [sys.executable, "-I", "-S", keeper.__file__, private]
        command.append("" if self._directory is None else data / "embedded.lock")
        command.extend((program.path, *self._options(data)))
        self._keeper = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C in the terminal is for the workers
        )
        try:
            self._start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server, wait until it is gone and its private directory is removed."""
        self._close()

    @property
    def _socket(self) -> Path:
        if self._private is None:
            raise EmbeddedRedisError("The embedded server was not started.")
        return self._private / "redis.sock"

    def _options(self, data: Path) -> list[str]:
        return [
            *("--port", str(self._port or 0), "--bind", "127.0.0.1"),
            *("--unixsocket", str(self._socket), "--unixsocketperm", "700"),
            *("--dir", str(data), "--save", "", "--appendonly"),
            "no" if self._directory is None else "yes",
            *("--databases", str(self._databases), "--maxmemory-policy", "noeviction"),
            *("--daemonize", "no", "--loglevel", "notice"),
        ]

    def _start(self) -> None:
        running = self._keeper
        if running is None or running.stdin is None:
            raise EmbeddedRedisError("The embedded server was not started.")
        deadline = time.monotonic() + self._ready_timeout_s
        running.stdin.write(b"s")
        started = self._read_line(self._ready_timeout_s)
        if started == "locked":
            raise DirectoryInUse(
                f"Another embedded server writes into {self._directory}: stop it or choose another."
            )
        if started is None:
            raise ServerNotReady("The embedded server's keeper did not start.")
        self._pid = int(started.removeprefix("started "))
        while not self._answers():
            # Waiting for the keeper's word paces the attempts, and stops them if the server ended.
            if (line := self._read_line(0.003)) is not None:
                self._pid = None
                raise ServerNotReady(f"The embedded server ended ({line}).\n{self._last_words()}")
            if time.monotonic() > deadline:
                raise ServerNotReady(
                    f"The embedded server did not answer within {self._ready_timeout_s:g} s.\n"
                    f"{self._last_words()}"
                )

    def _answers(self) -> bool:
        """True once it serves commands: it listens before it has loaded its data."""
        with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
            connection.settimeout(1.0)
            connection.connect(str(self._socket))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        return False

    def _read_line(self, timeout_s: float | None) -> str | None:
        """The keeper's next line, or None if there is none in time or the keeper has ended."""
        if self._keeper is None or self._keeper.stdout is None:
            return None
        while b"\n" not in self._unread:
            if not select.select([self._keeper.stdout], [], [], timeout_s)[0]:
                return None
            read = os.read(self._keeper.stdout.fileno(), 256)
            if not read:
                return None
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self._socket.parent / "server.log").read_text(errors="replace").splitlines()
            return "\n".join(lines[-5:])
        return ""

    def _close(self) -> None:
        if self._keeper is None:
            return
        with self._keeper:  # closes its standard input: the order to end
            self._keeper, self._pid, self._unread = None, None, b""
        shutil.rmtree(self._socket.parent, ignore_errors=True)  # if the keeper was killed


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
