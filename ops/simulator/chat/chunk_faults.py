"""Scenarios that change the chunks of a stream: bent, misplaced, in shapes of other servers."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

import msgspec

from turnline.ops.simulator.faults.response_plan import DONE, Frame, FrameKind, Plan, event, place
from turnline.ops.simulator.faults.scenario import BadScenario, Scenario
from turnline.ops.simulator.model.usage import Usage

PlanRun = Callable[[Plan, Scenario, Usage], None]
"""Changes a plan in place; the usage is the one that the answer reports."""

Json = dict[str, Any]
_with = msgspec.structs.replace
_PIECE: Final = "and so on, " * 6_000
"""About 64 KiB."""


def _decoded(plan: Plan, frame: Frame) -> Json:
    return cast("Json", msgspec.json.decode(plan.whole(frame).removeprefix(b"data: ")))


def _chunks(plan: Plan, at: int = 0) -> Iterator[tuple[Frame, Json]]:
    """Yield the frames with a chunk in them from a step on, and the chunks."""
    for step in plan.steps[at:]:
        if isinstance(step, Frame) and step.stamped:
            yield step, _decoded(plan, step)


def _first_chunk(plan: Plan) -> Json:
    for _, chunk in _chunks(plan):
        return chunk
    raise BadScenario("the answer has no chunk that could be changed")


def _delta(chunk: Json) -> Json:
    return cast("Json", chunk["choices"][0].get("delta") or {}) if chunk.get("choices") else {}


def bent_choices(plan: Plan, scenario: Scenario, _usage: Usage) -> None:
    """Put in a chunk in which `choices` or the delta is null or missing."""
    shapes: Mapping[str, Json] = {
        "null": {"choices": None},
        "missing": {},
        "delta-null": {"choices": [{"index": 0, "delta": None}]},
        "delta-missing": {"choices": [{"index": 0}]},
    }
    shape = shapes[scenario.choice("shape", "null", shapes)]
    chunk = _first_chunk(plan)
    del chunk["choices"]
    plan.insert(plan.index(place(scenario)), event({**chunk, **shape}))


def unknown_keys(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    """Give every chunk keys that nobody knows."""
    extra = b',"output_files":[],"debug_output":{"note":["new"]}}\n\n'
    for frame in plan.frames():
        if frame.stamped and frame.data.endswith(b"}\n\n"):
            frame.data = frame.data.removesuffix(b"}\n\n") + extra


def multiline(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    """Spread each event over several `data:` lines, which readers join by line feeds."""
    for frame in plan.frames():
        if frame.stamped:
            whole = plan.whole(frame)
            for key in (b',"object"', b',"choices"'):
                whole = whole.replace(key, b",\ndata: " + key[1:], 1)
            plan.rewrite(frame, whole)


def after_done(plan: Plan, _scenario: Scenario, _usage: Usage) -> None:
    """Send content behind `[DONE]`."""
    chunk = {**_first_chunk(plan), "choices": [{"index": 0, "delta": {"content": " late"}}]}
    plan.insert(len(plan.steps), event(chunk))


def usage_reports(plan: Plan, reports: Sequence[Usage | None]) -> None:
    """Put these usage reports in the place of the one; the last one counts."""
    at = plan.find(FrameKind.USAGE)
    if at == len(plan.steps):
        return
    chunk = _decoded(plan, cast("Frame", plan.steps[at]))
    frames = [
        Frame(kind=FrameKind.OTHER, data=event({**chunk, "usage": it}), stamped=False)
        for it in reports
    ]
    frames[-1].kind, frames[-1].reports_usage = FrameKind.USAGE, reports[-1] is not None
    plan.steps[at : at + 1] = frames


def smaller(usage: Usage) -> Usage:
    """Return a usage with half of the visible tokens."""
    half = usage.completion_tokens // 2
    total = usage.total_tokens - usage.completion_tokens + half
    return _with(usage, completion_tokens=half, total_tokens=total)


def larger(usage: Usage) -> Usage:
    """Return a usage with more than twice the visible tokens."""
    more = usage.completion_tokens + 1
    return _with(
        usage,
        completion_tokens=usage.completion_tokens + more,
        total_tokens=usage.total_tokens + more,
    )


def changed(key: str, default: str) -> PlanRun:
    """Let another id or model stand in the chunks from a position on."""

    def run(plan: Plan, scenario: Scenario, _usage: Usage) -> None:
        value = scenario.text("to", default)
        for frame, chunk in _chunks(plan, plan.index(place(scenario))):
            plan.rewrite(frame, event({**chunk, key: value}))

    return run


# --- odd replies: shapes of other servers, and replies without measure ---------------------------


def _instead(deltas: Callable[[int], Sequence[Json]]) -> Callable[[Plan, int], None]:
    """Let the answer consist of these deltas; nothing says that it ends well.

    They are encoded once: a simulator that is busy with megabytes holds up its other callers.
    """

    @functools.lru_cache(maxsize=8)
    def encoded(size: int) -> Sequence[msgspec.Raw]:
        return [msgspec.Raw(msgspec.json.encode(delta)) for delta in deltas(size)]

    def replace(plan: Plan, size: int) -> None:
        first = _first_chunk(plan)
        plan.truncate(0)
        for delta in encoded(size):
            chunk = {**first, "choices": [{"index": 0, "delta": delta}]}
            plan.insert(len(plan.steps), event(chunk))
        plan.insert(len(plan.steps), DONE, FrameKind.DONE)

    return replace


def _parts(plan: Plan, _size: int) -> None:
    """Send the text as a list of parts."""
    for frame, chunk in _chunks(plan):
        delta = _delta(chunk)
        if isinstance(delta.get("content"), str):
            delta["content"] = [{"type": "text", "text": delta["content"]}]
            plan.rewrite(frame, event(chunk))


def _no_finish(plan: Plan, _size: int) -> None:
    """Leave the finish reason out of every chunk."""
    for frame, chunk in _chunks(plan):
        for choice in chunk.get("choices") or ():
            if choice.pop("finish_reason", None) is not None:
                plan.rewrite(frame, event(chunk))


def _surrogates(plan: Plan, _size: int) -> None:
    """Split a character into its surrogate halves over two chunks."""
    at = plan.find(FrameKind.FINISH)
    for half in (rb'"\ude00"', rb'"\ud83d"'):
        plan.insert(at, b'data: {"choices":[{"index":0,"delta":{"content":' + half + b"}}]}\n\n")


def _whole(plan: Plan, _size: int) -> None:
    """Send a whole completion in place of a stream."""
    chunks = [chunk for _, chunk in _chunks(plan)]
    text = "".join(it for chunk in chunks if isinstance(it := _delta(chunk).get("content"), str))
    usage = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    message = {"role": "assistant", "content": text}
    body: Json = {
        **chunks[0],
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        **({"usage": usage[-1]} if usage else {}),
    }
    plan.tell_whole(msgspec.json.encode(body))


def _garbage(plan: Plan, _size: int) -> None:
    """Send frames that are no JSON behind the first chunk."""
    plan.insert(min(1, len(plan.steps)), b"data: {]]}~\n\n" * 3)


def _call(number: int = 0, id_: str = "call_1", name: str = "find", **more: str) -> Json:
    function = {"name": name, **more}
    return {"index": number, "id": id_, "type": "function", "function": function}


def _calling(*calls: Json) -> Json:
    return {"tool_calls": calls}


@_instead
def _endless(size: int) -> Sequence[Json]:
    """Text without an end, up to a size."""
    return [{"content": _PIECE}] * max(1, size // len(_PIECE))


@_instead
def _arguments(size: int) -> Sequence[Json]:
    """A function call whose arguments do not end, up to a size."""
    piece = {"index": 0, "function": {"arguments": _PIECE}}
    return [_calling(_call()), *[_calling(piece)] * max(1, size // len(_PIECE))]


@_instead
def _calls(size: int) -> Sequence[Json]:
    """Thousands of function calls in one response."""
    return [_calling(*(_call(n, f"call_{n}") for n in range(max(1, size // 1_000))))]


@_instead
def _long_names(size: int) -> Sequence[Json]:
    """Ids and names of a length that nobody can store."""
    long = "x" * max(1, size // 10)
    return [_calling(_call(0, long, long))]


@_instead
def _deep(size: int) -> Sequence[Json]:
    """Arguments that are nested thousands of levels deep."""
    depth = max(1, size // 1_000)
    return [_calling(_call(arguments='{"a":' * depth + "1" + "}" * depth))]


SHAPES: Final[Mapping[str, Callable[[Plan, int], None]]] = {
    "parts": _parts,
    "no-finish": _no_finish,
    "surrogates": _surrogates,
    "whole-json": _whole,
    "garbage": _garbage,
    "endless": _endless,
    "arguments": _arguments,
    "calls": _calls,
    "long-names": _long_names,
    "deep": _deep,
}


def odd_reply(plan: Plan, scenario: Scenario, _usage: Usage) -> None:
    """Let the reply be of one of the shapes."""
    shape = SHAPES[scenario.choice("shape", "garbage", SHAPES)]
    if plan.is_stream:
        shape(plan, scenario.number("size", 5 * 1024 * 1024))
