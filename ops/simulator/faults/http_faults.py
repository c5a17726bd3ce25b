"""Scenarios that replace the whole response: error bodies, odd content types, redirects."""

import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from typing import Final

from turnline.ops.simulator.config import ErrorStyle
from turnline.ops.simulator.faults.response_plan import Frame, FrameKind, Headers, Plan
from turnline.ops.simulator.faults.scenario import BadScenario, Scenario
from turnline.ops.simulator.faults.scenario_entry import Effect
from turnline.ops.simulator.model import error_bodies
from turnline.ops.simulator.model.error_bodies import ApiError

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
    """A response that is nothing but an error."""
    content_type, body = error.body(style)
    return body_plan(error.status, content_type, body, headers)


def body_plan(status: int, content_type: str, body: bytes, headers: Headers | None = None) -> Plan:
    """A response with a ready-made body."""
    given: Headers = [("content-type", content_type)] if content_type else []
    return Plan(
        status=status,
        headers=given + (headers or []),
        is_error=True,
        steps=[Frame(kind=FrameKind.BODY, data=body, stamped=False)],
    )


def retry_after(value: str) -> Headers:
    """Headers for a wish: seconds, `date`, `huge`, `negative`, or milliseconds as `1500ms`."""
    match value:
        case "" | "none":
            return []
        case "date":
            return [("retry-after", formatdate(time.time() + 2, usegmt=True))]
        case "huge":
            return [("retry-after", "86400")]
        case "negative":
            return [("retry-after", "-1")]
        case _ if value.endswith("ms"):
            return [("retry-after-ms", value.removesuffix("ms"))]
        case _:
            return [("retry-after", value)]


def _style(scenario: Scenario, default: ErrorStyle) -> ErrorStyle:
    wish = scenario.text("style", default)
    if wish not in set(ErrorStyle):
        raise BadScenario(f"{scenario.name}: style is one of {', '.join(ErrorStyle)}")
    return ErrorStyle(wish)


def _error(make: Callable[[str], ApiError]) -> HttpRun:
    def run(scenario: Scenario, model: str, style: ErrorStyle) -> Plan:
        headers = retry_after(scenario.text("retry_after"))
        return error_plan(make(scenario.text("model", model)), _style(scenario, style), headers)

    return run


def _constant(
    status: int, message: str, code: str | None = None, bare: str | None = None
) -> HttpRun:
    error = ApiError(status=status, message=message, code=code, bare=bare)
    return _error(lambda _model: error)


def _any_status(scenario: Scenario, _model: str, style: ErrorStyle) -> Plan:
    status = scenario.number("code", scenario.number("value", 500))
    code = scenario.text("type") or ("unavailable" if status >= 500 else "invalid-argument")
    message = scenario.text("text", f"Simulated status {status}.")
    error = ApiError(status=status, message=message, code=code)
    headers = retry_after(scenario.text("retry_after"))
    return error_plan(error, _style(scenario, style), headers)


def _html_status(scenario: Scenario, _model: str, _spelling: ErrorStyle) -> Plan:
    status = scenario.number("code", scenario.number("value", 522))
    body = _HTML.format(status=status, text=_HTML_TEXTS.get(status, "Error"))
    headers = retry_after(scenario.text("retry_after", "60"))
    return body_plan(status, "text/html; charset=UTF-8", body.encode(), headers)


def _ok_json(scenario: Scenario, _model: str, style: ErrorStyle) -> Plan:
    message = scenario.text("text", "Timed out waiting for first token")
    error = ApiError(status=200, message=message, code="unavailable")
    return error_plan(error, _style(scenario, style))


def _ok_html(_scenario: Scenario, _model: str, _spelling: ErrorStyle) -> Plan:
    body = _HTML.format(status=200, text="Please wait")
    return body_plan(200, "text/html; charset=UTF-8", body.encode())


def _ok_empty(_scenario: Scenario, _model: str, _spelling: ErrorStyle) -> Plan:
    return body_plan(200, "text/event-stream", b"")


def _redirect(scenario: Scenario, _model: str, _spelling: ErrorStyle) -> Plan:
    to = scenario.text("to", "/v1/chat/completions?redirected=1")
    return body_plan(scenario.number("code", 307), "text/plain", b"", [("location", to)])


def _credits(scenario: Scenario, _model: str, style: ErrorStyle) -> Plan:
    error = error_bodies.out_of_credits(scenario.number("code", 429))
    headers = retry_after(scenario.text("retry_after"))
    return error_plan(error, _style(scenario, style), headers)


def _rate_limit(scenario: Scenario, model: str, style: ErrorStyle) -> Plan:
    limit = scenario.number("limit", 2)
    actual = scenario.number("actual", limit)
    if scenario.text("per", "second") == "tokens":
        error = error_bodies.too_many_tokens(scenario.text("model", model), actual, limit)
    else:
        per = scenario.text("per", "second").capitalize()
        error = error_bodies.too_many_requests(scenario.text("model", model), actual, limit, per)
    headers = retry_after(scenario.text("retry_after"))
    return error_plan(error, _style(scenario, style), headers)


_ARGS: Final = ("style", "retry_after", "model")

HTTP: Final[Mapping[str, Effect[HttpRun]]] = {
    "status": Effect(
        _any_status,
        ("code", "value", "type", "text", "retry_after", "style"),
        "any status with a flat body, e.g. status=503",
    ),
    "html": Effect(
        _html_status, ("code", "value", "retry_after"), "a Cloudflare 52x page, e.g. html=524"
    ),
    "ok-json": Effect(_ok_json, ("text", "style"), "200 with a JSON error although streaming"),
    "ok-html": Effect(_ok_html, (), "200 with a HTML page"),
    "ok-empty": Effect(_ok_empty, (), "200 with an empty stream"),
    "redirect": Effect(_redirect, ("to", "code"), "307 to another address"),
    "bad-key": Effect(_error(lambda _: error_bodies.bad_key()), _ARGS, "400 for a wrong key"),
    "no-credentials": Effect(
        _error(lambda _: error_bodies.no_credentials()), _ARGS, "401 for no key"
    ),
    "model-not-found": Effect(
        _error(error_bodies.model_not_found), _ARGS, "400 for an unknown model"
    ),
    "model-no-access": Effect(
        _error(
            lambda model: ApiError(
                status=404,
                code="not-found",
                message=f"The model {model} does not exist or your team {error_bodies.TEAM_ID} does"
                " not have access to it.",
            )
        ),
        _ARGS,
        "404 for an unknown model",
    ),
    "penalty": Effect(
        _error(lambda _: error_bodies.argument_unsupported("presencePenalty")),
        _ARGS,
        "400 for a penalty, first wording",
    ),
    "penalty-model": Effect(
        _error(lambda model: error_bodies.unsupported(model, "presencePenalty")),
        _ARGS,
        "400 for a penalty, second wording",
    ),
    "stop": Effect(
        _error(lambda _: error_bodies.argument_unsupported("stop")), _ARGS, "400 for stop words"
    ),
    "effort": Effect(
        _error(lambda model: error_bodies.unsupported(model, "reasoningEffort")),
        _ARGS,
        "400 for reasoning_effort",
    ),
    "context-length": Effect(
        _error(lambda _: error_bodies.context_too_long(500_000, 637_815)),
        _ARGS,
        "400 for a prompt that is too long",
    ),
    "tool-choice": Effect(
        _constant(
            400,
            "A tool_choice was set on the request but no tools were specified.",
            "invalid-argument",
        ),
        _ARGS,
        "400 for tool_choice without tools",
    ),
    "no-content": Effect(
        _constant(
            400,
            "Invalid request content: Each message must have at least one content element.",
            "invalid-argument",
        ),
        _ARGS,
        "400 for a message without content",
    ),
    "bad-schema": Effect(
        _constant(400, "Invalid request content: Invalid function schema.", "invalid-argument"),
        _ARGS,
        "400 for a function schema",
    ),
    "stream-and-deferred": Effect(
        _constant(
            400,
            "A request may either be streaming or deferred, but not both.",
            bare=error_bodies.JSON,
        ),
        _ARGS,
        "400 with a bare JSON string",
    ),
    "safety": Effect(_error(error_bodies.unsafe), _ARGS, "403 of the safety check"),
    "no-credits": Effect(
        _constant(
            403,
            "Your newly created team doesn't have any credits or licenses yet. You can purchase"
            f" those on https://console.x.ai/team/{error_bodies.TEAM_ID}.",
            "permission-denied",
        ),
        _ARGS,
        "403 for a team without credits",
    ),
    "live-search": Effect(
        _error(lambda _: error_bodies.live_search_gone()), _ARGS, "410 for search_parameters"
    ),
    "media-type": Effect(_constant(415, "", bare=""), _ARGS, "415 with an empty body"),
    "types": Effect(
        _error(lambda _: error_bodies.undecodable("messages[3].content: invalid type: <...>")),
        _ARGS,
        "422 in plain text",
    ),
    "rate-limit": Effect(
        _rate_limit,
        (*_ARGS, "limit", "actual", "per"),
        "429; retry_after is none, seconds, 1500ms, date, huge or negative;"
        " per is second, minute or tokens",
    ),
    "capacity": Effect(_error(lambda _: error_bodies.at_capacity()), _ARGS, "429 for a busy model"),
    "credits": Effect(
        _credits, ("code", "retry_after", "style"), "429 (or code=403) that retrying cannot help"
    ),
    "unavailable": Effect(
        _constant(
            503,
            "Service temporarily unavailable. The model did not respond to this request.",
            "unavailable",
        ),
        _ARGS,
        "503",
    ),
}
