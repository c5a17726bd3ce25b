"""How far a test goes: short where somebody waits, in full with `--hypothesis-profile=full`."""

from collections.abc import Sequence
from typing import TypeVar

from hypothesis import settings

T = TypeVar("T")
IS_SHORT = settings.get_current_profile_name() in {"brief", "default", "ci"}
"""Whether somebody waits for the run, as for `ops/run test` and `.ci/run`."""


def length(short: T, full: T) -> T:
    """Return one of two lengths of the same test: both can fail, the full one sees more."""
    return short if IS_SHORT else full


def first_of(ways: Sequence[T], count: int = 1) -> Sequence[T]:
    """Return the first of several ways to the same end, in full all of them."""
    return length(ways[:count], ways)
