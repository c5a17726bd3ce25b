"""`turnline explain`: what happened in a turn and why, in words."""

import sys
from collections.abc import Mapping

import click
import msgspec

from turnline.contracts.replies import TurnStarted, read_event
from turnline.contracts.scripts import text
from turnline.ops.cli import output
from turnline.ops.cli.connecting import Connect, redis_options
from turnline.ops.cli.failures import Failed
from turnline.ops.fleet.operator_connection import Connection
from turnline.ops.traces.explanation import Explanation, lines
from turnline.ops.traces.explanation import explain as explained
from turnline.ops.traces.kept_traces import find

_encode = msgspec.json.Encoder().encode
_PAGE = 1_000


@click.command(
    epilog="\b\nFor example:\n"
    "  turnline explain TURN_ID        a trace id will do as well\n"
    "  turnline explain trip           the newest turns of a conversation\n"
    "  turnline explain trip --limit 1 --json | jq .causes"
)
@click.argument("target", metavar="TURN_ID | CONVERSATION | TRACE_ID")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Turns of a conversation to explain at most, the newest.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per turn.")
@redis_options
def explain(*, target: str, limit: int, as_json: bool, connect: Connect) -> None:
    """Say what happened in a turn and why: waits, attempts, lost workers, failures, cost.

    The first lines name the cause and what to do. Then comes what happened, step by step. It is
    made from the traces that workers keep in Redis; where none is kept, from record and ledger,
    which know less.
    """
    with connect() as connection:
        turns = find(connection, target, limit)
        told = [explained(it, _workers(connection, it.conversation_id, it.turn_id)) for it in turns]
    if not told:
        raise Failed(
            f"nothing is known of {target}. Of a turn without a kept trace, name its conversation "
            "instead: its records stay as long as it does."
        )
    if as_json:
        for it in told:
            sys.stdout.buffer.write(_encode(it) + b"\n")
        return
    to = output.console()
    for number, it in enumerate(told):
        if number:
            to.print()
        _print(it)


def _print(it: Explanation) -> None:
    to = output.console()
    for line in lines(it):
        output.say(to, output.printable(line))
    steps = output.table("after", "what happened", numbers=("after",))
    for step in it.steps:
        steps.add_row(output.duration(step.after_ms), output.printable(step.text))
    to.print(steps)


def _workers(connection: Connection, conversation_id: str, turn_id: str) -> Mapping[int, str]:
    """Return who made which attempt, as far as the event stream still says so."""
    found: dict[int, str] = {}
    stream, after = connection.names(conversation_id).events, "-"
    while entries := connection.redis.execute_command("XRANGE", stream, after, "+", "COUNT", _PAGE):
        for _, fields in entries:
            event = read_event(fields.get(b"e", b""))
            if isinstance(event, TurnStarted) and event.turn_id == turn_id:
                found[event.attempt] = event.worker
        after = f"({text(entries[-1][0])}"
    return found
