"""What is measured: models, numbers of conversations, lengths of context, and who takes part."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

TURNLINE: Final = "turnline"
RESPONSES: Final = "responses"
ARQ: Final = "arq"
TUNED: Final = "arq-tuned"
DIRECT: Final = "direct"
FLOOR: Final = "floor"
UNTRACED: Final = "untraced"
EXPORTING: Final = "exporting"
ALL: Final = (TURNLINE, RESPONSES, ARQ, TUNED, DIRECT, FLOOR)
QUEUED: Final = (TURNLINE, TUNED, FLOOR)

TEXT: Final = "Would you find me a table for two, tonight at seven?"
"""What users say."""
CONTEXT: Final = "context-"
REPLY: Final = "reply-"
"""How the names of scenarios begin that are points of a growth curve; the length follows."""

ABOUT: Final = {
    TURNLINE: "Turnline on the wire of chat, as all others: one worker process, tracing on, traces "
    "kept in Redis",
    RESPONSES: "the same on `/v1/responses`, as Turnline comes: reasoning goes both ways",
    ARQ: "stock ARQ worker, AsyncOpenAI's stream, JSON history in Redis; ARQ's defaults",
    TUNED: "the same, polling every 10 ms, 256 slots, uvloop",
    DIRECT: "AsyncOpenAI in the client's process: no queue, nothing kept",
    FLOOR: "a bare Redis-stream worker with a bare SSE reader: no safety at all",
    UNTRACED: "Turnline that keeps no traces",
    EXPORTING: "Turnline that sends its traces to a collector, and keeps none",
}
_FULL_SECONDS: Final = 0.7
"""Added to each round's time in a full run."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """How the simulated model answers."""

    chunks: int
    ttft_ms: int = 0
    itl_ms: int = 0

    @property
    def text(self) -> str:
        """What it says."""
        return " ".join(["word"] * self.chunks)

    @property
    def duration_s(self) -> float:
        """How long an answer takes."""
        return (self.ttft_ms + self.chunks * self.itl_ms) / 1000

    @property
    def scenario(self) -> str:
        """The same in the simulator's words."""
        pace = f"|pace;ttft_ms={self.ttft_ms},itl_ms={self.itl_ms}" if self.ttft_ms else ""
        return f"chunks;n={self.chunks}{pace}"


INSTANT: Final = Model(chunks=20)
LONG: Final = Model(chunks=200)
PACED: Final = Model(chunks=20, ttft_ms=200, itl_ms=15)


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One group of rows: the same load on several systems."""

    name: str
    title: str
    model: Model
    conversations: int
    """At once; each has one turn at a time."""
    context: int = 0
    """Messages that each conversation begins with."""
    systems: tuple[str, ...] = ALL
    workers: int = 1
    seconds: float = 0.5
    """How long new turns are begun; those under way are waited for."""


def scenarios(*, full: bool) -> list[Scenario]:
    """Return what to run, in order."""
    rows = [
        *(_plain("instant 20", INSTANT, c) for c in (1, 10, 50, *((200,) if full else ()))),
        *(_plain("instant 200", LONG, c) for c in ((1, 10, 50, 200) if full else (10,))),
        *(_plain("paced 200+20x15", PACED, c) for c in ((1, 10, 50, 200) if full else (10,))),
        *(_context(n) for n in (10, 100, 1_000, *((5_000,) if full else ()))),
        *(_workers(n) for n in ((2, 4, 8) if full else (2,))),
        _tracing(),
        *(_reply(n) for n in ((20, 200, 2_000, 10_000) if full else ())),
    ]
    if full:
        rows = [msgspec.structs.replace(row, seconds=_FULL_SECONDS + row.seconds) for row in rows]
    return rows


def is_growth(scenario: Scenario) -> bool:
    """Tell whether a scenario is a point of a growth curve."""
    return scenario.name.startswith((CONTEXT, REPLY))


def workers_of(chosen: Sequence[Scenario]) -> Mapping[str, int]:
    """Return the systems that take part and the most workers that each needs."""
    return {
        name: max((it.workers for it in chosen if name in it.systems), default=1)
        for name in ABOUT
        if any(name in it.systems for it in chosen)
    }


def _plain(name: str, model: Model, conversations: int) -> Scenario:
    left_out: set[str] = set()
    if conversations > 50:  # these would take most of the run: a turn each is half a minute
        left_out = {ARQ, TUNED} if model is LONG else {ARQ}
    return Scenario(
        name=f"{name.replace(' ', '-')}-c{conversations}",
        title=f"{name} chunks, {conversations} conversations",
        model=model,
        conversations=conversations,
        seconds=0.5 + 2 * model.duration_s,
        systems=tuple(name for name in ALL if name not in left_out),
    )


def _context(messages: int) -> Scenario:
    return Scenario(
        name=f"{CONTEXT}{messages}",
        title=f"instant 20 chunks, 4 conversations, {messages:,} messages of context",
        model=INSTANT,
        conversations=4,
        context=messages,
        systems=(TURNLINE, RESPONSES, TUNED, FLOOR),
    )


def _workers(workers: int) -> Scenario:
    return Scenario(
        name=f"workers-{workers}",
        title=f"instant 20 chunks, 50 conversations, {workers} workers",
        model=INSTANT,
        conversations=50,
        systems=QUEUED,
        workers=workers,
    )


def _tracing() -> Scenario:
    return Scenario(
        name="tracing",
        title="what tracing costs: instant 20 chunks, 10 conversations",
        model=INSTANT,
        conversations=10,
        systems=(TURNLINE, UNTRACED, EXPORTING),
        seconds=1.0,
    )


def _reply(chunks: int) -> Scenario:
    return Scenario(
        name=f"{REPLY}{chunks}",
        title=f"instant {chunks:,} chunks, 4 conversations",
        model=Model(chunks=chunks),
        conversations=4,
        systems=(TURNLINE, FLOOR),
    )
