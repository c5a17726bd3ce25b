"""What was said before in a conversation: what the cache has, and what came back of replies."""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from turnline.ops.simulator.model.models import Model
from turnline.ops.simulator.request_ledger import Continuity, Entry
from turnline.ops.simulator.responses.asked_items import ReadItem

_CONVERSATIONS: Final = 4096
_KNOWN_CALLS: Final = 4096
_REQUESTS: Final = 8
"""Requests of one conversation that are compared with: one may be asked twice, or be cut."""
_PUNISHED_FROM_ROUND: Final = 2
"""With so many rounds of tool results behind it, a model without its reasoning stops to reason."""

Slot = tuple[str, str]
"""Cache key and family of the model."""


class Asking(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it is remembered."""

    entry: Entry
    head: bytes
    """The tools, which stand before the input."""
    head_tokens: int
    items: Sequence[ReadItem]
    tokens: Sequence[int]
    """What each item counts."""
    reply: Sequence[ReadItem] = ()
    """Items of the answer."""
    is_told_as_it_is: bool = True
    """Whether no fault changes the events in which the client learns of the reply."""

    @property
    def all_forms(self) -> list[bytes]:
        """Forms of the items asked and answered."""
        return [item.form for item in (*self.items, *self.reply)]


class Recall:
    """Remembers the last requests of each conversation, as a pinned server would."""

    def __init__(self) -> None:
        self._askings: OrderedDict[Slot, deque[Asking]] = OrderedDict()
        self._calls: OrderedDict[str, Sequence[ReadItem]] = OrderedDict()

    def compare(self, slot: Slot | None, asking: Asking) -> Continuity:
        """Say how a request goes on from those before it."""
        found = Continuity(tool_rounds=_tool_rounds(asking.items))
        lost = {item.form for item in self._lost_in_turn(_present_turn(asking.items))}
        found.punished = bool(lost) and found.tool_rounds >= _PUNISHED_FROM_ROUND
        previous = self._previous(slot, asking)
        if previous is not None:
            found.previous_seq = previous.entry.seq
            found.head_kept = previous.head == asking.head
            found.first_difference = _first_difference(previous.items, asking.items)
            found.prefix_kept = found.first_difference is None
            if _came_back(previous, asking):
                indexes = _lost(previous.reply, asking.items[_shared(previous, asking) :])
                found.lost_items = indexes
                found.reply_kept = not indexes and _stands_in_place(previous, asking)
                lost |= {
                    previous.reply[index].form
                    for index in indexes
                    if previous.reply[index].type == "reasoning"
                }
        found.lost_reasoning = len(lost)
        return found

    def cached_tokens(self, slot: Slot | None, asking: Asking, model: Model) -> int:
        """Return the tokens of the longest prefix shared with what is remembered.

        The hidden prompt, which all users share, is always cached.
        """
        shared = model.hidden_tokens
        forms = [item.form for item in asking.items]
        for known in self._askings.get(slot, ()) if slot is not None else ():
            if known.head != asking.head:
                continue
            tokens = model.hidden_tokens + asking.head_tokens
            for form, before, counts in zip(forms, known.all_forms, asking.tokens, strict=False):
                if form != before:
                    break
                tokens += counts
            shared = max(shared, tokens)
        all_tokens = model.hidden_tokens + asking.head_tokens + sum(asking.tokens)
        shared = min(shared, all_tokens - 1)
        return shared - shared % model.cache_step

    def remember(self, slot: Slot | None, asking: Asking) -> None:
        """Keep a request with its answer."""
        for item in asking.reply if asking.is_told_as_it_is else ():
            if item.call_id is not None:
                self._calls[item.call_id] = asking.reply
        while len(self._calls) > _KNOWN_CALLS:
            self._calls.popitem(last=False)
        if slot is None:
            return
        kept = self._askings.setdefault(slot, deque(maxlen=_REQUESTS))
        kept.append(asking)
        self._askings.move_to_end(slot)
        if len(self._askings) > _CONVERSATIONS:
            self._askings.popitem(last=False)

    def _previous(self, slot: Slot | None, asking: Asking) -> Asking | None:
        """Find the request that this one goes on from.

        It is the one with the longest part in common; of equals the one whose reply came back,
        and else the last.
        """
        best: Asking | None = None
        best_rank = (-1, False)
        for known in self._askings.get(slot, ()) if slot is not None else ():
            rank = _shared(known, asking), _stands_in_place(known, asking)
            if rank >= best_rank:
                best, best_rank = known, rank
        return best

    def _lost_in_turn(self, turn: Sequence[ReadItem]) -> list[ReadItem]:
        """Find reasoning that belongs to calls of the turn and does not stand before them."""
        lost: list[ReadItem] = []
        start, seen = 0, set[int]()
        for index, item in enumerate(turn):
            reply = self._calls.get(item.call_id or "") if item.type == "function_call" else None
            if reply is None or id(reply) in seen:
                continue
            seen.add(id(reply))
            calls = [it.form for it in reply if it.type == "function_call"]
            end = max(index, *(at for at, it in enumerate(turn) if it.form in calls), index) + 1
            needed = [it for it in reply if it.type in {"reasoning", "function_call"}]
            missing = _lost(needed, turn[start:end])
            lost += [needed[at] for at in missing if needed[at].type == "reasoning"]
            start = end
        return lost


def _present_turn(items: Sequence[ReadItem]) -> Sequence[ReadItem]:
    """Return what came after the user spoke last."""
    last = max((index for index, item in enumerate(items) if item.is_user), default=-1)
    return items[last + 1 :]


def _tool_rounds(items: Sequence[ReadItem]) -> int:
    """Count the runs of tool results in the present turn."""
    are_outputs = [item.type == "function_call_output" for item in _present_turn(items)]
    return sum(is_output and not before for is_output, before in _with_before(are_outputs))


def _with_before(values: Sequence[bool]) -> Iterable[tuple[bool, bool]]:
    return zip(values, [False, *values], strict=False)


def _shared(known: Asking, asking: Asking) -> int:
    """Count the items at the beginning that both inputs have, byte by byte."""
    for index, (before, item) in enumerate(zip(known.items, asking.items, strict=False)):
        if before.raw != item.raw:
            return index
    return min(len(known.items), len(asking.items))


def _came_back(known: Asking, asking: Asking) -> bool:
    """Whether the client has the reply of a request: it ended well, and is not asked for again."""
    if known.entry.outcome != "whole" or not known.entry.finished or not known.is_told_as_it_is:
        return False
    return len(asking.items) > len(known.items) or _shared(known, asking) < len(asking.items)


def _stands_in_place(known: Asking, asking: Asking) -> bool:
    start = len(known.items)
    following = asking.items[start : start + len(known.reply)]
    return [item.form for item in known.reply] == [item.form for item in following]


def _lost(reply: Sequence[ReadItem], items: Sequence[ReadItem]) -> list[int]:
    """Return indexes of reply items that are not there, or not in their order.

    What the client sees, texts and calls, is placed first; reasoning has to stand between.
    """
    forms = [item.form for item in items]
    places: dict[int, int] = {}
    start = 0
    for index, item in enumerate(reply):
        if item.type != "reasoning" and item.form in forms[start:]:
            places[index] = forms.index(item.form, start)
            start = places[index] + 1
    for index, item in enumerate(reply):
        if item.type == "reasoning":
            low = max((at for before, at in places.items() if before < index), default=-1)
            high = min((at for after, at in places.items() if after > index), default=len(forms))
            if item.form in forms[low + 1 : high]:
                places[index] = forms.index(item.form, low + 1, high)
    return [index for index in range(len(reply)) if index not in places]


def _first_difference(before: Sequence[ReadItem], items: Sequence[ReadItem]) -> int | None:
    """Return where in the bytes of the array the previous input stops to be there again."""
    offset = 1  # the bracket
    for index, item in enumerate(before):
        if index >= len(items):
            return offset
        if item.raw != items[index].raw:
            pairs = zip(item.raw, items[index].raw, strict=False)
            same = next((at for at, (a, b) in enumerate(pairs) if a != b), None)
            shorter = min(len(item.raw), len(items[index].raw))
            return offset + (shorter if same is None else same)
        offset += len(item.raw) + 1
    return None
