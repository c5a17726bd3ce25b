"""Where a command belongs: by its first key, or anywhere."""

import pytest

from turnline.contracts.connection import Arg
from turnline.contracts.routing import key_of

ROWS: list[tuple[tuple[Arg, ...], str | None]] = [
    (("GET", "k"), "k"),
    (("GET", b"k\xff"), "k\ufffd"),
    (("EVALSHA", "sha", 2, "k", "l", "a"), "k"),
    (("EVAL", "return 1", 0), None),
    (("SCRIPT LOAD", "return {s0}"), None),
    (("SCRIPT", "LOAD", "return 1"), None),
    (("WAIT", 1, 1_000), None),
    (("PING",), None),
    (("XREAD", "COUNT", 1, "STREAMS", "k", "0-0"), "k"),
    (("XREADGROUP", "GROUP", "g", "c", "STREAMS", "k", ">"), "k"),
    (("XGROUP", "CREATE", "k", "g", "$"), "k"),
    (("XGROUP CREATE", "k", "g", "$"), "k"),
    (("XINFO", "STREAM", "k"), "k"),
]


@pytest.mark.parametrize(("words", "key"), ROWS)
def test_the_key_of_a_command(words: tuple[Arg, ...], key: str | None) -> None:
    """Commands of two words may be given as one; scripts name how many keys they have."""
    assert key_of(words) == key
