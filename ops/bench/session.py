"""A whole run: all measurements in order, in rounds, within a time budget."""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal, cast

import msgspec

from turnline.ops.bench import fleet, growth
from turnline.ops.bench.lab import Lab, open_lab
from turnline.ops.bench.producers import producers
from turnline.ops.bench.results import (
    Burst,
    CallCost,
    Curve,
    InFlight,
    Report,
    Row,
    Sample,
    Soak,
    Submitting,
    row_of,
)
from turnline.ops.bench.running import burst, sample
from turnline.ops.bench.scenarios import FLOOR, TUNED, TURNLINE, Scenario, workers_of
from turnline.ops.bench.soak import soak
from turnline.ops.bench.streaming import call_costs

_PACKAGES: Final = ("arq", "openai", "redis", "hiredis", "msgspec", "uvloop", "aiohttp")
_CALL_ROUNDS: Final = 3

Tell = Callable[[str], None]
"""Told what is being measured."""
Part = Literal["fleet", "reading", "producers", "burst", "growth", "soak"]
"""What is measured beside the scenarios."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure, and for how long at most."""

    chosen: Sequence[Scenario]
    """Scenarios, in order."""
    rounds: int
    """How often each is run, if there is time."""
    budget_s: float
    """From the start: no scenario is run again if it would end later; each is run once in any
    case."""
    parts: frozenset[Part]
    soak_s: float


async def run(plan: Plan, *, command: str, tell: Tell) -> Report:
    """Measure everything.

    Raises:
        Failed: A process ended or did not start.
    """
    start_s = time.monotonic()
    async with open_lab() as lab:
        versions = await _versions(lab)
        fleets = await _fleets(lab, tell) if "fleet" in plan.parts else []
        calls, submitted, soaked = await _alone(lab, plan, tell)
        curves = await _worker_curves(lab, plan, tell)
        tell("starting workers")
        used = dict(workers_of(plan.chosen))
        if "growth" in plan.parts:
            used.setdefault(TURNLINE, 1)
        await lab.start(used)
        bursts = await _bursts(lab, tell, used) if "burst" in plan.parts else []
        rows = await _rounds(lab, plan, tell, until_s=start_s + plan.budget_s)
        curves = growth.of_rows(rows) + await _other_curves(lab, plan, tell) + curves
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
        producers=submitted,
        curves=curves,
        soak=soaked,
    )


async def _fleets(lab: Lab, tell: Tell) -> list[InFlight]:
    tell("a fleet of 24 workers with 100 slots each")
    own = await fleet.turnline_in_flight(lab.redis_url("fleet"), fleet.Size())
    tell("the same with stock ARQ")
    return [own, await fleet.arq_in_flight(lab.redis_url("arq-fleet"), fleet.Size())]


async def _alone(
    lab: Lab, plan: Plan, tell: Tell
) -> tuple[list[CallCost], list[Submitting], Soak | None]:
    """Measure what needs none of the systems."""
    calls: list[CallCost] = []
    submitted: list[Submitting] = []
    soaked: Soak | None = None
    if "reading" in plan.parts:
        tell("reading streams in one process")
        calls = await call_costs(lab, rounds=_CALL_ROUNDS)
    if "producers" in plan.parts:
        tell("submitting")
        submitted = await producers(lab, rounds=plan.rounds)
    if "soak" in plan.parts:
        tell(f"a worker under load for {plan.soak_s:.0f} s")
        soaked = await soak(lab, seconds=plan.soak_s)
    return calls, submitted, soaked


async def _bursts(lab: Lab, tell: Tell, used: Mapping[str, int]) -> list[Burst]:
    bursts: list[Burst] = []
    for name in (TURNLINE, TUNED, FLOOR):
        if name in used:
            tell(f"bursts on one conversation: {name}")
            bursts.append(await burst(lab, name, bursts=5))
    return bursts


async def _worker_curves(lab: Lab, plan: Plan, tell: Tell) -> list[Curve]:
    """Measure fleets of their own."""
    if "growth" not in plan.parts:
        return []
    tell("fleets of 1 to 64 workers")
    return await growth.by_workers(lab, rounds=plan.rounds)


async def _other_curves(lab: Lab, plan: Plan, tell: Tell) -> list[Curve]:
    """Measure on the lab's worker; at the very end, since a million keys stay."""
    if "growth" not in plan.parts:
        return []
    tell("inboxes of 1 to 900 messages")
    inbox = await growth.by_inbox(lab, rounds=plan.rounds)
    tell("up to a million keys of idle conversations")
    return [inbox, await growth.by_idle_conversations(lab, rounds=plan.rounds)]


async def _rounds(lab: Lab, plan: Plan, tell: Tell, *, until_s: float) -> list[Row]:
    """Run all scenarios, then all again; within a scenario the systems take turns."""
    samples: dict[tuple[str, str], list[Sample]] = {}
    took_s: dict[str, float] = {}
    for number in range(1, plan.rounds + 1):
        for scenario in plan.chosen:
            start_s = time.monotonic()
            if number > 1 and start_s + took_s[scenario.name] > until_s:
                continue
            for name in scenario.systems:
                tell(f"round {number}: {scenario.title}: {name}")
                one = await sample(lab, scenario, name, warm=number > 1)
                samples.setdefault((scenario.name, name), []).append(one)
            took_s[scenario.name] = time.monotonic() - start_s
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
