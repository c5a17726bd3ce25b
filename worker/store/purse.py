"""What was spent, as the workers of a process know it: today, by tenant; by a conversation."""

import asyncio
import math
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from typing import Final

import msgspec
from redis.exceptions import RedisError

from turnline.contracts.connection import AsyncRedis
from turnline.contracts.conversation import CallEntry
from turnline.contracts.daily_spend import Question, day_of, read_spend
from turnline.contracts.keys import shard_keys
from turnline.contracts.layout import FIELDS, Layout, read_layout
from turnline.contracts.protocol import TOTAL_FIELDS, read_totals
from turnline.contracts.scripts import run_together
from turnline.worker.errors import StoreUnavailable
from turnline.worker.lease import Lease
from turnline.worker.provider_limits import ProviderLimits
from turnline.worker.store import lua
from turnline.worker.turn.budgets import (
    BudgetExceeded,
    Budgets,
    BudgetsFile,
    Spent,
    by_tenant,
    spent_of,
)

_FRESH_S: Final = 1.0
"""Sums that are older are read again, while a turn goes by them."""
_STALE_S: Final = 10.0
"""Sums that are older are waited for."""
_LOOK_S: Final = 5.0
"""Between two looks at how many shards there are, among which limits are divided."""
_MARK_MS: Final = 10_000
"""For how long producers are refused; then one may try whether the limit is another one."""
_AGAIN_S: Final = 1.0
"""A mark that is not older is not made again."""
_HOUR_MS: Final = 3_600_000
_encode = msgspec.json.Encoder().encode


class _Part:
    """What a commit adds: counted here until a reading has it."""

    def __init__(self, spent: Mapping[str, Spent]) -> None:
        self.spent = spent
        self.safe_at_s = math.inf
        """When it was in Redis for sure, by `time.monotonic`."""


class Purse:
    """What was spent, and what may be; one for all shards of a worker process."""

    def __init__(self, redis: AsyncRedis, file: BudgetsFile, *, shards: int, prefix: str) -> None:
        """Ask for nothing yet.

        Args:
            redis: To ask, for all shards.
            file: Says what may be spent.
            shards: Number of shards, until the fleet says how many it has and had.
            prefix: Of the fleet.
        """
        self._redis = redis
        self._file = file
        self._layout = Layout(shards)
        self._prefix = prefix
        self._read: Mapping[str, Spent] = {}
        """Today's sums, by tenant."""
        self._read_fleet = Spent()
        self._read_at_s = self._looked_at_s = -math.inf
        self._reading: asyncio.Task[None] | None = None
        self._running: dict[object, Mapping[str, Spent]] = {}
        self._added: list[_Part] = []
        self._marks: dict[str, float] = {}
        """Budgets that producers were told of just now, and when."""
        self._own: dict[str, Spent] = {}
        """Sums over both, by tenant."""
        self._own_fleet = Spent()

    async def tenants(self) -> tuple[str, str, str]:
        """Return weights of tenants, and how many run at once and may wait, as `Budgets` do now."""
        await self._file.refresh()
        parts = self._parts()
        if any(parts) and time.monotonic() - self._looked_at_s > _LOOK_S:
            self._looked_at_s = time.monotonic()
            with suppress(RedisError, OSError):  # then nothing can be claimed either
                await self._look()
            parts = self._parts()
        return self._file.weights, *parts

    def _parts(self) -> tuple[str, str]:
        shards = self._layout.shards
        return self._file.concurrency(shards), self._file.waiting(shards)

    def of(self, tenant: str) -> ProviderLimits | None:
        """Return what a tenant's calls may use, as the `Rules` of a limiter."""
        return self._file.budgets.rate_of(tenant)

    def weight_of(self, tenant: str) -> float:
        """Return the weight of a tenant."""
        return self._file.budgets.weight_of(tenant)

    async def budgets(self) -> Budgets:
        """Return the budgets as they are now."""
        return await self._file.refresh()

    async def conversation(self, lease: Lease) -> Spent:
        """Return what a conversation has spent, up to its last turn.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        try:
            asked = ("HMGET", lease.keys.state, *TOTAL_FIELDS)
            totals = read_totals(await self._redis.execute_command(*asked))
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"HMGET: {type(error).__name__}") from None
        return spent_of(totals.usage) + spent_of(totals.abandoned)

    async def today(self, tenant: str) -> tuple[Spent, Spent]:
        """Return what a tenant, and what all of the fleet have spent today, about.

        What other processes spend is known up to a second or so ago, and of turns that have ended.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        age_s = time.monotonic() - self._read_at_s
        if age_s > _FRESH_S and self._reading is None:
            self._reading = asyncio.create_task(self.refresh())
            self._reading.add_done_callback(self._done)
        if age_s > _STALE_S and self._reading is not None:
            try:
                await asyncio.shield(self._reading)
            except (RedisError, OSError) as error:
                raise StoreUnavailable(f"HGETALL: {type(error).__name__}") from None
        own = self._own.get(tenant, Spent())
        return self._read.get(tenant, Spent()) + own, self._read_fleet + self._own_fleet

    def _done(self, reading: "asyncio.Task[None]") -> None:
        self._reading = None
        if not reading.cancelled():
            reading.exception()  # whoever waited was told; else the next one asks again

    async def refresh(self) -> None:
        """Read today's sums of all shards that the fleet has or had."""
        began_at_s = time.monotonic()
        await self._look()
        seconds, _ = await self._redis.execute_command("TIME")
        day = day_of(int(seconds) * 1000)
        shards = [shard_keys(n, self._prefix) for n in range(self._layout.widest)]
        question = Question(since=day, until=day, by=("tenant",))
        rows = await read_spend(self._redis, shards, question)
        self._read = {row.tenant or "": spent_of(row.usage) for row in rows}
        self._read_fleet = sum(self._read.values(), Spent())
        self._read_at_s = began_at_s
        for part in [it for it in self._added if it.safe_at_s < began_at_s]:
            self._drop(part)

    async def _look(self) -> None:
        """Read how many shards the fleet has."""
        fleet = shard_keys(0, self._prefix).fleet
        values = await self._redis.execute_command("HMGET", fleet, *FIELDS)
        self._layout = read_layout(values) or self._layout

    def _drop(self, part: _Part) -> None:
        self._added.remove(part)
        self._change(part.spent, {})

    def _change(self, former: Mapping[str, Spent], spent: Mapping[str, Spent]) -> None:
        """Count this in place of that."""
        for tenant in former.keys() | spent.keys():
            more = spent.get(tenant, Spent()) - former.get(tenant, Spent())
            self._own[tenant] = self._own.get(tenant, Spent()) + more
            self._own_fleet += more
            if self._own[tenant] == Spent():
                del self._own[tenant]

    def running(self, who: object, spent: Mapping[str, Spent]) -> None:
        """Take note of what a turn has spent so far, by tenant; nothing once it is over."""
        self._change(self._running.pop(who, {}), spent)
        if spent:
            self._running[who] = spent

    async def exhausted(self, lease: Lease, tenant: str, error: BudgetExceeded) -> None:
        """Have producers refused who want to spend of a budget that is used up.

        A mark ends by itself. Where it cannot be made, the next turn is refused by its worker.

        Source: worker/store/lua/mark.lua
        """
        if error.budget == "turn":
            return
        again_ms, keys = 0, self._everywhere()
        field = "fleet" if error.budget == "fleet" else f"t:{tenant}"
        if error.budget == "conversation":
            field = f"c:{lease.conversation_id}"
            again_ms, keys = _HOUR_MS, [lease.keys.exhausted]
        now_s = time.monotonic()
        self._marks = {it: at_s for it, at_s in self._marks.items() if now_s - at_s < _AGAIN_S}
        if field in self._marks:
            return
        self._marks[field] = now_s
        about = _encode(
            {
                "message": str(error),
                "budget": error.budget,
                "unit": error.unit,
                "spent": error.spent,
                "limit": error.limit,
            }
        )
        args = lua.MarkArgs(field, about, _MARK_MS, again_ms)
        with suppress(RedisError, OSError):
            await run_together(self._redis, [lua.mark(lua.MarkKeys(key), args) for key in keys])

    def _everywhere(self) -> list[str]:
        """Return the key in each shard that takes messages."""
        return [shard_keys(n, self._prefix).exhausted for n in range(max(self._layout.homes))]

    @contextmanager
    def committing(self, calls: Iterable[CallEntry]) -> Generator[None]:
        """Count these calls until a reading that began behind the block has them."""
        part = _Part(by_tenant(calls))
        if not part.spent or not self._file.budgets.has_days:
            yield
            return
        self._added.append(part)
        self._change({}, part.spent)
        try:
            yield
        except BaseException:
            self._drop(part)
            raise
        part.safe_at_s = time.monotonic()
