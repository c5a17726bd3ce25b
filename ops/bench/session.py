"""A whole run: all measurements in order, in rounds, within a time budget."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final, cast

from ops.bench import fleet
from ops.bench.lab import Lab, open_lab
from ops.bench.results import Burst, CallCost, InFlight, Report, Row, Sample, row_of
from ops.bench.running import burst, sample
from ops.bench.scenarios import ALL, FLOOR, TUNED, TURNLINE, Scenario
from ops.bench.streaming import call_costs

_PACKAGES: Final = ("arq", "openai", "redis", "hiredis", "msgspec", "uvloop", "aiohttp")
_CALL_ROUNDS: Final = 3

Tell = Callable[[str], None]
"""Told what is being measured."""


class Plan:
    """What to measure, and for how long at most."""

    def __init__(
        self, chosen: Sequence[Scenario], *, rounds: int, budget_s: float, extras: bool
    ) -> None:
        """Plan a run.

        Args:
            chosen: Scenarios, in order.
            rounds: How often each is run, if there is time.
            budget_s: After that, no scenario is run again; each is run once in any case.
            extras: Also measure stream reading, bursts and fleets.
        """
        self.chosen = chosen
        self.rounds = rounds
        self.budget_s = budget_s
        self.extras = extras


async def run(plan: Plan, *, command: str, tell: Tell) -> Report:
    """Measure everything.

    Raises:
        ProgramFailed: A process ended or did not start.
    """
    start_s = time.monotonic()
    calls: list[CallCost] = []
    bursts: list[Burst] = []
    fleets: list[InFlight] = []
    async with open_lab() as lab:
        versions = await _versions(lab)
        if plan.extras:
            tell("a fleet of 24 workers with 100 slots each")
            fleets.append(await fleet.turnline_in_flight(lab.redis_url("fleet"), fleet.Size()))
            tell("the same with stock ARQ")
            fleets.append(await fleet.arq_in_flight(lab.redis_url("arq-fleet"), fleet.Size()))
            tell("reading streams in one process")
            calls = await call_costs(lab, rounds=_CALL_ROUNDS)
        tell("starting workers")
        workers = max((scenario.workers for scenario in plan.chosen), default=1)
        used = [name for name in ALL if any(name in it.systems for it in plan.chosen)]
        await lab.start(used, workers)
        if plan.extras:
            for name in (TURNLINE, TUNED, FLOOR):
                if name in used:
                    tell(f"bursts on one conversation: {name}")
                    bursts.append(await burst(lab, name, bursts=5))
        rows = await _rounds(lab, plan, tell, until_s=start_s + plan.budget_s)
    return Report(
        command=command,
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        machine=_machine(),
        versions=versions,
        seconds=time.monotonic() - start_s,
        rest_mb=lab.rest_mb,
        rows=rows,
        calls=calls,
        bursts=bursts,
        fleets=fleets,
    )


async def _rounds(lab: Lab, plan: Plan, tell: Tell, *, until_s: float) -> list[Row]:
    """Run all scenarios, then all again; within a scenario the systems take turns."""
    samples: dict[tuple[str, str], list[Sample]] = {}
    for number in range(1, plan.rounds + 1):
        for scenario in plan.chosen:
            if number > 1 and time.monotonic() > until_s:
                break
            for name in scenario.systems:
                tell(f"round {number}: {scenario.title}: {name}")
                one = await sample(lab, scenario, name, warm=number > 1)
                samples.setdefault((scenario.name, name), []).append(one)
    return [
        row_of(scenario.name, scenario.title, name, taken)
        for scenario in plan.chosen
        for name in scenario.systems
        if (taken := samples.get((scenario.name, name), []))
    ]


async def _versions(lab: Lab) -> dict[str, str]:
    info = cast("dict[str, Any]", await lab.redis.execute_command("INFO", "server"))
    server = str(info.get("server_name", "redis"))
    return {
        "python": platform.python_version(),
        server: str(info.get(f"{server}_version", info["redis_version"])),
        **{name: metadata.version(name) for name in _PACKAGES},
    }


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((ln.partition(":")[2].strip() for ln in lines if ln.startswith("model name")), "?")
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores ({model}), {memory_gb:.0f} GB, {platform.system()} "
        f"{platform.release().partition('-')[0]}; everything on this one machine"
    )
