"""Replies that few servers send on `/v1/responses`: other shapes, or without measure."""

import functools
from collections.abc import Callable, Mapping
from typing import Final, cast

import msgspec
from msgspec import UNSET

from turnline.ops.simulator.faults.response_plan import Frame, FrameKind, Plan
from turnline.ops.simulator.faults.scenario import Scenario
from turnline.ops.simulator.model.usage import Usage
from turnline.ops.simulator.responses import response_json as wire
from turnline.ops.simulator.responses.event_frames import EventWriter, event_bytes
from turnline.ops.simulator.responses.response_json import Json

_PIECE: Final = "and so on, " * 6_000
"""About 64 KiB."""
_TEXT_DELTA: Final = "response.output_text.delta"


def _payload(frame: Frame) -> Json:
    return cast("Json", msgspec.json.decode(frame.data.partition(b"\ndata: ")[2]))


def _instead(
    write: Callable[[EventWriter, int], None],
) -> Callable[[Plan, int], None]:
    """Let this follow `response.in_progress`; nothing says that the answer ends well.

    The events are encoded once: a simulator that is busy with megabytes holds up its other callers.
    """

    @functools.lru_cache(maxsize=8)
    def encoded(size: int) -> tuple[bytes, ...]:
        writer = EventWriter()
        writer.number = 2
        write(writer, size)
        return tuple(frame.data for frame in writer.frames)

    def replace(plan: Plan, size: int) -> None:
        plan.truncate(min(2, len(plan.steps)))
        for data in encoded(size):
            plan.insert(len(plan.steps), data)

    return replace


def _text_deltas(plan: Plan) -> list[Frame]:
    mark = b"event: " + _TEXT_DELTA.encode()
    return [frame for frame in plan.frames() if frame.data.startswith(mark)]


def _parts(plan: Plan, _size: int) -> None:
    """Send the text as a list of parts."""
    for frame in _text_deltas(plan):
        payload = _payload(frame)
        payload["delta"] = [{"type": "output_text", "text": payload["delta"]}]
        frame.data = event_bytes(payload)


def _no_finish(plan: Plan, _size: int) -> None:
    """Leave out the last event."""
    plan.truncate(plan.find(FrameKind.USAGE))


def _surrogates(plan: Plan, _size: int) -> None:
    """Split a character into its surrogate halves over two deltas."""
    frame = next(iter(_text_deltas(plan)), None)
    if frame is None:
        return
    at = plan.steps.index(frame)
    text = msgspec.json.encode(_payload(frame)["delta"])
    for half in (rb'"\ude00"', rb'"\ud83d"'):
        plan.insert(at, frame.data.replace(b'"delta":' + text, b'"delta":' + half, 1))


def _whole(plan: Plan, _size: int) -> None:
    """Send a whole response in place of a stream."""
    last = _payload(plan.frames()[-1])
    plan.tell_whole(msgspec.json.encode(last.get("response")))


def _garbage(plan: Plan, _size: int) -> None:
    """Send events that are no JSON behind the first one."""
    plan.insert(min(1, len(plan.steps)), b"data: {]]}~\n\n" * 3)


def _call(writer: EventWriter, number: int, call_id: str, name: str, *pieces: str) -> None:
    id_ = f"fc_odd_{number}"
    at: Json = {"output_index": number}
    added = wire.call_item(id_, call_id, name, "", "in_progress")
    writer.add("response.output_item.added", item=added, **at)
    type_ = "response.function_call_arguments.delta"
    for piece in pieces:
        writer.add(type_, delta=piece, item_id=id_, **at)


def _done_call(writer: EventWriter, number: int, call_id: str, name: str, arguments: str) -> None:
    _call(writer, number, call_id, name, arguments)
    done = wire.call_item(f"fc_odd_{number}", call_id, name, arguments, "completed")
    writer.add("response.output_item.done", item=done, output_index=number)


@_instead
def _endless(writer: EventWriter, size: int) -> None:
    """Text without an end, up to a size."""
    added = wire.message_item("msg_odd", [], "in_progress")
    writer.add("response.output_item.added", item=added, output_index=0)
    writer.add_texts([_PIECE] * max(1, size // len(_PIECE)), "msg_odd", 0)


@_instead
def _arguments(writer: EventWriter, size: int) -> None:
    """A function call whose arguments do not end, up to a size."""
    _call(writer, 0, "call_1", "find", *[_PIECE] * max(1, size // len(_PIECE)))


@_instead
def _calls(writer: EventWriter, size: int) -> None:
    """Thousands of function calls in one response."""
    for number in range(max(1, size // 1_000)):
        _done_call(writer, number, f"call_{number}", "find", "{}")


@_instead
def _long_names(writer: EventWriter, size: int) -> None:
    """Ids and names of a length that nobody can store."""
    long = "x" * max(1, size // 10)
    _done_call(writer, 0, long, long, "{}")


@_instead
def _deep(writer: EventWriter, size: int) -> None:
    """Arguments that are nested thousands of levels deep."""
    depth = max(1, size // 1_000)
    _done_call(writer, 0, "call_1", "find", '{"a":' * depth + "1" + "}" * depth)


@_instead
def _reasoning(writer: EventWriter, size: int) -> None:
    """A thought whose sealed content is larger than anybody would store."""
    blob = "A" * size
    added = wire.reasoning_item("rs_odd", "", "in_progress", UNSET)
    writer.add("response.output_item.added", item=added, output_index=0)
    done = wire.reasoning_item("rs_odd", "", "completed", blob)
    writer.add("response.output_item.done", item=done, output_index=0)


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
    "reasoning": _reasoning,
}


def odd_reply(plan: Plan, scenario: Scenario, _usage: Usage) -> None:
    """Let the reply be of one of the shapes; those of chat are all among them."""
    shape = SHAPES[scenario.choice("shape", "garbage", SHAPES)]
    if plan.is_stream:
        shape(plan, scenario.number("size", 5 * 1024 * 1024))
