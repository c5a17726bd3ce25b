"""Runs a private Redis or Valkey server that ends with the process that started it."""

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

from turnline.ops.embedded.errors import EmbeddedRedisError
from turnline.ops.embedded.finding import find_server
from turnline.ops.embedded.held_port import HOST, HeldPort
from turnline.ops.embedded.kept_server import KeptServer, private_directory
from turnline.worker.settings import value_or_file

URL_VARIABLES: Final = ("TURNLINE_REDIS_URL", "REDIS_URL")
"""Environment variables, or with `_FILE` files, that name a running server, first one first."""

_NAME: Final = "The embedded server"


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
        self._held: HeldPort | None = None
        self._socket: Path | None = None
        self._server: KeptServer | None = None

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
        return self._running.pid

    def url_of(self, database: int) -> str:
        """Give the URL of one numbered database."""
        if self._port is not None:
            return f"redis://{HOST}:{self._port}/{database}"
        if self._socket is None:
            raise EmbeddedRedisError("The embedded server was not started.")
        return f"unix://{quote(str(self._socket))}?db={database}"

    def kill(self) -> None:
        """End the server as a crash does (SIGKILL); returns when it is gone."""
        self._running.kill()

    def restart(self) -> None:
        """Start it again with the same URL and data directory; kill it first if it runs.

        Raises:
            ServerNotReady: It ended again or did not answer in time.
        """
        self._running.restart(self._ready_timeout_s)

    def wait(self) -> int:
        """Block until the server has ended; returns its exit code, negative for a signal."""
        return self._running.wait()

    def __enter__(self) -> Self:
        """Start the server and wait until it answers.

        Raises:
            ServerMissing: No server program was found.
            ServerNotReady: It ended or did not answer in time.
            DirectoryInUse: Another server writes into the data directory.
        """
        program = find_server()
        private = private_directory()
        self._socket = private / "redis.sock"
        self._held = HeldPort() if self._asked_port == 0 else None
        data, lock = private, None
        if self._directory is not None:
            data = self._directory.resolve()
            data.mkdir(parents=True, exist_ok=True)
            lock = data / "embedded.lock"
        command: list[str | Path] = [program.path, *self._options(self._socket, data)]
        self._server = KeptServer(_NAME, command, private, self._socket, lock=lock)
        try:
            self._server.restart(self._ready_timeout_s)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server, wait until it is gone and its private directory is removed."""
        self._close()

    @property
    def _port(self) -> int | None:
        return self._held.number if self._held is not None else self._asked_port

    @property
    def _running(self) -> KeptServer:
        if self._server is None:
            raise EmbeddedRedisError(f"{_NAME} is not running.")
        return self._server

    def _options(self, path: Path, data: Path) -> list[str]:
        return [
            *("--port", str(self._port or 0), "--bind", HOST),
            *("--unixsocket", str(path), "--unixsocketperm", "700"),
            *("--dir", str(data), "--save", "", "--appendonly"),
            "no" if self._directory is None else "yes",
            *("--databases", str(self._databases), "--maxmemory-policy", "noeviction"),
            *("--daemonize", "no", "--loglevel", "notice"),
        ]

    def _close(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            server.close()
        if self._held is not None:
            self._held.close()
