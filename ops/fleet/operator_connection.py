"""Connects an operator to a fleet: with a client, plain commands, and the names of keys."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final, NamedTuple

from redis.exceptions import AuthenticationError, RedisError

from turnline.contracts import InvalidAddress, SyncTurnClient
from turnline.contracts.addresses import read_address
from turnline.contracts.connection import SyncRedis
from turnline.contracts.keys import ConversationKeys, ShardKeys
from turnline.contracts.layout import FIELDS, Layout, read_layout
from turnline.contracts.opening import open_sync
from turnline.contracts.patience import PATIENCE_S
from turnline.contracts.protocol import Requests
from turnline.ops.cli.failures import Failure

ANSWER_S: Final = 10.0
"""What a server has to answer the first question."""


class Connection(NamedTuple):
    """What a command works with."""

    client: SyncTurnClient
    url: str
    prefix: str
    redis: SyncRedis
    requests: Requests
    """For the names of keys."""
    shards: tuple[ShardKeys, ...]
    """Names of all shards that may hold anything."""

    def names(self, conversation_id: str) -> ConversationKeys:
        """Return the names of a conversation, where it is."""
        *before, last = (self.requests.names(conversation_id, it)[1] for it in self.layout.homes)
        there = (it for it in before if self.redis.execute_command("EXISTS", it.log))
        return next(there, last)

    @property
    def layout(self) -> Layout:
        """The number of shards."""
        return self.requests.layout


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
        values = redis.execute_command("HMGET", requests.shards[0].fleet, *FIELDS)
        if (layout := read_layout(values)) is not None:
            requests.learn(layout)
        yield Connection(
            SyncTurnClient(redis, shards=shards, prefix=prefix),
            redis_url,
            prefix,
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
