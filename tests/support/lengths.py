"""How far a test goes: short with the default profile, in full with `--hypothesis-profile=ci`."""

from collections.abc import Sequence
from typing import TypeVar

from hypothesis import settings

T = TypeVar("T")
IS_SHORT = settings.get_current_profile_name() == "default"
"""Whether this is the run of somebody who waits for it; `.ci/run` takes the profile `ci`."""


def length(short: T, full: T) -> T:
    """Return one of two lengths of the same test: both can fail, the full one sees more."""
    return short if IS_SHORT else full


def first_of(ways: Sequence[T], count: int = 1) -> Sequence[T]:
    """Return the first of several ways to the same end, in full all of them."""
    return length(ways[:count], ways)
