"""The models: what each takes, costs and does, as the provider says, else as known on a date."""

import re
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any, Final, cast

import msgspec
from msgspec.structs import replace

GROK_BASE_URL: Final = "https://api.x.ai/v1"
TABLE_DATE: Final = date(2026, 11, 27)
"""The day on which the built-in table was right, as far as xAI and its users told."""
_DATED: Final = re.compile(r"-(?:latest|\d{4}|\d{8}|\d{4}-\d\d-\d\d)\Z")
"""What a name ends in that means the same model as without it."""
_MOST_NAMES: Final = 100
"""Other names of one model that are believed."""


EFFORTS: Final = ("none", "low", "medium", "high", "xhigh")
"""All that `reasoning_effort` may be, the least first."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One model. None stands for what is not known."""

    name: str
    """As the provider resolves it, and echoes it in answers."""
    aliases: tuple[str, ...] = ()
    """Other names that lead to it, those of retired models included that redirect to it."""
    context_tokens: int | None = None
    """Longest prompt."""
    efforts: tuple[str, ...] | None = None
    """Values that `reasoning_effort` takes, the least first; none: the parameter is refused."""
    default_effort: str | None = None
    """Effort where none is asked for."""
    reasons: bool | None = None
    """Whether it thinks before it speaks."""
    input_usd: float | None = None
    """Price of a million tokens of a prompt below 200,000 tokens; above, xAI doubles all prices."""
    cached_usd: float | None = None
    """Price of a million tokens of it that were cached."""
    output_usd: float | None = None
    """Price of a million tokens of output, reasoning included."""
    endpoints: tuple[str, ...] = ()
    """Of `responses` and `chat`, those that serve it; none: not known."""
    penalties: bool = False
    """Whether it takes `frequency_penalty`, `presence_penalty` and `logit_bias`."""
    stop: bool = True
    """Whether it takes `stop`."""
    retired_on: date | None = None
    """From which day on xAI does not serve it."""
    replaced_by: str = ""
    """What xAI names in its place."""
    from_provider: bool = False
    """Whether the provider lists it; else it is the built-in table's."""

    def thinks(self, effort: str | None) -> bool:
        """Tell whether it is known to think, asked with this effort."""
        return bool(self.reasons) and (effort or self.default_effort) != "none"

    def nearest_effort(self, asked: str) -> str | None:
        """Return the effort to ask for: the most that it takes and is not above, else its least.

        None where it takes none. One that is not known is left to a model that is not known.
        """
        if self.efforts is None or asked in self.efforts:
            return asked
        if asked not in EFFORTS:
            return None
        below = [it for it in self.efforts if it in EFFORTS[: EFFORTS.index(asked)]]
        return next(reversed(below), next(iter(self.efforts), None))

    def is_retired(self, today: date) -> bool:
        """Tell whether xAI has ceased to serve it, going by the table."""
        return not self.from_provider and self.retired_on is not None and self.retired_on <= today


class Catalogue:
    """Models by each of their names."""

    def __init__(self, models: Iterable[Model]) -> None:
        """Take the models; of two with the same name the first one counts."""
        self.models = tuple(models)
        self._by_name: dict[str, Model] = {}
        for model in self.models:
            self._by_name.setdefault(model.name, model)
        for model in self.models:
            for alias in model.aliases:
                self._by_name.setdefault(alias, model)

    @property
    def served(self) -> tuple[Model, ...]:
        """Those that the provider lists."""
        return tuple(model for model in self.models if model.from_provider)

    def find(self, name: str) -> Model | None:
        """Return the model that answers to a name, or to it without its date; None if none does."""
        return self._by_name.get(name) or self._by_name.get(_DATED.sub("", name))

    def nearest(self, name: str) -> Model:
        """Return what may be expected of a name: of the known ones that begin it, the longest."""
        known = name
        while known:
            if known in self._by_name:
                return self._by_name[known]
            known = known.rpartition("-")[0]
        return Model(name=name)

    def is_same(self, one: str, other: str) -> bool:
        """Tell whether two names mean the same model: what one of them thought the other reads.

        A name that is asked for and the one that an answer echoes may differ in a date, or one is
        an alias, or redirects to the other.
        """
        return one == other or self._resolved(one) == self._resolved(other)

    def _resolved(self, name: str) -> str:
        found = self.find(name)
        return _DATED.sub("", name) if found is None else found.name

    def updated(self, listed: Iterable[Model]) -> "Catalogue":
        """Return a catalogue in which what the provider lists wins over what was known."""
        listed = tuple(listed)
        taken = {name for model in listed for name in (model.name, *model.aliases)}
        replaced = set[str]()
        found: list[Model] = []
        for model in listed:
            known, said = self.find(model.name), dict[str, Any]()
            if known is not None:
                replaced.add(known.name)
                said = {it: value for it in _LISTED if (value := getattr(model, it)) is not None}
                others = (it for it in (known.name, *known.aliases) if it not in taken)
                said["aliases"] = (*model.aliases, *others)
            found.append(model if known is None else replace(known, **said, from_provider=True))
        return Catalogue([*found, *(it for it in self.models if it.name not in replaced)])


_LISTED: Final = (
    *("name", "context_tokens", "efforts", "reasons"),
    *("input_usd", "cached_usd", "output_usd"),
)
"""Fields in which a provider's list wins, where it says something."""

_STANDARD: Final = ("low", "medium", "high")
_TO_XHIGH: Final = (*_STANDARD, "xhigh")
_REDIRECTED: Final = date(2026, 5, 15)
_END_OF_BUILD: Final = date(2026, 11, 19)


def _grok(
    name: str,
    *aliases: str,
    context: int,
    usd: tuple[float, float, float],
    reasons: bool = True,
    **others: Any,
) -> Model:
    """Describe a model; prices are those of fresh input, cached input and output."""
    return Model(
        name=name,
        aliases=aliases,
        context_tokens=context,
        endpoints=("responses", "chat"),
        reasons=reasons,
        input_usd=usd[0],
        cached_usd=usd[1],
        output_usd=usd[2],
        **others,
    )


_GROK_4_5: Final[dict[str, Any]] = {"context": 500_000, "stop": False, "default_effort": "high"}
_GROK_4_20: Final[dict[str, Any]] = {"context": 1_000_000, "usd": (1.25, 0.20, 2.50)}
_GONE: Final[dict[str, Any]] = {"penalties": True, "reasons": False, "retired_on": _REDIRECTED}

BUILT_IN: Final = Catalogue(
    [
        _grok("grok-4.7", usd=(2, 0.50, 6), efforts=_TO_XHIGH, **_GROK_4_5),
        _grok("grok-4.6", usd=(2, 0.50, 6), efforts=_TO_XHIGH, **_GROK_4_5),
        _grok("grok-4.5", "grok-build-latest", usd=(2, 0.30, 6), efforts=_STANDARD, **_GROK_4_5),
        _grok(
            "grok-4.3",
            # Redirected since 2026-05-15, and billed as this one.
            *("grok-4", "grok-4-0709", "grok-4-fast", "grok-4-fast-reasoning"),
            *("grok-4-fast-non-reasoning", "grok-4-1-fast", "grok-4-1-fast-reasoning"),
            *("grok-4-1-fast-non-reasoning", "grok-3"),
            context=1_000_000,
            usd=(1.25, 0.20, 2.50),
            efforts=("none", *_STANDARD),
            default_effort="low",
        ),
        _grok(
            "grok-4.20-0309-reasoning",
            *("grok-4.20", "grok-4.20-beta", "grok-4.20-reasoning"),
            efforts=(),
            **_GROK_4_20,
        ),
        _grok(
            "grok-4.20-0309-non-reasoning",
            "grok-4.20-non-reasoning",
            efforts=(),
            reasons=False,
            **_GROK_4_20,
        ),
        _grok(
            "grok-4.20-multi-agent-0309",
            "grok-4.20-multi-agent",
            efforts=_TO_XHIGH,
            **_GROK_4_20,
        ),
        _grok(
            "grok-build-0.1",
            *("grok-code-fast", "grok-code-fast-1"),
            context=256_000,
            usd=(1, 0.20, 2),
            efforts=(),
            retired_on=_END_OF_BUILD,
            replaced_by="grok-4.7",
        ),
        # No longer served; other providers of these weights go by what xAI took then.
        Model(
            name="grok-3-mini",
            efforts=("low", "high"),
            reasons=True,
            stop=False,
            retired_on=_REDIRECTED,
            replaced_by="grok-4.3",
        ),
        *(
            Model(name=name, replaced_by="grok-4.3", **_GONE)
            for name in ("grok-3-beta", "grok-2", "grok-beta")
        ),
    ]
)
"""What is known without asking.

Source: https://docs.x.ai/docs/models, and refusals and announcements recorded up to the date.
"""


def is_xai(base_url: str) -> bool:
    """Tell whether an address is xAI's own, a region's included."""
    return bool(re.match(r"https?://(?:[a-z0-9-]+\.)*x\.ai(?:[:/]|\Z)", base_url, re.IGNORECASE))


def read_list(body: bytes) -> tuple[Model, ...] | None:
    """Read a list of models: xAI's of `/language-models`, or OpenAI's of `/models`.

    Entries without a name are passed over, and so is what is not as it should be in an entry.

    Returns:
        The models in their order, each once; None if it is no list of models.
    """
    try:
        data: Any = msgspec.json.decode(body.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    fields = cast("dict[str, Any]", data)
    listed = fields.get("models", fields.get("data"))
    if not isinstance(listed, list):
        return None
    rows = msgspec.convert(listed, list[Any])
    found: dict[str, Model] = {}
    for row in rows:
        entry = cast("dict[str, Any]", row) if isinstance(row, dict) else {}
        name = entry.get("id")
        if isinstance(name, str) and name:
            found.setdefault(name, _listed(name, entry))
    return tuple(found.values()) if found or not rows else None


def _listed(name: str, row: Mapping[str, Any]) -> Model:
    """Return what an entry of a list says.

    Prices are US cents per 100 million tokens. A length of the context and efforts are listed by
    some hosts only.
    """
    abilities = row.get("capabilities")
    told = cast("dict[str, Any]", abilities) if isinstance(abilities, dict) else {}
    efforts = _names(told.get("reasoning_effort"))
    return Model(
        name=name,
        aliases=_names(row.get("aliases")) or (),
        context_tokens=_whole(row.get("context_length")) or _whole(row.get("max_prompt_length")),
        efforts=efforts,
        reasons=True if efforts else None,
        input_usd=_usd(row.get("prompt_text_token_price")),
        cached_usd=_usd(row.get("cached_prompt_text_token_price")),
        output_usd=_usd(row.get("completion_text_token_price")),
        from_provider=True,
    )


def _names(value: Any) -> tuple[str, ...] | None:
    if not isinstance(value, list):
        return None
    names = msgspec.convert(value, list[Any])[:_MOST_NAMES]
    return tuple(it for it in names if isinstance(it, str) and it)


def _whole(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _usd(value: Any) -> float | None:
    """Return dollars per million tokens."""
    return value / 10_000 if type(value) in {int, float} and 0 <= value < 1e15 else None
