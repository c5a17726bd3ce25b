"""Fixtures of tests that watch turns: a simulator, watched workers, a client."""

from collections.abc import AsyncIterator

import pytest

from tests.integration.telemetry.watching import KeptSpans, WatchedHand, watched
from turnline.contracts import TurnClient
from turnline.ops.simulator import Simulator


@pytest.fixture
def kept() -> KeptSpans:
    """What all watched workers of a test tell."""
    return KeptSpans()


@pytest.fixture
async def hand(
    redis_url: str, sim: Simulator, client: TurnClient, kept: KeptSpans
) -> AsyncIterator[WatchedHand]:
    """A watched worker moved by hand."""
    async with watched(redis_url, sim, kept) as worker:
        worker.client, worker.sim = client, sim
        yield worker
