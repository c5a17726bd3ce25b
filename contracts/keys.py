"""Every Redis key, stream and channel name, in one place.

A shard is a hash tag: all keys of a conversation, the queue that holds it and ARQ's keys of its job
carry `{s<n>}`, so that every script stays within one slot of a cluster (docs/adr/0005-shards.md).
Fleets that share a server have prefixes: `{<prefix>-s<n>}`.
"""

import re
import zlib
from functools import lru_cache
from typing import Final, NamedTuple

PREFIX = "turnline"
ARQ_JOB = "arq:job:"
ARQ_IN_PROGRESS = "arq:in-progress:"
ARQ_RETRY = "arq:retry:"
ARQ_RESULT = "arq:result:"


INDEX_PAGES: Final = 20_160
"""Pages of the index of a fleet: a number with many divisors, so that nearly every number of shards
shares them out evenly (docs/adr/0051-an-index-in-pages.md)."""


class ShardKeys(NamedTuple):
    """Names shared by all conversations of one shard."""

    tag: str
    """Hash tag with its braces, such as `{s0}`; also the prefix of the shard's job ids."""
    queue: str
    """Sorted set, ARQ's: member job id, score due time in ms."""
    wake: str
    """List: job ids, for idle workers of the version before this one; expires."""
    idle: str
    """Sorted set, permanent: worker id, scored by the time (ms) since when it has been idle."""
    wake_prefix: str
    """Followed by a worker id: sharded channel that wakes an idle worker, naming what is due."""
    order: str
    """Sorted set, expires: job ids that are due while workers are busy, by their place; see
    claim.lua."""
    shares: str
    """Sorted set, expires: what tenants had of the workers, as places in `order`; see claim.lua."""
    held: str
    """Sorted set, expires: tenants that have more to do than may run at once; see claim.lua."""
    held_prefix: str
    """Followed by a tenant: sorted set, expires: job ids that wait for others of the tenant."""
    waiting: str
    """Sorted set, expires: tenant, line feed, job id of conversations that wait to begin, where
    their number is limited; see submit.lua."""
    running_prefix: str
    """Followed by a tenant: sorted set, expires: job ids that were claimed, where that is
    limited."""
    token: str
    """Integer, permanent: the last fencing token given out."""
    dead: str
    """Stream: dead letters, oldest first."""
    workers: str
    """Sorted set: worker id, scored by the time (ms) until which it is known to live."""
    worker_prefix: str
    """Followed by a worker id: string, JSON of what that worker says about itself."""
    channel_prefix: str
    """Followed by a worker id: sharded channel that names those of its conversations that got a
    message."""
    reply_prefix: str
    """Followed by a reply stream's name."""
    tool_calls: str
    """Stream: tool calls that no worker can run, for whoever has the tool. Field e (JSON)."""
    breakers: str
    """Hash: failing providers (`<base URL and model>|failures`, `|until`, `|pause`), expiring."""
    limits: str
    """Hash, of shard 0: id of what a provider allows -> `<base URL> <model>`; expires."""
    limit_prefix: str
    """Followed by such an id: hash of what was used; with `:held`, `:line`, `:due` behind it, see
    reserve.lua."""
    traces: str
    """Stream: the newest traces, one entry per attempt, capped. Fields c (conversation), t (turn
    id), i (trace id), s (how the turn ended, if it did), d (ms since acceptance), j (spans,
    JSON)."""
    fleet: str
    """Hash, permanent: number of shards, and what it is being changed from; see
    `turnline.contracts.layout`."""
    spend_prefix: str
    """Followed by a day (UTC), such as `2026-11-30`: hash, expires: what calls used whose turns
    ended that day; see `turnline.contracts.daily_spend`."""
    exhausted: str
    """Hash, expires: budgets that are used up. Fields `fleet`, `t:<tenant>`, `c:<conversation>`,
    and `tenants` if there is one of the second kind; see worker/store/lua/mark.lua."""
    written: str
    """String, expires: written where WAIT needs a write of its connection to wait for."""
    pages: str
    """Sorted set, expires: pages of the index of conversations, scored by when (ms) one that stands
    there was active last; see `turnline.contracts.index_lines`."""
    page_marks: str
    """Hash, expires: page -> the beginnings of what its conversations are found by."""
    page_prefix: str
    """Followed by a page: string, expires: a line for each conversation."""
    schedules: str
    """Hash, permanent, in shard 0 only: name to a schedule, JSON; see
    `turnline.worker.schedules`."""
    ticks: str
    """Hash, permanent, in shard 0 only: name of a schedule to its last tick, ms; to `since
    <ms>` before the first."""
    schedules_id: str
    """Not a key: what stands for the schedules in the queue of shard 0. No conversation has such an
    id."""
    schedules_job: str
    """String: ARQ's job of that."""
    schedules_lease: str
    """String, expires: `<fencing token> <worker id>` of whoever looks what is due."""


class ConversationKeys(NamedTuple):
    """Names of everything kept for one conversation, and of the queue that holds it.

    Scripts call them by these names.
    """

    inbox: str
    """Stream: accepted messages not yet committed. Fields t (turn id), m (message), a (event
    cursor at acceptance), d (digest), l (lane, `<i or b>:<tenant>`, where that is not `i:`; what is
    no turn has `c:<tenant>` if it gives the conversation that one, else nothing), on and act (entry
    to act on, `interrupt` or `rollback`)."""
    state: str
    """Hash: epoch, settings, attempt, open call, parking, lane, totals."""
    context: str
    """List: committed messages, JSON, oldest first; append-only within an epoch."""
    steps: str
    """List: messages of the running turn that are safe already (checkpoints)."""
    turns: str
    """Hash: turn id to its record, JSON."""
    log: str
    """List: turn ids in the order accepted; caps `turns`."""
    calls: str
    """List: ledger of model calls, JSON, oldest first, capped."""
    events: str
    """Stream: outbound events, field e (JSON), capped."""
    later: str
    """Sorted set: delayed messages, scored by when they are due, ms. Members are `<clock at
    acceptance, us> <turn id> <digest>/<lane> <message>`, without `/<lane>` where that is `i:`."""
    copies: str
    """List: `<stream key> <entry id>` of what was copied into streams of the shard (reply streams,
    dead letters), so that `forget` finds it; capped."""
    job: str
    """String: ARQ's job."""
    in_progress: str
    """String: `<fencing token> <worker id>` while leased; its expiry is the lease."""
    queue: str
    """As in `ShardKeys`."""
    wake: str
    """As in `ShardKeys`."""
    idle: str
    """As in `ShardKeys`."""
    fleet: str
    """As in `ShardKeys`."""
    exhausted: str
    """As in `ShardKeys`."""
    shares: str
    """As in `ShardKeys`."""
    waiting: str
    """As in `ShardKeys`."""
    pages: str
    """As in `ShardKeys`."""
    page_marks: str
    """As in `ShardKeys`."""
    page: str
    """String: the page of the index in which the conversation has its line."""
    job_id: str
    """Not a key: the member in the queue."""

    @property
    def own(self) -> tuple[str, ...]:
        """The keys of the conversation alone: what `forget` removes."""
        return self[:12]

    @property
    def in_index(self) -> tuple[str, str, str]:
        """The keys that find it."""
        return self.pages, self.page_marks, self.page


def shard_of(conversation_id: str, shards: int) -> int:
    """Return the shard (0 to shards - 1) of a conversation: CRC-32 of its UTF-8, modulo."""
    return zlib.crc32(conversation_id.encode()) % shards if shards > 1 else 0


def check_prefix(prefix: str) -> None:
    """Check the name of a fleet.

    Raises:
        ValueError: It is none; the text says what is.
    """
    if not re.fullmatch("[A-Za-z0-9_-]{0,32}", prefix) or re.search("(^|-)s[0-9]", prefix):
        raise ValueError(
            "expected up to 32 letters, digits, `_` and `-` of ASCII, and no part like `s0`"
        )


def shard_keys(shard: int, prefix: str = "") -> ShardKeys:
    """Return the names of one shard.

    A prefix stands within the hash tag, where ARQ's keys have it too; those of two fleets differ,
    because the tag ends with the shard.
    """
    tag = f"{{{prefix}-s{shard}}}" if prefix else f"{{s{shard}}}"
    base = f"{PREFIX}:{tag}:"
    schedules_id = f"{tag}:{{schedules}}"
    return ShardKeys(
        tag=tag,
        queue=base + "queue",
        wake=base + "wake",
        idle=base + "idle",
        wake_prefix=base + "idle:",
        order=base + "order",
        shares=base + "shares",
        held=base + "held",
        held_prefix=base + "held:",
        running_prefix=base + "running:",
        token=base + "token",
        dead=base + "dead",
        workers=base + "workers",
        worker_prefix=base + "worker:",
        channel_prefix=base + "news:",
        reply_prefix=base + "replies:",
        tool_calls=base + "tool-calls",
        breakers=base + "breakers",
        limits=base + "limits",
        limit_prefix=base + "limit:",
        traces=base + "traces",
        fleet=base + "fleet",
        spend_prefix=base + "spend:",
        exhausted=base + "exhausted",
        waiting=base + "wait",
        written=written_key(tag),
        pages=base + "index",
        page_marks=base + "index-marks",
        page_prefix=base + "index:",
        schedules=base + "schedules",
        ticks=base + "ticks",
        schedules_id=schedules_id,
        schedules_job=ARQ_JOB + schedules_id,
        schedules_lease=ARQ_IN_PROGRESS + schedules_id,
    )


def written_key(tag: str) -> str:
    """Return `ShardKeys.written` of the shard with this hash tag."""
    return f"{PREFIX}:{tag}:written"


@lru_cache(256)
def conversation_keys(tag: str, conversation_id: str) -> ConversationKeys:
    """Return the names of one conversation in the shard with this hash tag."""
    shard = f"{PREFIX}:{tag}:"
    base = f"{shard}c:{conversation_id}:"
    job_id = f"{tag}:{conversation_id}"
    return ConversationKeys(
        base + "inbox",
        base + "state",
        base + "context",
        base + "steps",
        base + "turns",
        base + "log",
        base + "calls",
        base + "events",
        base + "later",
        base + "sent",
        ARQ_JOB + job_id,
        ARQ_IN_PROGRESS + job_id,
        shard + "queue",
        shard + "wake",
        shard + "idle",
        shard + "fleet",
        shard + "exhausted",
        shard + "shares",
        shard + "wait",
        shard + "index",
        shard + "index-marks",
        f"{shard}index:{zlib.crc32(conversation_id.encode()) % INDEX_PAGES}",
        job_id,
    )


def conversation_of(job_id: str, tag: str) -> str | None:
    """Return the conversation a job id stands for; None for a job that is not a conversation."""
    prefix = tag + ":"
    return job_id[len(prefix) :] if job_id.startswith(prefix) else None
