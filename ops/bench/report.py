"""Shows a report: tables in the terminal, a page with a plot for the documentation."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ops.bench.plot import Bar, Group, Panel, svg
from ops.bench.results import Burst, Report, Row
from ops.bench.scenarios import ABOUT
from ops.bench.verdict import budget, comparisons

_COLUMNS: Final = (
    "system",
    "turns/s (range)",
    "added first p50 / p99 ms",
    "CPU ms worker + Redis",
    "client",
    "model",
    "cmds",
    "KB",
    "peak MB",
)
_RAW: Final = "benchmarks/raw.json"
_PLOT: Final = "benchmarks/plot.svg"
_METHOD: Final = (
    "Every system runs the same turns against the same simulated model in the same run, one at a "
    "time, in turns, {rounds} rounds; the others' processes are frozen meanwhile. Shown are "
    "medians over the rounds, with the range of the turns per second. CPU, Redis commands (those "
    "inside scripts included) and bytes are per turn. *Added first* is the time from submitting "
    "to the first text at the client, less the model's own time to it; with several conversations "
    "and a model that answers at once it is mostly waiting for the processor. Absolute figures are "
    "this machine's; compare rows with each other. Raw numbers: [{raw}]({raw})."
)


class _Figures(NamedTuple):
    """One table."""

    title: str
    columns: Sequence[str]
    rows: list[list[str]]


def _cells(row: Row) -> list[str]:
    low, high = row.turns_per_s_range
    wrong = f"  {row.wrong} WRONG" if row.wrong else ""
    return [
        row.system,
        f"{row.turns_per_s:,.0f} ({low:,.0f} to {high:,.0f}){wrong}",
        f"{row.added_first_p50_ms:.1f} / {row.added_first_p99_ms:.1f}",
        f"{row.worker_cpu_ms:.2f} + {row.redis_cpu_ms:.2f}",
        f"{row.client_cpu_ms:.2f}",
        f"{row.model_cpu_ms:.2f}",
        f"{row.redis_commands:.0f}",
        f"{row.redis_kb:.1f}",
        f"{row.worker_peak_mb:.0f}" if row.worker_peak_mb else "",
    ]


def _one_table(report: Report) -> Table:
    """Return all scenarios in one table, each under its title."""
    table = Table(header_style="dim")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "system" else "right", no_wrap=True)
    for name in dict.fromkeys(row.scenario for row in report.rows):
        rows = [row for row in report.rows if row.scenario == name]
        table.add_section()
        table.add_row(Text(name, "bold"))
        for row in rows:
            table.add_row(*_cells(row))
    return table


def _tables(report: Report) -> Iterable[_Figures]:
    """Yield what stands beside the main table."""
    if report.calls:
        yield _Figures(
            "reading a stream in one process",
            ("chunks", "pace", "reader", "CPU us per chunk (range)"),
            [
                [
                    f"{it.chunks:,}",
                    it.pace,
                    it.reader,
                    _ranged(it.us_per_chunk, *it.us_per_chunk_range),
                ]
                for it in report.calls
            ],
        )
    if report.bursts:
        yield _Figures(
            "10 turns of one conversation submitted at once",
            ("system", "gap p50 / p99 ms", "at once", "messages kept"),
            [
                [it.system, _gap(it), f"{it.most_at_once}", f"{it.kept} of {it.expected}"]
                for it in report.bursts
            ],
        )
    if report.fleets:
        yield _Figures(
            "a fleet in one process, and a model that does not answer yet",
            ("system", "workers x slots", "in flight", "completed", "MB at rest", "KB a turn"),
            [
                [
                    it.system,
                    f"{it.workers} x {it.slots}",
                    f"{it.in_flight:,} of {it.submitted:,}",
                    "not waited for" if it.completed is None else f"{it.completed:,}",
                    f"{it.rest_mb:.0f}",
                    f"{it.kb_per_turn:.0f}",
                ]
                for it in report.fleets
            ],
        )
    if lines := list(budget(report)):
        yield _Figures(
            "the budget",
            ("what", "measured", "budget", "met"),
            [[it.what, it.measured, it.budget, "yes" if it.met else "NO"] for it in lines],
        )


def _ranged(value: float, low: float, high: float) -> str:
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def _gap(burst: Burst) -> str:
    if burst.gap_p50_ms is None or burst.gap_p99_ms is None:
        return "not in turn"
    return f"{burst.gap_p50_ms:.1f} / {burst.gap_p99_ms:.1f}"


def _scenario_tables(report: Report) -> Iterable[_Figures]:
    for name in dict.fromkeys(row.scenario for row in report.rows):
        rows = [row for row in report.rows if row.scenario == name]
        yield _Figures(rows[0].title, _COLUMNS, [_cells(row) for row in rows])


def show(report: Report, console: Console) -> None:
    """Print all tables."""
    console.print(_one_table(report))
    for title, columns, rows in _tables(report):
        table = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
        for column in columns:
            table.add_column(column, justify="left" if column in {"system", "what"} else "right")
        for cells in rows:
            table.add_row(*cells)
        console.print(table)
    for sentence in comparisons(report):
        console.print(sentence)
    console.print(f"{report.machine}; {report.date}; {report.seconds:.0f} s")


def write_page(report: Report, page: Path) -> None:
    """Write a Markdown page, and beside it the plot and the raw numbers."""
    (page.parent / _RAW).parent.mkdir(parents=True, exist_ok=True)
    raw = msgspec.json.format(msgspec.json.encode(report), indent=1)
    (page.parent / _RAW).write_bytes(raw + b"\n")
    (page.parent / _PLOT).write_text(svg(_panels(report)), encoding="utf-8")
    page.write_text(_markdown(report), encoding="utf-8")


def _markdown(report: Report) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    rounds = sorted({row.rounds for row in report.rows})
    parts = [
        "# Benchmarks\n",
        f"Made by `{report.command}` on {report.date}, {report.seconds:.0f} s.\n",
        f"Machine: {report.machine}.\n",
        f"Versions: {versions}.\n",
        _METHOD.format(rounds=" to ".join(map(str, rounds)), raw=_RAW) + "\n",
        "\n".join(f"- **{name}**: {text}" for name, text in ABOUT.items()) + "\n",
        f"![turns per second, time to first delta, CPU per turn]({_PLOT})\n",
        "## In short\n",
        "\n".join(f"- {sentence}" for sentence in comparisons(report)) + "\n",
        "## Figures\n",
    ]
    for title, columns, rows in (*_scenario_tables(report), *_tables(report)):
        parts.append(f"### {title[0].upper()}{title[1:]}\n")
        lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        lines += [f"| {' | '.join(cells)} |" for cells in rows]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _panels(report: Report) -> list[Panel]:
    figures: tuple[tuple[str, Callable[[Row], float]], ...] = (
        ("Turns per second (more is better)", lambda row: row.turns_per_s),
        ("Added time to first delta, p50, ms (less is better)", lambda row: row.added_first_p50_ms),
        ("CPU of worker and Redis per turn, ms (less is better)", lambda row: row.own_cpu_ms),
    )
    panels: list[Panel] = []
    for title, figure in figures:
        groups: list[Group] = []
        for name in dict.fromkeys(row.scenario for row in report.rows):
            rows = [row for row in report.rows if row.scenario == name]
            bars = [Bar(row.system, figure(row)) for row in rows if figure(row) > 0.02]
            groups.append(Group(rows[0].title, bars))
        panels.append(Panel(title, [group for group in groups if group.bars]))
    return [panel for panel in panels if panel.groups]
