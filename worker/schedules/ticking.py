"""Looks which ticks are due and submits their turns, under the lease of the schedules' entry.

A tick is a turn id, so that it is one turn however often, and by however many workers, it is
submitted. That it was seen to is noted afterwards.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Final

from redis.exceptions import RedisError

from turnline.contracts.errors import InvalidMessage, TurnIdReused, TurnlineError
from turnline.contracts.keys import ShardKeys
from turnline.contracts.messages import Inbound
from turnline.worker.batching import ScriptBatcher
from turnline.worker.logs import facts_of
from turnline.worker.schedules.lua import ParkArgs, park
from turnline.worker.schedules.timetable import DueTurn, notes_of, plan

log = logging.getLogger("turnline.schedules")
_AGAIN_S: Final = 60.0
"""Seconds until a turn is submitted again whose conversation cannot be written to."""
Submit = Callable[[Inbound], Awaitable[object]]
Open = Callable[[], AbstractAsyncContextManager[Submit]]
"""Opens what submits a message as a producer does; it raises what `TurnClient.submit` raises."""


class Schedules:
    """The schedules of a fleet, as a worker of shard 0 looks after them."""

    def __init__(self, batcher: ScriptBatcher, shard: ShardKeys, open_producer: Open) -> None:
        """Prepare; nothing is sent yet.

        Args:
            batcher: Shard 0's.
            shard: Shard 0.
            open_producer: Called where something is due.
        """
        self._batcher = batcher
        self._shard = shard
        self._open_producer = open_producer

    async def begin(self, _: Any = None) -> None:
        """Have somebody look, if there are schedules and nothing stands for them on the queue.

        A worker of an earlier version takes the entry off: it knows nothing of it.
        """
        with suppress(RedisError, OSError):  # the next worker that starts does it
            if await self._batcher.send("HGETALL", self._shard.schedules):
                now_ms, id_ = _ms(await self._batcher.send("TIME")), self._shard.schedules_id
                await self._batcher.send("ZADD", self._shard.queue, "NX", now_ms, id_)

    async def look(self, lease: str) -> None:
        """Submit what is due, then give the lease up until the next tick.

        What could not be done leaves the lease to lapse: then somebody looks again.
        """
        try:
            await self._look(lease)
        except (RedisError, OSError, TurnlineError) as error:
            log.warning("schedules.failed", extra=facts_of(error))

    async def _look(self, lease: str) -> None:
        shard, send = self._shard, self._batcher.send
        clock, values, ticks = await asyncio.gather(
            send("TIME"), send("HGETALL", shard.schedules), send("HGETALL", shard.ticks)
        )
        now_ms = _ms(clock)
        schedules = {name.decode(errors="replace"): value for name, value in _pairs(values)}
        # Each takes a part of a millisecond; turns go on meanwhile.
        found = await asyncio.to_thread(plan, schedules, notes_of(_pairs(ticks)), now_ms)
        if found.unusable:
            log.warning("schedules.unusable", extra={"names": found.unusable})
        seen, again_s = await self._submit(found.due)
        next_ms = found.next_ms or 0
        if again_s is not None:
            next_ms = min(next_ms, now_ms + int(again_s * 1000))
        words = [word for it in seen for word in (it.name, str(it.tick_ms))]
        await self._batcher.run(park(shard, ParkArgs(shard.schedules_id, lease, next_ms, words)))

    async def _submit(self, due: Sequence[DueTurn]) -> tuple[list[DueTurn], float | None]:
        """Return what was seen to, and in how many seconds to try the rest again."""
        seen = [it for it in due if it.message is None]
        again_s: list[float] = []
        if len(seen) < len(due):
            async with self._open_producer() as submit:
                for it in due:
                    if it.message is None:
                        continue
                    try:
                        await submit(it.message)
                    except (InvalidMessage, TurnIdReused) as error:  # trying again ends alike
                        log.warning("schedule.invalid", extra=_facts(it, error))
                    except TurnlineError as error:
                        again_s.append(getattr(error, "retry_after_s", _AGAIN_S))
                        log.warning("schedule.refused", extra=_facts(it, error))
                        continue
                    seen.append(it)
        return seen, min(again_s, default=None)


def _ms(clock: Sequence[bytes]) -> int:
    """Return the server's clock from its answer to TIME."""
    return int(clock[0]) * 1000 + int(clock[1]) // 1000


def _facts(turn: DueTurn, error: Exception) -> dict[str, object]:
    return {"schedule": turn.name, **facts_of(error)}


def _pairs(reply: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """Return the fields of a hash."""
    return list(zip(reply[::2], reply[1::2], strict=True))
