"""A lease: the right to run one conversation, as its holder sees it."""

import asyncio
from collections.abc import Callable
from typing import Any

from turnline.contracts.keys import ConversationKeys, conversation_keys


class Lease:
    """One claim of one conversation. What the server says counts; this is only what we know."""

    __slots__ = (
        "conversation_id",
        "early",
        "keys",
        "lost",
        "news",
        "on_news",
        "released",
        "settling",
        "value",
    )

    def __init__(self, tag: str, conversation_id: str, value: str) -> None:
        """Hold the conversation under `value`: `<fencing token> <worker id>`."""
        self.conversation_id = conversation_id
        self.keys: ConversationKeys = conversation_keys(tag, conversation_id)
        self.value = value
        self.news = asyncio.Event()
        """Set when something came into the inbox meanwhile."""
        self.on_news: Callable[[], None] | None = None
        """Called at the same moment, where waiting for the event would come too late."""
        self.lost = False
        """The server said that somebody else holds the conversation now, or nobody."""
        self.settling = False
        """A script is on its way that may give the lease up: its own answer tells what became of
        it, and a heartbeat that misses the lease meanwhile says nothing."""
        self.early: Any = None
        """A load that was sent right behind the claim, as the store that sent it understands it."""
        self.released = False
        """Given up by a commit; there is nothing left to release."""

    def tell(self) -> None:
        """Say that something came into the inbox."""
        self.news.set()
        if self.on_news is not None:
            self.on_news()
