"""One process's share of a search: prints how far it has come, a line of JSON twice a second."""

import mmap
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from turnline.ops.fuzz.mutation import INPUT_MAX_BYTES
from turnline.ops.fuzz.search import Search, Tally
from turnline.ops.fuzz.targets import targets

_TELL_S: Final = 0.5
_BATCH: Final = 16
_HEAD_BYTES: Final = 8
_MEMORY_BYTES: Final = 4 * 1024**3
"""Address space of a process: an input that wants more breaks something."""
NOTE_BYTES: Final = _HEAD_BYTES + INPUT_MAX_BYTES


class Share(NamedTuple):
    """What one process does."""

    target: str
    seed: str
    runs: int
    seconds: float
    """When to stop in any case."""
    note: str
    """File of `NOTE_BYTES` bytes that always holds the input being run."""

    def words(self) -> list[str]:
        """Return the arguments that say so."""
        return [self.target, self.seed, str(self.runs), str(self.seconds), self.note]


def share_of(words: list[str]) -> Share:
    """Read the arguments."""
    target, seed, runs, seconds, note = words
    return Share(target, seed, int(runs), float(seconds), note)


def noted(path: Path) -> bytes:
    """Return the input that a process was running."""
    data = path.read_bytes()
    return data[_HEAD_BYTES : _HEAD_BYTES + int.from_bytes(data[:_HEAD_BYTES], "little")]


def noting(path: str) -> Callable[[bytes], None]:
    """Return what notes an input where it is found even if this process dies at once."""
    with Path(path).open("r+b") as file:
        memory = mmap.mmap(file.fileno(), NOTE_BYTES)

    def note(data: bytes) -> None:
        memory[:_HEAD_BYTES] = len(data).to_bytes(_HEAD_BYTES, "little")
        memory[_HEAD_BYTES : _HEAD_BYTES + len(data)] = data

    return note


def _tell(tally: Tally) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(tally) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Do the share that the arguments describe."""
    share = share_of(sys.argv[1:])
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    search = Search(targets()[share.target], seed=share.seed, note=noting(share.note))
    until = time.monotonic() + share.seconds
    told_at = 0.0
    search.begin()
    while search.tally.runs < share.runs and (now := time.monotonic()) < until:
        if now - told_at > _TELL_S:
            _tell(search.tally)
            told_at = now
        search.go_on(min(_BATCH, share.runs - search.tally.runs))
    search.end()
    _tell(search.tally)


if __name__ == "__main__":
    main()
