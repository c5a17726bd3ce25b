"""A free TCP port of 127.0.0.1 that stays one server's own, also while that server is down."""

import socket
import sys
from typing import Final, Self

HOST: Final = "127.0.0.1"


class HeldPort:
    """A port that is given to nobody else until it is closed.

    A server that sets SO_REUSEADDR, as Redis and asyncio do, listens on it all the same. Were it
    not held, the kernel could make it the local port of any outgoing connection while the server is
    down, even of one to this very port, which then speaks to itself.

    Linux only: elsewhere the port was free when asked for, and nobody holds it.
    """

    def __init__(self) -> None:
        """Take a free port."""
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((HOST, 0))
        self.number: int = self._socket.getsockname()[1]
        if sys.platform != "linux":
            self._socket.close()

    def close(self) -> None:
        """Give it back."""
        self._socket.close()

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self.close()
