"""The plan of one response: head, frames and the actions between them, open to change by faults."""

import enum
import re
import time
from collections.abc import Mapping
from typing import Final

import msgspec

from turnline.ops.simulator.faults.scenario import BadScenario, Scenario

Headers = list[tuple[str, str]]
DONE: Final = b"data: [DONE]\n\n"
KEEPALIVE: Final = b": keepalive\n\n"


def event(payload: object) -> bytes:
    """Return a server-sent event."""
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


class FrameKind(enum.Enum):
    """What a frame means for the one who reads the answer."""

    REASONING = enum.auto()
    CONTENT = enum.auto()
    TOOL = enum.auto()
    FINISH = enum.auto()
    USAGE = enum.auto()
    DONE = enum.auto()
    BODY = enum.auto()
    """A piece of a body that is not a stream."""
    OTHER = enum.auto()
    """Comments and everything that faults put in."""


class Frame(msgspec.Struct, kw_only=True, gc=False):
    """Bytes that are never separated by the player unless a fault says so."""

    kind: FrameKind
    data: bytes
    """All bytes, or those behind the value of `created` if the frame is stamped."""
    stamped: bool = True
    """Whether the plan's prefix and the time go before `data` when it is written."""
    tokens: int = 0
    """Visible and reasoning tokens that it carries."""
    delay_s: float = 0.0
    """Wait before it is written, counted from when the frame before it was due."""
    opens_write: bool = False
    """Whether it begins a new write even if nothing is waited for."""
    finishes: bool = False
    """Whether a finish reason is in it."""
    reports_usage: bool = False
    """Whether the final usage is in it."""


class ActionKind(enum.Enum):
    """What the player can do other than write a frame."""

    FIN = enum.auto()
    """Close the connection in order, without the end of the body."""
    RST = enum.auto()
    """Reset the connection."""
    WAIT = enum.auto()
    """Wait, by default until the client goes."""
    RAW = enum.auto()
    """Write bytes past the framing of the body."""


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """A step that is no frame."""

    kind: ActionKind
    seconds: float | None = None
    """How long to wait. None: for ever."""
    keepalive_s: float | None = None
    """Seconds between keep-alive comments while waiting. None: silence."""
    data: bytes = b""
    """Bytes of a RAW action."""


class Framing(enum.Enum):
    """How the body is delimited."""

    CHUNKED = enum.auto()
    LENGTH = enum.auto()
    """`content-length`, correct."""
    OVERLONG = enum.auto()
    """`content-length` that promises more than comes."""
    CLOSE = enum.auto()
    """The end of the connection is the end of the body."""


class Coding(enum.Enum):
    """`content-encoding` of the body."""

    IDENTITY = enum.auto()
    GZIP = enum.auto()
    BROKEN_GZIP = enum.auto()


class Slicing(msgspec.Struct, frozen=True):
    """How writes are cut into segments."""

    every_bytes: int | None
    """Size of a segment. None: only inside characters of several bytes."""
    pause_s: float


class Where(enum.StrEnum):
    """Named positions within a response."""

    BEFORE_HEADERS = "before_headers"
    AFTER_HEADERS = "after_headers"
    """Before the first frame."""
    FIRST_FRAME = "first_frame"
    """Behind the first frame."""
    TOKENS = "tokens"
    """Behind the frame with the n-th token."""
    EVENTS = "events"
    """Behind the n-th frame."""
    BEFORE_FINISH = "before_finish"
    BEFORE_USAGE = "before_usage"
    BEFORE_DONE = "before_done"


_FOLLOWED_BY: Final[Mapping[Where, tuple[FrameKind, ...]]] = {
    Where.BEFORE_FINISH: (FrameKind.FINISH, FrameKind.USAGE, FrameKind.DONE),
    Where.BEFORE_USAGE: (FrameKind.USAGE, FrameKind.DONE),
    Where.BEFORE_DONE: (FrameKind.DONE,),
}


class Position(msgspec.Struct, frozen=True):
    """Where in a response a fault strikes."""

    where: Where
    number: int = 0
    """Which token or frame it is."""


_COUNTED: Final = {Where.TOKENS, Where.EVENTS}
_POSITION: Final = re.compile(r"([a-z]+(?:[-_][a-z]+)?)(?:[:=](\d+))?")


def position(text: str) -> Position:
    """Read `before_headers`, `first-frame`, `tokens:5` and the like.

    Raises:
        BadScenario: It is none of them.
    """
    match = _POSITION.fullmatch(text)
    if match is not None:
        name, number = match[1].replace("-", "_"), match[2]
        if name in set(Where) and (name in _COUNTED) == (number is not None):
            return Position(Where(name), int(number or 0))
    names = ", ".join(where for where in Where if where not in _COUNTED)
    raise BadScenario(f"position {text!r} is none of {names}, tokens:N, events:N")


def place(scenario: Scenario, default: str = "tokens:3") -> Position:
    """Return where the scenario is to strike: `at=`, or `after=N` tokens.

    Raises:
        BadScenario: `at` is no position.
    """
    if "after" in scenario.args:
        return position(f"tokens:{scenario.number('after', 0)}")
    return position(scenario.text("at", default))


class Plan(msgspec.Struct, kw_only=True):
    """One response as it will be played. Faults change it in place before it starts."""

    status: int = 200
    headers: Headers = []
    framing: Framing = Framing.LENGTH
    coding: Coding = Coding.IDENTITY
    slicing: Slicing | None = None
    prefix: bytes = b""
    """Bytes before `created` of each stamped frame."""
    head_delay_s: float = 0.0
    """Wait before the head is written."""
    before_head: list[Action] = []
    steps: list[Frame | Action] = []
    is_stream: bool = False
    is_answer: bool = False
    """Whether the model answers here; if not, there is nothing that could be cut off."""
    is_error: bool = False
    """Whether the response is an error, whatever its status."""
    refuses_s: float | None = None
    """Reset the connection and refuse new ones for so many seconds."""
    truncated: bool = False
    """Whether a fault took away the rest of the answer."""
    ignores_disconnect: bool = False
    closes: bool = False
    """Whether the connection is closed, as announced, behind the response."""
    idle_close_s: float | None = None
    """Close the connection unannounced after so many idle seconds."""
    closes_on_next: bool = False
    """Close the connection unannounced when the next request arrives on it."""

    def index(self, at: Position) -> int:
        """Find the step before which something at this position goes.

        A position that the response does not have is taken as the next later one that it has. A
        body that is not a stream is cut in two, and every position inside it is that cut.
        """
        if at.where in {Where.BEFORE_HEADERS, Where.AFTER_HEADERS}:
            return 0
        if not self.is_stream:
            return len(self.steps) if at.where is Where.BEFORE_DONE else self._cut_body()
        if at.where is Where.FIRST_FRAME:
            return min(1, len(self.steps))
        if at.where is Where.TOKENS:
            return self._behind_tokens(at.number)
        if at.where is Where.EVENTS:
            return min(at.number, len(self.steps))
        return self.find(*_FOLLOWED_BY[at.where])

    def find(self, *kinds: FrameKind) -> int:
        """Index of the first frame of these kinds, or the number of steps."""
        for index, step in enumerate(self.steps):
            if isinstance(step, Frame) and step.kind in kinds:
                return index
        return len(self.steps)

    def frames(self) -> list[Frame]:
        """All frames, without the actions."""
        return [step for step in self.steps if isinstance(step, Frame)]

    def insert(self, at: int, data: bytes, kind: FrameKind = FrameKind.OTHER) -> None:
        """Put ready-made bytes before a step."""
        self.steps.insert(at, Frame(kind=kind, data=data, stamped=False))

    def tell_whole(self, body: bytes) -> None:
        """Send one body in place of all events; it says what they said."""
        frames = self.frames()
        told = sum(frame.tokens for frame in frames)
        reports_usage = any(frame.reports_usage for frame in frames)
        self.truncate(0)
        self.insert(0, body, FrameKind.USAGE)
        (frame,) = self.frames()
        frame.tokens, frame.finishes, frame.reports_usage = told, True, reports_usage
        self.set_content_type("application/json")

    def truncate(self, at: int, *actions: Frame | Action) -> None:
        """Drop everything from a step on and do these instead."""
        self.steps[at:] = actions
        self.truncated = True

    def stop(self, at: Position, *actions: Action) -> None:
        """End the response at a position by these actions; what would have followed is lost."""
        if at.where is Where.BEFORE_HEADERS:
            self.before_head.extend(actions)
            self.truncated = True
        else:
            self.truncate(self.index(at), *actions)

    def whole(self, frame: Frame) -> bytes:
        """All bytes of a frame, stamped with the present time if it has to be."""
        if not frame.stamped:
            return frame.data
        return self.prefix + str(int(time.time())).encode() + frame.data

    def rewrite(self, frame: Frame, data: bytes) -> None:
        """Fix the bytes of a frame for good."""
        frame.data = data
        frame.stamped = False

    def set_content_type(self, value: str | None) -> None:
        """Put another content type in the place of the present one, or take it away."""
        self.headers = [pair for pair in self.headers if pair[0] != "content-type"]
        if value is not None:
            self.headers.append(("content-type", value))

    def _behind_tokens(self, tokens: int) -> int:
        seen = 0
        for index, step in enumerate(self.steps):
            if isinstance(step, Frame):
                if step.kind in {FrameKind.FINISH, FrameKind.USAGE, FrameKind.DONE}:
                    return index
                seen += step.tokens
                if seen >= tokens:
                    return index + 1 if tokens else index
        return len(self.steps)

    def _cut_body(self) -> int:
        for index, step in enumerate(self.steps):
            if isinstance(step, Frame) and len(step.data) > 1:
                half = len(step.data) // 2
                tail = msgspec.structs.replace(step, data=step.data[half:], delay_s=0.0)
                step.data, step.finishes, step.reports_usage = step.data[:half], False, False
                step.tokens = 0
                self.steps.insert(index + 1, tail)
                return index + 1
        return len(self.steps)


def body_plan(
    status: int,
    content_type: str,
    body: bytes,
    headers: Headers | None = None,
    *,
    is_error: bool = True,
) -> Plan:
    """Return a response with a ready-made body."""
    given: Headers = [("content-type", content_type)] if content_type else []
    return Plan(
        status=status,
        headers=given + (headers or []),
        is_error=is_error,
        steps=[Frame(kind=FrameKind.BODY, data=body, stamped=False)],
    )


def json_plan(payload: object, headers: Headers | None = None, end: bytes = b"") -> Plan:
    """Return a response that is no error, with a JSON body."""
    body = msgspec.json.encode(payload) + end
    return body_plan(200, "application/json", body, headers, is_error=False)
