"""A drill: workers are told to end at any moment, while their tools misbehave."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from turnline.contracts import Receipt, ResultTimeout, TurnClient, UserMessage
from turnline.ops.chaos import misbehaving
from turnline.ops.chaos.figures import Drilled, Figure, Tell, fleet, percentile
from turnline.ops.chaos.simulated import SimAdmin
from turnline.ops.fleet.stack import Stack

_DRAIN_S: Final = 1.0
_PATIENCE_S: Final = 60.0
_WHILE_STARTING: Final = 0.3
"""Share of the ends that come while a worker starts."""
_OBSTINATE: Final = (
    "swallows",
    "swallows_without_limit",
    "sleeps_in_a_thread",
    "leaves_words_everywhere",
    "leaves_threads",
    "hangs_at_exit",
    "sleeps_in_the_loop",
    "spins_in_the_loop",
)
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class _Ended(NamedTuple):
    """What became of a worker that was told to end."""

    after_s: float | None
    """From the first signal to its end; None: it had to be killed."""
    exit_code: int


async def drill(rounds: int, tell: Tell, seed: int = 0) -> Drilled:
    """Send SIGTERM and SIGINT at moments drawn from a seed: of a start, of work, of a drain."""
    rng = random.Random(seed)
    ends: list[_Ended] = []
    tools = {"TURNLINE_TOOLS": misbehaving.__name__, "TURNLINE_MAX_CRASHES": "1"}
    with fleet(0, TURNLINE_DRAIN_S=f"{_DRAIN_S:g}", **tools) as stack:
        sim = SimAdmin(stack.base_url)
        sim.add_rule("chunks=100", times=None, conversation="long-*")
        for name in _OBSTINATE:
            sim.add_rule(f"tool;name={name}", times=None, conversation=f"{name}-*")
        async with TurnClient.connect(stack.redis_url) as client:
            receipts: list[Receipt] = []
            for n in range(rounds):
                tell(f"seed {seed}: end {n + 1} of {rounds}")
                stack.start(0)
                receipts += [
                    await client.submit(UserMessage(conversation_id=f"{name}-{n}", text="go"))
                    for name in ("long", "short", rng.choice(_OBSTINATE))
                ]
                if rng.random() < _WHILE_STARTING:
                    await asyncio.sleep(rng.uniform(0, 2))
                else:
                    stack.wait_ready()
                    await asyncio.sleep(rng.uniform(0, 1))
                ends.append(await _told_to_end(stack, rng))
            with Stack(1, redis_url=stack.redis_url):  # one without tools
                lost = await _without_an_end(client, receipts)
    forced = sum(it.exit_code == 75 for it in ends)
    took = [it.after_s for it in ends if it.after_s is not None]
    return Drilled(
        "end",
        f"told to end at any moment, {_DRAIN_S:g} s of grace, tools that misbehave, seed {seed}",
        [
            Figure("workers told to end", rounds),
            Figure("p50", percentile(took, 0.5), "s"),
            Figure("slowest", max(took), "s", _DRAIN_S + 2),
            Figure("still there", rounds - len(took), most=0),
            Figure("of these that ended, left something behind", forced),
            Figure("turns without an end", lost, most=0),
        ],
    )


async def _told_to_end(stack: Stack, rng: random.Random) -> _Ended:
    """Send a worker one to three signals within its time, and wait for its end."""
    at_s = time.monotonic()
    stack.terminate(0)
    later = sorted(rng.uniform(0, _DRAIN_S + 2) for _ in range(rng.choice((0, 0, 1, 2))))
    while (after_s := time.monotonic() - at_s) < _DRAIN_S + 10:
        if not stack.is_running(0):
            return _Ended(after_s, stack.wait(0))
        if later and after_s > later[0]:
            later.pop(0)
            os.kill(stack.pid(0), rng.choice(_SIGNALS))
        await asyncio.sleep(0.01)
    stack.kill(0)
    return _Ended(None, stack.wait(0))


async def _without_an_end(client: TurnClient, receipts: Sequence[Receipt]) -> int:
    """Return how many turns do not end though a worker runs that could end them."""
    lost = 0
    for receipt in receipts:
        try:
            await client.result(receipt, timeout_s=_PATIENCE_S)
        except ResultTimeout:
            lost += 1
    return lost
