"""The checker of replays names each way in which a conversation can be wrong."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from turnline.contracts.conversation import (
    AssistantEntry,
    CallEntry,
    ContextEntry,
    ToolEntry,
    Totals,
    Usage,
    UserEntry,
)
from turnline.contracts.replies import TurnCompleted, TurnRecord
from turnline.ops.replay.comparison import ExpectedCalls, Kept, faults_of, quantile
from turnline.ops.replay.served import Served
from turnline.ops.simulator.model.dialogues import Dialogue, RecordedTurn
from turnline.ops.simulator.model.usage import CompletionDetails, PromptDetails
from turnline.ops.simulator.model.usage import Usage as WireUsage
from turnline.ops.simulator.request_ledger import Continuity

Change = Callable[[Kept, list[Served]], tuple[Kept, list[Served]]]

DIALOGUE = Dialogue(
    "d",
    [
        RecordedTurn("user", "Hello"),
        RecordedTurn("system", "Good day"),
        RecordedTurn("user", "Bye"),
        RecordedTurn("system", "See you"),
    ],
)
USAGE = Usage(
    prompt_tokens=10,
    completion_tokens=3,
    reasoning_tokens=5,
    cached_tokens=2,
    total_tokens=18,
    cost_usd_ticks=7,
)


def served(seq: int, **fields: Any) -> Served:
    used = WireUsage(
        prompt_tokens=10,
        completion_tokens=3,
        total_tokens=18,
        prompt_tokens_details=PromptDetails(text_tokens=10, cached_tokens=2),
        completion_tokens_details=CompletionDetails(reasoning_tokens=5),
        cost_in_usd_ticks=7,
    )
    plain = Served(
        seq=seq,
        path="/v1/responses",
        status=200,
        outcome="whole",
        usage=used,
        usage_reported=True,
        continuity=Continuity(previous_seq=seq - 1 or None),
    )
    return msgspec.structs.replace(plain, **fields)


def call(number: int, **fields: Any) -> CallEntry:
    plain = CallEntry(
        call_id=f"t{number}/1/1",
        turn_id=f"t{number}",
        attempt=1,
        model="grok",
        state="reported",
        usage=USAGE,
    )
    return msgspec.structs.replace(plain, **fields)


def good() -> tuple[Kept, list[Served]]:
    """What an undisturbed replay of DIALOGUE leaves."""
    kept = Kept(
        context=[
            UserEntry(content="Hello"),
            AssistantEntry(content="Good day"),
            UserEntry(content="Bye"),
            AssistantEntry(content="See you"),
        ],
        records=[TurnRecord(state="completed", accepted_at_ms=1) for _ in range(2)],
        events=[TurnCompleted(conversation_id="c", turn_id=f"t{n}") for n in (1, 2)],
        calls=[call(1), call(2)],
        totals=Totals(turns=2, calls=2, reported_calls=2, usage=USAGE + USAGE),
        waiting=0,
    )
    return kept, [served(1), served(2)]


def test_an_undisturbed_replay_has_no_faults() -> None:
    """What is right is not complained of."""
    assert faults_of(DIALOGUE, *good(), wire="responses", with_kills=False) == []


def test_an_answer_without_words_leaves_no_message() -> None:
    """Recorded answers are held against the context by the rule by which it is committed."""
    blank = Dialogue(
        "d", [RecordedTurn("user", "Hello"), RecordedTurn("system", " \n"), *DIALOGUE.turns[2:]]
    )
    kept, requests = good()
    requests[1] = served(2, continuity=Continuity(lost_reasoning=1))  # there is no place for it
    context = [entry for n, entry in enumerate(kept.context) if n != 1]

    assert faults_of(blank, kept, requests, wire="responses", with_kills=False) != []
    kept = msgspec.structs.replace(kept, context=context)
    assert faults_of(blank, kept, requests, wire="responses", with_kills=False) == []


@pytest.mark.parametrize("content", ["", " "])
def test_a_message_of_nothing_but_a_call_has_no_words(content: str) -> None:
    """Whether its content is empty or the space that xAI wants makes no difference."""
    kept, requests = good()
    called: list[ContextEntry] = [
        AssistantEntry(content=content),
        ToolEntry(content="told", tool_call_id="1"),
    ]
    context = [kept.context[0], *called, *kept.context[1:]]
    calls = ExpectedCalls({1: "told"}, 0)

    kept = msgspec.structs.replace(kept, context=context)
    assert (
        faults_of(DIALOGUE, kept, requests, wire="responses", with_kills=False, calls=calls) == []
    )


def test_a_killed_attempt_is_no_fault_where_workers_are_killed() -> None:
    """A cut request and its abandoned call change nothing about the answers."""
    kept, requests = good()
    calls = [call(1, abandoned=True, state="unknown", usage=Usage()), *kept.calls]
    totals = msgspec.structs.replace(kept.totals, calls=3, unknown_calls=1)
    kept = msgspec.structs.replace(kept, calls=calls, totals=totals)
    requests.insert(0, served(0, outcome="cut", usage_reported=False))

    assert faults_of(DIALOGUE, kept, requests, wire="responses", with_kills=True) == []
    assert faults_of(DIALOGUE, kept, requests, wire="responses", with_kills=False) != []


@pytest.mark.parametrize(
    ("fields", "phrase"),
    [
        ({"context": good()[0].context[:2]}, "2 messages in the context instead of 4"),
        ({"context": [*good()[0].context[:3], UserEntry(content="x")]}, "message 3 is of role"),
        (
            {"context": [*good()[0].context[:3], AssistantEntry(content="x")]},
            "message 3 (assistant) has another text",
        ),
        (
            {"records": [TurnRecord(state="failed", accepted_at_ms=1), good()[0].records[0]]},
            "turn records: 1 completed, 1 failed instead of 2 completed",
        ),
        ({"events": good()[0].events[:1]}, "1 turns have a terminal event instead of 2"),
        ({"events": [*good()[0].events, good()[0].events[0]]}, "turn t1 ended 2 times"),
        ({"waiting": 1}, "1 messages still wait"),
        ({"totals": Totals(turns=2, calls=2, reported_calls=2, usage=USAGE)}, "not the sum"),
        ({"calls": [call(1), call(2, usage=Usage(total_tokens=9))]}, "1 answers whose tokens"),
        ({"calls": good()[0].calls[:1]}, "1 calls in the ledger, but the simulator served 2"),
        (
            {"totals": msgspec.structs.replace(good()[0].totals, abandoned=USAGE)},
            "some spend is estimated, unknown or abandoned",
        ),
    ],
)
@pytest.mark.parametrize("with_kills", [False, True])
def test_each_fault_is_named(fields: dict[str, Any], phrase: str, with_kills: bool) -> None:
    """Break one thing, and it stands in the list."""
    kept, requests = good()

    found = faults_of(
        DIALOGUE,
        msgspec.structs.replace(kept, **fields),
        requests,
        wire="responses",
        with_kills=with_kills,
    )

    allowed = with_kills and phrase.startswith("some spend")
    assert any(phrase in fault for fault in found) is not allowed


def test_a_request_that_no_worker_noted_is_a_fault() -> None:
    """The simulator's ledger may not know more than ours."""
    kept, requests = good()

    found = faults_of(DIALOGUE, kept, [*requests, served(3)], wire="responses", with_kills=True)

    assert found == ["2 calls in the ledger, but the simulator served 3"]


@pytest.mark.parametrize("with_kills", [False, True])
@pytest.mark.parametrize(
    ("fields", "phrase"),
    [
        ({"path": "/v1/chat/completions"}, "1 requests on another wire than responses"),
        ({"continuity": Continuity(lost_reasoning=2)}, "2 reasoning items did not come back"),
        ({"continuity": Continuity(prefix_kept=False)}, "1 requests change what stood"),
        ({"continuity": Continuity(head_kept=False)}, "1 requests change what stood"),
    ],
)
def test_what_the_model_lost_is_a_fault(
    fields: dict[str, Any], phrase: str, with_kills: bool
) -> None:
    """Killed workers excuse nothing: what was committed is sent as it was."""
    kept, requests = good()
    requests[1] = served(2, **fields)

    (found,) = faults_of(DIALOGUE, kept, requests, wire="responses", with_kills=with_kills)

    assert found.startswith(phrase)


def test_quantiles_lie_within_the_values() -> None:
    """The smallest, the middle and the largest, also of few values."""
    values = [5.0, 1.0, 3.0]

    assert [quantile(values, share) for share in (0, 0.5, 0.99, 1)] == [1, 3, 5, 5]
    assert quantile([], 0.5) == 0
