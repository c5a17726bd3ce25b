"""Which key a command is about: it says where the command belongs."""

from collections.abc import Sequence
from typing import Final

from turnline.contracts.connection import Arg

_KEYLESS: Final = frozenset(
    {"CLIENT", "CLUSTER", "COMMAND", "CONFIG", "DBSIZE", "HELLO", "INFO", "LATENCY", "MEMORY"}
    | {"PING", "ROLE", "SCAN", "SCRIPT", "SLOWLOG", "TIME", "WAIT"}
)
_SECOND: Final = frozenset({"OBJECT", "XGROUP", "XINFO"})
"""Commands of two words, given as two or as one."""
_BEHIND_STREAMS: Final = frozenset({"XREAD", "XREADGROUP"})
_SCRIPTS: Final = frozenset({"EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO"})


def key_of(words: Sequence[Arg]) -> str | None:
    """Return the first key of a command; None if it has none."""
    name, second, _ = str(words[0]).partition(" ")
    if name in _SCRIPTS:
        return _text(words[3]) if int(words[2]) else None
    if name in _KEYLESS or len(words) < 2:
        return None
    if name in _BEHIND_STREAMS:
        return _text(words[words.index("STREAMS") + 1])
    return _text(words[2 if name in _SECOND and not second else 1])


def is_script(words: Sequence[Arg]) -> bool:
    """Tell whether a command runs a script, which may write."""
    return str(words[0]) in _SCRIPTS


def reads_streams(words: Sequence[Arg]) -> bool:
    """Tell whether a command reads streams, for itself or for a consumer of a group."""
    return str(words[0]) in _BEHIND_STREAMS


def _text(key: Arg) -> str:
    return key.decode(errors="replace") if isinstance(key, bytes) else str(key)
