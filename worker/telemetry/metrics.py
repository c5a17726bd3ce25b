"""Counters, gauges and histograms, by OpenTelemetry's API; whoever set a provider up reads them.

Labels hold only words from short lists: models, outcomes, codes; never an id.
"""

from collections.abc import Callable, Sequence
from typing import Final
from weakref import WeakKeyDictionary

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from turnline.contracts.conversation import CallEntry
from turnline.worker.effects import ConversationSnapshot, Effects
from turnline.worker.pipeline.calls import LLMCall
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.attributes import CallPlace, Ending, call_error, output_tokens
from turnline.worker.telemetry.spans import Attributes
from turnline.worker.turn.commit import NO_DEAD_LETTER

Labels = tuple[str, ...]
Bounds = tuple[float, ...]
_SERIES: Final = 200
"""Most label sets of one metric; what comes after counts as `other`."""
_OTHER: Final = "other"
_CALL_S: Final = tuple(0.01 * 2**n for n in range(14))
_TURN_S: Final = tuple(0.1 * 2**n for n in range(13))
_TOKENS: Final = tuple(4.0**n for n in range(14))
_WAIT_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Labelled:
    """Hands values on with labels, of which it lets in only so many."""

    def __init__(
        self, take: Callable[[float, Attributes], None], names: Labels, always: Attributes
    ) -> None:
        """Hand on to `take`, with labels of these names, and those that are always the same."""
        self._take = take
        self.names = names
        self._always = always
        self._known: dict[Labels, Attributes] = {}

    def __call__(self, value: float, *labels: str) -> None:
        """Hand on a value; an empty label is left out."""
        labels = self._admitted(labels)
        self._take(value, self._known[labels])

    def _admitted(self, labels: Labels) -> Labels:
        if labels in self._known:
            return labels
        if len(self._known) >= _SERIES:
            labels = (_OTHER,) * len(self.names)
        given = {name: it for name, it in zip(self.names, labels, strict=True) if it}
        self._known[labels] = {**self._always, **given}
        return labels


class Watched(Labelled):
    """A counter or a gauge that is looked at when metrics are read.

    The SDK's own take 10 us for each value, of which a turn has a dozen.
    """

    def __init__(self, names: Labels, *, adds_up: bool) -> None:
        """Begin with no value; `adds_up`: a counter."""
        super().__init__(lambda _value, _attributes: None, names, {})
        self._adds_up = adds_up
        self._values: dict[Labels, float] = {}

    def __call__(self, value: float, *labels: str) -> None:
        """Add a value, or set it."""
        labels = self._admitted(labels)
        self._values[labels] = value + (self._values.get(labels, 0) if self._adds_up else 0)

    def observe(self, _: CallbackOptions) -> Sequence[Observation]:
        """Return what there is, from any thread."""
        return [Observation(value, self._known[it]) for it, value in [*self._values.items()]]


_watched: WeakKeyDictionary[Meter, dict[str, Watched]] = WeakKeyDictionary()
"""Those of a meter by their names: the workers of a process share them, as they share the meter."""


class _Made:
    """Makes instruments of one meter."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._watched = _watched.setdefault(meter, {})

    def counter(self, name: str, unit: str, about: str, *labels: str) -> Labelled:
        if name not in self._watched:
            found = self._watched[name] = Watched(labels, adds_up=True)
            self._meter.create_observable_counter(name, [found.observe], unit, about)
        return self._watched[name]

    def gauge(self, name: str, unit: str, about: str, *labels: str) -> Labelled:
        if name not in self._watched:
            found = self._watched[name] = Watched(labels, adds_up=False)
            self._meter.create_observable_gauge(name, [found.observe], unit, about)
        return self._watched[name]

    def histogram(
        self,
        name: str,
        unit: str,
        about: str,
        *labels: str,
        bounds: Bounds,
        always: Attributes | None = None,
    ) -> Labelled:
        made = self._meter.create_histogram(
            name, unit, about, explicit_bucket_boundaries_advisory=bounds
        )
        return Labelled(made.record, labels, always or {})

    def times(
        self, name: str, about: str, *labels: str, bounds: Bounds, always: Attributes | None = None
    ) -> Labelled:
        return self.histogram(name, "s", about, *labels, bounds=bounds, always=always)


class ShardGauges:
    """How each shard stood when it was last looked at."""

    def __init__(self, make: _Made) -> None:
        """Make the gauges."""
        self.depth = make.gauge(
            n.M_QUEUE_DEPTH, "{conversation}", "Conversations due and waiting.", "shard"
        )
        self.running = make.gauge(
            n.M_QUEUE_RUNNING, "{conversation}", "Conversations leased or deferred.", "shard"
        )
        self.oldest = make.gauge(
            n.M_QUEUE_OLDEST, "s", "How long the first one has been due.", "shard"
        )
        self.dead_kept = make.gauge(n.M_DEAD_KEPT, "{turn}", "Dead letters that are kept.", "shard")
        self.breakers_open = make.gauge(
            n.M_BREAKERS_OPEN, "{breaker}", "Providers that are not called.", "shard"
        )
        self.held = make.gauge(
            n.M_QUEUE_HELD, "{conversation}", "Conversations held back by tenants' limits.", "shard"
        )
        self.used_up = make.gauge(
            n.M_BUDGETS_USED_UP, "{budget}", "Budgets of which nothing is left.", "shard"
        )


class CallMeters:
    """Metrics of model calls and tools."""

    def __init__(self, make: _Made, place: CallPlace) -> None:
        """Make the instruments; `place` is where model calls go."""
        model = n.REQUEST_MODEL
        chat = {
            n.OPERATION_NAME: n.CHAT,
            n.PROVIDER_NAME: place.provider,
            n.SERVER_ADDRESS: place.address,
            n.SERVER_PORT: place.port,
        }
        self.calls = make.counter(
            n.M_CALLS, "{call}", "Model calls by how they ended.", model, "status"
        )
        self.call_duration = make.times(
            n.M_CALL_DURATION, "Model calls.", model, n.ERROR_TYPE, bounds=_CALL_S, always=chat
        )
        self.first_chunk = make.times(
            n.M_CALL_FIRST_CHUNK, "Request to first chunk.", model, bounds=_CALL_S, always=chat
        )
        self.token_usage = make.histogram(
            n.M_TOKEN_USAGE,
            "{token}",
            "Tokens of a model call: input (cached ones included), output (reasoning included).",
            model,
            n.TOKEN_TYPE,
            bounds=_TOKENS,
            always=chat,
        )
        self.tokens = make.counter(
            n.M_TOKENS,
            "{token}",
            "Tokens by kind: input (cached ones included), cached, output, reasoning.",
            model,
            n.TOKEN_TYPE,
        )
        self.cost = make.counter(n.M_COST, "{usd}", "Cost as the provider reported it.", model)
        self.tool_duration = make.times(
            n.M_TOOL_DURATION,
            "Functions that the model called.",
            n.TOOL_NAME,
            n.ERROR_TYPE,
            bounds=_CALL_S,
        )
        self.agent_duration = make.times(
            n.M_AGENT_DURATION,
            "What an agent did in an attempt, from its first model call on.",
            n.AGENT_NAME,
            model,
            bounds=_TURN_S,
        )


class TurnMeters(CallMeters):
    """All metrics of a worker."""

    def __init__(self, meter: Meter, place: CallPlace) -> None:
        """Make the instruments; `place` is where model calls go."""
        make = _Made(meter)
        super().__init__(make, place)
        self.turn_duration = make.times(
            n.M_TURN_DURATION, "Acceptance to end.", "outcome", bounds=_TURN_S
        )
        self.first_delta = make.times(
            n.M_FIRST_DELTA, "Acceptance to the first text.", bounds=_CALL_S
        )
        self.queue_wait = make.times(
            n.M_QUEUE_WAIT, "Acceptance to the first attempt.", bounds=_WAIT_S
        )
        self.retries = make.counter(
            n.M_RETRIES, "{attempt}", "Attempts that another one follows.", "reason"
        )
        self.leases_lost = make.counter(
            n.M_LEASES_LOST, "{lease}", "Attempts stopped since the lease was lost."
        )
        self.dead_letters = make.counter(
            n.M_DEAD, "{turn}", "Turns that became dead letters.", "code"
        )
        self.spans_sent = make.counter(n.M_SPANS_SENT, "{span}", "Spans sent.", "to")
        self.spans_dropped = make.counter(
            n.M_SPANS_DROPPED, "{span}", "Spans that could not be sent.", "to"
        )
        self.in_flight = make.gauge(n.M_IN_FLIGHT, "{turn}", "Attempts running here.")
        self.loop_lag = make.gauge(n.M_LOOP_LAG, "s", "Lateness of the event loop.")
        self.shards = ShardGauges(make)
        self._running = 0
        self.in_flight(0)

    # -- called by the recorder -------------------------------------------------------------------

    def began(self) -> None:
        """An attempt begins."""
        self._running += 1
        self.in_flight(self._running)

    def parked(self, retry_code: str) -> None:
        """An attempt ended before anything happened; another one follows, for a reason or none."""
        if retry_code:
            self.retries(1, retry_code)
        self._running -= 1
        self.in_flight(self._running)

    def call(self, call: LLMCall) -> None:
        """A model call is over."""
        error = call_error(call)
        self.calls(1, call.model, error or call.outcome)
        if call.duration_s is not None:
            self.call_duration(call.duration_s, call.model, error)
        if call.time_to_first_chunk_s is not None:
            self.first_chunk(call.time_to_first_chunk_s, call.model)

    def tool(self, name: str, duration_s: float, failure: str | None) -> None:
        """A function has its result."""
        self.tool_duration(duration_s, name, failure or "")

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
        self.parked("")
        if loaded.attempt == 1 and loaded.entries:
            self.queue_wait((loaded.since_ms - loaded.entries[0].accepted_at_ms) / 1000)
        if first_text_s is not None:
            self.first_delta(first_text_s)
        if word == "lease_lost":
            self.leases_lost(1)
        elif word not in {"committed", "released", "duplicate", "done", "waiting"}:
            self.retries(1, retry_code or word)
        for ending in endings:
            duration_s = max(0, now_ms - ending.used.entry.accepted_at_ms) / 1000
            self.turn_duration(duration_s, ending.state)
            if ending.error and ending.error not in NO_DEAD_LETTER:
                self.dead_letters(1, ending.error)
        for entry in effects.calls if effects is not None else ():
            self._spent(entry)

    def _spent(self, entry: CallEntry) -> None:
        usage, model = entry.usage, entry.model
        if entry.state != "unknown":
            self.token_usage(usage.prompt_tokens, model, "input")
            self.token_usage(output_tokens(usage), model, "output")
        for kind, tokens in (
            ("input", usage.prompt_tokens),
            ("cached", usage.cached_tokens),
            ("output", usage.completion_tokens),
            ("reasoning", usage.reasoning_tokens),
        ):
            if tokens:
                self.tokens(tokens, model, kind)
        if usage.cost_usd_ticks:
            self.cost(usage.cost_usd_ticks / 1e10, model)
