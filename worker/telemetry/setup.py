"""Sets telemetry up from settings and the `OTEL_*` variables, and closes it in bounded time."""

import asyncio
import importlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Final, NamedTuple, Protocol, cast

import msgspec

from turnline.worker.errors import StartFailed
from turnline.worker.logs import places, type_name
from turnline.worker.telemetry import captured_content
from turnline.worker.telemetry.attributes import CallPlace
from turnline.worker.telemetry.metrics import TurnMeters, prometheus_text
from turnline.worker.telemetry.prometheus import PrometheusPort
from turnline.worker.telemetry.recording import (
    Recording,
    Redactor,
    SpanSink,
    traceparent_to_send,
)
from turnline.worker.telemetry.spans import TurnSpans
from turnline.worker.turn.observer import Observer

log = logging.getLogger("turnline.telemetry")

CLOSE_S: Final = 3.0
"""Longest time for a last export."""
_SAMPLE_S: Final = 5.0
_LAG_S: Final = 0.5
_encode = msgspec.json.Encoder(enc_hook=repr).encode


class TelemetrySettings(NamedTuple):
    """What of the worker's settings matters here."""

    worker: str
    place: CallPlace
    """Where the model's provider is."""
    redactor: str = ""
    """`module:function`; see `turnline.worker.telemetry.recording.Redactor`."""
    send_traceparent: bool = False
    metrics_port: int = 0


class TraceStore(Protocol):
    """Keeps traces where `turnline trace` finds them; see `turnline.worker.store.traces`."""

    def keep(self, turn: TurnSpans, data: bytes) -> None:
        """Keep the spans of one attempt, and their JSON."""
        ...

    async def close(self) -> None:
        """Write what waits, for a bounded time."""
        ...


class Gauges(Protocol):
    """How a shard stands; see `turnline.worker.store.gauges`."""

    @property
    def due(self) -> int: ...  # noqa: D102
    @property
    def running(self) -> int: ...  # noqa: D102
    @property
    def oldest_s(self) -> float: ...  # noqa: D102
    @property
    def dead(self) -> int: ...  # noqa: D102
    @property
    def breakers_open(self) -> int: ...  # noqa: D102


ReadGauges = Callable[[], Awaitable[Gauges]]


class _Kept:
    """The sink that hands spans to a trace store."""

    def __init__(self, store: TraceStore) -> None:
        self._store = store

    def export(self, turn: TurnSpans) -> None:
        self._store.keep(turn, _encode(turn))


class _Sends(Protocol):
    """Sends to a collector from `open` on."""

    def open(self) -> None: ...

    async def close(self) -> None: ...


class Telemetry:
    """A worker process's telemetry: nothing is imported, started or made that nobody asked for."""

    def __init__(
        self, settings: TelemetrySettings, environ: Mapping[str, str], *, version: str
    ) -> None:
        """Prepare what is asked for; `open` starts it.

        Raises:
            StartFailed: The redactor cannot be imported, or an `OTEL_*` variable is unusable.
        """
        self.meters = TurnMeters()
        self._settings = settings
        self._environ = environ
        self._capture = captured_content.is_asked_for(environ)
        self._redact = _imported(settings.redactor)
        self._spans: list[SpanSink] = []
        self._senders: list[_Sends] = []
        self._stores: list[TraceStore] = []
        self._gauges: dict[str, ReadGauges] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._prometheus: PrometheusPort | None = None
        traces, metrics = (_endpoint(environ, signal) for signal in ("TRACES", "METRICS"))
        self._has_metrics = metrics or settings.metrics_port > 0
        if traces or metrics:
            self._prepare_otlp(version, traces=traces, metrics=metrics)

    def _prepare_otlp(self, version: str, *, traces: bool, metrics: bool) -> None:
        from turnline.worker.telemetry import otlp  # noqa: PLC0415  time and memory, if asked for only
        from turnline.worker.telemetry.encoding import resource_of  # noqa: PLC0415
        from turnline.worker.telemetry.otlp_http import BadVariable, Sender, target_of  # noqa: PLC0415

        environ, meters = self._environ, self.meters
        try:
            of_traces = target_of(environ, "traces") if traces else None
            of_metrics = target_of(environ, "metrics") if metrics else None
        except BadVariable as error:
            raise StartFailed(f"{error}. OTEL_SDK_DISABLED=true sends nothing.") from None
        resource = resource_of(environ, worker=self._settings.worker, version=version)
        if of_traces is not None:
            sender = Sender(of_traces)
            spans = otlp.OtlpSpans(environ, resource, meters, sender)
            self._spans.append(spans)
            self._senders.append(spans)
        if of_metrics is not None:
            sender = Sender(of_metrics)
            self._senders.append(otlp.OtlpMetrics(environ, resource, meters, sender))

    def observer(
        self,
        *,
        shard: str,
        queue: str,
        store: TraceStore | None,
        gauges: ReadGauges,
    ) -> Observer:
        """Return what watches the turns of one shard.

        Args:
            shard: Names it in metrics.
            queue: Names it in spans.
            store: Keeps the shard's traces.
            gauges: Reads how the shard stands.
        """
        sinks = [*self._spans]
        if store is not None:
            sinks.append(_Kept(store))
            self._stores.append(store)
        self._gauges[shard] = gauges
        return Recording(
            worker=self._settings.worker,
            place=self._settings.place,
            sinks=sinks,
            meters=self.meters,
            queue=queue,
            capture=self._capture,
            redact=self._redact,
            send_traceparent=self._settings.send_traceparent,
        )

    async def open(self) -> None:
        """Begin to send, to sample and to listen, as far as it is asked for.

        Raises:
            StartFailed: The port is in use.
        """
        for sender in self._senders:
            sender.open()
        if not self._has_metrics:
            return
        if self._settings.metrics_port:
            self._prometheus = PrometheusPort(lambda: prometheus_text(self.meters))
            try:
                await self._prometheus.open(self._settings.metrics_port)
            except OSError as error:
                raise StartFailed(
                    f"port {self._settings.metrics_port} cannot be opened for metrics "
                    f"({error.strerror}); set TURNLINE_METRICS_PORT to another one, or to 0"
                ) from None
        self._tasks = [
            asyncio.create_task(self._sample()),
            asyncio.create_task(self._watch_loop()),
        ]

    async def close(self) -> None:
        """Send what waits; `CLOSE_S` seconds at most, whatever the collector does."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._prometheus is not None:
            await self._prometheus.close()
        await asyncio.gather(
            *(_ended(sender) for sender in self._senders),
            *(store.close() for store in self._stores),
        )

    async def _sample(self) -> None:
        gauges = self.meters.shards
        while True:
            for shard, read in self._gauges.items():
                try:
                    now = await read()
                except Exception as error:  # noqa: BLE001  Redis is away: the turns log that
                    log.debug("telemetry.unsampled", extra={"error": type(error).__name__})
                    continue
                gauges.depth.set(now.due, shard)
                gauges.running.set(now.running, shard)
                gauges.oldest.set(now.oldest_s, shard)
                gauges.dead_kept.set(now.dead, shard)
                gauges.breakers_open.set(now.breakers_open, shard)
            await asyncio.sleep(_SAMPLE_S)

    async def _watch_loop(self) -> None:
        """Measure by how much the event loop is late: the worst of the last few seconds."""
        loop = asyncio.get_running_loop()
        worst = [0.0] * int(_SAMPLE_S / _LAG_S)
        while True:
            due_s = loop.time() + _LAG_S
            await asyncio.sleep(_LAG_S)
            worst = [*worst[1:], max(0.0, loop.time() - due_s)]
            self.meters.loop_lag.set(max(worst))


class TracedHeaders(Mapping[str, str]):
    """Headers of a model call, with the trace context of whoever makes it."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        """Add to these."""
        self._headers = headers

    def _now(self) -> Mapping[str, str]:
        traceparent = traceparent_to_send.get()
        return {**self._headers, "traceparent": traceparent} if traceparent else self._headers

    def __getitem__(self, name: str) -> str:
        return self._now()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())


def _endpoint(environ: Mapping[str, str], signal: str) -> bool:
    """Whether a collector is configured for traces or metrics.

    Source: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environ.get(f"OTEL_{signal}_EXPORTER", "otlp").strip().lower() == "none":
        return False
    base = "OTEL_EXPORTER_OTLP_"
    both = (f"{base}{signal}_ENDPOINT", f"{base}ENDPOINT")
    return any(environ.get(name, "").strip() for name in both)


def _imported(path: str) -> Redactor | None:
    if not path:
        return None
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        found = None
    except (Exception, SystemExit) as error:  # noqa: BLE001  foreign code
        raise StartFailed(
            f"TURNLINE_REDACTOR: {module} cannot be imported: {type_name(error)} "
            f"({', '.join(places(error.__traceback__)[-1:])})"
        ) from None
    if not callable(found):
        raise StartFailed(
            f"TURNLINE_REDACTOR: {path} is no function; it is written module:function"
        )
    return cast("Redactor", found)


async def _ended(sender: _Sends) -> None:
    try:
        async with asyncio.timeout(CLOSE_S):
            await sender.close()
    except TimeoutError:
        log.warning("telemetry.unsent", extra={"sender": type(sender).__name__})
