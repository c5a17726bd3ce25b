"""Fixtures of tests that run conversations: a simulator and a producer."""

from collections.abc import AsyncIterator

import pytest

from turnline.contracts import TurnClient
from turnline.ops.simulator import Simulator


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    """A Grok that does not wait."""
    async with Simulator() as simulator:
        yield simulator


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[TurnClient]:
    """A producer."""
    async with TurnClient.connect(redis_url) as producer:
        yield producer
