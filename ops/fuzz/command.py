"""`turnline fuzz`: broken input by the million, and whether everything that must hold holds."""

import math
import os
import random
import re
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

import click
import msgspec

from turnline.ops.cli.failures import Failure
from turnline.ops.cli.output import console, say
from turnline.ops.cli.sigterm import ends_in_order
from turnline.ops.fuzz import running
from turnline.ops.fuzz.report import report_of, show
from turnline.ops.fuzz.search import broken_rule
from turnline.ops.fuzz.targets import targets

_NAMES: Final = (
    *("messages", "events", "stream", "entries", "schemas", "arguments", "answers", "addresses"),
)
_INPUT: Final = re.compile(r"fuzz-([a-z]+)-[0-9a-f]+\.input")


@click.command()
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    default=1_000_000,
    show_default=True,
    help="Inputs to try, over all targets.",
)
@click.option("--seconds", type=click.FloatRange(min=0.1), help="Stop after this time.")
@click.option("--seed", type=int, help="Repeat a run's inputs.  [default: drawn, printed]")
@click.option(
    "--target",
    "chosen",
    type=click.Choice(_NAMES),
    multiple=True,
    help="Only this; may be given several times.  [default: all]",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Processes at a time.  [default: one for each core]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Folder for inputs that break something.  [default: this one]",
)
@click.option(
    "--replay",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Instead: run one such input again.",
)
def fuzz(
    *,
    runs: int,
    seconds: float | None,
    seed: int | None,
    chosen: tuple[str, ...],
    jobs: int | None,
    as_json: bool,
    keep: Path,
    replay: Path | None,
) -> None:
    """Feed mutated input to everything that reads input, and check what must always hold.

    \b
    Targets: messages (what producers send), events (what readers decode), stream (what the model
    sends, cut anywhere), entries (what stands in an inbox, whoever wrote it), schemas (of
    replies and tools), arguments (of tools), answers (of a provider when a worker starts),
    addresses (of Redis and providers). Inputs that reach new code or a new outcome are built upon.
    Exit code 1: something was broken; the input is in a file.

    \b
    Examples:
      turnline fuzz
      turnline fuzz --target stream --runs 50000 --seed 7
      turnline fuzz --replay fuzz-stream-1b2c3d4e.input
    """  # noqa: D301  click's mark
    if replay is not None:
        _replay(replay, chosen)
    seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    names = [name for name in _NAMES if not chosen or name in chosen]
    jobs = jobs or os.cpu_count() or 1
    progress = console(stderr=True)
    say(progress, f"seed {seed}")
    began = time.monotonic()
    with ends_in_order(), _told() as tell:
        plan = running.Plan(names, runs, math.inf if seconds is None else seconds, seed, jobs)
        tallies = running.run(plan, tell)
    only = "".join(f" --target {name}" for name in chosen)
    within = "" if seconds is None else f" --seconds {seconds:g}"
    report = report_of(
        tallies,
        command=f"turnline fuzz --runs {runs} --seed {seed} --jobs {jobs}{within}{only}",
        seed=seed,
        seconds=time.monotonic() - began,
        folder=keep,
    )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=1))
    else:
        show(report, console())
    sys.exit(0 if report.is_clean else 1)


def _replay(path: Path, chosen: tuple[str, ...]) -> NoReturn:
    """Run one input and exit."""
    named = _INPUT.fullmatch(path.name)
    names = chosen or ((named[1],) if named else ())
    if len(names) != 1 or names[0] not in _NAMES:
        raise Failure(f"{path.name} does not say what it is for: add --target")
    rule = broken_rule(targets()[names[0]], path.read_bytes())
    click.echo(f"{names[0]}: {rule or 'nothing is broken'}")
    sys.exit(0 if rule is None else 1)


@contextmanager
def _told() -> Generator[running.Tell]:
    """One line on a terminal that says how it is going."""
    progress = console(stderr=True)
    if not progress.is_terminal:
        yield lambda _: None
        return
    with progress.status("starting") as status:
        yield status.update
