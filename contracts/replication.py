"""WAIT: how many replicas have what a connection wrote.

A server answers for the last write of the connection that asks. A message that is submitted again
writes nothing, and the connection may be another one: so each pipeline writes something of its own
before it asks, behind all that it is asked for.

Source: docs/adr/0037-waiting-for-replicas-is-a-second-question.md
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from turnline.contracts.connection import Command
from turnline.contracts.errors import StoreUnavailable
from turnline.contracts.patience import PatientRedis
from turnline.contracts.protocol import Submission
from turnline.contracts.replies import Receipt

MOST_REPLICAS: Final = 16
"""Replicas that anybody may wait for."""
WAIT_MS: Final = 200
"""How long a server waits for its replicas."""
_WRITTEN_MS: Final = 60_000


def confirmation(written: str, replicas: int) -> list[Command]:
    """Return the end of a pipeline: its last reply is the number of replicas that have it all.

    Args:
        written: Key of the shard that the pipeline writes to; see `ShardKeys.written`.
        replicas: How many to wait for, for `WAIT_MS` at most.
    """
    return [("SET", written, "", "PX", _WRITTEN_MS), ("WAIT", replicas, WAIT_MS)]


async def put_and_wait(
    redis: PatientRedis, submissions: Sequence[Submission], wanted: int
) -> list[Receipt | Exception]:
    """Put messages in and wait for replicas; return what became of each, in the order given.

    Args:
        redis: Where to.
        submissions: What to put in.
        wanted: How many replicas.

    Raises:
        StoreIncompatible: The server does not let WAIT be called.
    """
    shards: dict[str, list[int]] = {}
    for place, submission in enumerate(submissions):
        shards.setdefault(submission.shard.written, []).append(place)
    outcomes: dict[int, Receipt | Exception] = {}
    for key, places in shards.items():
        found = await _put_into_shard(redis, key, [submissions[n] for n in places], wanted)
        outcomes |= zip(places, found, strict=True)
    return [outcomes[place] for place in range(len(submissions))]


async def _put_into_shard(
    redis: PatientRedis, key: str, submissions: Sequence[Submission], wanted: int
) -> list[Receipt | Exception]:
    """Put messages in; twice, where fewer replicas have them than wanted.

    A primary without replicas may have been replaced and not know it yet, as one that was stopped
    for a while. So it is asked where the primary is before the messages are put in again. What was
    refused is not: it would come behind what was accepted.
    """
    outcomes = await _put(redis, key, submissions, wanted)
    unsafe = {n: it for n, it in enumerate(outcomes) if _is_unsafe(it, wanted)}
    if unsafe:
        redis.doubt()
        again = await _put(redis, key, [submissions[n] for n in unsafe], wanted)
        for n, it in zip(unsafe, again, strict=True):
            outcomes[n] = _both(outcomes[n], it)
    return outcomes


def _is_unsafe(outcome: Receipt | Exception, wanted: int) -> bool:
    return isinstance(outcome, Receipt) and (outcome.replicas or 0) < wanted


async def _put(
    redis: PatientRedis, key: str, submissions: Sequence[Submission], wanted: int
) -> list[Receipt | Exception]:
    teach = ("SCRIPT LOAD", submissions[0].call.script.text)
    commands = [teach, *(it.call.words for it in submissions), *confirmation(key, wanted)]
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
