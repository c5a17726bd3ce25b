"""Reads what waits, what runs and which workers there are, from the keys of the queue."""

from collections.abc import Iterable, Sequence
from contextlib import suppress

import msgspec

from turnline.contracts.connection import SyncRedis
from turnline.contracts.keys import ARQ_IN_PROGRESS, ShardKeys
from turnline.ops.fleet.limit_state import ProviderLimit, read_limits
from turnline.ops.fleet.tenant_state import TenantState, UsedUp, read_tenants, read_used_up

_PAGE = 2_000


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """A living worker, as it describes itself with each heartbeat."""

    id: str = ""
    name: str = ""
    host: str = ""
    pid: int = 0
    model: str = ""
    running: int = 0
    """Conversations it runs."""
    slots: int = 0
    """Conversations it can run at once."""
    started_at_ms: int = 0


class QueueState(msgspec.Struct, frozen=True, kw_only=True):
    """One moment of a fleet."""

    waiting: int = 0
    """Conversations that are due and run by nobody."""
    running: int = 0
    """Conversations under a lease."""
    deferred: int = 0
    """Conversations that wait for a time, or for more input."""
    oldest_waiting_ms: int | None = None
    """For how long the first of the waiting ones has been due."""
    dead: int = 0
    """Dead letters."""
    workers: tuple[Worker, ...] = ()
    limits: tuple[ProviderLimit, ...] = ()
    """What providers allow, where that is known."""
    tenants: tuple[TenantState, ...] = ()
    """Those that have more to do than may run at once."""
    used_up: tuple[UsedUp, ...] = ()
    """Budgets of which nothing is left."""

    @property
    def slots(self) -> int:
        """Conversations that all workers together can run at once."""
        return sum(worker.slots for worker in self.workers)


_decode_worker = msgspec.json.Decoder(Worker).decode


def read_queue(redis: SyncRedis, shards: Sequence[ShardKeys]) -> QueueState:
    """Read the state of all shards; a worker that serves several counts once."""
    state = merged(_read_shard(redis, shard) for shard in shards)
    return msgspec.structs.replace(
        state,
        limits=read_limits(redis, shards[0]),
        tenants=read_tenants(redis, shards),
        used_up=read_used_up(redis, shards, _now_ms(redis)),
    )


def read_workers(redis: SyncRedis, shard: ShardKeys) -> list[Worker]:
    """Read the workers that are alive by the server's clock."""
    ids: list[bytes] = redis.execute_command("ZRANGEBYSCORE", shard.workers, _now_ms(redis), "+inf")
    if not ids:
        return []
    records = redis.execute_command("MGET", *(shard.worker_prefix.encode() + it for it in ids))
    found = (read_worker(id_, record) for id_, record in zip(ids, records, strict=True))
    return [it for it in found if it is not None]


def read_worker(id_: bytes, record: bytes | None) -> Worker | None:
    """Read what a worker says of itself; None if it has gone, or others wrote that."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        if record is not None:
            return msgspec.structs.replace(_decode_worker(record), id=id_.decode())
    return None


def merged(states: Iterable[QueueState]) -> QueueState:
    """Add shards up."""
    every = list(states)
    oldest = [state.oldest_waiting_ms for state in every if state.oldest_waiting_ms is not None]
    workers: dict[str, Worker] = {}
    for worker in (worker for state in every for worker in state.workers):
        known = workers.get(worker.id)
        workers[worker.id] = msgspec.structs.replace(
            worker,
            running=worker.running + (known.running if known else 0),
            slots=max(worker.slots, known.slots if known else 0),  # its shards share them
        )
    return QueueState(
        waiting=sum(state.waiting for state in every),
        running=sum(state.running for state in every),
        deferred=sum(state.deferred for state in every),
        oldest_waiting_ms=max(oldest, default=None),
        dead=sum(state.dead for state in every),
        workers=tuple(sorted(workers.values(), key=lambda worker: worker.id)),
    )


def _read_shard(redis: SyncRedis, shard: ShardKeys) -> QueueState:
    now_ms = _now_ms(redis)
    pipe = redis.pipeline(transaction=False)
    pipe.execute_command("ZCOUNT", shard.queue, "-inf", now_ms)
    pipe.execute_command("ZRANGE", shard.queue, 0, 0, "WITHSCORES")
    pipe.execute_command("XLEN", shard.dead)
    waiting, first, dead = pipe.execute()
    due_ms = float(first[1]) if first else now_ms
    running, later = _leased(redis, shard, now_ms)
    return QueueState(
        waiting=waiting,
        running=running,
        deferred=later - running,
        oldest_waiting_ms=max(0, int(now_ms - due_ms)) if waiting else None,
        dead=dead,
        workers=tuple(read_workers(redis, shard)),
    )


def _leased(redis: SyncRedis, shard: ShardKeys, now_ms: int) -> tuple[int, int]:
    """Return how many entries are under a lease, and how many are not due yet, page by page."""
    leased, seen = 0, 0
    while True:
        page = redis.execute_command(
            *("ZRANGEBYSCORE", shard.queue, f"({now_ms}", "+inf", "LIMIT", seen, _PAGE)
        )
        seen += len(page)
        if page:
            keys = (ARQ_IN_PROGRESS.encode() + job_id for job_id in page)
            leased += redis.execute_command("EXISTS", *keys)
        if len(page) < _PAGE:
            return leased, seen


def _now_ms(redis: SyncRedis) -> int:
    seconds, microseconds = redis.execute_command("TIME")
    return int(seconds) * 1000 + int(microseconds) // 1000
