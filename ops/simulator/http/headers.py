"""The response headers of api.x.ai."""

import random
import time
from email.utils import formatdate
from typing import Final

from turnline.ops.simulator.config import Profile
from turnline.ops.simulator.faults.response_plan import Headers
from turnline.ops.simulator.model.rate_limits import Limits

_EDGE: Final[Headers] = [
    ("strict-transport-security", "max-age=31536000"),
    ("vary", "origin, access-control-request-method, access-control-request-headers"),
    ("access-control-allow-origin", "*"),
    ("access-control-expose-headers", "*"),
    ("cf-cache-status", "DYNAMIC"),
    ("server", "cloudflare"),
]
_COOKIE: Final = (
    "__cf_bm={}; path=/; expires=Fri, 01-Jan-27 00:00:00 GMT; domain=.x.ai; HttpOnly; Secure;"
    " SameSite=None"
)


def edge_headers(rng: random.Random) -> Headers:
    """What the edge adds to every response."""
    ray = rng.getrandbits(64)
    return [
        ("date", formatdate(time.time(), usegmt=True)),
        *_EDGE,
        ("set-cookie", _COOKIE.format(f"{ray:x}")),
        ("cf-ray", f"{ray:016x}-ORD"),
    ]


def request_id(rng: random.Random, profile: Profile) -> str:
    """An `x-request-id` as the period has it."""
    if profile is Profile.OCT2025:
        return f"00-{rng.getrandbits(128):032x}-{rng.getrandbits(64):016x}-01"
    return uuid_text(rng)


def uuid_text(rng: random.Random) -> str:
    """A random UUID in text form; xAI's have no version bits either."""
    digits = f"{rng.getrandbits(128):032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def answer_headers(
    rng: random.Random,
    profile: Profile,
    limits: Limits,
    *,
    stream: bool,
    response_id: str | None = None,
) -> Headers:
    """Headers of a successful answer; `response_id` is known on `/v1/responses` only.

    Limits are told where they are kept to.
    """
    named = response_id if profile is Profile.OCT2026 else None
    headers: Headers = [
        ("content-type", "text/event-stream" if stream else "application/json"),
        ("x-request-id", named or request_id(rng, profile)),
        ("x-zero-data-retention", "false"),
    ]
    if stream:
        headers.append(("cache-control", "no-cache"))
    if profile.is_modern:
        headers += [
            ("x-data-retention", "general"),
            ("traceparent", f"00-{rng.getrandbits(128):032x}-{rng.getrandbits(64):016x}-01"),
        ]
        rps, tpm = limits
        for what, limit in (("requests", rps and round(rps * 60)), ("tokens", tpm)):
            if limit:
                headers += [
                    (f"x-ratelimit-limit-{what}", str(limit)),
                    (f"x-ratelimit-remaining-{what}", str(limit)),
                ]
    return headers + edge_headers(rng)


def metric_headers(ttft_s: float, mean_itl_s: float, total_s: float) -> Headers:
    """Timings that are told when an answer is not streamed."""
    return [
        ("x-metrics-ttft-ms", f"{ttft_s * 1000:.1f}"),
        ("x-metrics-mean-itl-ms", f"{mean_itl_s * 1000:.1f}"),
        ("x-metrics-e2e-ms", f"{total_s * 1000:.1f}"),
    ]
