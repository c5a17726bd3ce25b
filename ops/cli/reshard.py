"""`turnline reshard`: changes the number of shards of a fleet that is in use."""

import asyncio
from contextlib import nullcontext

import click
import msgspec
from rich.text import Text

from turnline.ops.cli import output
from turnline.ops.cli.connecting import Connect, redis_options
from turnline.ops.cli.failures import Failure
from turnline.ops.fleet.resharding import CannotReshard, Progress
from turnline.ops.fleet.resharding import reshard as move

_encode = msgspec.json.Encoder().encode


@click.command(
    epilog="\b\nFor example, from 1 shard to 48:\n"
    "  1. start all workers again with TURNLINE_SHARDS=48\n"
    "  2. turnline reshard 48\n"
    "and back:\n"
    "  1. turnline reshard 1\n"
    "  2. start all workers again with TURNLINE_SHARDS=1"
)
@click.argument("count", metavar="N", type=click.IntRange(1, 16_384))
@click.option(
    "--wait-replicas",
    type=click.IntRange(0, 16),
    envvar="TURNLINE_WAIT_REPLICAS",
    default=0,
    show_default=True,
    help="Replicas that must have a conversation before its old shard gives it up.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was done as a JSON object.")
@redis_options
def reshard(*, count: int, wait_replicas: int, as_json: bool, connect: Connect) -> None:
    """Give the fleet N shards, and take each conversation to its own, while turns run.

    Idle conversations are moved at once. A conversation with a turn that waits or runs is moved
    once that has ended; a turn that waits for tool calls of another service counts, too. Producers
    and readers need not be told: they find out. Workers have to serve the shards of both numbers
    until the command has ended. After Ctrl-C or a crash turns go on, and the same command finishes
    what is left. Only one such command runs at a time: the one that was started last.
    """
    with connect() as connection:
        status = nullcontext() if as_json else output.console(stderr=True).status("looking ...")
        with status as shown:

            def tell(progress: Progress) -> None:
                if shown is not None:
                    shown.update(Text(_words(progress)))

            try:
                done = asyncio.run(
                    move(
                        connection.url,
                        count,
                        prefix=connection.prefix,
                        wait_replicas=wait_replicas,
                        tell=tell,
                    )
                )
            except CannotReshard as error:
                raise Failure(str(error)) from None
    click.echo(_encode(done) if as_json else _words(done))


def _words(progress: Progress) -> str:
    if not progress.before:
        return f"the fleet has {progress.shards} shards"
    words = f"{progress.before} shards to {progress.shards}: {progress.moved:,} conversations moved"
    if progress.busy:
        awaited = ", ".join(map(output.word, progress.awaited))
        words += f", {progress.busy:,} are busy (such as {awaited})"
    if progress.superseded:
        words += f"; of {progress.superseded:,} the new shard had a newer copy"
    return words
