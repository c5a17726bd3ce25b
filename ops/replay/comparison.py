"""Compares what a replayed conversation left in Redis with the recording and the ledgers; pure."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from turnline.contracts.conversation import AssistantEntry, CallEntry, ContextEntry, Totals, Usage
from turnline.contracts.replies import TERMINAL, AnyEvent, TurnRecord
from turnline.ops.cli.output import plain
from turnline.ops.replay.recordings import recorded_context
from turnline.ops.replay.served import Served
from turnline.ops.simulator.model.dialogues import Dialogue
from turnline.worker.services.grok.responses_request import Wire

PATHS: Final[Mapping[Wire, str]] = {"chat": "/chat/completions", "responses": "/responses"}
"""How the paths of requests end, by wire."""


class ExpectedCalls(NamedTuple):
    """What the calls of recorded services add to a conversation."""

    results: Mapping[int, str]
    """Number of the user message (from 1) behind which a call was made: what the model was told."""
    records: int
    """Messages that brought results."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """All that Redis keeps of one conversation."""

    context: Sequence[ContextEntry]
    records: Sequence[TurnRecord]
    events: Sequence[AnyEvent]
    calls: Sequence[CallEntry]
    totals: Totals
    waiting: int
    """Messages in the inbox."""


def faults_of(
    dialogue: Dialogue,
    kept: Kept,
    served: Sequence[Served],
    *,
    wire: Wire,
    with_kills: bool,
    calls: ExpectedCalls | None = None,
) -> list[str]:
    """Return what is wrong with a conversation, one phrase each; nothing if all is well.

    Args:
        dialogue: What should have been said.
        kept: What Redis has.
        served: The requests that the simulator served for it.
        wire: What all requests have to be made on.
        with_kills: Workers were killed: requests may have been cut, and calls abandoned.
        calls: The services' calls; None: none were made.
    """
    calls = calls or ExpectedCalls({}, 0)
    records = len(dialogue.user_texts) + calls.records
    return [
        *_context_faults(dialogue, kept.context, calls.results),
        *_turn_faults(records, kept),
        *_spend_faults(kept, served, with_kills=with_kills),
        *_wire_faults(dialogue, served, wire),
    ]


def _context_faults(
    dialogue: Dialogue, context: Sequence[ContextEntry], results: Mapping[int, str]
) -> Iterator[str]:
    recorded = list(recorded_context(dialogue, results))
    if len(recorded) != len(context):
        yield f"{len(context)} messages in the context instead of {len(recorded)}"
    for number, ((role, text), entry) in enumerate(zip(recorded, context, strict=False)):
        found = entry.__struct_config__.tag
        if found != role:
            yield f"message {number} is of role {found} instead of {role}"
        elif text is not None and not _says(entry, text):
            yield f"message {number} ({role}) has another text"


def _says(entry: ContextEntry, text: str) -> bool:
    """Tell whether a message says this; space around what an assistant says means nothing."""
    found = plain(entry.content)
    if isinstance(entry, AssistantEntry):
        return found.strip() == text.strip()
    return found == text


def _turn_faults(turns: int, kept: Kept) -> Iterator[str]:
    states = Counter(record.state for record in kept.records)
    if states != Counter({"completed": turns}):
        found = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
        yield f"turn records: {found or 'none'} instead of {turns} completed"
    endings = Counter(event.turn_id for event in kept.events if isinstance(event, TERMINAL))
    if len(endings) != turns:
        yield f"{len(endings)} turns have a terminal event instead of {turns}"
    for turn_id, number in endings.items():
        if number > 1:
            yield f"turn {turn_id} ended {number} times"
    if kept.waiting:
        yield f"{kept.waiting} messages still wait in the inbox"


def _spend_faults(kept: Kept, served: Sequence[Served], *, with_kills: bool) -> Iterator[str]:
    answers = [call for call in kept.calls if not call.abandoned]
    whole = [usage for it in served if it.outcome == "whole" and (usage := it.reported) is not None]
    uncovered = Counter(_key(call.usage) for call in answers) - Counter(map(_key, whole))
    if uncovered:
        yield f"{uncovered.total()} answers whose tokens the simulator did not report"
    if kept.totals.usage != total(call.usage for call in answers):
        yield "the totals are not the sum of the answers in the ledger"
    if kept.totals.calls != len(kept.calls):
        yield f"the totals count {kept.totals.calls} calls, the ledger {len(kept.calls)}"
    if len(kept.calls) < len(served):
        yield f"{len(kept.calls)} calls in the ledger, but the simulator served {len(served)}"
    if with_kills:
        return
    if len(kept.calls) > len(served):
        yield f"{len(kept.calls)} calls in the ledger, but the simulator served {len(served)}"
    if kept.totals.usage != total(whole):
        yield "the totals are not what the simulator reported"
    if kept.totals.reported_calls != len(served) or kept.totals.abandoned != Usage():
        yield "some spend is estimated, unknown or abandoned"


def _wire_faults(dialogue: Dialogue, served: Sequence[Served], wire: Wire) -> Iterator[str]:
    """Yield what the model noticed: another wire, another prefix, thoughts that it lost.

    An answer without words leaves no message, and so no place for the thought before it.
    """
    elsewhere = sum(not it.path.endswith(PATHS[wire]) for it in served)
    if elsewhere:
        yield f"{elsewhere} requests on another wire than {wire}"
    found = [it.continuity for it in served if it.continuity is not None]
    lost = {it.previous_seq: it.lost_reasoning for it in found}  # a request may be made again
    answers = (dialogue.answer(n) for n in range(1, len(dialogue.user_texts)))
    wordless = sum(it is not None and not it.text.strip() for it in answers)
    if sum(lost.values()) > wordless:
        yield f"{sum(lost.values())} reasoning items did not come back as they were given"
    if breaks := sum(not (it.prefix_kept and it.head_kept) for it in found):
        yield f"{breaks} requests change what stood in the one before"


def total(usages: Iterable[Usage]) -> Usage:
    """Add usages up."""
    return sum(usages, Usage())


def _key(usage: Usage) -> tuple[int, ...]:
    return tuple(getattr(usage, name) for name in usage.__struct_fields__)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of the values lie; 0 if there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
