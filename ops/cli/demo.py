"""`turnline demo`: a short conversation through two workers, then what became of it."""

import secrets
import time
from importlib import resources
from typing import Final

import click
import msgspec
from rich.console import Console
from rich.text import Text

from turnline.contracts import SyncTurnClient, TextDelta, TurnFailed, UserMessage
from turnline.contracts.conversation import Totals
from turnline.contracts.replies import AnyTerminal
from turnline.ops.cli import output
from turnline.ops.cli.failures import Failed
from turnline.ops.cli.sigterm import ends_in_order
from turnline.ops.fleet.stack import Stack
from turnline.ops.simulator.model.dialogues import Dialogue

_PROMPT: Final = (
    "You speak for Turnline, which runs conversations with Grok as a fleet of queue workers: turns "
    "wait in a Redis inbox, any free worker leases a conversation, rebuilds its context, streams "
    "the reply through Redis and commits it once with its token totals. If a worker dies, its "
    "lease runs out and another one makes a new attempt. Answer in at most three sentences."
)
_PACE: Final = ("--ttft-ms", "250", "--itl-ms", "14", "--reasoning", "hidden")
_KILLED_TURN: Final = 3
_KILLED_AFTER_DELTAS: Final = 12


class Played(msgspec.Struct, frozen=True):
    """What is shown of a turn afterwards."""

    number: int
    worker: str
    attempts: int
    first_delta_ms: float
    total_ms: float
    ending: AnyTerminal


@click.command(
    epilog="\b\nFor example:\n"
    "  turnline demo                         with a simulated Grok; needs nothing\n"
    "  turnline demo --kill                  kill a worker in the middle of a reply\n"
    "  XAI_API_KEY=... turnline demo --live  with Grok itself",
)
@click.option("--live", is_flag=True, help="Talk to Grok itself; needs XAI_API_KEY.")
@click.option("--kill", is_flag=True, help="Kill a worker in the middle of the third reply.")
@click.option(
    "--workers", type=click.IntRange(1, 16), default=2, show_default=True, help="Worker processes."
)
@click.option("--redis", "redis_url", metavar="URL", help="Use this Redis.  [default: its own]")
def demo(*, live: bool, kill: bool, workers: int, redis_url: str | None) -> None:
    """Play a short conversation through two workers.

    Starts a private Redis, a simulated Grok and two workers, sends four messages of a user, shows
    each reply as it streams, and then the stored context, the totals and which worker did what.
    All of it ends with the command.
    """
    to = output.console()
    path = resources.files("turnline.ops.cli") / "demo.jsonl"
    script = msgspec.json.decode(path.read_bytes(), type=Dialogue)
    began_at = time.monotonic()
    with (
        ends_in_order(),
        resources.as_file(path) as dialogues,
        Stack(
            workers,
            live=live,
            redis_url=redis_url,
            sim_options=("--dialogues", str(dialogues.resolve()), *_PACE),
        ) as stack,
        SyncTurnClient.connect(stack.redis_url) as client,
    ):
        _introduce(to, stack, live=live, took_s=time.monotonic() - began_at)
        conversation_id = f"demo-{secrets.token_hex(4)}"
        client.configure(conversation_id, system_prompt=_PROMPT)
        played: list[Played] = []
        for number, text in enumerate(script.user_texts, 1):
            victim = stack if kill and number == _KILLED_TURN else None
            message = UserMessage(conversation_id=conversation_id, text=text)
            played.append(_play(to, client, victim, number, message))
        title = "Context, as committed in Redis"
        to.print(output.history_table(client.history(conversation_id), title=title, most=100))
        _show_turns(to, played)
        _show_totals(to, client.usage(conversation_id))
        client.forget(conversation_id)
    _show_next(to)
    if any(isinstance(turn.ending, TurnFailed) for turn in played):
        raise Failed("a turn failed; see above")


def _introduce(to: Console, stack: Stack, *, live: bool, took_s: float) -> None:
    model = "Grok at api.x.ai" if live else "a simulated Grok"
    names = ", ".join(f"{it} (pid {stack.pid(n)})" for n, it in enumerate(stack.worker_names))
    output.say(to, f"Up in {took_s:.1f} s: Redis, {model}, {names}.\n", "dim")


def _play(
    to: Console, client: SyncTurnClient, victim: Stack | None, number: int, message: UserMessage
) -> Played:
    """Send one message and show the reply; with a victim, kill its worker on the way."""
    output.say(to, Text.assemble(("You   ", "cyan"), message.text))
    began_at = time.monotonic()
    receipt = client.submit(message)
    reply = output.ReplyPrinter(to, "Grok  ")
    first_at, deltas = 0.0, 0
    for event in client.events(receipt):
        reply.feed(event)
        if isinstance(event, TextDelta):
            first_at = first_at or time.monotonic()
            deltas += 1
            if victim is not None and deltas == _KILLED_AFTER_DELTAS:
                _kill(to, victim, reply)
                victim = None
    reply.end()
    to.print()
    ended_at = time.monotonic()
    record = client.record(receipt)
    ending = record.terminal()
    assert ending is not None
    return Played(
        number,
        record.worker,
        record.attempts,
        ((first_at or ended_at) - began_at) * 1000,
        (ended_at - began_at) * 1000,
        ending,
    )


def _kill(to: Console, victim: Stack, reply: output.ReplyPrinter) -> None:
    """Kill whoever is talking, and start another one in its place."""
    if reply.worker in victim.worker_names:
        index = victim.worker_names.index(reply.worker)
        victim.kill(index)
        reply.end()
        output.say(to, f"[{reply.worker} was killed: SIGKILL, mid-sentence]", "red")
        victim.start(index)


def _show_turns(to: Console, played: list[Played]) -> None:
    columns = ("turn", "worker", "attempts", "first delta", "whole reply", "outcome")
    shown = output.table(*columns, title="Turns, and who did them", numbers=columns[2:5])
    for turn in played:
        shown.add_row(
            str(turn.number),
            turn.worker,
            str(turn.attempts),
            output.duration(turn.first_delta_ms),
            output.duration(turn.total_ms),
            output.printable(output.outcome(turn.ending)),
        )
    to.print(shown)


def _show_totals(to: Console, totals: Totals) -> None:
    line = (
        f"Totals: {totals.turns} turns, {totals.calls} calls, {output.tokens(totals.usage)}, "
        f"{totals.usage.total_tokens} in all, {output.dollars(totals.usage)}"
    )
    if lost := totals.calls - totals.reported_calls:
        line += f"; {lost} call cut off, its tokens kept apart from these"
    output.say(to, line, "bold")


def _show_next(to: Console) -> None:
    output.say(
        to,
        "\nEverything has ended again. To go on: `turnline redis --port 6379`, "
        "`turnline worker` (with XAI_API_KEY) and `turnline chat`, each in a terminal.",
        "dim",
    )
