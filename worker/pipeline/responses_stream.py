"""Turns the bytes of a stream of `/v1/responses` into typed events, however they are cut.

The reply is over when its terminal event came, never before. Deltas, whole items and the terminal
event say the same thing; what one of them leaves out is taken from another, and what they
contradict each other in is an error, since text may be missing.

Source: https://docs.x.ai/docs/api-reference, and recorded streams.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from turnline.worker.pipeline.call_parts import ToolCallDelta
from turnline.worker.pipeline.reply_items import canonical_item
from turnline.worker.pipeline.reply_stream import ReplyStream
from turnline.worker.pipeline.response_frames import (
    FinalResponse,
    decode_delta,
    decode_final,
    decode_opening,
    final_of,
    is_cut,
    is_server_tool,
    more_of,
    parts_of,
    string_of,
    word_of,
)
from turnline.worker.pipeline.shapes import (
    UNDECODED,
    Fields,
    Unreadable,
    as_object,
    failed,
    failure_of,
    short,
    whole_number,
)
from turnline.worker.pipeline.stream_events import (
    CitationFound,
    FinishReason,
    MalformedFrame,
    ReplyItem,
    ServerTool,
    StreamDone,
    TextDelta,
    UsageReport,
)
from turnline.worker.pipeline.usage_reports import response_usage

ITEMS_MAX_BYTES: Final = 4 * 1024 * 1024
"""Items of one response that are kept for the next request, bytes."""

_TEXT: Final = "response.output_text.delta"
_THOUGHTS: Final = ("response.reasoning_summary_text.delta", "response.reasoning_text.delta")
_OPENING: Final = ("response.created", "response.in_progress", "response.queued")
_TERMINAL: Final = ("response.completed", "response.incomplete", "response.failed", "response.done")
_REASONS: Final = {"max_output_tokens": "length"}
"""By why a response is incomplete: the reason as chat has it; others stay as they are."""
_TEXT_HEAD: Final = b"event: response.output_text.delta\ndata: "
_THOUGHT_HEAD: Final = b"event: response.reasoning_summary_text.delta\ndata: "
_LF: Final = b"\n"[0]


_OPENING_NAMES: Final = frozenset(name.encode() for name in _OPENING)
_TERMINAL_NAMES: Final = frozenset(name.encode() for name in _TERMINAL)


class ResponsesStream(ReplyStream):
    """Reads one response body, piece by piece."""

    def __init__(self) -> None:
        """Begin before the first byte."""
        super().__init__()
        self._index = -1
        """Output index of the message whose text came last."""
        self._starts: dict[int, int] = {}
        """By output index of a message: characters of the text before it."""
        self._arguments: dict[int, list[str]] = {}
        """By output index of a function call: its arguments so far."""
        self._kept: dict[int, bytes] = {}
        self._thought: set[int] = set()
        """Output indices of which thoughts were shown."""
        self._tools: dict[int, bool] = {}
        """By output index of a server-side tool call: whether it is done."""
        self._cited: set[tuple[int, int]] = set()
        self._plain = True

    def forget(self) -> None:
        """Let go of what was read: nothing follows, and whoever holds this may stay for long."""
        super().forget()
        self._arguments, self._kept = {}, {}

    # Events

    def _read_events(self, complete: bytes) -> None:
        events, write = self._events, self._text.write
        for event in complete.strip(b"\n").split(b"\n\n"):  # there may be millions of blank lines
            if event.startswith(_TEXT_HEAD) and self._plain:
                try:
                    frame = decode_delta(event[len(_TEXT_HEAD) :])
                except UNDECODED:
                    self._read_event(event)
                else:
                    text = frame.delta
                    if text and frame.output_index == self._index and frame.type == _TEXT:
                        write(text)
                        events.append(TextDelta(text))
                    else:
                        self._read_event(event)
            elif event:
                self._read_other(event)
            if self._done:
                return

    def _read_other(self, event: bytes) -> None:
        """Read an event that is no usual text; the usual ones of those without a dict of it all."""
        head, _, rest = event.partition(b"\n")
        name, payload = head[7:], rest[6:]
        if head[:7] == b"event: " and rest[:6] == b"data: " and _LF not in payload:
            try:
                if event.startswith(_THOUGHT_HEAD):
                    frame = decode_delta(payload)
                    if frame.type in _THOUGHTS:
                        return self._read_thought(frame.output_index, frame.delta)
                elif name in _OPENING_NAMES:
                    opening = decode_opening(payload)
                    if opening.type in _OPENING and opening.response is not None:
                        return self._name(opening.response.id, opening.response.model)
                elif name in _TERMINAL_NAMES:
                    final = decode_final(payload)
                    if final.type in _TERMINAL:
                        return self._end_with(final.response)
            except UNDECODED:
                pass
            except Unreadable:
                self._events.append(MalformedFrame("shape"))
                return None
        return self._read_event(event)

    def _read_payload(self, payload: bytes) -> None:
        self._read_with_care(payload)

    def _read_done(self) -> None:
        """Take `[DONE]` for the end of the stream; it says nothing of the reply."""
        self._done = True

    def _read_whole(self, fields: Fields) -> bool:
        if not isinstance(fields.get("output"), list):
            return False
        self._end_with(final_of(fields))
        return True

    def _read_fields(self, fields: Fields, size: int) -> None:
        kind = fields.get("type")
        response = as_object(fields.get("response"))
        if kind in _TERMINAL and response is not None:
            self._end_with(final_of(response))
        elif kind in _OPENING:
            if response is not None:
                self._name(short(response.get("id")), short(response.get("model")))
        elif (error := failure_of(fields)) is not None:
            code = error.code or str(fields.get("status") or "")
            self._events.append(failed(code, error.message))
        elif "choices" in fields:  # the other wire's
            raise Unreadable
        else:
            said = len(self._events)
            self._read_kind(str(kind), fields)
            if len(self._events) == said and not self._done:
                self._note_nothing(size)

    def _read_kind(self, kind: str, fields: Fields) -> None:
        """Read an event that is neither the first, nor the last, nor an error.

        Raises:
            Unreadable: It holds text or calls in no known shape.
        """
        index = whole_number(fields.get("output_index")) or 0
        delta = fields.get("delta")
        item = as_object(fields.get("item"))
        if kind in {_TEXT, "response.refusal.delta"}:
            self._say_of(index, string_of(delta), is_refusal=kind != _TEXT)
        elif kind in _THOUGHTS:
            self._read_thought(index, string_of(delta))
        elif kind == "response.function_call_arguments.delta":
            self._read_arguments(index, string_of(delta))
        elif kind in {"response.output_text.done", "response.refusal.done"}:
            if index not in self._starts:
                whole = string_of(fields.get("text") or fields.get("refusal"))
                self._say_of(index, whole, is_refusal=kind != "response.output_text.done")
        elif kind == "response.output_item.added" and item is not None:
            self._read_added(index, item)
        elif kind == "response.output_item.done" and item is not None:
            self._read_item(index, item)
        elif kind == "response.output_text.annotation.added":
            place = whole_number(fields.get("annotation_index"))
            self._cite(index, place or 0, fields.get("annotation"))
        elif not kind.startswith("response."):
            self.unread = self.unread or bool(delta or fields.get("text"))

    # Items

    def _read_added(self, index: int, item: Fields) -> None:
        if item.get("type") == "function_call":
            self._read_call(index, {**item, "arguments": item.get("arguments") or ""})
        elif is_server_tool(item):
            self._show_tool(index, item, done=False)

    def _read_item(self, index: int, item: Fields) -> None:
        """Read an item that is complete.

        Raises:
            Unreadable: It contradicts what came of it.
        """
        kind = item.get("type")
        if kind == "message":
            self._read_message(index, item)
        elif kind == "function_call":
            self._read_call(index, item)
        else:
            if is_server_tool(item):
                self._show_tool(index, item, done=True)
            if kind == "reasoning" and index not in self._thought:
                for part in parts_of(item, "summary") or parts_of(item, "content"):
                    self._read_thought(index, string_of(part.get("text")))
            self._keep(index, item)

    def _keep(self, index: int, item: Fields) -> None:
        encoded = canonical_item(item)
        if encoded is None or self._kept.get(index) == encoded:
            return
        self._kept[index] = encoded
        if sum(map(len, self._kept.values())) > ITEMS_MAX_BYTES:
            self._stop("items")
            return
        later = [start for at, start in self._starts.items() if at > index]
        calls = sum(at < index for at in self._arguments)
        chars = min(later, default=len(self._text))
        self._events.append(ReplyItem(index, encoded, chars, calls))

    def _read_message(self, index: int, item: Fields) -> None:
        parts = parts_of(item, "content")
        whole = "".join(string_of(part.get("text") or part.get("refusal")) for part in parts)
        if index not in self._starts and whole:
            for part in parts:
                refusal = string_of(part.get("refusal"))
                self._say_of(
                    index, refusal or string_of(part.get("text")), is_refusal=bool(refusal)
                )
        elif whole:
            start = self._starts[index]
            later = min((s for at, s in self._starts.items() if at > index), default=None)
            end = len(self._text) if later is None else later
            more = more_of(self._text.between(start, end), whole)
            if more and later is not None:
                raise Unreadable
            self._text.half = ""  # the whole text holds all of that character
            self._say_of(index, more)
        annotations = [it for part in parts for it in parts_of(part, "annotations")]
        for place, annotation in enumerate(annotations):
            self._cite(index, place, annotation)

    def _read_call(self, index: int, item: Fields) -> None:
        is_new = index not in self._arguments
        arguments = item.get("arguments")
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments, separators=(",", ":"))
        so_far = self._arguments.setdefault(index, [])
        more = more_of("".join(so_far), string_of(arguments))
        if is_new or more:
            if more:
                so_far.append(more)
            call_id = word_of(item.get("call_id") or item.get("id"))
            self._events.append(
                ToolCallDelta(index, call_id, word_of(item.get("name")), more or None)
            )

    def _read_arguments(self, index: int, delta: str) -> None:
        self._arguments.setdefault(index, []).append(delta)
        self._events.append(ToolCallDelta(index, None, None, delta))

    def _show_tool(self, index: int, item: Fields, *, done: bool) -> None:
        if self._tools.get(index) in {True, done}:
            return
        name = item.get("name") or str(item.get("type")).removesuffix("_call")
        call_id = short(item.get("id")) or f"{index}"
        if index not in self._tools:
            self._events.append(ServerTool(call_id, short(name) or ""))
        self._tools[index] = done
        if done:
            is_ok = item.get("status") not in {"failed", "incomplete"} and not item.get("error")
            self._events.append(ServerTool(call_id, short(name) or "", is_ok))

    def _cite(self, index: int, place: int, annotation: Any) -> None:
        """Tell of a source, the one of this place among those of a message, once."""
        found = as_object(annotation) or {}
        url, title = found.get("url"), found.get("title")
        if not isinstance(url, str) or (index, place) in self._cited:
            return
        self._cited.add((index, place))
        before = self._starts.get(index, len(self._text))
        start = before + max(0, whole_number(found.get("start_index")) or 0)
        end = before + max(0, whole_number(found.get("end_index")) or 0)
        title = title if isinstance(title, str) else ""
        self._events.append(CitationFound(url, title, start, max(start, end)))

    # Text and thoughts

    def _say_of(self, index: int, text: str, *, is_refusal: bool = False) -> None:
        """Say text of one message.

        Raises:
            Unreadable: It belongs before text that was said.
        """
        if not text:
            return
        if index != self._index:
            if index < self._index:
                raise Unreadable
            self._give_half()
            self._index = index
            self._starts[index] = len(self._text)
        if is_refusal:
            self._refuse(text)
        else:
            self._say(text)

    def _read_thought(self, index: int, text: str) -> None:
        self._thought.add(index)
        self._think(text)

    # The end

    def _end_with(self, final: FinalResponse) -> None:
        """Read a response that is over.

        Raises:
            Unreadable: It contradicts what came of it.
        """
        self._name(short(final.id), short(final.model))
        usage = response_usage(final.usage or {})
        failure = failure_of({"error": final.error}) if final.error else None
        if failure is not None or final.status in {"failed", "cancelled"}:
            if usage is not None:
                self._events.append(UsageReport(usage))
            self._done = True
            self._events.append(failure or failed(final.status, ""))
            return
        self._read_output(final.output or [])
        self._give_half()
        if usage is not None:
            self._events.append(UsageReport(usage))
        why = (final.incomplete_details or {}).get("reason")
        reason = _REASONS.get(str(why), short(why) or "length") if is_cut(final) else None
        usual = "tool_calls" if self._arguments else "stop"
        self._events.append(FinishReason(reason or usual))
        self._done = True
        self._events.append(StreamDone())

    def _read_output(self, output: Sequence[dict[str, Any]]) -> None:
        """Read the items of the terminal event: all of them, or those that nobody saw.

        Raises:
            Unreadable: They contradict what came before.
        """
        fits = all(self._fits(index, item) for index, item in enumerate(output))
        if fits:
            for index, item in enumerate(output):
                self._read_item(index, item)
            return
        whole = "".join(
            string_of(part.get("text") or part.get("refusal"))
            for item in output
            if item.get("type") == "message"
            for part in parts_of(item, "content")
        )
        said = self._text.between(0, len(self._text))
        self._say_of(self._index if said else 0, more_of(said, whole))
        if not self._arguments:
            for index, item in enumerate(output):
                if item.get("type") == "function_call":
                    self._read_call(index, item)

    def _fits(self, index: int, item: Fields) -> bool:
        """Tell whether an item of the terminal event is the one that came under its index."""
        kind = item.get("type")
        if index in self._starts:
            return kind == "message"
        if index in self._arguments:
            return kind == "function_call"
        return index not in self._kept or kind not in {"message", "function_call"}
