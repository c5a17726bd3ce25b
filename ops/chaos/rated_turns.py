"""Compares the ratings in a conversation's records with those that its producers sent."""

from collections.abc import Iterator, Mapping

from turnline.contracts.replies import AnyTerminal, TurnCompleted, TurnFailed
from turnline.ops.chaos.evidence import Left
from turnline.ops.chaos.journal import Sent


def check_ratings(
    left: Left, sent: Mapping[str, Sent], ends: Mapping[str, AnyTerminal]
) -> Iterator[tuple[str, str]]:
    """Yield (turn, what is wrong): each has the last rating of each name, and no other."""
    last: dict[str, dict[str, str]] = {}
    for turn in left.log:
        rates = sent[turn].rates if turn in sent else None
        if rates is not None and isinstance(ends.get(turn), TurnCompleted):
            last.setdefault(rates[0], {})[rates[1]] = turn
    for turn, record in left.records.items():
        expected = last.get(turn, {})
        actual = {rating.name: rating.feedback_id for rating in record.feedback}
        if actual != expected or len(actual) != len(record.feedback):
            yield turn, f"rated by {sorted(actual.values())}, not by {sorted(expected.values())}"


def is_unknown(end: TurnFailed, left: Left, sent: Sent) -> bool:
    """Whether a rating failed since the turn that it rates is not there (any more)."""
    return end.code == "unknown_turn" and sent.rates is not None and sent.rates[0] not in left.log
