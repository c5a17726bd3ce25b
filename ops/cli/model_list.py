"""`turnline models`: the models that a provider serves, and what is known of each."""

import asyncio
import os
from typing import Any

import click
import msgspec

from turnline.ops.cli import output
from turnline.ops.cli.failures import Failed, Failure
from turnline.worker.errors import StartFailed
from turnline.worker.services.grok.model_catalogue import BUILT_IN, TABLE_DATE, Model
from turnline.worker.services.provider_client import ProviderClient
from turnline.worker.settings import KEY, Settings, SettingsError, from_env
from turnline.worker.starting.provider_check import ProviderFound, ask_provider, cannot_connect

_encode = msgspec.json.Encoder().encode
_TABLE = f"built-in table of {TABLE_DATE}"


@click.command(
    epilog="\b\nFor example:\n"
    "  XAI_API_KEY=... turnline models\n"
    "  turnline models --json | jq -r '.models[].name'"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def models(*, as_json: bool) -> None:
    """List the models: context window, reasoning efforts, prices, endpoints, retirement.

    With a key (XAI_API_KEY) the provider at TURNLINE_BASE_URL is asked, and what it says wins over
    the built-in table. Without one, or where nobody answers, the table is all there is.
    """
    try:
        settings = from_env(os.environ)
    except SettingsError as error:
        raise Failure(str(error)) from None
    if settings.api_key.value:
        found = _asked(settings.members[0])
    else:
        found = ProviderFound(unchecked=f"{KEY} is not set")
    listed = BUILT_IN.models if found.unchecked else BUILT_IN.updated(found.listed).served
    if as_json:
        facts = {"base_url": settings.base_url, "unchecked": found.unchecked}
        click.echo(_encode({**facts, "models": [_facts(model) for model in listed]}))
    else:
        _show(settings, found, listed)


def _asked(settings: Settings) -> ProviderFound:
    async def ask() -> ProviderFound:
        client = ProviderClient(settings.api_key.value, settings.base_url)
        try:
            return await ask_provider(settings, client)
        finally:
            await client.close()

    try:
        return asyncio.run(ask())
    except StartFailed as error:
        raise Failed(str(error)) from None
    except (OSError, ValueError) as error:  # certificates and proxies of the environment
        raise Failed(cannot_connect(error)) from None


def _facts(model: Model) -> dict[str, Any]:
    """Return what is known of a model, prices in dollars per million tokens."""
    return {
        "name": model.name,
        "aliases": model.aliases,
        "context_tokens": model.context_tokens,
        "reasons": model.reasons,
        "efforts": model.efforts,
        "default_effort": model.default_effort,
        "usd_per_million": {
            "input": model.input_usd,
            "cached_input": model.cached_usd,
            "output": model.output_usd,
        },
        "endpoints": model.endpoints or None,
        "retired_on": model.retired_on,
        "replaced_by": model.replaced_by or None,
        "source": "provider" if model.from_provider else _TABLE,
    }


def _show(settings: Settings, found: ProviderFound, listed: tuple[Model, ...]) -> None:
    to = output.console()
    columns = ("model", "context", "efforts", "$ in / cached / out", "endpoints", "retired")
    shown = output.table(*columns, numbers=("context",))
    for model in listed:
        retired = "" if model.retired_on is None else str(model.retired_on)
        shown.add_row(
            output.word(model.name),
            "?" if model.context_tokens is None else f"{model.context_tokens:,}",
            _efforts(model),
            " / ".join(map(_price, (model.input_usd, model.cached_usd, model.output_usd))),
            ", ".join(model.endpoints) or "?",
            f"{retired}, use {model.replaced_by}" if model.replaced_by else retired,
        )
    to.print(shown)
    for model in listed:
        if model.aliases:
            output.say(to, output.word(f"{model.name} is also {', '.join(model.aliases)}."))
    output.say(
        to,
        "Prices are for a million tokens; from 200,000 tokens of prompt on xAI doubles them. "
        "* is the effort where none is asked for.",
        "dim",
    )
    if found.unchecked:
        why = output.printable(found.unchecked)
        words = f"All of it is from the {_TABLE}: {settings.base_url} did not tell ({why})."
    else:
        words = f"Served by {settings.base_url}; what it does not say is from the {_TABLE}."
    output.say(to, words, "dim")


def _efforts(model: Model) -> str:
    """Return the efforts, the default one marked; what stands for them where there are none."""
    if model.efforts:
        return ", ".join(f"{it}*" if it == model.default_effort else it for it in model.efforts)
    if model.reasons is None:
        return "?"
    return "always thinks" if model.reasons else "never thinks"


def _price(usd: float | None) -> str:
    return "?" if usd is None else f"{usd:.2f}"
