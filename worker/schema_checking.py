"""Checks JSON against schemas without blocking the event loop: expensive checks run elsewhere.

A check whose cost is known to be small runs in the caller. Any other runs in a process of
its own, which is forked for it and ended by the system when it has used up its processor time or
its memory (docs/adr/0018-json-schema-by-a-library.md). Run as a module, this is the process that
forks them.
"""

import asyncio
import contextlib
import os
import re
import resource
import signal
import struct
import sys
from typing import Any, BinaryIO, Final, NoReturn

import msgspec

from turnline.contracts.json_schemas import Schema, Schemas
from turnline.contracts.numbers import number as read_number

CHEAP_STEPS: Final = 250_000
"""Rules times bytes up to which a check runs in the event loop: some 20 ms at the very worst."""
CHECK_S: Final = 0.05
"""Processor seconds for each begun 100 KB of what is checked."""
_CHECK_BYTES: Final = 100_000
_CHECK_MAX_S: Final = 2.0
"""Twice what the largest reply takes on a core that nothing else uses."""
_MEMORY_BYTES: Final = 1024 * 1024 * 1024
"""Of addresses, those of the interpreter included."""
_WAIT_S: Final = 30.0
"""For a busy machine to give a check its processor time."""
_AT_ONCE: Final = 4
_TRIES: Final = 2
"""Of a check, if the process that forks ends in the middle: killed for memory, or by hand."""
_LIKELY_BYTES: Final = 4_000
"""Of a value that is not there yet."""
_KEPT_VARIABLES: Final = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME")
"""What the process needs of the environment; keys and addresses it does not."""
_PROGRAM: Final = ("-P", "-m", "turnline.worker.schema_checking")
"""-P: never from the working directory."""
_HEAD: Final = struct.Struct(">III")
"""Number of the check, bytes of the schema, bytes of the value."""
_SLOW_NUMBER: Final = re.compile(rb"\d{30}|\.0{5}|\d[eE](-|\+?\d\d)")

TOO_COSTLY: Final = "it cannot be checked in bounded time and memory: the schema is too costly"
NOT_JSON: Final = "#: no JSON"
NOT_CHECKED: Final = "it could not be checked: the process for it ended, or did not answer in time"


class _Ended(Exception):
    """The process that checks ended before it had answered; the check is not to blame for it."""


class Checker:
    """Checks values for one worker process."""

    def __init__(self) -> None:
        """Begin; a process is started when it is first needed."""
        self.schemas = Schemas()
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._early: asyncio.Task[None] | None = None
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._waiting: dict[int, asyncio.Future[str | None]] = {}
        self._number = 0
        self._closed = False

    def expect(self, schema: Schema) -> None:
        """Start the process now if a check of this schema may need it: that needs some time."""
        likely = schema.weight is None or schema.weight * _LIKELY_BYTES > CHEAP_STEPS
        if likely and self._early is None:
            self._early = asyncio.create_task(self._get_ready())

    async def _get_ready(self) -> None:
        with contextlib.suppress(_Ended, OSError):  # the check that needs it gets the error
            await self._started()

    async def fault(self, schema: Schema, value: Any, data: bytes) -> str | None:
        """Return where a value does not fit and why, in one line; None if it fits.

        Args:
            schema: A compiled one.
            value: JSON, decoded; not used for a check that runs apart (see `is_cheap`).
            data: The same as JSON text.
        """
        if is_cheap(schema, data):
            return schema.fault(value)
        async with self._places:
            for _ in range(_TRIES):
                with contextlib.suppress(_Ended):
                    return await self._ask(schema.source, data)
        return NOT_CHECKED

    async def close(self) -> None:
        """End the process, if there is one."""
        self._closed = True
        if self._early is not None:
            await self._early
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            _kill(process)
            await process.wait()
        if self._reading is not None:
            await self._reading

    async def _ask(self, schema: bytes, data: bytes) -> str | None:
        process = await self._started()
        self._number = number = (self._number + 1) % 2**32
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            assert process.stdin is not None
            process.stdin.write(_HEAD.pack(number, len(schema), len(data)) + schema + data)
            async with asyncio.timeout(_WAIT_S):
                with contextlib.suppress(OSError):  # it has ended: `_read` says so
                    await process.stdin.drain()
                return await answer
        except TimeoutError:  # it hangs: whoever asks next gets another one
            _kill(process)
            if self._reading is not None:
                await asyncio.wait({self._reading})
            raise _Ended from None
        finally:
            self._waiting.pop(number, None)

    async def _started(self) -> asyncio.subprocess.Process:
        async with self._starting:
            process = self._process
            if self._reading is None or self._reading.done():
                if self._closed:
                    raise _Ended
                process = self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *_PROGRAM,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.DEVNULL,
                    start_new_session=True,  # a group of its own, its checks included
                    env=_environment(),
                )
                self._reading = asyncio.create_task(self._read(process))
            assert process is not None
            return process

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Set the results of checks until the process ends; those that still wait fail then."""
        assert process.stdout is not None
        while line := await process.stdout.readline():
            number, text = msgspec.json.decode(line, type=tuple[int, str | None])
            answer = self._waiting.get(number)
            if answer is not None and not answer.done():
                answer.set_result(text)
        _kill(process)  # if it closed its output alone
        await process.wait()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(_Ended())
                answer.exception()  # whoever waited may be gone


def _environment() -> dict[str, str]:
    """Return what the process is given: neither the provider's key nor Redis' password."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _kill(process: asyncio.subprocess.Process) -> None:
    """End a process that forks, and its checks: what they hold open would never end else."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def is_cheap(schema: Schema, data: bytes) -> bool:
    """Whether a check may hold the event loop."""
    if schema.weight is None or schema.weight * len(data) > CHEAP_STEPS:
        return False
    return _SLOW_NUMBER.search(data) is None  # the library takes long to write these out


def budget_s(size: int) -> float:
    """Return the processor seconds that a check of so many bytes may take."""
    return min(_CHECK_MAX_S, CHECK_S * (1 + size // _CHECK_BYTES))


# -- the process --------------------------------------------------------------------------------


class _Forking:
    """Forks one process for each check, and reports one that ended without an answer."""

    def __init__(self) -> None:
        self._schemas = Schemas()
        self._running: dict[int, int] = {}
        self._forking = False

    def serve(self, questions: BinaryIO) -> None:
        """Answer until nobody asks any more."""
        signal.signal(signal.SIGCHLD, self._reap)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        while len(head := questions.read(_HEAD.size)) == _HEAD.size:
            number, schema_bytes, data_bytes = _HEAD.unpack(head)
            schema = questions.read(schema_bytes)
            data = questions.read(data_bytes)
            compiled = self._schemas.read(schema)  # here, so that it is kept for the next
            self._forking = True  # a mask does not keep back what Python has taken already
            pid = os.fork()
            if not pid:
                _check(number, compiled, data)
            self._running[pid] = number
            self._forking = False
            self._reap()

    def _reap(self, *_: object) -> None:
        while self._running and not self._forking:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:  # a call of this within this call was first
                return
            if not pid:
                return
            number = self._running.pop(pid)
            if status:
                _answer(number, TOO_COSTLY)


def apart(schema: Schema, data: bytes) -> str | None:
    """Check in a process of its own and wait for it; for programs without an event loop.

    Returns:
        As `Checker.fault`.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(writing, 1)
        _check(0, schema, data)
    os.close(writing)
    with open(reading, "rb") as answers:  # noqa: PTH123  a pipe has no path
        line = answers.read()
    os.waitpid(pid, 0)
    return msgspec.json.decode(line, type=tuple[int, str | None])[1] if line else TOO_COSTLY


def _check(number: int, schema: Schema, data: bytes) -> NoReturn:
    """Check, answer and end; the system ends it if that takes too much."""
    with contextlib.suppress(ValueError, OSError):  # not every system has this limit
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, budget_s(len(data)))
    try:
        try:
            value = _decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            _answer(number, NOT_JSON)
        else:
            _answer(number, schema.fault(value))
    except BaseException:  # noqa: BLE001  whatever it is, the process that waits reports it
        os._exit(1)
    os._exit(0)


_decode = msgspec.json.Decoder(float_hook=read_number).decode


def _answer(number: int, text: str | None) -> None:
    os.write(1, msgspec.json.encode((number, text)) + b"\n")


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM):  # it ends when its worker does
        signal.signal(ignored, signal.SIG_IGN)
    _Forking().serve(sys.stdin.buffer)
