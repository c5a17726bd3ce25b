"""The names in spans and metrics against the installed conventions."""

from importlib import metadata

import pytest
from opentelemetry.semconv._incubating.attributes import (
    gen_ai_attributes,
    http_attributes,
    messaging_attributes,
    session_attributes,
)
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.attributes import error_attributes, server_attributes

from turnline.worker.telemetry import names

KNOWN = {
    value
    for module in (
        gen_ai_attributes,
        http_attributes,
        messaging_attributes,
        session_attributes,
        error_attributes,
        server_attributes,
    )
    for name, value in vars(module).items()
    if name.isupper() and isinstance(value, str)
}
PROPOSED = {
    "gen_ai.evaluation.result",
    "gen_ai.request.reasoning.level",
    "gen_ai.usage.cost.amount",
    "gen_ai.usage.cost.currency",
    "gen_ai.usage.cost.source",
}
"""In the conventions' own repository, or proposed there; viewers read them already."""
OURS = ("turnline.", "input.value", "output.value")


def attributes() -> list[str]:
    """Names of attributes: everything in `names` with a dot that is no metric."""
    return sorted(
        value
        for name, value in vars(names).items()
        if name.isupper()
        and isinstance(value, str)
        and "." in value
        and not name.startswith("M_")
        and name != "SEMCONV_VERSION"
    )


@pytest.mark.parametrize("name", attributes())
def test_an_attribute_is_known_proposed_or_ours(name: str) -> None:
    """A name of the conventions that changes there is noticed here."""
    assert name in KNOWN | PROPOSED or name.startswith(OURS)


def test_what_is_proposed_is_not_known_yet() -> None:
    """A name that made it into the package leaves the list of proposals."""
    assert not PROPOSED & KNOWN


def test_the_provider_is_the_conventions_word_for_xai() -> None:
    """`x_ai`, as the enumeration has it."""
    assert gen_ai_attributes.GenAiProviderNameValues.X_AI.value == names.PROVIDER_XAI


def test_metrics_are_the_conventions_or_ours() -> None:
    """GenAI's names only where GenAI means the same."""
    known = {
        value
        for name, value in vars(gen_ai_metrics).items()
        if name.isupper() and isinstance(value, str)
    }
    proposed = {
        "gen_ai.client.operation.time_to_first_chunk",
        "gen_ai.execute_tool.duration",
        "gen_ai.invoke_agent.duration",
    }
    used = {value for name, value in vars(names).items() if name.startswith("M_")}

    foreign = {name for name in used if not name.startswith("turnline.")}
    assert foreign - known - proposed == set()


def test_the_pinned_version_is_the_one_compared_with() -> None:
    """Whoever upgrades the conventions looks at the names."""
    assert metadata.version("opentelemetry-semantic-conventions") == names.SEMCONV_VERSION
