"""Scripts are called by name; types that do not match a header fail where a script is bound."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from turnline.contracts.scripts import bind, load_script

HEADER = """\
--[[
add: do something.

KEYS[1]    first   string  meant for both
           of them
KEYS[2]    second  list
KEYS[3..]  others  stream  any number

ARGV[1]    amount  int    how much
ARGV[2]    name    str
ARGV[3]    data    bytes  JSON
ARGV[4..]  words   list   the rest
]]
return 1
"""


class Keys(NamedTuple):
    """More than the script's, in another order."""

    second: str
    unused: str
    first: str


class Args(NamedTuple):
    """As the header has them."""

    amount: int
    name: str
    data: bytes
    words: Sequence[str]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of its own with the script `add`."""
    folder = tmp_path / f"lua_{tmp_path.name}"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "add.lua").write_text(HEADER)
    monkeypatch.syspath_prepend(tmp_path)
    return folder.name


def test_a_call_lays_out_what_it_was_given_by_name(package: str) -> None:
    """Keys by the header's names, then further ones; arguments, then those of the open end."""
    add = bind(package, "add", Keys, Args, more_keys="others")

    call = add(
        Keys(second="2", unused="x", first="1"),
        Args(amount=7, name="n", data=b"{}", words=["a", "b"]),
        ["3", "4"],
    )

    sha = load_script("add", package).sha
    assert call.words == ("EVALSHA", sha, 4, *"1234", 7, "n", b"{}", "a", "b")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("KEYS[1]    first ", "KEYS[1]    third "),
        ("KEYS[3..]  others", "KEYS[3..]  more  "),
        ("KEYS[3..]  others", "KEYS[3]    unused"),
        ("KEYS[3..]  others  stream  any number\n", ""),
        ("amount  int", "amounts int"),
        ("amount  int", "amount  str"),
        ("ARGV[1]    amount  int    how much\nARGV[2]    name    str\n",
         "ARGV[1]    name    str\nARGV[2]    amount  int    how much\n"),
        ("ARGV[3]    data    bytes  JSON\n", ""),
        ("ARGV[4..]  words ", "ARGV[4..]  more  "),
        ("ARGV[4..]  words ", "ARGV[4]    words "),
        ("ARGV[4..]  words   list   the rest\n", ""),
    ],
)  # fmt: skip
def test_a_header_that_drifts_fails_where_the_script_is_bound(
    package: str, tmp_path: Path, right: str, wrong: str
) -> None:
    """Names, order, types and open ends of KEYS and ARGV are compared."""
    assert HEADER.count(right) == 1
    (tmp_path / package / "add.lua").write_text(HEADER.replace(right, wrong))

    with pytest.raises(TypeError, match=r"add\.lua"):
        bind(package, "add", Keys, Args, more_keys="others")


class Fewer(NamedTuple):
    """An argument is missing."""

    amount: int
    name: str
    words: Sequence[str]


class Early(NamedTuple):
    """The open end is not the last."""

    amount: int
    name: str
    words: Sequence[str]
    data: bytes


@pytest.mark.parametrize(
    ("keys", "args", "more_keys"),
    [(Keys, Fewer, "others"), (Keys, Early, "others"), (Keys, Args, ""), (Args, Args, "others")],
)
def test_types_that_say_something_else_are_refused(
    package: str, keys: Any, args: Any, more_keys: str
) -> None:
    """Nobody finds out on a server that a field was forgotten."""
    with pytest.raises(TypeError, match=r"add\.lua"):
        bind(package, "add", keys, args, more_keys=more_keys)
