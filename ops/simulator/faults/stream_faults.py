"""Scenarios that spoil the event stream or the usage that it reports."""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from msgspec import UNSET

from turnline.ops.simulator.chat import chunk_faults as chunks
from turnline.ops.simulator.chat.chunk_faults import PlanRun
from turnline.ops.simulator.faults.response_plan import DONE, Frame, FrameKind, Plan, event, place
from turnline.ops.simulator.faults.scenario import Effect, Scenario
from turnline.ops.simulator.model.api_errors import AT_CAPACITY
from turnline.ops.simulator.model.usage import Usage, cached_over_prompt

UsageRun = Callable[[Usage, Scenario], Usage]
_with = msgspec.structs.replace


def _error_frame(plan: Plan, scenario: Scenario, _usage: Usage) -> None:
    message = scenario.text("text", AT_CAPACITY.message)
    code = scenario.text("code", "resource-exhausted")
    shapes: Mapping[str, bytes] = {
        "flat": event({"code": code, "error": message}),
        "nested": event({"error": {"message": message, "type": "server_error", "code": code}}),
        "typed": event({"type": "error", "error": {"message": message}}),
        "bare": event({"type": "error", "message": message}),
        "event": b"event: error\n" + event({"message": message}),
        "event-nested": b"event: error\n" + event({"error": {"message": message}}),
    }
    shape = scenario.choice("shape", "typed", shapes)
    at = plan.index(place(scenario))
    then = scenario.choice("then", "end", ("end", "done", "go-on"))
    if then != "go-on":
        plan.truncate(at)
    if then == "done":
        plan.insert(at, DONE, FrameKind.DONE)
    plan.insert(at, shapes[shape])


def _put(data: bytes) -> PlanRun:
    return lambda plan, scenario, _: plan.insert(plan.index(place(scenario)), data)


def _odd_frame(plan: Plan, scenario: Scenario, usage: Usage) -> None:
    values = {"null": b"null", "array": b"[]", "number": b"7", "string": b'"text"'}
    value = values[scenario.choice("value", "null", values)]
    _put(b"data: " + value + b"\n\n")(plan, scenario, usage)


def _truncated_json(plan: Plan, scenario: Scenario, _usage: Usage) -> None:
    """The next event breaks off in its middle, but ends as an event should."""
    at = plan.index(place(scenario))
    frame = next((step for step in plan.steps[at:] if isinstance(step, Frame)), None)
    if frame is not None:
        whole = plan.whole(frame)
        plan.rewrite(frame, whole[: len(whole) // 2].rstrip(b"\n") + b"\n\n")


def _bom(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    for frame in plan.frames()[:1]:
        plan.rewrite(frame, b"\xef\xbb\xbf" + plan.whole(frame))


def _crlf(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    for frame in plan.frames():
        plan.rewrite(frame, plan.whole(frame).replace(b"\n", b"\r\n"))


def _no_final_blank(plan: Plan, scenario: Scenario, usage: Usage) -> None:
    """The last event, without `[DONE]` the usage report, is not closed by a blank line."""
    if not scenario.flag("done", default=False):
        _no_done(plan, scenario, usage)
    for frame in plan.frames()[-1:]:
        plan.rewrite(frame, plan.whole(frame).removesuffix(b"\n\n") + b"\n")


def _no_done(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    plan.steps = [
        step for step in plan.steps if not (isinstance(step, Frame) and step.kind is FrameKind.DONE)
    ]


def _duplicate_finish(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    at = plan.find(FrameKind.FINISH)
    for step in plan.steps[at : at + 1]:
        plan.steps.insert(at, _with(step))


def _usage_before_finish(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    finish, usage = plan.find(FrameKind.FINISH), plan.find(FrameKind.USAGE)
    if usage < len(plan.steps):
        plan.steps.insert(finish, plan.steps.pop(usage))


_AT: Final = ("at", "after")

STREAM: Final[Mapping[str, Effect[PlanRun]]] = {
    "error-frame": Effect(
        _error_frame,
        (*_AT, "shape", "then", "text", "code"),
        "an error event; shape is flat, nested, typed, bare, event or event-nested;"
        " then is end, done or go-on",
    ),
    "malformed": Effect(
        _put(b"this line has no colon\n\n"), _AT, "a line that is no field of an event"
    ),
    "comment": Effect(_put(b": keepalive\n\n"), _AT, "a keep-alive comment"),
    "truncated-json": Effect(_truncated_json, _AT, "an event whose JSON breaks off"),
    "bad-utf8": Effect(_put(b'data: {"id":"\xff\xfe"}\n\n'), _AT, "an event that is not UTF-8"),
    "odd-frame": Effect(
        _odd_frame, (*_AT, "value"), "an event that is null, array, number or string"
    ),
    "bent-choices": Effect(
        chunks.bent_choices,
        (*_AT, "shape"),
        "a chunk whose choices are null or missing, or delta-null, delta-missing",
    ),
    "unknown-keys": Effect(chunks.unknown_keys, (), "keys that nobody knows, in every chunk"),
    "bom": Effect(_bom, (), "a byte order mark before the first event"),
    "crlf": Effect(_crlf, (), "CRLF line ends"),
    "multiline": Effect(chunks.multiline, (), "events over several data lines"),
    "no-final-blank": Effect(
        _no_final_blank, ("done",), "the last event (the usage) without its blank line"
    ),
    "no-done": Effect(_no_done, (), "no [DONE]"),
    "done-first": Effect(lambda plan, _, __: plan.insert(0, DONE), (), "[DONE] before everything"),
    "after-done": Effect(chunks.after_done, (), "content behind [DONE]"),
    "duplicate-finish": Effect(_duplicate_finish, (), "the finish reason twice"),
    "usage-before-finish": Effect(_usage_before_finish, (), "usage before the finish reason"),
    "usage-null": Effect(
        lambda plan, _, __: chunks.usage_reports(plan, [None]), (), "a usage report that is null"
    ),
    "two-usages": Effect(
        lambda plan, _, usage: chunks.usage_reports(plan, [chunks.smaller(usage), usage]),
        (),
        "a smaller usage report before the right one",
    ),
    "decreasing-usage": Effect(
        lambda plan, _, usage: chunks.usage_reports(plan, [chunks.larger(usage), usage]),
        (),
        "a larger usage report before the right one",
    ),
    "id-change": Effect(
        chunks.changed("id", "11111111-2222-4333-8444-555555555555"),
        (*_AT, "to"),
        "another id mid-stream",
    ),
    "model-change": Effect(
        chunks.changed("model", "grok-4.20-0309-reasoning"),
        (*_AT, "to"),
        "another model mid-stream",
    ),
    "odd-reply": Effect(
        chunks.odd_reply,
        ("shape", "size"),
        f"a reply that few servers send; shape is {', '.join(chunks.SHAPES)};"
        " size (bytes) is that of the ones without measure",
    ),
}

USAGE: Final[Mapping[str, Effect[UsageRun]]] = {
    "cached-over-prompt": Effect(
        lambda usage, scenario: cached_over_prompt(usage, scenario.number("extra", 138)),
        ("extra",),
        "more cached tokens than prompt tokens",
    ),
    "ticks-zero": Effect(lambda usage, _: _with(usage, cost_in_usd_ticks=0), (), "cost 0"),
    "ticks-absent": Effect(lambda usage, _: _with(usage, cost_in_usd_ticks=UNSET), (), "no cost"),
    "total-inconsistent": Effect(
        lambda usage, scenario: _with(
            usage, total_tokens=usage.total_tokens + scenario.number("off", 7)
        ),
        ("off",),
        "a total that is not the sum",
    ),
}
