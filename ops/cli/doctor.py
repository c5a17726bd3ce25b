"""`turnline doctor`: what is wrong with Redis and the fleet, and what to do."""

import click
import msgspec
from rich.text import Text

from turnline.ops.cli import output
from turnline.ops.cli.connecting import Connect, redis_options
from turnline.ops.fleet.diagnosis import Finding, examine

_encode = msgspec.json.Encoder().encode
_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


@click.command(
    epilog="\b\nFor example:\n"
    "  turnline doctor                                  exit code 1: something is wrong\n"
    "  turnline doctor --json | jq -r '.findings[].what'"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: the findings.")
@redis_options
def doctor(*, as_json: bool, connect: Connect) -> None:
    """Look at Redis, the fleet, limits and the last 15 minutes, and say what is wrong.

    The worst comes first, with what to do about it. It only reads. Exit code 1: there are errors,
    that is, turns fail or stand still.
    """
    with connect() as connection:
        found = examine(connection)
    if as_json:
        click.echo(_encode({"findings": found}))
    else:
        _print(found)
    if any(it.severity == "error" for it in found):
        raise click.exceptions.Exit(1)


def _print(found: list[Finding]) -> None:
    to = output.console()
    if all(it.severity == "note" for it in found):
        output.say(to, "Nothing is wrong.", "green")
    for it in found:
        line = Text(f"{it.severity}: ", _STYLES[it.severity])
        output.say(to, line.append(output.printable(f"{it.what} {it.advice}".strip()), "default"))
