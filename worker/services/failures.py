"""Turns what a provider answers instead of a reply into the worker's errors."""

import email.utils
import re
import time
from collections.abc import Mapping
from typing import Final

from turnline.worker.errors import (
    REASONING_REFUSED,
    ContextTooLong,
    ProviderRejected,
    ProviderUnavailable,
    RateLimited,
    Retryable,
    Terminal,
    UnusableReply,
    Words,
)
from turnline.worker.pipeline.shapes import failure_of_body
from turnline.worker.pipeline.stream_events import StreamFailed

RETRY_AFTER_MAX_S: Final = 120.0
"""A longer wait than this is not believed, seconds."""
_MOST_OF_A_MESSAGE: Final = 2_000
"""Characters of a message that are looked at."""

_CREDITS: Final = re.compile(
    r"used all available credits|spending[ -]limit|any credits|credits or licenses"
    r"|insufficient_quota|personal-team-blocked",
    re.IGNORECASE,
)
_SAFETY: Final = re.compile(
    r"violates usage guidelines|SAFETY_CHECK|content_policy|content_filter", re.IGNORECASE
)
_TOO_LONG: Final = re.compile(
    r"maximum prompt length|maximum context length|context_length_exceeded|context window"
    r"|(?:prompt|input|context) is too long|string_above_max_length",
    re.IGNORECASE,
)
_AUTH: Final = re.compile(
    r"incorrect api key|no credentials|bad-credentials|unauthenticated|invalid_api_key",
    re.IGNORECASE,
)
_NO_MODEL: Final = re.compile(
    r"model not found|model_not_found|^The model \S+ (?:does not exist|(?:has been|was|is) "
    r"(?:retired|deprecated|decommissioned|no longer )|has reached its end of life)",
    re.IGNORECASE,
)
_PARAMETER: Final = re.compile(
    r"(?:Argument not supported on this model: "
    r"|(?:does not support|[Uu]nsupported) (?:the )?parameter:? ['\"`]?|does not support `"
    r"|Unrecognized request argument(?: supplied)?: )([A-Za-z][A-Za-z_]{0,40})"
)
_TRANSIENT: Final = re.compile(
    r"at capacity|unavailable|timed? ?out|overload|internal[ _](?:server[ _])?error|server[ _]error"
    r"|bad gateway|try again|^5\d\d ",
    re.IGNORECASE,
)
_OVERLOADED: Final = re.compile(r"at capacity|over_?capacity|overload", re.IGNORECASE)
_RATE: Final = re.compile(
    r"resource-exhausted|too many (?:requests|tokens)|rate limit|rate_limit", re.IGNORECASE
)
_INVALID: Final = re.compile(
    r"invalid-argument|invalid argument|failed-precondition|invalid_request", re.IGNORECASE
)

_KINDS: Final[Mapping[str, re.Pattern[str]]] = {
    code: re.compile("|".join(words), re.IGNORECASE)
    for code, words in {
        REASONING_REFUSED: (
            "encrypted_content",
            "decode the compaction blob",
            "not issued to this caller",
            "items are not persisted",
            r"\bitem with id\b.{0,200}\bnot found",
            r"\bof type ['\"`]?reasoning\b",
            "variant of untagged enum ModelInput",
        ),
        "unsupported_parameter": ("live search is deprecated", "unsupported_parameter"),
        "image_too_large": (
            r"images?\b.*\b(?:too (?:large|big|many)|larger|exceed|at most|maximum|limit)",
            r"(?:too large|maximum|limit|exceed).*\bimages?\b",
        ),
        "image_unreachable": (
            r"(?:fetch|download|retriev|load|access|reach|open)\w*\b.*\bimages?\b",
            r"\bimages?\b.*\b(?:fetch|download|retriev|load|access|reach|not found)",
            "invalid_image_url",
        ),
        "image_unsupported": (r"\bimages?\b", "image_url", r"\bvision\b", "image_parse"),
        "invalid_response_format": ("response_?format", "json_schema", "structured output"),
        "invalid_tool_choice": ("tool_?choice",),
        "invalid_tool_call": (r"arguments (?:to|of|for) (?:a |the )?(?:tool|function)[ _]?call",),
        "too_many_tools": ("too many tools", r"maximum of \d+ (?:tools|functions)"),
        "invalid_tool_schema": (
            r"(?:function|tool)\S*(?: \S+){0,3} schema",
            "schema (?:of|for|in) (?:the )?(?:tool|function)",
            "invalid_function_parameters",
            r"\b(?:tool|function)s?[.\[]\S",
            "(?:function|tool) name",
        ),
        "invalid_messages": (
            r"\bmessages?[.\[]\S",
            "messages? (?:cannot|must|has to|have to|should|with role|order)",
            "content element|must be followed by|preceding message|roles? must|alternat",
            "tool_call_id|(?:last|first) message|unknown role|invalid role",
        ),
    }.items()
}
"""What a request has that the provider refuses, by the words used for it; the first one counts."""


def failure_of_response(
    status: int, headers: Mapping[str, str], body: bytes
) -> Retryable | Terminal:
    """Return the error for a response that is not a reply.

    Being out of credits is never worth a retry, whatever the status; a provider says 402, 403 or
    429 for it. The body's words are kept in `said` alone: they may quote the request.

    Args:
        status: HTTP status; 200 for an error that came as a whole body in place of a stream.
        headers: The response's.
        body: The response's, whatever its type.

    Source: docs.x.ai and recorded error bodies; `Retry-After` as RFC 9110 §10.2.3.
    """
    failure = failure_of_body(body)
    return _with_words(_of_response(failure, status, headers), failure)


def _of_response(
    failure: StreamFailed, status: int, headers: Mapping[str, str]
) -> Retryable | Terminal:
    refused = _refusal(failure, status)
    if refused is not None:
        return refused
    retry_after_s = retry_after(headers)
    if status == 429 and _OVERLOADED.search(f"{failure.code} {failure.message}"):
        return ProviderUnavailable(
            "the provider has no room for the model (HTTP 429)",
            code="overloaded",
            retry_after_s=retry_after_s,
            status=status,
        )
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
        return _in_stream(failure, status)
    code = _STATUS_CODES.get(status) or _kind(failure) or "bad_request"
    return _rejected(code, status, failure)


def lost(error: Exception) -> ProviderUnavailable:
    """Say that the connection failed, naming only the kind of error."""
    kind = type(error).__name__
    return ProviderUnavailable(f"the connection to the provider failed ({kind})", code="connection")


def failure_in_stream(failure: StreamFailed) -> Retryable | Terminal:
    """Return the error for a failure that was reported under HTTP 200.

    What cannot be recognised may be tried again, once: the request was accepted, so it was not
    wrong, and it says nothing of the provider's health.
    """
    return _with_words(_in_stream(failure, 200), failure)


def _in_stream(failure: StreamFailed, status: int) -> Retryable | Terminal:
    refused = _refusal(failure, status)
    if refused is not None:
        return refused
    text = f"{failure.code} {failure.message}"
    transient = _TRANSIENT.search(text)
    if _RATE.search(text) and not _TRANSIENT.search(failure.message):
        return RateLimited("the provider limits the rate (in the stream)", status=status)
    if _INVALID.search(failure.code) or not transient:
        code = _kind(failure) or ("bad_request" if _INVALID.search(failure.code) else "")
        if code:
            return _rejected(code, status, failure)
        return UnusableReply(
            "the provider reported an error of no known kind in place of a reply",
            code="reply_error",
            status=status,
        )
    return ProviderUnavailable(
        "the provider reported an error in place of a reply", code="stream_error", status=status
    )


def _kind(failure: StreamFailed) -> str:
    """Return the code for what a request has that the provider refuses; "" if it does not say."""
    if _PARAMETER.search(failure.message):
        return "unsupported_parameter"
    param, words = (it[:_MOST_OF_A_MESSAGE] for it in (failure.param, failure.message))
    text = f"{failure.code} {param} {words}"
    return next((code for code, pattern in _KINDS.items() if pattern.search(text)), "")


def _with_words(error: Retryable | Terminal, failure: StreamFailed) -> Retryable | Terminal:
    """Let the error carry what the provider said."""
    if failure.code or failure.message:
        said = ": ".join(it[:_MOST_OF_A_MESSAGE] for it in (failure.code, failure.message) if it)
        error.said = Words(said)
    return error


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
    REASONING_REFUSED: "refuses the model's earlier reasoning",
    "auth": "does not accept the API key",
    "permission": "does not permit this request",
    "credits": "reports that credits or the spending limit are used up",
    "safety": "refuses the content",
    "model_not_found": "does not know the model",
    "not_found": "does not know the address",
    "too_large": "finds the request too large",
    "image_too_large": "finds an image too large",
    "image_unreachable": "cannot fetch an image",
    "image_unsupported": "does not take an image",
    "invalid_response_format": "refuses the response format",
    "invalid_tool_choice": "refuses the tool choice",
    "invalid_tool_call": "refuses the arguments of an earlier tool call",
    "too_many_tools": "does not take so many tools",
    "invalid_tool_schema": "refuses the schema of a tool",
    "invalid_messages": "refuses the messages or their order",
    "unsupported_parameter": "does not take a parameter",
    "redirected": "redirects the request, which is not followed",
}


def _rejected(code: str, status: int, failure: StreamFailed) -> ProviderRejected:
    named = _PARAMETER.search(failure.message)
    parameter = named.group(1) if named else None
    words = _WORDS.get(code, "refuses the request")
    if parameter is not None and code == "unsupported_parameter":
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
