"""Notices: what writers of streams publish, on the sharded channel of a stream's name.

`BEHIND ID LENGTH [ID LENGTH ...]`, a line feed, and the data of these entries, one after the other:
they were added behind the entry BEHIND (`0-0` in a new stream) and so far are the newest. An empty
notice: the stream has grown. `gone`: it was removed, with all that belongs to it.

Source: worker/store/lua/emit.lua, contracts/scripts/forget.lua
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from turnline.contracts.waiting import Entry

GONE: Final = b"gone"


class Notice(NamedTuple):
    """What is known of a stream's growth."""

    behind: bytes = b""
    """Id of the entry that `entries` follow; empty: which were added is not known."""
    entries: Sequence[Entry] = ()
    is_sent: bool = True
    """Whether a writer says so. Else something may have been missed."""
    may_be_gone: bool = False
    """Whether the stream may have been removed."""


GROWN: Final = Notice()


def read_notice(data: bytes) -> Notice:
    """Read a notice; one that is not understood says that the stream has grown."""
    if not data:
        return GROWN
    if data == GONE:
        return Notice(may_be_gone=True)
    head, _, body = data.partition(b"\n")
    behind, *words = head.split(b" ")
    entries: list[Entry] = []
    at = 0
    try:
        for entry_id, length in zip(words[::2], words[1::2], strict=True):
            till = at + int(length)
            entries.append((entry_id, {b"e": body[at:till]}))
            at = till
    except ValueError:
        return GROWN
    return Notice(behind, entries) if at == len(body) else GROWN


def position(entry_id: bytes) -> tuple[int, int]:
    """Return an entry's id as what its order goes by."""
    at_ms, _, number = entry_id.partition(b"-")
    return int(at_ms), int(number or 0)
