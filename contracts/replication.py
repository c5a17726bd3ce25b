"""WAIT: how many replicas have what a connection wrote.

A server answers for the last write of the connection that asks. A message that is submitted again
writes nothing, and the connection may be another one: so each pipeline writes something of its own
before it asks, behind all that it is asked for.

Source: docs/adr/0037-waiting-for-replicas-is-a-second-question.md
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from turnline.contracts.connection import Command
from turnline.contracts.errors import StoreUnavailable
from turnline.contracts.patience import PatientRedis
from turnline.contracts.protocol import Submission
from turnline.contracts.replies import Receipt

WAIT_MS: Final = 200
"""How long a server waits for its replicas."""
_WRITTEN_MS: Final = 60_000


def confirmation(written: Iterable[str], replicas: int) -> list[Command]:
    """Return the end of a pipeline: its last reply is the number of replicas that have it all.

    Args:
        written: A key of each shard that the pipeline writes to; see `ShardKeys.written`.
        replicas: How many to wait for, for `WAIT_MS` at most.
    """
    writes: list[Command] = [("SET", key, "", "PX", _WRITTEN_MS) for key in written]
    return [*writes, ("WAIT", replicas, WAIT_MS)]


async def put_and_wait(
    redis: PatientRedis, submissions: Sequence[Submission], commands: Sequence[Command], wanted: int
) -> list[Receipt | Exception]:
    """Put messages in and wait for replicas; twice, where they are fewer than wanted.

    A primary without replicas may have been replaced and not know it yet, as one that was stopped
    for a while. So it is asked where the primary is before the messages are put in again.

    Args:
        redis: Where to.
        submissions: In order.
        commands: One that teaches the script, one for each submission, `confirmation`.
        wanted: How many replicas.

    Raises:
        StoreIncompatible: The server does not let WAIT be called.
    """
    outcomes = await _put(redis, submissions, commands)
    receipts = [it for it in outcomes if isinstance(it, Receipt)]
    if all((it.replicas or 0) >= wanted for it in receipts):
        return outcomes
    redis.doubt()
    again = await _put(redis, submissions, commands)
    return [_both(*pair) for pair in zip(outcomes, again, strict=True)]


async def _put(
    redis: PatientRedis, submissions: Sequence[Submission], commands: Sequence[Command]
) -> list[Receipt | Exception]:
    _, *replies = await redis.send_together(commands, all_or_none=True)
    having = replies[-1]
    if isinstance(having, Exception) and not isinstance(having, StoreUnavailable):
        raise having
    replicas = having if isinstance(having, int) else 0
    return [it.outcome(reply, replicas) for it, reply in zip(submissions, replies, strict=False)]


def _both(first: Receipt | Exception, again: Receipt | Exception) -> Receipt | Exception:
    """Return what became of a message that was put in twice in a row."""
    if isinstance(first, Receipt) and isinstance(again, Receipt) and not again.accepted:
        return msgspec.structs.replace(first, replicas=again.replicas)
    return again


def least(one: Any, other: Any) -> Any:
    """Return which of two servers' replies to the same command promises less."""
    if isinstance(one, Exception):
        return one
    if isinstance(one, int) and isinstance(other, int):
        return min(one, other)
    return other
