"""Files that an operator names: read once, bounded in size and time, whatever the path leads to."""

import asyncio
import contextlib
import json
import os
import select
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

T = TypeVar("T")
ANSWER_S: Final = 2.0
"""Seconds that a pipe has to say all it has to say."""
MOST_BYTES: Final = 4 * 1024 * 1024
_CHUNK: Final = 65_536
_MARKS: Final = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


class UnusableFile(Exception):
    """A file cannot be read, or holds no text; says why, and nothing of what it holds."""


class FileChanges:
    """Has a file read again when it has changed."""

    def __init__(self, path: Path) -> None:
        """Know the file as it is now, before it is read for the first time."""
        self._path = path
        self._stamp = self._look()
        self._reading = asyncio.Lock()

    async def read(self, read: Callable[[], T]) -> T | None:
        """Return what is read, in a thread, if the file changed, else None.

        Whoever asks meanwhile waits. Raises what `read` raises, once for each change.
        """
        if self._look() == self._stamp:
            return None
        async with self._reading:
            stamp = self._look()
            if stamp == self._stamp:
                return None
            try:
                found = await asyncio.to_thread(read)
            except Exception:  # whatever it is, it is passed on; it would come again for each turn
                self._stamp = stamp
                raise
            self._stamp = stamp
            return found

    def _look(self) -> tuple[int, int, int]:
        try:
            found = self._path.stat()
        except OSError:
            return (0, 0, 0)
        return (found.st_mtime_ns, found.st_size, found.st_ino)


def read_text(path: str | Path, *, most_bytes: int = MOST_BYTES) -> str:
    """Read a file, or a pipe such as `<(command)`, as UTF-8; a byte order mark is left out.

    Raises:
        UnusableFile: It cannot be read, is no file, too large, silent, or no UTF-8.
    """
    data = _read(path, most_bytes)
    for mark, name in _MARKS:
        if data.startswith(mark):
            raise UnusableFile(f"it is {name}; save it as UTF-8")
    try:
        return data.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError as error:
        raise UnusableFile(f"it is not UTF-8 (byte {error.start + 1})") from None


def read_json(path: str | Path) -> Any:
    """Read a JSON file strictly: no name twice in an object, no NaN, no half characters.

    Raises:
        UnusableFile: As `read_text`, or it is no such JSON; says where.
    """
    text = read_text(path)
    if not text.strip():
        raise UnusableFile("it is empty")
    try:
        value = json.loads(text, object_pairs_hook=_each_once, parse_constant=_no_number)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UnusableFile(f"it is no JSON: {error.msg} ({place})") from None
    except UnicodeEncodeError:
        raise UnusableFile("it is no JSON: half of a surrogate pair stands in a text") from None
    except RecursionError:
        raise UnusableFile("it is nested too deeply") from None
    except ValueError as error:  # also a number of thousands of digits
        raise UnusableFile(f"it is no JSON: {error}") from None
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    found = dict(pairs)
    if len(found) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has {repeated[:100]!r} twice")
    return found


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def _read(path: str | Path, most_bytes: int) -> bytes:
    try:
        # A pipe that nobody writes to would hold `open` for ever.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "this is no path"
        raise UnusableFile(f"it cannot be read: {reason}") from None
    try:
        kind = os.fstat(number).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind)):
            raise UnusableFile("it is a folder" if stat.S_ISDIR(kind) else "it is no file")
        return _read_all(number, most_bytes, is_pipe=stat.S_ISFIFO(kind))
    except OSError as error:
        raise UnusableFile(f"it cannot be read: {error.strerror}") from None
    finally:
        os.close(number)


def _read_all(number: int, most_bytes: int, *, is_pipe: bool) -> bytes:
    data = bytearray()
    deadline_s = time.monotonic() + ANSWER_S
    while len(data) <= most_bytes:
        if is_pipe:
            _wait_for(number, deadline_s)
        with contextlib.suppress(BlockingIOError):
            if not (read := os.read(number, _CHUNK)):
                return bytes(data)
            data += read
    raise UnusableFile(f"it has more than {most_bytes:,} bytes")


def _wait_for(number: int, deadline_s: float) -> None:
    """Wait until a pipe has something, or its last writer has gone."""
    poll = select.poll()
    poll.register(number, select.POLLIN)
    if not poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
        raise UnusableFile(f"nothing came out of the pipe within {ANSWER_S:g} s")
