"""How the command line tells what went wrong: one line on stderr that says what to do."""

import re
import sys
from typing import IO, Any, Final, cast

import click

USAGE: Final = 2
FAILED: Final = 1
_CONTROLS: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What moves the cursor: a message may repeat an argument or a foreign name."""


class Failure(click.ClickException):
    """The command, its settings or what it was pointed at is wrong: exit code 2."""

    exit_code = USAGE

    def show(self, file: IO[Any] | None = None) -> None:
        """Print one line on stderr."""
        message = _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", self.format_message())
        click.echo(f"turnline: {message}", file=file or sys.stderr)


class Failed(Failure):
    """It was done, or tried, and the outcome is bad: exit code 1."""

    exit_code = FAILED


def told(error: Exception) -> Failure | None:
    """Return how to tell an expected error; None if it is a defect.

    Looks only at what is loaded: an error of a module that was never imported cannot have come.
    """
    if isinstance(error, ExceptionGroup):
        group = cast("ExceptionGroup[Exception]", error)
        return next(filter(None, map(told, group.exceptions)), None)
    if isinstance(error, ModuleNotFoundError):
        from turnline.worker.extras import missing  # noqa: PLC0415  nothing of the worker's for the help

        if sentence := missing(error):
            error = Failure(sentence)
    if isinstance(error, Failure):
        return error
    contracts = sys.modules.get("turnline.contracts.errors")
    if contracts is not None and isinstance(error, contracts.TurnlineError):
        usage = (
            *(contracts.InvalidMessage, contracts.InvalidAddress, contracts.TurnIdReused),
            *(contracts.StoreIncompatible, contracts.InvalidCursor),
        )
        return Failure(str(error)) if isinstance(error, usage) else Failed(str(error))
    embedded = sys.modules.get("turnline.ops.embedded.errors")
    if embedded is not None and isinstance(error, embedded.EmbeddedRedisError):
        return Failure(str(error))
    redis = sys.modules.get("redis.exceptions")
    if redis is not None and isinstance(error, redis.RedisError):
        return Failure(
            f"Redis does not answer as it should ({type(error).__name__}). Is it still up, and "
            "is --redis (or TURNLINE_REDIS_URL) right?"
        )
    return None
