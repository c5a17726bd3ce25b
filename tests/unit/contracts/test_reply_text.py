"""The text a reader shows: whole in the end, never of two attempts at once."""

import itertools
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnline.contracts.protocol import TextAssembler
from turnline.contracts.replies import (
    AnyEvent,
    TextDelta,
    ToolCallStarted,
    TurnAbsorbed,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnStarted,
)

IDS = {"conversation_id": "c", "turn_id": "t"}
# Each attempt writes with letters of its own, so that a mixture shows.
ALPHABETS = ("aáä", "bß👀", "cçñ")


def deltas(attempt: int, text: str, cuts: list[int]) -> list[TextDelta]:
    """An attempt's reply in pieces, as a worker publishes it."""
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [
        TextDelta(**IDS, attempt=attempt, text=text[start:end], offset=start)
        for start, end in itertools.pairwise(edges)
    ]


@dataclass
class Reply:
    """What a turn published, and the replies its attempts were writing."""

    events: list[AnyEvent] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)


@st.composite
def replies(draw: st.DrawFn) -> Reply:
    """Attempts one after the other; some announcements are missing, pieces come twice or never."""
    reply = Reply()
    for attempt in range(1, draw(st.integers(1, 3)) + 1):
        text = draw(st.text(ALPHABETS[attempt - 1], max_size=12))
        pieces = deltas(attempt, text, draw(st.lists(st.integers(0, 20), max_size=4)))
        pieces += deltas(attempt, text, draw(st.lists(st.integers(0, 20), max_size=4)))
        order = draw(st.lists(st.sampled_from(pieces), max_size=12) if pieces else st.just([]))
        if draw(st.booleans()):
            reply.events.append(TurnStarted(**IDS, attempt=attempt))
        reply.events += order if draw(st.booleans()) else pieces
        if draw(st.booleans()):
            reply.events.append(ToolCallStarted(**IDS, attempt=attempt, call_id="1", name="f"))
        reply.texts[attempt] = text
    return reply


def late(reply: Reply, draws: st.DataObject) -> list[AnyEvent]:
    """The events, with some of earlier attempts coming again later: a slow zombie's."""
    events = list(reply.events)
    if events:
        for event in draws.draw(st.lists(st.sampled_from(events), max_size=3)):
            where = draws.draw(st.integers(events.index(event), len(events)))
            events.insert(where, event)
    return events


@pytest.mark.promise("P6")
@given(replies(), st.data())
def test_the_text_is_always_the_beginning_of_one_attempts_reply(
    reply: Reply, data: st.DataObject
) -> None:
    """Whatever is lost, repeated or late; and within an attempt it only grows."""
    assembler, newest = TextAssembler(), 0
    for event in late(reply, data):
        before = assembler.text

        changed = assembler.feed(event)

        if event.attempt <= newest:
            assert assembler.text.startswith(before)
        newest = max(newest, event.attempt)
        assert reply.texts[newest].startswith(assembler.text)
        assert changed == (assembler.text != before)


@pytest.mark.promise("P6")
@given(
    replies(),
    st.sampled_from([TurnCompleted, TurnInterrupted]),
    st.text("xyz", max_size=5),
    st.integers(1, 4),
)
def test_the_last_word_is_the_terminal_events(
    reply: Reply, kind: type[TurnCompleted | TurnInterrupted], text: str, attempt: int
) -> None:
    """It is what was committed, whichever attempt it names."""
    assembler = TextAssembler()
    for event in reply.events:
        assembler.feed(event)
    shown = assembler.text

    changed = assembler.feed(kind(**IDS, attempt=attempt, text=text))

    assert assembler.text == text
    assert changed == (shown != text)


@given(st.text(max_size=20), st.lists(st.integers(0, 20), max_size=6), st.integers(1, 3))
def test_a_reply_that_arrives_whole_is_shown_whole(text: str, cuts: list[int], times: int) -> None:
    """Also when all of it is published again, and counted in code points."""
    assembler = TextAssembler()

    for delta in deltas(1, text, cuts) * times:
        wire = msgspec.json.decode(msgspec.json.encode(delta), type=TextDelta)
        assembler.feed(wire)

    assert assembler.text == text


def test_a_turn_that_failed_or_was_absorbed_shows_nothing() -> None:
    """What was streamed of it was not committed."""
    for end in (TurnFailed(**IDS, code="x"), TurnAbsorbed(**IDS, into="u")):
        assembler = TextAssembler()
        assembler.feed(TextDelta(**IDS, text="half of"))

        assert assembler.feed(end)
        assert assembler.text == ""


def test_a_piece_seen_before_does_not_shorten_the_text() -> None:
    """A worker that was not answered publishes the same again."""
    assembler = TextAssembler()
    for delta in deltas(1, "Hello world", [5]):
        assembler.feed(delta)

    assert not assembler.feed(TextDelta(**IDS, text="Hello", offset=0))
    assert assembler.text == "Hello world"


def test_an_attempt_whose_beginning_was_missed_shows_nothing_of_the_one_before() -> None:
    """A reader that resumed behind the announcement waits for the end."""
    assembler = TextAssembler()
    assembler.feed(TextDelta(**IDS, text="Hello world"))

    assert assembler.feed(TextDelta(**IDS, attempt=2, text="you", offset=4))
    assert assembler.text == ""
