"""Checks that nothing stays in Redis for ever."""

import re
from collections.abc import Iterable

from redis.asyncio import Redis


async def assert_keys_expire(redis: Redis, permanent: Iterable[str | re.Pattern[str]] = ()) -> None:
    """Fail unless each key of the database has a time to live or is known to be permanent.

    Args:
        redis: A client of the database to walk.
        permanent: Keys that may stay: exact names, or patterns that match the whole name.
    """
    patterns = [re.compile(re.escape(p)) if isinstance(p, str) else p for p in permanent]
    keys = [key async for key in redis.scan_iter(count=1000)]
    async with redis.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.pttl(key)
        lives = await pipe.execute()
    names = [
        key.decode() if isinstance(key, bytes) else key
        for key, life_ms in zip(keys, lives, strict=True)
        if life_ms == -1
    ]
    stay = sorted(name for name in names if not any(p.fullmatch(name) for p in patterns))
    assert not stay, f"keys without a time to live: {stay}"
