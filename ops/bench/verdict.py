"""What the figures say: the budget, and Turnline beside the naive worker."""

from collections.abc import Iterator, Mapping
from typing import Final

from turnline.ops.bench.results import Report, Row
from turnline.ops.bench.scenarios import ARQ, FLOOR, RESPONSES, TUNED, TURNLINE
from turnline.ops.chaos.figures import Figure

_SOAKED: Final = 20_000
"""Turns after which memory has settled: a shorter soak tells nothing."""
_CREEP_KB: Final = 20
"""An hour of a busy worker is 50,000 turns: this would be 1 MB."""


def budget(report: Report) -> Iterator[Figure]:
    """Yield the lines of the budget that this run has figures for, each with its bound."""
    rows = {row.scenario: row for row in report.rows if row.system == TURNLINE}
    yield from _of_rows(rows)
    yield from _of_wires(rows, {it.scenario: it for it in report.rows if it.system == RESPONSES})
    for burst in report.bursts:
        if burst.system == TURNLINE and burst.gap_p50_ms is not None:
            yield Figure("gap between two queued turns, p50", burst.gap_p50_ms, "ms", 5)
    if TURNLINE in report.rest_mb:
        yield Figure("memory of a worker at rest", report.rest_mb[TURNLINE], "MB", 90)
    for fleet in report.fleets:
        if fleet.system == TURNLINE:
            yield Figure("memory per turn in flight", fleet.kb_per_turn, "KB", 60)
            done = min(fleet.in_flight, fleet.completed or 0)
            yield Figure("turns in flight and completed, fleet-wide", done, least=fleet.submitted)
    for curve in report.curves:
        until = f" up to {curve.judged_to:,.0f}" if curve.judged_to else ""
        what = f"{curve.title}, {curve.expected}{until}: {curve.y}"
        yield Figure(what, curve.factor, "times", 2)
    if report.soak is not None and report.soak.turns >= _SOAKED:
        creep = report.soak.kb_per_1000_turns
        yield Figure("memory of a worker under load, per 1,000 turns", creep, "KB", _CREEP_KB)
    yield from (it for it in report.drills if it.most is not None)


def _of_rows(rows: Mapping[str, Row]) -> Iterator[Figure]:
    if row := rows.get("instant-20-c1"):
        what = "added time to first delta, idle fleet"
        yield Figure(f"{what}, p50", row.added_first_p50_ms, "ms", 3)
        yield Figure(f"{what}, p99", row.added_first_p99_ms, "ms", 10)
    if row := rows.get("instant-20-c50"):
        yield Figure("turns/s, 50 conversations, 20 chunks", row.turns_per_s, least=300)
    for chunks, limit_ms in ((20, 3), (200, 8)):
        if row := rows.get(f"instant-{chunks}-c10"):
            yield Figure(f"CPU per turn, {chunks} chunks", row.own_cpu_ms, "ms", limit_ms)
    if (short := rows.get("context-10")) and (long := rows.get("context-1000")):
        ratio = long.own_cpu_ms / short.own_cpu_ms
        yield Figure("CPU at 1,000 messages over 10, wire included", ratio, "times", 2)


def _of_wires(chat: Mapping[str, Row], responses: Mapping[str, Row]) -> Iterator[Figure]:
    """Yield what the wire of responses costs by that of chat."""
    for name in ("instant-20-c10", "instant-20-c50", "instant-200-c10"):
        if (one := chat.get(name)) and (other := responses.get(name)):
            ratio = other.worker_cpu_ms / one.worker_cpu_ms
            yield Figure(
                f"worker's CPU per turn on responses over chat, {name}", ratio, "times", 1.15
            )
    names = ("instant-20-c10", "instant-200-c10")
    if all(name in chat and name in responses for name in names):
        ratio = _per_chunk(*(responses[it] for it in names)) / _per_chunk(
            *(chat[it] for it in names)
        )
        yield Figure("worker's CPU per chunk on responses over chat", ratio, "times", 1.15)


def _per_chunk(short: Row, long: Row) -> float:
    return (long.worker_cpu_ms - short.worker_cpu_ms) / 180


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
