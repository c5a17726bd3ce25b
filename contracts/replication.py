"""WAIT: how many replicas have what a connection wrote.

A server answers for the last write of the connection that asks. A message that is submitted again
writes nothing, and the connection may be another one: so each pipeline writes something of its own
before it asks, behind all that it is asked for.
"""

from collections.abc import Iterable
from typing import Any, Final

from turnline.contracts.connection import Command
from turnline.contracts.errors import StoreUnavailable

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


def confirmed(reply: Any) -> int:
    """Return how many replicas have it, as far as is known.

    Raises:
        StoreIncompatible: The server does not let WAIT be called.
    """
    if isinstance(reply, Exception) and not isinstance(reply, StoreUnavailable):
        raise reply
    return reply if isinstance(reply, int) else 0


def least(one: Any, other: Any) -> Any:
    """Return which of two servers' replies to the same command promises less."""
    if isinstance(one, Exception):
        return one
    if isinstance(one, int) and isinstance(other, int):
        return min(one, other)
    return other
