"""Ratings: what `feedback` messages say of turns becomes part of the records of these turns."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from turnline.contracts.messages import Feedback
from turnline.contracts.replies import AnyTerminal, Rating, TurnCompleted, TurnFailed, TurnRecord
from turnline.worker.lease import Lease
from turnline.worker.turn.gathering import ConsumedEntry
from turnline.worker.turn.ports import Store

MOST: Final = 16
"""Ratings of one turn: its record is read again and again."""
Ends = Sequence[tuple[ConsumedEntry, AnyTerminal]]


class Rated(NamedTuple):
    """What a commit comes to with its ratings."""

    ends: Ends
    """As they were, but for ratings that failed."""
    ratings: Mapping[str, tuple[Rating, ...]]
    """All of each turn that was rated, by its id."""


async def records_of_rated(
    store: Store, lease: Lease, used: Iterable[ConsumedEntry]
) -> Mapping[str, TurnRecord]:
    """Return the records of the turns that these entries rate, as far as there are any.

    Nobody but the lease's holder changes the record of a turn that has ended. So they can be read
    now and written with the commit, which is refused without the lease. (A record that is pushed
    out by newer ones just then comes back, and goes with its conversation.)

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    rated = {it.message.of_turn for it in used if isinstance(it.message, Feedback)}
    return await store.records(lease, sorted(rated)) if rated else {}


def count_ratings(ends: Ends, records: Mapping[str, TurnRecord]) -> Rated:
    """Return what becomes of ratings among the entries of a commit.

    A turn can be rated once it has ended: before this commit, or in it, by an earlier entry.

    Args:
        ends: How each entry ends, in order.
        records: See `records_of_rated`.
    """
    if not any(isinstance(used.message, Feedback) for used, _ in ends):
        return Rated(ends, {})
    known = {
        turn_id: {it.name: it for it in record.feedback}
        for turn_id, record in records.items()
        if record.state != "accepted"
    }
    settled, changed = list[tuple[ConsumedEntry, AnyTerminal]](), dict[str, None]()
    for used, end in ends:
        outcome = end
        if isinstance(used.message, Feedback) and isinstance(end, TurnCompleted):
            of = known.get(used.message.of_turn)
            why = _refusal(of, used.message)
            if why is not None:
                outcome = _failed(end, *why)
            elif of is not None:
                of[used.message.name] = _rating(used, used.message)
                changed[used.message.of_turn] = None
        settled.append((used, outcome))
        known.setdefault(used.turn_id, {})
    return Rated(settled, {turn_id: tuple(known[turn_id].values()) for turn_id in changed})


def with_ratings(
    records: Sequence[tuple[str, TurnRecord]],
    ratings: Mapping[str, tuple[Rating, ...]],
    before: Mapping[str, TurnRecord],
) -> list[tuple[str, TurnRecord]]:
    """Return the records that a commit writes.

    Args:
        records: Of the turns that end in it.
        ratings: See `Rated`.
        before: Records of turns that ended before it.
    """
    found = dict(records)
    for turn_id, all_of_it in ratings.items():
        record = found.get(turn_id) or before[turn_id]
        found[turn_id] = msgspec.structs.replace(record, feedback=all_of_it)
    return [*found.items()]


def _refusal(of: Mapping[str, Rating] | None, message: Feedback) -> tuple[str, str] | None:
    if of is None:
        return "unknown_turn", "of_turn: no turn that is known and has ended before"
    if message.name not in of and len(of) >= MOST:
        return "too_many_ratings", f"name: the turn has ratings of {MOST} other names"
    return None


def _failed(end: TurnCompleted, code: str, text: str) -> TurnFailed:
    return TurnFailed(
        conversation_id=end.conversation_id,
        turn_id=end.turn_id,
        trace_id=end.trace_id,
        metadata=end.metadata,
        code=code,
        message=text,
    )


def _rating(used: ConsumedEntry, message: Feedback) -> Rating:
    return Rating(
        name=message.name,
        score=message.score,
        label=message.label,
        explanation=message.explanation,
        feedback_id=used.turn_id,
        at_ms=used.entry.accepted_at_ms,
    )
