"""What was measured, and how rounds become one row."""

import statistics
from collections.abc import Sequence

import msgspec


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One round of one system in one scenario."""

    turns: int
    wrong: int
    """Turns whose reply was not what the model said."""
    wall_s: float
    added_first_ms: list[float]
    """Per turn: submit to first text at the client, less the model's own time to it."""
    worker_cpu_s: float
    redis_cpu_s: float
    client_cpu_s: float
    model_cpu_s: float
    redis_commands: int
    redis_requests: int
    redis_bytes: int
    worker_peak_mb: float
    """Of the largest worker."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """All rounds of one system in one scenario: medians, and what they were spread over."""

    scenario: str
    title: str
    system: str
    rounds: int
    turns: int
    wrong: int
    turns_per_s: float
    turns_per_s_range: tuple[float, float]
    added_first_p50_ms: float
    added_first_p99_ms: float
    worker_cpu_ms: float
    """Per turn, as all that follow."""
    redis_cpu_ms: float
    client_cpu_ms: float
    model_cpu_ms: float
    own_cpu_ms_range: tuple[float, float]
    """Worker and Redis together."""
    redis_commands: float
    redis_requests: float
    redis_kb: float
    worker_peak_mb: float

    @property
    def own_cpu_ms(self) -> float:
        """CPU per turn of everything but client and model."""
        return self.worker_cpu_ms + self.redis_cpu_ms


class CallCost(msgspec.Struct, frozen=True, kw_only=True):
    """CPU of reading streams in one process, without queue or Redis."""

    reader: str
    pace: str
    chunks: int
    us_per_chunk: float
    us_per_chunk_range: tuple[float, float]


class Burst(msgspec.Struct, frozen=True, kw_only=True):
    """Several turns of one conversation submitted at once."""

    system: str
    turns: int
    gap_p50_ms: float | None
    """From the end of a turn to the first text of the next, less the model's time to it; None where
    turns did not come one after the other."""
    gap_p99_ms: float | None
    most_at_once: int
    """Turns of the one conversation that were with the model at the same time."""
    kept: int
    """Messages in the history afterwards."""
    expected: int


class InFlight(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet in one process with a model that does not answer yet."""

    system: str
    workers: int
    slots: int
    submitted: int
    in_flight: int
    """Most turns that were with the model at one time."""
    completed: int | None
    """None where that was not waited for."""
    rest_mb: float
    """Memory of the process before the first turn."""
    busy_mb: float
    """The same with these turns in flight."""
    kb_per_turn: float
    """Growth per turn in flight."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run."""

    command: str
    date: str
    machine: str
    versions: dict[str, str]
    seconds: float
    rest_mb: dict[str, float]
    """Memory of one worker after its first turns, by system."""
    rows: list[Row]
    calls: list[CallCost]
    bursts: list[Burst]
    fleets: list[InFlight]


def quantile(values: Sequence[float], q: float) -> float:
    """Return the smallest value that a share `q` of all does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


def row_of(scenario: str, title: str, system: str, samples: Sequence[Sample]) -> Row:
    """Make a row of the rounds; times to first text of all rounds are taken together."""
    first = [ms for sample in samples for ms in sample.added_first_ms]
    speeds = [sample.turns / sample.wall_s for sample in samples]

    def per_turn(*names: str) -> list[float]:
        return [sum(getattr(s, name) for name in names) / max(1, s.turns) for s in samples]

    def median_ms(name: str) -> float:
        return statistics.median(per_turn(name)) * 1000

    own = per_turn("worker_cpu_s", "redis_cpu_s")
    return Row(
        scenario=scenario,
        title=title,
        system=system,
        rounds=len(samples),
        turns=sum(sample.turns for sample in samples),
        wrong=sum(sample.wrong for sample in samples),
        turns_per_s=statistics.median(speeds),
        turns_per_s_range=(min(speeds), max(speeds)),
        added_first_p50_ms=quantile(first, 0.5),
        added_first_p99_ms=quantile(first, 0.99),
        worker_cpu_ms=median_ms("worker_cpu_s"),
        redis_cpu_ms=median_ms("redis_cpu_s"),
        client_cpu_ms=median_ms("client_cpu_s"),
        model_cpu_ms=median_ms("model_cpu_s"),
        own_cpu_ms_range=(min(own) * 1000, max(own) * 1000),
        redis_commands=statistics.median(per_turn("redis_commands")),
        redis_requests=statistics.median(per_turn("redis_requests")),
        redis_kb=statistics.median(per_turn("redis_bytes")) / 1024,
        worker_peak_mb=max(sample.worker_peak_mb for sample in samples),
    )
