"""The bench of tests that run tools."""

import pytest

from tests.integration.tools.bench import Bench
from turnline.contracts import TurnClient
from turnline.ops.simulator import Simulator


@pytest.fixture
def bench(redis_url: str, sim: Simulator, client: TurnClient) -> Bench:
    """A provider, a producer, and workers moved by hand."""
    return Bench(redis_url, sim, client)
