"""`turnline agents`: the profiles of an agents file, and what is wrong with it."""

from pathlib import Path

import click
import msgspec

from turnline.contracts.server_tools import tool_name, without_secrets
from turnline.ops.cli import output
from turnline.ops.cli.failures import Failed, Failure
from turnline.worker.tools.loader import load_tools
from turnline.worker.turn.plan import Agent, BadAgents, read_agents

_encode = msgspec.json.Encoder().encode


@click.command(
    epilog="\b\nFor example:\n"
    "  turnline agents --agents agents.toml\n"
    "  turnline agents --json | jq 'keys'"
)
@click.option(
    "--agents",
    "path",
    envvar="TURNLINE_AGENTS",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The agents file.  [env var: TURNLINE_AGENTS]",
)
@click.option("--tools", "modules", envvar="TURNLINE_TOOLS", default="", hidden=True)
@click.option("--schemas", envvar="TURNLINE_TOOL_SCHEMAS", default="", hidden=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def agents(*, path: Path | None, modules: str, schemas: str, as_json: bool) -> None:
    """List the agents that a worker started here would know.

    Exits with 1 if the file cannot be used: a worker would not start.
    """
    if path is None:
        raise Failure("name a file with --agents or TURNLINE_AGENTS, such as agents.toml")
    loaded = load_tools(modules, schemas)
    names = [*(it.name for it in loaded.tools), *(it.function.name for it in loaded.schemas)]
    try:
        found = read_agents(path, names)
    except BadAgents as error:
        raise Failed(str(error)) from None
    if as_json:
        click.echo(without_secrets(_encode(found)))
    else:
        _show(found)


def _show(found: dict[str, Agent]) -> None:
    to = output.console()
    shown = output.table("agent", "model", "tools", "limits", "prompt")
    for name, agent in found.items():
        limits = {
            "rounds": agent.max_tool_rounds,
            "result bytes": agent.tool_result_bytes,
            "wait s": agent.tool_wait_s,
            "budget s": agent.turn_budget_s,
        }
        of_workers = "all" if agent.tools is None else ", ".join(agent.tools) or "none"
        of_provider = ", ".join(map(tool_name, agent.server_tools or ()))
        prompt = agent.description or agent.system_prompt or ""
        shown.add_row(
            name,
            ", ".join(agent.models) or "worker's",
            "; ".join(filter(None, (of_workers, of_provider))),
            ", ".join(f"{value:g} {word}" for word, value in limits.items() if value) or "worker's",
            output.printable(prompt.partition("\n")[0][:80]),
        )
    to.print(shown)
