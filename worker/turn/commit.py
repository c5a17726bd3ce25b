"""Works out all that changes when a turn takes effect."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

import msgspec

from turnline.contracts.conversation import CallEntry
from turnline.contracts.index_lines import entry_of, marks_of
from turnline.contracts.keys import ShardKeys
from turnline.contracts.messages import ToolResult
from turnline.contracts.replies import (
    AnyEvent,
    AnyTerminal,
    TurnCompleted,
    TurnFailed,
    TurnRecord,
    encode_event,
)
from turnline.worker.effects import ConversationSnapshot, Copy, Effects
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.turn.gathering import STATES, ConsumedEntry, Turn, record_of
from turnline.worker.turn.kept_reasoning import REASONING_MAX_BYTES, bound_reasoning
from turnline.worker.turn.ledger import payer_of
from turnline.worker.turn.ratings import Ends, count_ratings, with_ratings

_encode = msgspec.json.Encoder().encode
NO_DEAD_LETTER: Final = frozenset({"unknown_call", "unknown_turn", "too_many_ratings"})
"""Results that come late, or twice, are in the nature of things delivered at least once. A rating
is refused by what there is of its turn: sending it again from a dead letter mends nothing."""


class Ending(NamedTuple):
    """How a turn ends, and what goes with it."""

    event: AnyTerminal | None = None
    """None if the model had no part in it."""
    unpublished: Sequence[AnyEvent] = ()
    """Events before it that readers do not have yet."""
    said: str = ""
    """What the provider said where the turn failed, for the dead letter."""
    reply: str = ""
    """What the model replied where the turn failed for the reply's form; likewise."""
    counts: bool = False
    """Whether it is a turn of the totals although the model had no part in its end."""
    is_unread: bool = False
    """Whether only the first entry was looked at: earlier attempts may have answered it together
    with the next ones, as whose turn they spoke. So their attempts count on."""


class Commit(NamedTuple):
    """What a turn comes to."""

    effects: Effects
    messages: list[bytes]
    """The whole context after it (n messages, JSON)."""


def build_commit(
    ending: Ending,
    turn: Turn,
    loaded: ConversationSnapshot,
    calls: Sequence[CallEntry],
    rated: Mapping[str, TurnRecord],
    *,
    shard: ShardKeys,
    worker: str,
    now_ms: int,
    reasoning_max_bytes: int = REASONING_MAX_BYTES,
) -> Commit:
    """Return what changes.

    Args:
        ending: How it ends.
        turn: The entries it used, and the context as it is to be.
        loaded: The conversation as it was.
        calls: Ledger entries of all attempts.
        rated: Records of the turns that it rates; see `records_of_rated`.
        shard: Where copies go.
        worker: Noted in the records.
        now_ms: Redis' clock, ms since the Unix epoch.
        reasoning_max_bytes: See `bound_reasoning`.
    """
    failed = isinstance(ending.event, TurnFailed)
    added, rewrite = ([], False) if failed else _changed_messages(turn.context)
    messages = added if rewrite else [*loaded.messages, *added]
    first = 0 if rewrite else len(loaded.messages)
    own = (first if turn.context_replaced else len(loaded.messages), len(messages))
    first, size = bound_reasoning(messages, first, loaded.reasoning_bytes, reasoning_max_bytes)
    ends, ratings = count_ratings(_ends(turn, ending.event), rated)
    record = partial(record_of, attempts=loaded.attempt, finished_at_ms=now_ms, worker=worker)
    effects = Effects(
        turn_id=next((it for it, end in ends if end is ending.event), turn.used[0]).turn_id,
        entries=[used.entry.entry_id for used, _ in ends],
        messages=messages[first:],
        rewrite=rewrite or first < own[0],
        reasoning_bytes=size,
        settings=turn.settings if turn.settings_changed and not failed else None,
        calls=calls,
        turns=int(ending.event is not None or ending.counts),
        events=[*ending.unpublished, *(end for _, end in ends)],
        records=with_ratings(_records(ends, ending.event, own, record), ratings, rated),
        copies=_copies(ends, ending, turn.conversation_id, loaded.attempt, shard, now_ms),
        at_ms=now_ms,
        next_attempt=loaded.attempt + 1 if ending.is_unread else 1,
        listed=_listed(turn, ends, now_ms),
    )
    return Commit(effects, messages)


def _changed_messages(context: OpenAILLMContext) -> tuple[list[bytes], bool]:
    """Return the messages to append; or all of them and True, where loaded ones were changed."""
    if context.prefix_intact():
        return context.new_messages_encoded(), False
    return context.encoded_messages(), True


def _ends(turn: Turn, ending: AnyTerminal | None) -> list[tuple[ConsumedEntry, AnyTerminal]]:
    """Return how each entry ends, the one with the turn's own end last."""
    ends = turn.endings(ending)
    if isinstance(ending, TurnFailed):  # what only changes things stays in the inbox, as the next
        ends = [(used, end) for used, end in ends if not _only_changes(used)]
    return sorted(ends, key=lambda pair: pair[1] is ending)


def _records(
    ends: Ends,
    of_turn: AnyTerminal | None,
    messages: tuple[int, int],
    record: Callable[..., TurnRecord],
) -> list[tuple[str, TurnRecord]]:
    """Return what is kept of each entry; the messages are those of the turn's own."""
    of = {True: messages, False: (0, 0)}
    return [(it.turn_id, record(it, end, messages=of[end is of_turn])) for it, end in ends]


def _listed(turn: Turn, ends: Ends, now_ms: int) -> str:
    """Return what the index says of the turn's own entry, the last, and what all are found by."""
    if not ends:
        return ""
    used, end = ends[-1]
    payer = payer_of(used.message, turn.settings)
    metadata = [pair for _, it in reversed(ends) for pair in it.metadata.items()]
    state = STATES[type(end)]
    took_s = (now_ms - used.entry.accepted_at_ms) / 1000
    return entry_of(
        turn.conversation_id, marks_of(payer.tenant, payer.agent, metadata), state, took_s
    )


def _only_changes(used: ConsumedEntry) -> bool:
    return isinstance(used.ending, TurnCompleted) and not isinstance(used.message, ToolResult)


def _copies(  # noqa: PLR0917  all that stands in a dead letter
    ends: Iterable[tuple[ConsumedEntry, AnyTerminal]],
    ending: Ending,
    conversation_id: str,
    attempts: int,
    shard: ShardKeys,
    now_ms: int,
) -> list[Copy]:
    """Return what goes into streams of the shard: replies asked for, dead letters."""
    copies = list[Copy]()
    for used, end in ends:
        if used.message is not None and used.message.reply_to is not None:
            stream = shard.reply_prefix + used.message.reply_to
            copies.append(Copy(stream, {"e": encode_event(end)}))
        failure = _failure(used, end, ending.event)
        if failure is None or failure.code in NO_DEAD_LETTER:
            continue
        fields: dict[str, str | bytes | int] = {
            "c": conversation_id,
            "t": used.turn_id,
            "m": used.entry.data,
            "code": failure.code,
            "error": failure.message,
            "attempts": attempts,
            "trace": failure.trace_id,
            "at": now_ms,
        }
        if failure is not used.ending:
            words = {"said": ending.said, "reply": ending.reply}
            fields |= {key: text for key, text in words.items() if text}
        if not used.entry.data:  # written past submit, without the field for messages
            fields["m"] = _encode([*map(repr, used.entry.fields.items())])
        copies.append(Copy(shard.dead, fields))
    return copies


def _failure(
    used: ConsumedEntry, end: AnyTerminal, of_turn: AnyTerminal | None
) -> TurnFailed | None:
    """Return why a message is in no context: itself, or the turn that it had joined, failed."""
    for ending in (end, of_turn if used.ending is None else None):
        if isinstance(ending, TurnFailed):
            return ending
    return None
