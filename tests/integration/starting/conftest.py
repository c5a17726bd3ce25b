"""What tests of the start share."""

from collections.abc import AsyncIterator

import pytest

from turnline.ops.simulator import Simulator, SimulatorConfig


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    """A Grok that does not wait."""
    async with Simulator(SimulatorConfig()) as simulator:
        yield simulator
