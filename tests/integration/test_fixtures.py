"""The Redis fixtures: each test alone in its database, nothing in it for ever."""

import re

import pytest
from redis.asyncio import Redis

from tests.support.keys import assert_keys_expire


@pytest.mark.parametrize("run", [1, 2])
async def test_each_test_has_an_empty_database_of_its_own(redis: Redis, run: int) -> None:
    """What one test leaves, the next does not see."""
    assert await redis.dbsize() == 0
    await redis.set("left", run)


async def test_keys_without_a_time_to_live_are_named(redis: Redis) -> None:
    """The check passes expiring and permanent keys, and names the others."""
    await redis.set("expiring", 1, px=60_000)
    await redis.set("permanent", 1)
    await redis.set("queue:{s0}", 1)
    await assert_keys_expire(redis, ["permanent", re.compile(r"queue:\{s\d+\}")])

    await redis.set("forgotten", 1)
    with pytest.raises(AssertionError, match=r"without a time to live: \['forgotten', 'queue"):
        await assert_keys_expire(redis, ["permanent"])
