"""Reshards a fleet in use, there and back, again and again; half of the commands are killed."""

import os
import random
import signal
import time
from collections.abc import Callable
from typing import Final

import msgspec

from turnline.ops.fleet.child import Child
from turnline.ops.fleet.resharding import Progress

_KILLED: Final = 0.5
"""Share of the commands that are killed, if they have not ended by then; the others are frozen."""
_STRUCK_AFTER_S: Final = ((0.1, 0.6), (0.2, 8.0))
"""One or the other: where there is little to move, a command takes half a second."""
_FROZEN_S: Final = (0.3, 5.0)
"""Up to more than producers wait for one conversation to be moved."""
_PAUSE_S: Final = (0.0, 2.0)
"""Between the end of a command and the next one."""
_NO_ANSWER: Final = "no Redis answers"
"""How the command begins that was started while its server was away."""
_TICK_S: Final = 0.05
_NEVER: Final = float("inf")

_decode = msgspec.json.Decoder(Progress).decode


class Resharded(msgspec.Struct, kw_only=True):
    """What came of it."""

    shards: int = 0
    """How many the fleet is to have in the end."""
    done: int = 0
    killed: int = 0
    frozen: int = 0
    moved: int = 0
    """Conversations, by those that were done; others say nothing."""
    superseded: int = 0
    """As in `turnline.ops.fleet.resharding.Progress`."""
    refused_starts: int = 0
    """Commands that found no server, because it was away; they were started again."""
    failures: list[str] = []
    """Commands that ended otherwise, with their last words."""


class Reshards:
    """One `turnline reshard` after the other. Use it from the main thread: see `Child`."""

    def __init__(
        self, url: str, first: int, other: int, seed: int, *, wait_replicas: int = 0
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            url: Where the fleet is.
            first: How many shards it has.
            other: How many it gets, before it gets the first number again.
            seed: Decides when commands begin and are killed.
            wait_replicas: As the option of the command.
        """
        self._url = url
        self._target, self._next = other, first
        self._rng = random.Random(f"{seed} reshard")
        self._wait_replicas = wait_replicas
        self._command: Child | None = None
        self._started_ms = 0.0
        self._begins_s = time.monotonic() + self._rng.uniform(*_PAUSE_S)
        self._struck_at_s = self._woken_at_s = _NEVER
        self._is_killed = False
        """What is done to the command that runs: killed or frozen."""
        self._is_begun = False
        """Whether the fleet may be on its way to the target."""
        self._is_last = False
        self.found = Resharded(shards=first)

    def look_after(self, was_away: Callable[[float], bool]) -> None:
        """Begin, strike, wake or begin again, as it is time to.

        Args:
            was_away: Whether a server was away at any time since then (ms since the Unix epoch).
        """
        now_s = time.monotonic()
        if self._command is None:
            if now_s >= self._begins_s and (self._is_begun or not self._is_last):
                self._begin()
        elif not self._command.is_running:
            self._end(self._command, was_away)
        elif now_s >= self._woken_at_s:
            self._command.signal(signal.SIGCONT)
            self._woken_at_s = _NEVER
        elif now_s >= self._struck_at_s:
            self._strike(self._command)

    def finish(self, timeout_s: float, was_away: Callable[[float], bool]) -> None:
        """Bring the one that was begun to its end."""
        self.is_last()
        until_s = time.monotonic() + timeout_s
        while (self._is_begun or self._command is not None) and time.monotonic() < until_s:
            self.look_after(was_away)
            time.sleep(_TICK_S)
        if self._is_begun or self._command is not None:
            self.found.failures.append(f"it did not come to its end within {timeout_s:g} s")
            self.close()

    def is_last(self) -> None:
        """Begin no other, strike none, and wake the one that is frozen."""
        self._is_last = True
        self._struck_at_s = _NEVER
        self._woken_at_s = 0.0

    def close(self) -> None:
        """Kill the one that runs."""
        if self._command is not None:
            self._command.close(wait_s=0)
            self._command = None

    def _begin(self) -> None:
        arguments = ["reshard", str(self._target), "--redis", self._url, "--json"]
        arguments += ["--wait-replicas", str(self._wait_replicas)]
        environ = {name: it for name, it in os.environ.items() if not name.startswith("TURNLINE_")}
        self._started_ms = time.time() * 1000
        name = f"turnline reshard {self._target}"
        self._command = Child(
            name, "-m", "turnline.ops.cli", *arguments, environ=environ, says=True
        )
        self._is_begun = True
        self.found.shards = self._target
        after_s = self._rng.uniform(*self._rng.choice(_STRUCK_AFTER_S))
        self._is_killed = self._rng.random() < _KILLED
        self._struck_at_s = _NEVER if self._is_last else time.monotonic() + after_s

    def _strike(self, command: Child) -> None:
        self._struck_at_s = _NEVER
        if self._is_killed:
            command.signal(signal.SIGKILL)
            command.popen.wait()
            self.found.killed += 1
            self._close(command)
        else:
            command.signal(signal.SIGSTOP)
            self.found.frozen += 1
            self._woken_at_s = time.monotonic() + self._rng.uniform(*_FROZEN_S)

    def _end(self, command: Child, was_away: Callable[[float], bool]) -> None:
        code, words = command.popen.wait(), command.last_words()
        if code == 0:
            assert command.popen.stdout is not None
            done = _decode(command.popen.stdout.read())
            self.found.done += 1
            self.found.moved += done.moved
            self.found.superseded += done.superseded
            self._is_begun = False
            self._target, self._next = self._next, self._target
        elif _NO_ANSWER in words and was_away(self._started_ms):
            self.found.refused_starts += 1
        else:
            self.found.failures.append(f"{command.name} ended (exit code {code}):\n{words}")
        self._close(command)

    def _close(self, command: Child) -> None:
        command.close(wait_s=0)
        self._command = None
        self._woken_at_s = _NEVER
        self._begins_s = time.monotonic() + self._rng.uniform(*_PAUSE_S)
