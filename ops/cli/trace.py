"""`turnline trace`: what happened in a turn, as a waterfall in the terminal or on a page."""

import sys
from pathlib import Path

import click
import msgspec

from turnline.ops.cli import output
from turnline.ops.cli.connecting import Connect, redis_options
from turnline.ops.cli.failures import Failed, Failure
from turnline.ops.traces.kept_traces import Choice, TracedTurn, choose, find
from turnline.ops.traces.trace_page import page
from turnline.ops.traces.waterfall import draw

_encode = msgspec.json.Encoder(enc_hook=repr).encode


@click.command(
    epilog="\b\nFor example:\n"
    "  turnline trace                    the newest turn\n"
    "  turnline trace TURN_ID            one turn; a trace id or a conversation will do as well\n"
    "  turnline trace --slow --limit 3   the three slowest turns that are kept\n"
    "  turnline trace --failed --html failed.html"
)
@click.argument("target", metavar="[TURN_ID | CONVERSATION | TRACE_ID]", required=False)
@click.option("--last", "choice", flag_value="last", help="The newest turns. The default.")
@click.option("--slow", "choice", flag_value="slow", help="The slowest turns.")
@click.option("--failed", "choice", flag_value="failed", help="The newest turns that failed.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Turns to show at most.  [default: 10 of a conversation, else 1]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: turns and spans.")
@click.option(
    "--html",
    "html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write one self-contained page.",
)
@redis_options
def trace(
    *,
    target: str | None,
    choice: Choice | None,
    limit: int | None,
    as_json: bool,
    html: Path | None,
    connect: Connect,
) -> None:
    """Show what happened in a turn: waits, attempts, model calls, tokens, cost, errors.

    Workers keep the newest traces in Redis (TURNLINE_TRACE_STORE of them); nothing else is needed.
    """
    if target is not None and choice is not None:
        raise Failure(f"either {target} or --{choice}, not both")
    with connect() as connection:
        if target is not None:
            turns = find(connection, target, limit or 10)
        else:
            turns = choose(connection, choice or "last", limit or 1)
    if not turns:
        raise _nothing(target, choice or "last")
    if html is not None:
        html.write_text(page(turns), encoding="utf-8")
        click.echo(f"written: {html}", err=as_json)
    if as_json:
        sys.stdout.buffer.write(_encode({"turns": [_plain(turn) for turn in turns]}) + b"\n")
    elif html is None:
        to = output.console()
        for number, turn in enumerate(turns):
            if number:
                to.print()
            to.print(draw(turn, to))


def _plain(turn: TracedTurn) -> dict[str, object]:
    usage = turn.usage
    return {
        **msgspec.structs.asdict(turn),
        "duration_ms": turn.duration_ms,
        "attempts": turn.attempts,
        "usage": msgspec.structs.asdict(usage),
        "cost_usd": usage.cost_usd,
    }


def _nothing(target: str | None, choice: Choice) -> Failed:
    keeping = "workers keep the newest traces, unless TURNLINE_TRACE_STORE is 0"
    if target is not None:
        return Failed(
            f"nothing is kept of {target}; {keeping}. Of a conversation more is known than of a "
            "turn id: its records stay as long as it does."
        )
    which = "failed turn" if choice == "failed" else "turn that has ended"
    return Failed(f"no trace of a {which} is kept; {keeping}")
