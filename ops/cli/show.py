"""`turnline show`: the context of a conversation, and its turns."""

from collections.abc import Sequence

import click
import msgspec
from rich.table import Table

from turnline.ops.cli import output
from turnline.ops.cli.connecting import Connect, redis_options
from turnline.ops.cli.failures import Failed
from turnline.ops.fleet.turn_list import Turn, read_turns

_encode = msgspec.json.Encoder().encode


@click.command(
    epilog="\b\nFor example:\n  turnline show trip\n  turnline show trip --json | jq .turns"
)
@click.argument("conversation_id", metavar="CONVERSATION")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: context and turns.")
@redis_options
def show(*, conversation_id: str, as_json: bool, connect: Connect) -> None:
    """Show the context of CONVERSATION, and its turns: state, worker, attempts."""
    with connect() as connection:
        history = connection.client.history(conversation_id)
        turns = read_turns(connection, conversation_id)
    if not turns and not history.messages:
        raise Failed(output.unknown(conversation_id))
    if as_json:
        click.echo(_encode({**msgspec.structs.asdict(history), "turns": turns}))
        return
    to = output.console()
    if history.messages:
        to.print(output.history_table(history))
    to.print(_turns_table(turns))


def _turns_table(turns: Sequence[Turn]) -> Table:
    columns = ("turn", "state", "worker", "attempts", "accepted", "took", "outcome")
    shown = output.table(*columns, numbers=("attempts", "took"))
    for turn in turns:
        shown.add_row(
            output.word(turn.turn_id),
            output.word(turn.state),
            output.word(turn.worker),
            str(turn.attempts or ""),
            output.at(turn.accepted_at_ms),
            "" if turn.took_ms is None else output.duration(turn.took_ms),
            output.printable("; ".join([turn.outcome, *map(output.rating, turn.feedback)])),
        )
    return shown
