"""Scenarios that change the events of a response: bent, misplaced, unknown, otherwise ended."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final, cast

import msgspec

from turnline.ops.simulator.faults.response_plan import (
    DONE,
    Action,
    Frame,
    FrameKind,
    Plan,
    event,
    place,
)
from turnline.ops.simulator.faults.scenario import BadScenario, Effect, Scenario
from turnline.ops.simulator.faults.stream_faults import STREAM
from turnline.ops.simulator.model.usage import Usage
from turnline.ops.simulator.responses.event_frames import event_bytes
from turnline.ops.simulator.responses.odd_events import odd_reply
from turnline.ops.simulator.responses.response_json import Json, text_part

EventRun = Callable[[Plan, Scenario, Usage], None]
"""Changes a plan in place; the usage is the one that the answer reports."""

_NUMBER: Final = re.compile(rb'(data: \{"sequence_number":)\d+')
_LATE: Final[Json] = {
    "type": "response.output_text.delta",
    "content_index": 0,
    "delta": " late",
    "item_id": "msg_late",
    "output_index": 0,
    "logprobs": [],
}
_UNKNOWN_ITEM: Final[Json] = {
    "id": "nt_1",
    "type": "new_thing_call",
    "status": "completed",
    "thing": {"size": 1},
}
_NEVER: Final = frozenset({"bent-choices", "usage-before-finish", "two-usages", "decreasing-usage"})
"""Scenarios of chunks that have nothing like them here."""


def event_run(scenario: Scenario) -> EventRun:
    """Find what a scenario does to events, be it of this wire or of both.

    Raises:
        BadScenario: It makes sense in chat only.
    """
    name = scenario.name
    if name in _NEVER:
        raise BadScenario(f"{name} is of chat completions only")
    if name in EVENTS:
        return EVENTS[name].run
    return _TWINS.get(name) or STREAM[name].run


# --- reading and writing events ------------------------------------------------------------------


def _decoded(frame: Frame) -> Json:
    """Return the payload of an event; nothing for a comment or what a fault has made of one."""
    head, _, data = frame.data.partition(b"\ndata: ")
    if not head.startswith(b"event: ") or not data.startswith(b"{"):
        return {}
    try:
        return cast("Json", msgspec.json.decode(data))
    except msgspec.DecodeError:
        return {}


def _events(plan: Plan, at: int = 0) -> Iterator[tuple[Frame, Json]]:
    """Yield the frames with an event in them from a step on, and their payloads."""
    for step in plan.steps[at:]:
        if isinstance(step, Frame) and (payload := _decoded(step)):
            yield step, payload


def _put(plan: Plan, at: int, payload: Json, kind: FrameKind = FrameKind.OTHER) -> None:
    """Put an event before a step and number all events anew."""
    plan.insert(at, event_bytes({"sequence_number": 0, **payload}), kind)
    _number(plan)


def _number(plan: Plan) -> None:
    numbers = itertools.count()
    for frame in plan.frames():
        if _NUMBER.search(frame.data):
            number = next(numbers)
            frame.data = _NUMBER.sub(rb"\g<1>%d" % number, frame.data, count=1)


def _last(plan: Plan) -> tuple[Frame, Json]:
    """Return the event that ends the response.

    Raises:
        BadScenario: Another scenario has taken it away.
    """
    for frame, payload in _events(plan, plan.find(FrameKind.USAGE)):
        return frame, payload
    raise BadScenario("the answer has no end that could be changed")


def _rewrite_last(plan: Plan, **changed: object) -> None:
    frame, payload = _last(plan)
    response = {**payload["response"], **changed}
    frame.data = event_bytes({**payload, "response": response})
    frame.reports_usage = response.get("usage") is not None


def _each(plan: Plan, change: Callable[[Json], Json]) -> None:
    for frame, payload in _events(plan):
        frame.data = event_bytes(change(payload))


def _without(plan: Plan, is_dropped: Callable[[str], bool]) -> None:
    """Take events away by their types; what they carried is told by the next one that is left."""
    dropped = {id(frame) for frame, payload in _events(plan) if is_dropped(payload["type"])}
    tokens = 0
    for frame in plan.frames():
        tokens += frame.tokens
        if id(frame) not in dropped:
            frame.tokens, tokens = tokens, 0
    plan.steps = [step for step in plan.steps if id(step) not in dropped]
    _number(plan)


# --- ends ----------------------------------------------------------------------------------------


def _told_items(plan: Plan) -> tuple[list[Json], Json | None]:
    """Return the items that are done, and the one that has only begun, as far as it is."""
    done: list[Json] = []
    begun: Json | None = None
    for _, payload in _events(plan):
        type_ = payload["type"]
        if type_ == "response.output_item.added":
            begun = {**payload["item"], "status": "incomplete"}
        elif type_ == "response.output_item.done":
            done.append(payload["item"])
            begun = None
        elif begun is not None and type_ == "response.output_text.delta":
            text = "".join(part["text"] for part in begun["content"])
            begun["content"] = [text_part(text + payload["delta"])]
        elif begun is not None and type_ == "response.function_call_arguments.delta":
            begun["arguments"] += payload["delta"]
    return done, begun


def _ended(plan: Plan, scenario: Scenario, type_: str, **changed: object) -> None:
    """Let the response end at the scenario's place, in its way."""
    _, payload = _last(plan)
    plan.truncate(plan.index(place(scenario)))
    done, begun = _told_items(plan)
    if begun is not None and scenario.flag("close", default=True):
        index = len(done)
        closing = {"type": "response.output_item.done", "item": begun, "output_index": index}
        _put(plan, len(plan.steps), closing)
        done.append(begun)
    response = {**payload["response"], "output": done, **changed}
    _put(plan, len(plan.steps), {"type": type_, "response": response}, FrameKind.USAGE)
    last = plan.frames()[-1]
    last.finishes = type_ == "response.incomplete"
    last.reports_usage = response.get("usage") is not None
    plan.truncated = False


def _incomplete(plan: Plan, scenario: Scenario, _usage: Usage) -> None:
    reason = scenario.text("reason", "max_output_tokens")
    _ended(
        plan,
        scenario,
        "response.incomplete",
        status="incomplete",
        incomplete_details={"reason": reason},
    )


def _failed(plan: Plan, scenario: Scenario, _usage: Usage) -> None:
    error = {
        "code": scenario.text("code", "server_error"),
        "message": scenario.text("text", "The model did not respond to this request."),
    }
    has_error = scenario.flag("error", default=True)
    _ended(
        plan,
        scenario,
        "response.failed",
        status="failed",
        usage=None,
        error=error if has_error else None,
    )


def _error_event(plan: Plan, scenario: Scenario, _usage: Usage) -> None:
    code = scenario.text("code", "server_error")
    message = scenario.text("text", "The model did not respond to this request.")
    about = {"code": code, "message": message, "param": None}
    shapes: Mapping[str, bytes] = {
        "flat": b"event: error\n" + event({"type": "error", **about}),
        "nested": b"event: error\n" + event({"type": "error", "status": 400, "error": about}),
        "untyped": event({"error": {"message": message, "type": "api_error"}}),
    }
    at = plan.index(place(scenario))
    shape = shapes[scenario.choice("shape", "flat", shapes)]
    if scenario.choice("then", "end", ("end", "go-on")) == "end":
        plan.truncate(at)
    plan.insert(at, shape)


def _terminal_output(plan: Plan, scenario: Scenario, _usage: Usage) -> None:
    """Let the last event tell another output than the items before it."""
    frame, payload = _last(plan)
    response = payload["response"]
    match scenario.choice("shape", "empty", ("empty", "other", "null", "missing")):
        case "empty":
            response["output"] = []
        case "null":
            response["output"] = None
        case "missing":
            del response["output"]
        case _:
            response["output"] = [_other(item) for item in response["output"]]
    frame.data = event_bytes(payload)


def _other(item: Json) -> Json:
    if item["type"] == "message":
        return {**item, "content": [text_part("Another text.")]}
    return {**item, "arguments": "{}"} if item["type"] == "function_call" else item


def _usage_missing(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    frame, payload = _last(plan)
    del payload["response"]["usage"]
    frame.data, frame.reports_usage = event_bytes(payload), False


def _usage_chat(plan: Plan, _scenario: Scenario, used: Usage) -> None:
    """Report the reasoning beside the output, as chat does."""
    _, payload = _last(plan)
    counted: Json = payload["response"].get("usage") or {}
    _rewrite_last(plan, usage={**counted, "output_tokens": used.completion_tokens})


def _response_done(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    frame, payload = _last(plan)
    frame.data = event_bytes({**payload, "type": "response.done"})


# --- items and order -----------------------------------------------------------------------------


def _same_ids(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    """Give all items one id, the first one's."""
    first = next((it["item"]["id"] for _, it in _events(plan) if "item" in it), "")

    def change(payload: Json) -> Json:
        if "item" in payload:
            payload["item"]["id"] = first
        if "item_id" in payload:
            payload["item_id"] = first
        for item in payload.get("response", {}).get("output", ()):
            item["id"] = first
        return payload

    _each(plan, change)


def _interleaved(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    """Let the events of calls, or of the last two items, take turns."""
    items: dict[int, list[Frame]] = {}
    calls: list[int] = []
    for frame, payload in _events(plan):
        if "output_index" in payload:
            index = payload["output_index"]
            items.setdefault(index, []).append(frame)
            if payload.get("item", {}).get("type") == "function_call" and index not in calls:
                calls.append(index)
    chosen = calls if len(calls) > 1 else sorted(items)[-2:]
    rows = itertools.zip_longest(*(items[index] for index in chosen))
    mixed = [frame for row in rows for frame in row if frame is not None]
    moved = {id(frame) for frame in mixed}
    at = next((n for n, step in enumerate(plan.steps) if id(step) in moved), len(plan.steps))
    plan.steps = [step for step in plan.steps if id(step) not in moved]
    plan.steps[at:at] = mixed
    _number(plan)


def _late_added(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    """Let each item begin behind its first delta."""
    waiting: dict[int, Frame] = {}
    steps: list[Frame | Action] = []
    for step in plan.steps:
        payload = _decoded(step) if isinstance(step, Frame) else {}
        index, type_ = payload.get("output_index", -1), payload.get("type", "")
        if isinstance(step, Frame) and type_ == "response.output_item.added":
            waiting[index] = step
            continue
        if type_ == "response.output_item.done" and index in waiting:
            steps.append(waiting.pop(index))
        steps.append(step)
        if type_.endswith(".delta") and index in waiting:
            steps.append(waiting.pop(index))
    plan.steps = steps
    _number(plan)


def _sequence(plan: Plan, scenario: Scenario, _usage: Usage) -> None:
    shape = scenario.choice("shape", "gap", ("gap", "repeat", "missing"))
    off = {"gap": 5, "repeat": -1, "missing": 0}[shape]
    for frame, payload in _events(plan, plan.index(place(scenario))):
        number = payload.pop("sequence_number", 0)
        head = {} if shape == "missing" else {"sequence_number": number + off}
        frame.data = event_bytes({**head, **payload})


def _unknown_item(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    """Put an item of a type that nobody knows behind all others."""
    _, payload = _last(plan)
    output = payload["response"]["output"]
    at, index = plan.find(FrameKind.USAGE), len(output)
    for type_ in ("done", "added"):
        body = {"item": _UNKNOWN_ITEM, "output_index": index}
        _put(plan, at, {"type": f"response.output_item.{type_}", **body})
    _rewrite_last(plan, output=[*output, _UNKNOWN_ITEM])


def _unknown_event(plan: Plan, scenario: Scenario, _usage: Usage) -> None:
    type_ = scenario.text("type", "response.new_thing.delta")
    _put(plan, plan.index(place(scenario)), {"type": type_, "delta": "?", "output_index": 0})


def _doom_loop(plan: Plan, scenario: Scenario, _usage: Usage) -> None:
    checked = {"type": "response.doom_loop_check", "doom_loop_check": {"triggers": ["repetition"]}}
    _put(plan, plan.index(place(scenario)), checked)


def _event_lines(line: bytes) -> EventRun:
    """Let all events have this in the place of their `event:` line."""

    def run(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
        for frame, _ in _events(plan):
            frame.data = line + frame.data.partition(b"\n")[2]

    return run


# --- scenarios that chat has as well -------------------------------------------------------------


def _unknown_keys(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    _each(plan, lambda payload: {**payload, "obfuscation": "x", "debug_output": {"note": ["new"]}})


def _multiline(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    for frame, _ in _events(plan):
        frame.data = frame.data.replace(b',"type"', b',\ndata: "type"', 1)


def _changed(key: str, default: str) -> EventRun:
    def run(plan: Plan, scenario: Scenario, _usage: Usage) -> None:
        value = scenario.text("to", default)
        for frame, payload in _events(plan, plan.index(place(scenario))):
            if "response" in payload:
                payload["response"][key] = value
                frame.data = event_bytes(payload)

    return run


def _duplicate_terminal(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    frame, _ = _last(plan)  # what the copy reports counts too: the stream may end behind it
    twin = msgspec.structs.replace(frame, kind=FrameKind.OTHER)
    plan.steps.insert(plan.steps.index(frame), twin)
    _number(plan)


_TWINS: Final[Mapping[str, EventRun]] = {
    "unknown-keys": _unknown_keys,
    "multiline": _multiline,
    "after-done": lambda plan, _, __: _put(plan, len(plan.steps), dict(_LATE)),
    "duplicate-finish": _duplicate_terminal,
    "usage-null": lambda plan, _, __: _rewrite_last(plan, usage=None),
    "id-change": _changed("id", "11111111-2222-4333-8444-555555555555"),
    "model-change": _changed("model", "grok-4.20-0309-reasoning"),
    "odd-reply": odd_reply,
}
"""What scenarios of chunks do to events; those that are not here do the same to both."""
_AT: Final = ("at", "after")

EVENTS: Final[Mapping[str, Effect[EventRun]]] = {
    "incomplete": Effect(
        _incomplete,
        (*_AT, "reason", "close"),
        "response.incomplete at a place; close=0 leaves the item that has begun open",
    ),
    "failed": Effect(
        _failed,
        (*_AT, "error", "code", "text", "close"),
        "response.failed at a place; error=0 does not say why",
    ),
    "error-event": Effect(
        _error_event,
        (*_AT, "shape", "then", "code", "text"),
        "an error event; shape is flat, nested or untyped; then is end or go-on;"
        " at=after_headers puts it before response.created",
    ),
    "terminal-output": Effect(
        _terminal_output,
        ("shape",),
        "the last event's output is empty, null, missing or other than the items before it",
    ),
    "usage-missing": Effect(_usage_missing, (), "no usage in the last event"),
    "usage-chat": Effect(_usage_chat, (), "output_tokens without the reasoning, as in chat"),
    "response-done": Effect(_response_done, (), "response.done in place of the last event"),
    "done-marker": Effect(
        lambda plan, _, __: plan.insert(len(plan.steps), DONE, FrameKind.DONE),
        (),
        "[DONE] behind the last event",
    ),
    "no-created": Effect(
        lambda plan, _, __: _without(
            plan, lambda type_: type_ in {"response.created", "response.in_progress"}
        ),
        (),
        "no response.created and response.in_progress",
    ),
    "same-ids": Effect(_same_ids, (), "all items have one id"),
    "interleaved": Effect(_interleaved, (), "the events of parallel items take turns"),
    "done-only": Effect(
        lambda plan, _, __: _without(plan, lambda type_: type_.endswith(".delta")),
        (),
        "no deltas, only what is done",
    ),
    "deltas-only": Effect(
        lambda plan, scenario, _: _without(
            plan,
            lambda type_: (
                type_.endswith(".done")
                and (type_ != "response.output_item.done" or scenario.flag("item", default=True))
            ),
        ),
        ("item",),
        "deltas without done; item=0 lets the items be done",
    ),
    "late-added": Effect(_late_added, (), "each item begins behind its first delta"),
    "sequence": Effect(
        _sequence, (*_AT, "shape"), "sequence numbers with a gap, a repeat, or missing"
    ),
    "unknown-event": Effect(_unknown_event, (*_AT, "type"), "an event of an unknown type"),
    "unknown-item": Effect(_unknown_item, (), "an item of an unknown type"),
    "no-event-line": Effect(_event_lines(b""), (), "no event: lines"),
    "event-mismatch": Effect(_event_lines(b"event: message\n"), (), "event: is not the type"),
    "doom-loop": Effect(_doom_loop, _AT, "response.doom_loop_check"),
}
