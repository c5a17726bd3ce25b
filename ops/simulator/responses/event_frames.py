"""Writes the events of a stream: frames with a type, a sequence number and a payload."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from turnline.ops.simulator.faults.response_plan import KEEPALIVE, Frame, FrameKind
from turnline.ops.simulator.responses.response_json import Json

_encode: Final = msgspec.json.encode


def event_bytes(payload: Json) -> bytes:
    """Return an event with its `event:` line; the payload begins with its sequence number."""
    return b"event: " + str(payload["type"]).encode() + b"\ndata: " + _encode(payload) + b"\n\n"


class EventWriter:
    """Collects the frames of one stream and numbers them."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.number = 0
        """Sequence number of the next event."""

    def add(
        self, type_: str, kind: FrameKind = FrameKind.OTHER, tokens: int = 0, **of: Any
    ) -> Frame:
        """Write one event; its keys stand in the order in which they are given."""
        data = event_bytes({"sequence_number": self.number, "type": type_, **of})
        self.number += 1
        frame = Frame(kind=kind, data=data, stamped=False, tokens=tokens)
        self.frames.append(frame)
        return frame

    def add_texts(self, texts: Sequence[str], item_id: str, output_index: int) -> None:
        """Write deltas of text, one token each; all but the text is encoded once."""
        head = b'event: response.output_text.delta\ndata: {"sequence_number":'
        middle = b',"type":"response.output_text.delta","content_index":0,"delta":'
        tail = b',"item_id":%b,"output_index":%d,"logprobs":[]}\n\n' % (
            _encode(item_id),
            output_index,
        )
        for text in texts:
            data = b"%b%d%b%b%b" % (head, self.number, middle, _encode(text), tail)
            self.number += 1
            self.frames.append(Frame(kind=FrameKind.CONTENT, data=data, stamped=False, tokens=1))

    def wait(self, seconds: float) -> None:
        """Say nothing for a while, and then that the connection is alive."""
        frame = Frame(kind=FrameKind.OTHER, data=KEEPALIVE, stamped=False, delay_s=seconds)
        self.frames.append(frame)
