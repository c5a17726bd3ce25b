"""The scripts of the lease table, called by name.

Each is one atomic operation; the headers of the files say what they do. No policy is decided here.
"""

from collections.abc import Sequence
from typing import NamedTuple

from turnline.contracts.keys import ARQ_IN_PROGRESS, ARQ_JOB, ConversationKeys, ShardKeys
from turnline.contracts.scripts import Call, bind
from turnline.worker.lease import Lease
from turnline.worker.outcome import Outcome, Parked

_ALIVE_MS = 1_000
"""A worker counts as living for so much longer than its leases last."""


class ClaimArgs(NamedTuple):
    """What `claim` is given; the header of claim.lua says what each is."""

    limit: int
    lease_ms: int
    worker_id: str
    in_progress: str
    job: str
    weights: str
    concurrency: str
    crowds: str


class ReleaseArgs(NamedTuple):
    """What `release` is given; the header of release.lua says what each is."""

    job_id: str
    lease: str
    defer_ms: int
    why: str
    last_entry: str


class WakeArgs(NamedTuple):
    """What `wake` is given; the header of wake.lua says what it is."""

    ended: str = ""


class RenewKeys(NamedTuple):
    """Keys of one worker's heartbeat."""

    queue: str
    workers: str
    worker: str


class RenewArgs(NamedTuple):
    """What `renew` is given; the header of renew.lua says what each is."""

    lease_ms: int
    worker_id: str
    about: bytes
    alive_ms: int
    held: Sequence[str]


class AbandonArgs(NamedTuple):
    """What `abandon` is given; the header of abandon.lua says what each is."""

    worker_id: str
    job_id: Sequence[str]


class _WorkerKeys(NamedTuple):
    """Keys of a shard, and of one worker."""

    queue: str
    wake: str
    idle: str
    workers: str
    worker: str


_claim = bind(__name__, "claim", ShardKeys, ClaimArgs)
wake = bind(__name__, "wake", ShardKeys, WakeArgs)
_release = bind(__name__, "release", ConversationKeys, ReleaseArgs)
_renew = bind(__name__, "renew", RenewKeys, RenewArgs, more_keys="in_progress")
_abandon = bind(__name__, "abandon", _WorkerKeys, AbandonArgs, more_keys="in_progress")


def claim(  # noqa: PLR0917  in the order of the script's
    shard: ShardKeys,
    limit: int,
    lease_ms: int,
    worker_id: str,
    weights: str = "",
    concurrency: str = "",
    crowds: str = "",
) -> Call:
    """Lease what is due; weights of tenants, and how many run at once or may wait, are JSON.

    Source: worker/queue/lua/claim.lua
    """
    args = ClaimArgs(
        *(limit, lease_ms, worker_id, ARQ_IN_PROGRESS, ARQ_JOB), weights, concurrency, crowds
    )
    return _claim(shard, args)


def release(lease: Lease, outcome: Outcome) -> Call:
    """Give up a lease, leaving the conversation as its run ended.

    Source: worker/queue/lua/release.lua
    """
    keys, value = lease.keys, lease.value
    if isinstance(outcome, Parked):
        why = outcome.why if outcome.defer_ms else ""
        args = ReleaseArgs(keys.job_id, value, outcome.defer_ms, why, outcome.last_entry_id)
    else:
        args = ReleaseArgs(keys.job_id, value, defer_ms=0, why="", last_entry="")
    return _release(keys, args)


def renew(
    shard: ShardKeys,
    worker_id: str,
    active: Sequence[tuple[str, str]],
    *,
    lease_s: float,
    about: bytes,
) -> Call:
    """Extend the active leases of a worker: (job id, lease) pairs. `about` is shown to people.

    Source: worker/queue/lua/renew.lua
    """
    lease_ms = int(lease_s * 1000)
    return _renew(
        RenewKeys(shard.queue, shard.workers, shard.worker_prefix + worker_id),
        RenewArgs(
            lease_ms=lease_ms,
            worker_id=worker_id,
            about=about,
            alive_ms=lease_ms + _ALIVE_MS,
            held=[word for pair in active for word in pair],
        ),
        [ARQ_IN_PROGRESS + job_id for job_id, _ in active],
    )


def abandon(shard: ShardKeys, worker_id: str, job_ids: Sequence[str]) -> Call:
    """End what leases a dead worker has of these jobs; they are due at once.

    Source: worker/queue/lua/abandon.lua
    """
    worker = shard.worker_prefix + worker_id
    keys = _WorkerKeys(shard.queue, shard.wake, shard.idle, shard.workers, worker)
    held = [ARQ_IN_PROGRESS + job_id for job_id in job_ids]
    return _abandon(keys, AbandonArgs(worker_id, job_ids), held)
