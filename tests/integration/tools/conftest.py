"""Fixtures of tests that run tools: a simulator, a producer, workers moved by hand."""

from collections.abc import AsyncIterator

import pytest

from turnline.contracts import TurnClient
from turnline.ops.simulator import Simulator, SimulatorConfig


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    """A Grok that does not wait."""
    async with Simulator(SimulatorConfig()) as simulator:
        yield simulator


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[TurnClient]:
    """A producer."""
    async with TurnClient.connect(redis_url) as producer:
        yield producer
