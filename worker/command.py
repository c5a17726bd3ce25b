"""The command `turnline worker`: run a worker with settings from the environment."""

import gc
import json
import os
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

import click
import msgspec

from turnline.contracts.addresses import read_address
from turnline.worker.errors import StartFailed
from turnline.worker.logs import set_up
from turnline.worker.process_count import read_count
from turnline.worker.settings import (
    PREFIX,
    Settings,
    SettingsError,
    from_env,
    host_and_pid,
    host_name,
)
from turnline.worker.starting.signals import end_at_once
from turnline.worker.starting.stage import SENTENCE_CHARS, plain
from turnline.worker.supervising.child_side import Supervised

if TYPE_CHECKING:
    from turnline.worker.process import Found

REFUSED = 2
"""Exit code of a start that cannot be: trying again without a change is of no use."""
COUNT: Final = f"{PREFIX}PROCESSES"
MEMORY: Final = f"{PREFIX}MAX_RSS_MB"
HTTP: Final = f"{PREFIX}HTTP"
OF_SUPERVISORS: Final = (COUNT, MEMORY, "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""Variables that are not for a worker that has a supervisor."""


class _Taught(click.Command):
    """Lists the settings in its help: to find them out takes longer than most of a start."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the text, then the settings."""
        from turnline.worker.settings_help import settings_help  # noqa: PLC0415  for --help only

        text, self.help = self.help, f"{self.help}\n\n{settings_help()}"
        try:
            super().format_help_text(ctx, formatter)
        finally:
            self.help = text


@click.command(
    cls=_Taught,
    help="Run a worker: take conversations off the queue, have Grok answer them, until SIGTERM.\n\n"
    "SIGTERM or Ctrl-C lets running turns finish for TURNLINE_DRAIN_S seconds and hands over the "
    "rest; a second one hands over at once. Two seconds later it is gone, whatever tools do. While "
    "the worker starts, either ends it at once.\n\n"
    "Before it serves, a worker checks settings, files, Redis (rights too), key and model. What "
    "is wrong is said in one sentence on standard error.\n\n"
    "--processes keeps so many workers under a supervisor, which starts those again that die, and "
    "gives their turns to others at once. It passes SIGTERM and Ctrl-C on. SIGHUP replaces the "
    "workers one after the other, by such that read code and files anew; no turn is cut off.\n\n"
    "Exit codes: 0 told to end, 1 a defect, 2 cannot start, 70 the event loop stood still for "
    "TURNLINE_STALL_S, 75 told to end and something did not let it, 143 or 130 told to end while "
    "it started, 154 native code held Python's lock and computed without end.",
)
@click.option(
    "--processes",
    metavar="N|auto",
    help="Keep N worker processes; auto: one for each usable core. Instead of TURNLINE_PROCESSES.",
)
@click.option("--check", is_flag=True, help="Only check, say what was found, and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print what --check found as a JSON object.")
def worker(*, processes: str | None, check: bool, as_json: bool) -> None:
    """Run a worker with settings from the environment."""
    if as_json and not check:
        raise click.UsageError("--json goes with --check")
    supervised = Supervised.inherited(os.environ)
    end_at_once()
    if processes is not None and supervised is None:
        try:
            read_count(processes)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--processes") from None
        os.environ[COUNT] = processes
    settings = _settings(supervised, as_json=as_json)
    always = {"worker": settings.worker_name} if supervised is not None else {}
    set_up(settings.log_level, settings.log_format, **always)
    if settings.processes and not check:
        _supervise(settings)
    gc.disable()  # imported modules stay: collecting meanwhile takes a tenth of the time
    from turnline.worker import main  # noqa: PLC0415  half a second, in which signals already end this

    gc.enable()
    try:
        if check:
            _report(settings, main.check(settings), as_json=as_json)
            _leave(0)
        code = main.run(settings, supervised)
    except StartFailed as error:
        secrets = [*settings.api_key.value.split(","), *read_address(settings.redis_url).passwords]
        sentence = plain(str(error), SENTENCE_CHARS, secrets)
        _refuse(sentence, supervised, as_json=as_json)
    sys.exit(code)


def _settings(supervised: Supervised | None, *, as_json: bool) -> Settings:
    """Read the settings, or say what is wrong with them, and end."""
    try:
        return from_env(os.environ)
    except SettingsError as error:
        _refuse(str(error), supervised, as_json=as_json)


def _supervise(settings: Settings) -> NoReturn:
    """Keep worker processes until they are to end."""
    from turnline.worker.supervising import supervisor  # noqa: PLC0415  a single worker has none
    from turnline.worker.supervising.child_process import memory_mb, own_command  # noqa: PLC0415  likewise

    if settings.worker_name == host_and_pid():  # of itself; the workers have other pids
        settings = msgspec.structs.replace(settings, worker_name=host_name())
    count = read_count(settings.processes)
    if settings.max_rss_mb and memory_mb(os.getpid()) is None:
        _refuse(f"{MEMORY}: this system does not say how much memory a process takes")
    if settings.http:
        _refuse(f"{HTTP}: processes of a supervisor cannot share an address yet: unset it")
    reread = partial(from_env, dict(os.environ))
    theirs = {name: it for name, it in os.environ.items() if name not in OF_SUPERVISORS}
    ended = supervisor.supervise(settings, count, own_command(), theirs, reread)
    if ended.refusal:
        _refuse(ended.refusal, code=ended.code)
    _leave(ended.code)


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


def _refuse(
    sentence: str,
    supervised: Supervised | None = None,
    *,
    as_json: bool = False,
    code: int = REFUSED,
) -> NoReturn:
    """Say in one sentence why the worker does not start, and end."""
    sentence = plain(sentence, SENTENCE_CHARS)
    if supervised is not None:  # of several processes that fail alike, one tells people
        supervised.refused(sentence)
        _leave(code)
    with suppress(OSError, ValueError):  # nobody may be there to read it
        if as_json:
            click.echo(json.dumps({"ok": False, "error": sentence}))
        click.echo(f"turnline worker: {sentence}", err=True)
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End without waiting for threads of foreign code, or for one that looks up a host name."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)
