"""`turnline fuzz`: feeds broken input to everything that reads input, and checks the rules."""

import math
import os
import random
import re
import sys
import time
from pathlib import Path
from typing import Final, NoReturn

import click
import msgspec

from turnline.ops.chaos.figures import progress
from turnline.ops.cli.failures import Failure
from turnline.ops.cli.output import console, say
from turnline.ops.cli.sigterm import ends_in_order
from turnline.ops.fuzz.findings import Report, row_of, show
from turnline.ops.fuzz.search import broken_rule
from turnline.ops.fuzz.shares import Plan, run
from turnline.ops.fuzz.targets import NAMES, targets

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
    type=click.Choice(NAMES),
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
    Targets: messages (what producers send), events (what readers decode), stream and
    responses (what the model sends on either wire, cut anywhere), items (what it is sent back of
    its replies), entries (what stands in an inbox, whoever wrote it), schemas (of
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
    jobs = jobs or os.cpu_count() or 1
    words = {"--runs": runs, "--seed": seed, "--jobs": jobs}
    command = " ".join(["turnline fuzz", *(f"{name} {value}" for name, value in words.items())])
    command += "" if seconds is None else f" --seconds {seconds:g}"
    command += "".join(f" --target {name}" for name in chosen)
    names = [name for name in NAMES if not chosen or name in chosen]
    plan = Plan(names, runs, math.inf if seconds is None else seconds, seed, jobs)
    say(console(stderr=True), f"seed {seed}")
    began_s = time.monotonic()
    with ends_in_order(), progress() as tell:
        rows = [row_of(tally, keep) for tally in run(plan, tell)]
    took_s = round(time.monotonic() - began_s, 1)
    report = Report(command=command, seed=seed, seconds=took_s, rows=rows)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=1))
    else:
        show(report, console())
    sys.exit(0 if report.is_clean else 1)


def _replay(path: Path, chosen: tuple[str, ...]) -> NoReturn:
    """Run one input and exit."""
    named = _INPUT.fullmatch(path.name)
    names = chosen or ((named[1],) if named else ())
    if len(names) != 1 or names[0] not in NAMES:
        raise Failure(f"{path.name} does not say what it is for: add --target")
    rule = broken_rule(targets()[names[0]], path.read_bytes())
    click.echo(f"{names[0]}: {rule or 'nothing is broken'}")
    sys.exit(0 if rule is None else 1)
