"""Starting a worker: clean errors that say what to do, and real processes that come and go."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis as redis_sync
from redis.asyncio import Redis

from tests.support.driving import fleet, settings_for
from tests.support.wait import wait_until, wait_until_sync
from turnline.contracts import SyncTurnClient, TurnClient, TurnCompleted, UserMessage
from turnline.contracts.conversation import ConversationSettings
from turnline.contracts.keys import shard_keys
from turnline.ops.embedded import EmbeddedRedis
from turnline.ops.simulator import Simulator, SimulatorConfig
from turnline.worker.errors import StartFailed
from turnline.worker.main import make_fleet, services_of
from turnline.worker.services.provider_client import ProviderClient
from turnline.worker.settings import SettingsError, from_env
from turnline.worker.settings_help import described
from turnline.worker.starting.provider_check import check_provider
from turnline.worker.starting.redis_check import RedisFound, check_redis

REPOSITORY = Path(__file__).parents[3]


async def test_an_unreachable_redis_is_named(tmp_path: Path) -> None:
    """The address, and how to get one."""
    settings = from_env({"TURNLINE_REDIS_URL": f"unix://{tmp_path}/none.sock"})

    with pytest.raises(StartFailed, match="turnline redis"):
        await check_redis(settings)


async def test_a_smaller_number_of_shards_is_refused(redis_url: str, redis: Redis) -> None:
    """Otherwise turns would wait in shards that nobody serves; a larger one serves all."""

    async def check(shards: int) -> RedisFound:
        settings = {"TURNLINE_REDIS_URL": redis_url, "TURNLINE_SHARDS": str(shards)}
        return await check_redis(from_env(settings))

    assert (await check(2)).warnings == ()
    assert [await redis.hget(shard_keys(n).fleet, "shards") for n in range(2)] == [b"2"] * 2

    with pytest.raises(StartFailed, match=r"has 2 shards.*turnline reshard 1"):
        await check(1)
    (warning,) = (await check(3)).warnings
    assert "turnline reshard 3" in warning
    assert await redis.hget(shard_keys(2).fleet, "shards") == b"2"

    await redis.hset(shard_keys(0).fleet, mapping={"shards": 1, "from": 2})
    with pytest.raises(StartFailed, match="has 2 shards"):
        await check(1)
    await redis.hset(shard_keys(0).fleet, "shards", "many")
    with pytest.raises(StartFailed, match="no number of shards"):
        await check(2)


async def test_a_redis_that_evicts_is_refused() -> None:
    """All keys expire some day, so that any of them, an inbox too, might go when memory is full."""
    with EmbeddedRedis() as server, redis_sync.Redis.from_url(server.url) as redis:
        settings = from_env({"TURNLINE_REDIS_URL": server.url})
        redis.config_set("maxmemory-policy", "volatile-lru")
        await check_redis(settings)  # without a limit nothing goes

        redis.config_set("maxmemory", "1gb")

        with pytest.raises(StartFailed, match="maxmemory-policy noeviction"):
            await check_redis(settings)


async def test_a_worker_starts_while_redis_is_full() -> None:
    """It is workers that make room again."""
    with EmbeddedRedis() as server, redis_sync.Redis.from_url(server.url) as redis:
        settings = from_env({"TURNLINE_REDIS_URL": server.url})
        await check_redis(settings)

        redis.config_set("maxmemory", 1)

        await check_redis(settings)


@pytest.mark.promise("P10")
@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "XAI_API_KEY is not set"),
        ({"XAI_API_KEY": "xai-wrong"}, "refuses the key"),
        (
            {"XAI_API_KEY": "xai-right", "TURNLINE_MODEL": "grok-99"},
            "does not serve the model grok-99",
        ),
    ],
)
async def test_key_and_model_are_checked_at_the_start(environ: dict[str, str], words: str) -> None:
    """Missing, refused, unknown: three sentences that say what to do; the key is in none."""
    async with Simulator(SimulatorConfig(api_keys=("xai-right",))) as sim:
        settings = from_env({"TURNLINE_BASE_URL": sim.base_url, **environ})
        client = ProviderClient(settings.api_key.value or "none", sim.base_url)
        with pytest.raises(StartFailed) as error:
            await check_provider(settings, client)
        await client.close()

    assert words in str(error.value)
    assert "xai-wrong" not in str(error.value)


async def test_what_the_provider_says_at_the_start_is_used(redis_url: str, sim: Simulator) -> None:
    """The worker's services learn it: here that another name means the model asked for."""
    settings = from_env(
        {
            "TURNLINE_REDIS_URL": redis_url,
            "TURNLINE_BASE_URL": sim.base_url,
            "TURNLINE_MODEL": "grok-4-latest",
            "XAI_API_KEY": "xai-test",
        }
    )
    services = services_of(settings)
    fleet = make_fleet(settings)
    fleet.parts = fleet.parts._replace(learn=services.learn)
    try:
        assert not services.catalogue.is_same("grok-4-fast", "grok-4.20-latest")
        assert services.budget_s(ConversationSettings(model="grok-4-latest")) == 1800

        await fleet.check()

        assert services.catalogue.is_same("grok-4.20-latest", "grok-4.20-0309-reasoning")
        assert {"grok-4.3", "grok-4.7"} < {model.name for model in services.catalogue.served}
    finally:
        await fleet.close()
        await services.clients[0].close()


async def test_a_provider_that_is_down_does_not_stop_a_start() -> None:
    """Turns wait and are tried again; the worker is there when it comes back."""
    async with Simulator(SimulatorConfig()) as sim:
        base_url = sim.base_url
    settings = from_env({"TURNLINE_BASE_URL": base_url, "XAI_API_KEY": "xai-test"})
    client = ProviderClient("xai-test", base_url)

    await check_provider(settings, client)

    await client.close()


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"TURNLINE_SLOT": "1"}, "TURNLINE_SLOT is not a setting"),
        ({"TURNLINE_SLOTS": "0"}, "TURNLINE_SLOTS: Expected `int` >= 1"),
        ({"TURNLINE_SLOTS": "many"}, "TURNLINE_SLOTS"),
        ({"TURNLINE_HEARTBEAT_S": "5"}, "at most a third"),
        ({"TURNLINE_LOG_FORMAT": "xml"}, "TURNLINE_LOG_FORMAT"),
    ],
)
def test_settings_name_the_variable_and_what_it_takes(environ: dict[str, str], words: str) -> None:
    """Unknown names are typos and therefore errors."""
    with pytest.raises(SettingsError) as error:
        from_env(environ)

    assert words in str(error.value)


def test_help_lists_every_setting_with_its_default() -> None:
    """`python -m turnline.worker --help` teaches."""
    shown = subprocess.run(
        [sys.executable, "-m", "turnline.worker", "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    for variable, default, meaning in described():
        assert variable in shown
        assert default in shown
        assert meaning, f"{variable} has no docstring"


async def test_a_start_that_fails_closes_what_it_opened(redis_url: str, sim: Simulator) -> None:
    """No connection is left to complain at the exit."""
    failing = make_fleet(settings_for(redis_url, sim, model="grok-99"))

    with pytest.raises(StartFailed):
        await failing.run()

    assert failing.parts.clients[0].is_closed()


async def test_a_worker_ends_well_though_redis_is_gone(sim: Simulator) -> None:
    """There is nobody to say goodbye to; everything else is closed all the same."""
    with EmbeddedRedis() as server:
        ending = make_fleet(settings_for(server.url, sim))
        running = asyncio.create_task(ending.run())
        async with TurnClient.connect(server.url) as client:
            await client.ask("c", "Hello", timeout_s=10)

    ending.stop()
    async with asyncio.timeout(20):
        await running

    assert ending.parts.clients[0].is_closed()


@pytest.mark.promise("P10")
def test_secrets_do_not_print() -> None:
    """Neither in repr nor in str."""
    settings = from_env({"XAI_API_KEY": "xai-secret"})

    assert "xai-secret" not in repr(settings)
    assert "xai-secret" not in str(settings.api_key)


@contextmanager
def start_worker(
    redis_url: str, sim: Simulator, name: str, **more: str
) -> Iterator[subprocess.Popen[str]]:
    """Run a worker; it is gone behind the block, however that ends."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("TURNLINE_")}
    environ |= {
        "TURNLINE_REDIS_URL": redis_url,
        "TURNLINE_BASE_URL": sim.base_url,
        "XAI_API_KEY": "xai-test",
        "TURNLINE_WORKER_NAME": name,
        **more,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "turnline.worker"],
        cwd=REPOSITORY,
        env=environ,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.promise("P1", "P5", "P10")
async def test_killed_stopped_and_terminated_processes_lose_nothing(
    redis_url: str, sim: Simulator
) -> None:
    """SIGKILL mid-stream: another process goes on; SIGTERM: exit 0; no user text in the logs."""

    def drill() -> str:
        with (
            SyncTurnClient.connect(redis_url) as client,
            redis_sync.Redis.from_url(redis_url) as r,
            ExitStack() as workers,
        ):
            first = workers.enter_context(start_worker(redis_url, sim, "one"))
            wait_until_sync(lambda: r.zcard("turnline:{s0}:workers") == 1, "one worker", 20)
            sim.inject("reasoning;tokens=0|stall;at=tokens:4")
            receipt = client.submit(UserMessage(conversation_id="c", text="my secret words"))
            for text in client.text(receipt):
                if text:
                    break
            second = workers.enter_context(start_worker(redis_url, sim, "two"))
            wait_until_sync(lambda: r.zcard("turnline:{s0}:workers") == 2, "two workers", 20)
            first.send_signal(signal.SIGKILL)
            result = client.result(receipt, timeout_s=20)
            assert isinstance(result, TurnCompleted)
            assert result.attempt == 2
            assert client.record(receipt).worker == "two"
            assert len(client.history("c").messages) == 2
            second.send_signal(signal.SIGTERM)
            _, log = second.communicate(timeout=20)
            assert second.returncode == 0
            return log

    log = await asyncio.to_thread(drill)

    assert "worker.started" in log
    assert "worker.stopped" in log
    assert "secret" not in log
    assert "xai-test" not in log


async def test_a_worker_answers_without_the_sdk(
    redis_url: str, sim: Simulator, tmp_path: Path
) -> None:
    """It would take longer to import than all else; who overrides nothing does not need it."""
    (tmp_path / "openai.py").write_text("raise ImportError('the worker asks for the SDK')\n")

    def drill() -> str:
        with (
            SyncTurnClient.connect(redis_url) as client,
            start_worker(redis_url, sim, "one", PYTHONPATH=str(tmp_path)) as worker,
        ):
            receipt = client.submit(UserMessage(conversation_id="c", text="Hello"))
            assert isinstance(client.result(receipt, timeout_s=20), TurnCompleted)
            worker.send_signal(signal.SIGTERM)
            _, log = worker.communicate(timeout=20)
            assert worker.returncode == 0
            return log

    assert "the SDK" not in await asyncio.to_thread(drill)


@pytest.mark.promise("P8")
async def test_a_fleet_of_two_shards_serves_both(redis_url: str, sim: Simulator) -> None:
    """Conversations of all shards are run; their keys carry their shard's tag."""
    from redis.asyncio import Redis  # noqa: PLC0415

    async with (
        fleet(redis_url, sim, shards="2"),
        TurnClient.connect(redis_url, shards=2) as client,
        Redis.from_url(redis_url) as redis,
    ):
        for n in range(8):
            assert isinstance(await client.ask(f"c{n}", "Hello", timeout_s=10), TurnCompleted)
        keys = await redis.keys("turnline:*:c:*:context")

    assert {key.split(b":")[1] for key in keys} == {b"{s0}", b"{s1}"}
    assert len(keys) == 8


async def test_workers_announce_themselves(redis_url: str, sim: Simulator) -> None:
    """For `turnline queue`: who lives, with how many slots."""
    from redis.asyncio import Redis  # noqa: PLC0415

    async with fleet(redis_url, sim, count=2), Redis.from_url(redis_url) as redis:
        members = await wait_until(lambda: _two(redis), "two workers in the table")
        about = await redis.get(b"turnline:{s0}:worker:" + members[0])

    assert b'"slots":100' in about


async def _two(redis: object) -> list[bytes]:
    members = await redis.zrange("turnline:{s0}:workers", 0, -1)  # type: ignore[attr-defined]
    return members if len(members) == 2 else []
