"""Scenarios of replies in shapes that other servers send, and of replies without measure."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import msgspec

from turnline.ops.simulator.faults.response_plan import Frame, FrameKind, Plan
from turnline.ops.simulator.faults.scenario import BadScenario, Scenario
from turnline.ops.simulator.faults.scenario_entry import Effect
from turnline.ops.simulator.faults.sse_faults import SSE, PlanRun
from turnline.ops.simulator.model.stream_frames import DONE
from turnline.ops.simulator.model.usage import Usage

Json = dict[str, Any]
_PIECE: Final = "and so on, " * 6_000
"""About 64 KiB."""


def _chunks(plan: Plan) -> list[tuple[Frame, Json]]:
    """The frames with a chunk in them, and the chunks."""
    found: list[tuple[Frame, Json]] = []
    for frame in plan.frames():
        if frame.stamped:
            chunk = msgspec.json.decode(plan.whole(frame).removeprefix(b"data: "))
            found.append((frame, cast("Json", chunk)))
    return found


def _event(payload: object) -> bytes:
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


def _delta(chunk: Json) -> Json:
    return cast("Json", chunk["choices"][0].get("delta") or {}) if chunk.get("choices") else {}


def _instead(deltas: Callable[[int], Sequence[Json]]) -> Callable[[Plan, int], None]:
    """Let the answer consist of these deltas; nothing says that it ends well.

    They are encoded once: a simulator that is busy with megabytes holds up its other callers.
    """

    @functools.lru_cache(maxsize=8)
    def encoded(size: int) -> Sequence[msgspec.Raw]:
        return [msgspec.Raw(msgspec.json.encode(delta)) for delta in deltas(size)]

    def replace(plan: Plan, size: int) -> None:
        (_, first), *_ = _chunks(plan)
        plan.truncate(0)
        for delta in encoded(size):
            chunk = {**first, "choices": [{"index": 0, "delta": delta}]}
            plan.insert(len(plan.steps), _event(chunk))
        plan.steps.append(Frame(kind=FrameKind.DONE, data=DONE, stamped=False))

    return replace


def _parts(plan: Plan, _size: int) -> None:
    """The text comes as a list of parts."""
    for frame, chunk in _chunks(plan):
        delta = _delta(chunk)
        if isinstance(delta.get("content"), str):
            delta["content"] = [{"type": "text", "text": delta["content"]}]
            plan.rewrite(frame, _event(chunk))


def _no_finish(plan: Plan, _size: int) -> None:
    """No chunk has a finish reason."""
    for frame, chunk in _chunks(plan):
        for choice in chunk.get("choices") or ():
            if choice.pop("finish_reason", None) is not None:
                plan.rewrite(frame, _event(chunk))


def _surrogates(plan: Plan, _size: int) -> None:
    """A character is split into its surrogate halves over two chunks."""
    at = plan.find(FrameKind.FINISH)
    for half in (rb'"\ude00"', rb'"\ud83d"'):
        plan.insert(at, b'data: {"choices":[{"index":0,"delta":{"content":' + half + b"}}]}\n\n")


def _whole(plan: Plan, _size: int) -> None:
    """A whole completion comes in place of a stream."""
    chunks = _chunks(plan)
    text = "".join(it for _, chunk in chunks if isinstance(it := _delta(chunk).get("content"), str))
    usage = [chunk["usage"] for _, chunk in chunks if chunk.get("usage")]
    message = {"role": "assistant", "content": text}
    body: Json = {
        **chunks[0][1],
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        **({"usage": usage[-1]} if usage else {}),
    }
    plan.truncate(0)
    plan.insert(0, msgspec.json.encode(body))
    plan.headers = [pair for pair in plan.headers if pair[0].lower() != "content-type"]
    plan.headers.append(("content-type", "application/json"))


def _garbage(plan: Plan, _size: int) -> None:
    """Behind the first chunk, frames that are no JSON."""
    plan.insert(min(1, len(plan.steps)), b"data: {]]}~\n\n" * 3)


@_instead
def _endless(size: int) -> Sequence[Json]:
    """Text without an end, up to a size."""
    return [{"content": _PIECE}] * max(1, size // len(_PIECE))


@_instead
def _arguments(size: int) -> Sequence[Json]:
    """A function call whose arguments do not end, up to a size."""
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "find"}}
    piece = {"index": 0, "function": {"arguments": _PIECE}}
    return [{"tool_calls": [call]}, *[{"tool_calls": [piece]}] * max(1, size // len(_PIECE))]


@_instead
def _calls(size: int) -> Sequence[Json]:
    """Thousands of function calls in one response."""
    calls = [
        {"index": n, "id": f"call_{n}", "type": "function", "function": {"name": "find"}}
        for n in range(max(1, size // 1_000))
    ]
    return [{"tool_calls": calls}]


@_instead
def _long_names(size: int) -> Sequence[Json]:
    """Ids and names of a length that nobody can store."""
    long = "x" * max(1, size // 10)
    call = {"index": 0, "id": long, "type": "function", "function": {"name": long}}
    return [{"tool_calls": [call]}]


@_instead
def _deep(size: int) -> Sequence[Json]:
    """Arguments that are nested thousands of levels deep."""
    depth = max(1, size // 1_000)
    arguments = '{"a":' * depth + "1" + "}" * depth
    call = {
        "index": 0,
        "id": "call_1",
        "type": "function",
        "function": {"name": "find", "arguments": arguments},
    }
    return [{"tool_calls": [call]}]


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


def _odd_reply(plan: Plan, scenario: Scenario, _usage: Usage) -> None:
    shape = scenario.text("shape", "garbage")
    if shape not in SHAPES:
        raise BadScenario(f"{scenario.name}: shape is one of {', '.join(SHAPES)}")
    if plan.is_stream:
        SHAPES[shape](plan, scenario.number("size", 5 * 1024 * 1024))


STREAM: Final[Mapping[str, Effect[PlanRun]]] = {
    **SSE,
    "odd-reply": Effect(
        _odd_reply,
        ("shape", "size"),
        f"a reply that few servers send; shape is {', '.join(SHAPES)};"
        " size (bytes) is that of the ones without measure",
    ),
}
"""All scenarios that spoil the event stream."""
