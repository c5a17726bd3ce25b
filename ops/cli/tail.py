"""`turnline tail`: follows what happens in a conversation."""

import click
from rich.console import Console

from turnline.contracts import TurnStarted
from turnline.contracts.replies import TERMINAL, AnyEvent, encode_event
from turnline.ops.cli import output
from turnline.ops.cli.connecting import Connect, redis_options


@click.command(
    epilog="\b\nFor example:\n"
    "  turnline tail trip\n"
    "  turnline tail trip --from-start --json | jq -r 'select(.type == \"turn_completed\").text'"
)
@click.argument("conversation_id", metavar="CONVERSATION")
@click.option("--from-start", is_flag=True, help="Begin with the oldest event that is kept.")
@click.option("--json", "as_json", is_flag=True, help="Print one event a line.")
@redis_options
def tail(*, conversation_id: str, from_start: bool, as_json: bool, connect: Connect) -> None:
    """Follow what happens in CONVERSATION, until Ctrl-C."""
    with connect() as connection:
        follower = _Follower(output.console())
        events = connection.client.follow(conversation_id, after="0-0" if from_start else "$")
        for event in events:
            if as_json:
                click.echo(encode_event(event))
            else:
                follower.show(event)


class _Follower:
    """Prints turn after turn: a line when it starts, the reply as it comes, a line at its end."""

    def __init__(self, to: Console) -> None:
        self._to = to
        self._turn_id = ""
        self._reply = output.ReplyPrinter(to)

    def show(self, event: AnyEvent) -> None:
        if event.turn_id != self._turn_id:
            self._reply.end()
            self._turn_id, self._reply = event.turn_id, output.ReplyPrinter(self._to)
        if isinstance(event, TurnStarted) and event.attempt == 1:
            self._note(event, f"begins on {event.worker}")
        self._reply.feed(event)
        if isinstance(event, TERMINAL):
            self._reply.end()
            self._note(event, output.outcome(event))

    def _note(self, event: AnyEvent, words: str) -> None:
        moment = output.at(int(event.event_id.partition("-")[0] or 0))
        line = output.printable(f"{moment}  turn {output.word(event.turn_id)}  {words}")
        output.say(self._to, line, "dim")
