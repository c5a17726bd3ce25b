"""`turnline forget`: removes a conversation."""

import click

from turnline.ops.cli import output
from turnline.ops.cli.connecting import Connect, redis_options
from turnline.ops.cli.failures import Failed


@click.command(epilog="\b\nFor example:\n  turnline forget trip\n  turnline forget trip --yes")
@click.argument("conversation_id", metavar="CONVERSATION")
@click.option("--yes", is_flag=True, help="Do not ask.")
@redis_options
def forget(*, conversation_id: str, yes: bool, connect: Connect) -> None:
    """Remove every trace of CONVERSATION, also while a turn of it runs. There is no way back."""
    with connect() as connection:
        if not yes:
            click.confirm(f"Remove conversation {conversation_id} for good?", abort=True, err=True)
        if not connection.client.forget(conversation_id):
            raise Failed(output.unknown(conversation_id))
    click.echo(f"forgotten: {output.word(conversation_id)}")
