"""The record of every request that was served: what was asked, what was sent, where it ended."""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec
from msgspec import Raw

from turnline.ops.simulator.model.usage import Usage

Outcome = Literal["open", "whole", "cut", "error"]


class Entry(msgspec.Struct, kw_only=True):
    """One request and its response; changes until the outcome is no longer `open`."""

    seq: int
    """Number of the request, from 1."""
    received_at_ms: float
    """When its last byte had arrived, ms since the Unix epoch."""
    method: str
    path: str
    headers: Mapping[str, str]
    """Lower case; the authorization is redacted."""
    conversation_id: str | None = None
    """`x-grok-conv-id`, or else the body's `prompt_cache_key`."""
    body: Raw | str | None = None
    """As received. A string if it was not JSON, null if it was not kept."""
    body_bytes: int = 0
    model: str | None = None
    """Resolved name of the model."""
    stream: bool = False
    scenarios: list[str] = []
    """Names of the scenarios that were applied."""
    status: int | None = None
    outcome: Outcome = "open"
    """`whole`: all of the answer was written. `error`: no answer was meant to be given."""
    cut_by: Literal["client", "server"] | None = None
    cut_at: str | None = None
    """Position at which a cut response ended, e.g. `tokens:5`."""
    tokens_streamed: int = 0
    """Tokens, visible and reasoning, that were written."""
    finished: bool = False
    """Whether a finish reason was written."""
    usage: Usage | None = None
    """Usage that was reported, or would have been had the answer been whole."""
    usage_reported: bool = False
    """Whether that usage was written."""
    first_byte_ms: float | None = None
    """From receipt to the first byte of the response."""
    duration_ms: float | None = None
    """From receipt to the end of the response."""
    bytes_sent: int = 0
    disconnected_at_ms: float | None = None
    """When the client went before the response was over, ms since the Unix epoch."""


class Totals(msgspec.Struct, kw_only=True):
    """Sums over entries. Tokens and cost are those that were reported to the client."""

    requests: int = 0
    whole: int = 0
    cut: int = 0
    errors: int = 0
    open: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    total_tokens: int = 0
    cost_in_usd_ticks: int = 0
    tokens_streamed: int = 0
    unreported: int = 0
    """Answers that were begun and whose usage was never written."""

    def add(self, entry: Entry) -> None:
        """Count one entry."""
        self.requests += 1
        count = "errors" if entry.outcome == "error" else entry.outcome
        setattr(self, count, getattr(self, count) + 1)
        self.tokens_streamed += entry.tokens_streamed
        used = entry.usage
        if used is None:
            return
        if not entry.usage_reported:
            self.unreported += 1
            return
        self.prompt_tokens += used.prompt_tokens
        self.completion_tokens += used.completion_tokens
        self.reasoning_tokens += used.completion_tokens_details.reasoning_tokens
        self.cached_tokens += used.prompt_tokens_details.cached_tokens
        self.total_tokens += used.total_tokens
        ticks = used.cost_in_usd_ticks
        self.cost_in_usd_ticks += ticks if isinstance(ticks, int) else 0


class Summary(msgspec.Struct, kw_only=True):
    """Totals overall and by conversation, of the entries that are kept."""

    overall: Totals
    conversations: dict[str, Totals]
    dropped_entries: int
    dropped_bodies: int


class Ledger:
    """Keeps the newest entries within limits of number and bytes."""

    def __init__(self, max_entries: int, max_bytes: int, max_body_bytes: int) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._max_body_bytes = max_body_bytes
        self._entries: deque[Entry] = deque()
        self._with_body: deque[Entry] = deque()
        self._bytes = 0
        self._seq = 0
        self.dropped_entries = 0
        """Entries that had to go."""
        self.dropped_bodies = 0
        """Bodies that had to go or were too large to be kept."""

    def __len__(self) -> int:
        return len(self._entries)

    def open(
        self, *, received_at_ms: float, method: str, path: str, headers: Mapping[str, str]
    ) -> Entry:
        """Begin an entry."""
        self._seq += 1
        kept = {
            name: "<redacted>" if name == "authorization" else value
            for name, value in headers.items()
        }
        entry = Entry(
            seq=self._seq, received_at_ms=received_at_ms, method=method, path=path, headers=kept
        )
        self._entries.append(entry)
        if self._max_entries and len(self._entries) > self._max_entries:
            self._entries.popleft()
            self.dropped_entries += 1
        return entry

    def keep_body(self, entry: Entry, body: bytes, *, is_json: bool) -> None:
        """Keep a request's body if there is room; older bodies go first."""
        entry.body_bytes = len(body)
        if self._max_body_bytes and len(body) > self._max_body_bytes:
            self.dropped_bodies += 1
            return
        entry.body = Raw(body) if is_json else body.decode("utf-8", "replace")
        self._with_body.append(entry)
        self._bytes += len(body)
        while self._max_bytes and self._bytes > self._max_bytes:
            oldest = self._with_body.popleft()
            self._bytes -= oldest.body_bytes
            oldest.body = None
            self.dropped_bodies += 1

    def entries(self, *, conversation: str | None = None, since: int = 0) -> list[Entry]:
        """Entries in order.

        Args:
            conversation: Only those of this conversation.
            since: Only those with a higher sequence number.
        """
        return [
            entry
            for entry in self._entries
            if entry.seq > since and (conversation is None or entry.conversation_id == conversation)
        ]

    def summary(self, entries: Iterable[Entry] | None = None) -> Summary:
        """Add entries up, all of them by default."""
        overall, conversations = Totals(), dict[str, Totals]()
        for entry in self._entries if entries is None else entries:
            overall.add(entry)
            conversations.setdefault(entry.conversation_id or "", Totals()).add(entry)
        return Summary(
            overall=overall,
            conversations=conversations,
            dropped_entries=self.dropped_entries,
            dropped_bodies=self.dropped_bodies,
        )

    def clear(self) -> None:
        """Forget all entries; sequence numbers go on."""
        self._entries.clear()
        self._with_body.clear()
        self._bytes = self.dropped_entries = self.dropped_bodies = 0
