"""What a provider allows to a team: requests and tokens, within a second and within a minute.

Limits are a team's and a model's. A refusal names the one that was reached.

Source: https://docs.x.ai/developers/rate-limits, and recorded responses
"""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol, Self

import msgspec

_MOST: Final = 10**15
_REACHED: Final = re.compile(
    r"(Requests|Tokens) per (Second|Minute) \(actual/limit\): *\d+/(\d{1,15})\b"
)
_RULE: Final = re.compile(r"(?P<model>[!-~]{1,200})=(?P<limits>[0-9a-z_+]+|off)")
_LIMIT: Final = re.compile(r"(?P<number>[1-9][0-9_]{0,17})(?P<unit>rps|rpm|tps|tpm)")
_UNITS: Final = {"rps": "rs", "rpm": "rm", "tps": "ts", "tpm": "tm"}


class Grant(msgspec.Struct):
    """The right to one call, within what the provider allows."""

    model: str
    estimate: int = 0
    """Tokens of the prompt, where tokens are limited."""
    tokens: int = 0
    """That are counted for the call: those that it may use."""
    at_ms: float = 0.0
    """When that was counted, by Redis' clock; 0 if it was not told yet."""
    is_counted: bool = False
    waited: bool = False
    """Whether others came first."""
    own: "Grant | None" = None
    """Of what the tenant may use."""


class Caller(NamedTuple):
    """Who asks for a call."""

    name: str
    tenant: str = ""
    is_batch: bool = False

    @property
    def lane(self) -> str:
        """By which it stands in line, as `lane` of a conversation."""
        return f"{'b' if self.is_batch else 'i'}:{self.tenant}"


class ProviderLimits(msgspec.Struct, frozen=True):
    """What may be used of one model; None where nobody says."""

    rs: int | None = None
    """Requests per second."""
    rm: int | None = None
    """Requests per minute."""
    ts: int | None = None
    """Tokens per second: those of prompts and of replies."""
    tm: int | None = None
    """Tokens per minute."""

    def __str__(self) -> str:
        return ";".join(f"{it}={v}" for it in self.__struct_fields__ if (v := getattr(self, it)))

    @property
    def of_tokens(self) -> bool:
        """Whether tokens are limited."""
        return bool(self.ts or self.tm)

    @property
    def pace_s(self) -> float:
        """Time in which one more of what is limited may be used, seconds."""
        paces = ((1, self.rs), (60, self.rm), (1, self.ts), (60, self.tm))
        return max((span / limit for span, limit in paces if limit), default=0.0)

    @classmethod
    def parse(cls, words: str) -> Self:
        """Return limits from words such as `37rps+10_000_000tpm`.

        Raises:
            ValueError: It is none; the text says what is.
        """
        limits = [_LIMIT.fullmatch(it) for it in words.split("+")]
        if None in limits:
            raise ValueError(
                "expected limits such as `37rps+10_000_000tpm`: numbers with rps, rpm, tps or tpm, "
                "joined by +"
            )
        return cls(**{_UNITS[it["unit"]]: int(it["number"]) for it in limits if it is not None})

    @classmethod
    def read(cls, words: str) -> Self:
        """Return what `str` has made of them."""
        return cls(**{it[:2]: int(it[3:]) for it in words.split(";") if it})


def words_of(headers: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Return what the headers of a response say, requests and tokens, in the provider's words."""
    return headers.get("x-ratelimit-limit-requests"), headers.get("x-ratelimit-limit-tokens")


def announced(requests: str | None, tokens: str | None) -> ProviderLimits:
    """Return what these words of headers mean; both are per minute.

    A second gets its share of the requests: providers limit those, too, and do not tell. xAI lets
    somewhat shorter bursts go; over a minute that changes nothing.
    """
    rpm, tpm = _number(requests), _number(tokens)
    rps = None if rpm is None else max(1, rpm // 60)
    return ProviderLimits(rs=rps, rm=rpm, tm=tpm)


def reached(message: str) -> ProviderLimits | None:
    """Return the limit that a refusal names as reached; None if it names none."""
    found = _REACHED.search(message)
    if found is None or not int(found[3]):
        return None
    return ProviderLimits(**{found[1][0].lower() + found[2][0].lower(): int(found[3])})


def _number(value: str | None) -> int | None:
    if value is None or not value.isdecimal() or not value.isascii():
        return None
    return number if 0 < (number := int(value[:16])) <= _MOST else None


class Rules(Protocol):
    """What an operator has set."""

    def of(self, model: str, /) -> ProviderLimits | None:
        """Return what was set for a model: None if its limits are not to be heeded."""
        ...


class LimitRules(msgspec.Struct, frozen=True):
    """What an operator has set: limits by model, `*` for all others."""

    by_model: Mapping[str, ProviderLimits | None] = {}

    @classmethod
    def read(cls, words: str) -> Self:
        """Read a setting such as `grok-4.3=37rps+10_000_000tpm,*=5rps`; `off` heeds no limit.

        Raises:
            ValueError: It is none; the text says what is.
        """
        rules: dict[str, ProviderLimits | None] = {}
        for word in filter(None, (it.strip() for it in words.split(","))):
            rule = _RULE.fullmatch(word)
            model, limits = rule.group("model", "limits") if rule is not None else ("", "")
            try:
                rules[model] = None if limits == "off" else ProviderLimits.parse(limits)
            except ValueError:
                raise ValueError(
                    "expected MODEL=LIMITS, separated by commas, such as "
                    "`grok-4.3=37rps+10_000_000tpm,*=5rps`: numbers with rps, rpm, tps or tpm, "
                    "joined by +, or `off`; `*` is all other models"
                ) from None
        return cls(rules)

    def of(self, model: str) -> ProviderLimits | None:
        """Return what was set for a model: None if its limits are not to be heeded."""
        return self.by_model.get(model, self.by_model.get("*", ProviderLimits()))
