"""`turnline bench`: measures Turnline beside simpler ways to do the same."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import click
import msgspec
import uvloop

from turnline.ops.bench import tables
from turnline.ops.bench.results import Report
from turnline.ops.bench.rounds import Part, Plan, run
from turnline.ops.bench.scenarios import Scenario, is_growth, scenarios
from turnline.ops.chaos import drills
from turnline.ops.chaos.figures import Figure, Name, Tell, progress
from turnline.ops.cli.failures import Failure
from turnline.ops.cli.output import console
from turnline.ops.cli.sigterm import ends_in_order

_BUDGET_S: Final = 160.0
_FULL_BUDGET_S: Final = 1_000.0
"""Then the scenarios end; idle conversations and the drills follow."""
_ROUNDS: Final = 3
_SOAK_MINUTES: Final = 2.0
_PARTS: Final[frozenset[Part]] = frozenset({"fleet", "reading", "producers", "burst"})
_FULL_PARTS: Final[frozenset[Part]] = frozenset({*_PARTS, "growth", "soak"})
_DRILLS: Final[Mapping[Name, int]] = {"kill": 12, "term": 2, "cancel": 50}
"""How often each."""


@click.command()
@click.option("--full", is_flag=True, help="Everything: up to 20 minutes instead of 3.")
@click.option(
    "--growth",
    is_flag=True,
    help="Only how costs grow: with context, reply, inbox, idle conversations, workers.",
)
@click.option(
    "--soak",
    "soak_minutes",
    type=click.FloatRange(min=0.1, max=600),
    metavar="MINUTES",
    help="Only one worker's memory under load for so long (part of --full: 2 minutes).",
)
@click.option("--only", metavar="PART", help="Only scenarios whose name contains this.")
@click.option("--rounds", type=click.IntRange(min=1), default=_ROUNDS, show_default=True)
@click.option("--list", "listing", is_flag=True, help="List the scenarios and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: all numbers.")
@click.option(
    "--page",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a Markdown page, with plots and raw numbers in `benchmarks/` beside it.",
)
def bench(
    *,
    full: bool,
    growth: bool,
    soak_minutes: float | None,
    only: str | None,
    rounds: int,
    listing: bool,
    as_json: bool,
    page: Path | None,
) -> None:
    r"""Measure Turnline beside simpler ways to do the same.

    \b
    Starts a private Redis, a simulated Grok, workers of Turnline, stock ARQ workers and a bare
    floor, and measures them in turns: speed, time to the first delta, CPU per turn by process,
    Redis commands and bytes, memory. Nothing is left behind.

    \b
    Examples:
      turnline bench --only instant-20
      turnline bench --growth
      turnline bench --soak 60
      turnline bench --full --page docs/benchmarks.md
    """
    if sum((full, growth, soak_minutes is not None)) > 1:
        raise Failure("--full, --growth and --soak exclude one another")
    if page is not None:
        tables.need_plots()
    chosen, parts = _chosen(only, full=full, growth=growth, soak=soak_minutes is not None)
    if listing:
        _list(chosen, as_json=as_json)
        return
    if not chosen and not parts:
        raise Failure(f"no scenario's name contains {only!r}; `turnline bench --list` lists them")
    words = {
        "--full": full,
        "--growth": growth,
        f"--soak {soak_minutes or 0:g}": soak_minutes,
        f"--only {only}": only,
        f"--rounds {rounds}": rounds != _ROUNDS,
    }
    command = " ".join(["turnline bench", *(word for word, given in words.items() if given)])
    budget_s = _FULL_BUDGET_S if full or growth else _BUDGET_S
    soak_s = (soak_minutes or _SOAK_MINUTES) * 60
    plan = Plan(chosen=chosen, rounds=rounds, budget_s=budget_s, parts=parts, soak_s=soak_s)
    made = _measured(plan, command, drilled=full and not only)
    if page is not None:
        tables.write_page(made, page)
    _show(made, as_json=as_json)


def _show(made: Report, *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(made))
    else:
        tables.show(made, console())


def _chosen(
    only: str | None, *, full: bool, growth: bool, soak: bool
) -> tuple[list[Scenario], frozenset[Part]]:
    """Return the scenarios, and what is measured beside them."""
    rows = [it for it in scenarios(full=full or growth) if only is None or only in it.name]
    if soak:
        return [], frozenset({"soak"})
    if growth:
        return [it for it in rows if is_growth(it)], frozenset({"growth"})
    if only is not None:
        return rows, frozenset()
    return rows, _FULL_PARTS if full else _PARTS


def _list(chosen: Sequence[Scenario], *, as_json: bool) -> None:
    if as_json:
        rows = [{"name": it.name, "title": it.title, "systems": it.systems} for it in chosen]
        click.echo(msgspec.json.encode(rows))
        return
    for it in chosen:
        click.echo(f"{it.name:24} {it.title}: {', '.join(it.systems)}")


def _measured(plan: Plan, command: str, *, drilled: bool) -> Report:
    with ends_in_order(), progress(in_files=True) as tell:
        made = uvloop.run(run(plan, command=command, tell=tell))
        return _with_drills(made, tell) if drilled else made


def _with_drills(report: Report, tell: Tell) -> Report:
    """Add what only drills can tell: how soon a killed worker's turns go on, and the like."""
    start_s = time.monotonic()
    figures: list[Figure] = []
    for name, rounds in _DRILLS.items():
        done = drills.run(name, rounds=rounds, tell=tell)
        for figure in done.rows:
            what = f"{done.title}: {figure.what}"
            figures.append(msgspec.structs.replace(figure, what=what))
    seconds = report.seconds + time.monotonic() - start_s
    return msgspec.structs.replace(report, drills=figures, seconds=seconds)
