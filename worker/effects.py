"""What a conversation's keys hold, as the driver sees it, and what one commit changes."""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import msgspec

from turnline.contracts.conversation import CallEntry, ConversationSettings
from turnline.contracts.errors import InvalidMessage
from turnline.contracts.messages import Inbound, decode
from turnline.contracts.replies import AnyEvent, TurnRecord

_STREAM_ID = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")


class Entry:
    """One accepted message in the inbox, decoded once: when it is first asked for."""

    def __init__(self, entry_id: str, fields: dict[bytes, bytes]) -> None:
        """Hold an entry of the stream.

        Args:
            entry_id: Stream id; its first part is when it was accepted, ms, by Redis' clock.
            fields: As they were written.
        """
        self.entry_id = entry_id
        self.fields = fields

    @cached_property
    def accepted_at_ms(self) -> int:
        """When it was accepted, ms since the Unix epoch, by Redis' clock."""
        return int(self.entry_id.partition("-")[0])

    @cached_property
    def _decoded(self) -> tuple[Inbound | None, str]:
        try:
            return decode(self.data), ""
        except InvalidMessage as error:
            return None, str(error)

    @property
    def message(self) -> Inbound | None:
        """What was sent; None if it breaks the contract."""
        return self._decoded[0]

    @property
    def fault(self) -> str:
        """How the message breaks the contract; empty if it does not."""
        return self._decoded[1]

    @property
    def data(self) -> bytes:
        """The message, JSON; whatever was written if another program wrote it."""
        return self.fields.get(b"m", b"")

    @property
    def turn_id(self) -> str | None:
        """The turn id it was accepted under; None if it did not come in by `submit`."""
        value = self.fields.get(b"t")
        return value.decode("utf-8", "replace") if value else None

    @property
    def after(self) -> str:
        """Cursor in the event stream at acceptance."""
        value = self.fields.get(b"a", b"").decode("utf-8", "replace")
        return value if _STREAM_ID.fullmatch(value) else "0-0"

    @property
    def digest(self) -> str:
        """Fingerprint of the content."""
        return self.fields.get(b"d", b"").decode("utf-8", "replace")

    def control_for(self, entry_id: str) -> str:
        """Return `interrupt` or `rollback` if that is asked of the entry named, else ''."""
        if self.fields.get(b"on") != entry_id.encode():
            return ""
        return self.fields.get(b"act", b"").decode("utf-8", "replace")


class ConversationSnapshot(NamedTuple):
    """A conversation at the beginning of an attempt."""

    attempt: int
    """1 for the first attempt at the first message of the inbox; 0 with an empty inbox."""
    crashes: int
    """Earlier attempts at it that ended without a word."""
    settings: ConversationSettings
    messages: list[bytes]
    """Committed context (n messages, JSON), oldest first. Shared with the cache: do not change."""
    steps: list[bytes]
    """What earlier attempts left; see `turnline.worker.turn.checkpoints`."""
    entries: list[Entry]
    since_ms: int
    """When the first attempt at the first message began, ms, Redis' clock."""
    now_ms: int
    """Redis' clock."""
    reasoning_bytes: int = 0
    """Bytes of these messages that are `reply_items`."""


class Copy(NamedTuple):
    """An entry for a stream shared by the shard's conversations."""

    stream: str
    fields: dict[str, str | bytes | int]


class Effects(msgspec.Struct, kw_only=True):
    """All that changes when a turn takes effect: written together or not at all."""

    turn_id: str
    """Whose record tells whether this was committed before."""
    entries: Sequence[str] = ()
    """Inbox entries that are used up."""
    messages: Sequence[bytes] = ()
    """Appended to the context (or replacing it)."""
    rewrite: bool = False
    reasoning_bytes: int = 0
    """Bytes of these messages that are `reply_items`."""
    settings: ConversationSettings | None = None
    calls: Sequence[CallEntry] = ()
    turns: int = 0
    """Added to the number of turns in the totals."""
    events: Sequence[AnyEvent] = ()
    records: Sequence[tuple[str, TurnRecord]] = ()
    copies: Sequence[Copy] = ()
    at_ms: int = 0
    """When, Redis' clock, ms: on that day (UTC) the calls are entered in what is spent."""
    next_attempt: int = 1
    """Number of the attempt at what waits next, where the lease is kept."""
    listed: str = ""
    """What the index of conversations says from then on; see `turnline.contracts.index_lines`."""


class Committed(NamedTuple):
    """What a commit left behind."""

    outcome: Literal["committed", "released", "duplicate"]
    length: int
    """Messages in the context now."""
    entries: list[Entry]
    """What waits next, where the lease is kept."""
    now_ms: int
    """Redis' clock."""
