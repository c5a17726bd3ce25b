"""Scenarios that replace the whole response: error bodies, odd content types, redirects."""

import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from typing import Final

from turnline.ops.simulator.config import ErrorStyle
from turnline.ops.simulator.faults.response_plan import Headers, Plan, body_plan
from turnline.ops.simulator.faults.scenario import Effect, Scenario
from turnline.ops.simulator.model import api_errors as errors
from turnline.ops.simulator.model.api_errors import ApiError

HttpRun = Callable[[Scenario, str, ErrorStyle], Plan]
"""Takes the scenario, the model's name and the style of error codes."""

_HTML: Final = (
    "<!DOCTYPE html><html><head><title>api.x.ai | {status}: {text}</title></head>"
    "<body><h1>Error {status}</h1><p>{text}</p><p>cloudflare</p></body></html>"
)
_HTML_TEXTS: Final[Mapping[int, str]] = {
    520: "Web server is returning an unknown error",
    521: "Web server is down",
    522: "Connection timed out",
    523: "Origin is unreachable",
    524: "A timeout occurred",
    525: "SSL handshake failed",
    526: "Invalid SSL certificate",
    530: "Origin DNS error",
}


def error_plan(error: ApiError, style: ErrorStyle, headers: Headers | None = None) -> Plan:
    """Return a response that is nothing but an error."""
    return body_plan(error.status, *error.body(style), headers)


def _retry_after(scenario: Scenario, default: str = "") -> Headers:
    """Return headers for a wish: seconds, milliseconds as `1500ms`, or one of these words."""
    match scenario.text("retry_after", default):
        case "" | "none":
            return []
        case "date":
            return [("retry-after", formatdate(time.time() + 2, usegmt=True))]
        case "huge":
            return [("retry-after", "86400")]
        case "negative":
            return [("retry-after", "-1")]
        case value if value.endswith("ms"):
            return [("retry-after-ms", value.removesuffix("ms"))]
        case value:
            return [("retry-after", value)]


def _of(make: Callable[[Scenario, str], ApiError]) -> HttpRun:
    """Make the scenario of an error from the error, which may depend on the model's name."""

    def run(scenario: Scenario, model: str, style: ErrorStyle) -> Plan:
        error = make(scenario, scenario.text("model", model))
        spelled = ErrorStyle(scenario.choice("style", style, ErrorStyle))
        return error_plan(error, spelled, _retry_after(scenario))

    return run


def _any_status(scenario: Scenario, _model: str) -> ApiError:
    status = scenario.number("code", scenario.number("value", 500))
    code = scenario.text("type") or ("unavailable" if status >= 500 else "invalid-argument")
    return ApiError(status, scenario.text("text", f"Simulated status {status}."), code)


def _html(status: int, text: str, headers: Headers | None = None) -> Plan:
    body = _HTML.format(status=status, text=text)
    return body_plan(status, "text/html; charset=UTF-8", body.encode(), headers)


def _html_status(scenario: Scenario, _model: str, _style: ErrorStyle) -> Plan:
    status = scenario.number("code", scenario.number("value", 522))
    return _html(status, _HTML_TEXTS.get(status, "Error"), _retry_after(scenario, "60"))


def _redirect(scenario: Scenario, _model: str, _style: ErrorStyle) -> Plan:
    to = scenario.text("to", "/v1/chat/completions?redirected=1")
    return body_plan(scenario.number("code", 307), "text/plain", b"", [("location", to)])


def _rate_limit(scenario: Scenario, model: str) -> ApiError:
    limit = scenario.number("limit", 2)
    actual, per = scenario.number("actual", limit), scenario.text("per", "second")
    if per == "tokens":
        return errors.too_many_tokens(model, actual, limit)
    return errors.too_many_requests(model, actual, limit, per.capitalize())


_ARGS: Final = ("style", "retry_after", "model")


def _error(make: Callable[[str], ApiError], help_: str) -> Effect[HttpRun]:
    return Effect(_of(lambda _scenario, model: make(model)), _ARGS, help_)


HTTP: Final[Mapping[str, Effect[HttpRun]]] = {
    "status": Effect(
        _of(_any_status),
        ("code", "value", "type", "text", "retry_after", "style"),
        "any status with a flat body, e.g. status=503",
    ),
    "html": Effect(
        _html_status, ("code", "value", "retry_after"), "a Cloudflare 52x page, e.g. html=524"
    ),
    "ok-json": Effect(
        _of(
            lambda scenario, _: ApiError(
                200, scenario.text("text", "Timed out waiting for first token"), "unavailable"
            )
        ),
        ("text", "style"),
        "200 with a JSON error although streaming",
    ),
    "ok-html": Effect(lambda _, __, ___: _html(200, "Please wait"), (), "200 with a HTML page"),
    "ok-empty": Effect(
        lambda _, __, ___: body_plan(200, "text/event-stream", b""), (), "200 with an empty stream"
    ),
    "redirect": Effect(_redirect, ("to", "code"), "307 to another address"),
    "bad-key": _error(lambda _: errors.BAD_KEY, "400 for a wrong key"),
    "no-credentials": _error(lambda _: errors.NO_CREDENTIALS, "401 for no key"),
    "model-not-found": _error(errors.model_not_found, "400 for an unknown model"),
    "model-no-access": _error(errors.no_access, "404 for an unknown model"),
    "penalty": _error(
        lambda _: errors.argument_unsupported("presencePenalty"),
        "400 for a penalty, first wording",
    ),
    "penalty-model": _error(
        lambda model: errors.unsupported(model, "presencePenalty"),
        "400 for a penalty, second wording",
    ),
    "stop": _error(lambda _: errors.argument_unsupported("stop"), "400 for stop words"),
    "effort": _error(
        lambda model: errors.unsupported(model, "reasoningEffort"), "400 for reasoning_effort"
    ),
    "context-length": _error(
        lambda _: errors.context_too_long(500_000, 637_815), "400 for a prompt that is too long"
    ),
    "tool-choice": _error(lambda _: errors.NO_TOOLS, "400 for tool_choice without tools"),
    "no-content": _error(lambda _: errors.NO_CONTENT, "400 for a message without content"),
    "bad-schema": _error(lambda _: errors.BAD_SCHEMA, "400 for a function schema"),
    "stream-and-deferred": _error(
        lambda _: errors.STREAM_AND_DEFERRED, "400 with a bare JSON string"
    ),
    "safety": _error(errors.unsafe, "403 of the safety check"),
    "no-credits": _error(lambda _: errors.NO_CREDITS, "403 for a team without credits"),
    "live-search": _error(lambda _: errors.LIVE_SEARCH_GONE, "410 for search_parameters"),
    "media-type": _error(lambda _: errors.MEDIA_TYPE, "415 with an empty body"),
    "types": _error(
        lambda _: errors.undecodable("messages[3].content: invalid type: <...>"),
        "422 in plain text",
    ),
    "rate-limit": Effect(
        _of(_rate_limit),
        (*_ARGS, "limit", "actual", "per"),
        "429; retry_after is none, seconds, 1500ms, date, huge or negative;"
        " per is second, minute or tokens",
    ),
    "capacity": _error(lambda _: errors.AT_CAPACITY, "429 for a busy model"),
    "credits": Effect(
        _of(lambda scenario, _: errors.out_of_credits(scenario.number("code", 429))),
        ("code", "retry_after", "style"),
        "429 (or code=403) that retrying cannot help",
    ),
    "unavailable": _error(lambda _: errors.UNAVAILABLE, "503"),
    "end-of-life": _error(errors.end_of_life, "404 for a model that is served no more"),
    "not-issued": _error(lambda _: errors.NOT_ISSUED, "400 for reasoning of another caller"),
    "invalid-image": _error(lambda _: errors.INVALID_IMAGE, "400 for an image that cannot be read"),
    "compaction-blob": _error(
        lambda _: errors.BAD_COMPACTION, "400 for a compaction that cannot be read"
    ),
    "too-large-to-store": _error(
        lambda _: errors.TOO_LARGE_TO_STORE, "400 for a response that the server cannot keep"
    ),
}
