"""Scenarios that break the connection, the framing or the timing of a response."""

from collections.abc import Callable, Mapping
from typing import Final

from turnline.ops.simulator.faults.response_plan import (
    Action,
    ActionKind,
    Coding,
    Frame,
    Framing,
    Plan,
    Position,
    Slicing,
    Where,
    place,
)
from turnline.ops.simulator.faults.scenario import BadScenario, Effect, Scenario

TransportRun = Callable[[Plan, Scenario], None]
"""Changes a plan in place."""

_FIN: Final = Action(kind=ActionKind.FIN)
_START: Final = Position(Where.BEFORE_HEADERS)


def _raw(data: bytes) -> Action:
    return Action(kind=ActionKind.RAW, data=data)


def _set(**values: object) -> TransportRun:
    """Set attributes of the plan."""

    def run(plan: Plan, _scenario: Scenario) -> None:
        for name, value in values.items():
            setattr(plan, name, value)

    return run


def _stopped(*actions: Action, **values: object) -> TransportRun:
    """Set attributes of the plan and end it at the scenario's place."""

    def run(plan: Plan, scenario: Scenario) -> None:
        _set(**values)(plan, scenario)
        plan.stop(place(scenario), *actions)

    return run


def _fin(plan: Plan, scenario: Scenario) -> None:
    """Close in the middle of the next event, or between two events with `mid=0`."""
    at = place(scenario)
    if at.where is Where.BEFORE_HEADERS or not scenario.flag("mid", default=True):
        plan.stop(at, _FIN)
        return
    index = plan.index(at)
    cut = plan.steps[index] if index < len(plan.steps) else None
    plan.truncate(index, _FIN)
    if isinstance(cut, Frame):
        whole = plan.whole(cut)
        plan.insert(index, whole[: len(whole) // 2])


def _short_length(plan: Plan, scenario: Scenario) -> None:
    at = place(scenario, "before_done")
    if at.where is Where.BEFORE_HEADERS:
        raise BadScenario("short-length: strikes behind the headers only")
    plan.framing = Framing.OVERLONG
    plan.stop(at, _FIN)


def _stall(plan: Plan, scenario: Scenario, default_keepalive_s: float = 0) -> None:
    """Say nothing, for ever or for `seconds`; with `keepalive` say nothing of meaning."""
    seconds = scenario.real("seconds", 0) or None
    keepalive_s = scenario.real("keepalive", default_keepalive_s) or None
    wait = Action(kind=ActionKind.WAIT, seconds=seconds, keepalive_s=keepalive_s)
    at = place(scenario)
    if at.where is Where.BEFORE_HEADERS:
        plan.before_head.append(wait)
    else:
        plan.steps.insert(plan.index(at), wait)


def _sliced(plan: Plan, scenario: Scenario) -> None:
    """Write few bytes at a time; `split-utf8` ends each segment inside a character."""
    in_characters = scenario.name == "split-utf8"
    every_bytes = None if in_characters else max(1, scenario.number("bytes", 1))
    plan.slicing = Slicing(every_bytes, scenario.real("ms", 0) / 1000)


def _compressed(coding: Coding) -> TransportRun:
    def run(plan: Plan, _scenario: Scenario) -> None:
        plan.coding = coding
        if plan.framing is Framing.LENGTH:
            plan.framing = Framing.CHUNKED

    return run


def _slow_close(plan: Plan, scenario: Scenario) -> None:
    seconds = scenario.real("ms", 1000) / 1000
    plan.steps.append(Action(kind=ActionKind.WAIT, seconds=seconds))


def _idle_close(plan: Plan, scenario: Scenario) -> None:
    """Close the kept connection: after `ms`, or when the next request comes with `on=next`."""
    if scenario.choice("on", "time", ("time", "next")) == "next":
        plan.closes_on_next = True
    else:
        plan.idle_close_s = scenario.real("ms", 10) / 1000


def _content_type(plan: Plan, scenario: Scenario) -> None:
    value = scenario.text("value", "text/plain")
    plan.set_content_type(None if value == "none" else value)


_AT: Final = ("at", "after")
_STALL: Final = (*_AT, "seconds", "keepalive")

TRANSPORT: Final[Mapping[str, Effect[TransportRun]]] = {
    "fin": Effect(_fin, (*_AT, "mid"), "close in the middle of an event (mid=0: between two)"),
    "eof": Effect(
        _stopped(_FIN, framing=Framing.CLOSE),
        _AT,
        "end early in a way that looks like a proper end",
    ),
    "rst": Effect(_stopped(Action(kind=ActionKind.RST)), _AT, "reset the connection"),
    "accept-close": Effect(
        lambda plan, _: plan.stop(_START, _FIN), (), "take the request and close"
    ),
    "garbage": Effect(
        lambda plan, _: plan.stop(_START, _raw(b"\x16\x03\x01\x02\x00\r\n"), _FIN),
        (),
        "bytes that are not HTTP instead of a head",
    ),
    "bad-chunk-size": Effect(
        _stopped(_raw(b"zz\r\nnonsense\r\n"), _FIN, framing=Framing.CHUNKED),
        _AT,
        "a chunk size that is no number",
    ),
    "short-length": Effect(_short_length, _AT, "fewer bytes than content-length says"),
    "stall": Effect(_stall, _STALL, "silence, for ever or for some seconds"),
    "stall-keepalive": Effect(
        lambda plan, scenario: _stall(plan, scenario, 15), _STALL, "nothing but keep-alive comments"
    ),
    "dribble": Effect(_sliced, ("bytes", "ms"), "few bytes at a time"),
    "split-utf8": Effect(_sliced, ("ms",), "segments that end inside characters"),
    "gzip": Effect(_compressed(Coding.GZIP), (), "a compressed body"),
    "bad-gzip": Effect(_compressed(Coding.BROKEN_GZIP), (), "a body that claims to be compressed"),
    "slow-close": Effect(_slow_close, ("ms",), "the end of the body comes late"),
    "ignore-disconnect": Effect(
        _set(ignores_disconnect=True), (), "go on although the client has gone"
    ),
    "idle-close": Effect(
        _idle_close, ("ms", "on"), "close the kept connection while idle, or on=next request"
    ),
    "close": Effect(
        _set(closes=True), (), "close the connection behind the response, as announced"
    ),
    "content-type": Effect(_content_type, ("value",), "another content type, or none"),
}
