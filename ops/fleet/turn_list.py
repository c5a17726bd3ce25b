"""Reads the turns of a conversation, in order, with what became of each."""

import time
from collections.abc import Mapping, Sequence

import msgspec

from turnline.contracts.replies import Rating, TurnRecord, decode_record
from turnline.ops.cli import output
from turnline.ops.fleet.operator_connection import Connection


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One line of what happened in a conversation."""

    turn_id: str
    state: str
    worker: str
    attempts: int
    accepted_at_ms: int
    took_ms: int | None
    """From acceptance to its end; None while it waits or runs."""
    trace_id: str
    outcome: str
    feedback: tuple[Rating, ...] = ()
    finished_at_ms: int | None = None
    messages_from: int = 0
    """Index in the context of its first message, when it took effect."""
    messages_to: int = 0
    """Index behind its last one; 0: it has none."""


def turns_in_order(log: Sequence[bytes], records: Mapping[bytes, bytes]) -> list[Turn]:
    """Join the turn ids in the order accepted with their records.

    A turn that was written past `submit` stands in no log; it comes last.
    """
    order = {turn_id: place for place, turn_id in enumerate(log)}
    known = sorted(records, key=lambda turn_id: order.get(turn_id, len(order)))
    # An id that was written past `submit` may be anything.
    ids = [turn_id.decode(errors="backslashreplace") for turn_id in known]
    return [_turn(id_, decode_record(records[it])) for id_, it in zip(ids, known, strict=True)]


def _turn(turn_id: str, record: TurnRecord) -> Turn:
    ending = record.terminal()
    return Turn(
        turn_id=turn_id,
        state=_waiting(record) if ending is None else record.state,
        worker=record.worker,
        attempts=record.attempts,
        accepted_at_ms=record.accepted_at_ms,
        took_ms=None if ending is None else max(0, record.finished_at_ms - record.accepted_at_ms),
        trace_id=record.trace_id or (ending.trace_id if ending is not None else ""),
        outcome="" if ending is None else output.outcome(ending),
        feedback=record.feedback,
        finished_at_ms=None if ending is None else record.finished_at_ms,
        messages_from=record.messages_from,
        messages_to=record.messages_to,
    )


def turns_of_messages(turns: Sequence[Turn], count: int) -> list[Turn | None]:
    """Return of each message of a context of so many whose turn it was; None: not known (any more).

    Args:
        turns: In the order accepted.
        count: Messages in the context now.
    """
    found: list[Turn | None] = [None] * count
    first = count
    for turn in reversed(turns):
        if not turn.messages_to or turn.messages_from >= count:
            continue  # it added nothing of its own, or that came after the context was read
        if turn.messages_to > first:
            break  # the context was replaced after this turn
        first = turn.messages_from
        found[first : turn.messages_to] = [turn] * (turn.messages_to - first)
    return found


def _waiting(record: TurnRecord) -> str:
    due_ms = record.deliver_at_ms or 0
    is_delayed = due_ms > time.time() * 1000
    return f"delayed until {output.at(due_ms)}" if is_delayed else "waiting or running"


def read_turns(connection: Connection, conversation_id: str) -> list[Turn]:
    """Read a conversation's turns, in the order accepted."""
    keys = connection.names(conversation_id)
    pipe = connection.redis.pipeline(transaction=False)
    pipe.execute_command("LRANGE", keys.log, 0, -1)
    pipe.execute_command("HGETALL", keys.turns)
    log, records = pipe.execute()
    return turns_in_order(log, records)
