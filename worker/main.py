"""The composition root: builds a worker from its settings; nothing else knows every part."""

import asyncio
import gc
import logging
import os
import platform
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import uvloop
from arq.connections import ArqRedis
from openai import AsyncOpenAI
from redis.exceptions import RedisError

from turnline.contracts.connection import AsyncRedis, open_async, pool_of
from turnline.contracts.conversation import ConversationSettings
from turnline.contracts.job_format import deserialize_job, serialize_job
from turnline.contracts.keys import ShardKeys, shard_keys
from turnline.worker.batching import ScriptBatcher
from turnline.worker.ending import CLOSE_S, Listen, Watchdog, run_until_told, within
from turnline.worker.lease import LeaseSettings
from turnline.worker.pipeline.calls import CallObserver
from turnline.worker.queue.jobs import run_conversation
from turnline.worker.queue.leased_worker import HAND_OVER_S, LeasedWorker
from turnline.worker.schema_checking import Checker
from turnline.worker.services.grok.llm import GrokLLMService
from turnline.worker.services.openai.llm import OpenAIInputParams, create_client
from turnline.worker.services.transport import TimeLimits
from turnline.worker.settings import Settings
from turnline.worker.starting.provider_check import (
    ProviderFound,
    cannot_connect,
    check_provider,
    need_key,
)
from turnline.worker.starting.redis_check import RedisFound, check_redis
from turnline.worker.starting.signals import ended_by, obeyed
from turnline.worker.starting.stage import StartFailed, said_if_slow
from turnline.worker.store.breakers import Breakers
from turnline.worker.store.cache import ContextCache
from turnline.worker.store.conversations import Conversations, StoreLimits
from turnline.worker.store.gauges import read_gauges
from turnline.worker.store.traces import TraceLimits, Traces
from turnline.worker.telemetry.setup import (
    Telemetry,
    TelemetryError,
    TelemetrySettings,
    TracedHeaders,
)
from turnline.worker.tools.loader import load_tools
from turnline.worker.tools.runner import ResourcesFailed, Toolbox
from turnline.worker.turn.driver import ConversationDriver
from turnline.worker.turn.observer import Observer
from turnline.worker.turn.plan import AgentsFile, BadAgents, Planner, ToolLimits
from turnline.worker.turn.ports import DriverSettings
from turnline.worker.turn.reply_format import request_format

log = logging.getLogger("turnline.worker")
_CLOSE_S = 5.0
"""Seconds that a close may take that nobody asked for."""


def _nothing() -> None:
    """Nobody is told."""


NOTHING_AROUND: AbstractContextManager[object] = nullcontext()


class Found(NamedTuple):
    """What the pass before the start found."""

    redis: RedisFound
    provider: ProviderFound
    tools: tuple[str, ...]
    agents: tuple[str, ...]


class GrokServices:
    """Makes the service for one attempt at one turn, around one client per worker."""

    def __init__(self, settings: Settings) -> None:
        """Open a client; nothing is sent yet."""
        self._settings = settings
        self._limits = TimeLimits(
            first_token_s=settings.first_token_timeout_s,
            idle_s=settings.idle_timeout_s,
            total_s=settings.turn_budget_s,
        )
        self.client: AsyncOpenAI = create_client(
            api_key=settings.api_key.value, base_url=settings.base_url
        )
        self.create_context_aggregator = self("", ConversationSettings()).create_context_aggregator
        """Needs no service of its own: nothing of a pair depends on a turn's settings."""

    def model_of(self, settings: ConversationSettings) -> str:
        """Return the name of the model that a conversation with these settings talks to."""
        return settings.model or self._settings.model

    def __call__(
        self,
        conversation_id: str,
        settings: ConversationSettings,
        observer: CallObserver | None = None,
    ) -> GrokLLMService:
        """Return a service that talks as this conversation's settings say."""
        given = {
            name: value
            for name in ("temperature", "top_p", "max_tokens", "seed")
            if (value := getattr(settings, name)) is not None
        }
        extra: dict[str, Any] = {}
        if settings.reasoning_effort:
            extra["reasoning_effort"] = settings.reasoning_effort
        if settings.response_format is not None:
            extra["response_format"] = request_format(settings.response_format)
        headers: Mapping[str, str] = {"x-grok-conv-id": _header_value(conversation_id)}
        if self._settings.send_traceparent:
            headers = TracedHeaders(headers)
        return GrokLLMService(
            api_key=self._settings.api_key.value,
            base_url=self._settings.base_url,
            model=self.model_of(settings),
            params=OpenAIInputParams(**given, extra=extra) if given or extra else None,
            client=self.client,
            extra_headers=headers,
            observer=observer,
            limits=self._limits,
        )


def _header_value(conversation_id: str) -> str:
    """Return an id that HTTP headers can carry; ASCII ids stay as they are."""
    return conversation_id.encode("ascii", "backslashreplace").decode()


class Fleet:
    """One process's workers: one per shard that it serves."""

    def __init__(self, settings: Settings, on_serving: Callable[[], None] = _nothing) -> None:
        """Prepare; nothing is sent before `run`, which calls `on_serving` once it takes turns."""
        self._settings = settings
        self._on_serving = on_serving
        self._told = asyncio.Event()
        self._end_by_s: float | None = None
        self.worker_id = f"{settings.worker_name}-{secrets.token_hex(4)}"
        self._connections: list[AsyncRedis] = []
        self._services = services_of(settings)
        self._cache = ContextCache(settings.context_cache_mb * 1024 * 1024)
        self.telemetry = telemetry_of(settings, self.worker_id)
        self._checker = Checker()
        self._toolbox = toolbox_of(settings, self._checker)
        self._planner, self._agents = planner_of(settings, self._toolbox, self._checker)
        self.workers: list[LeasedWorker] = []
        self.has_served = False
        self._starting: asyncio.Task[Any] | None = None

    @property
    def client(self) -> AsyncOpenAI:
        """The connections to the provider."""
        return self._services.client

    async def check(self) -> Found:
        """Ask Redis and the provider whether a worker can work with them.

        Raises:
            StartFailed: One of them cannot be used as configured.
        """
        redis = await check_redis(self._settings)
        provider = await check_provider(self._settings, self._services.client)
        tools = tuple(name for name, _, _ in self._toolbox.definitions)
        return Found(redis, provider, tools, self._agents)

    async def run(self, opening: AbstractContextManager[object] = NOTHING_AROUND) -> None:
        """Serve until `stop`.

        Args:
            opening: Held around what foreign code does before the first turn.

        Raises:
            StartFailed: Redis, the provider or the tools cannot be used as configured.
        """
        self._starting = asyncio.current_task()
        try:
            if not self._told.is_set():
                await self.check()
                with opening:
                    await self._open()
            self._starting = None
            if not self._told.is_set():
                await self._serve()
        except asyncio.CancelledError:
            if self._starting is None or not self._told.is_set() or self._starting.uncancel():
                raise
        finally:
            await self.close()
        log.info("worker.stopped", extra={"worker": self.worker_id})

    async def _open(self) -> None:
        self.workers = [self._worker(shard_keys(n)) for n in self._settings.served_shards]
        await self._open_telemetry()
        await self._open_tools()

    async def _serve(self) -> None:
        """Run the workers until they end; once told to stop, for a bounded time."""
        settings = self._settings
        self.has_served = True
        log.info(
            "worker.started",
            extra={
                "worker": self.worker_id,
                "model": settings.model,
                "base_url": settings.base_url,
                "slots": settings.slots,
                "shards": ",".join(map(str, settings.served_shards)),
            },
        )
        self._on_serving()
        serving = asyncio.gather(*(worker.main() for worker in self.workers))
        serving.add_done_callback(_heard)
        told: asyncio.Future[Any] = asyncio.create_task(self._told.wait())
        if self._told.is_set():  # before there were workers to tell
            for worker in self.workers:
                worker.drain()
        try:
            await asyncio.wait({serving, told}, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                await asyncio.wait({serving}, timeout=settings.drain_s + HAND_OVER_S + 0.2)
            if serving.done():
                serving.result()
            else:
                log.warning("worker.left_behind", extra={"worker": self.worker_id})
        finally:
            told.cancel()
            serving.cancel()

    def stop(self) -> None:
        """Drain: take nothing new, let turns finish for a while; the second time, hand over.

        A worker that has not begun to serve ends at once.
        """
        if self._starting is not None and not self._told.is_set():
            self._starting.cancel()
        self._told.set()
        if self._end_by_s is None:
            self._end_by_s = time.monotonic() + self._settings.drain_s + CLOSE_S - 0.6
        for worker in self.workers:
            if worker.allow_pick_jobs:
                worker.drain()
            else:
                worker.hand_over()

    def _worker(self, shard: ShardKeys) -> LeasedWorker:
        settings = self._settings
        redis = open_async(settings.redis_url, retries=0)
        self._connections.append(redis)
        batcher = ScriptBatcher(redis)
        store = Conversations(
            redis,
            batcher,
            shard,
            cache=self._cache,
            limits=StoreLimits(retention_ms=int(settings.retention_days * 86_400_000)),
        )
        driver = ConversationDriver(
            store,
            self._services,
            Breakers(redis, batcher, shard),
            shard,
            driver_settings(settings),
            observer=self._observer(redis, shard),
            planner=self._planner,
        )
        slots = max(1, settings.slots // len(settings.served_shards))
        return LeasedWorker(
            [run_conversation],
            shard=shard,
            worker_id=self.worker_id,
            redis_url=settings.redis_url,
            redis=arq_redis(settings.redis_url, shard),
            batcher=batcher,
            times=LeaseSettings(
                lease_s=settings.lease_s,
                heartbeat_s=settings.heartbeat_s,
                stall_s=settings.stall_s,
                poll_s=settings.poll_s,
                drain_s=settings.drain_s,
            ),
            about=_About(settings),
            prefetch=partial(store.prefetch, worker_id=self.worker_id),
            max_jobs=slots,
            ctx={"driver": driver},
        )

    def _observer(self, redis: AsyncRedis, shard: ShardKeys) -> Observer:
        settings, meters = self._settings, self.telemetry.meters

        def written(sent: int, dropped: int) -> None:
            meters.spans_sent.add(sent, "redis")
            meters.spans_dropped.add(dropped, "redis")

        store = None
        if settings.trace_store:
            limits = TraceLimits(kept=settings.trace_store)
            store = Traces(redis, shard, limits=limits, on_written=written)
        return self.telemetry.observer(
            shard=shard.tag.strip("{}"),
            queue=shard.queue,
            store=store,
            gauges=lambda: read_gauges(redis, shard),
        )

    async def _open_telemetry(self) -> None:
        try:
            await self.telemetry.open()
        except TelemetryError as error:
            raise StartFailed(str(error)) from None

    async def _open_tools(self) -> None:
        try:
            with said_if_slow("the resources of the tools"):
                await self._toolbox.start()
        except ResourcesFailed as error:
            raise StartFailed(f"The resources of the tools cannot be opened: {error}") from None

    async def close(self) -> None:
        """Close everything, whatever becomes of the rest; what was opened last goes first.

        Each part gets a share of the time that is left, so that one that hangs leaves the others
        theirs.
        """
        by_s = self._end_by_s or time.monotonic() + _CLOSE_S
        parts: list[tuple[str, float, Sequence[Awaitable[Any]]]] = [
            ("queue", 0.3, [_close_worker(worker) for worker in self.workers]),
            ("resources", 0.5, [self._toolbox.stop()]),
            ("checks", 0.5, [self._checker.close()]),
            ("telemetry", 0.8, [self.telemetry.close()]),
            ("redis", 0.5, [connection.aclose() for connection in self._connections]),
            ("provider", 1.0, [self._services.client.close()]),
        ]
        for what, share, closing in parts:
            left_s = max(0.1, (by_s - time.monotonic()) * share)
            await asyncio.gather(*(within(left_s, what, part) for part in closing))


def _heard(serving: "asyncio.Future[Any]") -> None:
    """Take note of how workers ended that were left behind: nobody else will."""
    if not serving.cancelled():
        serving.exception()


async def _close_worker(worker: LeasedWorker) -> None:
    """Close a worker, also where Redis is away and cannot be told."""
    connections = worker.pool
    try:
        await worker.close()
    except (RedisError, OSError) as error:
        log.warning("worker.untold", extra={"error": type(error).__name__})
        await connections.aclose(close_connection_pool=True)


class _About:
    """What a worker says about itself to `turnline queue`."""

    def __init__(self, settings: Settings) -> None:
        self._facts = {
            "name": settings.worker_name,
            "host": platform.node(),
            "pid": os.getpid(),
            "model": settings.model,
            "started_at_ms": int(time.time() * 1000),
        }

    def __call__(self) -> dict[str, Any]:
        return self._facts


def services_of(settings: Settings) -> GrokServices:
    """Make the services, and with them the client of the provider.

    Raises:
        StartFailed: There is no key, or certificates or proxies of the environment are unusable.
    """
    need_key(settings)
    try:
        return GrokServices(settings)
    except Exception as error:  # noqa: BLE001  what libraries make of the environment
        raise StartFailed(cannot_connect(error)) from None


def toolbox_of(settings: Settings, checker: Checker | None = None) -> Toolbox:
    """Load the tools that the settings name.

    Raises:
        StartFailed: Something is wrong with them.
    """
    with said_if_slow(f"the import of {settings.tools}"):
        loaded = load_tools(settings.tools, settings.tool_schemas)
    if loaded.problems:
        raise StartFailed(
            "The tools cannot be used (`turnline tools` shows them): " + "; ".join(loaded.problems)
        )
    return Toolbox(loaded, checker)


def planner_of(
    settings: Settings, toolbox: Toolbox, checker: Checker | None = None
) -> tuple[Planner, tuple[str, ...]]:
    """Read the agents and limits that the settings name; also return the agents' names.

    Raises:
        StartFailed: The agents file cannot be used.
    """
    limits = ToolLimits(
        max_tool_rounds=settings.max_tool_rounds,
        result_bytes=settings.tool_result_bytes,
        wait_s=settings.tool_wait_s,
    )
    agents = None
    checker = checker or Checker()
    if settings.agents:
        try:
            names = [name for name, _, _ in toolbox.definitions]
            agents = AgentsFile(Path(settings.agents), names, checker.schemas)
        except BadAgents as error:
            raise StartFailed(f"The agents cannot be used: {error}") from None
    return Planner(toolbox, agents, limits, checker), tuple(agents.agents if agents else ())


def telemetry_of(settings: Settings, worker_id: str) -> Telemetry:
    """Set up what is asked for by settings and the standard `OTEL_*` variables.

    Raises:
        StartFailed: The redactor cannot be used.
    """
    where = urlsplit(settings.base_url)
    asked = f"the import of {settings.redactor}" if settings.redactor else "telemetry"
    try:
        version = metadata.version("turnline")
    except metadata.PackageNotFoundError:
        version = "0"
    try:
        with said_if_slow(asked):
            return Telemetry(
                TelemetrySettings(
                    worker=worker_id,
                    address=where.hostname or "",
                    port=where.port or (80 if where.scheme == "http" else 443),
                    redactor=settings.redactor,
                    send_traceparent=settings.send_traceparent,
                    metrics_port=settings.metrics_port,
                ),
                os.environ,
                version=version,
            )
    except TelemetryError as error:
        raise StartFailed(str(error)) from None


def driver_settings(settings: Settings) -> DriverSettings:
    """Return the part of the settings that the driver uses."""
    return DriverSettings(
        worker_name=settings.worker_name,
        provider=settings.base_url,
        turn_quota=settings.turn_quota,
        max_crashes=settings.max_crashes,
        turn_budget_s=settings.turn_budget_s,
        turn_attempts=settings.turn_attempts,
        turn_spend_tokens=settings.turn_spend_tokens,
        aggregation_timeout_s=settings.aggregation_timeout_s,
        speech_timeout_s=settings.speech_timeout_s,
        coalesce_s=settings.coalesce_ms / 1000,
        coalesce_bytes=settings.coalesce_bytes,
    )


def arq_redis(url: str, shard: ShardKeys) -> ArqRedis:
    """Return ARQ's client for a shard's queue: `enqueue_job` puts plain jobs there."""
    pool = pool_of(url, socket_connect_timeout=5)
    return ArqRedis(
        pool,
        job_serializer=serialize_job,
        job_deserializer=deserialize_job,
        default_queue_name=shard.queue,
    )


def run(settings: Settings) -> int:
    """Run a worker until it is told to stop, and return its exit code.

    Where it raises, threads of foreign code may be left: whoever calls ends the process.

    Raises:
        StartFailed: See `Fleet.run`.
    """
    fleets: list[Fleet] = []
    watchdog = Watchdog(settings.stall_s)

    def stop() -> None:
        for fleet in fleets:
            fleet.stop()

    return run_until_told(
        uvloop.new_event_loop(),
        partial(_run, settings, fleets, watchdog),
        watchdog,
        stop=stop,
        drain_s=settings.drain_s,
    )


async def _run(settings: Settings, fleets: list[Fleet], watchdog: Watchdog, listen: Listen) -> int:
    loop = asyncio.get_running_loop()
    fleet = Fleet(settings, on_serving=lambda: watchdog.watch(loop))
    fleets.append(fleet)
    # What was made at the start lives as long as the process: no collection need look at it again,
    # and the garbage of turns is young. Full collections took tens of ms.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 50, 100)
    told: list[int] = []
    await fleet.run(obeyed(listen, told))
    # The thread that takes note of signals may be behind.
    return 0 if fleet.has_served else ended_by(next(iter(told), signal.SIGTERM))


def check(settings: Settings) -> Found:
    """Do what a worker does before it serves, but for opening the resources of tools.

    Raises:
        StartFailed: A worker would not start. As in `run`, threads may be left.
    """
    return asyncio.Runner(loop_factory=uvloop.new_event_loop).run(_check(settings))


async def _check(settings: Settings) -> Found:
    fleet = Fleet(settings)
    try:
        return await fleet.check()
    finally:
        await fleet.close()
