"""Turns what a provider answers instead of a reply into the worker's errors."""

import email.utils
import re
import time
from collections.abc import Mapping
from typing import Final

from worker.errors import (
    ContextTooLong,
    ProviderRejected,
    ProviderUnavailable,
    RateLimited,
    Retryable,
    Terminal,
)
from worker.pipeline.stream import StreamFailed, failure_of_body

RETRY_AFTER_MAX_S: Final = 120.0
"""A longer wait than this is not believed, seconds."""

_CREDITS: Final = re.compile(
    r"used all available credits|spending[ -]limit|any credits|credits or licenses"
    r"|insufficient_quota|personal-team-blocked",
    re.IGNORECASE,
)
_SAFETY: Final = re.compile(
    r"violates usage guidelines|SAFETY_CHECK|content_policy|content_filter", re.IGNORECASE
)
_TOO_LONG: Final = re.compile(
    r"maximum prompt length|maximum context length|context_length_exceeded", re.IGNORECASE
)
_AUTH: Final = re.compile(
    r"incorrect api key|no credentials|bad-credentials|unauthenticated|invalid_api_key",
    re.IGNORECASE,
)
_NO_MODEL: Final = re.compile(
    r"model not found|model_not_found|^The model \S+ does not exist", re.IGNORECASE
)
_PARAMETER: Final = re.compile(
    r"(?:Argument not supported on this model: |does not support parameter |does not support `)"
    r"([A-Za-z][A-Za-z_]{0,40})"
)
_TRANSIENT: Final = re.compile(
    r"at capacity|currently unavailable|temporarily unavailable|timed out|overloaded",
    re.IGNORECASE,
)
_RATE: Final = re.compile(
    r"resource-exhausted|too many (?:requests|tokens)|rate limit|rate_limit", re.IGNORECASE
)
_INVALID: Final = re.compile(
    r"invalid-argument|invalid argument|failed-precondition|invalid_request", re.IGNORECASE
)


def failure_of_response(
    status: int, headers: Mapping[str, str], body: bytes
) -> Retryable | Terminal:
    """Return the error for a response that is not a reply.

    Being out of credits is never worth a retry, whatever the status; a provider says 402, 403 or
    429 for it. Neither code nor message of the body is kept: they may quote the request.

    Args:
        status: HTTP status; 200 for an error that came as a whole body in place of a stream.
        headers: The response's.
        body: The response's, whatever its type.

    Source: docs.x.ai and recorded error bodies; `Retry-After` as RFC 9110 §10.2.3.
    """
    failure = failure_of_body(body)
    refused = _refusal(failure, status)
    if refused is not None:
        return refused
    retry_after_s = retry_after(headers)
    if status == 429:
        return RateLimited(
            "the provider limits the rate (HTTP 429)", retry_after_s=retry_after_s, status=status
        )
    if status in {408, 409, 425} or status >= 500:
        return ProviderUnavailable(
            f"the provider failed (HTTP {status})",
            code="server_error",
            retry_after_s=retry_after_s,
            status=status,
        )
    if status < 300:
        return failure_in_stream(failure, status=status)
    return _rejected(_STATUS_CODES.get(status, "bad_request"), status, failure)


def failure_in_stream(failure: StreamFailed, *, status: int = 200) -> Retryable | Terminal:
    """Return the error for a failure that was reported under HTTP 200.

    What cannot be recognised may be tried again: the request was accepted, so it was not wrong.
    """
    refused = _refusal(failure, status)
    if refused is not None:
        return refused
    text = f"{failure.code} {failure.message}"
    if _RATE.search(text) and not _TRANSIENT.search(failure.message):
        return RateLimited("the provider limits the rate (in the stream)", status=status)
    if _INVALID.search(failure.code):
        return _rejected("bad_request", status, failure)
    return ProviderUnavailable(
        "the provider reported an error in place of a reply", code="stream_error", status=status
    )


def retry_after(headers: Mapping[str, str], *, now_s: float | None = None) -> float | None:
    """Return how long the provider asks to wait, seconds; None if it does not say or is wrong.

    Args:
        headers: The response's, looked up in lower case.
        now_s: Seconds since the epoch; the response's own Date, else the clock, if None.
    """
    wait_s = _number(headers.get("retry-after-ms"), scale=0.001)
    if wait_s is None:
        wait_s = _number(headers.get("retry-after"))
    if wait_s is None:
        until_s = _epoch(headers.get("retry-after"))
        if until_s is None:
            return None
        if now_s is None:
            now_s = _epoch(headers.get("date"))
        wait_s = until_s - (time.time() if now_s is None else now_s)
    if wait_s < 0:
        return None
    return min(wait_s, RETRY_AFTER_MAX_S)


_STATUS_CODES: Final[Mapping[int, str]] = {
    401: "auth",
    402: "credits",
    403: "permission",
    404: "not_found",
    413: "too_large",
    **dict.fromkeys((300, 301, 302, 303, 304, 307, 308), "redirected"),
}


def _refusal(failure: StreamFailed, status: int) -> Terminal | None:  # noqa: PLR0911 - a list
    """Recognise what no retry mends, by the words used for it."""
    text = f"{failure.code} {failure.message}"
    if status == 402 or _CREDITS.search(text):
        return _rejected("credits", status, failure)
    if _SAFETY.search(text):
        return _rejected("safety", status, failure)
    if status >= 500 or status in {408, 429}:
        return None
    if _TOO_LONG.search(text):
        return ContextTooLong("the context is longer than the model takes")
    if status == 401 or _AUTH.search(text):
        return _rejected("auth", status, failure)
    if _NO_MODEL.search(failure.message) or _NO_MODEL.search(failure.code):
        return _rejected("model_not_found", status, failure)
    return None


_WORDS: Final[Mapping[str, str]] = {
    "auth": "does not accept the API key",
    "permission": "does not permit this request",
    "credits": "reports that credits or the spending limit are used up",
    "safety": "refuses the content",
    "model_not_found": "does not know the model",
    "not_found": "does not know the address",
    "too_large": "finds the request too large",
    "redirected": "redirects the request, which is not followed",
}


def _rejected(code: str, status: int, failure: StreamFailed) -> ProviderRejected:
    named = _PARAMETER.search(failure.message)
    parameter = named.group(1) if named else None
    words = _WORDS.get(code, "refuses the request")
    if parameter is not None and code == "bad_request":
        words = f"refuses the parameter {parameter}"
    return ProviderRejected(
        f"the provider {words} (HTTP {status})", code=code, status=status, parameter=parameter
    )


def _number(value: str | None, *, scale: float = 1.0) -> float | None:
    try:
        number = float(value or "") * scale
    except ValueError:
        return None
    return number if number == number else None  # noqa: PLR0124 - "nan" is a float


def _epoch(value: str | None) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(value or "").timestamp()
    except (ValueError, OverflowError):
        return None
