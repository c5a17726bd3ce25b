"""Fixtures of tests that run conversations: a simulator, a worker moved by hand, a client."""

from collections.abc import AsyncIterator

import pytest

from tests.support.driving import Hand
from tests.support.driving import hand as open_hand
from turnline.contracts import TurnClient
from turnline.ops.simulator import Simulator, SimulatorConfig


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    """A Grok that does not wait."""
    async with Simulator(SimulatorConfig()) as simulator:
        yield simulator


@pytest.fixture
async def hand(redis_url: str, sim: Simulator) -> AsyncIterator[Hand]:
    """A worker moved by hand."""
    async with open_hand(redis_url, sim) as worker:
        yield worker


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[TurnClient]:
    """A producer."""
    async with TurnClient.connect(redis_url) as producer:
        yield producer
