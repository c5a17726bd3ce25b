"""The drills of `turnline chaos --drill` in few rounds: what must not happen at all, does not."""

import pytest

from ops.chaos import drills


@pytest.mark.promise("P5")
@pytest.mark.parametrize(
    ("name", "rounds"), [("kill", 2), ("stall", 1), ("term", 1), ("cancel", 3)]
)
@pytest.mark.timeout(180)
def test_nothing_is_shown_or_run_twice_and_no_partial_reply_is_lost(
    name: drills.Name, rounds: int
) -> None:
    """Times are for quiet machines to measure; counts are the same on all."""
    drilled = drills.run(name, rounds=rounds, tell=lambda _: None)

    assert [row for row in drilled.rows if row.most == 0 and row.value] == []
    assert drilled.rows[0].value == rounds
