"""`turnline chaos`: fault drills against a private fleet, and their results."""

import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn, get_args

import click
import msgspec

from turnline.ops.chaos import drills, session
from turnline.ops.chaos.figures import Name, progress
from turnline.ops.chaos.report import Report, show, show_drill
from turnline.ops.chaos.run_options import Deployment, Run, Wires
from turnline.ops.chaos.sabotage import SABOTAGES
from turnline.ops.cli.output import console, say
from turnline.ops.cli.sigterm import ends_in_order

_ROUNDS: Final[Mapping[Name, int]] = {
    "kill": 50,
    "child": 50,
    "stall": 10,
    "term": 4,
    "cancel": 100,
    "malformed": 12,
    "end": 50,
    "endless": 1,
}


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0.1), default=1.0, show_default=True)
@click.option("--seed", type=int, help="Repeat a run's disturbances.  [default: drawn, printed]")
@click.option("--workers", type=click.IntRange(min=3), default=6, show_default=True)
@click.option(
    "--conversations",
    type=click.IntRange(min=1),
    default=40,
    show_default=True,
    help="Talked in at a time.",
)
@click.option(
    "--wire",
    type=click.Choice(get_args(Wires)),
    default="responses",
    show_default=True,
    help="How workers talk to the model; both: every second one in either way.",
)
@click.option(
    "--cluster",
    "deployment",
    flag_value="cluster",
    help="On a Redis cluster: three primaries, three replicas.",
)
@click.option(
    "--sentinel",
    "deployment",
    flag_value="sentinel",
    help="On a primary with two replicas and three sentinels.",
)
@click.option(
    "--shards",
    type=click.IntRange(1, 1024),
    help="Of the fleet, with --cluster, --sentinel or --reshard.  [default: 6 with --cluster,"
    " else 1]",
)
@click.option(
    "--reshard",
    metavar="N",
    type=click.IntRange(1, 1024),
    help="Give the fleet N shards and its own number again, all the time; kill half of that too.",
)
@click.option(
    "--wait-replicas",
    type=click.IntRange(0, 2),
    default=0,
    show_default=True,
    help="Replicas that producers wait for, with --cluster or --sentinel.",
)
@click.option(
    "--limits",
    is_flag=True,
    help="Hold the fleet to limits of the provider, tenants to rates and turns at once, and each"
    " turn to a budget.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep Redis' data in this folder, to look at afterwards.",
)
@click.option(
    "--upgrade-from",
    metavar="REVISION",
    help="Half of the workers are of this git revision: a rolling upgrade.",
)
@click.option(
    "--drill",
    "drill",
    type=click.Choice([*_ROUNDS, "all"]),
    help="Instead: measure what a kill, one under a supervisor, a stall, a hand-over, a"
    " cancellation, malformed replies, an end among misbehaving tools or replies without end cost.",
)
@click.option("--sabotage", type=click.Choice(sorted(SABOTAGES)), hidden=True)
def chaos(
    *,
    minutes: float,
    seed: int | None,
    workers: int,
    conversations: int,
    wire: Wires,
    deployment: Deployment | None,
    shards: int | None,
    reshard: int | None,
    wait_replicas: int,
    limits: bool,
    as_json: bool,
    keep: Path | None,
    upgrade_from: str | None,
    drill: str | None,
    sabotage: str | None,
) -> None:
    """Kill, stop and cut off a fleet under load, then check every promise.

    \b
    Producers and readers talk while workers are killed, frozen and told to end, Redis is restarted,
    filled and cut off (several servers: killed, frozen, replaced, slots moved), and the model fails
    in every way. Then everything is read back. Exit code 1: a promise was broken.

    \b
    Examples:
      turnline chaos --minutes 10 --seed 7 --wire both --limits
      turnline chaos --cluster --shards 48 --minutes 10 --wait-replicas 1
      turnline chaos --upgrade-from HEAD~1
    """  # noqa: D301  click's mark
    seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    if drill is not None:
        _drill(drill, as_json=as_json, seed=seed)
    options = Run(
        seconds=minutes * 60,
        seed=seed,
        workers=workers,
        conversations=conversations,
        wire=wire,
        deployment=deployment or "server",
        shards=_shards(deployment, shards, reshard, upgrade_from, keep),
        reshard=reshard,
        wait_replicas=wait_replicas if deployment is not None else 0,
        limits=limits,
        sabotage=sabotage,
        upgrade_from=upgrade_from,
        keep=keep,
    )
    _finish(_carried_out(options), as_json=as_json)


def _carried_out(options: Run) -> Report:
    say(console(stderr=True), f"seed {options.seed}")
    with ends_in_order(), progress() as tell:
        return session.run(msgspec.structs.replace(options, command=_command(options)), tell)


def _shards(
    deployment: Deployment | None,
    shards: int | None,
    reshard: int | None,
    upgrade_from: str | None,
    keep: Path | None,
) -> int:
    """Return how many shards the fleet has, if the options go together."""
    if upgrade_from and reshard:
        raise click.UsageError("--reshard needs workers that all know of it: no --upgrade-from.")
    if deployment is not None and (upgrade_from or keep):
        raise click.UsageError("--upgrade-from and --keep need the one private Redis.")
    if deployment is None and shards is not None and reshard is None:
        raise click.UsageError("--shards needs --cluster, --sentinel or --reshard.")
    count = shards or (6 if deployment == "cluster" else 1)
    if count == reshard:
        raise click.UsageError(f"--reshard {count}: the fleet has {count} shards at first.")
    return count


def _command(run: Run) -> str:
    """Return the command that repeats a run."""
    where = f" --{run.deployment}" if run.deployment != "server" else ""
    where += f" --shards {run.shards}" if where or run.reshard else ""
    where += f" --reshard {run.reshard}" if run.reshard else ""
    where += f" --wait-replicas {run.wait_replicas}" if run.wait_replicas else ""
    where += " --limits" if run.limits else ""
    return (
        f"turnline chaos --minutes {run.seconds / 60:g} --seed {run.seed} --workers {run.workers} "
        f"--conversations {run.conversations} --wire {run.wire}{where}"
    )


def _finish(report: Report, *, as_json: bool) -> NoReturn:
    """Show a report and exit."""
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=1))
    else:
        show(report, console())
    sys.exit(0 if report.is_clean else 1)


def _drill(which: str, *, as_json: bool, seed: int) -> NoReturn:
    """Carry out one drill, or all of them, and exit."""
    with ends_in_order(), progress() as tell:
        done = [
            drills.run(name, rounds=rounds, tell=tell, seed=seed)
            for name, rounds in _ROUNDS.items()
            if which in {name, "all"}
        ]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(done), indent=1))
    else:
        for drilled in done:
            show_drill(drilled, console())
    sys.exit(0 if all(row.is_kept for drilled in done for row in drilled.rows) else 1)
