"""Shows a report: tables in the terminal, a page with a plot for the documentation."""

import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from turnline.ops.bench.results import Burst, Report, Row, short
from turnline.ops.bench.scenarios import ABOUT
from turnline.ops.bench.verdict import budget, comparisons

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
    "KB each",
)
_LEFT: Final = frozenset({"system", "what", "measured", "at", "producer", "way"})
_MANY: Final = 50
"""Conversations at once from which memory per conversation says something."""
_RAW: Final = "benchmarks/raw.json"
_PLOT: Final = "benchmarks/plot.svg"
_CURVES: Final = "benchmarks/growth.svg"
_METHOD: Final = (
    "Every system runs the same turns against the same simulated model in the same run, one at a "
    "time, in turns, {rounds} rounds; the others' processes are frozen meanwhile. Shown are "
    "medians over the rounds, with the range of the turns per second. CPU, Redis commands (those "
    "inside scripts included) and bytes are per turn. *Added first* is the time from submitting "
    "to the first text at the client, less the model's own time to it; with several conversations "
    "and a model that answers at once it is mostly waiting for the processor. *Peak* is the memory "
    "of the largest worker, *KB each* what the workers took on in a round per conversation, the "
    "most of all rounds. Absolute figures are this machine's; compare rows with each other. Raw "
    "numbers: [{raw}]({raw})."
)
_GROWTH: Final = (
    "*Growth*: flat is what costs at most twice as much at the right end as at the left; linear is "
    "what goes on no more than twice as steeply in the last step as before it. Grey is the floor: "
    "it, too, sends the whole context with every request."
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
        f"{row.in_flight_kb:.0f}" if row.worker_peak_mb and row.at_once >= _MANY else "",
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
    if report.producers:
        yield _Figures(
            "submitting, to nobody",
            ("producer", "way", "per second (range)", "CPU us", "Redis us", "requests"),
            [
                [
                    it.producer,
                    it.way,
                    f"{it.per_s:,.0f} ({it.per_s_range[0]:,.0f} to {it.per_s_range[1]:,.0f})",
                    f"{it.client_us:.0f}",
                    f"{it.redis_us:.0f}",
                    f"{it.redis_requests:.2f}",
                ]
                for it in report.producers
            ],
        )
    if report.curves:
        yield _Figures(
            "growth",
            ("what", "measured", "at", "is", "factor"),
            [
                [
                    it.title,
                    it.y,
                    "; ".join(f"{short(point.x)}: {point.y:.3g}" for point in it.points),
                    it.judged,
                    f"{it.factor:.2f}",
                ]
                for it in report.curves
            ],
        )
    if report.soak is not None:
        yield _Figures(
            "a worker under load",
            (
                "seconds",
                "turns",
                "wrong",
                "MB after a tenth",
                "MB at the end",
                "KB per 1,000 turns",
            ),
            [
                [
                    f"{report.soak.seconds:.0f}",
                    f"{report.soak.turns:,}",
                    f"{report.soak.wrong}",
                    f"{report.soak.rss_mb[len(report.soak.rss_mb) // 10][1]:.1f}",
                    f"{report.soak.rss_mb[-1][1]:.1f}",
                    f"{report.soak.kb_per_1000_turns:.1f}",
                ]
            ],
        )
    if report.drills:
        yield _Figures(
            "drills",
            ("what", "measured", "at most"),
            [
                [
                    it.what,
                    f"{it.value:.3g} {it.unit}".strip(),
                    "" if it.most is None else f"{it.most:g} {it.unit}".strip(),
                ]
                for it in report.drills
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
    if report.rows:
        console.print(_one_table(report))
    for title, columns, rows in _tables(report):
        table = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
        for column in columns:
            table.add_column(column, justify="left" if column in _LEFT else "right")
        for cells in rows:
            table.add_row(*cells)
        console.print(table)
    for sentence in comparisons(report):
        console.print(sentence)
    console.print(f"{report.machine}; {report.date}; {report.seconds:.0f} s")


def need_plots() -> None:
    """Import what draws, before anything is measured.

    Raises:
        ModuleNotFoundError: A package is missing.
    """
    importlib.import_module("turnline.ops.bench.plot")


def write_page(report: Report, page: Path) -> None:
    """Write a Markdown page, and beside it the plots and the raw numbers."""
    (page.parent / _RAW).parent.mkdir(parents=True, exist_ok=True)
    raw = msgspec.json.format(msgspec.json.encode(report), indent=1)
    (page.parent / _RAW).write_bytes(raw + b"\n")
    from turnline.ops.bench import plot  # noqa: PLC0415  matplotlib is there for pages alone

    if report.rows:
        (page.parent / _PLOT).write_text(plot.bars(report), encoding="utf-8")
    if report.curves or report.soak is not None:
        (page.parent / _CURVES).write_text(plot.curves(report), encoding="utf-8")
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
    ]
    if report.rows:
        parts.append(f"![turns per second, time to first delta, CPU per turn]({_PLOT})\n")
    if report.curves or report.soak is not None:
        parts.append(f"{_GROWTH}\n\n![how costs grow]({_CURVES})\n")
    if sentences := list(comparisons(report)):
        parts += ["## In short\n", "\n".join(f"- {it}" for it in sentences) + "\n"]
    parts.append("## Figures\n")
    for title, columns, rows in (*_scenario_tables(report), *_tables(report)):
        parts.append(f"### {title[0].upper()}{title[1:]}\n")
        lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        lines += [f"| {' | '.join(cells)} |" for cells in rows]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)
