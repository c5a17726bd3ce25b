"""Scenarios that spoil the event stream: error frames, malformed events, misplaced reports."""

from collections.abc import Callable, Mapping
from typing import Final, cast

import msgspec

from turnline.ops.simulator.faults.response_plan import Frame, FrameKind, Plan, Position, position
from turnline.ops.simulator.faults.scenario import BadScenario, Scenario
from turnline.ops.simulator.faults.scenario_entry import Effect
from turnline.ops.simulator.model.error_bodies import at_capacity
from turnline.ops.simulator.model.stream_frames import DONE
from turnline.ops.simulator.model.usage import Usage

PlanRun = Callable[[Plan, Scenario, Usage], None]
"""Changes a plan in place; the usage is the one that the answer reports."""

_with = msgspec.structs.replace
_encode: Final = msgspec.json.encode
Json = dict[str, object]


def place(scenario: Scenario, default: str) -> Position:
    """Where the scenario is to strike: `at=`, or `after=N` tokens.

    Raises:
        BadPosition: `at` is no position.
    """
    if "after" in scenario.args:
        return position(f"tokens:{scenario.number('after', 0)}")
    return position(scenario.text("at", default))


def _event(payload: object) -> bytes:
    return b"data: " + _encode(payload) + b"\n\n"


def _error_frame(plan: Plan, scenario: Scenario, _usage: Usage) -> None:
    message = scenario.text("text", at_capacity().message)
    code = scenario.text("code", "resource-exhausted")
    shape = scenario.text("shape", "typed")
    shapes: Mapping[str, bytes] = {
        "flat": _event({"code": code, "error": message}),
        "nested": _event({"error": {"message": message, "type": "server_error", "code": code}}),
        "typed": _event({"type": "error", "error": {"message": message}}),
        "bare": _event({"type": "error", "message": message}),
        "event": b"event: error\n" + _event({"message": message}),
        "event-nested": b"event: error\n" + _event({"error": {"message": message}}),
    }
    if shape not in shapes:
        raise BadScenario(f"{scenario.name}: shape is one of {', '.join(shapes)}")
    at = plan.index(place(scenario, "tokens:3"))
    match scenario.text("then", "end"):
        case "end":
            plan.truncate(at)
        case "done":
            plan.truncate(at, Frame(kind=FrameKind.DONE, data=DONE, stamped=False))
        case "go-on":
            pass
        case _:
            raise BadScenario(f"{scenario.name}: then is one of end, done, go-on")
    plan.insert(at, shapes[shape])


def _put(data: bytes, default: str = "tokens:3") -> PlanRun:
    def run(plan: Plan, scenario: Scenario, _usage: Usage) -> None:
        plan.insert(plan.index(place(scenario, default)), data)

    return run


def _odd_frame(plan: Plan, scenario: Scenario, usage: Usage) -> None:
    values = {"null": b"null", "array": b"[]", "number": b"7", "string": b'"text"'}
    value = scenario.text("value", "null")
    if value not in values:
        raise BadScenario(f"{scenario.name}: value is one of {', '.join(values)}")
    _put(b"data: " + values[value] + b"\n\n")(plan, scenario, usage)


def _truncated_json(plan: Plan, scenario: Scenario, _usage: Usage) -> None:
    """The next event breaks off in its middle, but ends as an event should."""
    at = plan.index(place(scenario, "tokens:3"))
    frame = next((step for step in plan.steps[at:] if isinstance(step, Frame)), None)
    if frame is not None:
        whole = plan.whole(frame)
        plan.rewrite(frame, whole[: len(whole) // 2].rstrip(b"\n") + b"\n\n")


def _template(plan: Plan) -> Json:
    """The first chunk of the plan as an object."""
    for frame in plan.frames():
        if frame.stamped:
            return _decoded(plan.whole(frame))
    raise BadScenario("the answer has no chunk that could be changed")


def _decoded(event: bytes) -> Json:
    return cast(Json, msgspec.json.decode(event.removeprefix(b"data: ")))


def _bent_choices(plan: Plan, scenario: Scenario, usage: Usage) -> None:
    """An extra chunk in which `choices` or the delta is null or missing."""
    shapes: Mapping[str, Json] = {
        "null": {"choices": None},
        "missing": {},
        "delta-null": {"choices": [{"index": 0, "delta": None}]},
        "delta-missing": {"choices": [{"index": 0}]},
    }
    shape = scenario.text("shape", "null")
    if shape not in shapes:
        raise BadScenario(f"{scenario.name}: shape is one of {', '.join(shapes)}")
    chunk = {key: value for key, value in _template(plan).items() if key != "choices"}
    _put(_event({**chunk, **shapes[shape]}))(plan, scenario, usage)


def _unknown_keys(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    extra = b',"output_files":[],"debug_output":{"note":["new"]}}\n\n'
    for frame in plan.frames():
        if frame.stamped and frame.data.endswith(b"}\n\n"):
            frame.data = frame.data.removesuffix(b"}\n\n") + extra


def _bom(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    frames = plan.frames()
    if frames:
        plan.rewrite(frames[0], b"\xef\xbb\xbf" + plan.whole(frames[0]))


def _crlf(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    for frame in plan.frames():
        plan.rewrite(frame, plan.whole(frame).replace(b"\n", b"\r\n"))


def _multiline(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    """Each event spread over several `data:` lines, which readers join by line feeds."""
    for frame in plan.frames():
        whole = plan.whole(frame)
        if frame.stamped:
            head, _, tail = whole.partition(b',"object"')
            head2, _, tail2 = tail.partition(b',"choices"')
            whole = head + b',\ndata: "object"' + head2 + b',\ndata: "choices"' + tail2
            plan.rewrite(frame, whole)


def _no_final_blank(plan: Plan, scenario: Scenario, usage: Usage) -> None:
    """The last event, without `[DONE]` the usage report, is not closed by a blank line."""
    if not scenario.flag("done", default=False):
        _no_done(plan, scenario, usage)
    frames = plan.frames()
    if frames:
        last = frames[-1]
        plan.rewrite(last, plan.whole(last).removesuffix(b"\n\n") + b"\n")


def _no_done(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    plan.steps = [
        step for step in plan.steps if not (isinstance(step, Frame) and step.kind is FrameKind.DONE)
    ]


def _done_first(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    plan.insert(0, DONE)


def _after_done(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    chunk = _template(plan)
    chunk["choices"] = [{"index": 0, "delta": {"content": " late"}}]
    plan.insert(len(plan.steps), _event(chunk))


def _duplicate_finish(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    at = plan.find(FrameKind.FINISH)
    if at < len(plan.steps):
        frame = cast(Frame, plan.steps[at])
        plan.steps.insert(at, _with(frame))


def _usage_before_finish(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    finish, usage = plan.find(FrameKind.FINISH), plan.find(FrameKind.USAGE)
    if usage < len(plan.steps):
        plan.steps.insert(finish, plan.steps.pop(usage))


def _usage_frames(plan: Plan, reports: list[object]) -> None:
    """Put these usage reports in the place of the one; the last one counts."""
    at = plan.find(FrameKind.USAGE)
    if at == len(plan.steps):
        return
    frame = cast(Frame, plan.steps[at])
    chunk = _decoded(plan.whole(frame))
    plan.steps[at : at + 1] = [
        Frame(
            kind=FrameKind.USAGE if is_last else FrameKind.OTHER,
            data=_event({**chunk, "usage": report}),
            stamped=False,
            reports_usage=is_last and report is not None,
        )
        for is_last, report in zip([*[False] * (len(reports) - 1), True], reports, strict=True)
    ]


def _usage_null(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    _usage_frames(plan, [None])


def _two_usages(plan: Plan, _scenario: Scenario, usage: Usage) -> None:
    _usage_frames(plan, [_smaller(usage), usage])


def _decreasing_usage(plan: Plan, _scenario: Scenario, usage: Usage) -> None:
    """A larger report comes before the right one."""
    larger = _with(
        usage,
        completion_tokens=usage.completion_tokens * 2 + 1,
        total_tokens=usage.total_tokens + usage.completion_tokens + 1,
    )
    _usage_frames(plan, [larger, usage])


def _smaller(usage: Usage) -> Usage:
    half = usage.completion_tokens // 2
    return _with(
        usage,
        completion_tokens=half,
        total_tokens=usage.total_tokens - usage.completion_tokens + half,
    )


def _change(key: str, default: str) -> PlanRun:
    """From a position on, another id or model stands in the chunks."""

    def run(plan: Plan, scenario: Scenario, _usage: Usage) -> None:
        at = plan.index(place(scenario, "tokens:3"))
        value = scenario.text("to", default)
        for step in plan.steps[at:]:
            if isinstance(step, Frame) and step.stamped:
                plan.rewrite(step, _event({**_decoded(plan.whole(step)), key: value}))

    return run


_AT: Final = ("at", "after")

SSE: Final[Mapping[str, Effect[PlanRun]]] = {
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
        _bent_choices,
        (*_AT, "shape"),
        "a chunk whose choices are null or missing, or delta-null, delta-missing",
    ),
    "unknown-keys": Effect(_unknown_keys, (), "keys that nobody knows, in every chunk"),
    "bom": Effect(_bom, (), "a byte order mark before the first event"),
    "crlf": Effect(_crlf, (), "CRLF line ends"),
    "multiline": Effect(_multiline, (), "events over several data lines"),
    "no-final-blank": Effect(
        _no_final_blank, ("done",), "the last event (the usage) without its blank line"
    ),
    "no-done": Effect(_no_done, (), "no [DONE]"),
    "done-first": Effect(_done_first, (), "[DONE] before everything"),
    "after-done": Effect(_after_done, (), "content behind [DONE]"),
    "duplicate-finish": Effect(_duplicate_finish, (), "the finish reason twice"),
    "usage-before-finish": Effect(_usage_before_finish, (), "usage before the finish reason"),
    "usage-null": Effect(_usage_null, (), "a usage report that is null"),
    "two-usages": Effect(_two_usages, (), "a smaller usage report before the right one"),
    "decreasing-usage": Effect(_decreasing_usage, (), "a larger usage report before the right one"),
    "id-change": Effect(
        _change("id", "11111111-2222-4333-8444-555555555555"), (*_AT, "to"), "another id mid-stream"
    ),
    "model-change": Effect(
        _change("model", "grok-4.20-0309-reasoning"), (*_AT, "to"), "another model mid-stream"
    ),
}
