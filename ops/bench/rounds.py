"""A whole run: all measurements in order, in rounds, within a time budget."""

import os
import platform
import time
from collections.abc import Sequence
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
from turnline.ops.chaos.figures import Tell

_PACKAGES: Final = ("arq", "openai", "redis", "hiredis", "msgspec", "uvloop", "aiohttp")
_CALL_ROUNDS: Final = 3

Part = Literal["fleet", "reading", "producers", "burst", "growth", "soak"]
"""What is measured beside the scenarios."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure, and for how long at most."""

    chosen: Sequence[Scenario]
    """Scenarios, in order."""
    rounds: int
    """How often each is run, if there is time."""
    budget_s: float
    """Time for all scenarios. One is not repeated if it would end later; each runs once anyway."""
    parts: frozenset[Part]
    soak_s: float


async def run(plan: Plan, *, command: str, tell: Tell) -> Report:
    """Measure everything; first what needs none of the systems, last what leaves a million keys.

    Raises:
        ChildFailed: A process ended or did not start.
    """
    start_s = time.monotonic()
    fleets: list[InFlight] = []
    calls: list[CallCost] = []
    submitted: list[Submitting] = []
    soaked: Soak | None = None
    curves: list[Curve] = []
    async with open_lab() as lab:
        versions = await _versions(lab)
        if "fleet" in plan.parts:
            tell("a fleet of 24 workers with 100 slots each")
            fleets.append(await fleet.turnline_in_flight(lab.redis_url("fleet"), fleet.Size()))
            tell("the same with stock ARQ")
            fleets.append(await fleet.arq_in_flight(lab.redis_url("arq-fleet"), fleet.Size()))
        if "reading" in plan.parts:
            tell("reading streams in one process")
            calls = await call_costs(lab, rounds=_CALL_ROUNDS)
        if "producers" in plan.parts:
            tell("submitting")
            submitted = await producers(lab, rounds=plan.rounds)
        if "soak" in plan.parts:
            tell(f"a worker under load for {plan.soak_s:.0f} s")
            soaked = await soak(lab, seconds=plan.soak_s)
        if "growth" in plan.parts:
            tell("fleets of 1 to 64 workers")
            curves = await growth.by_workers(lab, rounds=plan.rounds)
        bursts, rows = await _side_by_side(lab, plan, tell, until_s=start_s + plan.budget_s)
        others = await _other_curves(lab, plan, tell)
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
        curves=growth.of_rows(rows) + others + curves,
        soak=soaked,
    )


async def _side_by_side(
    lab: Lab, plan: Plan, tell: Tell, *, until_s: float
) -> tuple[list[Burst], list[Row]]:
    """Start the systems and measure them in turns."""
    tell("starting workers")
    used = dict(workers_of(plan.chosen))
    if "growth" in plan.parts:
        used.setdefault(TURNLINE, 1)
    await lab.start(used)
    bursts: list[Burst] = []
    for name in (TURNLINE, TUNED, FLOOR):
        if "burst" in plan.parts and name in used:
            tell(f"bursts on one conversation: {name}")
            bursts.append(await burst(lab, name, bursts=5))
    return bursts, await _rounds(lab, plan, tell, until_s=until_s)


async def _other_curves(lab: Lab, plan: Plan, tell: Tell) -> list[Curve]:
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
