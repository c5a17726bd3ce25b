"""The command `turnline worker`: run a worker with settings from the environment."""

import gc
import json
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

import click

from turnline.contracts.addresses import read_address
from turnline.worker.errors import StartFailed
from turnline.worker.logs import set_up
from turnline.worker.settings import Settings, SettingsError, described, from_env
from turnline.worker.starting.signals import end_at_once
from turnline.worker.starting.stage import SENTENCE_CHARS, plain

if TYPE_CHECKING:
    from turnline.worker.process import Found

REFUSED = 2
"""Exit code of a start that cannot be: trying again without a change is of no use."""


def settings_help() -> str:
    """Return the list of all settings with their defaults, for `--help`."""
    lines = ["\b", "Settings, from the environment:"]
    for variable, default, meaning in described():
        shown = f" [{default}]" if default else ""
        lines += [f"  {variable}{shown}", f"      {meaning}"]
    return "\n".join(lines)


@click.command(
    help="Run a worker: take conversations off the queue, have Grok answer them, until SIGTERM.\n\n"
    "SIGTERM or Ctrl-C lets running turns finish for TURNLINE_DRAIN_S seconds and hands over the "
    "rest; a second one hands over at once. Two seconds later it is gone, whatever tools do. While "
    "the worker starts, either ends it at once.\n\n"
    "Before it serves, a worker checks settings, files, Redis (rights too), key and model. What "
    "is wrong is said in one sentence on standard error.\n\n"
    "Exit codes: 0 told to end, 1 a defect, 2 cannot start, 70 the event loop stood still for "
    "TURNLINE_STALL_S, 75 told to end and something did not let it, 143 or 130 told to end while "
    "it started, 154 native code held Python's lock and computed without end.\n\n" + settings_help()
)
@click.option("--check", is_flag=True, help="Only check, say what was found, and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print what --check found as a JSON object.")
def worker(*, check: bool, as_json: bool) -> None:
    """Run a worker with settings from the environment."""
    if as_json and not check:
        raise click.UsageError("--json goes with --check")
    end_at_once()
    try:
        settings = from_env(os.environ)
    except SettingsError as error:
        _refuse(str(error), as_json=as_json)
    set_up(settings.log_level, settings.log_format)
    gc.disable()  # imported modules stay: collecting meanwhile takes a tenth of the time
    from turnline.worker import main  # noqa: PLC0415  half a second, in which signals already end this

    gc.enable()
    try:
        if check:
            _report(settings, main.check(settings), as_json=as_json)
            _leave(0)
        code = main.run(settings)
    except StartFailed as error:
        secrets = [*settings.api_key.value.split(","), *read_address(settings.redis_url).passwords]
        sentence = plain(str(error), SENTENCE_CHARS, secrets)
        _refuse(sentence, as_json=as_json)
    sys.exit(code)


def _report(settings: Settings, found: "Found", *, as_json: bool) -> None:
    """Print what was found, in a line or as JSON."""
    redis, provider = found.redis, found.provider
    if as_json:
        facts = {
            "ok": True,
            "redis": {"where": redis.where, "version": redis.version, "warnings": redis.warnings},
            "provider": {
                "base_url": settings.base_url,
                "model": settings.model,
                "models": provider.models,
                "unchecked": provider.unchecked,
            },
            "tools": found.tools,
            "agents": found.agents,
        }
        click.echo(json.dumps(facts))
        return
    served = f"{settings.model} at {settings.base_url}"
    parts = [
        " ".join(filter(None, ["Redis", redis.version, "at", redis.where])),
        f"{served} not checked ({provider.unchecked})" if provider.unchecked else served,
        f"{len(found.tools)} tools",
        f"{len(found.agents)} agents",
        *redis.warnings,
    ]
    click.echo(f"turnline worker: ready to start: {', '.join(parts)}")


def _refuse(sentence: str, *, as_json: bool) -> NoReturn:
    """Print in one sentence why the worker does not start, and end."""
    sentence = plain(sentence, SENTENCE_CHARS)
    with suppress(OSError, ValueError):  # nobody may be there to read it
        if as_json:
            click.echo(json.dumps({"ok": False, "error": sentence}))
        click.echo(f"turnline worker: {sentence}", err=True)
    _leave(REFUSED)


def _leave(code: int) -> NoReturn:
    """End without waiting for threads of foreign code, or for one that looks up a host name."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)
