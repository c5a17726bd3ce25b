"""Runs one scenario on one system and measures everybody meanwhile."""

import asyncio
import gc
import itertools
import time
from collections.abc import Sequence
from typing import Final

from turnline.ops.bench.lab import Lab, new_id
from turnline.ops.bench.measuring import cpu_s, forget_peak, peak_rss_mb, redis_work, rss_mb
from turnline.ops.bench.results import Burst, Sample
from turnline.ops.bench.scenarios import ARQ, TEXT, Model, Scenario
from turnline.ops.bench.systems import ARQ_SLOTS, SLOTS, System, Timing
from turnline.ops.chaos.figures import percentile
from turnline.ops.fleet.child import Child

TURNS_PER_CONVERSATION: Final = 10
"""After so many turns a client changes to a fresh conversation, so that contexts stay short."""
_SEEDED: Final = 3
"""Conversations with a history per client, taken in turns for the same reason."""
_BURST: Final = Model(chunks=20, ttft_ms=20)
_BURST_TURNS: Final = 10


class _Client:
    """One user after another, each with one turn at a time."""

    def __init__(self, system: System, scenario: Scenario) -> None:
        self._system = system
        self._scenario = scenario
        self._ids: list[str] = []
        self.timings: list[Timing] = []

    async def prepare(self, *, warm: bool) -> None:
        """Seed histories; `warm`: have a turn, so that connections are open."""
        if self._scenario.context:
            self._ids = [new_id("c") for _ in range(_SEEDED)]
            for conversation_id in self._ids:
                await self._system.seed(conversation_id, self._scenario.context)
        if warm:
            await self._system.turn(self._next(0), TEXT)

    async def run(self, *, after_s: float, until_s: float) -> None:
        """Run turns until then, at least one; begin after a pause of one's own."""
        if after_s:
            await asyncio.sleep(after_s)
        for n in itertools.count():
            self.timings.append(await self._system.turn(self._next(n), TEXT))
            if time.perf_counter() >= until_s:
                return

    def _next(self, turn: int) -> str:
        if self._scenario.context:
            return self._ids[turn % _SEEDED]
        if turn % TURNS_PER_CONVERSATION == 0:
            self._ids = [new_id("c")]
        return self._ids[0]


def _cpu(workers: Sequence[Child], model: Child) -> tuple[float, float, float]:
    """Return the CPU seconds of workers, model and this process so far."""
    return sum(cpu_s(it.pid) for it in workers), cpu_s(model.pid), time.process_time()


async def sample(lab: Lab, scenario: Scenario, name: str, *, warm: bool) -> Sample:
    """Run one round of a scenario on one system; `warm`: its connections are open already."""
    lab.model.answer_as(scenario.model)
    async with lab.awake(name, scenario.workers) as system:
        clients = [_Client(system, scenario) for _ in range(scenario.conversations)]
        opened = 1 if warm else ARQ_SLOTS if name == ARQ else SLOTS
        await asyncio.gather(*(c.prepare(warm=n < opened) for n, c in enumerate(clients)))
        gc.collect()
        workers = system.programs[: scenario.workers]
        for program in workers:
            forget_peak(program.pid)
        before_mb = sum(rss_mb(program.pid) for program in workers)
        first = await redis_work(lab.redis)
        before = await redis_work(lab.redis)
        asking = before.since(first)
        cpu, start_s = _cpu(workers, lab.model.process), time.perf_counter()
        until_s, apart_s = start_s + scenario.seconds, scenario.model.duration_s / len(clients)
        await asyncio.gather(
            *(c.run(after_s=n * apart_s, until_s=until_s) for n, c in enumerate(clients))
        )
        spent = zip(cpu, _cpu(workers, lab.model.process), strict=True)
        worker_s, model_s, own_s = (after - before for before, after in spent)
        work = (await redis_work(lab.redis)).since(before.plus(asking))
        peaks = [peak_rss_mb(program.pid) for program in workers]
    timings = [timing for client in clients for timing in client.timings]
    return Sample(
        turns=len(timings),
        wrong=sum(timing.text != scenario.model.text for timing in timings),
        wall_s=max(timing.done_s for timing in timings) - start_s,
        added_first_ms=[
            (t.first_s - t.submitted_s) * 1000 - scenario.model.ttft_ms for t in timings
        ],
        worker_cpu_s=worker_s,
        redis_cpu_s=work.cpu_s,
        client_cpu_s=own_s,
        model_cpu_s=model_s,
        redis_commands=work.commands,
        redis_requests=work.requests,
        redis_bytes=work.bytes,
        worker_peak_mb=max(peaks, default=0.0),
        worker_growth_mb=sum(peaks) - before_mb,
        at_once=scenario.conversations,
    )


async def burst(lab: Lab, name: str, *, bursts: int) -> Burst:
    """Submit turns of one conversation at once, and read in the model's record when each ran."""
    lab.model.answer_as(_BURST)
    gaps: list[float] = []
    most, kept = 1, 0
    async with lab.awake(name) as system:
        for _ in range(bursts):
            conversation_id = new_id("burst")
            await asyncio.gather(*(system.turn(conversation_id, TEXT) for _ in range(_BURST_TURNS)))
            spans = sorted(
                (it.received_at_ms, it.received_at_ms + (it.duration_ms or 0))
                for it in lab.model.entries(
                    conversation=conversation_id, bodies=False, all_kept=False
                )
            )
            gaps += [after[0] - before[1] for before, after in itertools.pairwise(spans)]
            most = max(most, *(sum(a <= at < b for a, b in spans) for at, _ in spans))
            kept += await system.kept(conversation_id)
    in_turn = most == 1
    return Burst(
        system=name,
        turns=bursts * _BURST_TURNS,
        gap_p50_ms=percentile(gaps, 0.5) if in_turn else None,
        gap_p99_ms=percentile(gaps, 0.99) if in_turn else None,
        most_at_once=most,
        kept=kept,
        expected=2 * bursts * _BURST_TURNS,
    )
