"""A TCP proxy between clients and a server, as a process that does what it is told."""

import select
import subprocess
import sys
from typing import Final, Self

from turnline.ops.deployments import forwarder
from turnline.ops.deployments.errors import DeploymentError
from turnline.ops.deployments.node import Node
from turnline.ops.embedded.held_port import HOST, HeldPort

_ANSWER_TIMEOUT_S: Final = 30.0


class Proxy:
    """A load balancer, a service address or a lossy network before a server, for a `with` block.

        with Proxy(server.port) as proxy, SyncTurnClient.connect(proxy.url) as client:
            proxy.swallow()
            proxy.forward(other_server)

    Each verb returns when it is in force. None but `swallow` and `cut` does anything to connections
    that are open. The process ends with the block, and with its starter, also when that is killed.
    """

    def __init__(self, target: Node | int) -> None:
        """Describe the proxy; `with` starts it, forwarding.

        Args:
            target: A server, or its port on 127.0.0.1.
        """
        self._target = target
        self._held: HeldPort | None = None
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Start it."""
        self._held = HeldPort()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", forwarder.__file__, str(self._held.number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C in the terminal is for the starter
        )
        try:
            self.forward()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End it, and all connections through it."""
        self._close()

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1.

        Raises:
            DeploymentError: It is not running.
        """
        if self._held is None:
            raise DeploymentError("The proxy is not running.")
        return self._held.number

    @property
    def url(self) -> str:
        """Database 0 of the server behind it."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def pid(self) -> int:
        """Process id.

        Raises:
            DeploymentError: It is not running.
        """
        return self._running.pid

    @property
    def connections(self) -> int:
        """How many are open: forwarded ones, and those that say nothing."""
        return self._order("count")

    def forward(self, target: Node | int | None = None) -> None:
        """Forward new connections; to another server from now on, if one is given.

        Open ones stay where they are, as behind a balancer that is told of a planned failover.
        """
        self._target = self._target if target is None else target
        port = self._target if isinstance(self._target, int) else self._target.port
        self._order(f"forward {port}")

    def accept_and_close(self) -> None:
        """Take new connections and close them at once: a balancer without a server behind it."""
        self._order("close")

    def swallow(self) -> None:
        """Take connections and bytes, and pass nothing on, in no direction: half-open connections.

        That holds for open connections too, for good: they stay silent after `forward`.
        """
        self._order("swallow")

    def refuse(self) -> None:
        """Refuse new connections: nobody listens."""
        self._order("refuse")

    def cut(self) -> None:
        """Hang up on all connections."""
        self._order("cut")

    @property
    def _running(self) -> "subprocess.Popen[str]":
        if self._process is None:
            raise DeploymentError("The proxy is not running.")
        return self._process

    def _order(self, order: str) -> int:
        process = self._running
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{order}\n")
        process.stdin.flush()
        answered, _, _ = select.select([process.stdout], [], [], _ANSWER_TIMEOUT_S)
        answer = process.stdout.readline() if answered else ""
        if not answer:
            raise DeploymentError(f"The proxy did not carry out the order: {order}.")
        return int(answer)

    def _close(self) -> None:
        if self._process is not None:
            self._process.kill()
            with self._process:
                self._process = None
        if self._held is not None:
            self._held.close()
            self._held = None
