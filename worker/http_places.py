"""Where HTTP is answered: a host and a port, or the path of a Unix socket."""

import errno
import os
import re
import socket
from pathlib import Path
from typing import Final, NamedTuple

from turnline.contracts.addresses import host_and_port
from turnline.contracts.errors import InvalidAddress

_UNIX: Final = "unix:"
_MOST_OF_A_PATH: Final = 100
"""Bytes; systems take 107, or 103."""
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  only read
_WAITING: Final = 64


class BadPlace(ValueError):
    """It is no such place; the text says what belongs there."""


class Place(NamedTuple):
    """Where to listen, or whom to ask."""

    host: str = ""
    port: int = 0
    """0: any that is free."""
    path: str = ""
    """Of a Unix socket, in place of both."""

    def __str__(self) -> str:
        if self.path:
            return f"{_UNIX}{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def to_ask(self) -> "Place":
        """Where one that listens here is reached from this host."""
        return self._replace(host=_EVERYWHERE.get(self.host, self.host))


def read_place(text: str) -> Place:
    """Read `HOST:PORT`, `PORT` or `unix:PATH`.

    Raises:
        BadPlace: It is none of them.
    """
    if text.startswith(_UNIX):
        path = text.removeprefix(_UNIX)
        if not path.startswith("/") or "\0" in path or len(path.encode()) > _MOST_OF_A_PATH:
            raise BadPlace(f"behind unix: stands a whole path of up to {_MOST_OF_A_PATH} bytes")
        return Place(path=path)
    if re.fullmatch(r"[0-9]{1,5}", text):
        text = f"127.0.0.1:{text}"
    if not re.search(r":[0-9]{1,5}\Z", text, re.ASCII):
        raise BadPlace("expected HOST:PORT, such as 127.0.0.1:9464, or unix:PATH")
    if text.startswith(":") and text.count(":") == 1:
        raise BadPlace("no host stands before the port: 127.0.0.1, or 0.0.0.0 for all networks")
    host, _, port = text.rpartition(":")
    try:
        host, _ = host_and_port(f"{host}:1", 1)
    except InvalidAddress:
        raise BadPlace(
            "the host is a name, an IPv4 address, or an IPv6 address in brackets, as in [::1]:9464"
        ) from None
    if int(port) > 65_535:
        raise BadPlace("a port is at most 65535")
    return Place(host, int(port))


def listen_at(place: Place) -> socket.socket:
    """Open a socket that listens there; whoever closes a Unix one removes its file, too.

    Raises:
        OSError: It cannot be opened; for one thing, somebody listens there.
    """
    if place.path:
        return _listen_at_path(place.path)
    found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = found[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_WAITING)
    except OSError:
        listening.close()
        raise
    return listening


def _listen_at_path(path: str) -> socket.socket:
    """Listen at a path, also where somebody that is gone has left a socket."""
    if _is_answered(path):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    listening = socket.socket(socket.AF_UNIX)
    try:
        if Path(path).is_socket():
            Path(path).unlink()
        listening.bind(path)
        Path(path).chmod(0o600)
        listening.listen(_WAITING)
    except OSError:
        listening.close()
        raise
    return listening


def _is_answered(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(1.0)
        try:
            asking.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def unlink(listening: socket.socket) -> None:
    """Remove the file of a Unix socket that is about to be closed."""
    path = listening.getsockname() if listening.fileno() >= 0 else ""
    if listening.family == socket.AF_UNIX and isinstance(path, str) and path:
        Path(path).unlink(missing_ok=True)
