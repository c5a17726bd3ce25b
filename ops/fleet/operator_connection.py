"""Connects an operator to a fleet: with a client, plain commands, and the names of keys."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final, NamedTuple

from redis.exceptions import AuthenticationError, RedisError

from turnline.contracts import InvalidAddress, SyncTurnClient
from turnline.contracts.addresses import read_address
from turnline.contracts.connection import SyncRedis
from turnline.contracts.keys import ShardKeys
from turnline.contracts.opening import open_sync
from turnline.contracts.patience import PATIENCE_S
from turnline.contracts.protocol import Requests
from turnline.ops.cli.failures import Failure

ANSWER_S: Final = 10.0
"""What a server has to answer the first question."""


class Connection(NamedTuple):
    """What a command works with."""

    client: SyncTurnClient
    redis: SyncRedis
    requests: Requests
    """For the names of keys."""
    shards: tuple[ShardKeys, ...]


@contextmanager
def connected(redis_url: str, shards: int = 1, prefix: str = "") -> Generator[Connection]:
    """Open a connection, having asked whether anybody answers.

    Raises:
        Failure: Nobody does, or the address or the prefix is none.
    """
    try:
        requests = Requests(shards=shards, prefix=prefix)
    except ValueError as error:
        raise Failure(f"--prefix (or TURNLINE_PREFIX): {error}.") from None
    check_answers(redis_url)
    redis = open_sync(redis_url, patience_s=PATIENCE_S)
    try:
        yield Connection(
            SyncTurnClient(redis, shards=shards, prefix=prefix),
            redis,
            requests,
            requests.shards,
        )
    finally:
        redis.close()


def check_answers(redis_url: str) -> None:
    """Ask once, without the patience of a producer.

    Raises:
        Failure: Nobody answers, or the address is none.
    """
    try:
        where = read_address(redis_url).where
    except InvalidAddress as error:
        raise Failure(
            f"--redis (or TURNLINE_REDIS_URL) is not the address of a Redis: {error}."
        ) from None
    redis = open_sync(redis_url, timeout_s=ANSWER_S)
    try:
        redis.execute_command("PING")
    except AuthenticationError:
        raise Failure(f"Redis at {where} wants a (different) user and password.") from None
    except (RedisError, OSError) as error:
        raise Failure(
            f"no Redis answers at {where} ({type(error).__name__}). `turnline redis --port 6379` "
            "runs one; --redis URL or TURNLINE_REDIS_URL names another."
        ) from None
    finally:
        redis.close()
