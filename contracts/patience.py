"""A Redis for producers and readers: what failed is sent again until their patience is over.

All that they send bears repetition: messages are known by their ids, the rest only reads or sets.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Protocol, TypeVar

from redis.exceptions import RedisError, ResponseError

from turnline.contracts.connection import AsyncRedis, Command
from turnline.contracts.refusals import is_moving, is_passing, told
from turnline.contracts.routing import is_script, key_of, reads_streams

T = TypeVar("T")
PATIENCE_S: Final = 10.0
"""How long a producer waits for a server that is away, by default."""
_FIRST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 0.25
_NEVER: Final = float("inf")
_ends_at_s: ContextVar[float] = ContextVar("ends_at_s", default=_NEVER)
"""By `time.monotonic`: when whoever waits stops waiting."""


@contextmanager
def at_most(seconds: float) -> Generator[None]:
    """Let no command in the block take longer than until so many seconds from now.

    Raises:
        TimeoutError: One would have.
    """
    token = _ends_at_s.set(min(_ends_at_s.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _ends_at_s.reset(token)


class Waiting(Protocol):
    """How time passes: in an event loop, or by blocking."""

    silence_s: float
    """How long a first attempt may take; each further one twice as long."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    async def within(self, seconds: float, reply: Awaitable[T]) -> T:
        """Await a reply.

        Raises:
            TimeoutError: It did not come in time.
        """
        ...


class _InLoop:
    silence_s = float("inf")  # connections are watched beside

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def within(self, seconds: float, reply: Awaitable[T]) -> T:
        async with asyncio.timeout(seconds):
            return await reply


LOOP: Final[Waiting] = _InLoop()
"""Time as an event loop has it."""


class PatientRedis:
    """Sends commands again that failed for a reason that may pass."""

    def __init__(self, redis: AsyncRedis, patience_s: float, waiting: Waiting) -> None:
        """Wrap a client whose own retries are off.

        Args:
            redis: Sends each command once.
            patience_s: Seconds after which the producer is told.
            waiting: How time passes.
        """
        self.redis = redis
        self._patience_s = patience_s
        self._waiting = waiting

    async def execute_command(self, *args: Any) -> Any:
        """Send a command until it is answered.

        Raises:
            StoreUnavailable: It was not, in time.
            StoreFull: The server has no memory left.
            StoreIncompatible: The server refuses it, and will.
            redis.exceptions.ResponseError: An answer for the code that sent it, such as NOSCRIPT.
            TimeoutError: Whoever waits has no more time; see `at_most`.
        """
        trying = _Trying(self._patience_s, self._waiting.silence_s)
        while True:
            try:
                sending = self.redis.execute_command(*args)
                return await self._waiting.within(trying.left_s(args), sending)
            except (RedisError, OSError) as error:
                if (pause_s := trying.pause_s(error)) is None:
                    if (said := told(error)) is error:
                        raise
                    quotes = isinstance(error, ResponseError)  # maybe what was sent
                    raise said from None if quotes else error
                await self._waiting.sleep(pause_s)

    async def sleep(self, seconds: float) -> None:
        """Wait, as time passes here."""
        await self._waiting.sleep(seconds)

    def pipeline(self, transaction: bool = False) -> "_PatientPipeline":  # noqa: FBT001, FBT002
        """Begin a pipeline; never a transaction."""
        del transaction
        return _PatientPipeline(self)

    async def send_together(
        self, commands: Sequence[Command], *, all_or_none: bool, in_part: bool = False
    ) -> list[Any]:
        """Send commands in one round trip until they are answered; return the replies in order.

        Args:
            commands: Those on one key are carried out in their order.
            all_or_none: Whether one that failed lets all be sent again: commands that only read,
                or that have to be on one connection. Else only what failed is sent again.
            in_part: Whether to return once some have been answered, or a slot is being moved. What
                is to be sent again then has the error in its place for which `is_passing` holds.
        """
        trying = _Trying(self._patience_s, self._waiting.silence_s)
        replies: list[Any] = [None] * len(commands)
        places: Sequence[int] = range(len(commands))
        while True:
            answers = await self._attempt([commands[n] for n in places], trying.left_s())
            for place, answer in zip(places, answers, strict=True):
                replies[place] = answer
            places = _to_repeat(commands, replies, all_or_none=all_or_none)
            failures = [replies[n] for n in places if isinstance(replies[n], Exception)]
            is_part = in_part and (len(places) < len(commands) or any(map(is_moving, failures)))
            pause_s = trying.pause_s(failures[0]) if failures and not is_part else None
            if pause_s is None:
                left = set(places) if is_part else ()
                return [
                    told(it) if isinstance(it, Exception) and n not in left else it
                    for n, it in enumerate(replies)
                ]
            await self._waiting.sleep(pause_s)

    async def _attempt(self, commands: Sequence[Command], limit_s: float) -> Sequence[Any]:
        try:
            if len(commands) == 1:  # cheaper than a pipeline
                sending = self.redis.execute_command(*commands[0])
                return [await self._waiting.within(limit_s, sending)]
            pipe = self.redis.pipeline(transaction=False)
            for command in commands:
                pipe.execute_command(*command)
            return await self._waiting.within(limit_s, pipe.execute(raise_on_error=False))
        except (RedisError, OSError) as error:
            return [error] * len(commands)

    def doubt(self) -> None:
        """Have it asked where the primaries are, before the next command."""
        if (servers := getattr(self.redis, "servers", None)) is not None:
            servers.doubt()

    async def aclose(self) -> None:
        """Close all connections."""
        await self.redis.aclose()


def patient(redis: Any, patience_s: float) -> PatientRedis:
    """Return a client that has patience; one that already has is what is returned."""
    if isinstance(redis, PatientRedis):
        return redis
    return PatientRedis(redis, patience_s, LOOP)


class _PatientPipeline:
    """Commands that travel together."""

    def __init__(self, redis: PatientRedis) -> None:
        self._redis = redis
        self._commands: list[Command] = []

    def execute_command(self, *args: Any) -> None:
        self._commands.append(args)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001, FBT002
        replies = await self._redis.send_together(self._commands, all_or_none=raise_on_error)
        if raise_on_error:
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        return replies


class _Trying:
    """How long one command, or several at once, have been tried."""

    def __init__(self, patience_s: float, silence_s: float) -> None:
        self._ends_at_s = time.monotonic() + patience_s
        self._silence_s = silence_s
        self._pause_s = _FIRST_PAUSE_S

    def left_s(self, command: Command = ()) -> float:
        """Return how long the next attempt may take; a command may block for some of it."""
        blocks_s = int(command[command.index("BLOCK") + 1]) / 1000 if "BLOCK" in command else 0.0
        now_s = time.monotonic()
        trying_s = min(self._ends_at_s - now_s, self._silence_s) + blocks_s
        return max(0.001, min(trying_s, _ends_at_s.get() - now_s))

    def pause_s(self, error: Exception) -> float | None:
        """Return how long to wait before the next attempt; None: there is none.

        Raises:
            TimeoutError: Whoever waits has no more time.
        """
        now_s = time.monotonic()
        if now_s + self._pause_s > _ends_at_s.get():
            raise TimeoutError from error
        if not is_passing(error) or now_s + self._pause_s > self._ends_at_s:
            return None
        pause_s = self._pause_s * random.uniform(0.5, 1)  # not all at once
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._silence_s *= 2
        return pause_s


def _to_repeat(
    commands: Sequence[Command], replies: Sequence[Any], *, all_or_none: bool
) -> Sequence[int]:
    """Return the places of what to send again.

    What failed before a later command on the same key that was carried out is not: it would come
    behind that one. A read of streams is: what it finds is right at any time. What has no key, such
    as teaching a script, goes with the rest.
    """
    failed = [n for n, it in enumerate(replies) if isinstance(it, Exception) and is_passing(it)]
    done = [n for n, it in enumerate(replies) if not isinstance(it, Exception)]
    if all_or_none:
        is_late = any(is_script(commands[n]) for n in done)  # what they wrote has its place already
        return range(len(commands)) if failed and not is_late else ()
    done_at = {key_of(commands[n]): n for n in done}
    again = {
        n for n in failed if reads_streams(commands[n]) or done_at.get(key_of(commands[n]), -1) < n
    }
    if again:
        again |= {n for n, it in enumerate(commands) if key_of(it) is None}
    return sorted(again)
