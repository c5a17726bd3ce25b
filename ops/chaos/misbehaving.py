"""Tools that do what a tool must not do. Whatever they raise carries `CANARY`."""

import asyncio
import atexit
import ctypes
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

from turnline.worker.tools import tool

CANARY = "wombat-7c1f"
CLOSING = "MISBEHAVING_CLOSING"
"""Environment: how the resources close: `hangs`, `swallows`, `exits`; else as they should."""
MARK = "MISBEHAVING_MARK"
"""Environment: a file that is made once a tool misbehaves."""
_kept: set[object] = set()


def _begun() -> None:
    """Leave a mark that a test can see when nothing else of the process can speak."""
    if path := os.environ.get(MARK):
        Path(path).touch()


async def _for_ever() -> NoReturn:
    _begun()
    while True:
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            continue


@asynccontextmanager
async def resources() -> AsyncGenerator[str]:
    """Open as they should; close as the environment says."""
    yield "open"
    match os.environ.get(CLOSING, ""):
        case "hangs":
            await asyncio.Event().wait()
        case "swallows":
            await _for_ever()
        case "exits":
            sys.exit(CANARY)
        case _:
            pass


@tool(timeout_s=0.3)
async def swallows() -> str:
    """Go on whatever is cancelled."""
    await _for_ever()


@tool(timeout_s=None)
async def swallows_without_limit() -> str:
    """Go on whatever is cancelled, and have no limit."""
    await _for_ever()


@tool(timeout_s=0.3)
def sleeps_in_a_thread() -> str:
    """Sleep where nothing can be cancelled."""
    time.sleep(3_600)
    return ""


@tool
async def exits() -> str:
    """Leave."""
    sys.exit(CANARY)


@tool
def exits_in_a_thread() -> str:
    """Leave, from a thread."""
    sys.exit(CANARY)


@tool
async def interrupts() -> str:
    """Press Ctrl-C."""
    raise KeyboardInterrupt(CANARY)


@tool
async def cancels_itself() -> str:
    """Say that it was cancelled."""
    raise asyncio.CancelledError(CANARY)


@tool
async def ends_a_generator() -> str:
    """Raise what closes generators."""
    raise GeneratorExit(CANARY)


class Odd(BaseException):
    """No exception that anybody catches by its name."""


@tool
async def raises_oddly() -> str:
    """Raise what is no Exception."""
    raise Odd(CANARY)


@tool
async def raises() -> str:
    """Raise what is one."""
    raise ValueError(CANARY)


@tool
async def leaves_words_everywhere() -> str:
    """Raise in every place that nobody awaits."""

    async def failing(error: BaseException) -> None:
        raise error

    def failing_thread() -> None:
        raise ValueError(CANARY)

    class Unraisable:
        def __del__(self) -> None:
            raise ValueError(CANARY)

    for error in (ValueError(CANARY), SystemExit(CANARY), KeyboardInterrupt(CANARY), Odd(CANARY)):
        asyncio.create_task(failing(error))  # noqa: RUF006  that is the point
    asyncio.get_running_loop().call_soon(sys.exit, CANARY)
    threading.Thread(target=failing_thread).start()
    Unraisable()
    warnings.warn(CANARY, stacklevel=1)
    await asyncio.sleep(0.05)
    return "done"


@tool
async def leaves_threads() -> str:
    """Start threads that keep a process from ending."""
    threading.Thread(target=time.sleep, args=(3_600,), name="tool-left").start()
    _kept.add(asyncio.get_running_loop().run_in_executor(None, time.sleep, 3_600))
    return "done"


@tool
async def hangs_at_exit() -> str:
    """Register what hangs when the interpreter ends."""
    atexit.register(time.sleep, 3_600)
    return "done"


@tool(retry_safe=True)
async def sleeps_in_the_loop() -> str:
    """Hold the loop, not the interpreter's lock."""
    _begun()
    time.sleep(3_600)  # noqa: ASYNC251  that is the point
    return ""


@tool(retry_safe=True)
async def spins_in_the_loop() -> str:
    """Hold the loop in Python's own code."""
    _begun()
    while True:
        pass


@tool(retry_safe=True)
async def takes_the_signal() -> str:
    """Hold the loop, while another thread is the one that the system gives SIGTERM to."""

    def take() -> None:
        time.sleep(0.2)
        _begun()
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    threading.Thread(target=take, daemon=True).start()
    time.sleep(3_600)  # noqa: ASYNC251  that is the point
    return ""


@tool(retry_safe=True)
async def matches_for_ever() -> str:
    """Hold the interpreter's lock in native code that heeds signals."""
    _begun()
    re.match("(a+)+$", "a" * 99 + "b")
    return ""


@tool(retry_safe=True)
async def sums_for_ever() -> str:
    """Hold the interpreter's lock in native code that heeds nothing."""
    _begun()
    return str(sum(range(10**13)))


@tool(retry_safe=True)
async def holds_the_lock() -> str:
    """Hold the interpreter's lock, so that no thread runs."""
    _begun()
    ctypes.PyDLL(None).sleep(3_600)
    return ""


@tool(retry_safe=True)
async def ends_the_process() -> str:
    """Be gone without a word."""
    os._exit(5)
