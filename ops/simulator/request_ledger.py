"""The record of every request that was served: what was asked, what was sent, where it ended."""

import zlib
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec
from msgspec import Raw

from turnline.ops.simulator.model.usage import Usage

Outcome = Literal["open", "whole", "cut", "error"]


class Continuity(msgspec.Struct, kw_only=True):
    """How a request to `/v1/responses` goes on from those before it in its conversation.

    Conversations are told apart by the cache key, and the model's family.
    """

    previous_seq: int | None = None
    """The request that this one goes on from. None: it is the first, or has no key."""
    prefix_kept: bool = True
    """Whether all of the previous input is there again, byte by byte, before anything new."""
    first_difference: int | None = None
    """Offset of the first byte of the `input` array that is another one. None: there is none."""
    head_kept: bool = True
    """Whether the tools are the same, which the cache has before the input."""
    reply_kept: bool = True
    """Whether all items of the previous response follow the previous input, whole and in order.

    Ids, status and annotations may be left out. True as well if the response did not end well, or
    was told with a fault: nobody knows then what the client has of it.
    """
    lost_items: list[int] = []
    """Output indexes of items of the previous response that are missing, changed or moved."""
    lost_reasoning: int = 0
    """Reasoning items of the previous response or of the present turn's that are so."""
    tool_rounds: int = 0
    """Rounds of tool results since the user spoke last."""
    punished: bool = False
    """Whether the model does not reason because reasoning of this turn is lost."""
    cached_share: float = 0.0
    """Part of the prompt that was cached."""
    unreadable_reasoning: int = 0
    """Reasoning items without sealed content that no stored response has: they count nothing."""


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
    key: str = ""
    """Tells API keys apart: the CRC-32 of this one."""
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
    response_id: str | None = None
    """Id of the answer, for `/v1/responses`."""
    continuity: Continuity | None = None
    """Whether it keeps what was said before, for `/v1/responses`."""
    server_tool_calls: int = 0
    """Calls of tools of the server that were made and paid."""
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
    server_tool_calls: int = 0
    prefix_breaks: int = 0
    """Requests to `/v1/responses` that changed what the cache had of their conversation."""
    reply_breaks: int = 0
    """Requests to `/v1/responses` without all items of the response before."""
    lost_reasoning: int = 0
    """Reasoning items that did not come back as they were given."""
    punished: int = 0
    """Answers without reasoning because reasoning of their turn was lost."""

    def add(self, entry: Entry) -> None:
        """Count one entry."""
        self.requests += 1
        count = "errors" if entry.outcome == "error" else entry.outcome
        setattr(self, count, getattr(self, count) + 1)
        self.tokens_streamed += entry.tokens_streamed
        self._add_continuity(entry.continuity)
        used = entry.usage
        if used is None:
            return
        if not entry.usage_reported:
            self.unreported += 1
            return
        self.server_tool_calls += entry.server_tool_calls
        self.prompt_tokens += used.prompt_tokens
        self.completion_tokens += used.completion_tokens
        self.reasoning_tokens += used.completion_tokens_details.reasoning_tokens
        self.cached_tokens += used.prompt_tokens_details.cached_tokens
        self.total_tokens += used.total_tokens
        ticks = used.cost_in_usd_ticks
        self.cost_in_usd_ticks += ticks if isinstance(ticks, int) else 0

    def _add_continuity(self, found: Continuity | None) -> None:
        if found is None:
            return
        self.prefix_breaks += not (found.prefix_kept and found.head_kept)
        self.reply_breaks += not found.reply_kept
        self.lost_reasoning += found.lost_reasoning
        self.punished += found.punished


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
        key = headers.get("authorization", "").partition(" ")[2]
        entry = Entry(
            seq=self._seq,
            received_at_ms=received_at_ms,
            method=method,
            path=path,
            headers=kept,
            key=f"{zlib.crc32(key.encode()):08x}" if key else "",
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
