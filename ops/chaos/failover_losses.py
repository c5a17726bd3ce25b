"""Tells what a failover lost from what Turnline did wrong. Pure: data in, data out.

Replicas lag behind: what a primary acknowledged in the moments before it was lost may be gone. A
broken promise is put down to that only if the conversation shows it: something that somebody was
told, at the time of a failover of that very shard, is not in Redis any more.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from turnline.ops.chaos.checker import Column, Violation, concerning
from turnline.ops.chaos.disturbances import Disturbance
from turnline.ops.chaos.evidence import Evidence, Left
from turnline.ops.chaos.journal import Chat

_LAG_MS: Final = 2_000.0
"""What was acknowledged longer than so before a failover had reached the replica."""
_LEDGER: Final[Column] = "tokens"
_READERS: Final = ("a reader missed", "a follower missed")
"""How the checker begins where a reader was shown other events than are kept."""


def attributed(
    violations: Sequence[Violation],
    chats: Sequence[Chat],
    evidence: Evidence,
    disturbances: Sequence[Disturbance],
) -> list[Violation]:
    """Return the violations, those that a failover explains in a column of their own."""
    failovers = [it for it in disturbances if it.failed_over]
    by_name = {chat.conversation: chat for chat in chats}
    found: list[Violation] = []
    for violation in violations:
        name = violation.conversation
        its = concerning(failovers, name, evidence.layout) if name in by_name else []
        left = evidence.left.get(name, Left())
        guilty = _guilty(violation, by_name[name], left, its) if its else None
        found.append(
            violation if guilty is None else _moved(violation, guilty, by_name[name], left)
        )
    return found


def _moved(violation: Violation, guilty: Disturbance, chat: Chat, left: Left) -> Violation:
    what = f"{violation.column}: {violation.what}"
    column = _column(violation, chat, left)
    return msgspec.structs.replace(violation, column=column, what=what, by=guilty.kind)


def _column(violation: Violation, chat: Chat, left: Left) -> Column:
    """Tell what was acknowledged from pieces of a reply, which was made again.

    A message is not, if its producer was told that too few replicas have it.
    """
    if any(it.is_unsafe for it in chat.sent if it.turn == violation.turn):
        return "shown, then lost"
    are_pieces = violation.what.startswith(_READERS) and not any(_acknowledged_and_gone(chat, left))
    return "shown, then lost" if are_pieces else "lost by failover"


def _guilty(
    violation: Violation, chat: Chat, left: Left, failovers: Sequence[Disturbance]
) -> Disturbance | None:
    """Return the failover that explains a violation."""
    told = [*_acknowledged_and_gone(chat, left), *_shown_and_gone(chat, left)]
    for failover in failovers:
        if not _was_there(violation.turn, chat, left, failover):
            continue
        # What a worker was told shows in its ledger alone: nobody else heard of it.
        if violation.column == _LEDGER or any(_within(at_ms, failover) for at_ms in told):
            return failover
    return None


def _acknowledged_and_gone(chat: Chat, left: Left) -> Iterator[float]:
    """Yield when what Redis does not know any more was accepted, ended or forgotten, ms."""
    log = set(left.log)
    for sent in chat.sent:
        was_let_in_again = sent.accepts > 1
        if was_let_in_again or (sent.outcome == "accepted" and sent.turn not in log):
            yield sent.answered_ms
    yield from _gone(chat.followed_ends, left)
    yield from _gone([it.ids[-1] for it in chat.shown if it.ended and it.ids], left)
    if chat.forgotten_at_ms:
        yield chat.forgotten_at_ms


def _shown_and_gone(chat: Chat, left: Left) -> Iterator[float]:
    """Yield when events that Redis does not have any more were shown, ms."""
    for ids in (chat.followed, *(it.ids for it in chat.shown)):
        yield from _gone(ids, left)


def _gone(ids: Sequence[str], left: Left) -> Iterator[float]:
    kept = {event.event_id for event in left.events}
    first_ms = _ms(left.events[0].event_id) if left.is_trimmed and left.events else 0.0
    for id_ in ids:
        if id_ not in kept and _ms(id_) >= first_ms:
            yield _ms(id_)


def _was_there(turn: str, chat: Chat, left: Left, failover: Disturbance) -> bool:
    """Whether a turn was not over at the failover; what is of no turn always was."""
    sent = next((it for it in chat.sent if it.turn == turn), None)
    if sent is None:
        return True
    record = left.records.get(turn)
    ended_ms = record.finished_at_ms if record is not None else None
    is_before = sent.begun_ms > failover.to_ms
    return not is_before and (not ended_ms or ended_ms > failover.from_ms - _LAG_MS)


def _within(at_ms: float, failover: Disturbance) -> bool:
    return failover.from_ms - _LAG_MS <= at_ms <= failover.to_ms


def _ms(event_id: str) -> float:
    return float(event_id.partition("-")[0])
