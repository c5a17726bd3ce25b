"""`turnline bench`: measures Turnline beside simpler ways to do the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import click
import msgspec
import uvloop
from rich.console import Console

from ops.bench import report as reporting
from ops.bench.programs import ProgramFailed
from ops.bench.results import Report
from ops.bench.scenarios import Scenario, scenarios
from ops.bench.session import Plan, run
from ops.cli.ending import ends_in_order
from ops.cli.failures import Failed, Failure
from ops.cli.output import console

_BUDGET_S: Final = 165.0
_FULL_BUDGET_S: Final = 1_080.0
_ROUNDS: Final = 3


@click.command()
@click.option("--full", is_flag=True, help="More of everything: up to 20 minutes instead of 3.")
@click.option("--only", metavar="PART", help="Only scenarios whose name contains this.")
@click.option("--rounds", type=click.IntRange(min=1), default=_ROUNDS, show_default=True)
@click.option("--list", "listing", is_flag=True, help="List the scenarios and exit.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
    help="Write all numbers to a file; - prints them instead of the tables.",
)
@click.option(
    "--page",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a Markdown page, with plot and raw numbers in `benchmarks/` beside it.",
)
def bench(
    *,
    full: bool,
    only: str | None,
    rounds: int,
    listing: bool,
    json_file: Path | None,
    page: Path | None,
) -> None:
    r"""Measure Turnline beside simpler ways to do the same.

    \b
    Starts a private Redis, a simulated Grok, workers of Turnline, stock ARQ workers and a bare
    floor, and measures them in turns: speed, time to the first delta, CPU per turn by process,
    Redis commands and bytes, memory. Nothing is left behind.

    \b
    Example:
      turnline bench --only instant-20
    """
    chosen = [it for it in scenarios(full=full) if only is None or only in it.name]
    if listing:
        for scenario in chosen:
            click.echo(f"{scenario.name:24} {scenario.title}: {', '.join(scenario.systems)}")
        return
    if not chosen:
        raise Failure(f"no scenario's name contains {only!r}; `turnline bench --list` lists them")
    words = ("--full", full), (f"--only {only}", only), (f"--rounds {rounds}", rounds != _ROUNDS)
    command = " ".join(["turnline bench", *(word for word, given in words if given)])
    plan = Plan(
        chosen,
        rounds=rounds,
        budget_s=_FULL_BUDGET_S if full else _BUDGET_S,
        extras=only is None,
    )
    made = _measured(plan, command)
    if json_file is not None:
        data = msgspec.json.format(msgspec.json.encode(made), indent=1)
        if json_file.name == "-":
            click.echo(data)
        else:
            json_file.write_bytes(data + b"\n")
    if page is not None:
        reporting.write_page(made, page)
    if json_file is None or json_file.name != "-":
        reporting.show(made, console())


def _measured(plan: Plan, command: str) -> Report:
    progress = console(stderr=True)
    try:
        with ends_in_order(), _Progress(progress, plan.chosen) as tell:
            return uvloop.run(run(plan, command=command, tell=tell))
    except (ProgramFailed, RuntimeError) as error:
        raise Failed(str(error)) from None


class _Progress:
    """One line that says what is being measured; a line each where nobody watches a terminal."""

    def __init__(self, to: Console, chosen: Sequence[Scenario]) -> None:
        self._to = to
        self._status = to.status(f"{len(chosen)} scenarios") if to.is_terminal else None

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __call__(self, what: str) -> None:
        if self._status is not None:
            self._status.update(what)
        else:
            self._to.print(what, soft_wrap=True)

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()
