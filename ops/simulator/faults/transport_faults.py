"""Scenarios that break the connection, the framing or the timing of a response."""

from collections.abc import Callable, Mapping
from typing import Final

from turnline.ops.simulator.faults.response_plan import (
    Action,
    ActionKind,
    Coding,
    Frame,
    FrameKind,
    Framing,
    Plan,
    Position,
    Slicing,
    Where,
)
from turnline.ops.simulator.faults.scenario import BadScenario, Scenario
from turnline.ops.simulator.faults.scenario_entry import Effect
from turnline.ops.simulator.faults.sse_faults import place

TransportRun = Callable[[Plan, Scenario], None]
"""Changes a plan in place."""

_FIN: Final = Action(kind=ActionKind.FIN)
_RST: Final = Action(kind=ActionKind.RST)
_MID: Final = "tokens:3"


def _stop(plan: Plan, at: Position, *actions: Action) -> None:
    """End the response here by an action; what would have followed is lost."""
    if at.where is Where.BEFORE_HEADERS:
        plan.before_head.extend(actions)
        plan.truncated = True
    else:
        plan.truncate(plan.index(at), *actions)


def _fin(plan: Plan, scenario: Scenario) -> None:
    """Close in the middle of the next event, or between two events with `mid=0`."""
    at = place(scenario, _MID)
    if at.where is Where.BEFORE_HEADERS or not scenario.flag("mid", default=True):
        _stop(plan, at, _FIN)
        return
    index = plan.index(at)
    rest = plan.steps[index] if index < len(plan.steps) else None
    plan.truncate(index, _FIN)
    if isinstance(rest, Frame):
        whole = plan.whole(rest)
        half = Frame(kind=FrameKind.OTHER, data=whole[: len(whole) // 2], stamped=False)
        plan.steps.insert(index, half)


def _eof(plan: Plan, scenario: Scenario) -> None:
    """End a body that has no announced end, so that nothing looks wrong."""
    plan.framing = Framing.CLOSE
    _stop(plan, place(scenario, _MID), _FIN)


def _rst(plan: Plan, scenario: Scenario) -> None:
    _stop(plan, place(scenario, _MID), _RST)


def _accept_close(plan: Plan, _scenario: Scenario) -> None:
    plan.before_head.append(_FIN)
    plan.truncated = True


def _garbage(plan: Plan, _scenario: Scenario) -> None:
    plan.before_head += [Action(kind=ActionKind.RAW, data=b"\x16\x03\x01\x02\x00\r\n"), _FIN]
    plan.truncated = True


def _bad_chunk_size(plan: Plan, scenario: Scenario) -> None:
    plan.framing = Framing.CHUNKED
    raw = Action(kind=ActionKind.RAW, data=b"zz\r\nnonsense\r\n")
    _stop(plan, place(scenario, _MID), raw, _FIN)


def _short_length(plan: Plan, scenario: Scenario) -> None:
    plan.framing = Framing.OVERLONG
    at = place(scenario, "before_done")
    if at.where is Where.BEFORE_HEADERS:
        raise BadScenario("short-length: strikes behind the headers only")
    plan.truncate(plan.index(at), _FIN)


def _stall(plan: Plan, scenario: Scenario) -> None:
    """Say nothing, for ever or for `seconds`; with `keepalive` say nothing of meaning."""
    seconds = scenario.real("seconds", 0) or None
    keepalive_s = scenario.real("keepalive", 0) or None
    wait = Action(kind=ActionKind.WAIT, seconds=seconds, keepalive_s=keepalive_s)
    at = place(scenario, _MID)
    if at.where is Where.BEFORE_HEADERS:
        plan.before_head.append(wait)
    else:
        plan.steps.insert(plan.index(at), wait)


def _stall_keepalive(plan: Plan, scenario: Scenario) -> None:
    _stall(plan, Scenario(scenario.name, {"keepalive": "15", **scenario.args}))


def _dribble(plan: Plan, scenario: Scenario) -> None:
    size = max(1, scenario.number("bytes", 1))
    plan.slicing = Slicing(size, scenario.real("ms", 0) / 1000)


def _split_utf8(plan: Plan, scenario: Scenario) -> None:
    plan.slicing = Slicing(None, scenario.real("ms", 0) / 1000)


def _gzip(plan: Plan, _scenario: Scenario) -> None:
    _compress(plan, Coding.GZIP)


def _bad_gzip(plan: Plan, _scenario: Scenario) -> None:
    _compress(plan, Coding.BROKEN_GZIP)


def _compress(plan: Plan, coding: Coding) -> None:
    plan.coding = coding
    if plan.framing is Framing.LENGTH:
        plan.framing = Framing.CHUNKED


def _slow_close(plan: Plan, scenario: Scenario) -> None:
    wait = Action(kind=ActionKind.WAIT, seconds=scenario.real("ms", 1000) / 1000)
    plan.steps.append(wait)


def _ignore_disconnect(plan: Plan, _scenario: Scenario) -> None:
    plan.ignores_disconnect = True


def _idle_close(plan: Plan, scenario: Scenario) -> None:
    """Close the kept connection: after `ms`, or when the next request comes with `on=next`."""
    match scenario.text("on", "time"):
        case "time":
            plan.idle_close_s = scenario.real("ms", 10) / 1000
        case "next":
            plan.closes_on_next = True
        case _:
            raise BadScenario("idle-close: on is one of time, next")


def _close(plan: Plan, _scenario: Scenario) -> None:
    plan.closes = True


def _content_type(plan: Plan, scenario: Scenario) -> None:
    plan.headers = [pair for pair in plan.headers if pair[0] != "content-type"]
    value = scenario.text("value", "text/plain")
    if value != "none":
        plan.headers.append(("content-type", value))


_AT: Final = ("at", "after")

TRANSPORT: Final[Mapping[str, Effect[TransportRun]]] = {
    "fin": Effect(_fin, (*_AT, "mid"), "close in the middle of an event (mid=0: between two)"),
    "eof": Effect(_eof, _AT, "end early in a way that looks like a proper end"),
    "rst": Effect(_rst, _AT, "reset the connection"),
    "accept-close": Effect(_accept_close, (), "take the request and close"),
    "garbage": Effect(_garbage, (), "bytes that are not HTTP instead of a head"),
    "bad-chunk-size": Effect(_bad_chunk_size, _AT, "a chunk size that is no number"),
    "short-length": Effect(_short_length, _AT, "fewer bytes than content-length says"),
    "stall": Effect(
        _stall, (*_AT, "seconds", "keepalive"), "silence, for ever or for some seconds"
    ),
    "stall-keepalive": Effect(
        _stall_keepalive, (*_AT, "seconds", "keepalive"), "nothing but keep-alive comments"
    ),
    "dribble": Effect(_dribble, ("bytes", "ms"), "few bytes at a time"),
    "split-utf8": Effect(_split_utf8, ("ms",), "segments that end inside characters"),
    "gzip": Effect(_gzip, (), "a compressed body"),
    "bad-gzip": Effect(_bad_gzip, (), "a body that claims to be compressed"),
    "slow-close": Effect(_slow_close, ("ms",), "the end of the body comes late"),
    "ignore-disconnect": Effect(_ignore_disconnect, (), "go on although the client has gone"),
    "idle-close": Effect(
        _idle_close, ("ms", "on"), "close the kept connection while idle, or on=next request"
    ),
    "close": Effect(_close, (), "close the connection behind the response, as announced"),
    "content-type": Effect(_content_type, ("value",), "another content type, or none"),
}
