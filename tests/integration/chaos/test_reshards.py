"""Resharding as a drill: one command after the other, and what is read back afterwards."""

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from tests.support.wait import wait_until_sync
from turnline.contracts import SyncTurnClient, TurnCompleted
from turnline.contracts.connection import SyncRedis
from turnline.contracts.keys import shard_keys, shard_of
from turnline.contracts.layout import Layout
from turnline.contracts.opening import open_sync
from turnline.contracts.protocol import Requests
from turnline.ops.chaos.evidence import Evidence, gather
from turnline.ops.chaos.reshards import Resharded, Reshards
from turnline.ops.chaos.simulated import SimAdmin
from turnline.ops.fleet.stack import Stack

MANY = 4
MOVES = next(f"c{n}" for n in range(100) if shard_of(f"c{n}", MANY))
SEED = 17_191


def never(_since_ms: float) -> bool:
    return False


def always(_since_ms: float) -> bool:
    return True


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A worker of a fleet of four shards, and a conversation."""
    with (
        Stack(1, worker_env={"TURNLINE_SHARDS": str(MANY)}) as it,
        SyncTurnClient.connect(it.redis_url) as client,
    ):
        assert isinstance(client.ask(MOVES, "Hello"), TurnCompleted)
        yield it


@pytest.fixture
def redis(stack: Stack) -> Iterator[SyncRedis]:
    """A connection to its Redis."""
    with closing(open_sync(stack.redis_url, patience_s=3)) as connection:
        yield connection


def evidence(stack: Stack) -> Evidence:
    return gather(stack.redis_url, SimAdmin(stack.base_url), [MOVES])


def test_a_fleet_is_resharded_there_and_back(stack: Stack, redis: SyncRedis) -> None:
    """A command that was killed is begun again; what lies about afterwards is named."""
    reshards = Reshards(stack.redis_url, MANY, 1, SEED)

    def is_enough() -> bool:
        reshards.look_after(never)
        return reshards.found.done >= 2 and reshards.found.killed >= 1

    wait_until_sync(is_enough, "commands ended, and one was killed", 60)
    reshards.finish(30, never)
    found, left = reshards.found, evidence(stack)

    assert found.failures == []
    assert found.moved >= 1
    assert left.layout == Layout(found.shards, 0, (MANY + 1 - found.shards,))
    assert (left.disagreeing, left.left[MOVES].strays) == ([], ())
    assert len(left.left[MOVES].log) == 1

    old = Requests().names(MOVES, left.layout.earlier[0])[1]
    redis.execute_command("XADD", old.events, "*", "e", "{}")
    redis.execute_command("HSET", old.state, "epoch", 1)
    redis.execute_command("HSET", shard_keys(2).fleet, "shards", 7)
    left = evidence(stack)

    assert (left.disagreeing, left.left[MOVES].strays) == ([2], (old.events, old.state))
    redis.execute_command("DEL", old.events, old.state)


def test_a_command_that_fails_is_a_finding_unless_redis_was_away() -> None:
    """Its last words say why; one that found no server is started again."""
    reshards = Reshards("redis://127.0.0.1:1/0", 1, MANY, SEED)

    def look(was_away: Callable[[float], bool]) -> Resharded:
        reshards.look_after(was_away)
        return reshards.found

    wait_until_sync(lambda: look(never).failures, "a command failed", 30)
    wait_until_sync(lambda: look(always).refused_starts, "a command was not started", 30)
    reshards.close()

    (words,) = reshards.found.failures
    assert f"turnline reshard {MANY} ended (exit code 2)" in words
    assert "no Redis answers" in words
