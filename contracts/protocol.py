"""What both clients send and how they read the replies: commands and parsing, no I/O."""

import hashlib
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from redis.exceptions import OutOfMemoryError

from turnline.contracts.connection import Command
from turnline.contracts.conversation import (
    ConversationSettings,
    SettingsChange,
    Totals,
    Usage,
)
from turnline.contracts.errors import (
    ConversationBusy,
    InboxFull,
    InvalidMessage,
    QueueFull,
    QueueLate,
    Refused,
    StoreFull,
    TurnIdReused,
    TurnUnknown,
)
from turnline.contracts.job_format import conversation_job
from turnline.contracts.json_schemas import Schemas
from turnline.contracts.keys import (
    ConversationKeys,
    ShardKeys,
    conversation_keys,
    shard_keys,
    shard_of,
)
from turnline.contracts.messages import (
    Configure,
    Inbound,
    Interrupt,
    ToolResult,
    UserMessage,
    check_ids,
    check_message_bytes,
    decode,
    encode,
    validated,
)
from turnline.contracts.numbers import number
from turnline.contracts.replies import (
    TERMINAL,
    AnyEvent,
    AnyTerminal,
    Receipt,
    TextDelta,
    ToolRequest,
    TurnRecord,
    decode_record,
    decode_tool_request,
    read_event,
)
from turnline.contracts.scripts import Call, load_script, text
from turnline.contracts.trace_context import current, trace_id_of

RETENTION_MS = 30 * 24 * 3600 * 1000
"""Sliding expiry of a conversation's keys."""
READ_COUNT = 512
"""Events read at once."""
LOOK_S = 5.0
"""Longest time for which a reader trusts the event stream alone."""
HEADROOM = 100
"""Interrupts and tool results that a full inbox still takes: they are what empties it."""
USAGE_FIELDS = Usage.__struct_fields__
TOTAL_FIELDS = (
    *("turns", "calls", "reported_calls", "estimated_calls", "unknown_calls"),
    *(f"u.{name}" for name in USAGE_FIELDS),
    *(f"a.{name}" for name in USAGE_FIELDS),
)
"""Fields of the state hash that hold totals: `u.` for answers, `a.` for abandoned spend."""

_encode_sorted = msgspec.json.Encoder(order="deterministic").encode
decode_settings = msgspec.json.Decoder(ConversationSettings, float_hook=number).decode


class Limits(NamedTuple):
    """How much may wait and how long things are kept."""

    inbox: int = 1_000
    """Messages waiting in one conversation."""
    queue: int = 1_000_000
    """Conversations waiting or running in one shard."""
    queue_age_s: float = 300
    """Seconds for which a conversation of the shard may have waited for a worker, before those that
    are not on the queue yet are refused."""
    records: int = 10_000
    """Turn records (and with them idempotency keys) kept per conversation."""
    wakes: int = 1_000
    """Wake tokens kept."""
    retention_ms: int = RETENTION_MS


class Submission(NamedTuple):
    """One message on its way in."""

    call: Call
    conversation_id: str
    turn_id: str
    digest: str
    trace_id: str

    def receipt(self, reply: Sequence[Any]) -> Receipt:
        """Read submit.lua's answer.

        Raises:
            Refused: Nothing was accepted.
            TurnIdReused: The id belongs to another content.
        """
        word, number, detail = text(reply[0]), int(reply[1]), reply[2]
        match word:
            case "accepted":
                return Receipt(
                    conversation_id=self.conversation_id,
                    turn_id=self.turn_id,
                    status="accepted",
                    position=number,
                    after=text(detail),
                    trace_id=self.trace_id,
                )
            case "duplicate":
                record = decode_record(detail)
                if record.digest and record.digest != self.digest:
                    raise TurnIdReused(
                        f"turn_id {self.turn_id} was accepted before with another content; "
                        "choose a new id"
                    )
                return Receipt(
                    conversation_id=self.conversation_id,
                    turn_id=self.turn_id,
                    status="duplicate",
                    after=record.after,
                    trace_id=record.trace_id or self.trace_id,
                )
            case "busy":
                raise ConversationBusy(
                    f"{self.conversation_id} has a turn running or waiting", retry_after_s=1
                )
            case "inbox_full":
                raise InboxFull(
                    f"{number} messages already wait in {self.conversation_id}", retry_after_s=5
                )
            case "queue_full":
                raise QueueFull(
                    f"{number} conversations already wait in this shard", retry_after_s=10
                )
            case "queue_late":
                raise QueueLate(
                    f"conversations wait for {number / 1000:.0f} s in this shard", retry_after_s=10
                )
            case _:
                raise AssertionError(f"submit.lua answered {word}")

    def outcome(self, reply: Any) -> Receipt | Exception:
        """As `receipt`, but returning the error: for batches."""
        if isinstance(reply, Exception):
            return refused_by_server(reply)
        try:
            return self.receipt(reply)
        except (Refused, TurnIdReused) as error:
            return error


class Requests:
    """Builds commands for a fleet of a given number of shards."""

    def __init__(self, *, shards: int = 1, limits: Limits | None = None) -> None:
        """Prepare names and limits; nothing is sent.

        Raises:
            ValueError: Records would go before the turns they keep from being accepted twice.
        """
        self._limits = limits or Limits()
        if self._limits.records <= self._limits.inbox:
            raise ValueError("limits: records must be more than inbox")
        # What waits keeps its record, by which it is known when it is sent again.
        self._headroom = min(HEADROOM, self._limits.records - self._limits.inbox - 1)
        self._shards = tuple(shard_keys(n) for n in range(shards))
        self._schemas = Schemas()

    def names(self, conversation_id: str) -> tuple[ShardKeys, ConversationKeys]:
        """Return the names of a conversation's shard and of the conversation."""
        shard = self._shards[shard_of(conversation_id, len(self._shards))]
        return shard, conversation_keys(shard.tag, conversation_id)

    def submission(self, message: Inbound | bytes) -> Submission:
        """Validate a message and build the call that puts it in.

        Raises:
            InvalidMessage: The message breaks the contract, or a schema in it cannot be used.

        Source: contracts/scripts/submit.lua
        """
        message = decode(message if isinstance(message, bytes) else validated(message))
        check_ids(message)
        self._schemas.check(message)
        plain = msgspec.structs.replace(
            message, sent_at_ms=0, traceparent=None, tracestate=None, deadline_at_ms=None
        )
        digest = hashlib.blake2b(_encode_sorted(plain), digest_size=8).hexdigest()
        known = trace_id_of(message.traceparent)
        trace = (
            (message.traceparent, message.tracestate)
            if known
            else current(message.conversation_id, message.turn_id)
        )
        now_ms = int(time.time() * 1000)
        data = encode(
            msgspec.structs.replace(
                message,
                traceparent=trace[0],
                tracestate=trace[1],
                sent_at_ms=message.sent_at_ms or now_ms,
            )
        )
        check_message_bytes(data)
        act = "interrupt" if isinstance(message, Interrupt) else message.when_busy
        shard, keys = self.names(message.conversation_id)
        limits = self._limits
        trace_id = trace_id_of(trace[0])
        call = Call(
            load_script("submit"),
            (*keys[:11], shard.queue, shard.wake),
            (
                keys.job_id,
                message.turn_id,
                data,
                digest,
                "" if act == "enqueue" else act,
                conversation_job(message.conversation_id, now_ms),
                limits.inbox
                + (self._headroom if isinstance(message, Interrupt | ToolResult) else 0),
                limits.queue,
                limits.retention_ms,
                limits.records,
                limits.wakes,
                shard.channel_prefix,
                message.conversation_id,
                int(limits.queue_age_s * 1000),
                trace_id,
            ),
        )
        return Submission(call, message.conversation_id, message.turn_id, digest, trace_id)

    def reading(self, receipt: Receipt, after: str | None) -> "TurnReading":
        """Start reading one turn's events."""
        _, keys = self.names(receipt.conversation_id)
        return TurnReading(keys.events, after or receipt.after, receipt.turn_id)

    def following(self, conversation_id: str, after: str) -> "StreamReading":
        """Start reading all events of a conversation."""
        _, keys = self.names(conversation_id)
        return StreamReading(keys.events, after)

    def replies(self, stream: str, group: str, consumer: str, batch: int) -> "RepliesReading":
        """Start consuming a reply stream, in all shards."""
        streams = [shard.reply_prefix + stream for shard in self._shards]
        return RepliesReading(streams, group, consumer, batch, self._limits.retention_ms)

    def tool_calls(self, group: str, consumer: str, batch: int) -> "ToolCallsReading":
        """Start consuming the tool calls that workers send out, in all shards."""
        streams = [shard.tool_calls for shard in self._shards]
        return ToolCallsReading(streams, group, consumer, batch, self._limits.retention_ms)

    def record(self, receipt: Receipt) -> Command:
        """Fetch a turn's record."""
        _, keys = self.names(receipt.conversation_id)
        return ("HGET", keys.turns, receipt.turn_id)

    def newest(self, conversation_id: str) -> Command:
        """Fetch what `read_newest` reads."""
        _, keys = self.names(conversation_id)
        return ("XREVRANGE", keys.events, "+", "-", "COUNT", 1)

    def usage(self, conversation_id: str) -> list[Command]:
        """Fetch what `read_totals` reads."""
        _, keys = self.names(conversation_id)
        return [("HMGET", keys.state, *TOTAL_FIELDS)]

    def copies(self, conversation_id: str) -> list[Command]:
        """Fetch what `forget` must know."""
        _, keys = self.names(conversation_id)
        return [("LRANGE", keys.copies, 0, -1)]

    def forget(self, conversation_id: str, copies: Sequence[bytes]) -> Call:
        """Build the call that removes a conversation.

        Source: contracts/scripts/forget.lua
        """
        shard, keys = self.names(conversation_id)
        streams = sorted({copy.decode().rpartition(" ")[0] for copy in copies})
        return Call(
            load_script("forget"),
            (*keys[:11], shard.queue, *streams),
            (keys.job_id, shard.channel_prefix, conversation_id, len(copies)),
        )


class StreamReading:
    """Where a reader of an event stream stands."""

    def __init__(self, stream: str, after: str) -> None:
        """Stand behind the event id `after` ("$": only what is yet to come)."""
        self._stream = stream
        self._after = after
        self.caught_up = False
        """Whether the last reply taken went up to the stream's end."""

    def command(self, wait_s: float) -> Command:
        """Read what has come since, waiting for at most `wait_s` if nothing has."""
        block = ("BLOCK", max(1, int(wait_s * 1000))) if wait_s else ()
        return ("XREAD", "COUNT", READ_COUNT, *block, "STREAMS", self._stream, self._after)

    def take(self, reply: Any) -> Iterator[AnyEvent]:
        """Yield the events of a reply and move on behind each.

        What a later version writes and this one does not know is passed over.
        """
        self.caught_up = sum(len(entries) for _, entries in reply or ()) < READ_COUNT
        for _, entries in reply or ():
            for entry_id, fields in entries:
                self._after = text(entry_id)
                event = read_event(fields.get(b"e", b""), self._after)
                if event is not None:
                    yield event


class TurnReading(StreamReading):
    """Where a reader of one turn's events stands."""

    def __init__(self, stream: str, after: str, turn_id: str) -> None:
        """Stand behind `after` and heed only `turn_id`."""
        super().__init__(stream, after)
        self._turn_id = turn_id
        self._look_at_s = 0.0

    def take(self, reply: Any) -> Iterator[AnyEvent]:
        """Yield this turn's events."""
        return (event for event in super().take(reply) if event.turn_id == self._turn_id)

    def is_time_to_look(self, reply: Any) -> bool:
        """Whether to look at the turn's record now.

        That is when a read brought nothing, and now and then while only other turns' events come:
        the event that ended this one may have been trimmed.
        """
        if not self.caught_up:
            return False
        now_s = time.monotonic()
        if reply and now_s < self._look_at_s:
            return False
        self._look_at_s = now_s + LOOK_S
        return True


class GroupReading:
    """Where a consumer of shared streams stands: first what it took before, then what is new."""

    def __init__(
        self, streams: Sequence[str], group: str, consumer: str, batch: int, retention_ms: int
    ) -> None:
        """Read `streams` (one per shard) as `consumer` of `group`."""
        self._streams = streams
        self._group = group
        self._consumer = consumer
        self._batch = batch
        self._retention_ms = retention_ms
        self._from = "0"

    def create(self) -> list[Command]:
        """Create the group where it is missing; BUSYGROUP answers are fine."""
        return [
            command
            for stream in self._streams
            for command in (
                ("XGROUP", "CREATE", stream, self._group, "0", "MKSTREAM"),
                ("PEXPIRE", stream, self._retention_ms),
            )
        ]

    def command(self, wait_s: float) -> Command:
        """Read the next batch."""
        return (
            *("XREADGROUP", "GROUP", self._group, self._consumer, "COUNT", self._batch),
            *(("BLOCK", max(1, int(wait_s * 1000))) if self._from == ">" else ()),
            *("STREAMS", *self._streams, *(self._from for _ in self._streams)),
        )

    def entries(self, reply: Any) -> Iterator[tuple[bytes, bytes, bytes | None]]:
        """Yield (stream, entry id, JSON); None in place of what was forgotten meanwhile."""
        found = False
        for stream, entries in reply or ():
            for entry_id, fields in entries:
                found = True
                yield stream, entry_id, fields.get(b"e") if fields else None
        if not found:  # when idle, look again for what a lost connection took with it
            self._from = ">" if self._from == "0" else "0"


class RepliesReading(GroupReading):
    """Where a consumer of a reply stream stands."""

    def take(self, reply: Any) -> Iterator[tuple[bytes, bytes, AnyTerminal | None]]:
        """Yield (stream, entry id, event); the event is None where it was forgotten meanwhile."""
        for stream, entry_id, data in self.entries(reply):
            yield stream, entry_id, _terminal_of(data, text(entry_id))


def _terminal_of(data: bytes | None, entry_id: str) -> AnyTerminal | None:
    """Decode an entry; None for one that is gone, or that no version up to this one has written."""
    event = read_event(data, entry_id) if data is not None else None
    return event if isinstance(event, TERMINAL) else None


class ToolCallsReading(GroupReading):
    """Where a consumer of tool calls stands."""

    def take(
        self, reply: Any, names: Collection[str] | None
    ) -> Iterator[tuple[bytes, bytes, ToolRequest | None]]:
        """Yield (stream, entry id, call); None for a call that is not, or no longer, to be run.

        That is one of another name, one past its deadline, and one whose conversation was
        forgotten.
        """
        now_ms = time.time() * 1000
        for stream, entry_id, data in self.entries(reply):
            try:
                call = decode_tool_request(data) if data is not None else None
            except (msgspec.DecodeError, UnicodeError, RecursionError):  # of a later version
                call = None
            if call is not None and (
                now_ms >= call.deadline_at_ms or (names is not None and call.name not in names)
            ):
                call = None
            yield stream, entry_id, call


def is_group_lost(error: Exception) -> bool:
    """Whether a reply stream went, and the group with it; Redis 7.0 has a word of its own."""
    return str(error).startswith(("NOGROUP", "UNBLOCKED"))


class TextAssembler:
    """The reply as a reader should show it: grows with deltas, restarts with a new attempt."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.text = ""
        self._attempt = 0

    def take(self, event: AnyEvent) -> bool:
        """Take the turn's next event; return whether the text changed."""
        before = self.text
        if isinstance(event, TERMINAL):
            self.text = getattr(event, "text", "")
            return self.text != before
        if event.attempt < self._attempt:
            return False
        if event.attempt > self._attempt:
            self._attempt, self.text = event.attempt, ""
        if isinstance(event, TextDelta):
            # A delta behind a gap is left out (the end has the text), one seen before adds nothing.
            known = len(self.text)
            if event.offset <= known < event.offset + len(event.text):
                self.text = self.text[: event.offset] + event.text
        return self.text != before


def refused_by_server(error: Exception) -> Exception:
    """Return the error a producer is told where Redis refused a submission."""
    if isinstance(error, OutOfMemoryError):
        return StoreFull("Redis has no memory left for new turns", retry_after_s=10)
    return error


def configure_message(conversation_id: str, settings: dict[str, Any]) -> Configure:
    """Build a `configure` message from setting names and values.

    Raises:
        InvalidMessage: An unknown setting.
    """
    if unknown := sorted(settings.keys() - set(SettingsChange.__struct_fields__)):
        known = ", ".join(SettingsChange.__struct_fields__)
        raise InvalidMessage(f"settings.{unknown[0]}", f"one of {known}")
    change = SettingsChange(**settings)
    message = decode(validated(Configure(conversation_id=conversation_id, settings=change)))
    assert isinstance(message, Configure)
    return message


def question(
    conversation_id: str, text: str, response_type: type[Any] | None, agent: str | None
) -> UserMessage:
    """Build a user message that wants an answer, of a certain form if a type is given."""
    schema = None
    if response_type is not None:
        (root,), parts = msgspec.json.schema_components(
            [response_type], ref_template="#/$defs/{name}"
        )
        schema = {**root, "$defs": parts} if parts else dict(root)
        if "$ref" in root:  # providers want an object at the root
            name = root["$ref"].rpartition("/")[2]
            schema = {**parts[name], "$defs": parts} if len(parts) > 1 else dict(parts[name])
    return UserMessage(
        conversation_id=conversation_id, text=text, response_format=schema, agent=agent
    )


def answered_before(message: ToolResult) -> Receipt:
    """Return the receipt of a call's result that was handed in before, with another content."""
    return Receipt(
        conversation_id=message.conversation_id, turn_id=message.turn_id, status="duplicate"
    )


def read_newest(reply: Sequence[Any]) -> str:
    """Read the id of a stream's last entry; "0-0" if it has none."""
    return text(reply[0][0]) if reply else "0-0"


def read_record(receipt: Receipt, data: bytes | None) -> TurnRecord:
    """Read a turn's record.

    Raises:
        TurnUnknown: There is none.
    """
    if data is None:
        raise TurnUnknown(
            f"turn {receipt.turn_id} of {receipt.conversation_id} is not known: it was never "
            "accepted, was forgotten, or is past its retention"
        )
    return decode_record(data)


def read_totals(values: Sequence[bytes | None]) -> Totals:
    """Read the totals from the state hash's fields (TOTAL_FIELDS, in order)."""
    numbers = [int(value or 0) for value in values]
    n, size = 5, len(USAGE_FIELDS)
    return Totals(
        turns=numbers[0],
        calls=numbers[1],
        reported_calls=numbers[2],
        estimated_calls=numbers[3],
        unknown_calls=numbers[4],
        usage=Usage(**dict(zip(USAGE_FIELDS, numbers[n : n + size], strict=True))),
        abandoned=Usage(**dict(zip(USAGE_FIELDS, numbers[n + size :], strict=True))),
    )


def read_forgotten(reply: Sequence[Any]) -> tuple[bool, int]:
    """Read forget.lua's answer: (done, keys removed)."""
    return text(reply[0]) == "forgotten", int(reply[1])
