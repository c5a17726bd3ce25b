"""What can go wrong in a worker, sorted by what the caller must do about it.

WorkerError(code)
├── Retryable(retry_after_s)     try again later
│   ├── StoreUnavailable         Redis did not answer; a write may or may not have happened
│   └── ProviderUnavailable      5xx, capacity, connection refused or lost, a broken stream
│       ├── RateLimited          429: too many requests or tokens for now
│       ├── Stalled              nothing came in time; tried again at most once in a turn
│       └── UnusableReply        an answer came, and this one cannot be used; not twice in a turn
│           └── Truncated        the stream ended without a finish reason
├── Terminal                     never retry: record, dead-letter, go on with the next turn
│   ├── ContextTooLong           the model refuses a context of this length
│   ├── ProviderRejected         bad request, key, credits, safety, unknown model
│   └── ReplyTooLarge            text, arguments or calls beyond what one response may hold
└── LeaseLost                    neither: somebody else owns the work; stop silently
StartFailed                      the worker cannot start as it is configured

Each error carries a stable `code` for machines and data for the decision. None prints what a user
or a model said, a request or response body, or a key: what the provider said about a failure is in
`said`, which shows itself to nobody but the dead letter.
"""

import re
from typing import Final

REASONING_REFUSED: Final = "reasoning_refused"
"""Code of a call whose earlier reasoning the model could not read."""
_SAID_MAX_CHARS: Final = 1_000
_UNPRINTABLE: Final = re.compile(
    r"[\x00-\x20\x7f-\xa0\xad\u061c\u180e\u200b-\u200f\u2028-\u202f\u2060-\u206f\ud800-\udfff\ufeff"
    r"\ufff9-\uffff]+"
)
_KEY: Final = re.compile(r"\b(?:xai|sk|gsk|pk)-[\w*.-]{6,}|\bBearer \S+", re.IGNORECASE)


class Words:
    """What a provider said about a failure: it may quote the request, and does not print itself."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        """Keep 1,000 characters at most, without control characters and keys."""
        printable = _UNPRINTABLE.sub(" ", text[: 4 * _SAID_MAX_CHARS]).strip()
        self.text = _KEY.sub("[key]", printable)[:_SAID_MAX_CHARS]

    def __repr__(self) -> str:
        return f"Words({len(self.text)} characters)"

    __str__ = __repr__


class WorkerError(Exception):
    """Base of all errors that the worker raises on purpose."""

    code: str = "error"
    """Stable word for events, metrics and dead letters."""
    said: Words | None = None
    """The provider's own words, for the dead letter alone."""

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retry_after_s: float | None = None,
        status: int | None = None,
        parameter: str | None = None,
    ) -> None:
        """Say what happened.

        Args:
            message: May be logged: never user content, bodies or keys.
            code: Replaces the class's `code`; docs/failures.md lists them.
            retry_after_s: After how many seconds the other side wants to be tried again.
            status: HTTP status, where there was one.
            parameter: The request parameter that the model does not take, where it was named.
        """
        super().__init__(message)
        self.code = code or self.code
        self.retry_after_s = retry_after_s
        self.status = status
        self.parameter = parameter


class StartFailed(Exception):
    """The worker cannot start; the text says what to do."""


class Retryable(WorkerError):
    """The same work may succeed later."""

    code = "retryable"


class StoreUnavailable(Retryable):
    """Redis did not answer; a write may or may not have happened."""

    code = "store_unavailable"


class ProviderUnavailable(Retryable):
    """The model's provider did not give an answer that can be used."""

    code = "provider_unavailable"


class RateLimited(ProviderUnavailable):
    """Too many requests or tokens for now."""

    code = "rate_limited"


class Stalled(ProviderUnavailable):
    """Nothing came in time; `code` says which of the four limits ran out."""

    code = "stalled"
    recurs: bool = False
    """Whether the model was at work all the time: the same request would take as long again."""


class UnusableReply(ProviderUnavailable):
    """The provider answered, and this answer cannot be used.

    It says nothing of the provider's health, and the second one of the same code in a turn ends the
    turn. `code` is `malformed_stream` (a frame that cannot be decoded or understood),
    `not_a_stream` (a body that is neither a reply nor an error), `no_final_response` (HTTP 1xx
    again and again) or `reply_error` (an error of no known kind).
    """

    code = "malformed_stream"


class Truncated(UnusableReply):
    """The stream ended without a finish reason: what was received is not the whole answer."""

    code = "truncated"


class Terminal(WorkerError):
    """The same work will fail in the same way again."""

    code = "terminal"


class ContextTooLong(Terminal):
    """The model refuses a context of this length."""

    code = "context_too_long"


class ProviderRejected(Terminal):
    """The provider refused the request itself; `code` says why."""

    code = "bad_request"


class ReplyTooLarge(Terminal):
    """A response holds more than one may; the rest was not read.

    `code` is `reply_too_large` (text, reasoning or the response as a whole), `arguments_too_large`
    or `too_many_calls`.
    """

    code = "reply_too_large"


class LeaseLost(WorkerError):
    """Somebody else owns the work now: stop without writing anything."""

    code = "lease_lost"
