"""What is measured: models, numbers of conversations, lengths of context, and who takes part."""

from typing import Final

import msgspec

TURNLINE: Final = "turnline"
ARQ: Final = "arq"
TUNED: Final = "arq-tuned"
DIRECT: Final = "direct"
FLOOR: Final = "floor"
ALL: Final = (TURNLINE, ARQ, TUNED, DIRECT, FLOOR)
QUEUED: Final = (TURNLINE, TUNED, FLOOR)

ABOUT: Final = {
    TURNLINE: "Turnline, one worker process",
    ARQ: "stock ARQ worker, AsyncOpenAI's stream, JSON history in Redis; ARQ's defaults",
    TUNED: "the same, polling every 10 ms, 256 slots, uvloop",
    DIRECT: "AsyncOpenAI in the client's process: no queue, nothing kept",
    FLOOR: "a bare Redis-stream worker with a bare SSE reader: no safety at all",
}


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
    ]
    if full:
        rows = [msgspec.structs.replace(row, seconds=1.5 + row.seconds) for row in rows]
    return rows


def _plain(name: str, model: Model, conversations: int) -> Scenario:
    return Scenario(
        name=f"{name.replace(' ', '-')}-c{conversations}",
        title=f"{name} chunks, {conversations} conversations",
        model=model,
        conversations=conversations,
        seconds=0.5 + 2 * model.duration_s,
        systems=ALL if conversations <= 50 else tuple(name for name in ALL if name != ARQ),
    )


def _context(messages: int) -> Scenario:
    return Scenario(
        name=f"context-{messages}",
        title=f"instant 20 chunks, 4 conversations, {messages:,} messages of context",
        model=INSTANT,
        conversations=4,
        context=messages,
        systems=QUEUED,
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
