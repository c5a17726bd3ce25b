"""The order that the checker of `turnline chaos` expects, with delayed messages in it."""

from turnline.contracts.replies import TurnRecord
from turnline.ops.chaos.evidence import Left
from turnline.ops.chaos.journal import Sent
from turnline.ops.chaos.places import check_places, in_order


def left(**placed_ms: int) -> Left:
    """Turns in the order accepted, with when each took its place."""
    records = {
        turn: TurnRecord(state="accepted", accepted_at_ms=at_ms)
        for turn, at_ms in placed_ms.items()
    }
    return Left(log=tuple(placed_ms), records=records)


def sent(**due_ms: int) -> dict[str, Sent]:
    return {turn: Sent(turn=turn, kind="user", due_ms=at_ms) for turn, at_ms in due_ms.items()}


def test_without_delays_it_is_the_order_accepted() -> None:
    """Whatever the clock said."""
    assert in_order(left(a=5, b=3, c=4), sent(a=0, b=0)) == ["a", "b", "c"]


def test_a_delayed_turn_stands_where_it_took_its_place() -> None:
    """Before what was accepted in the same millisecond; at the end, if nothing came behind."""
    assert in_order(left(a=1, d=30, b=20, c=30), sent(a=0, d=25, b=0, c=0)) == ["a", "b", "d", "c"]
    assert in_order(left(d=40, a=1), sent(a=0, d=25)) == ["a", "d"]


def test_delayed_turns_of_one_place_go_by_time_and_acceptance() -> None:
    """Three that were found due together."""
    found = in_order(left(d=30, e=30, f=30, a=31), sent(d=25, e=20, f=20, a=0))
    assert found == ["e", "f", "d", "a"]


def test_a_turn_before_its_time_is_named() -> None:
    """One that came late is none: nobody may have been there."""
    found = check_places(left(d=23, e=24, f=99, a=1), sent(d=25, e=25, f=25, a=0))
    assert [turn for turn, _ in found] == ["d"]
