"""What was measured, and how rounds become one row."""

import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec

from turnline.ops.chaos.figures import Figure, percentile

_MANY = 50
"""Conversations at once from which memory per conversation says something."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One round of one system in one scenario."""

    turns: int
    wrong: int
    """Turns whose reply differs from what the model said."""
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
    worker_growth_mb: float
    """All workers' peaks over what they had when the round began."""
    at_once: int
    """Conversations."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """All rounds of one system in one scenario: medians and ranges."""

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
    at_once: int
    in_flight_kb: float
    """Memory that the workers took on during a round per conversation: the most of all rounds."""

    @property
    def own_cpu_ms(self) -> float:
        """CPU per turn of everything but client and model."""
        return self.worker_cpu_ms + self.redis_cpu_ms

    @property
    def wrong_replies(self) -> str:
        """A warning, if any reply was wrong."""
        return f"  {self.wrong} WRONG" if self.wrong else ""

    @property
    def peak(self) -> str:
        """Memory of the largest worker; empty where there is none."""
        return f"{self.worker_peak_mb:.0f}" if self.worker_peak_mb else ""

    @property
    def each(self) -> str:
        """Memory per conversation; empty where that says nothing."""
        return f"{self.in_flight_kb:.0f}" if self.peak and self.at_once >= _MANY else ""


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

    @property
    def gap(self) -> str:
        """The gaps, in ms."""
        if self.gap_p50_ms is None or self.gap_p99_ms is None:
            return "not in turn"
        return f"{self.gap_p50_ms:.1f} / {self.gap_p99_ms:.1f}"


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

    @property
    def ended(self) -> str:
        """How many turns completed."""
        return "not waited for" if self.completed is None else f"{self.completed:,}"


class Submitting(msgspec.Struct, frozen=True, kw_only=True):
    """A producer that submits as fast as it can."""

    producer: str
    way: str
    """One at a time, many at once, or in batches."""
    per_s: float
    per_s_range: tuple[float, float]
    client_us: float
    """CPU of the producer per submission, as the next."""
    redis_us: float
    redis_requests: float
    """Reads from sockets per submission."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement of a curve: the median of its rounds."""

    x: float
    y: float
    y_range: tuple[float, float]


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """How a cost grows with a size."""

    name: str
    title: str
    x: str
    """What grows."""
    y: str
    """What is measured, with its unit."""
    expected: Literal["flat", "linear"]
    points: list[Point]
    """By ascending x; three at least."""
    judged_to: float | None = None
    """Largest x that the expectation is about; None: all."""
    floor: list[Point] = []
    """The same of a bare worker, where that was measured."""

    @property
    def factor(self) -> float:
        """How steep the curve is, to be at most 2.

        Flat: the last value over the first. Linear: the slope of the last step over the slope
        before it, 1 for a straight line.
        """
        judged = [it for it in self.points if self.judged_to is None or it.x <= self.judged_to]
        first, before, last = judged[0], judged[-2], judged[-1]
        if self.expected == "flat":
            return last.y / max(first.y, 1e-9)
        slope = (before.y - first.y) / (before.x - first.x)
        return (last.y - before.y) / (last.x - before.x) / max(slope, 1e-9)

    @property
    def values(self) -> str:
        """What was measured at each point."""
        return "; ".join(f"{_short(point.x)}: {point.y:.3g}" for point in self.points)

    @property
    def is_as_expected(self) -> bool:
        """Whether the curve is flat, or linear, as it is expected to be."""
        return self.factor <= 2

    @property
    def judged(self) -> str:
        """What the curve was expected to be, and whether it is."""
        until = f" up to {_short(self.judged_to)}" if self.judged_to else ""
        return f"{'' if self.is_as_expected else 'NOT '}{self.expected}{until}"


class Soak(msgspec.Struct, frozen=True, kw_only=True):
    """A worker under load for a while, with a cache that is soon full."""

    seconds: float
    turns: int
    wrong: int
    rss_mb: list[tuple[int, float]]
    """(turns so far, memory of the worker), in equal intervals."""
    kb_per_1000_turns: float
    """Growth over the second half: the slope of the line closest to it."""

    @property
    def early_mb(self) -> float:
        """Memory after a tenth of the time."""
        return self.rss_mb[len(self.rss_mb) // 10][1]

    @property
    def end_mb(self) -> float:
        """Memory at the end."""
        return self.rss_mb[-1][1]


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
    producers: list[Submitting] = []
    curves: list[Curve] = []
    soak: Soak | None = None
    drills: list[Figure] = []
    """What drills of `turnline chaos` came to."""

    @property
    def soaks(self) -> list[Soak]:
        """The soak, if there was one."""
        return [self.soak] if self.soak is not None else []


def point_of(x: float, values: Sequence[float]) -> Point:
    """Make a point of the rounds."""
    return Point(x=x, y=statistics.median(values), y_range=(min(values), max(values)))


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the line that fits these (x, y) best; 0 of fewer than two."""
    if len({x for x, _ in points}) < 2:
        return 0.0
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope


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
        added_first_p50_ms=percentile(first, 0.5),
        added_first_p99_ms=percentile(first, 0.99),
        worker_cpu_ms=median_ms("worker_cpu_s"),
        redis_cpu_ms=median_ms("redis_cpu_s"),
        client_cpu_ms=median_ms("client_cpu_s"),
        model_cpu_ms=median_ms("model_cpu_s"),
        own_cpu_ms_range=(min(own) * 1000, max(own) * 1000),
        redis_commands=statistics.median(per_turn("redis_commands")),
        redis_requests=statistics.median(per_turn("redis_requests")),
        redis_kb=statistics.median(per_turn("redis_bytes")) / 1024,
        worker_peak_mb=max(sample.worker_peak_mb for sample in samples),
        at_once=max(it.at_once for it in samples),
        in_flight_kb=max(it.worker_growth_mb * 1024 / it.at_once for it in samples),
    )


def _short(number: float) -> str:
    """Return a size as people read it: 1,000 or 5M."""
    return f"{number / 1_000_000:g}M" if number >= 1_000_000 else f"{number:,.0f}"
