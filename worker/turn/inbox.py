"""What is known to wait in a conversation's inbox while one attempt runs."""

import asyncio
from collections.abc import Sequence

from turnline.worker.effects import Entry
from turnline.worker.lease import Lease
from turnline.worker.turn.ports import Store


class Inbox:
    """Entries of one inbox, oldest first: those loaded, and what was read behind them."""

    def __init__(self, store: Store, lease: Lease, entries: Sequence[Entry]) -> None:
        """Begin with what was loaded, one entry or more."""
        self._store = store
        self._lease = lease
        self.entries = list(entries)

    @property
    def first(self) -> str:
        """The id of the oldest entry: whose turn it is."""
        return self.entries[0].entry_id

    @property
    def last(self) -> str:
        """The id of the newest entry that was read."""
        return self.entries[-1].entry_id

    async def more(self) -> list[Entry]:
        """Return what came in since.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        more = await self._store.more(self._lease, self.last)
        self.entries.extend(more)
        return more

    async def read_all(self) -> None:
        """Read until there is nothing more.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        while await self.more():
            pass

    async def wait_for_more(self, timeout_s: float) -> list[Entry]:
        """Return what comes in next; nothing after so many seconds in which nothing came.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        inbox_changed = self._lease.inbox_changed
        while True:
            inbox_changed.clear()
            if more := await self.more():
                return more
            try:
                await asyncio.wait_for(inbox_changed.wait(), timeout_s)
            except TimeoutError:
                return []

    def pending_control(self, action: str) -> Entry | None:
        """Return the latest entry known that asks this of the turn of the first entry."""
        first = self.first
        return next((it for it in reversed(self.entries) if it.control_for(first) == action), None)
