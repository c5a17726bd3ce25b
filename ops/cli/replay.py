"""`turnline replay`: recorded dialogues through real workers, each reply and token checked."""

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import click
import msgspec
import uvloop
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from turnline.ops.cli import output
from turnline.ops.cli.failures import FAILED, Failure
from turnline.ops.cli.sigterm import ends_in_order
from turnline.ops.fleet.stack import Stack
from turnline.ops.replay.recorded_calls import replayed_services
from turnline.ops.replay.recordings import read_dialogues
from turnline.ops.replay.replaying import Replay, Report
from turnline.worker.services.grok.responses_request import Wire


@click.command(
    epilog="\b\nFor example:\n"
    "  turnline replay dialogues.jsonl --workers 2\n"
    "  turnline replay dialogues.jsonl --limit 50 --json | jq .turns_per_s\n"
    "  turnline replay dialogues.jsonl --workers 3 --kill-every 200\n\n"
    "\b\nA dialogue is one line:\n"
    '  {"dialogue_id": "d1", "turns": [{"speaker": "user", "text": "Hello"},\n'
    '                                  {"speaker": "system", "text": "Hello!"}]}'
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="Worker processes."
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Dialogues running at once; the turns of each follow one another.",
)
@click.option(
    "--wire",
    type=click.Choice(["responses", "chat"]),
    default="responses",
    show_default=True,
    help="How workers talk to the model.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many dialogues.")
@click.option(
    "--redis",
    "redis_url",
    metavar="URL",
    help="Use this Redis, which no other workers serve; the conversations stay there.  "
    "[default: its own]",
)
@click.option(
    "--kill-every",
    type=click.IntRange(min=1),
    metavar="N",
    help="Kill a worker (SIGKILL) every N turns, and start another one.",
)
@click.option(
    "--tools",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Tools of the recorded services: their calls are made for real, in the workers.",
)
@click.option(
    "--elsewhere",
    is_flag=True,
    help="With --tools: the calls go out, and this process answers them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def replay(
    *,
    file: Path,
    workers: int,
    concurrency: int,
    wire: Wire,
    limit: int | None,
    redis_url: str | None,
    kill_every: int | None,
    tools: Path | None,
    elsewhere: bool,
    as_json: bool,
) -> None:
    """Run recorded dialogues through real workers and check every reply and every token.

    Starts workers and a simulated Grok that knows the dialogues, submits each user turn when the
    one before it has ended, and then compares each stored context with the recording, and all
    totals with what the simulator says it served, and that no request lost reasoning or changed
    what stood in the one before. Exits with 1 if anything differs.
    """
    dialogues = read_dialogues(file, limit)
    sim_options = ("--dialogues", str(file.resolve()), "--ledger-entries", "0")
    if elsewhere and tools is None:
        raise Failure("--elsewhere needs --tools")
    with (
        ends_in_order(),
        replayed_services(file, tools, elsewhere=elsewhere) as services,
        Stack(
            workers,
            redis_url=redis_url,
            sim_options=sim_options,
            worker_env={"TURNLINE_WIRE": wire, **(services.worker_env if services else {})},
        ) as stack,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        run = Replay(stack, dialogues, concurrency, kill_every, services, wire=wire)
        with _progress("turns", run.turns) as advance:
            runner.run(run.say_all(advance))
        with _progress("checked", len(dialogues)) as advance:
            report = runner.run(run.check_all(advance))
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        _show(report, redis_stays=redis_url is not None)
    if report.mismatches:
        raise click.exceptions.Exit(FAILED)


@contextmanager
def _progress(description: str, total: int) -> Generator[Callable[[], None]]:
    """Show a bar on a terminal for the block; the function that is given moves it on by one."""
    to = output.console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=to, transient=True, disable=not to.is_terminal
    ) as progress:
        task = progress.add_task(description, total=total)
        yield lambda: progress.advance(task)


def _show(report: Report, *, redis_stays: bool) -> None:
    to = output.console()
    columns = ("dialogues", "turns", "mismatches", "tokens", "turns/s", "first delta p50", "p99")
    shown = output.table(*columns, numbers=columns)
    shown.add_row(
        str(report.dialogues),
        str(report.turns),
        str(report.mismatches),
        f"{report.usage.total_tokens:,}",
        f"{report.turns_per_s:,.0f}",
        f"{report.first_delta_p50_ms:.1f} ms",
        f"{report.first_delta_p99_ms:.1f} ms",
    )
    to.print(shown)
    usage = report.usage
    output.say(
        to,
        f"{report.workers} workers, {report.concurrency} dialogues at once, "
        f"{report.seconds:.1f} s. "
        f"Of the tokens {usage.prompt_tokens:,} were input ({usage.cached_tokens:,} cached), "
        f"{usage.completion_tokens:,} output and {usage.reasoning_tokens:,} reasoning; the "
        f"simulator served {report.requests:,} requests and counts "
        f"{report.simulator_usage.total_tokens:,}.",
    )
    if report.wire == "responses":
        output.say(
            to,
            f"{report.lost_reasoning} reasoning items did not come back to the model, "
            f"{report.prefix_breaks} requests changed what stood in the one before.",
        )
    if report.kills:
        output.say(
            to,
            f"{report.kills} workers were killed; {report.abandoned_calls} calls that this cut "
            "short or left uncommitted are kept apart from these tokens.",
        )
    if report.tool_calls:
        output.say(
            to,
            f"{report.tool_calls:,} tool calls, executed {report.executions:,} times; none again "
            "once it had finished, or it is named below.",
        )
    for phrase in report.faults:
        output.say(to, output.printable(f"mismatch: {phrase}"), "red")
    if report.mismatches and redis_stays:
        output.say(to, f"`turnline show {report.run}/DIALOGUE` shows what is in Redis.", "dim")
