"""Reads scenarios as they stand in a header or behind a model name: `name;key=value,key=value`."""

from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote

import msgspec

HEADER: Final = "x-sim"
_TRUE: Final = {"1", "true", "yes", "on"}
_FALSE: Final = {"0", "false", "no", "off"}


class BadScenario(ValueError):
    """A scenario is unknown or its arguments make no sense; the text says what is possible."""


class Scenario(msgspec.Struct, frozen=True):
    """A wish about one answer: its name and its arguments as text."""

    name: str
    args: Mapping[str, str] = {}

    def text(self, key: str, default: str = "") -> str:
        """An argument as it is."""
        return self.args.get(key, default)

    def number(self, key: str, default: int) -> int:
        """An argument as a whole number.

        Raises:
            BadScenario: It is none.
        """
        return int(self.real(key, default))

    def real(self, key: str, default: float) -> float:
        """An argument as a number.

        Raises:
            BadScenario: It is none.
        """
        try:
            return float(self.args.get(key, default))
        except ValueError:
            raise BadScenario(f"{self.name}: {key} takes a number") from None

    def flag(self, key: str, default: bool) -> bool:  # noqa: FBT001  # reads as the others do
        """An argument as yes or no.

        Raises:
            BadScenario: It is neither.
        """
        value = self.args.get(key)
        if value is None:
            return default
        if value.lower() in _TRUE | _FALSE:
            return value.lower() in _TRUE
        raise BadScenario(f"{self.name}: {key} takes 1 or 0")


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
