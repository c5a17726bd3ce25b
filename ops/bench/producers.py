"""Submissions per second and their CPU: both clients, one at a time, many at once, in batches."""

import asyncio
import gc
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple

from arq.connections import ArqRedis

from turnline.contracts import SyncTurnClient, TurnClient, UserMessage
from turnline.contracts.replies import Receipt
from turnline.ops.bench.baselines import arq_worker
from turnline.ops.bench.lab import Lab, new_id
from turnline.ops.bench.measuring import redis_work
from turnline.ops.bench.results import Submitting
from turnline.ops.bench.scenarios import TEXT
from turnline.ops.bench.systems import arq_pool

_COUNT: Final = 600
"""Submissions per round."""
_AT_ONCE: Final = 50
_BATCH: Final = 100
_PER_CONVERSATION: Final = 10

Submit = Callable[[], Awaitable[None]]
"""Makes all submissions of a round."""


class _Spent(NamedTuple):
    wall_s: float
    client_s: float
    redis_s: float
    requests: int


async def producers(lab: Lab, *, rounds: int) -> list[Submitting]:
    """Measure all ways to submit, in turns. Nobody works on what is submitted.

    The blocking client runs in this thread as well: each of its calls is a round trip.
    """
    url = lab.redis_url("producers")
    pool = await arq_pool(url)
    try:
        async with TurnClient.connect(url) as client:
            with SyncTurnClient.connect(url) as blocking:
                ways = _ways(client, blocking, pool)
                spent: dict[tuple[str, str], list[_Spent]] = {way: [] for way in ways}
                for number in range(rounds + 1):
                    for way, submit in ways.items():
                        taken = await _measured(lab, submit)
                        if number:  # the first round opens connections
                            spent[way].append(taken)
    finally:
        await pool.aclose()
    return [_row(*way, taken) for way, taken in spent.items()]


def _ways(
    client: TurnClient, blocking: SyncTurnClient, pool: ArqRedis
) -> Mapping[tuple[str, str], Submit]:
    """Return all ways to submit, by producer and way."""

    async def one(message: UserMessage) -> None:
        await client.submit(message)

    async def batch(messages: Sequence[UserMessage]) -> None:
        _check(await client.submit_many(messages))

    async def blocking_one(message: UserMessage) -> None:
        blocking.submit(message)

    async def blocking_batch(messages: Sequence[UserMessage]) -> None:
        _check(blocking.submit_many(messages))

    async def enqueue(message: UserMessage) -> None:
        job = (message.conversation_id, uuid.uuid4().hex, message.text)
        await arq_worker.enqueue(pool, *job)

    return {
        ("TurnClient", "one at a time"): lambda: _one_by_one(one),
        ("TurnClient", f"{_AT_ONCE} at once"): lambda: _at_once(one),
        ("TurnClient", f"submit_many of {_BATCH}"): lambda: _in_batches(batch),
        ("SyncTurnClient", "one at a time"): lambda: _one_by_one(blocking_one),
        ("SyncTurnClient", f"submit_many of {_BATCH}"): lambda: _in_batches(blocking_batch),
        ("ARQ enqueue_job", "one at a time"): lambda: _one_by_one(enqueue),
        ("ARQ enqueue_job", f"{_AT_ONCE} at once"): lambda: _at_once(enqueue),
    }


async def _measured(lab: Lab, submit: Submit) -> _Spent:
    gc.collect()
    before = await redis_work(lab.redis)
    client_s, start_s = time.process_time(), time.perf_counter()
    await submit()
    wall_s, client_s = time.perf_counter() - start_s, time.process_time() - client_s
    work = (await redis_work(lab.redis)).since(before)
    return _Spent(wall_s, client_s, work.cpu_s, work.requests)


def _row(producer: str, way: str, taken: Sequence[_Spent]) -> Submitting:
    speeds = [_COUNT / it.wall_s for it in taken]
    return Submitting(
        producer=producer,
        way=way,
        per_s=statistics.median(speeds),
        per_s_range=(min(speeds), max(speeds)),
        client_us=statistics.median(it.client_s for it in taken) / _COUNT * 1e6,
        redis_us=statistics.median(it.redis_s for it in taken) / _COUNT * 1e6,
        redis_requests=statistics.median(it.requests for it in taken) / _COUNT,
    )


def _messages() -> list[UserMessage]:
    ids = [new_id("p") for _ in range(_COUNT // _PER_CONVERSATION)]
    return [UserMessage(conversation_id=ids[n % len(ids)], text=TEXT) for n in range(_COUNT)]


async def _one_by_one(submit: Callable[[UserMessage], Awaitable[None]]) -> None:
    for message in _messages():
        await submit(message)


async def _in_batches(submit: Callable[[Sequence[UserMessage]], Awaitable[None]]) -> None:
    messages = _messages()
    for start in range(0, _COUNT, _BATCH):
        await submit(messages[start : start + _BATCH])


async def _at_once(submit: Callable[[UserMessage], Awaitable[None]]) -> None:
    waiting = iter(_messages())

    async def some() -> None:
        for message in waiting:
            await submit(message)

    await asyncio.gather(*(some() for _ in range(_AT_ONCE)))


def _check(outcomes: Sequence[Receipt | Exception]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
