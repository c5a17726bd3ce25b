"""A worker of many shards on one server: connections, trips and complaints are not by shard."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis as redis_sync
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import ResponseError

from tests.support.driving import fleet, user
from tests.support.shards import (
    LET_IN,
    SHARDS,
    WORKER,
    as_worker,
    ask_all,
    most_connections,
    serves_all,
)
from tests.support.wait import wait_until
from turnline.contracts import TurnClient, TurnCompleted
from turnline.contracts.addresses import read_address
from turnline.contracts.keys import conversation_keys, shard_keys, shard_of
from turnline.contracts.opening import open_servers
from turnline.contracts.routed import RoutedRedis
from turnline.contracts.scripts import Call
from turnline.contracts.servers import AsyncServers
from turnline.ops.embedded import EmbeddedRedis
from turnline.ops.simulator import Simulator
from turnline.worker.batching import Pipelines
from turnline.worker.lease import LeaseSettings
from turnline.worker.queue import lua
from turnline.worker.queue.heartbeat import Heartbeat

POLL_S = 0.2
"""Short: the tests see many looks at the queues."""


@pytest.fixture
def server() -> Iterator[EmbeddedRedis]:
    """A server of one's own, which lets a worker in under its name."""
    with EmbeddedRedis(port=0) as running:
        with redis_sync.Redis.from_url(running.url) as admin:
            admin.execute_command(*LET_IN)
        yield running


@asynccontextmanager
async def serving(server: EmbeddedRedis, sim: Simulator, **more: str) -> AsyncIterator[RoutedRedis]:
    """Run a worker of all shards; gives a client of the server."""
    servers = open_servers(server.url)
    try:
        url, shards = as_worker(server.url), str(SHARDS)
        async with fleet(url, sim, shards=shards, poll_s=str(POLL_S), **more):
            await wait_until(lambda: serves_all(servers), "all shards are served", 30)
            yield RoutedRedis(servers)
    finally:
        await servers.aclose()


def clients_of(server: EmbeddedRedis) -> str:
    """What connections a server has."""
    with redis_sync.Redis.from_url(server.url, decode_responses=True) as admin:
        return str(admin.execute_command("CLIENT", "LIST"))


async def test_all_shards_of_a_server_share_three_connections(
    server: EmbeddedRedis, sim: Simulator
) -> None:
    """For scripts, for what is published, for the heartbeat; also while all of them are busy."""
    async with serving(server, sim), TurnClient.connect(server.url, shards=SHARDS) as client:
        async with most_connections([lambda: clients_of(server)]) as most:
            for name in ("a", "b"):
                await ask_all(client, name)
        assert most == [3]


async def test_what_an_idle_worker_sends_is_not_by_shard(
    server: EmbeddedRedis, sim: Simulator
) -> None:
    """All shards look for work in one round trip, and renew in another."""
    async with serving(server, sim) as redis:

        async def done(section: str, word: str) -> int:
            found = await redis.execute_command("INFO", section)
            return int(found[word] if section == "stats" else found[word]["calls"])

        reads = await done("stats", "total_reads_processed")
        calls = await done("commandstats", "cmdstat_evalsha")
        looked = 0

        async def looked_often() -> bool:
            nonlocal looked
            looked += 1
            return await done("commandstats", "cmdstat_evalsha") > calls + 10 * SHARDS

        await wait_until(looked_often, "all have looked again and again", 30)
        # A batch is a read or two, by its size; what this test asks are reads, too.
        used = await done("stats", "total_reads_processed") - reads - looked
        assert used < 2 * SHARDS


class Holding:
    """Holds no lease, and says that it lives."""

    def __init__(self, shard: int) -> None:
        self._shard = shard_keys(shard)
        self.tag = self._shard.tag

    def active_leases(self) -> list[tuple[str, str]]:
        return []

    def renewal(self, active: Sequence[tuple[str, str]]) -> Call:
        return lua.renew(self._shard, "w", active, lease_s=60, about=b"{}")

    def lose(self, lost: Sequence[tuple[str, str]]) -> None:
        raise AssertionError(lost)


@pytest.mark.promise("P5")
async def test_a_shard_that_comes_later_is_renewed_at_once(redis_url: str, redis: Redis) -> None:
    """Its first beat does not wait for the next one of the others."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[Any]:
        servers = open_servers(redis_url)
        try:
            yield servers
        finally:
            await servers.aclose()

    heartbeat = Heartbeat(LeaseSettings(heartbeat_s=3600, lease_s=7200), connect)
    try:
        for shard in range(3):
            heartbeat.watch(Holding(shard))
            lives = shard_keys(shard).worker_prefix + "w"
            await wait_until(lambda key=lives: redis.exists(key), "it is said to live")
    finally:
        await heartbeat.stop()


def said(caplog: pytest.LogCaptureFixture, *events: str) -> list[tuple[str, str]]:
    """Which of some events were logged, in order, with the reasons in them."""
    return [
        (it.getMessage(), getattr(it, "reason", ""))
        for it in caplog.records
        if it.getMessage() in events
    ]


@pytest.mark.promise("P11")
async def test_that_a_server_is_away_is_said_once_with_its_reason(
    server: EmbeddedRedis, sim: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Not by each shard, and not for each try; then that it is back."""
    caplog.set_level(logging.INFO, "turnline.queue")
    async with serving(server, sim) as redis:
        await asyncio.to_thread(server.kill)
        await wait_until(lambda: len(said(caplog, "heartbeat.failed")) == 1, "the beat failed")
        await wait_until(lambda: len(said(caplog, "redis.unreachable")) == 1, "it is missed")
        await asyncio.to_thread(server.restart)
        await redis.execute_command(*LET_IN)
        await wait_until(lambda: serves_all(redis.servers), "all shards are served again", 30)
        await wait_until(lambda: len(said(caplog, "heartbeat.back")) == 1, "the heart beats")

    for what in ("redis.unreachable", "redis.back"), ("heartbeat.failed", "heartbeat.back"):
        (_, why), *_ = events = said(caplog, *what)
        assert [event for event, _ in events] == [*what]
        assert why in {
            "it refuses connections",
            "it closes connections",
            "it cannot be reached",  # redis-py 5 does not say more
        }


@pytest.mark.promise("P11")
async def test_what_a_server_refuses_is_said_once_with_its_reason(
    server: EmbeddedRedis, sim: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """By the server's word, and without what its sentence quotes."""
    caplog.set_level(logging.INFO, "turnline.queue")
    async with serving(server, sim, heartbeat_s="0.1") as redis:
        await redis.execute_command("ACL", "SETUSER", WORKER, "-evalsha", "-eval")
        for event in ("queue.refused", "heartbeat.refused"):
            await wait_until(lambda it=event: said(caplog, it), f"{event} is said")
        refused = await _refusals(redis)
        await wait_until(lambda: _more_than(redis, refused + 3 * SHARDS), "all tried again")
        await redis.execute_command("ACL", "SETUSER", WORKER, "+evalsha", "+eval")
        for event in ("queue.accepted", "heartbeat.accepted"):
            await wait_until(lambda it=event: said(caplog, it), f"{event} is said")

    reason = "NOPERM (its user may not run the command EVALSHA)"
    for what in ("queue", "heartbeat"):
        events = said(caplog, f"{what}.refused", f"{what}.accepted")
        assert events == [(f"{what}.refused", reason), (f"{what}.accepted", "")]


async def _refusals(redis: RoutedRedis) -> int:
    found = await redis.execute_command("INFO", "commandstats")
    return int(found["cmdstat_evalsha"]["rejected_calls"])


async def _more_than(redis: RoutedRedis, count: int) -> bool:
    return await _refusals(redis) > count


async def test_who_closes_waits_for_no_server() -> None:
    """What is under way ends, and what is asked for behind that is not sent."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        servers = open_servers(f"redis://127.0.0.1:{silent.getsockname()[1]}")
        pipelines = Pipelines(servers)
        batcher = pipelines.of("{s0}")
        asked = [batcher.send("PING") for _ in range(300)]  # more than one batch
        began_s = time.monotonic()

        await pipelines.close()

        assert time.monotonic() - began_s < 2
        ends = await asyncio.gather(*asked, batcher.send("PING"), return_exceptions=True)
        await servers.aclose()
    assert all(isinstance(end, OSError | LostConnection) for end in ends)


async def test_commands_and_scripts_of_a_batch_fail_one_by_one(
    redis_url: str, redis: Redis
) -> None:
    """Also where the server has forgotten the scripts: each gets its own answer, in order."""
    servers = open_servers(redis_url)
    pipelines = Pipelines(servers)
    batcher = pipelines.of("{s0}")
    await redis.script_flush()
    await redis.set("{s0}:text", "x")
    asked = [
        batcher.send("GET", "{s0}:text"),
        batcher.run(lua.wake(shard_keys(0), lua.WakeArgs(""))),
        batcher.send("INCR", "{s0}:text"),
        batcher.send("GET", "{s0}:text"),
    ]

    got = await asyncio.gather(*asked, return_exceptions=True)

    assert got[0] == got[3] == b"x"
    assert got[1] == [b"quiet", b""]
    assert type(got[2]) is ResponseError
    await pipelines.close()
    await servers.aclose()


@pytest.mark.promise("P5", "P11")
async def test_answers_that_came_before_a_connection_broke_are_kept(
    redis_url: str, redis: Redis
) -> None:
    """What was claimed is not left to its lease; only what has no answer is lost."""
    servers = open_servers(redis_url)
    pipelines = Pipelines(servers)
    batcher = pipelines.of("{s0}")
    await redis.script_flush()
    asked = [
        batcher.send("SET", "{s0}:text", "x"),
        batcher.run(lua.wake(shard_keys(0), lua.WakeArgs(""))),  # would be sent again, whole
        batcher.send("GET", "{s0}:none"),
        batcher.send("QUIT"),  # the server answers, and hangs up
        batcher.send("GET", "{s0}:text"),
    ]

    got = await asyncio.gather(*asked, return_exceptions=True)

    assert [got[0], got[2], got[3]] == [b"OK", None, b"OK"]
    assert [type(got[1]), type(got[4])] == [LostConnection, LostConnection]
    assert await batcher.send("GET", "{s0}:text") == b"x"
    await pipelines.close()
    await servers.aclose()


@pytest.mark.promise("P8")
async def test_one_shard_may_use_all_slots(server: EmbeddedRedis, sim: Simulator) -> None:
    """They belong to the process; others get theirs as soon as one is free."""
    crowd = [name for n in range(500) if shard_of(name := f"c-{n}", SHARDS) == 0][:6]
    other = next(name for n in range(500) if shard_of(name := f"c-{n}", SHARDS) == 7)
    async with (
        serving(server, sim, slots="5") as redis,
        TurnClient.connect(server.url, shards=SHARDS) as client,
    ):
        sim.inject("stall;at=tokens:2", times=5)
        for name in crowd:
            await client.submit(user("Hello", name))
        leases = [conversation_keys(shard_keys(0).tag, it).in_progress for it in crowd]

        async def running() -> list[str]:
            found = [await redis.execute_command("EXISTS", it) for it in leases]
            return [name for name, is_leased in zip(crowd, found, strict=True) if is_leased]

        async def five_run() -> bool:
            return len(await running()) == 5

        await wait_until(five_run, "five run")
        receipt = await client.submit(user("Hello", other))
        last = (set(crowd) - {*await running()}).pop()
        await client.interrupt((await running())[0])

        ended = await client.result(receipt, timeout_s=10)
        assert isinstance(ended, TurnCompleted)
        assert (await client.ask(last, "And?", timeout_s=10)).turn_id
        for name in await running():
            await client.interrupt(name)


class Doubting(AsyncServers):
    """Notes when it was told that a server may not be where it was."""

    def __init__(self, url: str) -> None:
        super().__init__(read_address(url), max_connections=5)
        self.doubted: list[float] = []

    def doubt(self) -> None:
        self.doubted.append(asyncio.get_running_loop().time())
        super().doubt()


async def test_each_batch_that_waits_for_long_makes_its_server_doubtful(
    server: EmbeddedRedis,
) -> None:
    """Also one that is sent soon after another that waited: each has its own second."""
    servers = Doubting(as_worker(server.url))
    pipelines = Pipelines(servers)
    loop, batcher = asyncio.get_running_loop(), pipelines.of(shard_keys(0).tag)
    began: list[float] = []
    async with Redis.from_url(server.url) as admin:
        for _ in range(2):
            await batcher.send("PING")
            await admin.execute_command("CLIENT", "PAUSE", 1_300, "ALL")
            began.append(loop.time())
            await batcher.send("PING")
    await pipelines.close()
    await servers.aclose()

    waited = [doubt - since for doubt, since in zip(servers.doubted, began, strict=True)]
    assert all(0.9 < it < 1.25 for it in waited), waited
