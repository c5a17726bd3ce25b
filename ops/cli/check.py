"""`turnline check`: whether this host's part of a fleet works, as an exit code."""

import asyncio
import os
import sys

import click
import msgspec

from turnline.ops.cli import output
from turnline.ops.fleet.host_check import PARTS, checked


@click.command(
    epilog="\b\nFor example:\n"
    "  turnline check\n"
    "  turnline check redis worker\n"
    "  turnline check --json | jq .ok"
)
@click.argument("parts", nargs=-1, type=click.Choice(PARTS), metavar="[PART]...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(*, parts: tuple[str, ...], as_json: bool) -> None:
    """Check settings, redis, provider and worker; or only the parts that are named.

    It reads the environment that a worker reads. `settings` can be used and have a key; `redis`
    answers; an address of the `provider` takes a connection; a `worker` of this host lives.

    The exit code is 0 if all is well, else 1. It takes some seconds at most, whatever hangs. For a
    liveness probe ask /livez (TURNLINE_HTTP): while Redis is away, no worker need be ended.
    """
    found = asyncio.run(checked(os.environ, parts or PARTS))
    is_well = all(it.ok for it in found)
    if as_json:
        fields = {it.part: {"ok": it.ok, "found": it.found} for it in found}
        click.echo(msgspec.json.encode({"ok": is_well, **fields}))
    else:
        for it in found:
            click.echo(
                output.printable(f"{it.part:<9}{'ok    ' if it.ok else 'FAILED'} {it.found}")
            )
    sys.exit(0 if is_well else 1)
