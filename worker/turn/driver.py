"""Drives one conversation: inbox -> user aggregator -> model -> assistant aggregator -> commit."""

import time
from collections.abc import Sequence

from turnline.contracts.keys import ShardKeys
from turnline.worker.errors import LeaseLost, StoreUnavailable
from turnline.worker.lease import Lease
from turnline.worker.outcome import Done, Outcome, Parked
from turnline.worker.pool import Member, Pool
from turnline.worker.turn.attempt import Parts
from turnline.worker.turn.budgets import Purse
from turnline.worker.turn.grants import Limiter, Unlimited
from turnline.worker.turn.observer import Observer, Unobserved
from turnline.worker.turn.plan import Planner
from turnline.worker.turn.ports import Breakers, DriverSettings, Services, Store
from turnline.worker.turn.run import TurnRun


class ConversationDriver:
    """Runs leased conversations of one shard; holds no state of any of them."""

    def __init__(  # noqa: PLR0917  the parts of every driver, in the order of their use
        self,
        store: Store,
        services: Services,
        breakers: Breakers,
        shard: ShardKeys,
        settings: DriverSettings,
        observer: Observer | None = None,
        *,
        planner: Planner | None = None,
        limiters: Sequence[Limiter] | None = None,
        pool: Pool | None = None,
        purse: Purse | None = None,
    ) -> None:
        """Use these parts for every conversation."""
        pool = pool or Pool([Member()])
        self._parts = Parts(
            store,
            services,
            breakers,
            shard,
            settings,
            observer or Unobserved(),
            planner or Planner(),
            limiters or [Unlimited()] * len(pool),
            pool,
            purse,
        )

    async def run(self, lease: Lease) -> Outcome:
        """Run what waits in the inbox, turn after turn, up to the quota.

        Returns:
            How the conversation is to be left: done with for now, or waiting for something.

        Raises:
            asyncio.CancelledError: Handed over or lost; spend so far is noted if that is possible.
        """
        try:
            return await self._run(lease)
        except LeaseLost:
            return Done()
        except StoreUnavailable:
            return Parked(1_000, "backoff")

    async def _run(self, lease: Lease) -> Outcome:
        parts = self._parts
        if lease.prefetched is None:  # else news may be of what that load did not see
            lease.inbox_changed.clear()
        began_at_s = time.monotonic()
        loaded = await parts.store.load(lease)
        turns = 0
        while loaded.entries:
            turns += 1
            await parts.planner.refresh()
            run = TurnRun(parts, lease, loaded, began_at_s)
            outcome = await run.run(keep_lease=turns < parts.settings.turn_quota)
            if isinstance(outcome, Parked):
                return outcome
            if lease.released:
                return Done()
            began_at_s = time.monotonic()
            following = run.following
            loaded = following if following is not None else await parts.store.load(lease)
        return Done()
