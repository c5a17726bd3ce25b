"""What was spent: kept by day, tenant, agent and model, in each shard, and read back in sums.

A hash per shard and day (`ShardKeys.spend_prefix`), with a field for each counter: the JSON array
`[tenant, agent, model, counter]`, since no name can be taken for another in it.
"""

import datetime as dt
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final, Literal, NamedTuple

import msgspec

from turnline.contracts.connection import AsyncRedis, pipelined
from turnline.contracts.conversation import CallEntry, Usage
from turnline.contracts.keys import ShardKeys
from turnline.contracts.refusals import word

SPEND_DAYS: Final = 400
"""How long the spend of a day is kept, by default."""
COUNTERS: Final = ("calls", *Usage.__struct_fields__)
"""What is counted, in the order of `Spend`'s fields."""
Part = Literal["day", "tenant", "agent", "model"]
PARTS: Final[tuple[Part, ...]] = ("day", "tenant", "agent", "model")
"""What sums are made by."""
DAYS: Final = 30
"""Days that are summed up where nobody says since when; today is the last of them."""
_MOST_DAYS: Final = 3_660
_AT_ONCE: Final = 500
"""Hashes read in one round trip."""
_encode = msgspec.json.Encoder().encode
_COUNT: Final = re.compile(rb"[0-9]{1,18}")
"""What Turnline counts up to; others may have written more."""
_decode = msgspec.json.Decoder(tuple[str, str, str, str]).decode


class Spend(msgspec.Struct, frozen=True, kw_only=True):
    """What was spent: one row of a table. A part by which it is not told apart is None."""

    day: str | None = None
    """On which the turns ended (UTC), such as `2026-11-30`."""
    tenant: str | None = None
    """Empty: of messages and conversations that name none."""
    agent: str | None = None
    """Empty: none."""
    model: str | None = None
    calls: int = 0
    """Calls of the model, with those that led to no answer."""
    usage: Usage = Usage()
    """Sum over them, as their ledger has it."""


class Question(NamedTuple):
    """What is asked for: days, and the rows whose parts have these values; None for any."""

    since: dt.date | str | None = None
    until: dt.date | str | None = None
    tenant: str | None = None
    agent: str | None = None
    model: str | None = None
    by: Sequence[Part] = PARTS


def day_of(at_ms: int) -> str:
    """Return the day (UTC) of a moment, ms since the Unix epoch."""
    return _name_of(at_ms // 86_400_000)


@lru_cache(4)
def _name_of(days: int) -> str:
    return (dt.date(1970, 1, 1) + dt.timedelta(days)).isoformat()


def spent_by(calls: Iterable[CallEntry]) -> list[tuple[bytes, int]]:
    """Return what a day's hash grows by with these calls: fields and amounts, none of them 0."""
    sums: dict[bytes, int] = {}
    for call in calls:
        amounts = (1, *msgspec.structs.astuple(call.usage))
        for field, amount in zip(
            _fields(call.tenant, call.agent, call.model), amounts, strict=True
        ):
            if amount:
                sums[field] = sums.get(field, 0) + amount
    return [(field, amount) for field, amount in sums.items() if amount]


@lru_cache(1_024)
def _fields(tenant: str, agent: str, model: str) -> tuple[bytes, ...]:
    """Return the fields of all counters, in their order."""
    return tuple(_encode((tenant, agent, model, name)) for name in COUNTERS)


def read_fields(found: Mapping[bytes, bytes]) -> Iterator[tuple[tuple[str, str, str], str, int]]:
    """Yield ((tenant, agent, model), counter, sum) of a day's hash; what others wrote is left."""
    for field, value in found.items():
        try:
            tenant, agent, model, counter = _decode(field)
        except ValueError:
            continue
        if counter in COUNTERS and _COUNT.fullmatch(value):
            yield (tenant, agent, model), counter, int(value)


async def read_spend(
    redis: AsyncRedis, shards: Sequence[ShardKeys], question: Question
) -> list[Spend]:
    """Read what was spent, summed up over shards.

    Args:
        redis: To ask.
        shards: All that hold something, or did at some time.
        question: Which rows.

    Raises:
        ValueError: A day is none, or there are too many; or a part is none.
    """
    if unknown := [it for it in question.by if it not in PARTS]:
        raise ValueError(f"by: {unknown[0]!r} is none of {', '.join(PARTS)}")
    days = await _days(redis, question)
    places = [(day, shard.spend_prefix + day) for day in days for shard in shards]
    sums: dict[tuple[str | None, ...], dict[str, int]] = {}
    for n in range(0, len(places), _AT_ONCE):
        some = places[n : n + _AT_ONCE]
        commands = [("HGETALL", key) for _, key in some]
        replies = await pipelined(redis, commands)
        for (day, _), found in zip(some, replies, strict=True):
            if not isinstance(found, Exception):
                _add(sums, day, found, question)
            elif word(found) != "WRONGTYPE":  # else others wrote there
                raise found
    rows = sorted(sums.items(), key=lambda it: [name or "" for name in it[0]])
    return [_row(names, counters) for names, counters in rows]


def _add(
    sums: dict[tuple[str | None, ...], dict[str, int]],
    day: str,
    found: Mapping[bytes, bytes],
    question: Question,
) -> None:
    """Add a day's hash to the rows that are asked for."""
    wanted = (question.tenant, question.agent, question.model)
    for names, counter, amount in read_fields(found):
        if all(it in {None, name} for it, name in zip(wanted, names, strict=True)):
            values = zip(PARTS, (day, *names), strict=True)
            row = tuple(value if part in question.by else None for part, value in values)
            counters = sums.setdefault(row, {})
            counters[counter] = counters.get(counter, 0) + amount


def _row(names: tuple[str | None, ...], counters: dict[str, int]) -> Spend:
    calls = counters.pop("calls", 0)
    day, tenant, agent, model = names
    usage = Usage(**counters)
    return Spend(day=day, tenant=tenant, agent=agent, model=model, calls=calls, usage=usage)


async def _days(redis: AsyncRedis, question: Question) -> list[str]:
    """Return the days that are asked for; which day it is, the server says."""
    since, until = _day(question.since, "since"), _day(question.until, "until")
    if until is None:
        seconds, _ = await redis.execute_command("TIME")
        until = dt.date.fromisoformat(day_of(int(seconds) * 1000))
    since = since or until - dt.timedelta(days=DAYS - 1)
    count = (until - since).days + 1
    if not 0 < count <= _MOST_DAYS:
        raise ValueError(f"since, until: from {since} to {until} is not 1 to {_MOST_DAYS} days")
    return [(since + dt.timedelta(days=n)).isoformat() for n in range(count)]


def _day(value: dt.date | str | None, name: str) -> dt.date | None:
    if not isinstance(value, str):
        return value
    try:
        return dt.date.fromisoformat(value)
    except ValueError:
        raise ValueError(f"{name}: expected a day such as 2026-11-30") from None
