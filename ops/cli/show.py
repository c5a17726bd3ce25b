"""`turnline show`: the context of a conversation, and its turns; or one turn."""

from collections.abc import Sequence

import click
import msgspec
from rich.table import Table

from turnline.contracts.lookup import LOOKED_AT
from turnline.contracts.replies import History
from turnline.ops.cli import output
from turnline.ops.cli.connecting import Connect, redis_options
from turnline.ops.cli.failures import Failed
from turnline.ops.fleet.operator_connection import Connection
from turnline.ops.fleet.turn_list import Turn, read_turns, turns_of_messages

_encode = msgspec.json.Encoder().encode


@click.command(
    epilog="\b\nFor example:\n"
    "  turnline show trip\n"
    "  turnline show 0b9c2f6d4e1a4d3f8b7a6c5d4e3f2a1b       one turn, whatever its conversation\n"
    "  turnline show trip --json | jq .turns"
)
@click.argument("target", metavar="CONVERSATION | TURN_ID")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: context and turns.")
@redis_options
def show(*, target: str, as_json: bool, connect: Connect) -> None:
    """Show the context of CONVERSATION, and its turns: state, worker, attempts.

    With the id of a turn, show that turn and its messages. It is looked for among the 100,000
    conversations that were active last.
    """
    with connect() as connection:
        history, turns = _read(connection, target)
        turn_id = None
        if not turns and not history.messages:
            turn_id = target
            history, turns = _read(connection, _conversation_of(connection, target))
    origins = turns_of_messages(turns, len(history.messages))
    if turn_id is not None:
        turns = [it for it in turns if it.turn_id == turn_id]
    if as_json:
        click.echo(_encode({**msgspec.structs.asdict(history), "turns": turns}))
        return
    to = output.console()
    if turn_id is not None:
        output.say(to, f"conversation {output.word(history.conversation_id)}")
    own = [n for n, of in enumerate(origins) if of is not None and of.turn_id == turn_id]
    if turn_id is None and history.messages:
        to.print(output.history_table(history, origins=origins))
    elif own:
        to.print(output.history_table(history, origins=origins, only=own))
    to.print(_turns_table(turns))


def _read(connection: Connection, conversation_id: str) -> tuple[History, list[Turn]]:
    history = connection.client.history(conversation_id)
    return history, read_turns(connection, conversation_id)


def _conversation_of(connection: Connection, turn_id: str) -> str:
    """Return the conversation that has a turn of this id.

    Raises:
        Failed: There is none, or there are several.
    """
    named = connection.client.find_turn(turn_id)
    if not named:
        raise Failed(
            f"{output.unknown(turn_id)}; nor is it a turn of the {LOOKED_AT:,} conversations that "
            "were active last"
        )
    first, *others = named
    if others:
        some = ", ".join(map(output.word, named[:5]))
        raise Failed(
            f"{len(named)} conversations have a turn {output.word(turn_id)}, such as {some}; "
            "`turnline show` with one of them shows it"
        )
    return first


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
