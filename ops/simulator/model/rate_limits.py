"""Rate limits per key and model: requests per second, tokens per minute."""

from collections import deque
from typing import NamedTuple

from turnline.ops.simulator.config import SimulatorConfig
from turnline.ops.simulator.model.api_errors import (
    ApiError,
    out_of_credits,
    too_many_requests,
    too_many_tokens,
)
from turnline.ops.simulator.model.models import Model

_MINUTE_S = 60.0
_TICKS = 10_000_000_000
"""In a US dollar."""


class Limits(NamedTuple):
    """What is allowed of one model; None: any number."""

    requests_per_second: float | None
    tokens_per_minute: int | None


class _Window:
    """What was used within the last seconds, and how much in all."""

    def __init__(self, length_s: float) -> None:
        self._length_s = length_s
        self._events: deque[tuple[float, int]] = deque()
        self.total = 0

    def add(self, amount: int, now_s: float) -> None:
        self._events.append((now_s, amount))
        self.total += amount

    def prune(self, now_s: float) -> int:
        while self._events and self._events[0][0] <= now_s - self._length_s:
            self.total -= self._events.popleft()[1]
        return self.total


class RateLimiter:
    """Sliding windows, one pair for each key and model; and the credits of each key."""

    def __init__(self, config: SimulatorConfig) -> None:
        self._config = config
        self._credits = None if config.credits_usd is None else config.credits_usd * _TICKS
        self._spent: dict[str, int] = {}
        self._requests: dict[tuple[str, str], _Window] = {}
        self._tokens: dict[tuple[str, str], _Window] = {}

    def of(self, model: Model) -> Limits:
        """Return what is allowed of a model."""
        config = self._config
        if config.published_limits:
            return Limits(model.requests_per_minute / _MINUTE_S, model.tokens_per_minute)
        return Limits(config.requests_per_second, config.tokens_per_minute)

    def admit(self, key: str, model: Model, prompt_tokens: int, now_s: float) -> ApiError | None:
        """Let a request in and count it, or return the 429 that it gets."""
        if self._credits is not None and self._spent.get(key, 0) >= self._credits:
            return out_of_credits()
        slot, (rps, tpm) = (key, model.name), self.of(model)
        if rps is not None:
            window = self._requests.setdefault(slot, _Window(max(1.0, 1 / rps)))
            limit = max(1, int(rps))
            used = window.prune(now_s)
            if used + 1 > limit:
                return too_many_requests(model.name, used, limit)
            window.add(1, now_s)
        if tpm is not None:
            window = self._tokens.setdefault(slot, _Window(_MINUTE_S))
            used = window.prune(now_s) + prompt_tokens
            if used > tpm:
                return too_many_tokens(model.name, used, tpm)
            window.add(prompt_tokens, now_s)
        return None

    def spend(self, key: str, model: Model, tokens: int, cost_ticks: int, now_s: float) -> None:
        """Count the tokens of an answer, and what all of it costs."""
        self._spent[key] = self._spent.get(key, 0) + cost_ticks
        if self.of(model).tokens_per_minute is not None:
            self._tokens.setdefault((key, model.name), _Window(_MINUTE_S)).add(tokens, now_s)
