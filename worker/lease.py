"""A lease: the right to run one conversation, as its holder sees it."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from turnline.contracts.keys import ConversationKeys, conversation_keys
from turnline.worker.states import LeaseEvent, LeaseState, advance


class LeaseSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Times of the lease table, seconds."""

    lease_s: float = 1.8
    """A killed worker's conversations are due again this long after its last heartbeat."""
    heartbeat_s: float = 0.45
    stall_s: float = 15.0
    """The heartbeat stops when the event loop has not run for so long."""
    poll_s: float = 0.5
    """Longest sleep of an idle worker. If a wake-up is lost, a turn starts this much later."""
    drain_s: float = 10.0
    """Grace period for running turns on shutdown; then they are handed over."""


class Lease:
    """One claim of one conversation. What the server says counts; this is only what we know."""

    __slots__ = (
        "conversation_id",
        "inbox_changed",
        "keys",
        "on_inbox_changed",
        "prefetched",
        "state",
        "value",
    )

    def __init__(self, tag: str, conversation_id: str, value: str) -> None:
        """Hold the conversation under `value`: `<fencing token> <worker id>`."""
        self.conversation_id = conversation_id
        self.keys: ConversationKeys = conversation_keys(tag, conversation_id)
        self.value = value
        self.inbox_changed = asyncio.Event()
        """Set when something came into the inbox meanwhile."""
        self.on_inbox_changed: Callable[[], None] | None = None
        """Called at the same moment, where waiting for the event would come too late."""
        self.state = LeaseState.HELD
        """Changes only by `advance`."""
        self.prefetched: Any = None
        """A load that was sent right after the claim; only the store that sent it reads it."""

    @property
    def lost(self) -> bool:
        """Whether the server said that somebody else holds the conversation now, or nobody."""
        return self.state is LeaseState.LOST

    @property
    def released(self) -> bool:
        """Whether there is nothing left to release."""
        return self.state is LeaseState.RELEASED

    def advance(self, event: LeaseEvent) -> None:
        """Note what was done with the lease, or what the server said.

        Raises:
            IllegalTransition: The table of states does not have it; nothing changes.
        """
        self.state = advance(self.state, event)

    def notify(self) -> None:
        """Say that something came into the inbox."""
        self.inbox_changed.set()
        if self.on_inbox_changed is not None:
            self.on_inbox_changed()
