"""Fixtures of tests that run conversations: a simulator, a worker moved by hand, a client."""

from collections.abc import AsyncIterator

import pytest

from tests.support.driving import Hand
from tests.support.driving import hand as open_hand
from turnline.contracts import TurnClient
from turnline.ops.simulator import Simulator


@pytest.fixture
async def hand(redis_url: str, sim: Simulator, client: TurnClient) -> AsyncIterator[Hand]:
    """A worker moved by hand."""
    async with open_hand(redis_url, sim) as worker:
        worker.client, worker.sim = client, sim
        yield worker
