"""The command that runs the simulator as a process of its own."""

import asyncio
import ctypes
import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import click
import msgspec

from turnline.ops.simulator.config import (
    ErrorStyle,
    Pacing,
    Profile,
    ReasoningMode,
    SimulatorConfig,
    read_coalesce,
)
from turnline.ops.simulator.faults.catalogue import GROUPS
from turnline.ops.simulator.server import Simulator

_PR_SET_PDEATHSIG: Final = 1
_EXAMPLES: Final = """\b
Examples:
  # a local Grok that answers at once, on a free port; its URL is printed
  turnline sim
  # as fast as the real one, always on the same port
  turnline sim --port 8089 --speed 1
  # for benchmarks: first token after 200 ms, then one every 15 ms
  turnline sim --ttft-ms 200 --itl-ms 15
  # answer from recorded dialogues
  turnline sim --dialogues dialogues.jsonl
  # every tenth request or so is reset after five tokens
  curl -X POST http://127.0.0.1:8089/sim/faults -d \\
    '{"scenario":"rst;at=tokens:5","times":null,"probability":0.1}'
  # sealed reasoning of one conversation is refused once, on /v1/responses
  curl -X POST http://127.0.0.1:8089/sim/faults -d \\
    '{"scenario":"decrypt","conversation":"user-7"}'
  # what was asked and answered, and what was lost on the way
  curl 'http://127.0.0.1:8089/sim/ledger?summary=1'
"""


def _list_scenarios(
    context: click.Context,
    _option: click.Parameter,
    value: bool,  # noqa: FBT001  # click calls it so
) -> None:
    if not value:
        return
    for group, effects in GROUPS.items():
        click.echo(f"{group}:")
        for name, effect in effects.items():
            takes = f" ({', '.join(effect.args)})" if effect.args else ""
            click.echo(f"  {name:22}{effect.help}{takes}")
    context.exit()


def _coalesce(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    try:
        return None if value is None else read_coalesce(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command("sim", epilog=_EXAMPLES)
@click.option("--port", default=0, show_default="a free one", help="TCP port on 127.0.0.1.")
@click.option(
    "--dialogues",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON lines of recorded dialogues to answer from.",
)
@click.option(
    "--profile",
    type=click.Choice([profile.value for profile in Profile]),
    default=Profile.MODERN.value,
    show_default=True,
    help="Period or host of the API to imitate.",
)
@click.option(
    "--error-style",
    type=click.Choice([style.value for style in ErrorStyle]),
    help="Spelling of error codes.  [default: the profile's]",
)
@click.option(
    "--reasoning",
    type=click.Choice([mode.value for mode in ReasoningMode]),
    help="What is seen of reasoning.  [default: the model's way]",
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Factor of real time; 0 does not wait at all.",
)
@click.option("--ttft-ms", type=click.FloatRange(min=0), help="Exact time to the first token.")
@click.option("--itl-ms", type=click.FloatRange(min=0), help="Exact time between two tokens.")
@click.option(
    "--keepalive-s",
    type=click.FloatRange(min=0, min_open=True),
    default=15.0,
    show_default=True,
    help="Time between keep-alive comments in a silent phase.",
)
@click.option("--coalesce", callback=_coalesce, help="Events per write, e.g. 1-7.")
@click.option("--api-key", "api_keys", multiple=True, help="Key to let in.  [default: any]")
@click.option("--model", "extra_models", multiple=True, help="One more model name to serve.")
@click.option(
    "--rps",
    "requests_per_second",
    type=click.FloatRange(min=0, min_open=True),
    help="Requests per second.",
)
@click.option("--tpm", "tokens_per_minute", type=click.IntRange(min=1), help="Tokens per minute.")
@click.option(
    "--published-limits", is_flag=True, help="Limit each model as xAI does (grok-4.3: 1800 rpm)."
)
@click.option("--credits-usd", type=click.FloatRange(min=0), help="What each key may spend.")
@click.option("--seed", default=0, show_default=True, help="Seed of ids, pace and reasoning.")
@click.option(
    "--ledger-entries",
    type=click.IntRange(min=0),
    default=50_000,
    show_default=True,
    help="Requests kept in the ledger; 0 keeps all.",
)
@click.option("--print-url/--no-print-url", default=True, help="Print the base URL when ready.")
@click.option("--ready-fd", type=int, help="Descriptor that gets the base URL when ready.")
@click.option("--die-with-parent", is_flag=True, help="End when the starting process ends.")
@click.option(
    "--list-scenarios",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_scenarios,
    help="List all scenarios and exit.",
)
def sim(*, print_url: bool, ready_fd: int | None, die_with_parent: bool, **settings: Any) -> None:
    """Run a local Grok: xAI's chat completions and responses on 127.0.0.1, with any fault.

    A request picks scenarios by the header `x-sim: name;key=value,...` or behind the model's
    name, `grok-4.3@chunks;n=20`; several are joined by `|`. `--list-scenarios` lists them.
    """
    if die_with_parent:
        _die_with_parent()
    pacing = {name: settings.pop(name) for name in Pacing.__struct_fields__ if name in settings}
    try:
        config = msgspec.convert({**settings, "pacing": pacing}, SimulatorConfig)
    except msgspec.ValidationError as error:
        raise click.UsageError(str(error)) from None
    try:
        simulator = Simulator(config)
    except (OSError, msgspec.DecodeError) as error:
        raise click.ClickException(f"cannot read the dialogues: {error}") from None
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            runner.run(_serve(simulator, print_url=print_url, ready_fd=ready_fd))
        except OSError as error:
            raise click.ClickException(f"cannot listen on port {config.port}: {error}") from None


async def _serve(simulator: Simulator, *, print_url: bool, ready_fd: int | None) -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with simulator:
        if print_url:
            click.echo(simulator.base_url)
            sys.stdout.flush()
        if ready_fd is not None:
            os.write(ready_fd, f"{simulator.base_url}\n".encode())
            os.close(ready_fd)
        await stopped.wait()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop where there is one."""
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        return None
    return cast(Callable[[], asyncio.AbstractEventLoop], uvloop.new_event_loop)


def _die_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent dies; elsewhere watch for nothing."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            raise SystemExit(0)
