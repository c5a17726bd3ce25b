"""Compares what the model was sent of its earlier thoughts with what was committed of them."""

from collections.abc import Iterator, Sequence
from typing import Final, Literal, TypeAlias

import msgspec

from turnline.contracts.conversation import AssistantEntry, ContextEntry
from turnline.contracts.replies import AnyTerminal, TurnAbsorbed, TurnCompleted
from turnline.ops.chaos.evidence import Left, Request

REFUSED: Final = "reasoning_refused"
"""Code of a call whose earlier reasoning the model could not read: it is made again without."""
_MESSAGE: Final = b"message"
Found: TypeAlias = tuple[Literal["lost reasoning", "broken prefix"], str, str]


class Answered(msgspec.Struct, frozen=True):
    """A committed turn, and the request that was answered with what is committed."""

    turn: str
    end: AnyTerminal
    request: Request
    before: int
    """Messages of the context that the request holds, the user's own included."""


def check_thoughts(left: Left, answered: Sequence[Answered]) -> Iterator[Found]:
    """Yield (column, turn, what is wrong). The turns are in the order of the context.

    Where the model refused reasoning, the turn that repairs it and what was asked before it are
    excused: the repair takes all of it out of the context. What follows begins with the repaired
    request, whatever became of the attempt that sent it.
    """
    repaired = {_carrier(left, call.turn_id) for call in left.calls if call.error == REFUSED}
    last_repair = max((n for n, it in enumerate(answered) if it.turn in repaired), default=-1)
    former: dict[str, Answered] = {}
    for n, it in enumerate(answered):
        if it.turn in repaired:
            former = {}  # older revisions send in chat, too, what the repair takes out
        before = former.get(it.request.wire)
        if it.turn in repaired and _was_refused(it.request):
            continue  # interrupted before it was asked again: there is nothing to begin with
        former[it.request.wire] = it
        if before is not None:
            yield from _check_pair(before, it)
        if it.request.wire == "responses" and n > last_repair:
            sent = [_MESSAGE if b'"role":' in item else item for item in it.request.items]
            if sent != list(_expected(left.context[: it.before])):
                yield "lost reasoning", it.turn, "the items sent are not those of the context"


def repairs(left: Left) -> int:
    """Count the calls whose earlier reasoning was refused."""
    return sum(call.error == REFUSED for call in left.calls)


def _carrier(left: Left, turn: str) -> str:
    """Return the turn that a turn became part of, in the end; itself if it did not."""
    end = left.records[turn].terminal() if turn in left.records else None
    return _carrier(left, end.into) if isinstance(end, TurnAbsorbed) and end.into else turn


def _was_refused(request: Request) -> bool:
    """Whether it is the one with the reasoning that the model refused, not the repaired one."""
    return request.outcome == "error" and any(b'"role":' not in item for item in request.items)


def _check_pair(before: Answered, it: Answered) -> Iterator[Found]:
    """Hold a request against the one before it, and against what the model noticed."""
    items = before.request.items
    if it.request.items[: len(items)] != items:
        yield "broken prefix", it.turn, f"it does not begin with the request of {before.turn}"
    found = it.request.continuity
    if found is None or found.previous_seq != before.request.seq:
        return
    if not found.head_kept:
        yield "broken prefix", it.turn, f"other tools or instructions than {before.turn} had"
    was_given = isinstance(before.end, TurnCompleted) and "encrypted" not in before.request.faults
    if found.lost_reasoning and was_given:
        yield "lost reasoning", it.turn, f"the thought behind the answer of {before.turn}"


def _expected(context: Sequence[ContextEntry]) -> Iterator[bytes]:
    """Yield what is kept of replies beside their texts, and a mark for each part of a text."""
    for entry in context:
        text = entry.content if isinstance(entry.content, str) else ""
        kept = entry.reply_items if isinstance(entry, AssistantEntry) else None
        said = 0
        for placed in kept.items if kept is not None else ():
            if said < min(placed.chars, len(text)):
                said = placed.chars
                yield _MESSAGE
            yield bytes(placed.item)
        if said < len(text):
            yield _MESSAGE
