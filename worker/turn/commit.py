"""Works out all that changes when a turn takes effect."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from turnline.contracts.conversation import CallEntry
from turnline.contracts.keys import ShardKeys
from turnline.contracts.messages import ToolResult
from turnline.contracts.replies import (
    AnyEvent,
    AnyTerminal,
    TurnCompleted,
    TurnFailed,
    encode_event,
)
from turnline.worker.effects import ConversationSnapshot, Copy, Effects
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.turn.gathering import ConsumedEntry, Turn, record_of

_encode = msgspec.json.Encoder().encode
_NO_DEAD_LETTER = frozenset({"unknown_call"})
"""Results that come late, or twice, are in the nature of things delivered at least once."""


class Settled(NamedTuple):
    """What a turn comes to."""

    effects: Effects
    messages: list[bytes]
    """The whole context after it (n messages, JSON)."""


def settle(
    ending: AnyTerminal | None,
    *,
    turn: Turn,
    loaded: ConversationSnapshot,
    context: OpenAILLMContext,
    calls: Sequence[CallEntry],
    events: Sequence[AnyEvent],
    conversation_id: str,
    shard: ShardKeys,
    worker: str,
    now_ms: int,
    said: str = "",
    reply: str = "",
) -> Settled:
    """Return what changes.

    Args:
        ending: How the turn ends; None if the model had no part in it.
        turn: What was taken from the inbox.
        loaded: The conversation as it was.
        context: As it is to be.
        calls: Ledger entries of all attempts.
        events: Not published yet.
        conversation_id: Whose turn it is.
        shard: Where copies go.
        worker: Noted in the records.
        now_ms: Redis' clock, ms since the Unix epoch.
        said: What the provider said where the turn failed, for the dead letter.
        reply: What the model replied where the turn failed for the reply's form; likewise.
    """
    failed = isinstance(ending, TurnFailed)
    rewrite = not failed and not context.prefix_intact()
    added: list[bytes] = []
    if not failed:
        added = context.encoded_messages() if rewrite else context.new_messages_encoded()
    messages = added if rewrite else [*loaded.messages, *added]
    first = 0 if rewrite else len(loaded.messages)
    endings = turn.endings(ending)
    if failed:  # what only changes the conversation stays in the inbox and comes next
        endings = [(used, end) for used, end in endings if not _only_changes(used)]
    own = [pair for pair in endings if pair[1] is ending]
    endings = [pair for pair in endings if pair[1] is not ending] + own
    records = [
        (
            used.turn_id,
            msgspec.structs.replace(
                record_of(used, end, attempts=loaded.attempt, finished_at_ms=now_ms, worker=worker),
                messages_from=first if end is ending else 0,
                messages_to=len(messages) if end is ending else 0,
            ),
        )
        for used, end in endings
    ]
    effects = Effects(
        turn_id=own[0][0].turn_id if own else turn.used[0].turn_id,
        entries=[used.entry.entry_id for used, _ in endings],
        messages=added,
        rewrite=rewrite,
        settings=turn.settings if turn.settings_changed and not failed else None,
        calls=calls,
        turns=1 if ending is not None else 0,
        events=[*events, *(end for _, end in endings)],
        records=records,
        copies=[
            copy
            for used, end in endings
            for copy in copies_of(
                used,
                end,
                failure=_failure(used, end, ending),
                attempts=loaded.attempt,
                conversation_id=conversation_id,
                shard=shard,
                now_ms=now_ms,
                said=said,
                reply=reply,
            )
        ],
    )
    return Settled(effects, messages)


def _only_changes(used: ConsumedEntry) -> bool:
    return isinstance(used.ending, TurnCompleted) and not isinstance(used.message, ToolResult)


def _failure(
    used: ConsumedEntry, end: AnyTerminal, of_turn: AnyTerminal | None
) -> TurnFailed | None:
    """Return why a message is in no context: itself, or the turn that it had joined, failed."""
    for ending in (end, of_turn if used.ending is None else None):
        if isinstance(ending, TurnFailed):
            return ending
    return None


def copies_of(
    used: ConsumedEntry,
    ending: AnyTerminal,
    *,
    failure: TurnFailed | None,
    attempts: int,
    conversation_id: str,
    shard: ShardKeys,
    now_ms: int,
    said: str = "",
    reply: str = "",
) -> list[Copy]:
    """Return what goes into streams of the shard: replies asked for, dead letters.

    Args:
        used: The message.
        ending: How it ended.
        failure: Why it is in no context, if so.
        attempts: At its turn.
        conversation_id: Whose message it is.
        shard: Whose streams.
        now_ms: Redis' clock, ms since the Unix epoch.
        said: What the provider said where the turn failed.
        reply: What the model replied where the turn failed for the reply's form.
    """
    copies = list[Copy]()
    if used.message is not None and used.message.reply_to is not None:
        stream = shard.reply_prefix + used.message.reply_to
        copies.append(Copy(stream, {"e": encode_event(ending)}))
    if failure is not None and failure.code not in _NO_DEAD_LETTER:
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
            fields |= {key: text for key, text in (("said", said), ("reply", reply)) if text}
        if not used.entry.data:  # written past submit, without the field for messages
            fields["m"] = _encode([*map(repr, used.entry.fields.items())])
        copies.append(Copy(shard.dead, fields))
    return copies
