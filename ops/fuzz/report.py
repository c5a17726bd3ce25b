"""What fuzzing came to: one table, or the same as JSON; violating inputs in files."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from turnline.ops.cli.output import say, table
from turnline.ops.fuzz.search import Found, Tally


class Broken(msgspec.Struct, frozen=True):
    """An input that broke something, and where it is kept."""

    rule: str
    file: str
    size_bytes: int


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One target."""

    target: str
    runs: int
    runs_per_s: float
    """Of one process."""
    edges: int
    """Pairs of lines that followed one another."""
    outcomes: int
    """Different ways in which inputs ended."""
    seeds: int
    corpus: int
    """Inputs kept since they reached something new, those that it began with included."""
    refused: dict[str, int]
    violations: int
    slowest_ms: float
    slowest_bytes: int
    growth_mb: float
    """Peak memory of a process above what it had after the first inputs, MiB."""
    broken: list[Broken]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All targets."""

    command: str
    seed: int
    seconds: float
    rows: list[Row]

    @property
    def is_clean(self) -> bool:
        """Whether nothing was broken."""
        return not any(row.violations for row in self.rows)


def report_of(
    tallies: Sequence[Tally], *, command: str, seed: int, seconds: float, folder: Path
) -> Report:
    """Count everything and write violating inputs into `folder`."""
    return Report(
        command=command,
        seed=seed,
        seconds=round(seconds, 1),
        rows=[_row(tally, folder) for tally in tallies],
    )


def _row(tally: Tally, folder: Path) -> Row:
    return Row(
        target=tally.target,
        runs=tally.runs,
        runs_per_s=round(tally.runs / max(tally.seconds, 1e-9), 1),
        edges=len(tally.edges),
        outcomes=len(tally.outcomes),
        seeds=tally.seeds,
        corpus=len(tally.corpus),
        refused=tally.refused,
        violations=tally.violations,
        slowest_ms=round(tally.slowest_ms, 2),
        slowest_bytes=tally.slowest_bytes,
        growth_mb=round(tally.growth_bytes / 2**20, 1),
        broken=[_kept(found, folder) for found in tally.found],
    )


def _kept(found: Found, folder: Path) -> Broken:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / found.name
    path.write_bytes(found.data)
    return Broken(found.rule, str(path), len(found.data))


def show(report: Report, to: Console) -> None:
    """Print the table, and how to run each violating input again."""
    numbers = (
        *("runs", "runs/s", "edges", "outcomes", "corpus", "violations"),
        *("slowest", "growth"),
    )
    shown = table("target", *numbers[:5], "refused by name", *numbers[5:], numbers=numbers)
    for row in report.rows:
        shown.add_row(
            row.target,
            f"{row.runs:,}",
            f"{row.runs_per_s:,.0f}",
            f"{row.edges:,}",
            f"{row.outcomes:,}",
            f"{row.seeds:,} -> {row.corpus:,}",
            "\n".join(f"{name} {count:,}" for name, count in row.refused.items()) or "none",
            f"{row.violations:,}",
            f"{row.slowest_ms:,.1f} ms ({row.slowest_bytes / 1024:,.0f} KiB)",
            f"{row.growth_mb:,.0f} MiB",
        )
    to.print(shown)
    for row in report.rows:
        for broken in row.broken:
            say(to, f"{row.target}: {broken.rule} ({broken.size_bytes:,} bytes)", "red")
            say(to, f"  turnline fuzz --replay {broken.file}")
    runs = sum(row.runs for row in report.rows)
    say(to, f"{report.command}: {runs:,} runs in {report.seconds:,.0f} s")
