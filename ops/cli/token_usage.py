"""`turnline usage`: what a conversation took."""

import click
import msgspec

from turnline.ops.cli import output
from turnline.ops.cli.connecting import Connect, redis_options
from turnline.ops.cli.failures import Failed
from turnline.ops.fleet.turn_list import read_turns

_encode = msgspec.json.Encoder().encode


@click.command(epilog="\b\nFor example:\n  turnline usage trip\n  turnline usage trip --json")
@click.argument("conversation_id", metavar="CONVERSATION")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@redis_options
def usage(*, conversation_id: str, as_json: bool, connect: Connect) -> None:
    """Show what CONVERSATION took: tokens and cost, as the provider reported them."""
    with connect() as connection:
        totals = connection.client.usage(conversation_id)
        if not totals.calls and not read_turns(connection, conversation_id):
            raise Failed(output.unknown(conversation_id))
    if as_json:
        fields = msgspec.structs.asdict(totals)
        for name in ("usage", "abandoned"):  # with their zeros, which the wire leaves out
            fields[name] = msgspec.structs.asdict(fields[name])
        click.echo(_encode(fields))
    else:
        output.console().print(output.totals_table(totals))
