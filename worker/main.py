"""The composition root: makes every part of a worker from its settings, and runs the worker."""

import asyncio
import gc
import os
import platform
import secrets
import signal
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple, cast

import uvloop
from arq.connections import ArqRedis

from turnline.contracts.client import TurnClient
from turnline.contracts.connection import AsyncRedis
from turnline.contracts.job_format import deserialize_job, serialize_job
from turnline.contracts.keys import ShardKeys, shard_keys
from turnline.contracts.routed import RoutedRedis
from turnline.contracts.servers import AsyncServers
from turnline.worker.batching import SILENCE_S, ScriptBatcher
from turnline.worker.ending import Listen, Watchdog, run_until_stopped
from turnline.worker.errors import StartFailed
from turnline.worker.grok_services import GrokServices, server_of
from turnline.worker.http_places import read_place
from turnline.worker.lease import LeaseSettings
from turnline.worker.pool import Pool
from turnline.worker.probes.answering import Probes
from turnline.worker.probes.pulse import Pulse, PulseLimits
from turnline.worker.probes.service_manager import ServiceManager
from turnline.worker.process import Fleet, FleetParts, Found
from turnline.worker.provider_limits import LimitRules
from turnline.worker.queue.jobs import run_conversation
from turnline.worker.queue.leased_worker import HAND_OVER_S, LeasedWorker
from turnline.worker.queue.links import Links
from turnline.worker.queue.slots import Slots
from turnline.worker.reloading import Reloading
from turnline.worker.schedules.ticking import Schedules, Submit
from turnline.worker.schema_checking import Checker
from turnline.worker.settings import Settings
from turnline.worker.starting.provider_check import cannot_connect, need_key
from turnline.worker.starting.signals import ended_by, obeyed, on_hangup
from turnline.worker.starting.stage import log_if_slow
from turnline.worker.store.breakers import Breakers
from turnline.worker.store.cache import ContextCache
from turnline.worker.store.conversations import Conversations, StoreLimits
from turnline.worker.store.gauges import read_gauges
from turnline.worker.store.limiter import RateLimiter
from turnline.worker.store.purse import Purse
from turnline.worker.store.quotas import WithinQuota
from turnline.worker.store.replicas import Replicas
from turnline.worker.store.traces import TraceLimits, Traces
from turnline.worker.supervising.child_side import Supervised, obey
from turnline.worker.telemetry.attributes import CallPlace
from turnline.worker.telemetry.setup import Telemetry, TelemetrySettings
from turnline.worker.tools.loader import load_tools
from turnline.worker.tools.runner import Toolbox
from turnline.worker.turn.budgets import BadBudgets, BudgetsFile
from turnline.worker.turn.driver import ConversationDriver
from turnline.worker.turn.observer import Observer
from turnline.worker.turn.plan import AgentsFile, BadAgents, Planner, ToolLimits
from turnline.worker.turn.ports import DriverSettings


def run(settings: Settings, supervised: Supervised | None = None) -> int:
    """Run a worker until it is told to stop, and return its exit code.

    Where it raises, threads of foreign code may be left: the caller has to end the process.

    Args:
        settings: Checked ones.
        supervised: Tells the process's supervisor how it is, if it has one.

    Raises:
        StartFailed: See `Fleet.run`.
    """
    watchdog = Watchdog(settings.stall_s)
    main = partial(_run, settings, watchdog, supervised)
    drains_s: dict[int, float] = dict.fromkeys((signal.SIGTERM, signal.SIGINT), settings.end_s)
    if supervised is not None:
        drains_s |= {signal.SIGINT: HAND_OVER_S, signal.SIGHUP: settings.replace_drain_s}
    return run_until_stopped(uvloop.new_event_loop(), main, watchdog, drains_s=drains_s)


async def _run(
    settings: Settings, watchdog: Watchdog, supervised: Supervised | None, listen: Listen
) -> int:
    loop = asyncio.get_running_loop()

    def on_serving() -> None:
        watchdog.watch(loop)
        if supervised is not None:
            supervised.ready(fleet.parts.worker_id)

    def on_signal(number: int) -> None:
        if supervised is None:
            fleet.stop()
        else:
            orders = {"stop": fleet.stop, "retire": fleet.retire}
            obey(number, **orders, is_stopping=fleet.is_stopping)

    fleet = make_fleet(settings, on_serving=on_serving, whole=True)
    # What was made at the start lives as long as the process: no collection need look at it again,
    # and the garbage of turns is young. Full collections took tens of ms.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 50, 100)
    signals: list[int] = []
    if supervised is None:
        on_hangup(partial(_hung_up, loop, fleet))
    await fleet.run(obeyed(partial(listen, on_signal), signals))
    # The thread that takes note of signals may be behind.
    return 0 if fleet.has_served else ended_by(next(iter(signals), signal.SIGTERM))


def _hung_up(loop: asyncio.AbstractEventLoop, fleet: Fleet, *, is_alone: bool) -> None:
    """Have the fleet read its files again; or end, if the terminal that it ran in has gone."""
    if is_alone:
        signal.raise_signal(signal.SIGTERM)
        return
    with suppress(RuntimeError):  # the loop is closed: all is over
        loop.call_soon_threadsafe(fleet.reload)


def check(settings: Settings) -> Found:
    """Do what a worker does before it serves, but for opening the resources of tools.

    Raises:
        StartFailed: A worker would not start. As in `run`, threads may be left.
    """

    async def check_and_close() -> Found:
        fleet = make_fleet(settings)
        try:
            return await fleet.check()
        finally:
            await fleet.close()

    return asyncio.Runner(loop_factory=uvloop.new_event_loop).run(check_and_close())


class _Shared(NamedTuple):
    """What the workers of all shards are made with."""

    worker_id: str
    links: Links
    services: "GrokServices"
    telemetry: Telemetry
    planner: Planner
    cache: ContextCache
    replicas: Replicas | None
    slots: Slots
    failing: set[str]
    """Providers that were told to be failing."""
    limiters: Sequence[RateLimiter | WithinQuota]
    purse: Purse | None


def make_fleet(
    settings: Settings,
    on_serving: Callable[[], object] = lambda: None,
    *,
    whole: bool = False,
) -> Fleet:
    """Make all parts of a worker process, in a running event loop; nothing is sent yet.

    Args:
        settings: Checked ones.
        on_serving: Called once the fleet takes turns.
        whole: Whether the process is a worker only: OpenTelemetry's providers are then global.

    Raises:
        StartFailed: The key, tools, agents, budgets or telemetry cannot be used as configured.
    """
    worker_id = f"{settings.worker_name}-{secrets.token_hex(4)}"
    links = Links(
        settings.redis_url, lease_settings(settings), wait_replicas=settings.wait_replicas
    )
    services = services_of(settings)
    telemetry = telemetry_of(settings, worker_id, whole=whole)
    checker = Checker()
    toolbox = toolbox_of(settings, checker)
    agents = agents_of(settings, toolbox, checker)
    planner = Planner(toolbox, agents, tool_limits(settings), checker)
    cache = ContextCache(settings.context_cache_mb * 1024 * 1024)
    replicas = Replicas(waits, settings.wait_replicas) if (waits := links.confirmations) else None
    stored = cache, replicas, Slots(settings.slots, shards=len(settings.served_shards))
    limiting = limits_of(settings, services.pool, links, worker_id)
    shared = _Shared(worker_id, links, services, telemetry, planner, *stored, set(), *limiting)
    parts = FleetParts(
        worker_id=worker_id,
        clients=services.clients,
        pool=services.pool,
        toolbox=toolbox,
        agents=tuple(agents.agents) if agents is not None else (),
        checker=checker,
        telemetry=telemetry,
        learn=services.learn,
        links=links,
        limiters=shared.limiters,
        make_worker=partial(_worker, settings, shared),
        probes=_probes(settings, shared, os.environ if whole else {}),
        reloading=Reloading(settings, os.environ, partial(_take_keys, shared)),
    )
    return Fleet(settings, parts, on_serving)


def _probes(settings: Settings, shared: _Shared, environ: Mapping[str, str]) -> Probes:
    """Make what tells those outside; `environ` says what the service manager wants to know."""
    tags = [shard_keys(number, settings.prefix).tag for number in settings.served_shards]
    links = shared.links
    limits = PulseLimits(
        stall_s=settings.stall_s,
        answer_s=settings.lease_s + 3 * settings.heartbeat_s,
        look_s=2 * settings.poll_s + SILENCE_S,
    )
    return Probes(
        Pulse(
            limits, links.heartbeat.beats, lambda: min(links.looked_at_s.get(it, 0) for it in tags)
        ),
        worker_id=shared.worker_id,
        place=read_place(settings.http) if settings.http else None,
        metrics=shared.telemetry.exposition,
        manager=ServiceManager(environ),
    )


def _take_keys(shared: _Shared, members: Sequence[Settings]) -> None:
    """Have calls made with these keys from now on, within the limits of these keys."""
    shared.services.take_keys(members)
    for limiter, member in zip(shared.limiters, members, strict=True):
        limiter.use_key(member.api_key.value)


def _worker(settings: Settings, shared: _Shared, shard: ShardKeys) -> LeasedWorker:
    """Make the worker of one shard."""
    batcher = shared.links.pipelines.of(shard.tag)
    store = Conversations(
        batcher,
        shard,
        replicas=shared.replicas,
        cache=shared.cache,
        purse=shared.purse,
        limits=StoreLimits(
            retention_ms=int(settings.retention_days * 86_400_000),
            spend_ms=settings.spend_days * 86_400_000,
            is_indexed=settings.index,
        ),
    )
    driver = ConversationDriver(
        store,
        shared.services,
        Breakers(batcher, shard, failing=shared.failing),
        shard,
        driver_settings(settings),
        observer=_observer(settings, shared.telemetry, batcher, shard),
        planner=shared.planner,
        purse=shared.purse,
        limiters=shared.limiters,
        pool=shared.services.pool,
    )
    facts = {
        "name": settings.worker_name,
        "host": platform.node(),
        "pid": os.getpid(),
        "model": settings.model,
        "started_at_ms": int(time.time() * 1000),
    }
    schedules = _schedules(settings, shared.links, shard)
    return LeasedWorker(
        [run_conversation],
        shard=shard,
        worker_id=shared.worker_id,
        redis=arq_redis(shared.links.servers, shard),
        batcher=batcher,
        links=shared.links,
        times=lease_settings(settings),
        about=lambda: facts,
        prefetch=partial(store.prefetch, worker_id=shared.worker_id),
        slots=shared.slots,
        others={shard.schedules_id: schedules.look} if schedules else {},
        on_startup=schedules.begin if schedules else None,
        ctx={"driver": driver},
    )


def _schedules(settings: Settings, links: Links, shard: ShardKeys) -> Schedules | None:
    """Return what looks after the schedules; only shard 0 has any."""
    if shard != shard_keys(0, settings.prefix):
        return None

    @asynccontextmanager
    async def open_producer() -> AsyncGenerator[Submit, None]:
        client = TurnClient(
            cast("AsyncRedis", RoutedRedis(links.servers)),
            shards=settings.shards,
            prefix=settings.prefix,
        )
        try:
            yield client.submit
        finally:
            await client.aclose()

    return Schedules(links.pipelines.of(shard.tag), shard, open_producer)


def _observer(
    settings: Settings, telemetry: Telemetry, batcher: ScriptBatcher, shard: ShardKeys
) -> Observer:
    def count(sent: int, dropped: int) -> None:
        telemetry.meters.spans_sent(sent, "redis")
        telemetry.meters.spans_dropped(dropped, "redis")

    store = None
    if settings.trace_store:
        limits = TraceLimits(kept=settings.trace_store)
        store = Traces(batcher, shard, limits=limits, on_written=count)
    return telemetry.observer(
        shard=shard.tag.strip("{}"),
        queue=shard.queue,
        store=store,
        gauges=lambda: read_gauges(batcher, shard),
    )


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


def limits_of(
    settings: Settings, pool: Pool, links: Links, worker_id: str
) -> tuple[Sequence[RateLimiter | WithinQuota], Purse | None]:
    """Make what keeps to the limits of each key, in shard 0, and to the budgets, if there are any.

    Raises:
        StartFailed: The file of budgets cannot be used.
    """
    first = shard_keys(0, settings.prefix)
    if purse := purse_of(settings, links):
        links.tenants = purse.tenants
    limiter = partial(
        RateLimiter,
        links.pipelines.of(first.tag),
        first,
        worker_id=worker_id,
        weight_of=purse.weight_of if purse else lambda _: 1.0,
    )
    rules = LimitRules.read(settings.provider_limits)
    limiters = [
        limiter(provider=it.base_url, key=it.api_key.value, name=member.name, rules=rules)
        for it, member in zip(settings.members, pool.members, strict=True)
    ]
    if not purse:
        return limiters, purse
    quotas = limiter(provider="tenant", key="", rules=purse)
    return [WithinQuota(it, quotas) for it in limiters], purse


def toolbox_of(settings: Settings, checker: Checker) -> Toolbox:
    """Load the tools that the settings name.

    Raises:
        StartFailed: Something is wrong with them.
    """
    with log_if_slow(f"the import of {settings.tools}"):
        loaded = load_tools(settings.tools, settings.tool_schemas)
    if loaded.problems:
        raise StartFailed(
            "The tools cannot be used (`turnline tools` shows them): " + "; ".join(loaded.problems)
        )
    return Toolbox(loaded, checker)


def agents_of(settings: Settings, toolbox: Toolbox, checker: Checker) -> AgentsFile | None:
    """Read the agents that the settings name; None if they name none.

    Raises:
        StartFailed: The file cannot be used.
    """
    if not settings.agents:
        return None
    try:
        names = [name for name, _, _ in toolbox.definitions]
        return AgentsFile(Path(settings.agents), names, checker.schemas)
    except BadAgents as error:
        raise StartFailed(f"The agents cannot be used: {error}") from None


def purse_of(settings: Settings, links: Links) -> Purse | None:
    """Read the budgets that the settings name; None if they name none.

    Raises:
        StartFailed: The file cannot be used.
    """
    if not settings.budgets:
        return None
    try:
        file = BudgetsFile(Path(settings.budgets))
    except BadBudgets as error:
        raise StartFailed(f"The budgets cannot be used: {error}") from None
    redis = cast("AsyncRedis", RoutedRedis(links.servers))
    return Purse(redis, file, shards=settings.shards, prefix=settings.prefix)


def telemetry_of(settings: Settings, worker_id: str, *, whole: bool = False) -> Telemetry:
    """Set up what is asked for by settings and the standard `OTEL_*` variables.

    Args:
        settings: Checked ones.
        worker_id: Names the worker in what is told.
        whole: See `make_fleet`.

    Raises:
        StartFailed: The redactor or a variable cannot be used.
    """
    asked = f"the import of {settings.redactor}" if settings.redactor else "telemetry"
    try:
        version = metadata.version("turnline")
    except metadata.PackageNotFoundError:
        version = "0"
    with log_if_slow(asked):
        return Telemetry(
            TelemetrySettings(
                worker=worker_id,
                place=CallPlace(*server_of(settings.members[0].base_url)),
                redactor=settings.redactor,
                is_shown=bool(settings.http),
            ),
            os.environ,
            version=version,
            whole=whole,
        )


def lease_settings(settings: Settings) -> LeaseSettings:
    """Return the times of the lease table."""
    return LeaseSettings(
        lease_s=settings.lease_s,
        heartbeat_s=settings.heartbeat_s,
        stall_s=settings.stall_s,
        poll_s=settings.poll_s,
        drain_s=settings.drain_s,
    )


def tool_limits(settings: Settings) -> ToolLimits:
    """Return the part of the settings that is about tools of a turn."""
    return ToolLimits(
        max_tool_rounds=settings.max_tool_rounds,
        result_bytes=settings.tool_result_bytes,
        wait_s=settings.tool_wait_s,
    )


def driver_settings(settings: Settings) -> DriverSettings:
    """Return the part of the settings that the driver uses."""
    return DriverSettings(
        worker_name=settings.worker_name,
        turn_quota=settings.turn_quota,
        max_crashes=settings.max_crashes,
        turn_budget_s=settings.turn_budget_s,
        turn_attempts=settings.turn_attempts,
        turn_spend_tokens=settings.turn_spend_tokens,
        aggregation_timeout_s=settings.aggregation_timeout_s,
        speech_timeout_s=settings.speech_timeout_s,
        coalesce_s=settings.coalesce_ms / 1000,
        coalesce_bytes=settings.coalesce_bytes,
        reasoning_max_bytes=settings.reasoning_max_bytes,
    )


def arq_redis(servers: AsyncServers, shard: ShardKeys) -> ArqRedis:
    """Return ARQ's client for a shard's queue: `enqueue_job` puts plain jobs there."""
    return ArqRedis(
        servers.pool(shard.tag),
        job_serializer=serialize_job,
        job_deserializer=deserialize_job,
        default_queue_name=shard.queue,
    )
