"""The drills of `turnline chaos --drill` in few rounds: what must not happen at all, does not."""

import asyncio

import pytest

from tests.support.lengths import length
from turnline.ops.chaos import drills, endless
from turnline.ops.chaos.figures import Name


@pytest.mark.promise("P5")
@pytest.mark.parametrize(
    ("name", "rounds"),
    [
        ("kill", length(1, 2)),
        ("child", 1),
        ("stall", 1),
        ("term", 1),
        ("cancel", length(2, 3)),
        ("end", length(2, 4)),
    ],
)
@pytest.mark.timeout(180)
def test_nothing_is_shown_or_run_twice_and_no_partial_reply_is_lost(
    name: Name, rounds: int
) -> None:
    """Times are for quiet machines to measure; counts are the same on all."""
    drilled = drills.run(name, rounds=rounds, tell=lambda _: None)

    assert [row for row in drilled.rows if row.most == 0 and row.value] == []
    assert drilled.rows[0].value == rounds


@pytest.mark.promise("P12")
@pytest.mark.timeout(120)
def test_malformed_replies_are_paid_twice_at_most_and_fail_nobody_else() -> None:
    """A slice of five seconds without them and one with them; the ratio of times informs here."""
    drilled = drills.run("malformed", rounds=1, tell=lambda _: None)

    figures = {row.what: row for row in drilled.rows}
    assert figures["turns with malformed replies"].value > 20
    assert figures["most paid for one turn"].value == 2
    assert figures["turns of the others that failed"].value == 0
    assert figures["p99 with, by that without"].value < 10


@pytest.mark.promise("P9")
@pytest.mark.timeout(180)
def test_a_provider_that_sends_for_ever_fills_neither_worker_nor_redis() -> None:
    """The turn ends by name, the worker stays below 200 MB, Redis grows by less than 5 MB."""
    kinds = ("compressed", "calls", "informational responses")
    kinds += length((), ("text", "chunk extensions", "arguments", "blank lines", "one JSON body"))

    drilled = asyncio.run(endless.drill(1, lambda _: None, kinds=kinds))

    assert [row for row in drilled.rows if not row.is_kept] == []
    assert len(drilled.rows) == 4 * len(kinds)
