"""Waits for a condition instead of for a time."""

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

T = TypeVar("T")

_PAUSE_S = 0.005


async def wait_until(
    predicate: Callable[[], T | Awaitable[T]], description: str, timeout_s: float = 30.0
) -> T:
    """Let the event loop run until the predicate gives something true, and return that.

    Args:
        predicate: Plain or `async`; called again and again, so it should be cheap.
        description: What is waited for, as the failure should name it.
        timeout_s: When to give up.

    Raises:
        AssertionError: It did not come true in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return cast("T", value)
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {description}; last: {value!r}")
        await asyncio.sleep(_PAUSE_S)


def wait_until_sync(predicate: Callable[[], T], description: str, timeout_s: float = 30.0) -> T:
    """The twin of `wait_until` for tests without an event loop, such as those of processes."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {description}; last: {value!r}")
        pause.wait(_PAUSE_S)
    return value
