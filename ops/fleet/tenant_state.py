"""Reads which tenants are at their limits, and which budgets are used up."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import msgspec

from turnline.contracts.connection import SyncRedis
from turnline.contracts.keys import ARQ_IN_PROGRESS, ShardKeys


class TenantState(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant that has more to do than may run at once."""

    tenant: str
    running: int
    """Conversations at work."""
    held: int
    """Conversations that wait for these."""


class UsedUp(msgspec.Struct, frozen=True, kw_only=True):
    """A budget of which nothing is left, as producers are told."""

    budget: str
    """`fleet`, `tenant` or `conversation`."""
    name: str = ""
    """Of the tenant or the conversation."""
    unit: str = ""
    """`usd` or `tokens`."""
    spent: float = 0.0
    limit: float = 0.0


class _About(msgspec.Struct):
    """What of a mark is shown; see mark.lua."""

    unit: str = ""
    spent: float = 0.0
    limit: float = 0.0


_decode_about = msgspec.json.Decoder(_About).decode
_OWNERS: Mapping[str, str] = {"t": "tenant", "c": "conversation"}


def read_tenants(redis: SyncRedis, shards: Sequence[ShardKeys]) -> tuple[TenantState, ...]:
    """Read the tenants of whom conversations are held back, added up over the shards."""
    found: dict[str, TenantState] = {}
    for shard in shards:
        for name in redis.execute_command("ZRANGE", shard.held, 0, -1):
            tenant = name.decode(errors="replace")
            held = redis.execute_command("ZCARD", shard.held_prefix + tenant)
            claimed = redis.execute_command("ZRANGE", shard.running_prefix + tenant, 0, -1)
            leases = (ARQ_IN_PROGRESS.encode() + it for it in claimed)
            running = redis.execute_command("EXISTS", *leases) if claimed else 0
            before = found.get(tenant, TenantState(tenant=tenant, running=0, held=0))
            found[tenant] = TenantState(
                tenant=tenant, running=before.running + running, held=before.held + held
            )
    return tuple(found[it] for it in sorted(found) if found[it].held)


def read_used_up(redis: SyncRedis, shards: Sequence[ShardKeys], now_ms: int) -> tuple[UsedUp, ...]:
    """Read which budgets producers are refused for at the moment."""
    found: dict[tuple[str, str], UsedUp] = {}
    for shard in shards:
        marks: Mapping[bytes, bytes] = redis.execute_command("HGETALL", shard.exhausted)
        found |= {(it.budget, it.name): it for it in _used_up(marks.items(), now_ms)}
    return tuple(found[it] for it in sorted(found))


def _used_up(marks: Iterable[tuple[bytes, bytes]], now_ms: int) -> Iterable[UsedUp]:
    for field, mark in marks:
        kind, _, name = field.decode(errors="replace").partition(":")
        words = mark.split(b" ", 2)
        if kind != "w" and len(words) == 3 and words[0].isdigit() and int(words[0]) > now_ms:
            with suppress(msgspec.DecodeError, UnicodeDecodeError):  # others wrote that
                about = _decode_about(words[2])
                yield UsedUp(
                    budget=_OWNERS.get(kind, kind),
                    name=name,
                    unit=about.unit,
                    spent=about.spent,
                    limit=about.limit,
                )
