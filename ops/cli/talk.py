"""`turnline send` and `turnline tail`: put a message in, and follow what comes out."""

import sys

import click
import msgspec
from rich.console import Console

from turnline.contracts import Receipt, TurnFailed, TurnStarted, UserMessage
from turnline.contracts.messages import WhenBusy, new_turn_id
from turnline.contracts.replies import TERMINAL, AnyEvent, AnyTerminal, encode_event
from turnline.ops.cli import output
from turnline.ops.cli.chat import show_reply, warn_if_nobody_works
from turnline.ops.cli.connecting import connected, redis_options
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
    timeout_s: float,
    as_json: bool,
    redis_url: str,
    shards: int,
) -> None:
    """Put one message of the user into CONVERSATION; TEXT is read from stdin if left out.

    Prints the receipt, or with --wait or --stream the reply. Exits with 1 if the turn failed.
    """
    message = UserMessage(
        conversation_id=conversation_id,
        text=_text(text),
        turn_id=new_turn_id() if turn_id is None else turn_id,
        when_busy=when_busy,
    )
    with connected(redis_url, shards) as connection:
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


@click.command(
    epilog="\b\nFor example:\n"
    "  turnline tail trip\n"
    "  turnline tail trip --from-start --json | jq -r 'select(.type == \"turn_completed\").text'"
)
@click.argument("conversation_id", metavar="CONVERSATION")
@click.option("--from-start", is_flag=True, help="Begin with the oldest event that is kept.")
@click.option("--json", "as_json", is_flag=True, help="Print one event a line.")
@redis_options
def tail(
    *, conversation_id: str, from_start: bool, as_json: bool, redis_url: str, shards: int
) -> None:
    """Follow what happens in CONVERSATION, until Ctrl-C."""
    with connected(redis_url, shards) as connection:
        follower = _Follower(output.console())
        events = connection.client.follow(conversation_id, after="0-0" if from_start else "$")
        for event in events:
            if as_json:
                click.echo(encode_event(event))
            else:
                follower.take(event)


class _Follower:
    """Prints turn after turn: a line when it starts, the reply as it comes, a line at its end."""

    def __init__(self, to: Console) -> None:
        self._to = to
        self._turn_id = ""
        self._reply = output.ReplyPrinter(to)

    def take(self, event: AnyEvent) -> None:
        if event.turn_id != self._turn_id:
            self._reply.end()
            self._turn_id, self._reply = event.turn_id, output.ReplyPrinter(self._to)
        if isinstance(event, TurnStarted) and event.attempt == 1:
            self._note(event, f"begins on {event.worker}")
        self._reply.take(event)
        if isinstance(event, TERMINAL):
            self._reply.end()
            self._note(event, output.outcome(event))

    def _note(self, event: AnyEvent, words: str) -> None:
        moment = output.at(int(event.event_id.partition("-")[0] or 0))
        line = output.printable(f"{moment}  turn {output.word(event.turn_id)}  {words}")
        output.say(self._to, line, "dim")
