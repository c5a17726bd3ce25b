"""The memory of a turn is free when the turn is over, not when a collection comes by."""

import asyncio
import gc
from collections import Counter

import pytest
import uvloop

from tests.support.driving import fleet
from tests.support.wait import wait_until
from turnline.contracts import TurnClient, UserMessage
from turnline.ops.simulator import Simulator
from turnline.worker.store.traces import KeptTrace

TURNS = 10


@pytest.mark.parametrize("scenario", ["chunks;n=20", "status=400"], ids=["answered", "failed"])
def test_a_turn_leaves_nothing_to_the_garbage_collector(redis_url: str, scenario: str) -> None:
    """Nothing of it stands in a circle; on the event loop that workers have."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        left = runner.run(_left_by_turns(redis_url, scenario))

    assert left == {}


async def _left_by_turns(redis_url: str, scenario: str) -> Counter[str]:
    """Return the kinds of objects of the worker that only a collection would free."""
    async with (
        Simulator() as sim,
        TurnClient.connect(redis_url) as client,
        fleet(redis_url, sim) as (one,),
    ):
        await client.ask("first", "Hello")
        sim.inject(scenario, times=None)
        worker = one.workers[0]
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for n in range(TURNS):
                message = UserMessage(conversation_id=f"c{n}", text="Hello")
                await client.result(await client.submit(message))
            await wait_until(lambda: worker.job_counter == 0, "everything is over")
            gc.collect()
            return Counter(
                type(it).__qualname__
                for it in gc.garbage
                # A batch of traces may hang on the time-out by which it was gathered.
                if type(it).__module__.startswith("turnline.worker.")
                and not isinstance(it, KeptTrace)
            )
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
