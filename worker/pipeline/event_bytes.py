"""Cuts the bytes of a response into server-sent events, whatever the pieces they come in.

As https://html.spec.whatwg.org/multipage/server-sent-events.html has them (line ends, comments,
several data lines, byte order mark), but a last event without a blank line counts.
"""

from typing import Final

from turnline.worker.pipeline.shapes import BODY_MAX_BYTES

EVENT_MAX_BYTES: Final = 8 * 1024 * 1024
"""Longest single event, and longest whole completion in place of a stream, bytes."""
_BOM: Final = b"\xef\xbb\xbf"
_CR: Final = b"\r"[0]
"""As a number: to look for a byte as bytes costs CPython an exception within."""


class EventBytes:
    """Collects the bytes of one response until events are complete."""

    def __init__(self) -> None:
        """Begin before the first byte."""
        self._buffer = bytearray()
        self._started = False
        self._drop_newline = False
        self.is_body = False
        """Whether the response is no event stream: what was kept of it is `rest()`."""

    def feed(self, data: bytes) -> bytes:
        """Return the events that these bytes complete, with blank lines between them; or b""."""
        if not self._started:
            data = self._start(data)
        if self.is_body:
            self._buffer += data
            return b""
        if self._drop_newline or _CR in data:
            data = self._with_plain_newlines(data)
        buffer = self._buffer
        if buffer:
            searched = len(buffer) - 1
            buffer += data
            end = buffer.rfind(b"\n\n", searched)
            if end < 0:
                return b""
            complete = bytes(buffer[:end])
            del buffer[: end + 2]
            return complete
        if data.endswith(b"\n\n"):
            return data[:-2]
        end = data.rfind(b"\n\n")
        buffer += data[end + 2 :] if end >= 0 else data
        return data[:end] if end >= 0 else b""

    @property
    def is_full(self) -> bool:
        """Whether more is kept than an event, or a body, may be long."""
        if self.is_body and not self._buffer.startswith(b"{"):
            return len(self._buffer) >= BODY_MAX_BYTES
        return len(self._buffer) > EVENT_MAX_BYTES

    def rest(self) -> bytes:
        """Return what is kept: an event that is still open, or a body."""
        return bytes(self._buffer) if self._started else b""

    def clear(self) -> None:
        """Keep nothing."""
        self._buffer = bytearray()

    def _start(self, data: bytes) -> bytes:
        """Drop a byte order mark and see what kind of body begins; b"" until that is clear."""
        begun = bytes(self._buffer) + data
        if len(begun) < len(_BOM) and _BOM.startswith(begun):
            self._buffer += data
            return b""
        begun = begun.removeprefix(_BOM)
        text = begun.lstrip(b" \t\r\n")
        if not text:  # blank lines say nothing; the last one stays, so that no mark follows it
            line_end = max(begun.rfind(b"\n"), begun.rfind(b"\r"), 0)
            self._buffer = bytearray(begun[line_end : line_end + 2])
            return b""
        self._buffer.clear()
        self._started = True
        self.is_body = text[:1] in b'{["<'
        return text if self.is_body else begun

    def _with_plain_newlines(self, data: bytes) -> bytes:
        """Make every line end a line feed, also where CR and LF come in different pieces."""
        if not data:
            return data
        if self._drop_newline and data.startswith(b"\n"):
            data = data[1:]
        self._drop_newline = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def payloads_of(event: bytes) -> tuple[bytes, list[bytes]]:
    """Read one event line by line: as the specification has it, and as servers write it.

    Returns:
        The event's name, `error` also where only its field is called so; and its payloads, of
        which there are several where no blank line stands between events.
    """
    data: list[bytes] = []
    name = b""
    for line in event.split(b"\n"):
        field, _, value = line.partition(b":")
        field = field.strip().lower()
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.strip()
        elif field[:1] == b"{":  # proxies and web frameworks put their errors so
            data.append(line.strip())
        elif field == b"error" and value.strip():
            name = field
            data.append(value)
    if len(data) > 1 and not all(map(_is_payload, data)):
        data = [b"\n".join(data)]
    return name, data


def _is_payload(line: bytes) -> bool:
    """Tell whether a line looks like all that an event holds."""
    line = line.strip()
    return line == b"[DONE]" or (line.startswith(b"{") and line.endswith(b"}"))
