"""The results of fuzzing: a table, or the same as JSON, and violating inputs in files."""

from pathlib import Path
from typing import Final

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

    @property
    def names(self) -> str:
        """How inputs were refused, by name."""
        return "\n".join(f"{name} {count:,}" for name, count in self.refused.items()) or "none"


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


_COLUMNS: Final = {
    "target": "{0.target}",
    "runs": "{0.runs:,}",
    "runs/s": "{0.runs_per_s:,.0f}",
    "edges": "{0.edges:,}",
    "outcomes": "{0.outcomes:,}",
    "corpus": "{0.seeds:,} -> {0.corpus:,}",
    "refused by name": "{0.names}",
    "violations": "{0.violations:,}",
    "slowest": "{0.slowest_ms:,.1f} ms ({0.slowest_bytes:,} bytes)",
    "growth": "{0.growth_mb:,.0f} MiB",
}
"""Column to the text in it, of which `0` is the row."""


def row_of(tally: Tally, folder: Path) -> Row:
    """Count what was found for one target, and write violating inputs into `folder`."""
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
    shown = table(*_COLUMNS, numbers=tuple({*_COLUMNS} - {"target", "refused by name"}))
    for row in report.rows:
        shown.add_row(*(text.format(row) for text in _COLUMNS.values()))
    to.print(shown)
    for row in report.rows:
        for broken in row.broken:
            say(to, f"{row.target}: {broken.rule} ({broken.size_bytes:,} bytes)", "red")
            say(to, f"  turnline fuzz --replay {broken.file}")
    runs = sum(row.runs for row in report.rows)
    say(to, f"{report.command}: {runs:,} runs in {report.seconds:,.0f} s")
