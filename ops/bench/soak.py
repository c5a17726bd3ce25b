"""A worker under load for minutes, and whether its memory creeps."""

import asyncio
import time
from typing import Final

from turnline.contracts import TurnClient
from turnline.ops.bench import systems
from turnline.ops.bench.lab import Lab, new_id
from turnline.ops.bench.measuring import rss_mb
from turnline.ops.bench.results import Soak, slope
from turnline.ops.bench.running import TURNS_PER_CONVERSATION
from turnline.ops.bench.scenarios import INSTANT, TEXT, TURNLINE
from turnline.ops.bench.systems import Turnline
from turnline.ops.cli.failures import Failed

_CONVERSATIONS: Final = 20
_SAMPLES: Final = 60
_PATIENCE_S: Final = 60.0
_SMALL_CACHE: Final = {"TURNLINE_CONTEXT_CACHE_MB": "1", "TURNLINE_TRACE_STORE": "1000"}
"""What fills up on purpose is full long before the half of the time is over."""


async def soak(lab: Lab, *, seconds: float) -> Soak:
    """Have as many turns as one worker answers, in conversations of ten turns each."""
    lab.model.answer_as(INSTANT)
    url = lab.redis_url("soak")
    turns = wrong = 0
    seen: list[tuple[int, float]] = []
    until_s = 0.0

    async def converse(system: Turnline) -> None:
        nonlocal turns, wrong
        while True:
            conversation_id = new_id("soak")
            for _ in range(TURNS_PER_CONVERSATION):
                timing = await system.turn(conversation_id, TEXT)
                turns += 1
                wrong += timing.text != INSTANT.text
            await system.client.forget(conversation_id)
            if time.monotonic() >= until_s:
                return

    async def watch(pid: int) -> None:
        while True:
            seen.append((turns, rss_mb(pid)))
            await asyncio.sleep(seconds / _SAMPLES)

    with systems.worker(url, lab.model.base_url, 0, _SMALL_CACHE) as program:
        async with TurnClient.connect(url) as client:
            system = Turnline(TURNLINE, client, [program])
            await system.turn(new_id("soak"), TEXT)  # it is up when it answers
            until_s = time.monotonic() + seconds
            watching = asyncio.create_task(watch(program.pid))
            try:
                async with asyncio.timeout(seconds + _PATIENCE_S):
                    await asyncio.gather(*(converse(system) for _ in range(_CONVERSATIONS)))
            except TimeoutError:
                raise Failed(f"no answer for {_PATIENCE_S:.0f} s") from None
            finally:
                watching.cancel()
            program.check()
    later = [(float(done), mb) for done, mb in seen if done >= turns / 2]
    return Soak(
        seconds=seconds,
        turns=turns,
        wrong=wrong,
        rss_mb=seen,
        kb_per_1000_turns=slope(later) * 1024 * 1000,
    )
