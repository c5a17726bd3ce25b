"""The models that are served, by period: names, redirects, prices, limits and what each refuses."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from turnline.ops.simulator.config import Profile, ReasoningMode


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What one model costs, takes and tells."""

    name: str
    """Resolved name, echoed in answers."""
    context_tokens: int
    """Longest prompt."""
    input_ticks: int
    """Price of an uncached prompt token; 1 USD is 1e10 ticks."""
    cached_ticks: int
    """Price of a cached prompt token."""
    output_ticks: int
    """Price of a completion or reasoning token."""
    efforts: tuple[str, ...] = ()
    """Accepted values of `reasoning_effort`; empty if the parameter is refused."""
    default_effort: str = "medium"
    """Effort when none is asked for."""
    reasons: bool = True
    """Whether it spends reasoning tokens."""
    shows: ReasoningMode = ReasoningMode.HIDDEN
    """What is seen of its reasoning."""
    takes_stop: bool = True
    """Whether `stop` is accepted."""
    hidden_tokens: int = 181
    """Tokens of the system prompt that xAI puts before every prompt."""
    cache_step: int = 64
    """Cached prompt tokens come in multiples of this."""
    requests_per_minute: int = 1800
    """As told in the rate limit headers."""
    tokens_per_minute: int = 10_000_000
    """As told in the rate limit headers."""
    fingerprint: str = "fp_3d7ed3b779"
    """`system_fingerprint` of its answers."""


class Catalogue(msgspec.Struct, frozen=True):
    """The models of one period and the names that lead to them."""

    models: Mapping[str, Model]
    redirects: Mapping[str, str]

    def resolve(self, name: str) -> Model | None:
        """Find the model that answers to a name; None if there is none."""
        return self.models.get(self.redirects.get(name, name))

    def aliases(self, name: str) -> list[str]:
        """All other names of a model."""
        return [alias for alias, target in self.redirects.items() if target == name]


def _model(
    name: str, context_tokens: int, usd_per_million: tuple[float, float, float], **others: Any
) -> Model:
    """Describe a model; prices are those of fresh input, cached input and output."""
    fresh, cached, output = (round(price * 10_000) for price in usd_per_million)
    return Model(
        name=name,
        context_tokens=context_tokens,
        input_ticks=fresh,
        cached_ticks=cached,
        output_ticks=output,
        **others,
    )


def _catalogue(models: list[Model], names: Mapping[str, Sequence[str]]) -> Catalogue:
    """List models, and the other names of each."""
    redirects = {name: model for model, others in names.items() for name in others}
    return Catalogue({model.name: model for model in models}, redirects)


_STANDARD: Final = ("low", "medium", "high")
_CODE: Final = {"shows": ReasoningMode.SUMMARY, "fingerprint": "fp_99052e9f23"}
_GROK_4_5: Final = {
    "efforts": _STANDARD,
    "default_effort": "high",
    "takes_stop": False,
    "hidden_tokens": 633,
    "cache_step": 512,
    "requests_per_minute": 9000,
    "tokens_per_minute": 50_000_000,
}
_GROK_4_6: Final = {**_GROK_4_5, "efforts": (*_STANDARD, "xhigh")}
_MODERN: Final = _catalogue(
    [
        _model("grok-4.7", 500_000, (2, 0.50, 6), **_GROK_4_6),
        _model("grok-4.6", 500_000, (2, 0.50, 6), **_GROK_4_6),
        _model("grok-4.5", 500_000, (2, 0.30, 6), **_GROK_4_5),
        _model(
            "grok-4.3",
            1_000_000,
            (1.25, 0.20, 2.50),
            efforts=("none", *_STANDARD),
            default_effort="low",
        ),
        _model("grok-4.20-0309-reasoning", 1_000_000, (1.25, 0.20, 2.50)),
        _model("grok-4.20-0309-non-reasoning", 1_000_000, (1.25, 0.20, 2.50), reasons=False),
        _model(
            "grok-4.20-multi-agent-0309",
            1_000_000,
            (1.25, 0.20, 2.50),
            efforts=(*_STANDARD, "xhigh"),
            requests_per_minute=540,
            tokens_per_minute=2_500_000,
        ),
    ],
    {
        "grok-4.5": ["grok-build-latest"],
        "grok-4.20-0309-reasoning": [
            "grok-4.20",
            "grok-4.20-beta",
            "grok-4.20-latest",
            "grok-4.20-reasoning",
        ],
        "grok-4.20-0309-non-reasoning": ["grok-4.20-non-reasoning"],
        "grok-4.20-multi-agent-0309": ["grok-4.20-multi-agent"],
        "grok-4.3": [
            "grok-3",
            "grok-4",
            "grok-4-0709",
            "grok-4-latest",
            "grok-4-fast",
            "grok-4-fast-reasoning",
            "grok-4-fast-non-reasoning",
            "grok-4-1-fast",
            "grok-4-1-fast-reasoning",
            "grok-4-1-fast-non-reasoning",
        ],
    },
)

_EMPTY: Final = {"shows": ReasoningMode.EMPTY, "takes_stop": False}
_MINI: Final = {
    "efforts": ("low", "high"),
    "shows": ReasoningMode.STREAM,
    "takes_stop": False,
    "hidden_tokens": 4,
}
_OCT2025: Final = _catalogue(
    [
        _model("grok-4-0709", 256_000, (3, 0.75, 15), hidden_tokens=686, **_EMPTY),
        _model("grok-4-fast-reasoning", 2_000_000, (0.20, 0.05, 0.50), hidden_tokens=153, **_EMPTY),
        _model(
            "grok-4-fast-non-reasoning",
            2_000_000,
            (0.20, 0.05, 0.50),
            reasons=False,
            hidden_tokens=153,
        ),
        _model("grok-code-fast-1", 256_000, (0.20, 0.02, 1.50), takes_stop=False, **_CODE),
        _model("grok-3", 131_072, (3, 0.75, 15), reasons=False, hidden_tokens=4),
        _model("grok-3-mini", 131_072, (0.30, 0.075, 0.50), default_effort="low", **_MINI),
        _model("grok-3-mini-high", 131_072, (0.30, 0.075, 0.50), default_effort="high", **_MINI),
    ],
    {
        "grok-4-0709": ["grok-4", "grok-4-latest"],
        "grok-4-fast-reasoning": ["grok-4-fast"],
        "grok-code-fast-1": ["grok-code-fast"],
        "grok-3": ["grok-3-beta", "grok-3-latest"],
        "grok-3-mini": ["grok-3-mini-beta"],
    },
)

_LEGACY: Final = {"reasons": False, "hidden_tokens": 0, "fingerprint": "fp_14b89b2dfc"}
_LEGACY2024: Final = _catalogue(
    [
        _model("grok-beta", 131_072, (5, 5, 15), **_LEGACY),
        _model("grok-2-1212", 131_072, (2, 2, 10), **_LEGACY),
    ],
    {"grok-2-1212": ["grok-2", "grok-2-latest"]},
)

_CATALOGUES: Final[Mapping[Profile, Catalogue]] = {
    Profile.MODERN: _MODERN,
    Profile.OCT2026: _MODERN,
    Profile.AZURE: _MODERN,
    Profile.OCT2025: _OCT2025,
    Profile.LEGACY2024: _LEGACY2024,
}


def catalogue(profile: Profile, extra_models: tuple[str, ...] = ()) -> Catalogue:
    """Build the catalogue of a profile; extra names copy the first model that takes any effort."""
    base = _CATALOGUES[profile]
    pattern = base.models.get("grok-4.3") or next(iter(base.models.values()))
    extra = {name: msgspec.structs.replace(pattern, name=name) for name in extra_models}
    return Catalogue({**base.models, **extra}, base.redirects)
