"""What is sent and how replies are read: commands and parsing, no I/O."""

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET

from turnline.contracts.conversation import ConversationSettings, SettingsChange, Totals, Usage
from turnline.contracts.errors import (
    BudgetExceeded,
    ConversationBusy,
    InboxFull,
    InvalidCursor,
    InvalidMessage,
    QueueFull,
    QueueLate,
    Refused,
    TenantFull,
    TurnIdReused,
)
from turnline.contracts.job_format import conversation_job
from turnline.contracts.keys import (
    ConversationKeys,
    ShardKeys,
    check_prefix,
    conversation_keys,
    shard_keys,
    shard_of,
)
from turnline.contracts.layout import Elsewhere, Layout, read_layout
from turnline.contracts.messages import (
    Configure,
    ContextAppend,
    Inbound,
    Interrupt,
    ToolResult,
    Transcription,
    UserMessage,
    check_ids,
    check_message_bytes,
    decode,
    encode,
    has_schemas,
    validated,
)
from turnline.contracts.numbers import number
from turnline.contracts.replies import (
    TERMINAL,
    AnyEvent,
    Receipt,
    TextDelta,
    decode_record,
)
from turnline.contracts.scripts import Call, ForgetArgs, SubmitArgs, forget, submit, text
from turnline.contracts.trace_context import TraceContext, current, current_baggage, trace_id_of

T = TypeVar("T")
RETENTION_MS = 30 * 24 * 3600 * 1000
"""Sliding expiry of a conversation's keys."""
HEADROOM = 100
"""Interrupts and tool results that a full inbox still takes: they are what empties it."""
USAGE_FIELDS = Usage.__struct_fields__
COUNT_FIELDS = (
    *("turns", "calls", "reported_calls", "estimated_calls", "unknown_calls"),
    "reasoning_bytes",
)
TOTAL_FIELDS = (
    *COUNT_FIELDS,
    *(f"u.{name}" for name in USAGE_FIELDS),
    *(f"a.{name}" for name in USAGE_FIELDS),
)
"""Fields of the state hash that hold totals: `u.` for answers, `a.` for abandoned spend."""
DELAY_MAX_MS: Final = 366 * 24 * 3600 * 1000
"""Time for which a message may be delayed."""
_CURSOR: Final = re.compile(r"([0-9]{1,20})(?:-([0-9]{1,20}))?", re.ASCII)
_MOST: Final = 2**64 - 1

_encode_sorted = msgspec.json.Encoder(order="deterministic").encode
decode_settings = msgspec.json.Decoder(ConversationSettings, float_hook=number).decode


class Limits(NamedTuple):
    """How much may wait and how long things are kept."""

    inbox: int = 1_000
    """Messages waiting in one conversation."""
    queue: int = 1_000_000
    """Conversations waiting, also for their time, or running in one shard."""
    queue_age_s: float = 300
    """Seconds for which a conversation of the shard may have waited for a worker, before those that
    are not on the queue yet are refused."""
    records: int = 10_000
    """Turn records (and with them idempotency keys) kept per conversation."""
    retention_ms: int = RETENTION_MS


_REFUSALS: Mapping[str, tuple[type[Refused], str, float]] = {
    "busy": (ConversationBusy, "{id} has a turn running or waiting", 1),
    "tenant_full": (TenantFull, "{n} conversations of this tenant already wait in this shard", 5),
    "inbox_full": (InboxFull, "{n} messages already wait in {id}", 5),
    "queue_full": (QueueFull, "{n} conversations already wait in this shard", 10),
    "queue_late": (QueueLate, "conversations wait for {s:.0f} s in this shard", 10),
}
"""By submit.lua's answer: the error, its reason, and when it is worth trying again, seconds."""


class Home(NamedTuple):
    """By which number of shards a conversation is looked for."""

    layout: Layout
    shards: int
    refused_by: frozenset[int] = frozenset()
    """Other such numbers, by which it was not found."""

    @property
    def is_asked_in_order(self) -> bool:
        """Whether this is the old shard, or that has said that the conversation is not there."""
        return bool(self.refused_by) or self.shards == self.layout.before


class Submission(NamedTuple):
    """One message on its way in."""

    at: Callable[[Home], tuple[ShardKeys, Call]]
    """Returns the shard of a home, and the call that puts the message in there."""
    home: Home
    shard: ShardKeys
    call: Call
    conversation_id: str
    turn_id: str
    digest: str
    trace_id: str

    def by(self, layout: Layout) -> "Submission":
        """Return the same message on its way to where its conversation is by this layout."""
        return self._towards(Home(layout, layout.homes[0]))

    def following(self, refusal: Elsewhere) -> "Submission":
        """Return the same message on its way to where it may be taken, behind a refusal."""
        layout, shards, refused_by = refusal.layout, self.home.shards, self.home.refused_by
        if not refusal.is_here:
            refused_by |= {shards}
            shards = next((it for it in layout.homes if it not in refused_by), layout.shards)
        return self._towards(Home(layout, shards, refused_by - {shards}))

    def _towards(self, home: Home) -> "Submission":
        shard, call = self.at(home)
        return self._replace(home=home, shard=shard, call=call)

    def receipt(self, reply: Sequence[Any], replicas: int | None = None) -> Receipt:
        """Read submit.lua's answer; `replicas` have it, if that was asked for.

        Raises:
            Elsewhere: Nothing was accepted here, or not now; see `following`.
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
                    replicas=replicas,
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
                    replicas=replicas,
                )
            case "moving" | "elsewhere":
                layout = read_layout([number, *text(detail).split(";")])
                assert layout is not None
                raise Elsewhere(layout, is_here=word == "moving")
            case "budget_exceeded":
                raise _budget_exceeded(detail, number / 1000)
            case word if word in _REFUSALS:
                error, reason, retry_after_s = _REFUSALS[word]
                reason = reason.format(n=number, s=number / 1000, id=self.conversation_id)
                raise error(reason, retry_after_s=retry_after_s)
            case _:
                raise AssertionError(f"submit.lua answered {word}")

    def outcome(self, reply: Any, replicas: int | None = None) -> Receipt | Exception:
        """As `receipt`, but returning the error: for batches."""
        if isinstance(reply, Exception):
            return reply
        try:
            return self.receipt(reply, replicas)
        except (Elsewhere, Refused, TurnIdReused) as error:
            return error


class _UsedUp(msgspec.Struct, frozen=True, kw_only=True):
    """What submit.lua says of a budget; the defaults, where others wrote there."""

    message: str = "a budget is used up"
    budget: str = ""
    unit: str = ""
    spent: float = 0
    limit: float = 0


def _budget_exceeded(detail: bytes | str, retry_after_s: float) -> BudgetExceeded:
    try:
        about = msgspec.json.decode(detail, type=_UsedUp)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        about = _UsedUp()
    return BudgetExceeded(**msgspec.structs.asdict(about), retry_after_s=retry_after_s)


def _is_batch(message: Inbound) -> bool:
    return isinstance(message, UserMessage | ContextAppend) and message.priority == "batch"


def _lane(message: Inbound) -> str:
    """Return in what lane a message is, as submit.lua takes it; '' if in none."""
    match message:
        case UserMessage(run=True) | ContextAppend(run=True) | Transcription():
            return f"{'b' if _is_batch(message) else 'i'}:{message.tenant}"
        case Configure(settings=settings) if settings.tenant is not UNSET:
            return f"c:{settings.tenant or ''}"
        case _:
            return ""


def _delay(message: Inbound, now_ms: int) -> int | None:
    """Return when a message takes its place (ms), None if at once.

    Raises:
        InvalidMessage: That is too far ahead, or does not go with the rest.
    """
    at_ms = message.deliver_at_ms if isinstance(message, UserMessage | ContextAppend) else None
    if at_ms is None:
        return None
    if at_ms > now_ms + DELAY_MAX_MS:
        raise InvalidMessage("deliver_at_ms", "at most 366 days ahead, in ms since the Unix epoch")
    if message.when_busy != "enqueue":
        raise InvalidMessage("when_busy", "`enqueue` for a message with deliver_at_ms")
    if message.deadline_at_ms is not None and message.deadline_at_ms <= at_ms:
        raise InvalidMessage("deadline_at_ms", "later than deliver_at_ms")
    return max(0, at_ms)


class Requests:
    """Builds commands for a fleet, by what is known of its number of shards."""

    def __init__(self, *, shards: int = 1, limits: Limits | None = None, prefix: str = "") -> None:
        """Prepare names and limits; nothing is sent.

        Raises:
            ValueError: Records would go before the turns they keep from being accepted twice; or
                the prefix is none.
        """
        self.limits = limits or Limits()
        if self.limits.records <= self.limits.inbox:
            raise ValueError("limits: records must be more than inbox")
        # What waits keeps its record, by which it is known when it is sent again.
        self._headroom = min(HEADROOM, self.limits.records - self.limits.inbox - 1)
        check_prefix(prefix)
        self._prefix = prefix
        self.learn(Layout(shards))

    @cached_property
    def _schemas(self) -> Any:
        from turnline.contracts.json_schemas import Schemas  # noqa: PLC0415  most send none

        return Schemas()

    def learn(self, layout: Layout) -> None:
        """Go by this layout from now on."""
        self.layout = layout
        self.shards = tuple(shard_keys(n, self._prefix) for n in range(layout.widest))
        """Names of all shards that may hold anything."""

    def names(
        self, conversation_id: str, shards: int | None = None
    ) -> tuple[ShardKeys, ConversationKeys]:
        """Return the names of a conversation's shard and of the conversation.

        Args:
            conversation_id: Whose.
            shards: Number of shards by which it is looked for, if not the fleet's.
        """
        number = shard_of(conversation_id, shards or self.layout.shards)
        shard = (
            self.shards[number] if number < len(self.shards) else shard_keys(number, self._prefix)
        )
        return shard, conversation_keys(shard.tag, conversation_id)

    def submission(self, message: Inbound | bytes) -> Submission:
        """Validate a message and build the call that puts it in.

        Raises:
            InvalidMessage: The message breaks the contract, or a schema in it cannot be used.

        Source: contracts/scripts/submit.lua
        """
        message = decode(message) if isinstance(message, bytes) else validated(message)
        check_ids(message)
        if has_schemas(message):
            self._schemas.check(message)
        now_ms = int(time.time() * 1000)
        delay = _delay(message, now_ms)
        plain = msgspec.structs.replace(
            message,
            sent_at_ms=0,
            traceparent=None,
            tracestate=None,
            baggage=None,
            deadline_at_ms=None,
            **({"deliver_at_ms": None} if delay is not None else {}),
            **({"priority": "interactive"} if _is_batch(message) else {}),
        )
        digest = hashlib.blake2b(_encode_sorted(plain), digest_size=8).hexdigest()
        trace = TraceContext(message.traceparent or "", message.tracestate)
        trace_id = trace_id_of(message.traceparent)
        baggage = message.baggage if message.baggage is not None else current_baggage()
        if not trace_id:
            trace = current(message.conversation_id, message.turn_id)
            trace_id = trace_id_of(trace.traceparent)
        sent = msgspec.structs.replace(
            message,
            traceparent=trace.traceparent,
            tracestate=trace.tracestate,
            baggage=baggage,
            sent_at_ms=message.sent_at_ms or now_ms,
        )
        data = encode(sent)
        check_message_bytes(data)
        at = partial(self._submit, sent, data, digest, trace_id, now_ms)
        home = Home(self.layout, self.layout.homes[0])
        return Submission(
            *(at, home, *at(home)), message.conversation_id, message.turn_id, digest, trace_id
        )

    def _submit(  # noqa: PLR0917  given once, by `partial`
        self, message: Inbound, data: bytes, digest: str, trace_id: str, now_ms: int, home: Home
    ) -> tuple[ShardKeys, Call]:
        act = "interrupt" if isinstance(message, Interrupt) else message.when_busy
        headroom = self._headroom if isinstance(message, (Interrupt, ToolResult)) else 0
        shard, keys = self.names(message.conversation_id, home.shards)
        limits = self.limits
        call = submit(
            keys,
            SubmitArgs(
                job_id=keys.job_id,
                turn_id=message.turn_id,
                message=data,
                digest=digest,
                act="" if act == "enqueue" else act,
                job_data=conversation_job(message.conversation_id, now_ms),
                inbox_limit=limits.inbox + headroom,
                queue_limit=limits.queue,
                retention_ms=limits.retention_ms,
                log_limit=limits.records,
                conversation=message.conversation_id,
                age_limit_ms=int(limits.queue_age_s * 1000),
                trace_id=trace_id,
                shards=home.shards,
                told_from=home.layout.before if home.is_asked_in_order else 0,
                deliver_at_ms=_delay(message, now_ms) or 0,
                lane=_lane(message),
            ),
        )
        return shard, call

    def forget(
        self, conversation_id: str, copies: Sequence[bytes], shards: int | None = None
    ) -> Call:
        """Build the call that removes a conversation.

        Args:
            conversation_id: Whose.
            copies: What its list of copies holds.
            shards: As for `names`.

        Source: contracts/scripts/forget.lua
        """
        shard, keys = self.names(conversation_id, shards)
        streams = sorted({copy.decode().rpartition(" ")[0] for copy in copies})
        args = ForgetArgs(
            job_id=keys.job_id,
            channel=shard.channel_prefix,
            conversation=conversation_id,
            copies_read=len(copies),
        )
        return forget(keys, args, streams)


class TextAssembler:
    """The reply as a reader should show it: grows with deltas, restarts with a new attempt."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.text = ""
        self._attempt = 0

    def feed(self, event: AnyEvent) -> bool:
        """Read the turn's next event; return whether the text changed."""
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


def configure_message(conversation_id: str, settings: dict[str, Any]) -> Configure:
    """Build a `configure` message from setting names and values.

    Raises:
        InvalidMessage: An unknown setting.
    """
    if unknown := sorted(settings.keys() - set(SettingsChange.__struct_fields__)):
        known = ", ".join(SettingsChange.__struct_fields__)
        raise InvalidMessage(f"settings.{unknown[0]}", f"one of {known}")
    change = SettingsChange(**settings)
    message = validated(Configure(conversation_id=conversation_id, settings=change))
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


def read_cursor(cursor: object) -> str:
    """Return a position in an event stream as `<ms>-<seq>`, in the only form that it has.

    Args:
        cursor: An `event_id`, as a browser sends it back; `<ms>` alone is `<ms>-0`.

    Raises:
        InvalidCursor: It is none.

    Source: https://redis.io/docs/latest/commands/xread/
    """
    match = _CURSOR.fullmatch(cursor) if isinstance(cursor, str) else None
    numbers = [int(it or 0) for it in match.groups()] if match is not None else [_MOST + 1]
    if max(numbers) > _MOST:
        raise InvalidCursor(
            "a position is the event_id of an event, <ms>-<seq> or <ms> in decimal digits, as in "
            "1750000000123-0; without one, reading begins with the turn (follow: with what comes)"
        )
    return "-".join(map(str, numbers))


def read_totals(values: Sequence[bytes | None]) -> Totals:
    """Read the totals from the state hash's fields (TOTAL_FIELDS, in order)."""
    numbers = [int(value or 0) for value in values]
    n, size = len(COUNT_FIELDS), len(USAGE_FIELDS)
    return Totals(
        **dict(zip(COUNT_FIELDS, numbers[:n], strict=True)),
        usage=Usage(**dict(zip(USAGE_FIELDS, numbers[n : n + size], strict=True))),
        abandoned=Usage(**dict(zip(USAGE_FIELDS, numbers[n + size :], strict=True))),
    )
