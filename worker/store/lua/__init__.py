"""The scripts of the store, called by name.

Each is one atomic operation; the headers of the files say what they do. No policy is decided here.
"""

from collections.abc import Sequence
from typing import NamedTuple

from turnline.contracts.connection import Arg
from turnline.contracts.keys import ConversationKeys, ShardKeys
from turnline.contracts.scripts import bind


class LoadArgs(NamedTuple):
    """What `load` is given; the header of load.lua says what each is."""

    claimed: str
    epoch_held: str
    held: int
    batch: int
    retention_ms: int
    last_held: str


class EmitArgs(NamedTuple):
    """What `emit` is given; the header of emit.lua says what each is."""

    lease: str
    call: bytes
    events_limit: int
    retention_ms: int
    entry_id: str
    batch: int
    events_json: Sequence[bytes]


class CheckpointArgs(NamedTuple):
    """What `checkpoint` is given; the header of checkpoint.lua says what each is."""

    lease: str
    retention_ms: int
    known: int
    limits: str
    lists: Sequence[Arg]


class MarkKeys(NamedTuple):
    """The key that `mark` touches."""

    exhausted: str


class MarkArgs(NamedTuple):
    """What `mark` is given; the header of mark.lua says what each is."""

    budget: str
    about: bytes
    lasts_ms: int
    again_ms: int


class CommitKeys(NamedTuple):
    """Those of a conversation that `commit` touches, what its shard spends on a day, the index."""

    inbox: str
    state: str
    context: str
    steps: str
    turns: str
    log: str
    calls: str
    events: str
    later: str
    copies: str
    job: str
    in_progress: str
    queue: str
    wake: str
    idle: str
    spend: str
    pages: str
    page_marks: str
    page: str


class CommitArgs(NamedTuple):
    """What `commit` is given; the header of commit.lua says what each is."""

    lease: str
    turn_id: str
    job_id: str
    retention_ms: int
    limits: str
    afterwards: str
    batch: int
    how: str
    settings: bytes
    attempt: int
    spend_ms: int
    listed: str
    lists: Sequence[Arg]


class KeepTraceKeys(NamedTuple):
    """Keys of a conversation's kept traces."""

    turns: str
    traces: str
    copies: str


class KeepTraceArgs(NamedTuple):
    """What `keep_trace` is given; the header of keep_trace.lua says what each is."""

    conversation: str
    turn_id: str
    trace_id: str
    state: str
    duration_ms: int
    spans: bytes
    kept: int
    oldest_ms: int
    copies_kept: int


class AdmitArgs(NamedTuple):
    """What `admit` is given; the header of admit.lua says what each is."""

    name: str
    who: str
    pause_ms: int


class ReportArgs(NamedTuple):
    """What `report` is given; the header of report.lua says what each is."""

    name: str
    outcome: str
    who: str
    threshold: int
    others: int
    pause_ms: int
    cap_ms: int
    expiry_ms: int


class LimitKeys(NamedTuple):
    """Keys of what a provider allows of one model."""

    budget: str
    held: str
    line: str
    due: str
    shares: str


class ReserveArgs(NamedTuple):
    """What `reserve` is given; the header of reserve.lua says what each is."""

    who: str
    tokens: int
    likely: int
    worker: str
    wish: str
    used: str
    limits: str
    lane: str
    weight: str
    changes: Sequence[Arg]


class LearnArgs(NamedTuple):
    """What `learn` is given; the header of learn.lua says what each is."""

    limits: str
    lasts_ms: int
    pause_ms: int
    wider: int


class LeaveArgs(NamedTuple):
    """What `leave` is given; the header of leave.lua says what each is."""

    who: str
    lane: str
    weight: str


load = bind(__name__, "load", ConversationKeys, LoadArgs)
emit = bind(__name__, "emit", ConversationKeys, EmitArgs)
checkpoint = bind(__name__, "checkpoint", ConversationKeys, CheckpointArgs, more_keys="shared")
commit = bind(__name__, "commit", CommitKeys, CommitArgs, more_keys="shared")
mark = bind(__name__, "mark", MarkKeys, MarkArgs)
keep_trace = bind(__name__, "keep_trace", KeepTraceKeys, KeepTraceArgs)
admit = bind(__name__, "admit", ShardKeys, AdmitArgs)
report = bind(__name__, "report", ShardKeys, ReportArgs)
learn = bind(__name__, "learn", LimitKeys, LearnArgs)
leave = bind(__name__, "leave", LimitKeys, LeaveArgs)
reserve = bind(__name__, "reserve", LimitKeys, ReserveArgs)
