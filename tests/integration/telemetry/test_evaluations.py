"""Ratings as OpenTelemetry has them: an event in the rated turn's trace, and one in a span."""

from typing import Any

import pytest

from tests.integration.telemetry.watching import KeptSpans, WatchedHand, assert_whole, watched
from tests.support.driving import user
from turnline.contracts import Receipt, TurnClient
from turnline.contracts.trace_context import Link
from turnline.ops.simulator import Simulator
from turnline.ops.traces.kept_traces import TracedTurn
from turnline.ops.traces.waterfall import rows
from turnline.worker.telemetry import captured_content
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.spans import Span

WHY = "wombat-7c1f"


def events(hand: WatchedHand) -> list[Any]:
    return [it.log_record for it in hand.logged.get_finished_logs()]


def turn_of(kept: KeptSpans, receipt: Receipt) -> Span:
    """The own span of a turn."""
    turns = (it for it in kept.named("turn") if it.attributes[n.TURN_ID] == receipt.turn_id)
    return next(turns)


def link_to(span: Span) -> Link:
    return Link(span.trace_id, span.span_id)


async def answered(hand: WatchedHand) -> Receipt:
    receipt = await hand.client.submit(user())
    await hand.run_one()
    return receipt


async def test_a_rating_is_an_event_within_the_turn_that_is_rated(
    hand: WatchedHand, kept: KeptSpans
) -> None:
    """By the conventions, parented to the turn's root; on its own span with a link to that."""
    asked = await answered(hand)
    rated = await hand.client.feedback(asked, 0.5, name="helpful", label="so so", explanation=WHY)

    await hand.run_one()

    about = {
        n.CONVERSATION_ID: "c",
        n.TURN_ID: asked.turn_id,
        n.EVALUATION_NAME: "helpful",
        n.EVALUATION_SCORE: 0.5,
        n.EVALUATION_LABEL: "so so",
    }
    turn, own = turn_of(kept, asked), turn_of(kept, rated)
    (event,) = events(hand)
    assert event.event_name == "gen_ai.evaluation.result"
    assert dict(event.attributes) == about
    assert (f"{event.trace_id:032x}", f"{event.span_id:016x}") == link_to(turn)
    assert own.start_ns <= event.timestamp <= own.end_ns
    (told,) = own.events
    assert (told.name, told.attributes) == ("gen_ai.evaluation.result", about)
    assert own.links == (link_to(turn),)
    assert own.trace_id == rated.trace_id != turn.trace_id
    assert turn.events == ()
    assert_whole(kept)
    shown = TracedTurn(
        conversation_id="c", turn_id="r", trace_id=own.trace_id, state="completed", spans=[own]
    )
    (row,) = rows(shown)
    assert row.details == f"completed, rates {asked.turn_id}: helpful 0.5 so so"


async def test_each_rating_of_a_batch_is_an_event(hand: WatchedHand, kept: KeptSpans) -> None:
    """On its own span; what a rating leaves out is not told, and one that fails is none."""
    asked = await answered(hand)
    score = await hand.client.feedback(asked, 1)
    label = await hand.client.feedback(asked, name="tone", label="rude")
    gone = Receipt(conversation_id="c", turn_id="nobody", status="accepted")
    lost = await hand.client.feedback(gone, 1)

    await hand.run_one()

    values = [
        (e.attributes[n.EVALUATION_NAME], e.attributes.get(n.EVALUATION_SCORE))
        for e in events(hand)
    ]
    assert values == [("user_feedback", 1.0), ("tone", None)]
    assert n.EVALUATION_LABEL not in events(hand)[0].attributes
    turn = link_to(turn_of(kept, asked))
    for receipt in (score, label):
        own = turn_of(kept, receipt)
        assert len(own.events) == 1
        assert turn in own.links
    failed = turn_of(kept, lost)
    assert (failed.events, failed.error) == ((), "unknown_turn")
    assert hand.measured(n.M_DEAD) == {}


async def test_an_explanation_is_content(
    redis_url: str, client: TurnClient, kept: KeptSpans, sim: Simulator
) -> None:
    """In event and span only where content is captured, and past the redactor."""
    seen: list[tuple[str, Any]] = []

    def redact(name: str, attributes: dict[str, Any]) -> dict[str, Any]:
        if name == n.EVALUATION_EVENT:
            seen.append((name, attributes.pop(n.EVALUATION_EXPLANATION, None)))
        return attributes

    for more in ({}, {"capture": True}, {"capture": True, "redact": redact}):
        async with watched(redis_url, sim, kept, **more) as hand:
            hand.client = client
            rated = await client.feedback(await answered(hand), explanation=WHY)
            await hand.run_one()
        (event,), (told,) = events(hand), turn_of(kept, rated).events
        shown = [it.get(n.EVALUATION_EXPLANATION) for it in (event.attributes, told.attributes)]
        expected = WHY if more == {"capture": True} else None
        assert shown == [expected, expected]
        assert (WHY in repr(kept.turns)) == (expected == WHY)
        kept.turns.clear()
    assert seen == [(n.EVALUATION_EVENT, WHY)] * 2


@pytest.mark.parametrize(
    ("word", "in_spans", "in_events"),
    [
        ("", False, False),
        ("no_content", False, False),
        ("span_only", True, False),
        ("event_only", False, True),
        ("SPAN_AND_EVENT", True, True),
        ("true", True, True),
    ],
)
def test_the_conventions_variable_tells_where_content_goes(
    word: str, in_spans: bool, in_events: bool
) -> None:
    """Spans and events, which are log records, each by its word."""
    environ = {captured_content.SWITCH: word}

    assert captured_content.is_asked_for(environ) == in_spans
    assert captured_content.is_asked_for_in_events(environ) == in_events


async def test_events_need_no_spans(hand: WatchedHand) -> None:
    """Where none is made, a logger still hears of it."""
    hand.observer = hand.observer._replace(tracing=None, keeper=None)
    asked = await answered(hand)
    await hand.client.feedback(asked, 1)

    await hand.run_one()

    (event,) = events(hand)
    assert f"{event.trace_id:032x}" == asked.trace_id
