"""The form in which scenarios are listed: what one does, what it takes, what it is for."""

from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

Run_co = TypeVar("Run_co", bound=Callable[..., object], covariant=True)


class Effect(msgspec.Struct, Generic[Run_co], frozen=True):
    """One entry of a table of scenarios."""

    run: Run_co
    args: tuple[str, ...]
    """Names of the arguments that it takes."""
    help: str
    """One line for people."""
