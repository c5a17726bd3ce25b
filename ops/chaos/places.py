"""The order in which turns take effect: as accepted, and delayed ones by their time."""

from collections.abc import Iterator, Mapping

from turnline.ops.chaos.evidence import Left
from turnline.ops.chaos.journal import Sent


def in_order(left: Left, sent: Mapping[str, Sent]) -> list[str]:
    """Return the turn ids of the log, each delayed one where it took its place.

    That is before whatever was accepted in the same millisecond or later: whoever accepts it finds
    what is due, and puts it before.
    """
    delayed = {turn for turn in left.log if turn in sent and sent[turn].due_ms}
    order = [turn for turn in left.log if turn not in delayed]
    # The last one first: of two at one place, the later one is behind.
    for turn in sorted(delayed, key=lambda it: (sent[it].due_ms, left.log.index(it)), reverse=True):
        at_ms = _placed_ms(left, turn)
        behind = (n for n, it in enumerate(order) if it in delayed or _placed_ms(left, it) >= at_ms)
        order.insert(next(behind, len(order)), turn)
    return order


def check_places(left: Left, sent: Mapping[str, Sent]) -> Iterator[tuple[str, str]]:
    """Yield (turn, what is wrong): no delayed message takes its place before its time."""
    for turn in left.log:
        due_ms = sent[turn].due_ms if turn in sent else 0
        # A script's time and the one of what it writes may be rounded differently.
        if due_ms and turn in left.records and _placed_ms(left, turn) < due_ms - 1:
            yield turn, "it took its place before its time"


def _placed_ms(left: Left, turn: str) -> float:
    """Return when a turn was put into the inbox; never, where nobody knows."""
    record = left.records.get(turn)
    return float("inf") if record is None else float(record.accepted_at_ms)
