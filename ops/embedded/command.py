"""The command `turnline redis`: an embedded server in the foreground."""

import json
import signal
from pathlib import Path

import click

from turnline.ops.embedded.embedded_redis import EmbeddedRedis
from turnline.ops.embedded.errors import EmbeddedRedisError


@click.command()
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the data here, so that they outlive the server. Without it they end with it.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Listen on this TCP port of 127.0.0.1 too; 0 takes a free one.",
)
@click.option("--databases", type=click.IntRange(1, 16384), default=16, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON with url and pid.")
def redis(directory: Path | None, port: int | None, databases: int, as_json: bool) -> None:  # noqa: FBT001 - a flag
    """Run a private Redis or Valkey server until Ctrl-C, and print its URL first."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    try:
        with EmbeddedRedis(directory, databases, port) as server:
            if as_json:
                click.echo(json.dumps({"url": server.url, "pid": server.pid}))
            else:
                click.echo(server.url)
                click.echo("Ctrl-C stops it.", err=True)
            code = server.wait()
    except EmbeddedRedisError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        return
    raise click.ClickException(f"The server ended by itself (exit code {code}).")
