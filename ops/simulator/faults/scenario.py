"""Scenarios: how they are written (`name;key=value,key=value`), and what one is in a table."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Generic, TypeVar
from urllib.parse import unquote

import msgspec

HEADER: Final = "x-sim"
_FLAGS: Final = {"1": True, "true": True, "yes": True, "on": True} | {
    "0": False, "false": False, "no": False, "off": False,
}  # fmt: skip


class BadScenario(ValueError):
    """A scenario is unknown or its arguments make no sense; the text says what is possible."""


class Scenario(msgspec.Struct, frozen=True):
    """A wish about one answer: its name and its arguments as text.

    Each reader of an argument raises `BadScenario` if the text is not of that kind.
    """

    name: str
    args: Mapping[str, str] = {}

    def text(self, key: str, default: str = "") -> str:
        """Return an argument as it is."""
        return self.args.get(key, default)

    def number(self, key: str, default: int) -> int:
        """Return an argument as a whole number."""
        return int(self.real(key, default))

    def real(self, key: str, default: float) -> float:
        """Return an argument as a number."""
        try:
            return float(self.args.get(key, default))
        except ValueError:
            raise BadScenario(f"{self.name}: {key} takes a number") from None

    def flag(self, key: str, default: bool) -> bool:  # noqa: FBT001  # reads as the others do
        """Return an argument as yes or no."""
        value = self.args.get(key)
        if value is None:
            return default
        if value.lower() not in _FLAGS:
            raise BadScenario(f"{self.name}: {key} takes 1 or 0")
        return _FLAGS[value.lower()]

    def choice(self, key: str, default: str, words: Iterable[str]) -> str:
        """Return an argument that is one of these words."""
        known = list(words)
        value = self.text(key, default)
        if value not in known:
            raise BadScenario(f"{self.name}: {key} is one of {', '.join(known)}")
        return value


def parse(text: str) -> list[Scenario]:
    """Read scenarios that are joined by `|`; values may be percent-encoded.

    `chunks=20` is short for `chunks;value=20`, and `_` in a name is read as `-`.
    """
    return [_one(part.strip()) for part in text.split("|") if part.strip()]


def _one(text: str) -> Scenario:
    head, _, tail = text.partition(";")
    name, has_value, value = head.strip().partition("=")
    args: dict[str, str] = {"value": unquote(value.strip())} if has_value else {}
    for pair in filter(None, tail.split(",")):
        key, _, content = pair.partition("=")
        args[key.strip()] = unquote(content.strip())
    return Scenario(name.strip().replace("_", "-"), args)


Run_co = TypeVar("Run_co", bound=Callable[..., object], covariant=True)


class Effect(msgspec.Struct, Generic[Run_co], frozen=True):
    """One entry of a table of scenarios."""

    run: Run_co
    args: tuple[str, ...]
    """Names of the arguments that it takes."""
    help: str
    """One line for people."""
