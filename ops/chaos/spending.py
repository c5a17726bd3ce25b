"""Compares a conversation's ledger with its totals, its turns and the model's own record."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from turnline.contracts.conversation import CallEntry, Usage
from turnline.contracts.replies import TurnCompleted, TurnFailed, TurnInterrupted
from turnline.ops.chaos.disturbances import TWICE_CODES
from turnline.ops.chaos.evidence import Evidence, Left, Request
from turnline.ops.chaos.journal import Chat
from turnline.worker.turn.budgets import spent_of
from turnline.worker.turn.commit import NO_DEAD_LETTER

_MARK: Final = re.compile(r"#(\d+)")
_BEFORE_THE_MODEL: Final = frozenset({"invalid_message", *NO_DEAD_LETTER})


def check_spending(
    left: Left, requests: Sequence[Request], turn_tokens: int | None = None
) -> Iterator[tuple[str, str]]:
    """Yield (turn, what is wrong); the turn is empty where it is the conversation's.

    `turn_tokens` is the budget of a turn, if it has one.
    """
    if turn_tokens is not None:
        yield from _check_budgets(left, turn_tokens)
    yield from _check_totals(left)
    yield from _check_turns(left)
    yield from _check_against_model(left, requests)
    yield from _check_repetitions(left)


def check_spend(chats: Sequence[Chat], evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Yield (tenant, what is wrong): spend is what the ledgers say, to the tick.

    Of conversations that were forgotten there is no ledger any more; yet nobody spent more than
    the model said.
    """
    for tenant in sorted({chat.tenant for chat in chats if chat.tenant is not None}):
        own = [chat for chat in chats if chat.tenant == tenant]
        rows = [row for row in evidence.spend if row.tenant == tenant]
        told = [it.reported for chat in own for it in evidence.requests.get(chat.conversation, ())]
        most = sum(it.cost_usd_ticks for it in told if it is not None)
        if (cost := sum(row.usage.cost_usd_ticks for row in rows)) > most:
            yield tenant, f"{cost} ticks spent, the model told of {most}"
        if any(chat.forgotten for chat in own):
            continue
        left = [evidence.left.get(chat.conversation, Left()) for chat in own]
        entered: dict[tuple[str, str], list[CallEntry]] = {}
        for call in (call for it in left for call in it.calls):
            entered.setdefault((call.agent, call.model), []).append(call)
            if call.tenant != tenant:
                yield tenant, f"call {call.call_id} is entered as one of {call.tenant!r}"
        says = {(row.agent or "", row.model or ""): (row.calls, row.usage) for row in rows}
        for name in sorted(says.keys() | entered.keys()):
            calls = entered.get(name, [])
            ledger = (len(calls), _sum(calls))
            if says.get(name, (0, Usage())) != ledger:
                yield tenant, f"spend says {says.get(name)}, the ledgers make {ledger}"


def token_difference(left: Left, requests: Sequence[Request]) -> int:
    """Return by how many tokens a ledger differs from what the model says it reported.

    Usage reported to a worker that was killed just then is no difference: no ledger can have it.
    """
    claimed = Counter(call.usage for call in left.calls if call.state == "reported")
    claimed -= Counter(it.reported for it in requests if it.reported is not None)
    difference = sum(max(1, usage.total_tokens) for usage in claimed.elements())
    totals = left.totals.usage.total_tokens + left.totals.abandoned.total_tokens
    return difference + abs(_sum(left.calls).total_tokens - totals)


def _sum(calls: Sequence[CallEntry]) -> Usage:
    return sum((call.usage for call in calls), Usage())


def _check_totals(left: Left) -> Iterator[tuple[str, str]]:
    """The totals are the sums over the ledger, of answers and of abandoned calls apart."""
    totals, calls = left.totals, left.calls
    kept = [call for call in calls if not call.abandoned]
    abandoned = [call for call in calls if call.abandoned]
    states = Counter(call.state for call in calls)
    ran = sum(
        isinstance(end, TurnInterrupted)
        or (isinstance(end, TurnCompleted) and end.finish_reason is not None)
        or (isinstance(end, TurnFailed) and end.code not in _BEFORE_THE_MODEL)
        for end in (record.terminal() for record in left.records.values())
    )
    for name, says, is_ in (
        ("calls", totals.calls, len(calls)),
        ("reported calls", totals.reported_calls, states["reported"]),
        ("estimated calls", totals.estimated_calls, states["estimated"]),
        ("unknown calls", totals.unknown_calls, states["unknown"]),
        ("turns", totals.turns, ran),
        ("usage", totals.usage, _sum(kept)),
        ("abandoned", totals.abandoned, _sum(abandoned)),
    ):
        if says != is_:
            yield "", f"totals: {name} are {says}, the ledger's entries make {is_}"


def _check_turns(left: Left) -> Iterator[tuple[str, str]]:
    """The usage of an answer is the sum over its own attempt's calls. No call is entered twice."""
    by_turn: dict[str, list[CallEntry]] = {}
    for call in left.calls:
        by_turn.setdefault(call.turn_id, []).append(call)
    for call_id, times in Counter(call.call_id for call in left.calls).items():
        if times > 1:
            yield call_id.partition("/")[0], f"call {call_id} is entered {times} times"
    for turn, record in left.records.items():
        end = record.terminal()
        if not isinstance(end, TurnCompleted | TurnInterrupted):
            continue
        kept = [call for call in by_turn.get(turn, []) if not call.abandoned]
        if end.usage != _sum(kept):
            yield turn, f"the event says {end.usage}, its calls make {_sum(kept)}"
        if any(call.attempt != end.attempt for call in kept):
            yield turn, "a call of an abandoned attempt is counted as the answer's"


def _check_budgets(left: Left, most: int) -> Iterator[tuple[str, str]]:
    """A turn passes its budget by one call at most, and none ends for it that has some left."""
    spent: dict[str, list[int]] = {}
    for call in sorted(left.calls, key=_number):  # the clocks of workers differ
        spent.setdefault(call.turn_id, []).append(spent_of(call.usage).tokens)
    for turn, tokens in spent.items():
        if sum(tokens[:-1]) >= most:
            yield turn, f"{len(tokens)} calls used {tokens} tokens, the budget is {most}"
    for turn, record in left.records.items():
        end = record.terminal()
        is_over = isinstance(end, TurnFailed) and end.code == "budget_exceeded"
        if is_over and (used := sum(spent.get(turn, ()))) < most:
            yield turn, f"its budget is {most} tokens, and it ended with {used} used"


def _number(call: CallEntry) -> tuple[int, int]:
    """Return which call of its turn it was, by attempts."""
    return call.attempt, int(call.call_id.rpartition("/")[2])


def _check_repetitions(left: Left) -> Iterator[tuple[str, str]]:
    """No turn has three calls that failed for the same reason."""
    paid = Counter((call.turn_id, call.error) for call in left.calls if call.error in TWICE_CODES)
    for (turn, code), times in paid.items():
        if times > 2:
            yield turn, f"{times} calls ended as {code}"


def _check_against_model(left: Left, requests: Sequence[Request]) -> Iterator[tuple[str, str]]:
    """Every request has its entry, and what was reported is what was entered."""
    turns = {turn.rpartition(".")[2]: turn for turn in left.log}
    asked: dict[str, list[Request]] = {}
    for request in requests:
        marks = _MARK.findall(request.messages[-1][1]) if request.messages else []
        asked.setdefault(turns.get(marks[-1], "") if marks else "", []).append(request)
    entered: dict[str, list[CallEntry]] = {}
    for call in left.calls:
        entered.setdefault(call.turn_id, []).append(call)
    for turn in sorted(asked.keys() | entered.keys()):
        yield from _check_turn_against_model(turn, entered.get(turn, []), asked.get(turn, []))


def _check_turn_against_model(
    turn: str, entered: Sequence[CallEntry], asked: Sequence[Request]
) -> Iterator[tuple[str, str]]:
    if len(entered) < len(asked):
        yield turn, f"{len(asked)} requests, {len(entered)} entries in the ledger"
    surplus = len(entered) - len(asked)
    if surplus > sum(call.state == "unknown" for call in entered):
        yield turn, f"{len(entered)} entries for {len(asked)} requests, and not for want of a word"
    told = Counter(request.reported for request in asked if request.reported is not None)
    claimed = Counter(call.usage for call in entered if call.state == "reported")
    for usage in (claimed - told).elements():
        yield turn, f"the ledger has {usage} as reported, the model said no such thing"
    streamed = max((request.tokens_streamed for request in asked), default=0)
    last = max(asked, key=lambda request: request.from_ms, default=None)
    for call in entered:
        counted = call.usage.completion_tokens + call.usage.reasoning_tokens
        if call.state == "estimated" and counted > streamed:
            yield turn, f"{counted} tokens estimated, {streamed} streamed"
        is_answer = call.finish_reason and not call.abandoned  # of the last attempt
        if is_answer and call.state != "reported" and last is not None and last.reported:
            yield turn, f"an answer's usage is {call.state}, though the model reported it"
