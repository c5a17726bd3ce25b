"""`python -m worker`: run a worker with settings from the environment."""

import os
import sys

import click

from worker.logs import set_up
from worker.main import StartFailed, run
from worker.settings import SettingsError, described, from_env


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
    "rest; a second one hands over at once. Two seconds later it is gone, whatever tools do.\n\n"
    "Exit codes: 0 told to end, 1 a defect, 2 cannot start, 70 the event loop stood still for "
    "TURNLINE_STALL_S, 75 told to end and something did not let it.\n\n" + settings_help()
)
def worker() -> None:
    """Run a worker with settings from the environment."""
    try:
        settings = from_env(os.environ)
        set_up(settings.log_level, settings.log_format)
        run(settings)
    except (SettingsError, StartFailed) as error:
        click.echo(f"turnline worker: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    worker(prog_name="python -m worker")
