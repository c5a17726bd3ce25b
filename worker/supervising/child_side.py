"""What a worker process does because it has a supervisor: tells it how it is, and ends with it.

The two share a pair of sockets. A child writes JSON lines; the supervisor writes nothing, so that
the end of what there is to read says that it is gone. Later versions may tell more: unknown lines
are ignored, since the supervisor may be of an earlier version than the child.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Final, Self

import msgspec

VARIABLE: Final = "TURNLINE_SUPERVISOR"
"""Not a setting: the number of the child's end of the sockets."""


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line that a child writes."""

    ready: str = ""
    """Id of the worker, which takes turns from here on."""
    refused: str = ""
    """Why it cannot start: a sentence for people."""


class Supervised:
    """The child's end of the sockets."""

    def __init__(self, link: socket.socket) -> None:
        """Tell the supervisor through `link`, and look after it from a thread."""
        self._link = link
        threading.Thread(target=self._watch, name="turnline-supervisor", daemon=True).start()

    @classmethod
    def inherited(cls, environ: MutableMapping[str, str]) -> Self | None:
        """Return the end that a supervisor handed down, which no child of ours inherits.

        None, if there is no supervisor.
        """
        number = environ.pop(VARIABLE, "")
        if not number.isdigit():
            return None
        try:
            link = socket.socket(fileno=int(number))
        except OSError:
            return None
        link.set_inheritable(False)
        return cls(link)

    def ready(self, worker_id: str) -> None:
        """Say that this process takes turns."""
        self._tell(Told(ready=worker_id))

    def refused(self, sentence: str) -> None:
        """Say why this process cannot start."""
        self._tell(Told(refused=sentence))

    def _tell(self, told: Told) -> None:
        with suppress(OSError):  # it is gone: so is this process soon
            self._link.sendall(msgspec.json.encode(told) + b"\n")

    def _watch(self) -> None:
        with suppress(OSError):
            while self._link.recv(64):
                pass
        os.kill(os.getpid(), signal.SIGTERM)


def obey(
    number: int, *, stop: Callable[[], None], retire: Callable[[], None], is_stopping: bool
) -> None:
    """Do what a signal means to a child: it may get SIGTERM from others too, as by systemd.

    SIGTERM drains, however often it comes; SIGINT, which no terminal sends it, hands over at once;
    SIGHUP lets what runs end, for as long as a replacement may take.
    """
    if number == signal.SIGHUP:
        retire()
    elif number == signal.SIGINT:
        if not is_stopping:
            stop()
        stop()
    elif not is_stopping:
        stop()
