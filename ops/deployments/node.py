"""One server of a deployment: a process with a port, a directory and a configuration of its own."""

import os
import signal
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from turnline.ops.embedded.errors import EmbeddedRedisError
from turnline.ops.embedded.finding import find_server
from turnline.ops.embedded.held_port import HOST, HeldPort
from turnline.ops.embedded.kept_server import KeptServer, private_directory

READY_TIMEOUT_S: Final = 30.0
"""How long a server may take to answer after its start, which includes loading its data."""

_UNDECODABLE: Final = "surrogateescape"

Directives = Mapping[str, str | int]
"""Lines of a configuration file: name and value. A value of several words stands unquoted."""

DATA_NODE: Final[Directives] = {
    # As whoever keeps data in Redis has it: a primary that restarts without its data, before it is
    # replaced, would have its replicas throw away theirs.
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": '""',
    "maxmemory-policy": "noeviction",
    # As shipped it waits for 5 s, in which more replicas might ask for the same copy.
    "repl-diskless-sync": "yes",
    "repl-diskless-sync-delay": 0,
    # Told to end, a primary would wait for replicas, of which some are frozen or dead here.
    "shutdown-timeout": 0,
}
"""What servers with data have in common, beside what Redis and Valkey are shipped with."""


class Node:
    """A Redis or Valkey server, a sentinel included, that can be killed, frozen and cut off.

    Its configuration file and its data last until it is closed, whatever happens to its process.
    """

    def __init__(self, name: str, directives: Directives, program: Path | None = None) -> None:
        """Give the node a port and a directory; `start` and `wait_ready` start its process.

        Args:
            name: What errors call it.
            directives: Its configuration, without port and directory.
            program: What to run; None takes what `find_server` finds.

        Raises:
            ServerMissing: There is no server program.
        """
        self.name = name
        self.is_frozen = False
        """Whether it was frozen and not woken since."""
        path = find_server().path if program is None else program
        self._held = HeldPort()
        self.port: int = self._held.number
        """TCP port of 127.0.0.1, the same one after each restart."""
        self.directory = private_directory()
        """Its configuration, its data and its log (`server.log`)."""
        config = self.directory / "server.conf"  # rewritten by sentinels, and by CONFIG REWRITE
        own: Directives = {"port": self.port, "bind": HOST, "dir": f'"{self.directory}"'}
        lines = (f"{key} {value}\n" for key, value in {**own, **directives}.items())
        config.write_text("".join(lines))
        is_sentinel = any(key.startswith("sentinel ") for key in directives)
        command: list[str | Path] = [path, config]
        if is_sentinel:
            command.append("--sentinel")
        self._server = KeptServer(name, command, self.directory, self.port)

    def __repr__(self) -> str:
        """Return its name and address."""
        return f"{self.name} ({self.address})"

    @property
    def address(self) -> str:
        """Host and port, as in `127.0.0.1:6379`."""
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """Address of this server alone, whatever its role."""
        return f"redis://{self.address}/0"

    @property
    def pid(self) -> int:
        """Process id.

        Raises:
            EmbeddedRedisError: It is not running.
        """
        return self._server.pid

    @property
    def is_running(self) -> bool:
        """Whether its process has not ended; a frozen one has not."""
        return self._server.is_running

    @property
    def can_answer(self) -> bool:
        """Whether it is running and not frozen."""
        return self.is_running and not self.is_frozen

    def start(self) -> None:
        """Start its process, which does not run; see `wait_ready`."""
        self.is_frozen = False
        self._server.start()

    def wait_ready(self) -> None:
        """Wait until the process that was started serves commands.

        Raises:
            ServerNotReady: It ended again or did not answer in time.
        """
        self._server.wait_ready(READY_TIMEOUT_S)

    def kill(self) -> None:
        """End it as a crash does (SIGKILL); returns when it is gone.

        Raises:
            EmbeddedRedisError: It is not running.
        """
        self.is_frozen = False
        self._server.kill()

    def restart(self) -> None:
        """Start it again with its port, configuration and data; kill it first if it runs.

        Raises:
            ServerNotReady: It ended again or did not answer in time.
        """
        self.is_frozen = False
        self._server.restart(READY_TIMEOUT_S)

    def freeze(self) -> None:
        """Stop its process (SIGSTOP): it takes connections and bytes, and does nothing."""
        os.kill(self.pid, signal.SIGSTOP)
        self.is_frozen = True

    def wake(self) -> None:
        """Let a frozen process go on (SIGCONT), with all that it took in the meantime."""
        os.kill(self.pid, signal.SIGCONT)
        self.is_frozen = False

    def cut_connections(self) -> int:
        """Have the server hang up on all clients; returns on how many.

        Those of other servers, which replicate from it, stay.
        """
        return sum(
            int(self.command("CLIENT", "KILL", "TYPE", kind)) for kind in ("normal", "pubsub")
        )

    def command(self, *words: str | int, timeout_s: float = 2.0) -> Any:
        """Ask this very server, on a connection of its own.

        Args:
            words: The command, each word by itself. Bytes that are no text are lone surrogates, as
                in names of files, here and in the answer.
            timeout_s: How long it may take to connect, and to answer.

        Raises:
            redis.RedisError: It is away or does not answer in time, or refuses.
        """
        client: Any = redis.Redis(
            host=HOST,
            port=self.port,
            protocol=2,
            decode_responses=True,
            encoding_errors=_UNDECODABLE,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        name, *rest = words
        with client:
            return client.execute_command(name, *map(_encoded, rest))

    def ask(self, *words: str | int) -> Any:
        """Ask as `command` does; None from a server that is away, frozen, or refuses."""
        if not self.can_answer:
            return None
        try:
            return self.command(*words, timeout_s=1.0)
        except redis.RedisError:
            return None

    def replication(self) -> dict[str, Any]:
        """Return what the server says of its replication (INFO); nothing if it does not answer."""
        return self.ask("INFO", "replication") or {}

    def close(self) -> None:
        """End the process and remove what it wrote."""
        with suppress(EmbeddedRedisError):  # not running
            os.kill(self._server.pid, signal.SIGKILL)  # with an end of its own it would take longer
        self._server.close()
        self._held.close()


def _encoded(word: str | int) -> bytes:
    return str(word).encode(errors=_UNDECODABLE)


def start_all(nodes: Iterable[Node]) -> None:
    """Start nodes side by side and wait until all of them serve commands.

    Raises:
        ServerNotReady: One does not.
    """
    started = list(nodes)
    for node in started:
        node.start()
    for node in started:
        node.wait_ready()


def revive_all(nodes: Iterable[Node]) -> None:
    """Wake nodes that are frozen and restart those that are dead.

    Raises:
        ServerNotReady: One does not come up.
    """
    listed = list(nodes)
    for node in listed:
        if node.is_running and node.is_frozen:
            node.wake()
    start_all(node for node in listed if not node.is_running)


def close_all(nodes: Iterable[Node]) -> None:
    """End nodes, all of them, whatever one of them raises."""
    with ExitStack() as closing:
        for node in nodes:
            closing.callback(node.close)
