"""Counters, gauges and histograms, kept in this process and read by whoever exports them.

Labels hold only words from short lists: models, outcomes, codes; never an id.
"""

import bisect
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

from turnline.contracts.conversation import CallEntry
from turnline.worker.effects import ConversationSnapshot, Effects
from turnline.worker.pipeline.calls import LLMCall
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.attributes import Ending, call_error

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[str, ...]
Bounds = tuple[float, ...]
_SERIES: Final = 200
"""Most label sets of one meter; what comes after counts as `other`."""
_OTHER: Final = "other"
_CALL_S: Final = tuple(0.01 * 2**n for n in range(14))
_TURN_S: Final = tuple(0.1 * 2**n for n in range(13))
_WAIT_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Meter:
    """Values of one metric by labels."""

    def __init__(
        self, kind: Kind, name: str, unit: str, help_text: str, *labels: str, bounds: Bounds = ()
    ) -> None:
        """Begin without values.

        Args:
            kind: Decides which of `add`, `set` and `record` is used.
            name: As OpenTelemetry writes it, with dots.
            unit: UCUM, as OpenTelemetry writes it.
            help_text: What it means, in a sentence.
            labels: Their names.
            bounds: Upper bounds of a histogram's buckets, ascending.
        """
        self.kind: Kind = kind
        self.name = name
        self.unit = unit
        self.help_text = help_text
        self.labels = labels
        self.bounds = bounds
        self.numbers: dict[Labels, float] = {}
        """Of a counter or gauge."""
        self.buckets: dict[Labels, tuple[list[int], list[float]]] = {}
        """Of a histogram: counts per bucket (one more than bounds), and the sum in a list."""

    def add(self, amount: float, *labels: str) -> None:
        """Let a counter grow."""
        labels = self._known(labels, self.numbers)
        self.numbers[labels] = self.numbers.get(labels, 0) + amount

    def set(self, value: float, *labels: str) -> None:
        """Set a gauge."""
        self.numbers[self._known(labels, self.numbers)] = value

    def record(self, value: float, *labels: str) -> None:
        """Add a measurement to a histogram."""
        labels = self._known(labels, self.buckets)
        found = self.buckets.get(labels)
        if found is None:
            found = self.buckets[labels] = ([0] * (len(self.bounds) + 1), [0.0])
        counts, total = found
        counts[bisect.bisect_left(self.bounds, value)] += 1
        total[0] += value

    def _known(self, labels: Labels, values: Mapping[Labels, object]) -> Labels:
        if labels in values or len(values) < _SERIES:
            return labels
        return (_OTHER,) * len(self.labels)


def _counter(name: str, unit: str, help_text: str, *labels: str) -> Meter:
    return Meter("counter", name, unit, help_text, *labels)


def _gauge(name: str, unit: str, help_text: str, *labels: str) -> Meter:
    return Meter("gauge", name, unit, help_text, *labels)


def _times(name: str, help_text: str, *labels: str, bounds: Bounds) -> Meter:
    return Meter("histogram", name, "s", help_text, *labels, bounds=bounds)


class ShardGauges:
    """How each shard stood when it was last looked at."""

    def __init__(self) -> None:
        """Begin without values."""
        self.depth = _gauge(
            n.M_QUEUE_DEPTH, "{conversation}", "Conversations due and waiting.", "shard"
        )
        self.running = _gauge(
            n.M_QUEUE_RUNNING, "{conversation}", "Conversations leased or deferred.", "shard"
        )
        self.oldest = _gauge(n.M_QUEUE_OLDEST, "s", "How long the first one has been due.", "shard")
        self.dead_kept = _gauge(n.M_DEAD_KEPT, "{turn}", "Dead letters that are kept.", "shard")
        self.breakers_open = _gauge(
            n.M_BREAKERS_OPEN, "{breaker}", "Providers that are not called.", "shard"
        )


class TurnMeters:
    """All metrics of a worker."""

    def __init__(self) -> None:
        """Begin at zero."""
        model = n.REQUEST_MODEL
        self.calls = _counter(
            n.M_CALLS, "{call}", "Model calls by how they ended.", model, "status"
        )
        self.call_duration = _times(
            n.M_CALL_DURATION, "Model calls.", model, n.ERROR_TYPE, bounds=_CALL_S
        )
        self.first_chunk = _times(
            n.M_CALL_FIRST_CHUNK, "Request to first chunk.", model, bounds=_CALL_S
        )
        self.tokens = _counter(
            n.M_TOKENS,
            "{token}",
            "Tokens by kind: input (cached ones included), cached, output, reasoning.",
            model,
            n.TOKEN_TYPE,
        )
        self.cost = _counter(n.M_COST, "USD", "Cost as the provider reported it.", model)
        self.turn_duration = _times(
            n.M_TURN_DURATION, "Acceptance to end.", "outcome", bounds=_TURN_S
        )
        self.first_delta = _times(n.M_FIRST_DELTA, "Acceptance to the first text.", bounds=_CALL_S)
        self.queue_wait = _times(n.M_QUEUE_WAIT, "Acceptance to the first attempt.", bounds=_WAIT_S)
        self.retries = _counter(
            n.M_RETRIES, "{attempt}", "Attempts that another one follows.", "reason"
        )
        self.leases_lost = _counter(
            n.M_LEASES_LOST, "{lease}", "Attempts stopped since the lease was lost."
        )
        self.dead_letters = _counter(n.M_DEAD, "{turn}", "Turns that became dead letters.", "code")
        self.tool_duration = _times(
            n.M_TOOL_DURATION,
            "Functions that the model called.",
            n.TOOL_NAME,
            n.ERROR_TYPE,
            bounds=_CALL_S,
        )
        self.spans_sent = _counter(n.M_SPANS_SENT, "{span}", "Spans sent.", "to")
        self.spans_dropped = _counter(
            n.M_SPANS_DROPPED, "{span}", "Spans that could not be sent.", "to"
        )
        self.in_flight = _gauge(n.M_IN_FLIGHT, "{turn}", "Attempts running here.")
        self.loop_lag = _gauge(n.M_LOOP_LAG, "s", "Lateness of the event loop.")
        self.shards = ShardGauges()
        self._running = 0
        self.in_flight.set(0)

    def __iter__(self) -> Iterator[Meter]:
        """Yield all meters."""
        values = (*vars(self).values(), *vars(self.shards).values())
        return (value for value in values if isinstance(value, Meter))

    # -- called by the recorder -------------------------------------------------------------------

    def began(self) -> None:
        """An attempt begins."""
        self._running += 1
        self.in_flight.set(self._running)

    def parked(self) -> None:
        """An attempt ended before anything happened."""
        self._running -= 1
        self.in_flight.set(self._running)

    def call(self, call: LLMCall) -> None:
        """A model call is over."""
        error = call_error(call)
        self.calls.add(1, call.model, error or call.outcome)
        if call.duration_s is not None:
            self.call_duration.record(call.duration_s, call.model, error)
        if call.time_to_first_chunk_s is not None:
            self.first_chunk.record(call.time_to_first_chunk_s, call.model)

    def tool(self, name: str, duration_s: float, failure: str | None) -> None:
        """A function has its result."""
        self.tool_duration.record(duration_s, name, failure or "")

    def ended(
        self,
        word: str,
        loaded: ConversationSnapshot,
        effects: Effects | None,
        endings: Sequence[Ending],
        *,
        first_text_s: float | None,
        now_ms: int,
        retry_code: str,
    ) -> None:
        """An attempt is over."""
        self.parked()
        if loaded.attempt == 1 and loaded.entries:
            self.queue_wait.record((loaded.since_ms - loaded.entries[0].accepted_at_ms) / 1000)
        if first_text_s is not None:
            self.first_delta.record(first_text_s)
        if word == "lease_lost":
            self.leases_lost.add(1)
        elif word not in {"committed", "released", "duplicate", "done", "waiting"}:
            self.retries.add(1, retry_code or word)
        for ending in endings:
            duration_s = max(0, now_ms - ending.used.entry.accepted_at_ms) / 1000
            self.turn_duration.record(duration_s, ending.state)
            if ending.error:
                self.dead_letters.add(1, ending.error)
        for entry in effects.calls if effects is not None else ():
            self._spent(entry)

    def _spent(self, entry: CallEntry) -> None:
        usage, model = entry.usage, entry.model
        for kind, tokens in (
            ("input", usage.prompt_tokens),
            ("cached", usage.cached_tokens),
            ("output", usage.completion_tokens),
            ("reasoning", usage.reasoning_tokens),
        ):
            if tokens:
                self.tokens.add(tokens, model, kind)
        if usage.cost_usd_ticks:
            self.cost.add(usage.cost_usd_ticks / 1e10, model)


# -- as Prometheus reads them ---------------------------------------------------------------------

_UNITS: Final = {"s": "_seconds", "USD": "_usd"}


def prometheus_name(meter: Meter) -> str:
    """Return a metric's name in Prometheus.

    Source: https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/
    """
    name = meter.name.replace(".", "_") + _UNITS.get(meter.unit, "")
    return name + ("_total" if meter.kind == "counter" else "")


def prometheus_text(meters: TurnMeters) -> str:
    """Return everything in Prometheus' text format."""
    lines: list[str] = []
    for meter in meters:
        name = prometheus_name(meter)
        lines += [f"# HELP {name} {meter.help_text}", f"# TYPE {name} {meter.kind}"]
        lines += [
            f"{name}{_shown(meter, labels)} {value:.12g}"
            for labels, value in list(meter.numbers.items())
        ]
        for labels, (counts, total) in list(meter.buckets.items()):
            below = 0
            for bound, count in zip((*meter.bounds, float("inf")), counts, strict=True):
                below += count
                limit = "+Inf" if bound == float("inf") else f"{bound:g}"
                lines.append(f"{name}_bucket{_shown(meter, labels, le=limit)} {below}")
            lines.append(f"{name}_sum{_shown(meter, labels)} {total[0]:.12g}")
            lines.append(f"{name}_count{_shown(meter, labels)} {below}")
    return "\n".join(lines) + "\n"


def _shown(meter: Meter, labels: Labels, **more: str) -> str:
    pairs = {
        **{name.replace(".", "_"): v for name, v in zip(meter.labels, labels, strict=True) if v},
        **more,
    }
    if not pairs:
        return ""
    shown = (f'{name}="{_escaped(value)}"' for name, value in pairs.items())
    return "{" + ",".join(shown) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
