"""`turnline send`: puts one message into a conversation, and shows what comes of it."""

import sys
import time

import click
import msgspec

from turnline.contracts import Receipt, TurnFailed, UserMessage
from turnline.contracts.messages import WhenBusy, new_turn_id
from turnline.contracts.protocol import DELAY_MAX_MS
from turnline.contracts.replies import AnyTerminal, encode_event
from turnline.ops.cli import output
from turnline.ops.cli.chat import show_reply, warn_if_nobody_works
from turnline.ops.cli.connecting import Connect, redis_options
from turnline.ops.cli.failures import Failed, Failure

_encode_receipt = msgspec.json.Encoder().encode


@click.command(
    epilog="\b\nFor example:\n"
    "  turnline send trip 'Where should I go in May?' --stream\n"
    "  turnline send trip --wait --json < question.txt | jq .text\n"
    "  turnline send trip 'Go on.' --turn-id order-17        safe to repeat"
)
@click.argument("conversation_id", metavar="CONVERSATION")
@click.argument("text", required=False)
@click.option("--wait", is_flag=True, help="Wait for the end of the turn and print the reply.")
@click.option("--stream", is_flag=True, help="Print the reply as it comes in.")
@click.option("--turn-id", metavar="ID", help="Idempotency key.  [default: a new one]")
@click.option(
    "--when-busy",
    type=click.Choice(["enqueue", "interrupt", "rollback", "reject"]),
    default="enqueue",
    show_default=True,
    help="What to do if a turn is running or waiting.",
)
@click.option(
    "--in-s",
    type=click.IntRange(0, DELAY_MAX_MS // 1000),
    help="Have the message take its place in the conversation so many seconds from now.",
)
@click.option(
    "--timeout-s",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    help="How long to wait; the turn itself goes on.",
)
@click.option("--json", "as_json", is_flag=True, help="Print receipt, events or result as JSON.")
@redis_options
def send(
    *,
    conversation_id: str,
    text: str | None,
    wait: bool,
    stream: bool,
    turn_id: str | None,
    when_busy: WhenBusy,
    in_s: int | None,
    timeout_s: float,
    as_json: bool,
    connect: Connect,
) -> None:
    """Put one message of the user into CONVERSATION; TEXT is read from stdin if left out.

    Prints the receipt, or with --wait or --stream the reply. Exits with 1 if the turn failed.
    """
    message = UserMessage(
        conversation_id=conversation_id,
        text=_text(text),
        turn_id=new_turn_id() if turn_id is None else turn_id,
        when_busy=when_busy,
        deliver_at_ms=None if in_s is None else int((time.time() + in_s) * 1000),
    )
    with connect() as connection:
        client = connection.client
        receipt = client.submit(message)
        if wait or stream:
            warn_if_nobody_works(connection)
        if stream and as_json:
            for event in client.events(receipt):
                click.echo(encode_event(event))
        elif stream:
            show_reply(output.console(), client, receipt, "")
        if wait or stream:
            ending = client.result(receipt, timeout_s=timeout_s)
            if not stream:
                click.echo(encode_event(ending) if as_json else _reply_of(ending))
            if isinstance(ending, TurnFailed):
                raise Failed(output.printable(output.outcome(ending)))
        else:
            click.echo(_encode_receipt(receipt) if as_json else _receipt_line(receipt))


def _text(given: str | None) -> str:
    if given is None or given == "-":
        if sys.stdin.isatty():
            raise Failure("no TEXT, and nothing on stdin. See `turnline send --help`.")
        given = sys.stdin.read().removesuffix("\n")
    if not given:
        raise Failure("the message is empty")
    return given


def _receipt_line(receipt: Receipt) -> str:
    ahead = f", {receipt.position} ahead of it" if receipt.position else ""
    return f"{receipt.status}: turn {output.word(receipt.turn_id)}{ahead}"


def _reply_of(ending: AnyTerminal) -> str:
    return output.printable(getattr(ending, "text", "") or output.outcome(ending))
