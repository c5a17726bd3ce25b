"""When to try a turn again: exponential backoff with full jitter, and the provider's wishes."""

import random

BASE_S = 0.5
CAP_S = 30.0
RETRY_AFTER_CAP_S = 120.0


def backoff_s(
    attempt: int, retry_after_s: float | None, *, rng: random.Random | None = None
) -> float:
    """Return the seconds to wait after a failed attempt.

    Args:
        attempt: The one that failed, from 1.
        retry_after_s: What the provider asked for; honoured up to 120 s, and jitter is added to it.
        rng: Source of jitter.

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/ (full jitter)
    """
    ceiling_s = min(CAP_S, BASE_S * 2 ** min(attempt - 1, 16))
    jitter_s = (rng or random).uniform(0, ceiling_s)
    if retry_after_s is None:
        return jitter_s
    return min(max(retry_after_s, 0.0), RETRY_AFTER_CAP_S) + min(jitter_s, 1.0)
