"""The scripts that take a conversation to another shard, called by name.

Each is one atomic operation; the headers of the files say what they do. No policy is decided here.
"""

from collections.abc import Sequence
from typing import NamedTuple

from turnline.contracts.connection import Arg
from turnline.contracts.keys import ConversationKeys
from turnline.contracts.scripts import bind


class PackArgs(NamedTuple):
    """What `pack` is given; the header of pack.lua says what each is."""

    job_id: str
    leaving_ms: int


class ArriveArgs(NamedTuple):
    """What `arrive` is given; the header of arrive.lua says what each is."""

    cursor: str
    forgot: bytes
    mover: str
    packed: Sequence[Arg]


class LeaveArgs(NamedTuple):
    """What `leave` is given; the header of leave.lua says what each is."""

    job_id: str
    last_turn: bytes
    shards: int
    marked_ms: int
    mover: str
    cursor: str


class RouseArgs(NamedTuple):
    """What `rouse` is given; the header of rouse.lua says what each is."""

    job_id: str
    job_data: bytes


class FleetKey(NamedTuple):
    """What `announce` writes to."""

    fleet: str


class AnnounceArgs(NamedTuple):
    """What `announce` is given; the header of announce.lua says what each is."""

    mover: str
    how: str
    epoch: int
    found: bytes
    shards: str
    old: str
    earlier: str


pack = bind(__name__, "pack", ConversationKeys, PackArgs)
arrive = bind(__name__, "arrive", ConversationKeys, ArriveArgs)
leave = bind(__name__, "leave", ConversationKeys, LeaveArgs)
rouse = bind(__name__, "rouse", ConversationKeys, RouseArgs)
announce = bind(__name__, "announce", FleetKey, AnnounceArgs)
