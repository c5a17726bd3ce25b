"""Positions in event streams: what readers may send back, in one form; all else is no position."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from turnline.contracts import InvalidCursor, TurnlineError
from turnline.contracts.protocol import read_cursor

MOST = 2**64 - 1
numbers = st.integers(0, MOST)
_TYPED = st.text(st.sampled_from("0123456789-+$ *\n\x00.eE_x\u0663\uff11"), max_size=45)


@given(numbers, numbers, st.integers(0, 20))
def test_a_position_stays_the_same(ms: int, seq: int, width: int) -> None:
    """In the form that events carry it; leading zeros go, as for Redis they are nothing."""
    written = f"{ms:0{width}}-{seq:0{width}}"

    assert read_cursor(written) == f"{ms}-{seq}"
    assert read_cursor(read_cursor(written)) == f"{ms}-{seq}"


@given(numbers)
def test_the_time_alone_is_the_first_position_of_it(ms: int) -> None:
    """So does Redis read it in XREAD."""
    assert read_cursor(str(ms)) == f"{ms}-0"


@given(st.text(max_size=45) | _TYPED)
@example("$")
@example("")
@example("-")
@example("1-")
@example("1-2-3")
@example(f"{MOST + 1}-0")
@example(f"0-{MOST + 1}")
@example("0" * 21)
@example("\uff11-0")
@example("1-\u0663")
@example("1-0\n")
def test_any_other_text_is_refused_without_being_repeated(text: str) -> None:
    """ASCII digits up to 64 bits, with one hyphen between; nothing else."""
    if re.fullmatch(r"[0-9]{1,20}(-[0-9]{1,20})?", text) and all(
        int(it) <= MOST for it in text.split("-")
    ):
        assert re.fullmatch(r"[0-9]{1,20}-[0-9]{1,20}", read_cursor(text))
        return
    with pytest.raises(InvalidCursor) as error:
        read_cursor(text)

    assert str(error.value) == error.value.expected == _refusal("no position")
    assert isinstance(error.value, (TurnlineError, ValueError))
    assert error.value.__cause__ is error.value.__context__ is None


@pytest.mark.parametrize("value", [None, 0, 1.5, b"1-1", ("1", "1"), object()])
def test_what_is_no_text_is_no_position(value: object) -> None:
    """Such as a number out of a browser's JSON."""
    assert "as in 1750000000123-0" in _refusal(value)


def _refusal(cursor: object) -> str:
    with pytest.raises(InvalidCursor) as error:
        read_cursor(cursor)
    return str(error.value)
