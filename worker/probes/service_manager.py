"""Tells systemd, or what stands for it, how the process is: datagrams to a socket that it names.

Source: https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

log = logging.getLogger("turnline.process")
SOCKET: Final = "NOTIFY_SOCKET"
_WATCHDOG: Final = ("WATCHDOG_USEC", "WATCHDOG_PID")
VARIABLES: Final = (SOCKET, *_WATCHDOG)
"""What a manager sets. Whoever starts workers and speaks for them keeps these from them."""


class ServiceManager:
    """The manager of this process; where there is none, nothing is sent."""

    def __init__(self, environ: Mapping[str, str], *, pid: int | None = None) -> None:
        """Read what the manager has set; `pid` is this process's."""
        address = environ.get(SOCKET, "")
        # An abstract name is written with an @ in place of its first byte, which is 0.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        usec, of = (environ.get(name, "") for name in _WATCHDOG)
        is_ours = not of or of == str(os.getpid() if pid is None else pid)
        is_asked = bool(self._address) and is_ours and usec.isdecimal() and int(usec) > 0
        self.watchdog_s: Final = int(usec) / 2_000_000 if is_asked else None
        """Seconds after which to say again that the process lives; None: nobody wants to know."""
        self._pinging: asyncio.TimerHandle | None = None

    def tell(self, *lines: str) -> None:
        """Send lines such as `READY=1`; it is never waited for."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
                to.setblocking(False)
                to.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            log.debug("manager.untold", extra={"error": type(error).__name__})

    def ready(self, status: str) -> None:
        """Say that the process serves."""
        self.tell("READY=1", f"STATUS={status}")

    def stopping(self) -> None:
        """Say that it was told to end."""
        self.tell("STOPPING=1", "STATUS=draining")

    def reloading(self) -> None:
        """Say that it reads its files again; `ready` says that this is over."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1_000}")

    def keep_telling(self, lives: Callable[[], bool]) -> None:
        """From now on say that the process lives, from the running loop: while that moves."""
        if self.watchdog_s is None:
            return
        if lives():
            self.tell("WATCHDOG=1")
        loop = asyncio.get_running_loop()
        self._pinging = loop.call_later(self.watchdog_s, self.keep_telling, lives)

    def close(self) -> None:
        """Say it no more."""
        if self._pinging is not None:
            self._pinging.cancel()
