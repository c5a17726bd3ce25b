"""The options of the commands that need Redis."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial, wraps
from typing import Any, Final

import click
from click.core import ParameterSource

from turnline.ops.cli.failures import Failure
from turnline.ops.embedded.embedded_redis import given_url
from turnline.ops.fleet.operator_connection import Connection, connected
from turnline.worker.settings import SettingsError

DEFAULT_URL: Final = "redis://127.0.0.1:6379/0"
Connect = Callable[[], AbstractContextManager[Connection]]
"""Opens the connection of a command for a `with` block."""


def redis_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name a fleet; the command gets `connect`, a `Connect` to it."""

    @fleet_options
    @wraps(command)
    def run(*, redis_url: str, shards: int, prefix: str, **others: Any) -> Any:
        return command(connect=partial(connected, redis_url, shards, prefix), **others)

    return run


def fleet_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name a fleet; the command gets `redis_url`, `shards` and `prefix`."""

    @click.option(
        "--redis",
        "redis_url",
        metavar="URL",
        default=DEFAULT_URL,
        show_default=True,
        callback=_named,
        help="Where Redis is.  [env: TURNLINE_REDIS_URL, REDIS_URL, or those with _FILE]",
    )
    @click.option(
        "--shards",
        type=click.IntRange(min=1),
        envvar="TURNLINE_SHARDS",
        default=1,
        show_default=True,
        help="Shards of the fleet, until its first worker says how many it has.",
    )
    @click.option(
        "--prefix",
        envvar="TURNLINE_PREFIX",
        default="",
        help="Name of the fleet where several share a server; the workers' prefix.",
    )
    @wraps(command)
    def run(**options: Any) -> Any:
        return command(**options)

    return run


def _named(context: click.Context, option: click.Parameter, url: str) -> str:
    """Return the address of the command line, else that of the environment or a file it names."""
    assert option.name is not None
    if context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE:
        return url
    try:
        return given_url() or url
    except SettingsError as error:
        raise Failure(str(error)) from None
