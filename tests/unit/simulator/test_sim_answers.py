"""What is answered: recorded dialogues, values for schemas, the pace, the ledger's limits."""

import json
import random
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnline.ops.simulator.config import Pacing
from turnline.ops.simulator.faults.response_plan import Frame, FrameKind, Plan
from turnline.ops.simulator.model.dialogues import (
    Dialogue,
    Dialogues,
    Next,
    RecordedTurn,
    ServiceCall,
    load_dialogues,
)
from turnline.ops.simulator.model.pacing import Tempo
from turnline.ops.simulator.model.prompt import CalledFunction, ChatMessage, EarlierCall
from turnline.ops.simulator.model.schema_values import instance
from turnline.ops.simulator.model.usage import CompletionDetails, PromptDetails, Usage
from turnline.ops.simulator.request_ledger import Entry, Ledger

CALL = ServiceCall("Book", {"table": "2"})
BOOKING = Dialogue(
    "d1",
    [
        RecordedTurn("user", "A table, please."),
        RecordedTurn("system", "For how many?"),
        RecordedTurn("user", "Two."),
        RecordedTurn("system", "Done.", CALL),
    ],
)
OTHER = Dialogue("d2", [RecordedTurn("user", "A table, please."), RecordedTurn("system", "No.")])
DIALOGUES = Dialogues([BOOKING, OTHER])
OPENING = ChatMessage("user", "A table, please.")
SECOND = [OPENING, ChatMessage("assistant", "For how many?"), ChatMessage("user", "Two.")]
CALLED = ChatMessage("assistant", "", [EarlierCall(CalledFunction("Book"), "call_1")])
RESULT = ChatMessage("tool", "ok", tool_call_id="call_1")


@pytest.mark.parametrize(
    ("conversation_id", "messages", "tools", "expected"),
    [
        ("d1", [OPENING], [], Next("For how many?", None)),
        ("replay/d2", [OPENING], [], Next("No.", None)),
        (None, [OPENING], [], Next("For how many?", None)),
        (None, SECOND, [], Next("Done.", None)),
        (None, SECOND, ["Book"], Next("Done.", CALL)),
        ("d1", SECOND, ["Cancel"], Next("Done.", None)),
        ("d1", [*SECOND, CALLED], ["Book"], Next("Done.", CALL)),
        ("d1", [*SECOND, CALLED, RESULT], ["Book"], Next("Done.", None)),
        ("d1", [*SECOND, ChatMessage("user", "Thanks.")], [], None),
        ("d1", [ChatMessage("user", "Two.")], [], Next("Done.", None)),
        (None, [ChatMessage("user", "Two.")], [], None),
        ("d1", [ChatMessage("system", "Hello")], [], None),
        ("unknown", [ChatMessage("user", "What?")], [], None),
        ("d1", [ChatMessage("user", "Something else.")], [], Next("For how many?", None)),
    ],
)
def test_the_recorded_turn_comes_next(
    conversation_id: str | None,
    messages: list[ChatMessage],
    tools: list[str],
    expected: Next | None,
) -> None:
    """By id or by what the user said; a call first if its tool is offered and it is not made."""
    assert DIALOGUES.next(conversation_id, messages, tools) == expected


def test_a_call_of_an_earlier_turn_does_not_count() -> None:
    """The same method is called again after the user spoke again."""
    again = Dialogue("d", [*BOOKING.turns, RecordedTurn("user", "Again."), BOOKING.turns[3]])
    messages = [*SECOND, CALLED, RESULT, ChatMessage("assistant", "Done.")]
    messages.append(ChatMessage("user", "Again."))

    assert Dialogues([again]).next("d", messages, ["Book"]) == Next("Done.", CALL)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "object"}, {}),
        ({"type": "object", "properties": {"a": {"type": "integer", "minimum": 5}}}, {"a": 5}),
        ({"properties": {"a": {"enum": ["x", "y"]}, "b": {"const": 3}}}, {"a": "x", "b": 3}),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, [True, True]),
        ({"type": "array", "items": {}, "maxItems": 0}, []),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, None),
        ({"type": ["number", "null"], "maximum": 0.5}, 0.5),
        ({"type": "string", "minLength": 9}, "examplexx"),
        ({"type": "string", "maxLength": 3}, "exa"),
        ({"type": "string", "format": "date"}, "2026-01-02"),
        (
            {
                "$defs": {"p": {"type": "object", "properties": {"n": {"type": "string"}}}},
                "type": "object",
                "properties": {"p": {"$ref": "#/$defs/p"}},
            },
            {"p": {"n": "example"}},
        ),
        (
            {"allOf": [{"properties": {"a": {"type": "null"}}}, {"properties": {"b": {}}}]},
            {"a": None, "b": "example"},
        ),
    ],
)
def test_values_fit_their_schema(schema: dict[str, object], value: object) -> None:
    """The plainest value that the schema allows."""
    assert instance(schema) == value


def test_a_schema_that_contains_itself_ends() -> None:
    """Recursion is cut off at some depth."""
    schema = {"type": "object", "properties": {"next": {"$ref": "#"}}}

    assert json.dumps(instance(schema)).count("next") < 20


def stream(tokens: int) -> Plan:
    frames = [Frame(kind=FrameKind.CONTENT, data=b"x", tokens=1) for _ in range(tokens)]
    return Plan(steps=[*frames, Frame(kind=FrameKind.DONE, data=b"x")], is_stream=True)


def laid(pacing: Pacing, seed: int = 0, tokens: int = 20) -> list[Frame]:
    plan = stream(tokens)
    Tempo(pacing, random.Random(seed)).lay(plan)
    return plan.frames()


def test_nothing_waits_by_default() -> None:
    """Tests do not pay for realism that they do not ask for."""
    assert sum(frame.delay_s for frame in laid(Pacing())) == 0
    assert Tempo(Pacing(), random.Random(0)).is_instant


def test_exact_times_are_exact() -> None:
    """200 ms, then 15 ms between tokens, nothing before the end."""
    delays = [frame.delay_s for frame in laid(Pacing(ttft_ms=200, itl_ms=15))]

    assert delays == [0.2, *[0.015] * 19, 0.0]


def test_drawn_times_have_the_measured_medians() -> None:
    """At real time 311 ms to the first token and 7.4 ms between two; ten times as fast, a tenth."""
    rng = random.Random(1)
    tempo, fast = Tempo(Pacing(speed=1), rng), Tempo(Pacing(speed=10), rng)
    first = sorted(tempo.first_s() for _ in range(999))[499]
    between = sorted(tempo.next_s() for _ in range(999))[499]
    fast_first = sorted(fast.first_s() for _ in range(999))[499]

    assert first == pytest.approx(0.311, rel=0.1)
    assert between == pytest.approx(0.0074, rel=0.1)
    assert fast_first == pytest.approx(0.0311, rel=0.1)


def test_the_same_seed_gives_the_same_times() -> None:
    """Pacing can be repeated."""
    pacing = Pacing(speed=1)

    assert [f.delay_s for f in laid(pacing, 3)] == [f.delay_s for f in laid(pacing, 3)]
    assert [f.delay_s for f in laid(pacing, 3)] != [f.delay_s for f in laid(pacing, 4)]


@given(st.integers(1, 7), st.integers(0, 7), st.integers(0, 50))
def test_coalescing_changes_no_total(fewest: int, more: int, seed: int) -> None:
    """Groups have the asked size, and the whole takes as long as before."""
    frames = laid(Pacing(itl_ms=10, ttft_ms=10, coalesce=(fewest, fewest + more)), seed)
    starts = [index for index, frame in enumerate(frames) if frame.opens_write]
    sizes = [b - a for a, b in zip(starts, [*starts[1:], len(frames)], strict=True)]

    assert sum(frame.delay_s for frame in frames) == pytest.approx(0.2)
    assert starts[0] == 0
    assert all(fewest <= size <= fewest + more for size in sizes[:-1])


def opened(ledger: Ledger, conversation: str = "c") -> Entry:
    entry = ledger.open(
        received_at_ms=0, method="POST", path="/", headers={"authorization": "Bearer secret"}
    )
    entry.conversation_id = conversation
    return entry


def test_the_ledger_redacts_keys() -> None:
    """The key that was sent is nowhere in the entry."""
    entry = opened(Ledger(0, 0, 0))

    assert b"secret" not in msgspec.json.encode(entry)


def test_the_ledger_drops_the_oldest_and_counts_them() -> None:
    """Two of five entries are kept, three are counted, numbers go on."""
    ledger = Ledger(2, 0, 0)
    for _ in range(5):
        opened(ledger)

    assert [entry.seq for entry in ledger.entries()] == [4, 5]
    assert ledger.dropped_entries == 3
    assert ledger.summary().dropped_entries == 3


def test_the_ledger_drops_bodies_before_entries() -> None:
    """Old bodies make room for new ones; too large ones are never kept; the entries stay."""
    ledger = Ledger(0, 10, 8)
    entries = [opened(ledger) for _ in range(3)]
    for entry, body in zip(entries, (b"1234", b"12345678", b"123456789"), strict=True):
        ledger.keep_body(entry, body, is_json=True)

    assert [entry.body is not None for entry in entries] == [False, True, False]
    assert [entry.body_bytes for entry in entries] == [4, 8, 9]
    assert (len(ledger), ledger.dropped_bodies) == (3, 2)


def test_the_ledger_adds_up_what_was_reported() -> None:
    """Usage that was never written is counted as such, not into the sums."""
    ledger, used = Ledger(0, 0, 0), usage_of(10, 5, 2)
    for conversation, reported in (("a", True), ("a", False), ("b", True)):
        entry = opened(ledger, conversation)
        entry.usage, entry.usage_reported, entry.tokens_streamed = used, reported, 5
        entry.outcome = "whole" if reported else "cut"
    summary = ledger.summary()

    assert summary.overall.total_tokens == 34
    assert summary.overall.unreported == 1
    assert (summary.overall.whole, summary.overall.cut) == (2, 1)
    assert summary.conversations["a"].total_tokens == 17
    assert summary.overall.tokens_streamed == 15
    assert [entry.seq for entry in ledger.entries(conversation="a", since=1)] == [2]


def usage_of(prompt: int, visible: int, reasoning: int) -> Usage:
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=visible,
        total_tokens=prompt + visible + reasoning,
        prompt_tokens_details=PromptDetails(text_tokens=prompt),
        completion_tokens_details=CompletionDetails(reasoning_tokens=reasoning),
    )


def test_every_recorded_dialogue_can_be_replayed(shared_data: Path) -> None:
    """All turns of all dialogues come back with their calls."""
    path = shared_data / "sgd/dialogues.jsonl"
    dialogues = Dialogues(load_dialogues(path))
    wrong = calls = 0
    for line in path.read_bytes().splitlines():
        dialogue = msgspec.json.decode(line, type=Dialogue)
        messages: list[ChatMessage] = []
        for user, system in zip(dialogue.turns[::2], dialogue.turns[1::2], strict=True):
            messages.append(ChatMessage("user", user.text))
            tools = [system.call.method] if system.call is not None else []
            expected = Next(system.text, system.call)
            found = dialogues.next(f"x/{dialogue.dialogue_id}", messages, tools)
            wrong += found != expected
            calls += system.call is not None
            messages.append(ChatMessage("assistant", system.text))

    assert (wrong, calls, len(dialogues)) == (0, 1567, 768)


@pytest.mark.parametrize("bound", ["minLength", "maxLength", "minItems", "maxItems"])
@pytest.mark.parametrize("size", [2**64, -(2**64), 10**4000], ids=["large", "negative", "huge"])
def test_an_instance_for_a_schema_of_any_size(bound: str, size: int) -> None:
    """A server that broke off the connection would be asked again and again."""
    for kind in ("string", "array"):
        assert len(msgspec.json.encode(instance({"type": kind, bound: size}))) < 30_000
