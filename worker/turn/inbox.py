"""What is known to wait in a conversation's inbox while one attempt runs."""

from collections.abc import Sequence
from typing import Protocol

from turnline.worker.effects import Entry
from turnline.worker.lease import Lease


class InboxReader(Protocol):
    """Where more of an inbox comes from."""

    async def more(self, lease: Lease, after: str) -> list[Entry]:
        """Return what came in behind the entry `after`."""
        ...


class Inbox:
    """Entries of one inbox, oldest first: those loaded, and what was seen to follow them."""

    def __init__(self, reader: InboxReader, lease: Lease, entries: Sequence[Entry]) -> None:
        """Begin with what was loaded, one entry or more."""
        self._reader = reader
        self._lease = lease
        self.entries = list(entries)

    @property
    def head(self) -> str:
        """The first entry: whose turn it is."""
        return self.entries[0].entry_id

    @property
    def last(self) -> str:
        """The last entry that was seen."""
        return self.entries[-1].entry_id

    async def more(self) -> list[Entry]:
        """Return what came in since.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        more = await self._reader.more(self._lease, self.last)
        self.entries.extend(more)
        return more

    async def see_all(self) -> None:
        """Look until there is nothing more.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        while await self.more():
            pass

    def acting(self, act: str) -> Entry | None:
        """Return the known entry that asks this of the turn at the head, the latest of several."""
        head = self.head
        return next((it for it in reversed(self.entries) if it.control_for(head) == act), None)
