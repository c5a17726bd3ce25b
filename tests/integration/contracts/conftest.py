"""Fixtures of the clients' tests: each test runs with the async and with the blocking client."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.integration.contracts.streams import Blocking
from turnline.contracts import (
    SyncTurnClient,
    TurnClient,
    blocking_streams,
    noticed_streams,
    readers,
)
from turnline.contracts.protocol import Limits

LIMITS = Limits(inbox=5, queue=3, records=8)


@pytest.fixture
async def client_async(redis_url: str) -> AsyncIterator[TurnClient]:
    """The async client alone."""
    async with TurnClient.connect(redis_url, limits=LIMITS) as client:
        yield client


@pytest.fixture(params=["async", "sync"])
async def client(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Any]:
    """Each of the two clients, with small limits."""
    if request.param == "async":
        async with TurnClient.connect(redis_url, limits=LIMITS) as client:
            yield client
    else:
        with SyncTurnClient.connect(redis_url, limits=LIMITS) as blocking:
            yield Blocking(blocking)


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers look at the record, and at what they took before, after 50 ms."""
    monkeypatch.setattr(readers, "BLOCK_S", 0.05)
    for module in (readers, noticed_streams, blocking_streams):
        monkeypatch.setattr(module, "LOOK_S", 0.05)
