"""xAI's error responses: statuses, texts and the spellings of their bodies."""

from collections.abc import Collection, Mapping
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
    "failed-precondition": "The system is not in a state required for the operation's execution",
    "unavailable": "The service is currently unavailable",
    "internal": "Internal error",
    "unauthenticated:no-credentials": (
        "The request does not have valid authentication credentials for the operation"
    ),
}


class ApiError(msgspec.Struct, frozen=True):
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
        """Return content type and body."""
        if self.bare == JSON:
            return JSON, msgspec.json.encode(self.message)
        if self.bare is not None:
            return self.bare, self.message.encode()
        return JSON, msgspec.json.encode(self.envelope(style))

    def envelope(self, style: ErrorStyle) -> Mapping[str, object]:
        """Return the error as a JSON object."""
        if style is ErrorStyle.NESTED:
            kind = "invalid_request_error" if self.status < 500 else "server_error"
            code = self.code or "error"
            return {"error": {"message": self.message, "type": kind, "param": None, "code": code}}
        if self.code is None:
            return {"error": self.message}
        if style is ErrorStyle.SENTENCE:
            return {"code": _SENTENCES.get(self.code, self.code), "error": self.message}
        return {"code": self.code, "error": self.message}


class Refused(Exception):
    """The request gets an error response."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = error


def check_key(authorization: str | None, api_keys: Collection[str]) -> None:
    """Look at the key of a request; no keys let any in.

    Raises:
        Refused: There is none, or it is not let in.
    """
    if authorization is None:
        raise Refused(NO_CREDENTIALS)
    key = authorization.partition(" ")[2].strip()
    if not key or (api_keys and key not in api_keys):
        raise Refused(BAD_KEY)


def invalid(message: str) -> ApiError:
    """Return the refusal of a request for what it says."""
    return ApiError(400, message, "invalid-argument")


BAD_KEY: Final = ApiError(
    400,
    "Incorrect API key provided. You can obtain an API key from https://console.x.ai.",
    "invalid-argument",
    has_request_id=False,
)
"""A wrong key is a 400, not a 401."""
NO_CREDENTIALS: Final = ApiError(401, "No credentials presented.", "unauthenticated:no-credentials")
NO_TOOLS: Final = invalid("A tool_choice was set on the request but no tools were specified.")
NO_CONTENT: Final = invalid(
    "Invalid request content: Each message must have at least one content element."
)
BAD_SCHEMA: Final = invalid("Invalid request content: Invalid function schema.")
MEDIA_TYPE: Final = ApiError(415, "", bare="")
STREAM_AND_DEFERRED: Final = ApiError(
    400, "A request may either be streaming or deferred, but not both.", bare=JSON
)
NO_CREDITS: Final = ApiError(
    403,
    "Your newly created team doesn't have any credits or licenses yet. You can purchase"
    f" those on https://console.x.ai/team/{TEAM_ID}.",
    "permission-denied",
)
LIVE_SEARCH_GONE: Final = ApiError(
    410,
    "Live search is deprecated. Please switch to the Agent Tools API:"
    " https://docs.x.ai/docs/guides/tools/overview",
)
AT_CAPACITY: Final = ApiError(
    429,
    "The model is currently at capacity due to high demand. Please try again in a few"
    " minutes, or use a higher service tier for priority processing: https://docs.x.ai/"
    "developers/advanced-api-usage/priority-processing",
    "resource-exhausted",
)
UNAVAILABLE: Final = ApiError(
    503,
    "Service temporarily unavailable. The model did not respond to this request.",
    "unavailable",
)


UNREADABLE: Final = invalid(
    "Could not decrypt the provided encrypted_content. Ensure the value is the unmodified"
    " encrypted_content from a previous response."
)
NOT_ISSUED: Final = invalid("The provided encrypted_content was not issued to this caller.")
BAD_COMPACTION: Final = invalid(
    "Could not decode the compaction blob. Ensure it is unmodified from the compact response."
)
INVALID_IMAGE: Final = invalid("Could not process image: the data is not a valid image.")
TOO_LARGE_TO_STORE: Final = invalid("Response is too large to store.")


def end_of_life(model: str) -> ApiError:
    """Return the answer to the name of a model that was taken out of service."""
    return ApiError(404, f"The model {model} has reached its end of life.", "not-found")


def model_not_found(model: str) -> ApiError:
    """Return the answer to the name of a model that nobody serves."""
    return invalid(f"Model not found: {model}")


def no_access(model: str) -> ApiError:
    """Return the answer to a team that may not use the model."""
    return ApiError(
        404,
        f"The model {model} does not exist or your team {TEAM_ID} does not have access to it.",
        "not-found",
    )


def no_route(path: str) -> ApiError:
    """Return the answer to a path that nothing is served at."""
    return ApiError(404, f"No handler found on route {path}", "not-found")


def context_too_long(limit_tokens: int, prompt_tokens: int) -> ApiError:
    """Return the refusal of a prompt that is longer than the model takes."""
    return invalid(
        f"This model's maximum prompt length is {limit_tokens} but the request contains "
        f"{prompt_tokens} tokens."
    )


def unsupported(model: str, parameter: str) -> ApiError:
    """Return the refusal of a parameter, whatever its value."""
    return invalid(f"Model {model} does not support parameter {parameter}.")


def argument_unsupported(parameter: str) -> ApiError:
    """Return the other wording of the same refusal."""
    return invalid(f"Argument not supported on this model: {parameter}")


def too_many_requests(model: str, actual: int, limit: int, per: str = "Second") -> ApiError:
    """Return what a reached rate limit says; the dash is U+2014."""
    return ApiError(
        429,
        f"Too many requests for team {TEAM_ID} and model {model}. Your team's rate limit is"
        f" \u2014 Requests per {per} (actual/limit): {actual}/{limit}. Your rate limit tier is"
        " determined based on your historical API spend. To learn how to increase your rate"
        " limit tier, please visit https://console.x.ai/team/default/rate-limits.",
        "resource-exhausted",
    )


def too_many_tokens(model: str, actual: int, limit: int) -> ApiError:
    """Return what a reached token limit says."""
    return ApiError(
        429,
        f"Too many tokens for team {TEAM_ID} and model {model}. Your team's rate limit is"
        f" \u2014 Tokens per Minute (actual/limit): {actual}/{limit}. You can view your team"
        " rate limits at https://console.x.ai.",
        "resource-exhausted",
    )


def out_of_credits(status: int = 429) -> ApiError:
    """Return an error that retrying cannot help, although the status may say so."""
    return ApiError(
        status,
        f"Your team {TEAM_ID} has either used all available credits or reached its monthly"
        " spending limit. To continue making API requests, please purchase more credits or"
        " raise your spending limit.",
        "resource-exhausted" if status == 429 else "permission-denied",
    )


def unsafe(model: str) -> ApiError:
    """Return the refusal of the safety check."""
    return ApiError(
        403,
        f"Content violates usage guidelines. Team: {TEAM_ID}, API key ID: {KEY_ID},"
        f" Model: {model}, Failed check: SAFETY_CHECK_TYPE_BIO",
        "permission-denied",
    )


def undecodable(detail: str) -> ApiError:
    """Return the refusal of a body whose types are wrong."""
    message = f"Failed to deserialize the JSON body into the target type: {detail}"
    return ApiError(422, message, bare=PLAIN)
