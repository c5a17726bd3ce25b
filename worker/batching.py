"""Gathers the scripts that tasks want to run in one event-loop tick into one pipeline.

While one batch is on its way the next one gathers, so that batches grow with the load and a lone
call is sent at once. Calls of one task keep their order, since each awaits its reply.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from turnline.contracts.connection import AsyncRedis
from turnline.contracts.scripts import Call, run, run_together

_SILENCE_S = 5.0
"""A server that says nothing for so long is gone; the callers try again on a new connection."""
_MOST = 256
"""Calls per pipeline: bounds the time for which one batch holds the server."""


class ScriptBatcher:
    """Runs scripts on one Redis, several tasks' calls per round trip."""

    def __init__(self, redis: AsyncRedis) -> None:
        """Use `redis`, whose own retries must be off: callers know what bears repetition."""
        self._redis = redis
        self._waiting: list[tuple[Call, asyncio.Future[Any]]] = []
        self._flight: asyncio.Task[None] | None = None

    def run(self, call: Call) -> "asyncio.Future[Any]":
        """Return the reply's future.

        Raises (when awaited):
            redis.exceptions.RedisError: The server refused the call or could not be reached; in the
                latter case the script may have run.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, future))
        if self._flight is None:
            self._flight = asyncio.create_task(self._fly())
        return future

    async def close(self) -> None:
        """Wait until everything under way has its reply."""
        while self._flight is not None:
            await asyncio.shield(self._flight)

    async def _fly(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
                replies: list[Any]
                try:
                    async with asyncio.timeout(_SILENCE_S):
                        replies = await self._send([call for call, _ in batch])
                except Exception as error:  # noqa: BLE001  whoever waits must hear of it, or waits for ever
                    replies = [error] * len(batch)
                for (_, future), reply in zip(batch, replies, strict=True):
                    if future.done():  # its task was cancelled
                        continue
                    if isinstance(reply, BaseException):
                        future.set_exception(reply)
                    else:
                        future.set_result(reply)
        finally:
            self._flight = None

    async def _send(self, calls: Sequence[Call]) -> list[Any]:
        if len(calls) == 1:
            return [await run(self._redis, calls[0])]
        return await run_together(self._redis, calls)
