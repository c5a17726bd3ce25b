"""Fixtures of tests that watch turns: a simulator, watched workers, a client."""

from collections.abc import AsyncIterator

import pytest

from tests.integration.telemetry.watching import KeptSpans, WatchedHand, watched
from turnline.contracts import TurnClient
from turnline.ops.simulator import Simulator, SimulatorConfig


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    """A Grok that does not wait."""
    async with Simulator(SimulatorConfig()) as simulator:
        yield simulator


@pytest.fixture
def kept() -> KeptSpans:
    """What all watched workers of a test tell."""
    return KeptSpans()


@pytest.fixture
async def hand(redis_url: str, sim: Simulator, kept: KeptSpans) -> AsyncIterator[WatchedHand]:
    """A watched worker moved by hand."""
    async with watched(redis_url, sim, kept) as worker:
        yield worker


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[TurnClient]:
    """A producer."""
    async with TurnClient.connect(redis_url) as producer:
        yield producer
