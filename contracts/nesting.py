"""How deeply JSON that others wrote may be nested, so that whoever gets it later can read it."""

from collections.abc import Iterable
from typing import Any, Final, cast

DEEPEST: Final = 100
"""Levels. The parsers of some providers end at 128, with what stands around; Python's ends where
the stack does, so that one place may read what another cannot."""


def is_deep(value: Any, text: str | bytes) -> bool:
    """Tell whether a JSON value is nested in more than 100 levels.

    Args:
        value: Decoded.
        text: The value as JSON: most have too few brackets to be looked into.
    """
    data = text.encode() if isinstance(text, str) else text
    if data.count(b"{") + data.count(b"[") <= DEEPEST:
        return False
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [it for outer in level for it in _items(outer) if isinstance(it, dict | list)]
        if not level:
            return False
    return True


def _items(value: Any) -> Iterable[Any]:
    return cast("dict[str, Any]", value).values() if isinstance(value, dict) else value
