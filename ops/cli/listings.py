"""`turnline conversations` and `turnline turns`: find them by what they were."""

import datetime as dt
import re
import shlex
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Final

import click
import msgspec
from rich.table import Table

from turnline.contracts import ConversationPage, FoundConversation, FoundTurn, TurnPage
from turnline.contracts.lookup import MOST
from turnline.ops.cli import output
from turnline.ops.cli.connecting import Connect, redis_options

_encode = msgspec.json.Encoder().encode
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGO: Final = re.compile(r"(\d{1,9}(?:\.\d+)?)([smhdw])")
Since = dt.datetime | dt.timedelta


def _since(_context: click.Context, _option: click.Parameter, value: str | None) -> Since | None:
    """Read how long ago, or a time; without a zone it is this machine's."""
    if value is None:
        return None
    if ago := _AGO.fullmatch(value):
        return dt.timedelta(**{_UNITS[ago[2]]: float(ago[1])})
    try:
        at = dt.datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is neither how long ago, such as 90s, 30m, 1h or 2d, nor a time such as "
            "2026-11-30T08:15"
        ) from None
    return at.astimezone()


def _pairs(
    _context: click.Context, _option: click.Parameter, values: Sequence[str]
) -> dict[str, str]:
    """Read `KEY=VALUE`s."""
    if wrong := [it for it in values if not it.partition("=")[1] or it.startswith("=")]:
        raise click.BadParameter(f"{wrong[0]!r} is not KEY=VALUE")
    return {key: value for key, _, value in (it.partition("=") for it in values)}


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of both commands; the command gets `asked`, what to ask the client for."""

    @click.option(
        "--since",
        callback=_since,
        metavar="AGO|TIME",
        help="Only since then: how long ago, such as 90s, 30m, 1h or 2d, or 2026-11-30T08:15.",
    )
    @click.option("--tenant", metavar="NAME", help="Only of this tenant.")
    @click.option("--agent", metavar="NAME", help="Only of this agent.")
    @click.option(
        "--metadata",
        callback=_pairs,
        multiple=True,
        metavar="KEY=VALUE",
        help="Only with this pair of metadata; several may be given.",
    )
    @click.option("--failed", is_flag=True, help="Only where a turn failed.")
    @click.option(
        "--limit",
        type=click.IntRange(1, MOST),
        default=50,
        show_default=True,
        help="Rows of one page.",
    )
    @click.option("--after", metavar="CURSOR", help="Go on behind a page; its end says with what.")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object: rows and after.")
    @redis_options
    @wraps(command)
    def run(*, as_json: bool, connect: Connect, **asked: Any) -> Any:
        return command(as_json=as_json, connect=connect, asked=asked)

    return run


@click.command(
    epilog="\b\nFor example:\n"
    "  turnline conversations --since 1h --failed\n"
    "  turnline conversations --tenant acme --metadata user=7\n"
    "  turnline conversations --json | jq -r '.conversations[].conversation_id'"
)
@_filters
def conversations(*, as_json: bool, connect: Connect, asked: dict[str, Any]) -> None:
    """List conversations, the one that was active last first.

    A conversation is listed from the end of its first turn on. Tenant, agent and metadata are those
    of its last turns; with --failed, --since is about the failure.
    """
    with connect() as connection:
        page = connection.client.conversations(**asked)
    if as_json:
        rows = [
            {**msgspec.structs.asdict(it), "usage": msgspec.structs.asdict(it.usage)}
            for it in page.conversations
        ]
        click.echo(_encode({"conversations": rows, "after": page.after}))
        return
    _print(page, page.conversations, _conversations_table, "no such conversations")


@click.command(
    epilog="\b\nFor example:\n"
    "  turnline turns --failed --since 1h\n"
    "  turnline turns --slow 30 --tenant acme\n"
    "  turnline turns --failed --json | jq -r '.turns[] | [.code, .turn_id] | @tsv'"
)
@click.option(
    "--slow",
    "slow_s",
    is_flag=False,
    flag_value=10.0,
    type=click.FloatRange(min=0),
    metavar="[SECONDS]",
    help="Only those that took so long, waits included; 10 s if no number is given.",
)
@_filters
def turns(*, as_json: bool, connect: Connect, asked: dict[str, Any]) -> None:
    """List turns that have ended: those of the conversation that was active last first.

    In a conversation the newest comes first; its last 256 turns are looked at. A page ends between
    two conversations, so it may be longer than --limit.
    """
    with connect() as connection:
        page = connection.client.turns(**asked)
    if as_json:
        click.echo(
            _encode({"turns": [*map(msgspec.structs.asdict, page.turns)], "after": page.after})
        )
        return
    _print(page, page.turns, _turns_table, "no such turns")


def _print(
    page: ConversationPage | TurnPage,
    rows: Sequence[Any],
    lay_out: Callable[[Any], Table],
    none: str,
) -> None:
    """Print a page, and how to go on."""
    if rows:
        output.console().print(lay_out(rows))
    else:
        click.echo(none + (" so far" if page.after else ""), err=True)
    if page.after is not None:
        click.echo(f"there is more: --after {shlex.quote(page.after)}", err=True)


def _conversations_table(rows: Sequence[FoundConversation]) -> Table:
    shown = output.table(
        *("conversation", "active", "turns", "last turn", "failed"),
        *("tenant", "agent", "metadata", "cost"),
        numbers=("turns", "cost"),
    )
    for it in rows:
        shown.add_row(
            output.word(it.conversation_id),
            output.at(it.active_at_ms),
            f"{it.turns:,}",
            it.outcome,
            "" if it.failed_at_ms is None else output.at(it.failed_at_ms),
            output.word(it.tenant),
            output.word(it.agent),
            _metadata(it.metadata),
            output.dollars(it.usage),
        )
    return shown


def _turns_table(rows: Sequence[FoundTurn]) -> Table:
    shown = output.table(
        *("turn", "conversation", "ended", "took", "state", "code", "attempts", "worker"),
        *("metadata",),
        numbers=("took", "attempts"),
        whole=("turn",),
    )
    for it in rows:
        shown.add_row(
            output.word(it.turn_id),
            output.word(it.conversation_id),
            output.at(it.finished_at_ms),
            output.duration(it.took_ms),
            it.state,
            output.printable(it.code),
            str(it.attempts or ""),
            output.word(it.worker),
            _metadata(it.metadata),
        )
    return shown


def _metadata(pairs: dict[str, str]) -> str:
    return output.printable(" ".join(f"{key}={value}" for key, value in pairs.items()))
