"""Turns the bytes of a streamed chat completion into typed events, however they are cut.

A chunk that is not JSON is an error, since text may be missing. A whole completion in place of a
stream is read like a stream of one chunk.

The common chunk, one `data: ` line with one text, costs one search and one decoding; all others are
read with more care (`turnline.worker.pipeline.shapes`). What one response may hold is limited.
"""

from typing import Final

from turnline.worker.pipeline.reply_stream import EMPTY, ReplyStream
from turnline.worker.pipeline.shapes import (
    UNDECODED,
    Fields,
    Unreadable,
    Words,
    choices_of,
    failure_of,
    finish_of,
    short,
    words_of,
)
from turnline.worker.pipeline.stream_events import (
    FinishReason,
    ReasoningDelta,
    StreamDone,
    StreamFailed,
    TextDelta,
    UsageReport,
)
from turnline.worker.pipeline.usage_reports import NO_COUNTS, Counts, counts_in, usage_of
from turnline.worker.pipeline.usual_chunks import (
    Choice,
    Chunk,
    FirstChunk,
    decode_chunk,
    decode_first_chunk,
    usual_counts,
    usual_events,
)

_DONE: Final = StreamDone()
_SAYING: Final = (
    *("content", "text", "message", "response", "output", "delta", "candidates", "completion"),
    *("output_text", "generated_text", "token"),
)
"""Fields of chunks without choices in which other APIs put text."""
_LF: Final = b"\n"[0]
"""As a number: to look for a byte as bytes costs CPython an exception within."""


class CompletionStream(ReplyStream):
    """Reads one response body, piece by piece."""

    def __init__(self) -> None:
        """Begin before the first byte."""
        super().__init__()
        self._in_messages = 0
        """Characters of it that came in messages, not in deltas."""
        self._grows: bool | None = None
        """Whether messages in place of deltas hold the text so far; None if that is not clear."""
        self._counts = NO_COUNTS

    # Events

    def _read_events(self, complete: bytes) -> None:
        events, write = self._events, self._text.write
        for event in complete.strip(b"\n").split(b"\n\n"):  # there may be millions of blank lines
            payload = event[6:]
            if event[:6] != b"data: " or _LF in payload:
                if event:
                    self._read_event(event)
            elif self._plain:
                try:
                    chunk = decode_chunk(payload)
                except UNDECODED:
                    self._read_with_care(payload)
                else:
                    choices = chunk.choices
                    if (
                        choices
                        and len(choices) == 1
                        and chunk.usage is None
                        and chunk.error is None
                        and (choice := choices[0]).finish_reason is None
                        and (delta := choice.delta) is not None
                        and (text := delta.content)
                        and not (choice.index or delta.reasoning_content or delta.tool_calls)
                        and choice.message
                        is choice.text
                        is choice.usage
                        is choice.tool_calls
                        is delta.function_call
                        is None
                        and not delta.refusal
                    ):
                        write(text)
                        events.append(TextDelta(text))
                    else:
                        self._read_chunk(chunk, payload)
            else:
                self._read_payload(payload)
            if self._done:
                return

    # Payloads

    def _read_payload(self, payload: bytes) -> None:
        try:
            chunk = decode_chunk(payload) if self._plain else decode_first_chunk(payload)
        except UNDECODED:
            self._read_with_care(payload)
        else:
            self._read_chunk(chunk, payload)

    def _read_chunk(self, chunk: Chunk, payload: bytes) -> None:
        """Read a chunk of the expected types, if it says one of the usual things."""
        if self._text.half or chunk.error is not None:
            self._read_with_care(payload)
            return
        choices = chunk.choices
        if not choices:
            usage = chunk.usage if self._plain else None
            if usage is not None and (counts := usual_counts(usage, payload)) is not None:
                self._report(counts, len(payload), alone=True)
            else:
                self._read_with_care(payload)
            return
        if len(choices) == 1 and self._read_usual(choices[0], payload, chunk):
            return
        self._read_with_care(payload)

    def _read_usual(self, choice: Choice, payload: bytes, chunk: Chunk) -> bool:
        """Read a choice of which all is known; False if it needs more care."""
        said = usual_events(choice, payload) if chunk.usage is None else None
        if said is None:
            return False
        if not self._plain and isinstance(chunk, FirstChunk):
            self._plain = True
            self._name(chunk.id, chunk.model)
        for event in said:
            if type(event) is TextDelta:
                self._say(event.text)
            elif type(event) is ReasoningDelta:
                self._think(event.text)
            else:
                self._events.append(event)
        if not said:
            self._note_nothing(len(payload))
        elif choice.finish_reason is not None:
            self._note_silence(len(payload))
        return True

    def _report(self, counts: Counts, size: int, *, alone: bool) -> None:
        before = self._counts
        self._counts = counts if before is NO_COUNTS else counts.over(before)
        self._events.append(UsageReport(usage_of(self._counts), alone))
        if alone:
            self._note_silence(size)

    def _read_done(self) -> None:
        self._give_half()
        self._done = True
        self._events.append(_DONE)

    def _read_whole(self, fields: Fields) -> bool:
        if not fields.get("choices"):
            return False
        self._read_fields(fields, 0)
        self._give_half()
        self._events.append(_DONE)
        return True

    def _read_fields(self, fields: Fields, size: int) -> None:
        """Read a fields of any shape.

        Raises:
            Unreadable: It holds text or calls in no known shape.
        """
        choices, has_others = choices_of(fields)
        self.unread = self.unread or (has_others and not choices)
        error = next(filter(None, map(failure_of, (fields, *choices))), None)
        if error is not None:
            self._events.append(error)
            return
        if fields.get("choices") or fields.get("usage"):
            self._name(short(fields.get("id")), short(fields.get("model")))
        self._plain = not self._text.half
        said = len(self._events)
        for choice in choices:
            self._read_choice(choice, size)
        if not fields.get("choices"):
            self.unread = self.unread or any(fields.get(key) for key in _SAYING)
        counts = counts_in(fields, choices)
        if counts is not None:
            alone = self._events[said:] in ([], [EMPTY])
            if alone:
                del self._events[said:]
            self._report(counts, size, alone=alone)

    def _read_choice(self, choice: Fields, size: int) -> None:
        said = len(self._events)
        reason = finish_of(choice)
        if reason == "error":
            self._events.append(StreamFailed("error", ""))
            return
        words = words_of(choice.get("delta"), within=True)
        beside = words_of(choice)
        text = words.joined("text") or beside.joined("text")
        if beside.text and beside.joined("text") != text:
            raise Unreadable
        self._think(words.joined("reasoning") or beside.joined("reasoning"))
        if text:
            self._say(text)
        refusal = words.joined("refusal") or beside.joined("refusal")
        calls = words.calls or beside.calls
        whole = words_of(choice.get("message"), is_whole=True)
        self._read_message(whole, text, is_last=reason is not None)
        refused = whole.joined("refusal")
        if refusal or (refused and not self._text.ends_about(refused)):
            self._refuse(refusal or refused)
        self._events.extend(calls)
        self._events.extend(whole.calls)
        self.unread = self.unread or words.is_unread or beside.is_unread or whole.is_unread
        alone = len(self._events) == said
        if reason is not None and (reason or alone):
            if alone:
                self._give_half()
            self._events.append(FinishReason(reason, alone))
            if alone:
                self._note_silence(size)
        elif alone:
            self._note_nothing(size)

    def _read_message(self, words: Words, text: str, *, is_last: bool) -> None:
        """Read a whole message: all of the reply, all so far, or a piece in place of a delta.

        Raises:
            Unreadable: It contradicts the text so far.
        """
        whole, before = words.joined("text"), len(self._text)
        in_deltas = bool(text) or before > self._in_messages
        if not in_deltas:
            self._think(words.joined("reasoning"))
        if not whole or whole == text:
            return
        if in_deltas:
            more = "" if self._text.is_same(whole) else self._behind(whole)
        else:
            more = self._more_of(whole, is_last=is_last)
        self._say(more)
        self._in_messages += len(self._text) - before

    def _more_of(self, whole: str, *, is_last: bool) -> str:
        """Return what a message in place of a delta adds: it holds all so far, or one piece."""
        begins = self._text.begins(whole)
        if begins and len(whole) == len(self._text):
            # Nothing new; if it is a piece that comes twice, this comes out later.
            self._grows = self._grows or not is_last or None
            return ""
        if self._grows is None and len(self._text):
            self._grows = begins
        return self._behind(whole) if self._grows else whole

    def _behind(self, whole: str) -> str:
        """Return what a whole text adds to the text so far.

        Raises:
            Unreadable: It begins otherwise.
        """
        if not self._text.begins(whole):
            raise Unreadable
        return whole[len(self._text) :]
