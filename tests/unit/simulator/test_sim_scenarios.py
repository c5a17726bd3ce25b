"""Reading scenarios, sorting them, injecting them, and where they strike."""

import contextlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnline.ops.simulator.faults import catalogue
from turnline.ops.simulator.faults.response_plan import (
    Frame,
    FrameKind,
    Plan,
    Position,
    Where,
    position,
)
from turnline.ops.simulator.faults.rules import Rule, RuleBook
from turnline.ops.simulator.faults.scenario import BadScenario, Scenario, parse


@pytest.mark.parametrize(
    ("text", "scenarios"),
    [
        ("", []),
        ("rst", [Scenario("rst")]),
        ("rst;at=tokens:5", [Scenario("rst", {"at": "tokens:5"})]),
        ("chunks=20", [Scenario("chunks", {"value": "20"})]),
        ("error_frame; shape=flat, then=done", [
            Scenario("error-frame", {"shape": "flat", "then": "done"})
        ]),
        ("text;say=a%2Cb%7Cc | eof", [Scenario("text", {"say": "a,b|c"}), Scenario("eof")]),
    ],
)  # fmt: skip
def test_scenarios_are_read(text: str, scenarios: list[Scenario]) -> None:
    """Names, arguments, several at once, percent-encoded values."""
    assert parse(text) == scenarios


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text makes the reader fail in another way."""
    with contextlib.suppress(BadScenario):
        assert isinstance(catalogue.read(text), list)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("rts", "no scenario is called 'rts'"), ("rst;where=1", "rst takes at, after, not where")],
)
def test_misspelt_scenarios_are_refused(text: str, complaint: str) -> None:
    """A typo in a test must not look like a faultless answer."""
    with pytest.raises(BadScenario, match=complaint):
        catalogue.read(text)


def test_no_name_stands_for_two_scenarios() -> None:
    """Names are unique over all groups, so the first group found is the only one."""
    names = Counter(name for group in catalogue.GROUPS.values() for name in group)

    assert [name for name, times in names.items() if times > 1] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("before_headers", Position(Where.BEFORE_HEADERS)),
        ("before-done", Position(Where.BEFORE_DONE)),
        ("tokens:5", Position(Where.TOKENS, 5)),
        ("tokens=0", Position(Where.TOKENS, 0)),
    ],
)
def test_positions_are_read(text: str, found: Position) -> None:
    """With hyphens or underscores, with a number where one belongs."""
    assert position(text) == found


@pytest.mark.parametrize("text", ["", "tokens", "tokens:x", "before_headers:3", "end"])
def test_other_words_are_no_positions(text: str) -> None:
    """What is not a position is refused."""
    with pytest.raises(BadScenario):
        position(text)


def stream_plan() -> Plan:
    kinds = [FrameKind.CONTENT] * 3 + [FrameKind.FINISH, FrameKind.USAGE, FrameKind.DONE]
    frames = [Frame(kind=kind, data=b"x", tokens=int(kind is FrameKind.CONTENT)) for kind in kinds]
    return Plan(steps=list(frames), is_stream=True)


@pytest.mark.parametrize(
    ("where", "index"),
    [
        ("after_headers", 0),
        ("first_frame", 1),
        ("tokens:0", 0),
        ("tokens:2", 2),
        ("tokens:9", 3),
        ("before_finish", 3),
        ("before_usage", 4),
        ("before_done", 5),
    ],
)
def test_positions_are_found_in_a_stream(where: str, index: int) -> None:
    """Every position is a step of the plan; a late one is the end of the content."""
    assert stream_plan().index(position(where)) == index


def test_a_body_is_cut_in_its_middle() -> None:
    """An answer that is not streamed has one place inside."""
    plan = Plan(steps=[Frame(kind=FrameKind.BODY, data=b"abcd", stamped=False, finishes=True)])
    index = plan.index(position("tokens:1"))

    assert index == 1
    assert [frame.data for frame in plan.frames()] == [b"ab", b"cd"]
    assert [frame.finishes for frame in plan.frames()] == [False, True]


def test_the_nth_request_is_hit_as_often_as_said() -> None:
    """The third and fourth of six requests, and only they."""
    book = RuleBook()
    book.add(Rule(scenario="unavailable", nth=3, times=2))

    assert [bool(book.hit(None)) for _ in range(6)] == [False, False, True, True, False, False]
    assert book.states() == []


def test_only_matching_conversations_are_hit() -> None:
    """Other conversations are not even counted."""
    book = RuleBook()
    book.add(Rule(scenario="rst", conversation="chat-*", nth=2))
    hits = [bool(book.hit(conversation)) for conversation in ("chat-1", None, "x", "chat-2")]

    assert hits == [False, False, False, True]


def test_only_matching_paths_are_hit() -> None:
    """Scenarios of one wire leave the other alone."""
    book = RuleBook()
    book.add(Rule(scenario="incomplete", path="*/responses"))
    paths = ("/v1/chat/completions", "/v1/responses/compact", "/v1/responses")

    assert [bool(book.hit("c", path)) for path in paths] == [False, False, True]


def test_only_matching_models_and_keys_are_hit() -> None:
    """One model fails, or one key, and the others answer."""
    book = RuleBook()
    book.add(Rule(scenario="capacity", model="grok-4.7"))

    assert [bool(book.hit("c", "/", model)) for model in ("", "grok-4.3", "grok-4.7")] == [
        *(False, False, True),
    ]
    book.add(Rule(scenario="credits", key="xai-a"))
    hits = [bool(book.hit("c", "/", "grok-4.3", key)) for key in ("", "xai-b", "xai-a")]
    assert hits == [False, False, True]


def test_chances_repeat_with_their_seed() -> None:
    """The same seed hits the same requests, about as many as the probability says."""

    def hits(seed: int) -> list[bool]:
        book = RuleBook()
        book.add(Rule(scenario="rst", times=None, probability=0.3, seed=seed))
        return [bool(book.hit("c")) for _ in range(200)]

    assert hits(1) == hits(1) != hits(2)
    assert 30 < sum(hits(1)) < 90


def test_rules_can_be_taken_back() -> None:
    """A rule that is removed hits nothing; removing it again says so."""
    book = RuleBook()
    number = book.add(Rule(scenario="rst", times=None))

    assert book.remove(number)
    assert not book.remove(number)
    assert book.hit("c") == []


def test_failures_are_counted_by_key() -> None:
    """The first two of a key fail, whatever other keys do."""
    book = RuleBook()

    assert [book.fails_again(key, 2) for key in "aabaa"] == [True, True, True, False, False]
