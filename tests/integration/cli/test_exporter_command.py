"""`turnline exporter`: how a fleet stands, also without workers, and where Redis says nothing."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from click.testing import CliRunner, Result
from redis.asyncio import Redis

from tests.integration.probes.asking import answer_of, free_port, frozen, says, value_on
from tests.support.driving import fleet
from tests.support.processes import worker_process
from tests.support.recordings import REPOSITORY
from tests.support.wait import wait_until
from turnline.contracts import TurnClient, UserMessage
from turnline.contracts.keys import shard_keys
from turnline.ops.cli.app import turnline
from turnline.ops.embedded import EmbeddedRedis
from turnline.ops.fleet.exporting import NAMES
from turnline.ops.fleet.fleet_status import FleetWatch
from turnline.ops.simulator import Simulator
from turnline.worker.http_places import Place

ALERTS = (REPOSITORY / "ops/deploy/prometheus/alerts.yaml").read_text()


@asynccontextmanager
async def exporting(redis_url: str, *words: str) -> AsyncIterator[Place]:
    """An exporter in a process of its own; where it answers. It ends in order."""
    place = Place("127.0.0.1", free_port())
    with exporter_process(redis_url, place, *words) as process:
        await says(place, "/livez", 200)
        yield place
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 10) == 0


@contextmanager
def exporter_process(
    redis_url: str, place: Place, *words: str
) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(
        [sys.executable, "-m", "turnline.ops.cli", "exporter", "--http", str(place), *words],
        cwd=REPOSITORY,
        env={**os.environ, "TURNLINE_REDIS_URL": redis_url},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def once(redis_url: str, *words: str) -> Result:
    arguments = ["exporter", "--once", "--redis", redis_url, *words]
    return CliRunner().invoke(turnline, arguments)


def status(redis_url: str, *words: str) -> dict[str, Any]:
    result = once(redis_url, "--json", *words)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


async def test_what_waits_is_told_while_no_worker_lives(
    redis_url: str, redis: Redis, client: TurnClient
) -> None:
    """How much, since when, and that nobody is there."""
    for n in range(3):
        await client.submit(UserMessage(conversation_id=f"c{n}", text="Hello"))
    shard = shard_keys(0)
    seconds, _ = await redis.time()
    await redis.zadd(shard.queue, {f"{shard.tag}:c0": seconds * 1000 - 60_000}, xx=True)
    await redis.zadd(shard.queue, {f"{shard.tag}:c1": seconds * 1000 + 600_000}, xx=True)
    await redis.xadd(shard.dead, {"c": "c"})

    found = await asyncio.to_thread(status, redis_url)
    assert 59 < found["oldest_waiting_s"] < 90
    assert (found["waiting"], found["demand"], found["deferred"]) == (2, 2, 1)
    assert (found["workers"], found["slots"], found["running"]) == (0, 0, 0)
    assert found["dead_letters"] == 1
    assert found["ok"]

    result = await asyncio.to_thread(once, redis_url)
    page = result.stdout.encode()
    assert value_on(page, "turnline_fleet_up") == 1
    assert value_on(page, "turnline_fleet_waiting") == 2
    assert set(re.findall(r"^(\w+) ", result.stdout, re.MULTILINE)) == set(NAMES)


async def test_workers_what_they_run_and_spend_are_told(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """Over several shards, each worker once."""
    async with fleet(redis_url, sim, count=2, shards="5", slots="7"):
        results = [await client.ask(f"c{n}", "Hello", timeout_s=30) for n in range(4)]
        sim.inject("stall;at=tokens:2", times=None)
        for n in range(3):
            await client.submit(UserMessage(conversation_id=f"r{n}", text="Hello"))

        async def runs() -> dict[str, Any] | None:
            found = await asyncio.to_thread(status, redis_url)
            return found if found["running"] == 3 else None

        found = await wait_until(runs, "three turns run")
        assert (found["workers"], found["slots"], found["shards"]) == (2, 14, 5)
        assert found["demand"] == 3
        usages = [it.usage for it in results]
        assert found["spent_today_tokens"] == sum(it.total_tokens for it in usages)
        assert found["spent_today_usd"] == pytest.approx(sum(it.cost_usd for it in usages))


async def test_what_was_just_claimed_counts_at_once(redis_url: str, redis: Redis) -> None:
    """A scaler that looks before the worker's next heartbeat sees no dip."""
    shard = shard_keys(0)
    seconds, micros = await redis.time()
    now_ms = seconds * 1000 + micros // 1000
    entries = {"leased": now_ms + 1_800, "later": now_ms + 60_000, "due": now_ms - 1}
    await redis.zadd(shard.queue, {f"{shard.tag}:{it}": at for it, at in entries.items()})

    found = await asyncio.to_thread(status, redis_url)
    assert (found["demand"], found["waiting"], found["running"]) == (2, 1, 0)


async def test_the_exporter_answers_over_http(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """Metrics and the document say the same; a worker that comes is seen."""
    async with exporting(redis_url) as place:
        await client.submit(UserMessage(conversation_id="c", text="Hello"))

        async def waits() -> bool:
            page = (await answer_of(place, "/metrics")).body
            return value_on(page, "turnline_fleet_waiting") == 1

        await wait_until(waits, "the turn is seen")
        found = await says(place, "/status.json", 200)
        assert (found["waiting"], found["workers"]) == (1, 0)
        assert (await says(place, "/readyz", 200))["ok"]
        page = (await answer_of(place, "/metrics")).body
        assert fires("TurnlineFleetGone", page)
        with worker_process(redis_url, sim.base_url):
            await says(place, "/status.json", 200, '"workers":1')
            await says(place, "/status.json", 200, '"waiting":0')
            page = (await answer_of(place, "/metrics")).body
            assert not fires("TurnlineFleetGone", page)
            assert not fires("TurnlineExporterBlind", page)


def fires(alert: str, page: bytes) -> bool:
    """Whether the rule of an alert is true of a page; these rules are Python, too."""
    rule = re.search(rf"- alert: {alert}\n +expr: (.+)\n", ALERTS)
    assert rule is not None
    names = re.findall(r"turnline_\w+", rule[1])
    return bool(eval(rule[1], {}, {name: value_on(page, name) for name in names}))


async def test_a_frozen_redis_is_told_in_time() -> None:
    """By a metric, by 503 and by an exit code; once it goes on, all is told again."""
    with EmbeddedRedis() as server:
        async with exporting(server.url) as place:
            await says(place, "/readyz", 200)
            with frozen(server):
                # What was seen less than a second ago is told for so long.
                await says(place, "/readyz", 503, "has not told all within 3 s")
                began_s = time.monotonic()
                page = (await answer_of(place, "/metrics")).body
                assert time.monotonic() - began_s < 6
                assert fires("TurnlineExporterBlind", page)
                assert b"turnline_fleet_workers" not in page
                found = await says(place, "/status.json", 503)
                assert list(found) == ["ok", "error"]
                assert (await says(place, "/livez", 200))["ok"]
                began_s = time.monotonic()
                result = await asyncio.to_thread(once, server.url, "--json")
                assert result.exit_code == 1
                assert time.monotonic() - began_s < 9
                assert not json.loads(result.stdout)["ok"]
            await says(place, "/readyz", 200)


async def test_an_exporter_without_redis_starts_and_says_so() -> None:
    """It may be there before Redis is."""
    async with exporting("redis://127.0.0.1:1/0") as place:
        found = await says(place, "/status.json", 503, "127.0.0.1:1/0")
        assert not found["ok"]


async def test_a_look_is_cheap(redis_url: str, redis: Redis, client: TurnClient) -> None:
    """The same few commands, however much waits and runs."""

    async def commands() -> int:
        return int((await redis.info("stats"))["total_commands_processed"])

    async def cost_of_a_look() -> int:
        before = await commands()
        await watch.look()
        return await commands() - before

    watch = FleetWatch(redis_url)
    try:
        await watch.look()
        few = await cost_of_a_look()
        shard = shard_keys(0)
        await redis.zadd(shard.queue, {f"{shard.tag}:x{n}": n for n in range(20_000)})
        assert await cost_of_a_look() == few <= 15
        assert (await watch.look()).waiting == 20_000
    finally:
        await watch.aclose()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--json"], "--json goes with --once"),
        (["--http", "here"], "--http: expected HOST:PORT"),
        (["--once", "--redis", "nowhere"], "is not the address of a Redis"),
        (["--once", "--prefix", "{x}"], "--prefix (or TURNLINE_PREFIX)"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], says: str) -> None:
    """In a sentence, with exit code 2."""
    result = CliRunner().invoke(turnline, ["exporter", *words])

    assert result.exit_code == 2
    assert says in result.output
