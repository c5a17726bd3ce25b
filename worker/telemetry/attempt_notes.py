"""Notes of an attempt, taken while it runs, and the clock by which its spans are dated."""

import random
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from turnline.contracts.conversation import ConversationSettings
from turnline.contracts.messages import ContextAppend, UserMessage
from turnline.worker.effects import ConversationSnapshot, Effects
from turnline.worker.lease import Lease
from turnline.worker.pipeline.calls import LLMCall
from turnline.worker.telemetry.captured_content import CapturedContent
from turnline.worker.telemetry.lost_attempts import just_lost
from turnline.worker.turn.gathering import ConsumedEntry, trace_of


def new_span_id() -> str:
    """Return a random id for a span."""
    return f"{random.getrandbits(64) or 1:016x}"


class Part(NamedTuple):
    """What an attempt did for one turn. A rollback ends it: what follows is another turn's."""

    owner: ConsumedEntry
    began_at_s: float
    ended_at_s: float
    messages: int
    """Inbox entries that were aggregated."""
    collected_at_s: float
    calls: slice
    tools: slice
    is_first: bool


class CallNote(NamedTuple):
    """A model call, and what it was asked with."""

    span_id: str
    call: LLMCall
    settings: ConversationSettings


class ToolNote:
    """A function call; without an end while it runs."""

    def __init__(self, name: str, arguments: Any) -> None:
        """Begin now."""
        self.name = name
        self.arguments = arguments
        self.began_at_s = time.monotonic()
        self.ended_at_s: float | None = None
        self.result: Any = None
        self.failure: str | None = None


class CommitNote(NamedTuple):
    """A commit, and how it was answered."""

    began_at_s: float
    ended_at_s: float
    outcome: str


class AttemptNotes:
    """All that was noted of one attempt. Clocks are turned into Redis', which all workers share."""

    def __init__(
        self,
        lease: Lease,
        loaded: ConversationSnapshot,
        began_at_s: float,
        loaded_at_s: float,
        content: CapturedContent | None,
    ) -> None:
        """Begin; see `turnline.worker.turn.observer.Observer`.

        Args:
            lease: Under which the attempt is made.
            loaded: The conversation as it begins.
            began_at_s: When it was asked for, on the clock `time.monotonic`.
            loaded_at_s: When it was there.
            content: Where to keep texts, if they may be kept.
        """
        self.lease = lease
        self.loaded = loaded
        self.content = content
        self.began_at_s = began_at_s
        self.ready_at_s = time.monotonic()
        self._offset_ns = loaded.now_ms * 1_000_000 - int(loaded_at_s * 1e9)
        if loaded.entries:  # Redis gives whole ms: an attempt could begin before its message
            accepted_ns = loaded.entries[0].accepted_at_ms * 1_000_000
            self._offset_ns += max(0, accepted_ns - self.ns(began_at_s))
        self.lost = just_lost(loaded)
        self.used: Sequence[ConsumedEntry] = ()
        self.owner: ConsumedEntry | None = None
        self._collected_at_s = self.ready_at_s
        self._messages = 0
        self.undone: list[Part] = []
        self.calls: list[CallNote] = []
        self.tools: dict[str, ToolNote] = {}
        self.commits: list[CommitNote] = []
        self.effects: Effects | None = None
        self.retry: tuple[str, float] | None = None
        """Why another attempt follows, and in how many seconds."""

    @property
    def retry_code(self) -> str:
        """Why another attempt follows; empty if none does."""
        return self.retry[0] if self.retry is not None else ""

    def collected(self, used: Sequence[ConsumedEntry], owner: ConsumedEntry) -> None:
        """The messages of a turn are known; where they are another turn's, the first is undone."""
        now_s = time.monotonic()
        if self.owner is not None and self.owner.turn_id != owner.turn_id:
            ended_at_s = max((it.call.finished_at or now_s for it in self.calls), default=now_s)
            self.undone.append(self.part(self.owner, min(ended_at_s, now_s)))
        self._collected_at_s, self._messages = now_s, len(used)  # more may be used up later
        self.used, self.owner = used, owner

    def part(self, owner: ConsumedEntry, ended_at_s: float) -> Part:
        """Return what was done since the last rollback."""
        before = self.undone[-1] if self.undone else None
        return Part(
            owner,
            self.began_at_s if before is None else before.ended_at_s,
            ended_at_s,
            self._messages,
            self._collected_at_s,
            slice(0 if before is None else before.calls.stop, len(self.calls)),
            slice(0 if before is None else before.tools.stop, len(self.tools)),
            before is None,
        )

    def ns(self, clock_s: float) -> int:
        """Convert `time.monotonic` to ns since the Unix epoch by Redis' clock."""
        return int(clock_s * 1e9) + self._offset_ns

    def first_entry(self) -> ConsumedEntry:
        """Return the first inbox entry as it would be used, where nothing was collected yet."""
        entry = self.loaded.entries[0]
        turn_id, message = entry.turn_id or entry.entry_id, entry.message
        conversation_id, since_ms = self.lease.conversation_id, self.loaded.since_ms
        trace = trace_of(conversation_id, turn_id, entry, message, since_ms=since_ms)
        return ConsumedEntry(entry, turn_id, message, None, trace)

    def agent(self, owner: ConsumedEntry) -> str | None:
        """Return the agent that a message or its conversation names."""
        message = owner.message
        asked = message.agent if isinstance(message, UserMessage | ContextAppend) else None
        return asked or self.loaded.settings.agent

    def first_text_s(self) -> float | None:
        """Return the time from acceptance to the first text of this attempt, seconds."""
        if self.owner is None:
            return None
        undone = self.undone[-1].calls.stop if self.undone else 0
        for _, call, _ in self.calls[undone:]:
            if call.first_text_at is not None:
                accepted_ns = self.owner.entry.accepted_at_ms * 1_000_000
                return max(0.0, (self.ns(call.first_text_at) - accepted_ns) / 1e9)
        return None
