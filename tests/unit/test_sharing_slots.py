"""Slots are shared: none is lost, none is given twice, and whoever waits is told in turn."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from turnline.worker.queue.slots import Slots


def test_a_shard_alone_takes_all() -> None:
    """There is nobody to leave one to."""
    slots = Slots(7)
    assert (slots.take(), slots.free, slots.take()) == (7, 0, 0)


def test_one_of_several_leaves_some() -> None:
    """Until the last one."""
    slots = Slots(10, shards=3)
    assert [slots.take() for _ in range(7)] == [3, 2, 2, 1, 1, 1, 0]


def test_who_waits_is_told_in_turn() -> None:
    """Once each, and not any more when it has gone."""
    told: list[str] = []

    def teller(name: str) -> Callable[[], None]:
        return lambda: told.append(name)

    a, b, c = (teller(name) for name in "abc")
    slots = Slots(1, shards=3)
    for it in (a, b, c):
        slots.wait(it)
    slots.wait_no_more(b)

    slots.give_back(0)
    assert told == []
    for _ in range(3):
        slots.give_back(1)
    assert told == ["a", "c"]


@given(st.integers(1, 50), st.integers(1, 9), st.lists(st.integers(0, 20)))
def test_none_is_lost(total: int, shards: int, returns: list[int]) -> None:
    """Whatever is taken and given back."""
    slots, taken = Slots(total, shards=shards), 0
    for count in returns:
        taken += slots.take()
        back = min(count, taken)
        taken -= back
        slots.give_back(back)
        assert slots.free + taken == total
