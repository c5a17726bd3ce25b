"""The workers of one process, one per shard: checked, opened, served and closed as one."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from redis.exceptions import RedisError

from turnline.contracts.keys import ShardKeys, shard_keys
from turnline.worker.ending import CLOSE_S, within
from turnline.worker.errors import StartFailed
from turnline.worker.pool import Pool
from turnline.worker.probes.answering import Probes
from turnline.worker.queue.leased_worker import HAND_OVER_S, LeasedWorker
from turnline.worker.queue.links import Links
from turnline.worker.reloading import Reloading
from turnline.worker.schema_checking import Checker
from turnline.worker.services.grok.model_catalogue import Model
from turnline.worker.services.provider_client import ProviderClient
from turnline.worker.settings import Settings
from turnline.worker.starting.provider_check import ProviderFound, check_provider
from turnline.worker.starting.redis_check import RedisFound, check_redis
from turnline.worker.starting.stage import log_if_slow
from turnline.worker.store.limiter import RateLimiter
from turnline.worker.store.quotas import WithinQuota
from turnline.worker.telemetry.setup import Telemetry, unwatched
from turnline.worker.tools.runner import Toolbox

log = logging.getLogger("turnline.worker")
_LOOK_S = 0.5
_CLOSE_S = 5.0
"""Seconds that closing may take where nobody asked the process to end."""


class Found(NamedTuple):
    """What the checks before the start found."""

    redis: RedisFound
    provider: ProviderFound
    tools: tuple[str, ...]
    agents: tuple[str, ...]


class FleetParts(NamedTuple):
    """What the workers of a process are made of, and share. Nothing of it has been started."""

    worker_id: str
    clients: Sequence[ProviderClient]
    """Connections to the provider, one for each member of the pool."""
    pool: Pool
    toolbox: Toolbox
    agents: tuple[str, ...]
    """Names of the agents that messages may ask for."""
    checker: Checker
    telemetry: Telemetry
    learn: Callable[[Sequence[Model]], None]
    """Told of the models that the provider lists."""
    links: Links
    """Connections to Redis."""
    limiters: Sequence[RateLimiter | WithinQuota]
    """Keep to what the provider allows, one for each member of the pool."""
    make_worker: Callable[[ShardKeys], LeasedWorker]
    """Makes the worker of a shard."""
    probes: Probes
    reloading: Reloading


class Fleet:
    """The workers of one process, one for each shard that it serves."""

    def __init__(
        self, settings: Settings, parts: FleetParts, on_serving: Callable[[], object]
    ) -> None:
        """Prepare; nothing is sent before `run`, which calls `on_serving` once it takes turns."""
        self._settings = settings
        self.parts = parts
        self._on_serving = on_serving
        self._stopping = asyncio.Event()
        self._end_by_s: float | None = None
        self._unready: asyncio.TimerHandle | None = None
        self._reloads: set[asyncio.Task[None]] = set()
        self._serve_till_s = math.inf
        self.is_stopping = False
        """Whether `stop` was called."""
        self.workers: list[LeasedWorker] = []
        """One for each shard, while they serve."""
        self._starting: asyncio.Task[Any] | None = None
        self.has_served = False

    async def check(self) -> Found:
        """Ask Redis and the provider whether a worker can work with them.

        Raises:
            StartFailed: One of them cannot be used as configured.
        """
        redis = await check_redis(self._settings)
        provider = await self._check_provider()
        self.parts.learn(provider.listed)
        tools = tuple(name for name, _, _ in self.parts.toolbox.definitions)
        return Found(redis, provider, tools, self.parts.agents)

    async def _check_provider(self) -> ProviderFound:
        """Ask with each key and at each address; one that can be used is enough.

        Raises:
            StartFailed: None can be used; for the reason of the first one.
        """
        members = self._settings.members
        asking = map(check_provider, members, self.parts.clients)
        answers = await asyncio.gather(*asking, return_exceptions=len(members) > 1)
        found = [it for it in answers if isinstance(it, ProviderFound)]
        errors = [it for it in answers if isinstance(it, BaseException)]
        unforeseen = [it for it in errors if not isinstance(it, StartFailed)]
        if unforeseen or not found:
            raise (unforeseen or errors)[0]
        for member, answer in zip(self.parts.pool.members, answers, strict=True):
            if isinstance(answer, StartFailed):
                self.parts.pool.leave_out(member, "refused")
        return next((it for it in found if it.listed), found[0])

    async def run(self, opening: AbstractContextManager[object] | None = None) -> None:
        """Serve until `stop`.

        Args:
            opening: Held around what foreign code does before the first turn.

        Raises:
            StartFailed: Redis, the provider or the tools cannot be used as configured.
        """
        self._starting = asyncio.current_task()
        with unwatched():
            await self._run(opening)

    async def _run(self, opening: AbstractContextManager[object] | None) -> None:
        try:
            if not self._stopping.is_set():
                self.parts.probes.open()
                await self.check()
                with opening or nullcontext():
                    await self._open()
            self._starting = None
            if not self._stopping.is_set():
                await self._serve()
        except asyncio.CancelledError:
            if self._starting is None or not self._stopping.is_set() or self._starting.uncancel():
                raise
        finally:
            await self.close()
        log.info("worker.stopped", extra={"worker": self.parts.worker_id})

    async def _open(self) -> None:
        for number in self._settings.served_shards:
            keys = shard_keys(number, self._settings.prefix)
            self.workers.append(self.parts.make_worker(keys))
        self.parts.telemetry.open()
        with log_if_slow("the resources of the tools"):
            await self.parts.toolbox.start()

    async def _serve(self) -> None:
        """Run the workers until they end; for a bounded time once `stop` was called."""
        settings = self._settings
        self.has_served = True
        log.info(
            "worker.started",
            extra={
                "worker": self.parts.worker_id,
                "model": settings.model,
                "base_url": settings.base_url,
                "slots": settings.slots,
                "shards": ",".join(map(str, settings.served_shards)),
            },
        )
        self._on_serving()
        self.parts.probes.serving()
        serving = asyncio.gather(*(worker.main() for worker in self.workers))
        serving.add_done_callback(_consume_exception)
        stopping: asyncio.Future[Any] = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            while not serving.done() and (left_s := self._serve_till_s - time.monotonic()) > 0:
                await asyncio.wait({serving}, timeout=min(left_s, _LOOK_S))
            if serving.done():
                serving.result()
            else:
                log.warning("worker.left_behind", extra={"worker": self.parts.worker_id})
        finally:
            stopping.cancel()
            serving.cancel()

    def stop(self) -> None:
        """Drain: take nothing new, let turns finish for a while; the second time, hand over.

        Before that it is not ready for `unready_s`. A worker that has not begun to serve ends at
        once.
        """
        is_first, self.is_stopping = not self.is_stopping, True
        is_sudden = not self._stopping.is_set()
        if self._starting is not None and is_sudden:
            self._starting.cancel()
        self.parts.probes.draining()
        self._end_within(self._settings.end_s if is_first else HAND_OVER_S)
        if is_sudden and self.workers and self._settings.unready_s:
            loop = asyncio.get_running_loop()
            self._unready = loop.call_later(self._settings.unready_s, self._drain)
            return
        if self._unready is not None:
            self._unready.cancel()
        for worker in self.workers:
            if is_first:
                worker.drain()
            else:
                worker.hand_over()

    def _drain(self) -> None:
        for worker in self.workers:
            worker.drain()

    def reload(self) -> None:
        """Read the files of secrets again; turns go on meanwhile."""
        task = asyncio.create_task(self._reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload(self) -> None:
        self.parts.probes.say_reloading()
        await self.parts.reloading.again()
        self.parts.probes.say_ready()

    def retire(self) -> None:
        """Take nothing new, and end once all turns have ended, since another worker took over.

        For as long as a replacement may take. A `stop` behind it is the first one.
        """
        if not self._stopping.is_set():
            self.parts.probes.draining()
            self._end_within(self._settings.replace_drain_s)
            for worker in self.workers:
                worker.drain(self._settings.replace_drain_s)

    def _end_within(self, grace_s: float) -> None:
        self._stopping.set()
        now_s = time.monotonic()
        self._serve_till_s = min(self._serve_till_s, now_s + grace_s + HAND_OVER_S + 0.2)
        self._end_by_s = min(self._end_by_s or math.inf, now_s + grace_s + CLOSE_S - 0.6)

    async def close(self) -> None:
        """Close everything, whatever becomes of the rest; what was opened last goes first.

        Each part gets a share of the time that is left, so that one that hangs leaves the others
        theirs.
        """
        by_s = self._end_by_s or time.monotonic() + _CLOSE_S
        parts: list[tuple[str, float, Sequence[Awaitable[Any]]]] = [
            ("queue", 0.3, [_close_worker(worker) for worker in self.workers]),
            ("resources", 0.5, [self.parts.toolbox.stop()]),
            ("checks", 0.5, [self.parts.checker.close()]),
            ("telemetry", 0.8, [self.parts.telemetry.close()]),
            ("limits", 0.3, [it.aclose() for it in self.parts.limiters]),
            ("redis", 0.5, [self.parts.links.aclose()]),
            ("probes", 0.5, [self.parts.probes.close()]),
            ("provider", 1.0, [it.close() for it in self.parts.clients]),
        ]
        for what, share, closing in parts:
            left_s = max(0.1, (by_s - time.monotonic()) * share)
            await asyncio.gather(*(within(left_s, what, part) for part in closing))


def _consume_exception(serving: "asyncio.Future[Any]") -> None:
    """Mark the exception of workers that were left behind as retrieved: nobody awaits them."""
    if not serving.cancelled():
        serving.exception()


async def _close_worker(worker: LeasedWorker) -> None:
    """Close a worker, also where Redis is away."""
    try:
        await worker.close()
    except (RedisError, OSError) as error:
        log.warning("worker.untold", extra={"error": type(error).__name__})
