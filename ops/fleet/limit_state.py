"""Reads what providers allow to a fleet, how much of it is used, and who waits for it."""

from collections.abc import Mapping
from typing import Final

import msgspec

from turnline.contracts.connection import SyncRedis
from turnline.contracts.keys import ShardKeys

_WINDOWS: Final[Mapping[str, tuple[str, int]]] = {
    "rs": ("requests per second", 1_000),
    "rm": ("requests per minute", 60_000),
    "ts": ("tokens per second", 1_000),
    "tm": ("tokens per minute", 60_000),
}
_BUCKETS: Final = 200
"""In each window; see reserve.lua."""


class ProviderLimit(msgspec.Struct, frozen=True, kw_only=True):
    """One limit of a model, at one moment."""

    provider: str
    """Base URL."""
    model: str
    what: str
    """Such as `requests per second`."""
    allowed: int
    used: int
    """Within the last second or minute, reservations of running calls included."""
    waiting: int
    """Turns that wait for the model, whichever of its limits is used up."""


def read_limits(redis: SyncRedis, first: ShardKeys) -> tuple[ProviderLimit, ...]:
    """Read the limits that the fleet keeps to at the moment; `first` is shard 0."""
    seconds, micros = redis.execute_command("TIME")
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    limits: list[ProviderLimit] = []
    places: Mapping[bytes, bytes] = redis.execute_command("HGETALL", first.limits)
    for budget_id, place in sorted(places.items(), key=lambda it: it[1]):
        key = first.limit_prefix + budget_id.decode(errors="replace")
        fields: Mapping[bytes, bytes] = redis.execute_command("HGETALL", key)
        waiting = redis.execute_command("ZCARD", f"{key}:line")
        provider, _, model = place.decode(errors="replace").rpartition(" ")
        for word in filter(None, fields.get(b"limits", b"").decode(errors="replace").split(";")):
            window, _, allowed = word.partition("=")
            if window in _WINDOWS and allowed.isdecimal():
                what, span_ms = _WINDOWS[window]
                limits.append(
                    ProviderLimit(
                        provider=provider,
                        model=model,
                        what=what,
                        allowed=int(allowed),
                        used=_used(fields, window, now_ms, span_ms),
                        waiting=waiting,
                    )
                )
    return tuple(limits)


def _used(fields: Mapping[bytes, bytes], window: str, now_ms: int, span_ms: int) -> int:
    """Add up the buckets of a window that count."""
    prefix, first = f"{window}:".encode(), (now_ms - span_ms) * _BUCKETS // span_ms
    return sum(
        int(amount)
        for field, amount in fields.items()
        if field.startswith(prefix)
        and (bucket := field.removeprefix(prefix)).isdigit()
        and int(bucket) >= first
    )
