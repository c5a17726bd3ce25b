"""What settings, headers and refusals say of a provider's limits."""

import pytest

from turnline.ops.simulator.model.api_errors import too_many_requests, too_many_tokens
from turnline.worker.provider_limits import LimitRules, ProviderLimits, announced, reached, words_of


def test_rules_name_models_and_all_others() -> None:
    """Numbers may have underscores; `off` heeds no limit."""
    rules = LimitRules.read("grok-4.3=37rps+10_000_000tpm, slow=60rpm+9tps,free=off,*=5rps")

    assert rules.of("grok-4.3") == ProviderLimits(rs=37, tm=10_000_000)
    assert rules.of("slow") == ProviderLimits(rm=60, ts=9)
    assert rules.of("free") is None
    assert rules.of("another") == ProviderLimits(rs=5)
    assert LimitRules.read("").of("another") == ProviderLimits()


@pytest.mark.parametrize(
    "words",
    ["5rps", "m=", "m=0rps", "m=5", "m=5rps+", "m=5rps tpm", "=5rps", "m=-1rps", "m=5rps+off"],
)
def test_rules_that_cannot_be_read_are_explained(words: str) -> None:
    """With an example."""
    with pytest.raises(ValueError, match=r"such as `grok-4\.3=37rps\+10_000_000tpm,\*=5rps`"):
        LimitRules.read(words)


def test_what_is_written_is_read_back() -> None:
    """Between workers and the server."""
    limits = ProviderLimits(rs=5, tm=1_000)

    assert str(limits) == "rs=5;tm=1000"
    assert ProviderLimits.read(str(limits)) == limits
    assert ProviderLimits.read("") == ProviderLimits()
    assert limits.of_tokens
    assert not ProviderLimits(rm=1).of_tokens
    assert ProviderLimits(rs=5, rm=60).pace_s == 1.0


@pytest.mark.parametrize(
    ("requests", "tokens", "limits"),
    [
        ("1800", "10000000", ProviderLimits(rs=30, rm=1_800, tm=10_000_000)),
        ("20", None, ProviderLimits(rs=1, rm=20)),
        (None, "500", ProviderLimits(tm=500)),
        ("many", "-1", ProviderLimits()),
        ("0", "\u0661", ProviderLimits()),
        (None, None, ProviderLimits()),
    ],
)
def test_headers_are_per_minute(
    requests: str | None, tokens: str | None, limits: ProviderLimits
) -> None:
    """A second gets its share of the requests; what is no count says nothing."""
    names = ("x-ratelimit-limit-requests", "x-ratelimit-limit-tokens")
    headers = {n: it for n, it in zip(names, (requests, tokens), strict=True) if it is not None}

    assert words_of(headers) == (requests, tokens)
    assert announced(*words_of(headers)) == limits


def test_a_refusal_names_the_limit_that_was_reached() -> None:
    """In xAI's words."""
    assert reached(too_many_requests("m", 2, 2).message) == ProviderLimits(rs=2)
    assert reached(too_many_requests("m", 61, 60, "Minute").message) == ProviderLimits(rm=60)
    assert reached(too_many_tokens("m", 65_605, 16_000).message) == ProviderLimits(tm=16_000)
    assert reached("The model is currently at capacity due to high demand.") is None
    assert reached("Requests per Second (actual/limit): 1/0") is None
