"""The command group: what there is, loaded only when it is called, and how errors are told."""

import sys
from collections.abc import Mapping
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any, Final

import click

from turnline.ops.cli.failures import told

_ALL: Final[Mapping[str, Mapping[str, str]]] = {
    "Try it": {
        "demo": "Play a short conversation through two workers.",
        "chat": "Talk to Grok over the queue.",
        "replay": "Run recorded dialogues and check each reply.",
    },
    "Run it": {
        "worker": "Run a worker until SIGTERM.",
        "redis": "Run a private Redis until Ctrl-C.",
        "sim": "Run a simulated Grok until Ctrl-C.",
    },
    "Use it": {
        "send": "Put one message into a conversation.",
        "tail": "Follow what happens in a conversation.",
        "show": "Show a conversation and its turns, or one turn.",
        "conversations": "Find conversations by time, tenant, metadata, failures.",
        "turns": "Find turns that failed or were slow.",
        "usage": "Show a conversation's tokens and cost.",
        "spend": "Show what was spent, by tenant, agent, model and day.",
        "forget": "Remove every trace of a conversation.",
    },
    "Operate it": {
        "queue": "Show what waits and runs, and the workers.",
        "check": "Check this host: settings, Redis, provider, worker.",
        "exporter": "Show how the fleet stands to Prometheus and scalers.",
        "models": "List the models, with prices and what they take.",
        "tools": "List the tools that a worker would offer.",
        "agents": "List the agents that a worker would know.",
        "dead": "List, show, replay or drop dead letters.",
        "schedule": "Have turns begin again and again, by cron lines.",
        "reshard": "Change the number of shards, while turns run.",
        "acl": "Print the rights that a user in Redis needs.",
        "trace": "Draw what became of a turn, as a waterfall.",
        "explain": "Say what happened in a turn, and why.",
        "doctor": "Look at Redis and the fleet, and say what is wrong.",
    },
    "Judge it": {
        "bench": "Measure, side by side with others.",
        "chaos": "Break things under load and check.",
        "fuzz": "Feed it broken input and check.",
    },
}
_MODULES: Final[Mapping[str, str]] = {
    "models": "turnline.ops.cli.model_list",
    "usage": "turnline.ops.cli.token_usage",
    "conversations": "turnline.ops.cli.listings",
    "turns": "turnline.ops.cli.listings",
    "worker": "turnline.worker.command",
    "redis": "turnline.ops.embedded.command",
    "sim": "turnline.ops.simulator.command",
    "bench": "turnline.ops.bench.command",
    "chaos": "turnline.ops.chaos.command",
    "fuzz": "turnline.ops.fuzz.command",
}
"""Where commands stand whose module is not called as they are."""


def _module(name: str) -> str:
    return _MODULES.get(name, f"turnline.ops.cli.{name}")


SECTIONS: Final = {
    title: section
    for title, section in _ALL.items()
    if all(find_spec(_module(name).rpartition(".")[0]) for name in section)
}
"""Without the instruments, which only the repository has."""
_NAMES: Final = [name for section in SECTIONS.values() for name in section]


class Turnline(click.Group):
    """A group whose commands are imported when they are called, so that `--help` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """Return all names, in the order of the help."""
        return _NAMES

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  click's
        """Import a command."""
        if cmd_name not in _NAMES:
            return None
        command = getattr(import_module(_module(cmd_name)), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name those there are."""
        if args and not args[0].startswith("-") and args[0] not in _NAMES:
            raise click.UsageError(f"no command {args[0]!r}; there are {', '.join(_NAMES)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  click's
        """Write the commands by what they are for."""
        width = max(map(len, _NAMES))
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), it) for name, it in section.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what may be expected to go wrong is told without a traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(130) from None
        except Exception as error:
            if (failure := told(error)) is not None:
                raise failure from None
            raise


def _version(context: click.Context, _option: click.Parameter, value: bool) -> None:  # noqa: FBT001  click's
    if value:
        try:
            click.echo(f"turnline {metadata.version('turnline')}")
        except metadata.PackageNotFoundError:
            click.echo("turnline, not installed: run from its folder")
        context.exit()


@click.group(
    cls=Turnline,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nFor example:\n"
    "  turnline demo                          all of it, by itself, in half a minute\n"
    "  turnline redis --port 6379             then, in other terminals:\n"
    "  XAI_API_KEY=... turnline worker\n"
    "  turnline chat\n\n"
    "Commands that need Redis take --redis URL, or TURNLINE_REDIS_URL, or REDIS_URL; "
    "`turnline COMMAND --help` has an example of each.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Print the version and exit.",
)
def turnline() -> None:
    """Run conversations with Grok as a fleet of queue workers."""


def main() -> None:
    """Run the command line."""
    turnline(prog_name="turnline")
    sys.exit(0)
