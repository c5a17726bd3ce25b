"""Notices as they are read, also those of other versions."""

import pytest

from turnline.contracts.notices import GROWN, position, read_notice


def test_a_notice_has_entries_and_what_they_follow() -> None:
    """Their data may hold anything."""
    notice = read_notice(b"1-0 2-0 3 2-1 0 10-0 4\na\nb" + b"\x00 \n\n")

    assert notice.behind == b"1-0"
    assert notice.entries == [
        (b"2-0", {b"e": b"a\nb"}),
        (b"2-1", {b"e": b""}),
        (b"10-0", {b"e": b"\x00 \n\n"}),
    ]
    assert notice.is_sent


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"grown", b"1-0 2-0\nabc", b"1-0 2-0 x\nabc", b"1-0 2-0 4\nabc", b"{}"]
)
def test_what_is_not_understood_says_that_there_is_more(data: bytes) -> None:
    """Then the stream itself is read."""
    notice = read_notice(data)

    assert not notice.entries
    assert notice.is_sent
    assert not notice.may_be_gone
    assert data or notice is GROWN


def test_ids_are_ordered_by_their_numbers() -> None:
    """Not as text."""
    assert position(b"9-11") < position(b"10-2") < position(b"10-10")
