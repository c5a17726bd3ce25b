"""What all steps of a start share: a time limit, a log line while it waits, plain sentences."""

import asyncio
import contextlib
import logging
import re
import threading
from collections.abc import Awaitable, Generator, Iterable
from typing import Final, TypeVar

from turnline.contracts.conversation import INVISIBLE

log = logging.getLogger("turnline.worker")
_T = TypeVar("_T")

WORDS_CHARS: Final = 300
"""Characters that a sentence repeats of a server's words."""
SENTENCE_CHARS: Final = 2_000
LOG_AFTER_S: Final = 1.0
"""Seconds after which a step logs what it waits for; then again, ever later."""
_MOST_SILENCE_S: Final = 8.0
_LEAST_SECRET: Final = 4
"""Characters of a secret; anything shorter could be found anywhere by chance."""
_UNSEEN: Final = re.compile(f"[{INVISIBLE}\ud800-\udfff]")


def plain(text: str, most_chars: int, secrets: Iterable[str] = ()) -> str:
    """Return foreign words in one line of visible characters, bounded, without the secrets."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _LEAST_SECRET:
            text = text.replace(secret, "***")
    text = " ".join(_UNSEEN.sub(" ", text[: 8 * most_chars]).split())
    return text if len(text) <= most_chars else text[: most_chars - 1] + "…"


@contextlib.contextmanager
def log_if_slow(what: str) -> Generator[None]:
    """Log what is waited for if it takes long, from a thread: the event loop may be blocked."""
    done = threading.Event()

    def watch() -> None:
        waited_s = wait_s = LOG_AFTER_S
        while not done.wait(wait_s):
            log.info("start.waiting", extra={"waiting_for": what, "seconds": waited_s})
            wait_s = min(_MOST_SILENCE_S, 2 * wait_s)
            waited_s += wait_s

    thread = threading.Thread(target=watch, name="turnline-start", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


async def within(limit_s: float, what: str, work: Awaitable[_T]) -> _T:
    """Await something that must be over in time.

    Raises:
        TimeoutError: It was not.
    """
    with log_if_slow(what):
        async with asyncio.timeout(limit_s):
            return await work
