"""Listens to sharded channels, as workers do."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from redis.asyncio import ConnectionPool, Redis

from tests.support.wait import wait_until
from turnline.contracts.subscriber import Subscriber
from turnline.contracts.subscriber_link import Place


class _There(NamedTuple):
    pool: ConnectionPool
    address: str = "there"


class Heard(list[bytes]):
    """What came over some channels."""

    def __init__(self) -> None:
        super().__init__()
        self.subscribed = 0

    def __call__(self, data: bytes | None) -> None:
        if data is None:
            self.subscribed += 1
        else:
            self.append(data)


@asynccontextmanager
async def listening(redis: Redis, *channels: str) -> AsyncIterator[Heard]:
    """Listen to sharded channels for a `with` block."""
    place = _There(redis.connection_pool)

    async def locate(_: str) -> Place:
        return place

    heard, subscriber = Heard(), Subscriber(locate)
    try:
        for channel in channels:
            subscriber.listen(channel, heard)
        await wait_until(lambda: heard.subscribed == len(channels), "the channels are heard")
        yield heard
    finally:
        await subscriber.aclose()
