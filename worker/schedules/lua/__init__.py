"""The scripts of schedules, called by name.

Each is one atomic operation; the headers of the files say what they do. No policy is decided here.
"""

from collections.abc import Sequence
from typing import NamedTuple

from turnline.contracts.keys import ShardKeys
from turnline.contracts.scripts import bind


class ParkArgs(NamedTuple):
    """What `park` is given; the header of park.lua says what each is."""

    job_id: str
    lease: str
    next_ms: int
    seen: Sequence[str]


class ChangeArgs(NamedTuple):
    """What `change` is given; the header of change.lua says what each is."""

    job_id: str
    name: str
    before: bytes
    value: bytes
    job_data: bytes


park = bind(__name__, "park", ShardKeys, ParkArgs)
change = bind(__name__, "change", ShardKeys, ChangeArgs)
