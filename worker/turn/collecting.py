"""Takes entries from an inbox into a turn, until an answer is wanted."""

import asyncio
from collections import deque

from turnline.worker.effects import Entry
from turnline.worker.lease import Lease
from turnline.worker.pipeline.aggregators import LLMUserContextAggregator
from turnline.worker.turn.gathering import Turn
from turnline.worker.turn.inbox import Inbox


class Collector:
    """Collects one turn."""

    def __init__(
        self,
        inbox: Inbox,
        turn: Turn,
        user: LLMUserContextAggregator,
        lease: Lease,
        *,
        aggregation_timeout_s: float,
        speech_timeout_s: float,
    ) -> None:
        """Collect from `inbox` into `turn`.

        Args:
            inbox: Looked at again while more may follow.
            turn: Takes the entries.
            user: The turn's aggregator, which knows whether the user is speaking.
            lease: Tells of news.
            aggregation_timeout_s: Silence after which a message in pieces is taken to be whole.
            speech_timeout_s: How long to wait in place for a user who is speaking.
        """
        self._inbox = inbox
        self._turn = turn
        self._user = user
        self._lease = lease
        self._aggregation_timeout_s = aggregation_timeout_s
        self._speech_timeout_s = speech_timeout_s

    async def collect(self) -> bool:
        """Take entries until an answer is wanted, or only changes are left to commit.

        Returns:
            Whether that is so; False if the user goes on speaking, for longer than is waited here.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        waiting = deque(self._inbox.entries)
        joined = self._inbox.acting("rollback")
        turn = self._turn
        held_back: list[Entry] = []
        while True:
            while waiting and not turn.wants_answer:
                if turn.used and not turn.is_open and turn.would_answer(waiting[0]):
                    return True  # what only changes the conversation takes effect first
                entry = waiting.popleft()
                if turn.is_open and not turn.would_join(entry):
                    held_back.append(entry)  # behind this turn, unless the turn goes on after it
                    continue
                for earlier in held_back:
                    await turn.take(earlier)
                held_back.clear()
                if joined is not None and entry.entry_id == joined.entry_id:
                    joined = None
                await turn.take(entry, joins_next=joined is not None)
            if turn.wants_answer or not turn.is_open:
                return True
            more = await self._wait_for_more()
            if more is None:
                return False
            waiting.extend(more)

    async def collect_again(self, last_entry: str) -> None:
        """Take what an earlier attempt took: what came since belongs to another turn.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        inbox, turn = self._inbox, self._turn
        while all(entry.entry_id != last_entry for entry in inbox.entries) and await inbox.more():
            pass
        joined = inbox.acting("rollback")
        for entry in inbox.entries:
            if joined is not None and entry.entry_id == joined.entry_id:
                joined = None
            await turn.take(entry, joins_next=joined is not None)
            if entry.entry_id == last_entry:
                break
        if not turn.wants_answer:
            await turn.close()

    async def _wait_for_more(self) -> list[Entry] | None:
        """Return what came next; nothing once the user is taken to be done; None: keep waiting."""
        lease, user = self._lease, self._user
        while True:
            lease.inbox_changed.clear()
            if more := await self._inbox.more():
                return more
            speaking = user.user_speaking
            timeout_s = self._speech_timeout_s if speaking else self._aggregation_timeout_s
            try:
                await asyncio.wait_for(lease.inbox_changed.wait(), timeout_s)
            except TimeoutError:
                if user.user_speaking:
                    return None
                await self._turn.close()
                return []
