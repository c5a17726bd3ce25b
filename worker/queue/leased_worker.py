"""LeasedWorker: an ARQ worker whose queue is a table of leases. All use of ARQ's internals is here.

One queue entry per conversation; its score is when it is due, and while it is run that is when its
lease ends. ARQ's functions, cron jobs, keys, job format and health check stay as they are; a job
that is not a conversation is run and finished by ARQ itself.

Source: docs/adr/0002-the-queue-is-the-lease-table.md
"""

import asyncio
import contextlib
import logging
import math
import time
import zlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple, cast

import arq.worker
import msgspec
from arq.connections import ArqRedis
from redis.exceptions import RedisError, ResponseError

from turnline.contracts.job_format import FUNCTION, deserialize_job, read_job, serialize_job
from turnline.contracts.keys import ShardKeys, conversation_of
from turnline.contracts.scripts import Call, text
from turnline.worker.batching import ScriptBatcher
from turnline.worker.lease import Lease, LeaseSettings
from turnline.worker.logs import facts_of
from turnline.worker.outcome import Done, Outcome, Parked
from turnline.worker.queue import lua
from turnline.worker.queue.links import Links
from turnline.worker.queue.slots import Slots
from turnline.worker.states import LeaseEvent

log = logging.getLogger("turnline.queue")
SWEEP_S = 5.0
"""What runs looks into its inbox so often, since news of it may have been lost."""
_AWAY_S = 0.2
"""Pause before a server is asked again that could not be reached, or refused."""
_EARLY = 0.01
"""Part of a poll interval by which a poll may come too early and be the one that was meant."""
HAND_OVER_S = 1.0
"""Seconds that turns get to leave their notes when they are handed over."""


class _Prefetch(msgspec.Struct):
    """A conversation whose load was sent with the claim."""

    job_id: str
    load: Any
    inbox_changed: bool = False
    """Something came in that the load may not have seen."""


class _Active(NamedTuple):
    """What runs under a lease."""

    value: str
    """Of the lease, as the server has it."""
    lease: Lease | None
    """None for a plain job."""
    task: asyncio.Task[None]


class _Claim(msgspec.Struct):
    job_id: str
    lease: str
    payload: bytes
    prefetch: _Prefetch | None = None


class LeasedWorker(arq.worker.Worker):
    """Runs conversations under leases, and plain ARQ jobs beside them, from one shard's queue."""

    def __init__(
        self,
        functions: Sequence[Any],
        *,
        shard: ShardKeys,
        worker_id: str,
        redis: ArqRedis,
        batcher: ScriptBatcher,
        links: Links,
        times: LeaseSettings | None = None,
        about: Callable[[], dict[str, Any]] = dict,
        prefetch: Callable[[str], Any] = lambda _: None,
        slots: Slots | None = None,
        others: Mapping[str, Callable[[str], Coroutine[Any, Any, None]]] | None = None,
        **arq_options: Any,
    ) -> None:
        """Prepare a worker; nothing is sent before it runs.

        Args:
            functions: ARQ functions; the one named `run_conversation` runs conversations.
            shard: Whose queue to serve.
            worker_id: Unique name, without spaces.
            redis: ARQ's client, for its own jobs and for cron; closed by whoever made it.
            batcher: The shard's, shared with the store, so that their calls travel together.
            links: Hear of work, and of messages for what runs; renew the leases.
            times: See `LeaseSettings`.
            about: What the worker says about itself (JSON object), shown by `turnline queue`.
            prefetch: Sends the load of what a claim will probably bring; its result is the lease's.
            slots: For conversations (and jobs) run at once; by default 100 of its own.
            others: What else is on the queue, by job id: gets the lease, and gives it up.
            arq_options: Further options of `arq.worker.Worker`.

        Raises:
            ValueError: None of the functions runs conversations.
        """
        super().__init__(
            functions,
            queue_name=shard.queue,
            redis_pool=redis,
            max_jobs=(slots := slots or Slots(100)).total,
            handle_signals=False,
            poll_delay=(times or LeaseSettings()).poll_s,
            job_serializer=serialize_job,
            job_deserializer=deserialize_job,
            log_results=False,
            **arq_options,
        )
        if FUNCTION not in self.functions:
            raise ValueError(f"functions: one must be named {FUNCTION}")
        self.worker_id = worker_id
        self.stopped = asyncio.Event()
        self._shard = shard
        self._slots = slots
        self._batcher = batcher
        self._links = links
        self._times = times or LeaseSettings()
        self._about = about
        self._send_prefetch = prefetch
        self._others = others or {}
        self._hint = ""
        self._prefetch: _Prefetch | None = None
        self._active: dict[str, _Active] = {}
        self._plain: dict[str, int] = {}
        self._swept_at = 0.0
        # The processes of a host, which share a clock, do not all look at the same moment.
        self._phase_s = zlib.crc32(worker_id.encode()) / 2**32 * self._times.poll_s
        self._look = asyncio.Event()
        """Set when there may be something to claim."""
        self._handing_over = asyncio.Event()
        self._waking: set[asyncio.Task[None]] = set()

    # -- life ---------------------------------------------------------------------------------

    async def main(self) -> None:
        """Serve the queue until `drain` (or, with `burst`, until it is empty)."""
        self.ctx["redis"] = self.pool
        if self.on_startup:
            await self.on_startup(self.ctx)
        wakes = self._shard.wake_prefix + self.worker_id
        news = self._shard.channel_prefix + self.worker_id
        try:
            self._links.subscriber.listen(wakes, self._heard_wake)
            self._links.subscriber.listen(news, self._heard_news)
            self._links.heartbeat.watch(self)
            while self.allow_pick_jobs:
                try:
                    await self._poll_iteration()
                    self._links.refusals.worked(self.tag)
                    if self.burst and await self._batcher.send("ZCARD", self.queue_name) == 0:
                        break
                except (RedisError, OSError) as error:
                    if isinstance(error, ResponseError):  # the batcher says that it is away
                        self._links.refusals.failed(error, self.tag)
                    await self._sleep(_AWAY_S)
            finishing = asyncio.gather(*self.tasks.values()) if self.burst else self._finish()
            await asyncio.gather(self._leave(), finishing)
        finally:
            self._links.subscriber.leave(wakes, self._heard_wake)
            self._links.subscriber.leave(news, self._heard_news)
            self._links.heartbeat.leave(self)
            self.stopped.set()

    def drain(self, grace_s: float | None = None) -> None:
        """Take nothing new; hand over what runs after so many seconds, by default `drain_s`."""
        self.allow_pick_jobs = False
        self._look.set()
        after_s = self._times.drain_s if grace_s is None else grace_s
        self.loop.call_later(after_s, self._handing_over.set)

    def hand_over(self) -> None:
        """Stop what still runs; other workers go on with it at once."""
        self.drain(0)
        self._handing_over.set()
        for active in list(self._active.values()):
            active.task.cancel()

    async def _leave(self) -> None:
        """Have another worker take what this one may have been woken for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HAND_OVER_S):
                await self._wake(ended=self.worker_id)

    async def _finish(self) -> None:
        running = {task for task in self.tasks.values() if not task.done()}
        if not running:
            return
        log.info("worker.draining", extra={"running": len(running)})
        told = self.loop.create_task(self._handing_over.wait())
        ended = self.loop.create_task(asyncio.wait(running))
        await asyncio.wait({told, ended}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        ended.cancel()
        self.hand_over()
        _, left = await asyncio.wait(running, timeout=HAND_OVER_S)
        if left:  # their leases end by themselves, and the attempts count as ones that crashed
            log.warning("worker.left_behind", extra={"turns": len(left)})

    # -- claiming -----------------------------------------------------------------------------

    async def _poll_iteration(self) -> None:
        """Claim what is due for the free slots and start it; then sleep until there is more."""
        self._look.clear()  # before the server looks: what comes behind that is heard again
        free = self._slots.take()
        claims, next_ms = await self._fill(free)
        self._links.looked_at_s[self.tag] = time.monotonic()
        for claim in claims:
            self._start(claim)
        for name, task in list(self.tasks.items()):
            if task.done():
                del self.tasks[name]
                if not task.cancelled():
                    task.result()
        await self.heart_beat()
        if self.loop.time() - self._swept_at > SWEEP_S:
            self._swept_at = self.loop.time()
            self._notify_all()
        due_s = min(self._times.poll_s, next_ms / 1000 if next_ms >= 0 else math.inf)
        if self.burst:
            await self._sleep(min(due_s, 0.01))
        elif not self._slots.free:
            self._slots.wait(self._look.set)
            await self._sleep(self._until_poll_s())
            self._slots.wait_no_more(self._look.set)
        elif len(claims) < free and due_s > 0:
            await self._sleep(min(due_s, self._until_poll_s()))

    async def _fill(self, free: int) -> tuple[list[_Claim], int]:
        """Claim for so many slots, and give back those that stay free; see `_claim`."""
        claims: list[_Claim] = []
        try:
            tenants = await self._links.tenants()
            tells = bool(tenants[2])  # by a claim, how many conversations may wait
            claims, next_ms = await self._claim(free, tenants) if free or tells else ([], -1)
        finally:
            self._slots.give_back(free - len(claims))
        return claims, next_ms

    async def _claim(self, count: int, tenants: tuple[str, str, str]) -> tuple[list[_Claim], int]:
        """Return what was claimed, and in how many ms more is due.

        With fewer claims than asked for, and nothing due now, the worker is on the idle set.
        """
        whose = int(self._times.lease_s * 1000), self.worker_id, *tenants
        claiming = self._batcher.run(lua.claim(self._shard, count, *whose))
        hint, self._hint = self._hint, ""
        is_known = hint in self._active or hint in self._others
        hinted = None if is_known else conversation_of(hint, self._shard.tag)
        prefetch = None if hinted is None else _Prefetch(hint, self._send_prefetch(hinted))
        self._prefetch = prefetch  # its load travels behind the claim
        try:
            answer, next_ms, late_ms, *items = await claiming
        finally:
            self._prefetch = None
        self._links.lateness.looked(late_ms / 1000, self._shard.queue)
        if text(answer) == "repaired":
            log.warning("queue.repaired", extra={"queue": self._shard.queue})
        claims: list[_Claim] = []
        for name, lease, payload in zip(items[::3], items[1::3], items[2::3], strict=True):
            try:
                claims.append(_Claim(text(name), text(lease), payload))
            except UnicodeDecodeError:  # nobody's: no conversation and no job has such a name
                await self._batcher.send("ZREM", self._shard.queue, name)
        for claim in claims:
            if prefetch is not None and claim.job_id == prefetch.job_id:
                claim.prefetch = prefetch
        return claims, int(next_ms)

    def _until_poll_s(self) -> float:
        """Return the time until all shards of the process look for work, in one round trip."""
        poll_s, now_s = self._times.poll_s, self.loop.time()
        polled = math.floor((now_s - self._phase_s) / poll_s + _EARLY)
        return (polled + 1) * poll_s + self._phase_s - now_s

    async def _sleep(self, longest_s: float) -> None:
        """Wait until there may be something to claim, or for so long at most."""
        timer = self.loop.call_later(longest_s, self._look.set)
        try:
            await self._look.wait()
        finally:
            timer.cancel()

    # -- running ------------------------------------------------------------------------------

    def _start(self, claim: _Claim) -> None:
        if (before := self._active.get(claim.job_id)) is not None:  # its lease had lapsed
            self.lose([(claim.job_id, before.value)])
        self.job_counter += 1
        conversation_id = conversation_of(claim.job_id, self._shard.tag)
        lease: Lease | None = None
        if (other := self._others.get(claim.job_id)) is not None:
            run = other(claim.lease)
        elif conversation_id is None:
            run = self._run_plain_job(claim)
        else:
            lease = Lease(self._shard.tag, conversation_id, claim.lease)
            if claim.prefetch is not None:
                lease.prefetched = claim.prefetch.load
                if claim.prefetch.inbox_changed:
                    lease.notify()
            run = self._run_conversation(claim, lease)
        task = self.loop.create_task(run)
        self._active[claim.job_id] = _Active(claim.lease, lease, task)
        self.tasks[claim.lease] = task
        task.add_done_callback(lambda _: self._ended(claim))

    def _ended(self, claim: _Claim) -> None:
        self.job_counter -= 1
        self._slots.give_back(1)
        active = self._active.get(claim.job_id)
        if active is not None and active.value == claim.lease:
            del self._active[claim.job_id]

    async def _run_plain_job(self, claim: _Claim) -> None:
        """Run a job that is not a conversation, by ARQ's own rules."""
        self._plain[claim.job_id] = claimed_at_ms = int(time.time() * 1000)
        try:
            await super().run_job(claim.job_id, claimed_at_ms)
        finally:
            del self._plain[claim.job_id]

    async def finish_job(  # noqa: PLR0917  ARQ's signature
        self,
        job_id: str,
        finish: bool,  # noqa: FBT001  ARQ's signature
        result_data: bytes | None,
        result_timeout_s: float | None,
        keep_result_forever: bool,  # noqa: FBT001  ARQ's signature
        incr_score: int | None,
        keep_in_progress: float | None,
    ) -> None:
        """Finish a plain job as ARQ does; one to be retried is due when ARQ meant it to be.

        ARQ adds to the score it knows; here the score is the end of the lease.
        """
        if not finish:
            due_ms = self._plain[job_id] + (incr_score or 0)
            await self.pool.zadd(self.queue_name, {job_id: due_ms}, xx=True)
            incr_score = None
        await super().finish_job(
            job_id,
            finish,
            result_data,
            result_timeout_s,
            keep_result_forever,
            incr_score,
            keep_in_progress,
        )

    async def record_health(self) -> None:
        """Do what ARQ does, in the pipeline that all shards share: they begin together."""
        now_s = time.time()
        if now_s - self._last_health_check < self.health_check_interval:
            return
        self._last_health_check = now_s
        queued = await self._batcher.send("ZCARD", self.queue_name)
        counts = cast("Any", self)  # ARQ gives them no types
        info = (
            f"{time.strftime('%b-%d %H:%M:%S')} j_complete={counts.jobs_complete} "
            f"j_failed={counts.jobs_failed} j_retried={counts.jobs_retried} "
            f"j_ongoing={self.job_counter} queued={queued}"
        )
        life_ms = int((self.health_check_interval + 1) * 1000)
        await self._batcher.send("PSETEX", self.health_check_key, life_ms, info)

    async def close(self) -> None:
        """Stop what runs; say that the worker is gone. The connections are the process's.

        Raises:
            redis.exceptions.RedisError, OSError: Redis did not hear it.
        """
        self.hand_over()
        await asyncio.gather(*self.tasks.values())
        await self._batcher.send("DEL", self.health_check_key)
        if self.on_shutdown:
            await self.on_shutdown(self.ctx)

    async def _run_conversation(self, claim: _Claim, lease: Lease) -> None:
        """Run a conversation; however that ends, its entry leaves the queue only by `release`."""
        name, args = read_job(claim.payload, lease.conversation_id)
        function = self.functions.get(name) or self.functions[FUNCTION]
        outcome: Outcome = Done()
        try:
            outcome = await function.coroutine(
                {**self.ctx, "lease": lease, "job_id": claim.job_id}, *args
            )
            self.jobs_complete += 1
        except BaseException as error:  # noqa: BLE001  a defect must not strand the inbox
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
                self.jobs_retried += 1  # handed over, or lost: this task ends here either way
            else:  # also what would end the process, and cancellations that nobody asked for
                self.jobs_failed += 1
                log.error(  # noqa: TRY400  the text of a foreign error may hold user content
                    "conversation.defect",
                    extra={"conversation_id": lease.conversation_id, **facts_of(error)},
                )
                outcome = Parked(2_000, "defect")
        finally:
            if not (lease.lost or lease.released):
                await asyncio.shield(self._release(lease, outcome))

    async def _release(self, lease: Lease, outcome: Outcome) -> None:
        lease.advance(LeaseEvent.SEND)
        try:
            answer, _ = await self._batcher.run(lua.release(lease, outcome))
            is_fenced = text(answer) == "fenced"
            lease.advance(LeaseEvent.FENCED if is_fenced else LeaseEvent.GIVEN_UP)
            defer_s = outcome.defer_ms / 1000 if isinstance(outcome, Parked) else 0.0
            if text(answer) == "parked" and defer_s < self._times.poll_s:
                # Idle workers sleep until the first entry is due that they knew of; this is newer.
                self.loop.call_later(defer_s + 0.001, self._wake_somebody)
        except (RedisError, OSError) as error:
            # The lease ends by itself: the conversation is then due for another worker.
            log.warning("lease.unreleased", extra={"error": type(error).__name__})

    def _wake_somebody(self) -> None:
        waking = self.loop.create_task(self._wake())
        self._waking.add(waking)
        waking.add_done_callback(self._waking.discard)

    async def _wake(self, ended: str = "") -> None:
        with contextlib.suppress(RedisError, OSError):  # then polling finds what is due
            await self._batcher.run(lua.wake(self._shard, lua.WakeArgs(ended)))

    # -- notifications and losses -------------------------------------------------------------

    def _heard_wake(self, job_id: bytes | None) -> None:
        """Look for work: this is due, or unknown things were said before we listened."""
        if job_id is not None:
            self._hint = job_id.decode(errors="replace")  # a hint: others may publish there too
        self._look.set()

    def _heard_news(self, conversation_id: bytes | None) -> None:
        """Learn which of the active conversations got a message, interrupts above all."""
        if conversation_id is None:
            self._notify_all()  # what was published before we listened
        else:
            self._notify(f"{self._shard.tag}:{conversation_id.decode(errors='replace')}")

    def _notify(self, job_id: str) -> None:
        if self._prefetch is not None and self._prefetch.job_id == job_id:
            self._prefetch.inbox_changed = True
        active = self._active.get(job_id)
        if active is not None and active.lease is not None:
            active.lease.notify()

    def _notify_all(self) -> None:
        if self._prefetch is not None:
            self._prefetch.inbox_changed = True
        for job_id in self._active:
            self._notify(job_id)

    def lose(self, lost: Sequence[tuple[str, str]]) -> None:
        """Stop what is no longer ours: (job id, lease) pairs from the heartbeat."""
        for job_id, value in lost:
            active = self._active.get(job_id)
            if active is None or active.value != value:
                continue
            if active.lease is not None:
                active.lease.advance(LeaseEvent.MISSED)
                if not active.lease.lost:
                    continue
            log.warning("lease.lost", extra={"job_id": job_id})
            active.task.cancel()

    @property
    def tag(self) -> str:
        """Hash tag of the shard."""
        return self._shard.tag

    def active_leases(self) -> list[tuple[str, str]]:
        """Return (job id, lease) of all that runs at the moment."""
        return [(job_id, active.value) for job_id, active in list(self._active.items())]

    def renewal(self, active: Sequence[tuple[str, str]]) -> Call:
        """Return the call that renews these leases."""
        about = {"running": len(active), "slots": self.max_jobs, **self._about()}
        return lua.renew(
            self._shard,
            self.worker_id,
            active,
            lease_s=self._times.lease_s,
            about=msgspec.json.encode(about),
        )
