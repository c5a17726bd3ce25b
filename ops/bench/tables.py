"""Shows a report: tables in the terminal, a page with plots for the documentation."""

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from turnline.ops.bench.results import Report
from turnline.ops.bench.scenarios import ABOUT
from turnline.ops.bench.verdict import budget, comparisons
from turnline.ops.cli.output import table

_ROW: Final = {
    "system": "{0.system}",
    "turns/s (range)": "{0.turns_per_s:,.0f} ({0.turns_per_s_range[0]:,.0f} to "
    "{0.turns_per_s_range[1]:,.0f}){0.wrong_replies}",
    "added first p50 / p99 ms": "{0.added_first_p50_ms:.1f} / {0.added_first_p99_ms:.1f}",
    "CPU ms worker + Redis": "{0.worker_cpu_ms:.2f} + {0.redis_cpu_ms:.2f}",
    "client": "{0.client_cpu_ms:.2f}",
    "model": "{0.model_cpu_ms:.2f}",
    "cmds": "{0.redis_commands:.0f}",
    "KB": "{0.redis_kb:.1f}",
    "peak MB": "{0.peak}",
    "KB each": "{0.each}",
}
"""Column to the text in it, of which `0` is the row."""


class Shown(NamedTuple):
    """One of the tables beside the main one."""

    title: str
    of: str
    """The report's field that has its rows."""
    columns: Mapping[str, str]


BESIDE: Final = (
    Shown(
        "reading a stream in one process",
        "calls",
        {
            "chunks": "{0.chunks:,}",
            "pace": "{0.pace}",
            "reader": "{0.reader}",
            "CPU us per chunk (range)": "{0.us_per_chunk:.1f} ({0.us_per_chunk_range[0]:.1f} to "
            "{0.us_per_chunk_range[1]:.1f})",
        },
    ),
    Shown(
        "10 turns of one conversation submitted at once",
        "bursts",
        {
            "system": "{0.system}",
            "gap p50 / p99 ms": "{0.gap}",
            "at once": "{0.most_at_once}",
            "messages kept": "{0.kept} of {0.expected}",
        },
    ),
    Shown(
        "a fleet in one process, and a model that does not answer yet",
        "fleets",
        {
            "system": "{0.system}",
            "workers x slots": "{0.workers} x {0.slots}",
            "in flight": "{0.in_flight:,} of {0.submitted:,}",
            "completed": "{0.ended}",
            "MB at rest": "{0.rest_mb:.0f}",
            "KB a turn": "{0.kb_per_turn:.0f}",
        },
    ),
    Shown(
        "submitting, to nobody",
        "producers",
        {
            "producer": "{0.producer}",
            "way": "{0.way}",
            "per second (range)": "{0.per_s:,.0f} ({0.per_s_range[0]:,.0f} to "
            "{0.per_s_range[1]:,.0f})",
            "CPU us": "{0.client_us:.0f}",
            "Redis us": "{0.redis_us:.0f}",
            "requests": "{0.redis_requests:.2f}",
        },
    ),
    Shown(
        "growth",
        "curves",
        {
            "what": "{0.title}",
            "measured": "{0.y}",
            "at": "{0.values}",
            "is": "{0.judged}",
            "factor": "{0.factor:.2f}",
        },
    ),
    Shown(
        "a worker under load",
        "soaks",
        {
            "seconds": "{0.seconds:.0f}",
            "turns": "{0.turns:,}",
            "wrong": "{0.wrong}",
            "MB after a tenth": "{0.early_mb:.1f}",
            "MB at the end": "{0.end_mb:.1f}",
            "KB per 1,000 turns": "{0.kb_per_1000_turns:.1f}",
        },
    ),
    Shown(
        "drills", "drills", {"what": "{0.what}", "measured": "{0.measured}", "at most": "{0.bound}"}
    ),
)
_BUDGET: Final = {
    "what": "{0.what}",
    "measured": "{0.measured}",
    "budget": "{0.bound}",
    "met": "{0.kept}",
}
_LEFT: Final = frozenset({"system", "what", "measured", "at", "producer", "way"})
_RAW: Final = "benchmarks/raw.json"
_PLOT: Final = "benchmarks/plot.svg"
_CURVES: Final = "benchmarks/growth.svg"
_METHOD: Final = (
    "Every system runs the same turns against the same simulated model in the same run, one at a "
    "time, in turns, {rounds} rounds; the others' processes are frozen meanwhile. The figures are "
    "medians over the rounds, with the range of the turns per second. CPU, Redis commands (those "
    "inside scripts included) and bytes are per turn. *Added first* is the time from submitting "
    "to the first text at the client, less the model's own time to it; with several conversations "
    "and a model that answers at once it is mostly waiting for the processor. *Peak* is the memory "
    "of the largest worker. *KB each* is the memory that the workers took on in a round, per "
    "conversation: the most of all rounds. Absolute figures are this machine's; compare rows with "
    "each other. Raw numbers: [{raw}]({raw})."
)
_GROWTH: Final = (
    "*Growth*: a flat curve costs at most twice as much at its right end as at its left. A linear "
    "one is at most twice as steep in its last step as before it. Grey is the floor: "
    "it, too, sends the whole context with every request."
)


class _Figures(NamedTuple):
    """One table, its cells as texts."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def _figures(title: str, columns: Mapping[str, str], rows: Any) -> _Figures:
    cells = [[text.format(row) for text in columns.values()] for row in rows]
    return _Figures(title, list(columns), cells)


def _scenario_tables(report: Report) -> Iterator[_Figures]:
    """Yield a table for each scenario."""
    for name in dict.fromkeys(row.scenario for row in report.rows):
        rows = [row for row in report.rows if row.scenario == name]
        yield _figures(rows[0].title, _ROW, rows)


def _tables(report: Report) -> Iterator[_Figures]:
    """Yield the tables beside the scenarios that have rows."""
    for title, of, columns in BESIDE:
        if rows := getattr(report, of):
            yield _figures(title, columns, rows)
    if lines := list(budget(report)):
        yield _figures("the budget", _BUDGET, lines)


def _empty(columns: list[str], title: str | None = None) -> Table:
    return table(*columns, title=title, numbers=tuple(set(columns) - _LEFT))


def show(report: Report, console: Console) -> None:
    """Print all tables: first all scenarios in one, each under its name."""
    if report.rows:
        shown = _empty(list(_ROW))
        names = dict.fromkeys(row.scenario for row in report.rows)
        for name, (_, _, rows) in zip(names, _scenario_tables(report), strict=True):
            shown.add_section()
            shown.add_row(Text(name, "bold"))
            for cells in rows:
                shown.add_row(*cells)
        console.print(shown)
    for title, columns, rows in _tables(report):
        shown = _empty(columns, title)
        for cells in rows:
            shown.add_row(*cells)
        console.print(shown)
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
    page.write_text(markdown(report), encoding="utf-8")


def markdown(report: Report) -> str:
    """Return the page."""
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
