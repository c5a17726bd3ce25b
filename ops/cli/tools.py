"""`turnline tools`: what a worker would offer to the model, and what is wrong with it."""

from typing import Any

import click
import msgspec

from turnline.ops.cli import output
from turnline.ops.cli.failures import FAILED
from turnline.worker.tools.loader import LoadedTool, LoadedTools, load_tools

_encode = msgspec.json.Encoder().encode


@click.command(
    epilog="\b\nFor example:\n"
    "  turnline tools --tools my_shop.tools\n"
    "  turnline tools --json | jq '.tools[].function.parameters'"
)
@click.option(
    "--tools",
    "modules",
    envvar="TURNLINE_TOOLS",
    default="",
    metavar="MODULES",
    help="Python modules, separated by commas.  [env var: TURNLINE_TOOLS]",
)
@click.option(
    "--schemas",
    envvar="TURNLINE_TOOL_SCHEMAS",
    default="",
    metavar="FILES",
    help="JSON files of tools that run elsewhere.  [env var: TURNLINE_TOOL_SCHEMAS]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def tools(*, modules: str, schemas: str, as_json: bool) -> None:
    """List the tools that a worker started here would offer, with their schemas.

    Exits with 1 if something is wrong with a module or a file: a worker would not start.
    """
    loaded = load_tools(modules, schemas)
    if as_json:
        click.echo(_encode(_plain(loaded)))
    else:
        _show(loaded)
    if loaded.problems:
        raise click.exceptions.Exit(FAILED)


def _plain(loaded: LoadedTools) -> dict[str, Any]:
    return {
        "tools": [
            {
                "module": it.module,
                "function": it.described.definition,
                "timeout_s": it.options.timeout_s,
                "max_concurrency": it.options.max_concurrency,
                "retry_safe": it.options.retry_safe,
                "cancel_on_interruption": it.options.cancel_on_interruption,
            }
            for it in loaded.tools
        ],
        "elsewhere": loaded.schemas,
        "problems": loaded.problems,
    }


def _show(loaded: LoadedTools) -> None:
    to = output.console()
    for it in loaded.tools:
        output.say(to, it.name, "bold")
        output.say(to, f"  {_first_line(it.described.definition.description)}")
        output.say(to, f"  {_how(it)}", "dim")
        output.say(to, f"  {_schema(it.described.definition.parameters)}")
    for definition in loaded.schemas:
        output.say(to, definition.function.name, "bold")
        output.say(to, f"  {_first_line(definition.function.description)}")
        output.say(to, "  runs elsewhere", "dim")
        output.say(to, f"  {_schema(definition.function.parameters)}")
    if not (loaded.tools or loaded.schemas or loaded.problems):
        output.say(
            to, "No tools: name modules with --tools or TURNLINE_TOOLS, such as `my_shop.tools`."
        )
    errors = output.console(stderr=True)
    for problem in loaded.problems:
        output.say(errors, output.printable(problem), "red")


def _first_line(text: str) -> str:
    return output.printable(text.partition("\n")[0])


def _how(it: LoadedTool) -> str:
    options = it.options
    words = [it.module, "async" if it.described.is_async else "in a thread"]
    if options.timeout_s is not None:
        words.append(f"{options.timeout_s:g} s")
    if options.max_concurrency is not None:
        words.append(f"{options.max_concurrency} at a time")
    words.append("run again after a crash" if options.retry_safe else "never run twice")
    if not options.cancel_on_interruption:
        words.append("not cancelled")
    return ", ".join(words)


def _schema(parameters: dict[str, Any]) -> str:
    return output.printable(_encode(parameters).decode())
