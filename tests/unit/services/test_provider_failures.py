"""What a provider answers instead of a reply, and the error that becomes of it."""

import json

import pytest

from tests.support.recordings import recorded
from turnline.worker.errors import (
    ContextTooLong,
    ProviderRejected,
    ProviderUnavailable,
    RateLimited,
    Retryable,
    Terminal,
    UnusableReply,
    WorkerError,
)
from turnline.worker.pipeline.stream_events import StreamFailed
from turnline.worker.services.failures import (
    RETRY_AFTER_MAX_S,
    failure_in_stream,
    failure_of_response,
    retry_after,
)

CREDITS = "Your team t has either used all available credits or reached its monthly spending limit."
NO_CREDITS = "Your newly created team doesn't have any credits or licenses yet."
RATE = "Too many requests for team t and model m. Your team's rate limit is — Requests per Second"
CAPACITY = (
    "The model is currently at capacity due to high demand. Please try again in a few minutes"
)
SAFETY = "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO"
LONG = "This model's maximum prompt length is 500000 but the request contains 637815 tokens."
UNAVAILABLE = "The service is currently unavailable"
PENALTY = "Argument not supported on this model: presencePenalty"
END_OF_LIFE = "The model grok-nope has reached its end of life."
GONE = "The model `grok-nope` has been retired. Use grok-4.7."
NO_ACCESS = "The model grok-nope does not exist or your team t does not have access to it."


def flat(code: str, text: str) -> bytes:
    return json.dumps({"code": code, "error": text}, ensure_ascii=False).encode()


def nested(code: str, text: str) -> bytes:
    return json.dumps({"error": {"message": text, "type": "t", "code": code}}).encode()


ROWS: list[tuple[int, bytes, type[WorkerError], str]] = [
    (400, flat("invalid-argument", "Incorrect API key provided."), ProviderRejected, "auth"),
    (
        400,
        flat("invalid-argument", "Model not found: grok-nope"),
        ProviderRejected,
        "model_not_found",
    ),
    (404, flat("not-found", NO_ACCESS), ProviderRejected, "model_not_found"),
    (404, flat("not-found", GONE), ProviderRejected, "model_not_found"),
    (400, flat("invalid-argument", GONE), ProviderRejected, "model_not_found"),
    (404, b"", ProviderRejected, "not_found"),
    (400, flat("invalid-argument", PENALTY), ProviderRejected, "unsupported_parameter"),
    (400, flat("invalid-argument", LONG), ContextTooLong, "context_too_long"),
    (400, nested("context_length_exceeded", "too long"), ContextTooLong, "context_too_long"),
    (
        400,
        b'"A request may either be streaming or deferred, but not both."',
        ProviderRejected,
        "bad_request",
    ),
    (
        401,
        flat("unauthenticated:no-credentials", "No credentials presented."),
        ProviderRejected,
        "auth",
    ),
    (401, b"", ProviderRejected, "auth"),
    (402, b"", ProviderRejected, "credits"),
    (403, flat("permission-denied", CREDITS), ProviderRejected, "credits"),
    (403, flat("permission-denied", NO_CREDITS), ProviderRejected, "credits"),
    (429, flat("resource-exhausted", CREDITS), ProviderRejected, "credits"),
    (429, flat("personal-team-blocked:spending-limit", "x"), ProviderRejected, "credits"),
    (429, nested("insufficient_quota", "x"), ProviderRejected, "credits"),
    (403, flat("permission-denied", SAFETY), ProviderRejected, "safety"),
    (403, flat("permission-denied", "no"), ProviderRejected, "permission"),
    (405, b"", ProviderRejected, "bad_request"),
    (410, b'{"error":"Live search is deprecated."}', ProviderRejected, "unsupported_parameter"),
    (413, b"", ProviderRejected, "too_large"),
    (415, b"", ProviderRejected, "bad_request"),
    (422, b"Failed to deserialize the JSON body", ProviderRejected, "bad_request"),
    (307, b"", ProviderRejected, "redirected"),
    (429, flat("resource-exhausted", RATE), RateLimited, "rate_limited"),
    (429, flat("resource-exhausted", CAPACITY), ProviderUnavailable, "overloaded"),
    (404, flat("not-found", END_OF_LIFE), ProviderRejected, "model_not_found"),
    (429, b"<html>", RateLimited, "rate_limited"),
    (408, b"", ProviderUnavailable, "server_error"),
    (500, b"", ProviderUnavailable, "server_error"),
    (502, b"<html>Bad gateway</html>", ProviderUnavailable, "server_error"),
    (503, flat(UNAVAILABLE, "The model did not respond"), ProviderUnavailable, "server_error"),
    (520, b"<html>", ProviderUnavailable, "server_error"),
    (529, b"", ProviderUnavailable, "server_error"),
    (
        200,
        flat(UNAVAILABLE, "Timed out waiting for first token"),
        ProviderUnavailable,
        "stream_error",
    ),
    (200, flat("denied", CREDITS), ProviderRejected, "credits"),
]


@pytest.mark.parametrize(("status", "body", "error", "code"), ROWS)
def test_responses(status: int, body: bytes, error: type[WorkerError], code: str) -> None:
    """Status and wording decide between trying again and giving up."""
    failure = failure_of_response(status, {}, body)

    assert type(failure) is error
    assert failure.code == code


@pytest.mark.parametrize(
    ("code", "text", "error", "named"),
    [
        ("", CAPACITY, ProviderUnavailable, "stream_error"),
        ("resource-exhausted", RATE, RateLimited, "rate_limited"),
        ("", "Too many tokens for team", RateLimited, "rate_limited"),
        ("", SAFETY, ProviderRejected, "safety"),
        ("", CREDITS, ProviderRejected, "credits"),
        ("", LONG, ContextTooLong, "context_too_long"),
        ("invalid-argument", "x", ProviderRejected, "bad_request"),
        ("internal_error", "x", ProviderUnavailable, "stream_error"),
        ("", "The server had an error, try again", ProviderUnavailable, "stream_error"),
        ("invalid-argument", "Invalid function schema.", ProviderRejected, "invalid_tool_schema"),
        ("", "Invalid function schema.", ProviderRejected, "invalid_tool_schema"),
        ("", "something new", UnusableReply, "reply_error"),
        ("", "", UnusableReply, "reply_error"),
    ],
)
def test_error_frames(code: str, text: str, error: type[WorkerError], named: str) -> None:
    """In a stream the words decide; what is unknown may be tried again."""
    failure = failure_in_stream(StreamFailed(code, text))

    assert type(failure) is error
    assert failure.code == named


REFUSED = [
    ("reasoning_refused", "Could not decode encrypted_content of a reasoning item."),
    ("reasoning_refused", "Item with id 'rs_1' not found. Items are not persisted when `store` is"),
    ("reasoning_refused", "Item 'rs_1' of type 'reasoning' was provided without what followed it."),
    ("invalid_tool_schema", "Invalid request content: Invalid function schema."),
    ("invalid_tool_schema", "The root of the schema of tool 'find' must be an object."),
    ("invalid_tool_schema", "Invalid schema for function 'find': None is not of type 'object'"),
    ("invalid_tool_schema", "tools[0].function.parameters: not a schema"),
    ("invalid_response_format", "Invalid schema for response_format 'x': schema must be an object"),
    ("invalid_response_format", "'json_schema' is not supported here"),
    ("unsupported_parameter", PENALTY),
    ("unsupported_parameter", "Model grok-4.3 does not support parameter presencePenalty."),
    ("unsupported_parameter", "This model does not support `reasoning_effort` value `none`"),
    ("unsupported_parameter", "Unsupported parameter: 'max_tokens' is not supported"),
    ("unsupported_parameter", "Unrecognized request argument supplied: foo"),
    ("invalid_tool_choice", "A tool_choice was set on the request but no tools were specified."),
    ("too_many_tools", "A maximum of 128 tools is allowed per request."),
    ("invalid_tool_call", "The arguments to a tool_call with ID 'c' are not a valid JSON string"),
    ("invalid_messages", "Each message must have at least one content element."),
    ("invalid_messages", "Messages cannot be empty"),
    ("invalid_messages", "messages[3].content: invalid type: <...>"),
    ("invalid_messages", "messages with role 'tool' must be a response to a preceding message"),
    ("invalid_messages", "tool messages must respond to each tool_call_id"),
    ("image_too_large", "Image size exceeds the maximum of 20 MiB"),
    ("image_too_large", "The image is too large: 31457280 bytes"),
    ("image_unreachable", "Failed to fetch the image from the given URL"),
    ("image_unreachable", "Error while downloading the image: 404"),
    ("image_unreachable", "The image could not be retrieved"),
    ("image_unsupported", "Unsupported image format: image/gif"),
    ("image_unsupported", "This model does not support image input"),
    ("context_too_long", LONG),
    ("context_too_long", "This model's maximum context length is 128000 tokens"),
    ("context_too_long", "prompt is too long: 210000 tokens > 200000 maximum"),
]


@pytest.mark.parametrize(("code", "text"), REFUSED)
def test_each_known_kind_of_refusal_has_its_code(code: str, text: str) -> None:
    """In any of the envelopes, and with the words kept where they may be."""
    for body in (flat("invalid-argument", text), nested("invalid_request_error", text)):
        failure = failure_of_response(400, {}, body)
        assert isinstance(failure, Terminal)
        assert failure.code == code
        assert failure.said is not None
        assert text in failure.said.text
        assert text not in f"{failure!r} {failure} {vars(failure)} {failure.said}"


def test_what_an_error_is_about_tells_its_kind() -> None:
    """Some providers name the part of the request beside a message that says little."""
    error = {"message": "Invalid value.", "type": "t", "param": "input[3].encrypted_content"}

    assert failure_of_response(400, {}, json.dumps({"error": error}).encode()).code == (
        "reasoning_refused"
    )


def test_the_providers_words_are_bounded_and_clean() -> None:
    """No control character, no key, and no more than a thousand characters are kept."""
    text = "bad\x1b[31m\x00\u202e\nkey xai-abcdef123456 " + "long " * 10_000
    failure = failure_of_response(400, {}, flat("invalid-argument", text))

    assert failure.said is not None
    said = failure.said.text
    assert said.startswith("invalid-argument: bad [31m key [key] long long")
    assert said.isprintable()
    assert len(said) <= 1_000


DATE = "Sun, 22 Nov 2026 12:00:00 GMT"
LATER = "Sun, 22 Nov 2026 12:00:30 GMT"


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after": LATER, "date": DATE}, 30.0),
        ({"retry-after": DATE, "date": LATER}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "86400"}, RETRY_AFTER_MAX_S),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, RETRY_AFTER_MAX_S),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
    ],
)
def test_retry_after(headers: dict[str, str], wait_s: float | None) -> None:
    """Seconds, milliseconds and dates are understood; nonsense and long waits are not believed."""
    assert retry_after(headers) == wait_s

    failure = failure_of_response(429, headers, b"")
    assert isinstance(failure, Retryable)
    assert failure.retry_after_s == wait_s


def test_a_date_without_a_date_header_uses_the_clock() -> None:
    """Where the response does not say when it was made, our own clock counts."""
    assert retry_after({"retry-after": LATER}, now_s=1795348800.0) == 30.0


@pytest.mark.promise("P10")
def test_errors_keep_the_providers_words_to_themselves() -> None:
    """A body may quote the request: neither text nor attributes of an error hold any of it."""
    secret = "the-user-said-this"
    for status in (200, 400, 401, 403, 404, 413, 422, 429, 500):
        for body in (flat(secret, secret), nested(secret, secret), secret.encode()):
            failure = failure_of_response(status, {"x": secret}, body)
            assert secret not in f"{failure!r} {failure} {vars(failure)}"


def test_a_refused_parameter_is_named() -> None:
    """The name of a parameter is safe to tell, and saves a search."""
    failure = failure_of_response(400, {}, flat("invalid-argument", PENALTY))

    assert isinstance(failure, ProviderRejected)
    assert failure.parameter == "presencePenalty"
    assert "presencePenalty" in str(failure)


@recorded("xai/errors.jsonl")
def test_recorded_errors(path) -> None:
    """Each recorded error body finds its place, and none with credits or keys is tried again."""
    for line in path.read_text().splitlines():
        row = json.loads(line)
        body = row["body"].encode()
        if row["content_type"] == "text/event-stream":
            continue
        failure = failure_of_response(row["status"], {}, body)
        words = row["body"]
        for_good = any(w in words for w in ("credits", "API key provided", "guidelines", "No cred"))
        transient = row["status"] in {200, 429, 503} and not for_good
        assert isinstance(failure, Retryable if transient else Terminal), words
