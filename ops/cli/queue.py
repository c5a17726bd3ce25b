"""`turnline queue`: what waits, what runs, and which workers there are."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import click
import msgspec
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from turnline.ops.cli import output
from turnline.ops.cli.connecting import Connect, redis_options
from turnline.ops.fleet.operator_connection import Connection
from turnline.ops.fleet.queue_state import QueueState, read_queue

_encode = msgspec.json.Encoder().encode


@click.command(
    epilog="\b\nFor example:\n"
    "  turnline queue --watch\n"
    "  turnline queue --json | jq '.waiting, .oldest_waiting_ms'"
)
@click.option("--watch", is_flag=True, help="Go on until Ctrl-C.")
@click.option(
    "--every-s",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="Time between two looks with --watch.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per look.")
@redis_options
def queue(*, watch: bool, every_s: float, as_json: bool, connect: Connect) -> None:
    """Show what waits and runs, and the workers.

    Conversations are counted, not messages: waiting ones are due and run by nobody yet, deferred
    ones wait for a time (a retry, a delayed message), for what the provider allows, for others of
    their tenant, or for the rest of their input.

    Below that: what providers allow, tenants that have more to do than may run at once, and budgets
    of which nothing is left.
    """
    with connect() as connection:
        if watch and not as_json and sys.stdout.isatty():
            _watch(connection, every_s)
        while True:
            state = read_queue(connection.redis, connection.shards)
            if as_json:
                click.echo(_encode(state))
            else:
                output.console().print(_view(state))
            if not watch:
                return
            time.sleep(every_s)


def _watch(connection: Connection, every_s: float) -> None:
    """Redraw in place until Ctrl-C."""
    with Live(console=output.console(), auto_refresh=False) as live:
        while True:
            view = _view(read_queue(connection.redis, connection.shards))
            live.update(view, refresh=True)
            time.sleep(every_s)


def _view(state: QueueState) -> RenderableType:
    numbers = ("waiting", "running", "deferred", "oldest waiting", "slots", "dead letters")
    counts = output.table(*numbers, numbers=numbers)
    oldest = state.oldest_waiting_ms
    counts.add_row(
        f"{state.waiting:,}",
        f"{state.running:,}",
        f"{state.deferred:,}",
        "" if oldest is None else output.duration(oldest),
        f"{state.slots:,}",
        f"{state.dead:,}",
    )
    more = [make(state) for make, its in _MORE if its(state)]
    if not state.workers:
        return Group(
            counts, *more, Text("No worker is running: `turnline worker` starts one.", "yellow")
        )
    columns = ("worker", "running", "slots", "model", "host", "pid", "up")
    workers = output.table(*columns, numbers=("running", "slots", "pid", "up"))
    now_ms = time.time() * 1000
    for worker in state.workers:
        workers.add_row(
            output.word(worker.name or worker.id),
            str(worker.running),
            str(worker.slots),
            output.word(worker.model),
            output.word(worker.host),
            str(worker.pid),
            output.duration(max(0, now_ms - worker.started_at_ms)),
        )
    return Group(counts, workers, *more)


def _limits(state: QueueState) -> RenderableType:
    numbers = ("allowed", "used", "turns waiting")
    limits = output.table("model", "limit", *numbers, "provider", numbers=numbers)
    for limit in state.limits:
        limits.add_row(
            output.word(limit.model),
            limit.what,
            f"{limit.allowed:,}",
            f"{limit.used:,}",
            f"{limit.waiting:,}",
            output.word(limit.provider),
        )
    return limits


def _tenants(state: QueueState) -> RenderableType:
    tenants = output.table("tenant", "running", "held back", numbers=("running", "held back"))
    for it in state.tenants:
        tenants.add_row(output.word(it.tenant or '""'), f"{it.running:,}", f"{it.held:,}")
    return tenants


def _used_up(state: QueueState) -> RenderableType:
    budgets = output.table("used up", "of", "spent", "limit", numbers=("spent", "limit"))
    for it in state.used_up:
        spent, limit = (
            f"${amount:,.4f}" if it.unit == "usd" else f"{amount:,.0f} tokens"
            for amount in (it.spent, it.limit)
        )
        budgets.add_row(it.budget, output.word(it.name), spent, limit)
    return budgets


_MORE: Final[
    Sequence[tuple[Callable[[QueueState], RenderableType], Callable[[QueueState], Any]]]
] = (
    (_limits, lambda state: state.limits),
    (_tenants, lambda state: state.tenants),
    (_used_up, lambda state: state.used_up),
)
