"""Schedules with one tick a year, which a test makes due by their notes: no clock is waited for."""

from datetime import UTC, datetime
from typing import Any

from turnline.contracts import UserMessage
from turnline.contracts.connection import AsyncRedis
from turnline.contracts.job_format import named_job
from turnline.contracts.keys import shard_keys
from turnline.contracts.scripts import run, text
from turnline.worker.schedules.lua import ChangeArgs, change
from turnline.worker.schedules.timetable import Schedule, encode_schedule

SHARD = shard_keys(0)

NOW = datetime.now(UTC)
# New Year, unless that is about to come or was a moment ago.
LINE = "0 0 1 1 *" if NOW.month not in {1, 12} else "0 0 1 7 *"
TICK = datetime(NOW.year - (LINE == "0 0 1 7 *" and NOW.month == 1), 1, 1, tzinfo=UTC)
TICK = TICK.replace(month=7) if LINE == "0 0 1 7 *" else TICK
TICK_MS = int(TICK.timestamp() * 1000)
NEXT_MS = int(TICK.replace(year=TICK.year + 1).timestamp() * 1000)


def turn_of(name: str) -> str:
    """Id of the turn of the last tick."""
    return f"schedule/{name}/{TICK:%Y-%m-%dT%H:%MZ}"


def value_of(name: str, **more: Any) -> bytes:
    """The schedule's JSON; its conversation is `c-` and the name."""
    message = UserMessage(conversation_id=f"c-{name}", text=f"Hello from {name}")
    return encode_schedule(Schedule(cron=LINE, message=message, **more))


async def keep(redis: AsyncRedis, *names: str, since_ms: int = TICK_MS - 1, **more: Any) -> None:
    """Keep schedules that nobody has looked after for a long time."""
    for name in names:
        args = ChangeArgs(SHARD.schedules_id, name, b"", value_of(name, **more), named_job("s", 0))
        assert text((await run(redis, change(SHARD, args)))[0]) == "changed"
        await redis.execute_command("HSET", SHARD.ticks, name, since_ms)
    # A worker may have looked between the two: it does so again.
    await redis.execute_command("DEL", SHARD.schedules_lease)
    await redis.execute_command("ZADD", SHARD.queue, 0, SHARD.schedules_id)
