"""What the figures say: the budget, and Turnline beside the naive worker."""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from turnline.ops.bench.results import Report, Row
from turnline.ops.bench.scenarios import ARQ, FLOOR, TUNED, TURNLINE

_SOAKED: Final = 20_000
"""Turns after which memory has settled: a shorter soak tells nothing."""
_CREEP_KB: Final = 20
"""An hour of a busy worker is 50,000 turns: this would be 1 MB."""


class Verdict(NamedTuple):
    """One line of the budget."""

    what: str
    measured: str
    budget: str
    met: bool

    @property
    def said(self) -> str:
        """Whether it is met, in a word."""
        return "yes" if self.met else "NO"


def budget(report: Report) -> Iterator[Verdict]:
    """Yield the lines of the budget that this run has figures for."""
    rows = {row.scenario: row for row in report.rows if row.system == TURNLINE}
    yield from _times(rows)
    yield from _work(rows)
    for burst in report.bursts:
        if burst.system == TURNLINE and burst.gap_p50_ms is not None:
            yield _at_most("gap between two queued turns, p50", burst.gap_p50_ms, 5, "ms")
    if TURNLINE in report.rest_mb:
        yield _at_most("memory of a worker at rest", report.rest_mb[TURNLINE], 90, "MB")
    for fleet in report.fleets:
        if fleet.system == TURNLINE:
            yield _at_most("memory per turn in flight", fleet.kb_per_turn, 60, "KB")
            yield Verdict(
                "turns in flight, fleet-wide",
                f"{fleet.in_flight:,}",
                f"all {fleet.submitted:,}",
                fleet.in_flight == fleet.submitted == fleet.completed,
            )
    yield from _over_time(report)
    for drill in report.drills:
        if drill.most is not None:
            yield _at_most(drill.what, drill.value, drill.most, drill.unit)


def _over_time(report: Report) -> Iterator[Verdict]:
    for curve in report.curves:
        until = f" up to {curve.judged_to:,.0f}" if curve.judged_to else ""
        what = f"{curve.title}, {curve.expected}{until}: {curve.y}"
        yield _at_most(what, curve.factor, 2, "times")
    if report.soak is not None and report.soak.turns >= _SOAKED:
        creep = report.soak.kb_per_1000_turns
        yield _at_most("memory of a worker under load, per 1,000 turns", creep, _CREEP_KB, "KB")


def _times(rows: Mapping[str, Row]) -> Iterator[Verdict]:
    if row := rows.get("instant-20-c1"):
        p50, p99 = row.added_first_p50_ms, row.added_first_p99_ms
        yield Verdict(
            "added time to first delta, idle fleet, p50 / p99",
            f"{p50:.1f} / {p99:.1f} ms",
            "3 / 10 ms",
            p50 <= 3 and p99 <= 10,
        )
    if row := rows.get("instant-20-c50"):
        speed = row.turns_per_s
        yield Verdict(
            "turns/s, 50 conversations, 20 chunks", f"{speed:.0f}", "at least 300", speed >= 300
        )


def _work(rows: Mapping[str, Row]) -> Iterator[Verdict]:
    for chunks, limit_ms in ((20, 3), (200, 8)):
        if row := rows.get(f"instant-{chunks}-c10"):
            yield _at_most(f"CPU per turn, {chunks} chunks", row.own_cpu_ms, limit_ms, "ms")
    if (short := rows.get("context-10")) and (long := rows.get("context-1000")):
        ratio = long.own_cpu_ms / short.own_cpu_ms
        yield _at_most("CPU at 1,000 messages over 10, wire included", ratio, 2, "times")


def _at_most(what: str, measured: float, limit: float, unit: str) -> Verdict:
    return Verdict(what, f"{measured:.1f} {unit}", f"{limit:g} {unit}", measured <= limit)


def comparisons(report: Report) -> Iterator[str]:
    """Yield sentences that set Turnline beside the others."""
    rows = {(row.scenario, row.system): row for row in report.rows}
    yield from _per_cpu(rows)
    if (own := rows.get(("instant-20-c1", TURNLINE))) and (arq := rows.get(("instant-20-c1", ARQ))):
        yield (
            f"Added time to first delta, p50 / p99: {own.added_first_p50_ms:.1f} / "
            f"{own.added_first_p99_ms:.1f} ms; stock ARQ {arq.added_first_p50_ms:.0f} / "
            f"{arq.added_first_p99_ms:.0f} ms."
        )
    costs = {(cost.pace, cost.chunks, cost.reader): cost.us_per_chunk for cost in report.calls}
    for (pace, chunks, reader), cost in costs.items():
        if reader == "GrokLLMService":
            sdk = costs[pace, chunks, "AsyncOpenAI"]
            yield (
                f"CPU per chunk, {chunks:,} chunks, {pace}: GrokLLMService {cost:.1f} us, "
                f"AsyncOpenAI {sdk:.1f} us ({sdk / cost:.1f} times as much)."
            )


def _per_cpu(rows: dict[tuple[str, str], Row]) -> Iterator[str]:
    for scenario in ("instant-20-c10", "instant-200-c10"):
        own = rows.get((scenario, TURNLINE))
        others = [(name, rows.get((scenario, name))) for name in (ARQ, TUNED, FLOOR)]
        if own is None:
            continue
        beside = [f"{name} {1000 / row.own_cpu_ms:.0f}" for name, row in others if row]
        yield (
            f"Turns per CPU-second of worker and Redis, {scenario}: turnline "
            f"{1000 / own.own_cpu_ms:.0f}, {', '.join(beside)}."
        )
