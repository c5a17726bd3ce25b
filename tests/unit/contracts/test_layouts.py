"""What a fleet knows of its number of shards, and in which order a message looks for its shard."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnline.contracts import Receipt, StoreUnavailable, UserMessage
from turnline.contracts.homes import Homes
from turnline.contracts.layout import Elsewhere, Layout, read_layout
from turnline.contracts.protocol import Requests, Submission
from turnline.contracts.scripts import SubmitArgs

layouts = st.builds(
    Layout,
    st.integers(1, 16_384),
    st.integers(0, 16_384),
    st.lists(st.integers(1, 16_384), max_size=4).map(tuple),
)


@given(layouts)
def test_what_is_written_is_read(layout: Layout) -> None:
    """As the fields of a hash, whose values are bytes."""
    words = [word.encode() for word in layout.fields()]
    assert read_layout(words[1::2]) == layout


@pytest.mark.parametrize(
    "values",
    [
        [None, None, None],
        [b"many", b"", b""],
        [b"0", b"", b""],
        [b"-1", b"", b""],
        [b"99999", b"", b""],
        [b"01", b"", b""],
        [b"+1", b"", b""],
        [b" 1", b"", b""],
        [b"1_0", b"", b""],
        [b"1.0", b"", b""],
        [b"1\n", b"", b""],
        ["\u0663".encode(), b"", b""],
        [b"\xff", b"", b""],
    ],
)
def test_what_makes_no_sense_is_nothing(values: Sequence[Any]) -> None:
    """Others may write there, too."""
    assert read_layout(values) is None


@pytest.mark.parametrize("word", [b"0", b"x", b"99999", b"01", b"\xff"])
def test_what_makes_no_sense_beside_a_number_is_left_out(word: bytes) -> None:
    """The number counts."""
    assert read_layout([b"4", word, b"1," + word]) == Layout(4, 0, (1,))


def test_an_older_version_knows_one_field() -> None:
    """The number."""
    assert read_layout([b"4", None, None]) == Layout(4)


def test_where_something_may_be_left() -> None:
    """In the shards of each number, the likeliest first."""
    layout = Layout(6, 48, (1, 48))
    assert (layout.homes, layout.every, layout.widest) == ((48, 6), (48, 6, 1), 48)


class Shards:
    """Answers as shards would, from a list; notes by which numbers it was asked."""

    def __init__(self, *answers: Layout | tuple[Layout, str] | None) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[int, int]] = []
        self.turns: list[str] = []
        self.pauses = 0

    async def send(self, submissions: Sequence[Submission]) -> list[Receipt | Exception]:
        return [self._answer(it) for it in submissions]

    def _answer(self, submission: Submission) -> Receipt | Exception:
        args = SubmitArgs(*cast("Any", submission.call.args))
        self.asked.append((args.shards, args.told_from))
        answer = self._answers.pop(0) if self._answers else None
        if answer is None:
            self.turns.append(submission.turn_id)
            return Receipt(conversation_id="c", turn_id=submission.turn_id, status="accepted")
        is_here = not isinstance(answer, Layout)
        return Elsewhere(answer[0] if is_here else answer, is_here=is_here)  # type: ignore[arg-type]

    async def execute(self, _key: str, *_command: Any) -> list[None]:
        return [None, None, None]

    async def sleep(self, _seconds: float) -> None:
        self.pauses += 1


def put(shards: Shards, count: int = 1, patience_s: float = 5.0) -> list[Receipt | Exception]:
    """Put messages of one conversation in, by a client that was given one shard."""
    make = Requests()
    homes = Homes(make, cast("Any", shards), patience_s, shards.sleep)
    messages = [UserMessage(conversation_id="c", turn_id=str(n), text="Hi") for n in range(count)]
    send: Callable[..., Any] = shards.send
    return asyncio.run(homes.put([make.submission(it) for it in messages], send))


MOVING = Layout(48, 1, (1,))


def test_a_shard_that_has_it_takes_it() -> None:
    """Nothing else is asked."""
    put(shards := Shards())
    assert shards.asked == [(1, 0)]


def test_the_old_shard_is_asked_before_the_new_one() -> None:
    """Also by whoever came to the new one first; then it is told that."""
    put(shards := Shards(MOVING))
    assert shards.asked == [(1, 0), (48, 1)]

    put(shards := Shards(Layout(6, 48, (48,)), Layout(6, 48, (48,))))
    assert shards.asked == [(1, 0), (48, 48), (6, 48)]


def test_whoever_has_to_wait_asks_the_same_shard() -> None:
    """At once where it only had to be told that the fleet is resharded."""
    put(shards := Shards((MOVING, "here"), (MOVING, "here"), MOVING))
    assert shards.asked == [(1, 0), (1, 1), (1, 1), (48, 1)]
    assert shards.pauses == 1


def test_messages_of_a_conversation_stay_in_order() -> None:
    """The first one is refused, and would be overtaken by the second one."""
    answers = [(MOVING, "here"), (MOVING, "here"), (MOVING, "here"), (MOVING, "here")]
    put(shards := Shards(*answers), count=3)
    assert shards.turns == ["0", "1", "2"]
    assert shards.asked[:3] == [(1, 0)] * 3
    assert shards.asked[3:5] == [(1, 1)] * 2


def test_shards_that_never_agree_are_told_of() -> None:
    """After as long as the producer is patient."""
    answers = [Layout(2), Layout(3)] * 1_000
    (outcome,) = put(shards := Shards(*answers), patience_s=0.0)
    assert isinstance(outcome, StoreUnavailable)
    assert len(shards.asked) < len(answers)
