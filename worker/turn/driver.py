"""Drives one conversation: inbox -> user aggregator -> model -> assistant aggregator -> commit."""

import logging
import time

from turnline.contracts.keys import ShardKeys
from turnline.contracts.replies import TurnFailed
from turnline.worker.effects import ConversationSnapshot, Effects
from turnline.worker.errors import (
    LeaseLost,
    StoreUnavailable,
)
from turnline.worker.lease import Lease
from turnline.worker.outcome import Done, Outcome, Parked
from turnline.worker.turn.attempt import TurnRun
from turnline.worker.turn.commit import copies_of
from turnline.worker.turn.gathering import ConsumedEntry, message_of, record_of, trace_of
from turnline.worker.turn.ledger import Ledger
from turnline.worker.turn.observer import Observer, Unobserved
from turnline.worker.turn.plan import Planner
from turnline.worker.turn.ports import Breakers, DriverSettings, Parts, ServiceFactory, Store

log = logging.getLogger("turnline.turns")


class ConversationDriver:
    """Runs leased conversations of one shard; holds no state of any of them."""

    def __init__(  # noqa: PLR0917  the parts of every driver, in the order of their use
        self,
        store: Store,
        services: ServiceFactory,
        breakers: Breakers,
        shard: ShardKeys,
        settings: DriverSettings,
        observer: Observer | None = None,
        *,
        planner: Planner | None = None,
    ) -> None:
        """Use these parts for every conversation."""
        self._parts = Parts(
            store,
            services,
            breakers,
            shard,
            settings,
            observer or Unobserved(),
            planner or Planner(),
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
        if lease.prefetched is None:  # else news may be of what that load did not see
            lease.inbox_changed.clear()
        began_at_s = time.monotonic()
        loaded = await self._parts.store.load(lease)
        turns = 0
        while loaded.entries:
            turns += 1
            if loaded.crashes > self._parts.settings.max_crashes:
                await self._give_up(lease, loaded, began_at_s)
                loaded = await self._parts.store.load(lease)
                continue
            await self._parts.planner.refresh()
            run = TurnRun(self._parts, lease, loaded, began_at_s)
            outcome = await run.run(go_on=turns < self._parts.settings.turn_quota)
            if isinstance(outcome, Parked):
                return outcome
            if lease.released:
                return Done()
            following = run.following
            began_at_s = time.monotonic()
            loaded = following if following is not None else await self._parts.store.load(lease)
        return Done()

    async def _give_up(self, lease: Lease, loaded: ConversationSnapshot, began_at_s: float) -> None:
        """End the message at the head unread: whatever looks at it, even to fail it, goes down."""
        seen = self._parts.observer.attempt(
            lease, loaded, began_at_s=began_at_s, loaded_at_s=time.monotonic()
        )
        entry = loaded.entries[0]
        turn_id = entry.turn_id or entry.entry_id
        message = message_of(entry)
        trace = trace_of(lease.conversation_id, turn_id, entry, message, since_ms=loaded.since_ms)
        ending = TurnFailed(
            conversation_id=lease.conversation_id,
            turn_id=turn_id,
            attempt=loaded.attempt,
            trace_id=trace.trace_id,
            code="crashed",
            message=f"{loaded.crashes} attempts ended without a word",
        )
        used = ConsumedEntry(entry, turn_id, message, ending, trace)
        record = record_of(
            used,
            ending,
            attempts=loaded.attempt,
            finished_at_ms=loaded.now_ms,
            worker=self._parts.settings.worker_name,
        )
        copies = copies_of(
            used,
            ending,
            failure=ending,
            attempts=loaded.attempt,
            conversation_id=lease.conversation_id,
            shard=self._parts.shard,
            now_ms=loaded.now_ms,
        )
        ledger = Ledger(loaded)
        ledger.roll_back()
        effects = Effects(
            turn_id=turn_id,
            entries=[entry.entry_id],
            calls=ledger.entries,
            events=[ending],
            records=[(turn_id, record)],
            copies=copies,
        )
        seen.collected([used], used)
        seen.committing()
        committed = await self._parts.store.commit(lease, effects, go_on=True)
        seen.committed(effects, committed.outcome)
        seen.ended(Done())
        log.warning(
            "turn.failed",
            extra={
                "conversation_id": lease.conversation_id,
                "turn_id": turn_id,
                "trace_id": trace.trace_id,
                "attempt": loaded.attempt,
                "code": ending.code,
            },
        )
