"""Sets telemetry up from settings and the `OTEL_*` variables, and closes it in bounded time."""

import asyncio
import importlib
import logging
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, NamedTuple, Protocol, cast

from opentelemetry import context
from opentelemetry._logs import get_logger
from opentelemetry.trace import NoOpTracer, get_current_span

from turnline.worker.errors import StartFailed
from turnline.worker.logs import places, type_name
from turnline.worker.telemetry import captured_content
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.attributes import CallPlace
from turnline.worker.telemetry.evaluations import EvaluationLog
from turnline.worker.telemetry.kept_spans import EndedSpans, SpanKeeper, TraceStore
from turnline.worker.telemetry.metrics import TurnMeters
from turnline.worker.telemetry.providers import find_or_make
from turnline.worker.telemetry.recording import Recording
from turnline.worker.telemetry.tracing import Redactor, Tracing, derive_ids, traceparent_of
from turnline.worker.turn.observer import Observer

log = logging.getLogger("turnline.telemetry")

CLOSE_S: Final = 3.0
"""Longest time for a last export."""
_SAMPLE_S: Final = 5.0
_LAG_S: Final = 0.5


class TelemetrySettings(NamedTuple):
    """What of the worker's settings matters here."""

    worker: str
    place: CallPlace
    """Where the model's provider is."""
    redactor: str = ""
    """`module:function`; see `turnline.worker.telemetry.tracing.Redactor`."""
    is_shown: bool = False
    """Whether metrics are asked for over HTTP."""


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
    @property
    def held(self) -> int: ...  # noqa: D102
    @property
    def used_up(self) -> int: ...  # noqa: D102


ReadGauges = Callable[[], Awaitable[Gauges]]


class Telemetry:
    """A worker process's telemetry."""

    def __init__(
        self,
        settings: TelemetrySettings,
        environ: Mapping[str, str],
        *,
        version: str,
        whole: bool = False,
    ) -> None:
        """Prepare what is asked for; `open` starts it.

        Args:
            settings: The worker's.
            environ: The `OTEL_*` variables.
            version: Turnline's.
            whole: Whether the process is a worker and nothing else; see `find_or_make`.

        Raises:
            StartFailed: The redactor cannot be imported, or an `OTEL_*` variable is unusable.
        """
        self._settings = settings
        self._capture = captured_content.is_asked_for(environ)
        in_events = captured_content.is_asked_for_in_events(environ)
        redact = _imported(settings.redactor)
        resource = {
            "service.name": n.SCOPE,
            "service.version": version,
            "service.instance.id": settings.worker,
        }
        self._providers = find_or_make(environ, resource, is_shown=settings.is_shown, whole=whole)
        self.exposition: Callable[[], bytes] | None = None
        """Writes metrics as Prometheus reads them, from any thread; None: nobody asks."""
        if settings.is_shown:
            from turnline.worker.telemetry.exposition import shown_by  # noqa: PLC0415  not for all

            self.exposition = shown_by(self._providers.metrics, environ)
        tracer = self._providers.traces.get_tracer(n.SCOPE, version)
        derive_ids(tracer)
        self._tracing = None if isinstance(tracer, NoOpTracer) else Tracing(tracer, redact)
        self._evaluations = EvaluationLog(get_logger(n.SCOPE, version), redact, in_events)
        self.meters = TurnMeters(
            self._providers.metrics.get_meter(n.SCOPE, version), settings.place
        )
        self._ended: EndedSpans | None = None
        self._stores: list[TraceStore] = []
        self._gauges: dict[str, ReadGauges] = {}
        self._tasks: list[asyncio.Task[None]] = []

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
        keeper = None
        if store is not None and self._tracing is not None:
            if self._ended is None:
                self._ended = EndedSpans()
                self._providers.add(self._ended)
            keeper = SpanKeeper(self._ended, store, self._tracing.redact)
            self._stores.append(store)
        self._gauges[shard] = gauges
        return Recording(
            worker=self._settings.worker,
            place=self._settings.place,
            tracing=self._tracing if keeper is not None or self._providers.sends_spans else None,
            meters=self.meters,
            queue=queue,
            keeper=keeper,
            capture=self._capture,
            evaluations=self._evaluations,
        )

    def open(self) -> None:
        """Begin to sample, if anybody reads metrics."""
        if self._providers.has_metrics:
            self._tasks = [
                asyncio.create_task(self._sample()),
                asyncio.create_task(self._watch_loop()),
            ]

    async def close(self) -> None:
        """Send what waits; `CLOSE_S` seconds at most, whatever the collector does."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(self._send_all(), *(store.close() for store in self._stores))

    async def _send_all(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._providers.close()
        except TimeoutError:
            log.warning("telemetry.unsent")

    async def _sample(self) -> None:
        gauges = self.meters.shards
        while True:
            for shard, read in self._gauges.items():
                try:
                    now = await read()
                except Exception as error:  # noqa: BLE001  Redis is away: the turns log that
                    log.debug("telemetry.unsampled", extra={"error": type(error).__name__})
                    continue
                gauges.depth(now.due, shard)
                gauges.running(now.running, shard)
                gauges.oldest(now.oldest_s, shard)
                gauges.dead_kept(now.dead, shard)
                gauges.breakers_open(now.breakers_open, shard)
                gauges.held(now.held, shard)
                gauges.used_up(now.used_up, shard)
            await asyncio.sleep(_SAMPLE_S)

    async def _watch_loop(self) -> None:
        """Measure by how much the event loop is late: the worst of the last few seconds."""
        loop = asyncio.get_running_loop()
        worst = [0.0] * int(_SAMPLE_S / _LAG_S)
        while True:
            due_s = loop.time() + _LAG_S
            await asyncio.sleep(_LAG_S)
            worst = [*worst[1:], max(0.0, loop.time() - due_s)]
            self.meters.loop_lag(max(worst))


@contextmanager
def unwatched() -> Generator[None]:
    """Have libraries that are instrumented make no spans of what a worker does by itself.

    It polls and beats all the time. Model calls, tools and commits have contexts of their own.
    """
    token = context.attach(context.set_value("suppress_instrumentation", True))
    try:
        yield
    finally:
        context.detach(token)


class TracedHeaders(Mapping[str, str]):
    """Headers of a model call, with the trace context of whoever makes it."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        """Add to these."""
        self._headers = headers

    def _now(self) -> Mapping[str, str]:
        traceparent = traceparent_of(get_current_span())
        return {**self._headers, "traceparent": traceparent} if traceparent else self._headers

    def __getitem__(self, name: str) -> str:
        return self._now()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())


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
