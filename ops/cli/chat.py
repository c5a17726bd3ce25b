"""`turnline chat`: talk to Grok over the queue, each reply as it streams."""

import contextlib
import secrets
import sys
from importlib import import_module

import click
from rich.console import Console

from turnline.contracts import SyncTurnClient, TurnlineError, UserMessage
from turnline.contracts.replies import Receipt
from turnline.ops.cli import output
from turnline.ops.cli.connecting import Connect, redis_options
from turnline.ops.fleet.operator_connection import Connection
from turnline.ops.fleet.queue_state import read_queue

_HELP = (
    "/usage shows the tokens, /history the context, /quit leaves (as does Ctrl-D). "
    "Ctrl-C interrupts a reply."
)


@click.command(
    epilog="\b\nFor example:\n"
    "  turnline chat\n"
    "  turnline chat --conversation trip --system 'Answer in one sentence.'\n"
    "  echo 'What is a lease?' | turnline chat --conversation trip"
)
@click.option(
    "--conversation", "conversation_id", metavar="ID", help="Go on with this one.  [default: new]"
)
@click.option("--system", metavar="TEXT", help="Set the conversation's system prompt first.")
@redis_options
def chat(*, conversation_id: str | None, system: str | None, connect: Connect) -> None:
    """Talk to Grok over the queue; any worker may answer.

    /usage shows the tokens, /history the context, /quit leaves. Ctrl-C interrupts the reply that is
    being given; what was said so far is kept.
    """
    to = output.console()
    conversation_id = conversation_id or f"chat-{secrets.token_hex(4)}"
    with connect() as connection:
        if system is not None:
            connection.client.configure(conversation_id, system_prompt=system)
        output.say(to, f"Conversation {conversation_id}. {_HELP}", "dim")
        warn_if_nobody_works(connection)
        while (line := _read_line(to)) is not None:
            if not _act(to, connection.client, conversation_id, line):
                break


def warn_if_nobody_works(connection: Connection) -> None:
    """Say so if a message would wait for ever."""
    if not read_queue(connection.redis, connection.shards).workers:
        click.echo(
            "No worker is running; messages wait until one does. Start one with "
            "`turnline worker` (TURNLINE_REDIS_URL must name this Redis).",
            err=True,
        )


def _read_line(to: Console) -> str | None:
    """Ask for a line; None at the end of input, or after Ctrl-C at the prompt."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # not everywhere; gives input() its editing keys
            import_module("readline")
    try:
        return input("You   " if sys.stdin.isatty() else "")
    except EOFError:
        return None
    except KeyboardInterrupt:
        to.print()
        return None


def _act(to: Console, client: SyncTurnClient, conversation_id: str, line: str) -> bool:
    """Do what a line asks for; return whether to go on."""
    match line.strip():
        case "":
            pass
        case "/quit" | "/exit":
            return False
        case "/usage":
            to.print(output.totals_table(client.usage(conversation_id)))
        case "/history":
            to.print(output.history_table(client.history(conversation_id)))
        case word if word.startswith("/") and " " not in word:
            output.say(to, f"There is no {word}. {_HELP}", "dim")
        case _:
            _say(to, client, UserMessage(conversation_id=conversation_id, text=line))
    return True


def _say(to: Console, client: SyncTurnClient, message: UserMessage) -> None:
    try:
        receipt = client.submit(message)
    except TurnlineError as error:  # refused or too long: the conversation goes on
        output.say(to, str(error), "red")
        return
    show_reply(to, client, receipt)
    to.print()


def show_reply(
    to: Console, client: SyncTurnClient, receipt: Receipt, prefix: str = "Grok  "
) -> None:
    """Print a reply as it streams. Ctrl-C interrupts the turn; a second one leaves it.

    Raises:
        KeyboardInterrupt: Pressed a second time.
    """
    reply = output.ReplyPrinter(to, prefix)
    after: str | None = None
    interrupted = False
    while True:
        try:
            for event in client.events(receipt, after=after):
                reply.feed(event)
                after = event.event_id or after
            break
        except KeyboardInterrupt:
            if interrupted:
                reply.end()
                raise
            interrupted = True
            client.interrupt(receipt.conversation_id)
    reply.end()
