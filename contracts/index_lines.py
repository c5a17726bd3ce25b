"""The index of conversations: what a line of it says, and what one is found by.

A shard's conversations stand in pages, strings with a line for each, in the order in which they
came to be. A page is chosen by the id alone, and has about fifty lines where a fleet has a million
conversations. A line is `<marks><failed> <how><when> <id>`, behind a line feed:

- marks: six characters for each tenant, agent and pair of metadata;
- failed: `!` and when (ms) a turn of it failed last, or nothing;
- how: how its last turn ended (`c`, `f`, `i`, `a`), and how long its longest one took;
- when: when it was active last, ms, by Redis' clock.

Beside the pages stand when a conversation of each was active last, and the beginnings of the marks
in each, so that most pages need not be read.

Source: docs/adr/0051-an-index-in-pages.md
"""

import base64
import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from turnline.contracts.replies import TurnState

MOST_MARKS: Final = 18
"""By which one conversation is found: the newest."""
_OUTCOMES: Final[dict[str, TurnState]] = {
    "c": "completed",
    "f": "failed",
    "i": "interrupted",
    "a": "absorbed",
}
_LINE: Final = re.compile(
    r"[\w-]*(?:!(?P<failed>[0-9]{1,15}))? (?P<how>[a-z])[a-z](?P<at>[0-9]{1,15}) (?P<id>\S+)"
)


class IndexLine(NamedTuple):
    """What the index says of a conversation."""

    conversation_id: str
    at_ms: int
    """When it was active last."""
    outcome: TurnState
    """How its last turn ended."""
    failed_at_ms: int | None
    """When a turn of it failed last."""


@lru_cache(4_096)
def mark(kind: str, value: str) -> str:
    """Return what stands for a value: 36 bits, so that no two of a fleet are likely to be alike.

    Args:
        kind: `tenant`, `agent`, or `metadata` and the key.
        value: What it is.
    """
    digest = hashlib.blake2b(f"{kind}\0{value}".encode(errors="replace"), digest_size=6).digest()
    return base64.urlsafe_b64encode(digest)[:6].decode()


def marks_of(tenant: str, agent: str, metadata: Iterable[tuple[str, str]]) -> str:
    """Return what a conversation is found by, each once."""
    named = [("tenant", tenant), ("agent", agent)]
    found = [mark(kind, value) for kind, value in named if value]
    found += [mark(f"metadata {key}", value) for key, value in metadata]
    return "".join(dict.fromkeys(found[:MOST_MARKS]))


def slowness(took_s: float) -> str:
    """Return a letter for a time: `a` below a second, the next one each time that it doubles."""
    return chr(ord("a") + min(25, int(max(0.0, took_s)).bit_length()))


def entry_of(conversation_id: str, marks: str, outcome: TurnState, took_s: float) -> str:
    """Return what `commit` enters: `<how><marks> <id>`."""
    return f"{outcome[0]}{slowness(took_s)}{marks} {conversation_id}"


def read_line(line: str) -> IndexLine | None:
    """Read a line; None for what others wrote."""
    match = _LINE.fullmatch(line)
    if match is None or match["how"] not in _OUTCOMES:
        return None
    failed = match["failed"]
    return IndexLine(
        match["id"],
        int(match["at"]),
        _OUTCOMES[match["how"]],
        int(failed) if failed else None,
    )
