"""Runs conversations step by step against a real server and the simulator, without worker loops."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import msgspec

from turnline.contracts import Receipt, TurnClient, UserMessage
from turnline.contracts.connection import AsyncRedis
from turnline.contracts.keys import conversation_keys, conversation_of, shard_keys
from turnline.contracts.opening import open_servers
from turnline.contracts.routed import RoutedRedis
from turnline.contracts.scripts import run, text
from turnline.ops.simulator import Simulator
from turnline.worker.batching import Pipelines, ScriptBatcher
from turnline.worker.grok_services import GrokServices
from turnline.worker.lease import Lease
from turnline.worker.outcome import Outcome, Parked
from turnline.worker.pool import Pool
from turnline.worker.provider_limits import LimitRules
from turnline.worker.queue.lua import claim, release
from turnline.worker.settings import Settings, from_env
from turnline.worker.store.breakers import Breakers
from turnline.worker.store.cache import ContextCache
from turnline.worker.store.conversations import Conversations
from turnline.worker.store.limiter import RateLimiter
from turnline.worker.store.purse import Purse
from turnline.worker.turn.budgets import BudgetsFile
from turnline.worker.turn.driver import ConversationDriver
from turnline.worker.turn.grants import Limiter, Unlimited
from turnline.worker.turn.observer import Observer
from turnline.worker.turn.plan import Planner
from turnline.worker.turn.ports import DriverSettings

SHARD = shard_keys(0)
KEYS = conversation_keys(SHARD.tag, "c")
End = TypeVar("End")


def settings_for(
    redis_url: str, sim: Simulator, *, api_key: str = "xai-test", **more: str
) -> Settings:
    """Settings of a worker that talks to the simulator; by chat, if nothing else is said."""
    return from_env(
        {
            "TURNLINE_REDIS_URL": redis_url,
            "TURNLINE_BASE_URL": sim.base_url,
            "XAI_API_KEY": api_key,
            "TURNLINE_WIRE": "chat",
            **{f"TURNLINE_{name.upper()}": value for name, value in more.items()},
        }
    )


def user(text: str = "Hello", conversation: str = "c", **more: Any) -> UserMessage:
    """A message to the conversation that most tests have."""
    return UserMessage(conversation_id=conversation, text=text, **more)


def requests(sim: Simulator) -> list[dict[str, Any]]:
    """Bodies of the requests that the model got."""
    return [
        msgspec.json.decode(entry.body)
        for entry in sim.ledger.entries()
        if entry.path.endswith(("completions", "responses"))
    ]


async def are_idle(redis: AsyncRedis, count: int) -> bool:
    """Whether so many workers wait, and would hear that they are woken."""
    names = await redis.execute_command("ZRANGE", SHARD.idle, 0, -1)
    channels = [SHARD.wake_prefix + name.decode() for name in names]
    answer = await redis.execute_command("PUBSUB", "SHARDNUMSUB", *channels) if channels else []
    return len(names) == count and all(answer[1::2])


async def ended(client: TurnClient, receipt: Receipt, how: type[End], code: str = "") -> End:
    """The end of a turn, which has to be of this kind, and have this code if it is a failure."""
    end = await client.result(receipt, timeout_s=5)
    assert isinstance(end, how)
    assert getattr(end, "code", "") == code or not code
    return end


def limiter_on(
    batcher: ScriptBatcher,
    rules: str = "",
    worker: str = "w",
    key: str = "xai-test",
    **options: Any,
) -> RateLimiter:
    """The limits of a provider as one worker keeps them."""
    return RateLimiter(
        batcher,
        SHARD,
        provider="http://x/v1",
        key=key,
        rules=LimitRules.read(rules),
        worker_id=worker,
        **options,
    )


class Running(NamedTuple):
    """A turn that a worker runs, and that has said something."""

    receipt: Receipt
    lease: Lease
    task: asyncio.Task[Outcome]
    shown: str
    """What was seen of its reply."""

    async def notified(self) -> Outcome:
        """Have the worker look into the inbox, and wait until it is done."""
        self.lease.notify()
        return await self.task


class Hand:
    """A worker moved by hand: claims, runs and loses conversations one at a time."""

    client: TurnClient
    """A producer, where the worker is a fixture."""
    sim: Simulator
    """Its provider, where the worker is a fixture."""

    def __init__(
        self,
        pipelines: Pipelines,
        services: GrokServices,
        *,
        cache_bytes: int = 1 << 20,
        **more: Any,
    ) -> None:
        """Build the parts of a worker around connections."""
        self.redis = cast("AsyncRedis", RoutedRedis(pipelines.servers))
        self.pipelines = pipelines
        self.batcher = self.pipelines.of(SHARD.tag)
        self.store = Conversations(self.batcher, SHARD, cache=ContextCache(cache_bytes))
        self.purse: Purse | None = None
        self.services = services
        self.pool = cast("Pool", services and services.pool)  # None where no model is called
        self.settings = DriverSettings(worker_name="hand", aggregation_timeout_s=0.05, **more)
        self.planner = Planner()
        self.observer: Observer | None = None
        self.limiter: Limiter = Unlimited()
        self.limiters: list[Limiter] = []
        """One for each member of the pool; none: `limiter` is that of all."""
        self.breakers = Breakers(self.batcher, SHARD)

    def driver(self, store: Any = None) -> ConversationDriver:
        """Build the driver, around another store if given."""
        return ConversationDriver(
            *(store or self.store, self.services, self.breakers, SHARD, self.settings),
            self.observer,
            planner=self.planner,
            purse=self.purse,
            limiters=self.limiters or [self.limiter] * len(self.pool),
            pool=self.pool,
        )

    def hold_to(self, budgets: Path) -> None:
        """Have it keep the budgets of a file."""
        self.purse = Purse(self.redis, BudgetsFile(budgets), shards=1, prefix="")
        cache = ContextCache(1 << 20)
        self.store = Conversations(self.batcher, SHARD, cache=cache, purse=self.purse)

    async def claim(self, *, lease_ms: int = 60_000, worker: str = "hand") -> Lease | None:
        """Claim the first due conversation."""
        _, _, _, *items = await run(self.redis, claim(SHARD, 1, lease_ms, worker))
        if not items:
            return None
        conversation_id = conversation_of(text(items[0]), SHARD.tag)
        assert conversation_id is not None
        return Lease(SHARD.tag, conversation_id, text(items[1]))

    async def must_claim(self) -> Lease:
        """Claim the first due conversation; there has to be one."""
        lease = await self.claim()
        assert lease is not None, "nothing is due"
        return lease

    async def run_one(self, store: Any = None) -> Outcome:
        """Claim the first due conversation and run what waits in it."""
        return await self.driver(store).run(await self.must_claim())

    async def speaking(
        self, message: UserMessage, *, until: str = "", client: TurnClient | None = None
    ) -> Running:
        """Submit a message and run it up to where its reply is seen, or this part of it."""
        client = client or self.client
        receipt = await client.submit(message)
        lease = await self.must_claim()
        task = asyncio.create_task(self.driver().run(lease))
        async with contextlib.aclosing(client.text(receipt)) as texts:
            async for text in texts:
                if text and until in text:
                    break
        return Running(receipt, lease, task, text)

    async def run_lease(self, lease: Lease, store: Any = None) -> Outcome:
        """Run one conversation and leave it as the queue does."""
        outcome = await self.driver(store).run(lease)
        if not lease.released:
            await self.release(lease, outcome)
        return outcome

    async def run_due(self) -> list[Outcome]:
        """Run what is due, as the queue does, until nothing is."""
        outcomes: list[Outcome] = []
        while (lease := await self.claim()) is not None:
            outcomes.append(await self.run_lease(lease))
        return outcomes

    async def release(self, lease: Lease, outcome: Outcome) -> None:
        """Give a lease up as the queue does."""
        await run(self.redis, release(lease, outcome))

    async def expire(self, lease: Lease) -> None:
        """Let a lease end, as its time-out does."""
        await self.redis.execute_command("DEL", lease.keys.in_progress)
        await self.redis.execute_command("ZADD", SHARD.queue, "XX", 0, lease.keys.job_id)

    async def make_due(self, conversation_id: str) -> None:
        """Let a deferral be over, as time does."""
        job_id = f"{SHARD.tag}:{conversation_id}"
        await self.redis.execute_command("ZADD", SHARD.queue, "XX", 0, job_id)


async def pass_by(redis: Any, ms: int) -> None:
    """Let time pass in the conversation that most tests have, as far as it waits for a time."""
    for member, due_ms in await redis.zrange(KEYS.later, 0, -1, withscores=True):
        await redis.zadd(KEYS.later, {member: due_ms - ms})
    if rises := await redis.hget(KEYS.state, "rises"):
        at_ms, _, lane = rises.partition(b" ")
        await redis.hset(KEYS.state, "rises", b"%d %s" % (int(at_ms) - ms, lane))
    if at := await redis.zscore(SHARD.order, "^" + KEYS.job_id):
        await redis.zadd(SHARD.order, {"^" + KEYS.job_id: at - ms})
    due_ms = await redis.zscore(SHARD.queue, KEYS.job_id)
    if due_ms is not None and not await redis.exists(KEYS.in_progress):
        await redis.zadd(SHARD.queue, {KEYS.job_id: due_ms - ms})


@asynccontextmanager
async def batcher_on(url: str, **more: Any) -> AsyncIterator[ScriptBatcher]:
    """What runs scripts of the first shard on a server."""
    servers = open_servers(url)
    pipelines = Pipelines(servers, **more)
    try:
        yield pipelines.of(SHARD.tag)
    finally:
        await pipelines.close()
        await servers.aclose()


@asynccontextmanager
async def hand(
    redis_url: str, sim: Simulator, environ: Mapping[str, str] | None = None, **more: Any
) -> AsyncIterator[Hand]:
    """Open a worker moved by hand; `environ` sets what its services read."""
    servers = open_servers(redis_url)
    services = GrokServices(settings_for(redis_url, sim, **environ or {}))
    pipelines = Pipelines(servers)
    try:
        yield Hand(pipelines, services, **more)
    finally:
        await pipelines.close()
        await servers.aclose()
        for client in services.clients:
            await client.close()


async def run_next(hand: Hand) -> Parked | None:
    """Run what is due as the queue does; return how it is parked, if it is."""
    outcome = await hand.run_lease(await hand.must_claim())
    return outcome if isinstance(outcome, Parked) else None


async def run_again(hand: Hand, conversation_id: str = "c") -> Parked | None:
    """The same when a wait is over."""
    await hand.make_due(conversation_id)
    return await run_next(hand)


@asynccontextmanager
async def fleet(
    redis_url: str, sim: Simulator, count: int = 1, **more: str
) -> AsyncIterator[list[Any]]:
    """Run whole workers in this process; they are drained at the end."""
    from turnline.worker.main import make_fleet  # noqa: PLC0415  heavy, and not needed by all tests

    fleets = [
        make_fleet(settings_for(redis_url, sim, worker_name=f"w{n}", drain_s="1", **more))
        for n in range(count)
    ]
    tasks = [asyncio.create_task(fleet.run()) for fleet in fleets]
    try:
        yield fleets
    finally:
        for fleet_ in fleets:
            fleet_.stop()
        await asyncio.gather(*tasks)
