"""`turnline spend`: what tenants, agents and models took, by day."""

import datetime as dt
from collections.abc import Sequence
from typing import Final

import click
import msgspec
from rich.table import Table

from turnline.contracts import Spend
from turnline.contracts.conversation import Usage
from turnline.contracts.daily_spend import DAYS, PARTS, Part
from turnline.ops.cli import output
from turnline.ops.cli.connecting import Connect, redis_options
from turnline.ops.cli.failures import Failure

_encode = msgspec.json.Encoder().encode
_DEFAULT: Final = "tenant,model"


def _parts(_context: click.Context, _option: click.Parameter, value: str) -> tuple[Part, ...]:
    """Read words of `PARTS`, separated by commas; return them in the order to show."""
    words = [it.strip() for it in value.split(",")]
    if unknown := [it for it in words if it not in PARTS]:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in words)


_DAY: Final = click.DateTime(["%Y-%m-%d"])


@click.command(
    epilog="\b\nFor example:\n"
    "  turnline spend                                  the last 30 days, by tenant and model\n"
    "  turnline spend --by tenant --since 2026-11-01 --until 2026-11-30\n"
    "  turnline spend --tenant acme --by day,agent\n"
    "  turnline spend --json | jq '.tenant, .usage.cost_usd_ticks'\n\n"
    "A turn counts on the day (UTC) on which it ends. Calls that led to no answer count, too. "
    "Turns whose message and conversation name no tenant have an empty one: --tenant ''."
)
@click.option("--since", type=_DAY, help=f"First day.  [default: {DAYS} days until the last one]")
@click.option("--until", type=_DAY, help="Last day.  [default: today]")
@click.option("--tenant", metavar="NAME", help="Only of this tenant.")
@click.option("--agent", metavar="NAME", help="Only of this agent.")
@click.option("--model", metavar="NAME", help="Only of this model.")
@click.option(
    "--by",
    callback=_parts,
    metavar="PARTS",
    default=_DEFAULT,
    show_default=True,
    help=f"What rows are told apart by, separated by commas: {', '.join(PARTS)}.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per row.")
@redis_options
def spend(
    *,
    since: dt.datetime | None,
    until: dt.datetime | None,
    tenant: str | None,
    agent: str | None,
    model: str | None,
    by: tuple[Part, ...],
    as_json: bool,
    connect: Connect,
) -> None:
    """Show what was spent: tokens and cost by tenant, agent, model and day.

    It is what the ledgers of all conversations say, also of those that were forgotten since.
    """
    first, last = (day and day.date() for day in (since, until))
    with connect() as connection:
        try:
            rows = connection.client.spend(
                since=first, until=last, tenant=tenant, agent=agent, model=model, by=by
            )
        except ValueError as error:
            raise Failure(f"{error}.") from None
    if as_json:
        for row in rows:
            fields = {part: getattr(row, part) for part in by}
            usage = msgspec.structs.asdict(row.usage)  # with zeros, which the wire leaves out
            click.echo(_encode({**fields, "calls": row.calls, "usage": usage}))
    elif rows:
        output.console().print(_table(rows, by))
    else:
        output.say(output.console(), "Nothing was spent on these days.")


def _table(rows: Sequence[Spend], by: Sequence[Part]) -> Table:
    """Lay out rows, and their sum where there are several."""
    numbers = ("calls", "input", "of it cached", "output", "reasoning", "total", "cost")
    shown = output.table(*by, *numbers, numbers=numbers)
    for row in rows:
        names = [output.word(getattr(row, part) or "") for part in by]
        shown.add_row(*names, *_numbers(row.calls, row.usage))
    if len(rows) > 1:
        calls, usage = sum(it.calls for it in rows), sum((it.usage for it in rows), Usage())
        shown.add_section()
        shown.add_row(*["all", *[""] * len(by)][: len(by)], *_numbers(calls, usage))
    if unpriced := sum(it.usage.unpriced_calls for it in rows):
        shown.caption = f"cost unknown for {unpriced:,} calls"
        shown.caption_justify = "left"
    return shown


def _numbers(calls: int, usage: Usage) -> list[str]:
    return [
        f"{calls:,}",
        f"{usage.prompt_tokens:,}",
        f"{usage.cached_tokens:,}",
        f"{usage.completion_tokens:,}",
        f"{usage.reasoning_tokens:,}",
        f"{usage.total_tokens:,}",
        output.dollars(usage),
    ]
