"""xAI's error responses: texts, statuses and the spellings of their bodies."""

from collections.abc import Mapping
from typing import Final

import msgspec

from turnline.ops.simulator.config import ErrorStyle

JSON: Final = "application/json"
PLAIN: Final = "text/plain; charset=utf-8"
TEAM_ID: Final = "0a4cd4a7-7b57-4f3c-9d1c-5f7c2f3e8a11"
KEY_ID: Final = "5b1f3a52-3c0b-4f6e-8f57-0f6c2d9a7e42"

_SENTENCES: Final[Mapping[str, str]] = {
    "invalid-argument": "Client specified an invalid argument",
    "not-found": "Some requested entity was not found",
    "resource-exhausted": "Some resource has been exhausted",
    "permission-denied": "The caller does not have permission to execute the specified operation",
    "failed-precondition": ("The system is not in a state required for the operation's execution"),
    "unavailable": "The service is currently unavailable",
    "internal": "Internal error",
    "unauthenticated:no-credentials": (
        "The request does not have valid authentication credentials for the operation"
    ),
}


class ApiError(msgspec.Struct, frozen=True, kw_only=True):
    """An error response before it is spelled."""

    status: int
    message: str
    code: str | None = None
    """Kebab spelling. None: there is no `code` key."""
    bare: str | None = None
    """Content type of a body that is nothing but the message. None: the usual envelope."""
    has_request_id: bool = True
    """A refused key is turned away so early that there is no request id."""

    def body(self, style: ErrorStyle) -> tuple[str, bytes]:
        """Content type and body."""
        if self.bare == JSON:
            return JSON, msgspec.json.encode(self.message)
        if self.bare is not None:
            return self.bare, self.message.encode()
        return JSON, msgspec.json.encode(self.envelope(style))

    def envelope(self, style: ErrorStyle) -> Mapping[str, object]:
        """The error as a JSON object."""
        if style is ErrorStyle.NESTED:
            kind = "invalid_request_error" if self.status < 500 else "server_error"
            code = self.code or "error"
            return {"error": {"message": self.message, "type": kind, "param": None, "code": code}}
        if self.code is None:
            return {"error": self.message}
        if style is ErrorStyle.SENTENCE:
            return {"code": _SENTENCES.get(self.code, self.code), "error": self.message}
        return {"code": self.code, "error": self.message}


def invalid(message: str) -> ApiError:
    """The request is refused for what it says."""
    return ApiError(status=400, code="invalid-argument", message=message)


def bad_key() -> ApiError:
    """A wrong key is a 400, not a 401."""
    message = "Incorrect API key provided. You can obtain an API key from https://console.x.ai."
    return ApiError(status=400, code="invalid-argument", message=message, has_request_id=False)


def no_credentials() -> ApiError:
    """There was no authorization header."""
    return ApiError(
        status=401, code="unauthenticated:no-credentials", message="No credentials presented."
    )


def model_not_found(model: str) -> ApiError:
    """Nobody serves this model."""
    return invalid(f"Model not found: {model}")


def context_too_long(limit_tokens: int, prompt_tokens: int) -> ApiError:
    """The prompt is longer than the model takes."""
    return invalid(
        f"This model's maximum prompt length is {limit_tokens} but the request contains "
        f"{prompt_tokens} tokens."
    )


def unsupported(model: str, parameter: str) -> ApiError:
    """The model refuses a parameter, whatever its value."""
    return invalid(f"Model {model} does not support parameter {parameter}.")


def argument_unsupported(parameter: str) -> ApiError:
    """The other wording of the same refusal."""
    return invalid(f"Argument not supported on this model: {parameter}")


def too_many_requests(model: str, actual: int, limit: int, per: str = "Second") -> ApiError:
    """The rate limit is reached; the dash is U+2014."""
    return ApiError(
        status=429,
        code="resource-exhausted",
        message=(
            f"Too many requests for team {TEAM_ID} and model {model}. Your team's rate limit is"
            f" \u2014 Requests per {per} (actual/limit): {actual}/{limit}. Your rate limit tier is"
            " determined based on your historical API spend. To learn how to increase your rate"
            " limit tier, please visit https://console.x.ai/team/default/rate-limits."
        ),
    )


def too_many_tokens(model: str, actual: int, limit: int) -> ApiError:
    """The token limit is reached."""
    return ApiError(
        status=429,
        code="resource-exhausted",
        message=(
            f"Too many tokens for team {TEAM_ID} and model {model}. Your team's rate limit is"
            f" \u2014 Tokens per Minute (actual/limit): {actual}/{limit}. You can view your team"
            " rate limits at https://console.x.ai."
        ),
    )


def at_capacity() -> ApiError:
    """Everybody wants the model at once."""
    return ApiError(
        status=429,
        code="resource-exhausted",
        message=(
            "The model is currently at capacity due to high demand. Please try again in a few"
            " minutes, or use a higher service tier for priority processing: https://docs.x.ai/"
            "developers/advanced-api-usage/priority-processing"
        ),
    )


def out_of_credits(status: int = 429) -> ApiError:
    """Retrying will not help, although the status may say so."""
    return ApiError(
        status=status,
        code="resource-exhausted" if status == 429 else "permission-denied",
        message=(
            f"Your team {TEAM_ID} has either used all available credits or reached its monthly"
            " spending limit. To continue making API requests, please purchase more credits or"
            " raise your spending limit."
        ),
    )


def live_search_gone() -> ApiError:
    """`search_parameters` of any kind."""
    return ApiError(
        status=410,
        message=(
            "Live search is deprecated. Please switch to the Agent Tools API:"
            " https://docs.x.ai/docs/guides/tools/overview"
        ),
    )


def unsafe(model: str) -> ApiError:
    """The safety check refused the content."""
    return ApiError(
        status=403,
        code="permission-denied",
        message=(
            f"Content violates usage guidelines. Team: {TEAM_ID}, API key ID: {KEY_ID},"
            f" Model: {model}, Failed check: SAFETY_CHECK_TYPE_BIO"
        ),
    )


def undecodable(detail: str) -> ApiError:
    """The types of the body are wrong."""
    message = f"Failed to deserialize the JSON body into the target type: {detail}"
    return ApiError(status=422, message=message, bare=PLAIN)
