"""Rate limits per key and model: requests per second, tokens per minute."""

from collections import deque

from turnline.ops.simulator.model.api_errors import ApiError, too_many_requests, too_many_tokens

_MINUTE_S = 60.0


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
    """Sliding windows, one pair for each key and model."""

    def __init__(self, requests_per_second: float | None, tokens_per_minute: int | None) -> None:
        self._rps = requests_per_second
        self._tpm = tokens_per_minute
        self._requests: dict[tuple[str, str], _Window] = {}
        self._tokens: dict[tuple[str, str], _Window] = {}

    def admit(self, key: str, model: str, prompt_tokens: int, now_s: float) -> ApiError | None:
        """Let a request in and count it, or return the 429 that it gets."""
        slot = (key, model)
        if self._rps is not None:
            window = self._requests.setdefault(slot, _Window(max(1.0, 1 / self._rps)))
            limit = max(1, int(self._rps))
            used = window.prune(now_s)
            if used + 1 > limit:
                return too_many_requests(model, used, limit)
            window.add(1, now_s)
        if self._tpm is not None:
            window = self._tokens.setdefault(slot, _Window(_MINUTE_S))
            used = window.prune(now_s) + prompt_tokens
            if used > self._tpm:
                return too_many_tokens(model, used, self._tpm)
            window.add(prompt_tokens, now_s)
        return None

    def spend(self, key: str, model: str, tokens: int, now_s: float) -> None:
        """Count the tokens of an answer."""
        if self._tpm is not None:
            self._tokens.setdefault((key, model), _Window(_MINUTE_S)).add(tokens, now_s)
