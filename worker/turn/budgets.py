"""Budgets: limits in money and tokens from a file, and what a turn is held to before each call."""

import logging
import math
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Annotated, Final, Literal, Protocol

import msgspec
from msgspec import Meta

from turnline.contracts.conversation import CallEntry, Id, Usage
from turnline.worker.errors import Terminal
from turnline.worker.files import FileChanges, UnusableFile, read_text
from turnline.worker.lease import Lease
from turnline.worker.provider_limits import ProviderLimits
from turnline.worker.turn.attempt_log import AttemptLog

log = logging.getLogger("turnline.budgets")

TICKS: Final = 10_000_000_000
"""Of a US dollar."""
_MOST_BYTES: Final = 1024 * 1024
Owner = Literal["turn", "conversation", "tenant", "fleet"]
Unit = Literal["usd", "tokens"]
_NAMES: Final[Mapping[Owner, str]] = {
    "turn": "this turn",
    "conversation": "this conversation",
    "tenant": "this tenant for the day",
    "fleet": "the fleet for the day",
}


rate_of = lru_cache(1024)(ProviderLimits.parse)
"""Reads words such as `60rpm+100_000tpm`; the same limits for the same words."""


class Limit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much may be spent; what is left out is not limited."""

    usd: Annotated[float, Meta(gt=0, le=100_000_000)] | None = None
    """US dollars."""
    tokens: Annotated[int, Meta(gt=0, le=10**15)] | None = None

    def __post_init__(self) -> None:
        if self.usd is None and self.tokens is None:
            raise ValueError("it limits nothing: usd or tokens")


class Daily(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be spent in a time."""

    day: Limit
    """From midnight to midnight, UTC."""


class Quota(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a tenant may use; what is left out is not limited."""

    day: Limit | None = None
    """From midnight to midnight, UTC."""
    concurrency: Annotated[int, Meta(ge=1, le=1_000)] | None = None
    """Conversations whose turns run at once."""
    waiting: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    """Conversations that may wait to begin."""
    rate: str | None = None
    """Calls of models, and their tokens, such as `60rpm+100_000tpm`."""

    def __post_init__(self) -> None:
        if self.rate is not None:
            rate_of(self.rate)
        every = (self.day, self.concurrency, self.waiting, self.rate)
        if type(self) is Quota and not any(every):
            raise ValueError("it limits nothing: day, concurrency, waiting or rate")


class Tenant(Quota, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a tenant gets."""

    weight: Annotated[float, Meta(ge=0.01, le=1_000)] = 1
    """Its part of the workers, while tenants wait."""


class Budgets(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tables of a budgets file."""

    turn: Limit | None = None
    conversation: Limit | None = None
    """As long as it is kept."""
    tenant: Quota | None = None
    """Each one, where it has no limit of its own; turns without a tenant are those of one, too."""
    tenants: dict[Id, Tenant] = {}
    fleet: Daily | None = None
    """All together."""

    @property
    def has_days(self) -> bool:
        """Whether it matters what was spent today."""
        every = (self.tenant, *self.tenants.values())
        return bool(self.fleet or any(it is not None and it.day for it in every))

    def of_tenant(self, tenant: str) -> Limit | None:
        """Return what a tenant may spend in a day."""
        for table in (self.tenants.get(tenant), self.tenant):
            if table is not None and table.day is not None:
                return table.day
        return None

    def rate_of(self, tenant: str) -> ProviderLimits | None:
        """Return what a tenant's calls may use; None if that is not limited."""
        for table in (self.tenants.get(tenant), self.tenant):
            if table is not None and table.rate is not None:
                return rate_of(table.rate)
        return None

    def weight_of(self, tenant: str) -> float:
        """Return the weight of a tenant."""
        table = self.tenants.get(tenant)
        return 1.0 if table is None else table.weight

    def concurrency(self, shards: int) -> str:
        """Return how many conversations run at once in a shard, by tenant: JSON, '' for no limits.

        Each shard has its part, rounded up; `*` is for tenants that have no limit of their own.
        """
        return self._parts("concurrency", shards)

    def waiting(self, shards: int) -> str:
        """Return how many conversations may wait to begin in a shard, in the same way."""
        return self._parts("waiting", shards)

    def _parts(self, name: Literal["concurrency", "waiting"], shards: int) -> str:
        found: dict[str, int] = {}
        for tenant, table in (("*", self.tenant), *self.tenants.items()):
            limit: int | None = getattr(table, name, None)
            if limit is not None:
                found[tenant] = math.ceil(limit / shards)
        return msgspec.json.encode(found).decode() if found else ""

    @property
    def weights(self) -> str:
        """Those that are not 1, by tenant: JSON, '' for none."""
        weights = {name: it.weight for name, it in self.tenants.items() if it.weight != 1}
        return msgspec.json.encode(weights).decode() if weights else ""


class BadBudgets(Exception):
    """The budgets file cannot be used; the text says what is wrong."""


class BudgetExceeded(Terminal):
    """What a turn, its conversation, its tenant or the fleet may spend is spent."""

    code = "budget_exceeded"

    def __init__(self, message: str, budget: Owner, unit: Unit, spent: float, limit: float) -> None:
        """Say which budget it is, in words and in numbers."""
        super().__init__(message)
        self.budget = budget
        self.unit = unit
        self.spent = spent
        self.limit = limit


def read_budgets(path: Path) -> Budgets:
    """Read a budgets file: TOML.

    Raises:
        BadBudgets: It cannot be read, or something in it is wrong.
    """
    try:
        tables = tomllib.loads(read_text(path, most_bytes=_MOST_BYTES))
        budgets = msgspec.convert(tables, Budgets)
    except UnusableFile as error:
        raise BadBudgets(f"{path}: {error}") from None
    except RecursionError:
        raise BadBudgets(f"{path}: it is nested too deeply") from None
    except msgspec.ValidationError as error:
        raise BadBudgets(f"{path}: {error}") from None
    except ValueError as error:
        raise BadBudgets(f"{path}: it is no TOML: {error}") from None
    if budgets == Budgets():
        raise BadBudgets(f"{path}: it has no budget: a table such as [turn] or [tenant.day]")
    return budgets


class BudgetsFile:
    """The budgets, read again when the file changes."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            BadBudgets: See `read_budgets`.
        """
        self._read = partial(read_budgets, path)
        self._changes = FileChanges(path)
        self._hold_to(self._read())

    def _hold_to(self, budgets: Budgets) -> None:
        self.budgets = budgets
        self.weights = budgets.weights
        """As `Budgets.weights`."""
        self.concurrency = cache(budgets.concurrency)
        """As `Budgets.concurrency`."""
        self.waiting = cache(budgets.waiting)
        """As `Budgets.waiting`."""

    async def refresh(self) -> Budgets:
        """Return the budgets; read again, in a thread, if the file changed.

        A broken one changes nothing.
        """
        try:
            budgets = await self._changes.read(self._read)
        except BadBudgets as error:
            log.error("budgets.unusable", extra={"error": str(error)})  # noqa: TRY400  told
            return self.budgets
        if budgets is not None:
            self._hold_to(budgets)
            log.info("budgets.loaded")
        return self.budgets


class Spent(msgspec.Struct, frozen=True):
    """What counts of what was spent."""

    ticks: int = 0
    """As far as a price was told."""
    tokens: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        """Add both."""
        return Spent(self.ticks + other.ticks, self.tokens + other.tokens)

    def __sub__(self, other: "Spent") -> "Spent":
        """Subtract both."""
        return Spent(self.ticks - other.ticks, self.tokens - other.tokens)


def spent_of(usage: Usage) -> Spent:
    """Return what counts of a usage; providers differ in whether the total has all tokens."""
    tokens = max(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
    return Spent(usage.cost_usd_ticks, tokens)


def by_tenant(calls: Iterable[CallEntry]) -> dict[str, Spent]:
    """Return what calls spent, by tenant."""
    sums: dict[str, Spent] = {}
    for call in calls:
        sums[call.tenant] = sums.get(call.tenant, Spent()) + spent_of(call.usage)
    return sums


class Purse(Protocol):
    """What a turn asks of what was spent; see `turnline.worker.store.purse`."""

    async def budgets(self) -> Budgets:
        """Return the budgets as they are now."""
        ...

    async def conversation(self, lease: Lease) -> Spent:
        """Return what a conversation has spent, up to its last turn.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        ...

    async def today(self, tenant: str) -> tuple[Spent, Spent]:
        """Return what a tenant, and what all of the fleet have spent today, about.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        ...

    def running(self, who: object, spent: Mapping[str, Spent]) -> None:
        """Take note of what a turn has spent so far, by tenant; nothing once it is over."""
        ...

    async def exhausted(self, lease: Lease, tenant: str, error: BudgetExceeded) -> None:
        """Have producers refused who want to spend of a budget that is used up."""
        ...


class TurnBudget:
    """Holds an attempt at a turn to the budgets."""

    def __init__(self, purse: Purse, lease: Lease, attempt_log: AttemptLog) -> None:
        """Ask for nothing yet.

        Args:
            purse: Knows what else was spent.
            lease: Of the conversation.
            attempt_log: Has the turn's calls.
        """
        self._purse = purse
        self._lease = lease
        self._log = attempt_log
        self._before: Spent | None = None
        """By the conversation's earlier turns; None: nobody has asked."""

    async def check(self) -> None:
        """See whether the model may be called once more.

        Raises:
            BudgetExceeded: Some budget is used up.
            StoreUnavailable: Redis did not answer.
        """
        try:
            await self._check()
        except BudgetExceeded as error:
            await self._purse.exhausted(self._lease, self._log.facts.payer.tenant, error)
            raise

    async def _check(self) -> None:
        budgets, facts, calls = await self._purse.budgets(), self._log.facts, self._log.calls
        self._purse.running(self, by_tenant(calls))
        _hold(budgets.turn, _sum(it for it in calls if it.turn_id == facts.turn_id), "turn")
        if budgets.conversation is not None:
            if self._before is None:
                self._before = await self._purse.conversation(self._lease)
            _hold(budgets.conversation, self._before + _sum(calls), "conversation")
        tenants, fleets = budgets.of_tenant(facts.payer.tenant), budgets.fleet
        if tenants is not None or fleets is not None:
            tenant, fleet = await self._purse.today(facts.payer.tenant)
            _hold(tenants, tenant, "tenant")
            _hold(fleets.day if fleets is not None else None, fleet, "fleet")

    def close(self) -> None:
        """Say no more of the turn: its commit does."""
        self._purse.running(self, {})


def _sum(calls: Iterable[CallEntry]) -> Spent:
    return sum((spent_of(it.usage) for it in calls), Spent())


def _hold(limit: Limit | None, spent: Spent, budget: Owner) -> None:
    """Compare what was spent with what may be.

    Raises:
        BudgetExceeded: Nothing is left.
    """
    if limit is None:
        return
    begin = f"the budget of {_NAMES[budget]} is used up"
    usd = spent.ticks / TICKS
    if limit.usd is not None and spent.ticks >= round(limit.usd * TICKS):
        said = f"{begin}: ${usd:.4f} spent, the limit is ${limit.usd:.4f}"
        raise BudgetExceeded(said, budget, "usd", usd, limit.usd)
    if limit.tokens is not None and spent.tokens >= limit.tokens:
        said = f"{begin}: {spent.tokens} tokens spent, the limit is {limit.tokens}"
        raise BudgetExceeded(said, budget, "tokens", spent.tokens, limit.tokens)
