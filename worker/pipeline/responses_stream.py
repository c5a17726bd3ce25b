"""Turns the bytes of a stream of `/v1/responses` into typed events, however they are cut.

The reply is over when its terminal event came, never before. Deltas, whole items and the terminal
event say the same thing; what one of them leaves out is taken from another, and what they
contradict each other in is an error, since text may be missing.

Source: https://docs.x.ai/docs/api-reference, and recorded streams.
"""

from collections.abc import Sequence
from typing import Any, Final

from turnline.worker.pipeline.call_parts import whole_characters
from turnline.worker.pipeline.reply_items import canonical_item
from turnline.worker.pipeline.reply_stream import ReplyStream
from turnline.worker.pipeline.response_calls import ResponseCalls
from turnline.worker.pipeline.response_frames import (
    FinalResponse,
    decode_delta,
    decode_final,
    decode_opening,
    final_of,
    index_of,
    is_cut,
    is_server_tool,
    more_of,
    parts_of,
    string_of,
    words_of_part,
)
from turnline.worker.pipeline.shapes import (
    UNDECODED,
    Fields,
    Unreadable,
    as_object,
    failed,
    failure_of,
    short,
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
ITEMS_MAX: Final = 1024
"""Items of one response, and parts of its messages."""
CITATIONS_MAX_CHARS: Final = 256 * 1024
"""Sources of one response, characters; more are left out, since nothing depends on them."""
_CITATION_CHARS: Final = 100
"""Of one source, beside its address and title."""

_TEXT: Final = "response.output_text.delta"
_THOUGHTS: Final = ("response.reasoning_summary_text.delta", "response.reasoning_text.delta")
_REFUSAL: Final = "response.refusal.delta"
_ARGUMENTS: Final = "response.function_call_arguments.delta"
_TOLD: Final = ("message", "function_call")
"""Kinds of items that are told as text and calls."""
_UNDER_WAY: Final = ("queued", "in_progress")
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
        self._index = self._part = -1
        """Place of the text that came last: of the message, and of the part in it."""
        self._starts: dict[tuple[int, int], int] = {}
        """By place of a part of a message: characters of the text before it, in order."""
        self._calls = ResponseCalls()
        self._kept: dict[int, bytes] = {}
        self._kept_bytes = 0
        self._thought: set[int] = set()
        """Output indices of which thoughts were shown."""
        self._tools: dict[int, bool] = {}
        """By output index of a server-side tool call: whether it is done."""
        self._cited: set[tuple[int, int, int]] = set()
        self._cited_chars = 0
        self._is_cut = False
        self._plain = True

    def forget(self) -> None:
        """Let go of what was read: nothing follows, and whoever holds this may stay for long."""
        super().forget()
        self._calls, self._kept = ResponseCalls(), {}

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
                    is_next = (
                        frame.output_index == self._index and frame.content_index == self._part
                    )
                    if text and is_next and frame.type == _TEXT:
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
                        return self._end_with(final.response, final.type)
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
        if fields.get("status") in _UNDER_WAY:
            raise Unreadable
        self._end_with(final_of(fields))
        return True

    def _read_fields(self, fields: Fields, size: int) -> None:
        kind = str(fields.get("type"))
        response = as_object(fields.get("response")) or {}
        if kind == "response.failed" or not kind.startswith("response."):
            error = failure_of(fields)
            if error is not None:
                self._events.append(error)
                return
        if kind in _TERMINAL:
            self._end_with(final_of(response), kind)
        elif kind in _OPENING:
            self._name(short(response.get("id")), short(response.get("model")))
        elif "choices" in fields:  # the other wire's
            raise Unreadable
        else:
            said = len(self._events)
            self._read_kind(kind, fields)
            if len(self._events) == said and not self._done:
                self._note_nothing(size)

    def _read_kind(self, kind: str, fields: Fields) -> None:
        """Read an event that is neither the first, nor the last, nor an error.

        Raises:
            Unreadable: It holds text or calls in no known shape.
        """
        index = index_of(fields)
        item = as_object(fields.get("item"))
        place = (index, index_of(fields, "content_index"))
        if index >= ITEMS_MAX:
            self._stop("items")
        elif kind.startswith("response.") and kind.endswith(".delta"):
            self._read_delta(kind, place, fields.get("delta"))
        elif kind == "response.function_call_arguments.done":
            self._complete_call(index, {"arguments": fields.get("arguments")})
        elif (part := _whole_part(kind, fields)) is not None:
            self._complete(place, words_of_part(part), is_refusal=bool(part.get("refusal")))
        elif kind == "response.output_item.added" and item is not None:
            self._read_added(index, item)
        elif kind == "response.output_item.done" and item is not None:
            self._read_item(index, item)
        elif kind == "response.output_text.annotation.added":
            at = index_of(fields, "annotation_index")
            self._cite(place, at, fields.get("annotation"), self._starts.get(place))
        elif not kind.startswith("response."):
            self._read_unknown(fields)

    def _read_unknown(self, fields: Fields) -> None:
        said = bool(fields.get("delta") or fields.get("text"))
        if said and "type" not in fields:  # it could belong to the text that came
            raise Unreadable
        self.unread = self.unread or said

    def _read_delta(self, kind: str, place: tuple[int, int], delta: Any) -> None:
        if kind in {_TEXT, _REFUSAL}:
            self._say_at(place, string_of(delta), is_refusal=kind == _REFUSAL)
        elif kind in _THOUGHTS:
            self._read_thought(place[0], string_of(delta))
        elif kind == _ARGUMENTS:
            self._events += self._calls.add(place[0], string_of(delta))
        elif isinstance(delta, str) and "_call" not in kind:  # else of a tool that the provider ran
            self.unread = self.unread or bool(delta)

    # Items

    def _read_added(self, index: int, item: Fields) -> None:
        if item.get("type") == "function_call":
            self._events += self._calls.begin(index, item)
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
            self._complete_call(index, item)
        else:
            if is_server_tool(item):
                self._show_tool(index, item, done=True)
            if kind == "reasoning" and index not in self._thought:
                for part in parts_of(item, "summary") or parts_of(item, "content"):
                    self._read_thought(index, string_of(part.get("text")))
            self._keep(index, item)

    def _keep(self, index: int, item: Fields) -> None:
        encoded = canonical_item(item)
        before = self._kept.get(index, b"")
        if encoded is None or before == encoded:
            return
        self._kept[index] = encoded
        self._kept_bytes += len(encoded) - len(before)
        if self._kept_bytes > ITEMS_MAX_BYTES:
            self._stop("items")
            return
        chars = self._end_of((index, ITEMS_MAX))
        self._events.append(ReplyItem(index, encoded, chars, self._calls.before(index)))

    def _complete_call(self, index: int, item: Fields) -> None:
        self._events += self._calls.complete(index, item, is_cut=self._is_cut)

    def _read_message(self, index: int, item: Fields) -> None:
        parts = parts_of(item, "content")
        texts = [*map(words_of_part, parts)]
        start = next((start for place, start in self._starts.items() if place[0] == index), None)
        if start is None:
            start = len(self._text)
            for n, (part, text) in enumerate(zip(parts, texts, strict=True)):
                self._say_at((index, n), text, is_refusal=bool(part.get("refusal")))
        elif any(texts):
            self._add_missing(start, (index, ITEMS_MAX), "".join(texts), is_refusal=False)
        for n, (part, text) in enumerate(zip(parts, texts, strict=True)):
            self.unread = self.unread or not {"text", "refusal"} & part.keys()
            for at, annotation in enumerate(parts_of(part, "annotations")):
                self._cite((index, n), at, annotation, start)
            start += len(whole_characters(text))

    def _complete(self, place: tuple[int, int], whole: str, *, is_refusal: bool) -> None:
        """Read a part of a message as a whole.

        Raises:
            Unreadable: It contradicts what came of it.
        """
        if place not in self._starts:
            self._say_at(place, whole, is_refusal=is_refusal)
        elif whole:
            self._add_missing(self._starts[place], place, whole, is_refusal=is_refusal)

    def _add_missing(
        self, start: int, place: tuple[int, int], whole: str, *, is_refusal: bool
    ) -> None:
        """Say what a whole text adds to what came of it, from `start` to the end of `place`.

        Raises:
            Unreadable: It says something else, or it adds to text that is not the last.
        """
        end = self._end_of(place)
        is_last = place >= (self._index, self._part)
        more = more_of(self._text, whole, start, end, is_cut=self._is_cut)
        if is_last:
            self._text.half = ""  # the whole text holds all of that character
        elif more:
            raise Unreadable
        self._say_at((self._index, self._part), more, is_refusal=is_refusal)

    def _end_of(self, place: tuple[int, int]) -> int:
        """Return the characters of the text up to the end of a place."""
        later = (start for at, start in self._starts.items() if at > place)
        return min(later, default=len(self._text))

    def _show_tool(self, index: int, item: Fields, *, done: bool) -> None:
        before = self._tools.get(index)
        if before or before == done:
            return
        name = item.get("name") or str(item.get("type")).removesuffix("_call")
        call_id = short(item.get("id")) or f"{index}"
        if index not in self._tools:
            self._events.append(ServerTool(call_id, short(name) or ""))
        self._tools[index] = done
        if done:
            is_ok = item.get("status") not in ("failed", "incomplete") and not item.get("error")
            self._events.append(ServerTool(call_id, short(name) or "", is_ok))

    def _cite(self, place: tuple[int, int], at: int, annotation: Any, before: int | None) -> None:
        """Tell of a source, the one in this place among those of a part, once.

        Args:
            place: Of the part.
            at: Among its sources.
            annotation: Of any shape.
            before: Characters of the text before the part; None if nothing of it came.
        """
        found = as_object(annotation) or {}
        url, title = found.get("url"), short(found.get("title")) or ""
        if not isinstance(url, str) or (*place, at) in self._cited:
            return
        self._cited_chars += len(url) + len(title) + _CITATION_CHARS
        if self._cited_chars > CITATIONS_MAX_CHARS:
            return
        self._cited.add((*place, at))
        before = len(self._text) if before is None else before
        start = before + index_of(found, "start_index")
        end = before + index_of(found, "end_index")
        self._events.append(CitationFound(whole_characters(url), title, start, max(start, end)))

    # Text and thoughts

    def _say_at(self, place: tuple[int, int], text: str, *, is_refusal: bool) -> None:
        """Say text of one part of a message.

        Raises:
            Unreadable: It belongs before text that was said.
        """
        last = (self._index, self._part)
        if text and place < last:
            raise Unreadable
        if text and place > last:
            if len(self._starts) >= ITEMS_MAX:
                self._stop("items")
                return
            self._give_half()
            self._index, self._part = place
            self._starts[place] = len(self._text)
        if is_refusal:
            self._refuse(text)
        else:
            self._say(text)

    def _read_thought(self, index: int, text: str) -> None:
        if index >= ITEMS_MAX:
            self._stop("items")
            return
        self._thought.add(index)
        self._think(text)

    # The end

    def _end_with(self, final: FinalResponse, kind: str = "response.done") -> None:
        """Read a response that is over.

        Args:
            final: The response.
            kind: Of the event that says so.

        Raises:
            Unreadable: It contradicts what came of it.
        """
        self._name(short(final.id), short(final.model))
        usage = response_usage(final.usage or {})
        if usage is not None:  # first: what cannot be read was paid for too
            self._events.append(UsageReport(usage, alone=False))
        failure = failure_of({"error": final.error}) if final.error else None
        has_failed = kind == "response.failed" or final.status in {"failed", "cancelled"}
        if failure is not None or has_failed:
            self._done = True
            self._events.append(failure or failed("failed", ""))
            return
        self._is_cut = kind == "response.incomplete" or is_cut(final)
        self._read_output(final.output or [])
        if self._done:  # too many
            return
        self._give_half()
        self._events += self._calls.settle()
        why = (final.incomplete_details or {}).get("reason")
        reason = _REASONS.get(str(why), short(why) or "length") if self._is_cut else None
        usual = "tool_calls" if self._calls else "stop"
        self._events.append(FinishReason(reason or usual))
        self._done = True
        self._events.append(StreamDone())

    def _read_output(self, output: Sequence[dict[str, Any]]) -> None:
        """Read the items of the terminal event: all of them, or those that nobody saw.

        Raises:
            Unreadable: They contradict what came before.
        """
        if len(output) > ITEMS_MAX:
            self._stop("items")
            return
        if self._fits(output):
            for index, item in enumerate(output):
                self._read_item(index, item)
            return
        messages = [it for it in output if it.get("type") == "message"]
        texts = [words_of_part(part) for it in messages for part in parts_of(it, "content")]
        has_text, has_items = bool(self._starts), bool(self._kept)
        if has_text and any(texts):
            self._add_missing(0, (ITEMS_MAX, 0), "".join(texts), is_refusal=False)
        called = 0
        for index, item in enumerate(output):
            kind = item.get("type")
            if kind == "function_call":
                called += 1
                self._complete_call(self._calls.place_of(item, index), item)
            elif not (has_text if kind == "message" else has_items):
                self._read_item(index, item)
        if 0 < called < len(self._calls) and not self._is_cut:
            raise Unreadable

    def _fits(self, output: Sequence[dict[str, Any]]) -> bool:
        """Tell whether the items of the terminal event stand where they came before."""
        kinds = [item.get("type") for item in output]
        came = {place[0]: "message" for place in self._starts}
        came.update(dict.fromkeys(self._calls, "function_call"))
        end = len(kinds)
        return (
            all(at < end and kinds[at] == kind for at, kind in came.items())
            and all(at < end and kinds[at] not in _TOLD for at in self._kept)
            and all(
                kinds[at] != "function_call" or self._calls.place_of(item, at) == at
                for at, item in enumerate(output)
            )
        )


def _whole_part(kind: str, fields: Fields) -> Fields | None:
    """Return the part of a message that an event tells as a whole, if it does."""
    if kind in {"response.output_text.done", "response.refusal.done"}:
        return fields
    if kind != "response.content_part.done":
        return None
    part = as_object(fields.get("part"))
    return part if part and part.get("type") in {"output_text", "refusal"} else None
