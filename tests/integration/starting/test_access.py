"""The rights that `turnline acl` names are enough for each party, and are no more than it uses."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import redis as redis_sync
from click.testing import CliRunner, Result

from tests.support.driving import ended, fleet, user
from tests.support.recordings import REPOSITORY
from tests.support.wait import wait_until
from turnline.contracts import (
    Interrupt,
    SyncTurnClient,
    TurnClient,
    TurnCompleted,
    TurnInterrupted,
)
from turnline.contracts.keys import shard_keys
from turnline.ops.cli.app import turnline
from turnline.ops.embedded import EmbeddedRedis
from turnline.ops.fleet.access import Role, commands
from turnline.ops.simulator import Simulator

PREFIX = "shop"
LOOKUP = b'[{"function":{"name":"lookup","parameters":{"type":"object"}}}]'


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    """A server with the three users and nobody else but its owner."""
    with EmbeddedRedis(port=0) as running:
        with redis_sync.Redis.from_url(running.url) as admin:
            for role in get_args(Role):
                words = ["acl", role, "--password", "pw", "--prefix", PREFIX]
                printed = CliRunner().invoke(turnline, words)
                assert printed.exit_code == 0, printed.output
                admin.execute_command(*printed.stdout.split())
        yield running


@pytest.fixture
async def refused(server: EmbeddedRedis) -> AsyncIterator[None]:
    """At the end, nobody was refused anything but what can be done without."""
    with redis_sync.Redis.from_url(server.url) as admin:
        admin.flushall()
        admin.execute_command("ACL", "LOG", "RESET")
        yield
        entries = admin.acl_log()
    said = {(it["username"], it["reason"], it["object"]) for it in entries}
    assert {it for it in said if it[2] not in {"info", "client|setinfo"}} == set()


def url_of(server: EmbeddedRedis, role: Role) -> str:
    return server.url.replace("redis://", f"redis://{role}:pw@")


async def talk(client: TurnClient) -> None:
    """Use each verb of a client."""
    waiting = [it async for it in _calls_of_nobody(client)]
    assert waiting == []
    receipt = await client.submit(user("Hello", "a", reply_to="box"))
    done = await ended(client, receipt, TurnCompleted)
    assert [it async for it in client.events(receipt)][-1] == done
    assert [it async for it in client.text(receipt)][-1] == done.text
    follow = client.follow("a", after="0-0")
    assert await anext(follow)
    await follow.aclose()
    replies = client.replies("box", "g", "one")
    assert (await anext(replies)).turn_id == receipt.turn_id
    await replies.aclose()
    await client.record(receipt)
    assert len((await client.history("a")).messages) == 2
    assert (await client.usage("a")).turns == 1
    outcomes = await client.submit_many([user("one", "b"), user("two", "b", run=False)])
    assert not [it for it in outcomes if isinstance(it, Exception)]
    await ended(client, outcomes[0], TurnCompleted)  # else it may take a fault meant for another
    for _ in range(2):
        later_ms = int(time.time() * 1000) + 3_600_000
        assert (await client.submit(user("later", "b", deliver_at_ms=later_ms))).accepted


async def _calls_of_nobody(client: TurnClient) -> AsyncIterator[Any]:
    """Take calls of tools that nobody makes, until there is nothing for a moment."""
    calls = client.tool_calls("g", "one")
    try:
        async with asyncio.timeout(0.2):
            async for call in calls:
                yield call
    except TimeoutError:
        return


@pytest.mark.promise("P12")
async def test_a_fleet_works_with_these_rights(
    server: EmbeddedRedis, sim: Simulator, refused: None, tmp_path: Path
) -> None:
    """Worker and producers: turns, tools elsewhere, interrupts, reply streams, forgetting."""
    url, schemas = url_of(server, "producer"), tmp_path / "tools.json"
    schemas.write_bytes(LOOKUP)
    async with (
        fleet(url_of(server, "worker"), sim, prefix=PREFIX, tool_schemas=str(schemas)),
        TurnClient.connect(url, prefix=PREFIX) as client,
    ):
        await talk(client)
        await client.configure("t", temperature=0)
        sim.inject("tool;name=lookup", times=1)
        asked = await client.submit(user("look", "t"))
        async with asyncio.timeout(10):
            async for call in client.tool_calls("g", "one"):
                await client.answer(call, {"found": 1})
                break
        await ended(client, asked, TurnCompleted)
        sim.inject("stall;at=tokens:2", times=1)
        running = await client.submit(user("stop", "i"))
        async for shown in client.text(running):
            if shown:
                break
        await client.submit(Interrupt(conversation_id="i"))
        await ended(client, running, TurnInterrupted)
        for name in "abti":
            await client.forget(name)
        with SyncTurnClient.connect(url, prefix=PREFIX, wait_replicas=0) as blocking:
            receipt = await asyncio.to_thread(blocking.submit, user("Hello", "s"))
            end = await asyncio.to_thread(blocking.result, receipt, timeout_s=10)
            assert isinstance(end, TurnCompleted)
            assert await asyncio.to_thread(lambda: list(blocking.events(receipt)))


async def test_an_operator_may_use_all_commands(
    server: EmbeddedRedis, sim: Simulator, refused: None
) -> None:
    """Looking, sending, dead letters, resharding, forgetting."""
    url = url_of(server, "operator")

    async def run(*words: str) -> Result:
        words = (*words, "--redis", url, "--prefix", PREFIX)
        result = await asyncio.to_thread(CliRunner().invoke, turnline, words)
        assert result.exit_code == 0, result.output
        return result

    async with fleet(url_of(server, "worker"), sim, prefix=PREFIX, shards="3"):
        with redis_sync.Redis.from_url(server.url) as admin:
            # A producer that comes before knows no number of shards.
            known = shard_keys(0, PREFIX).fleet
            await wait_until(lambda: admin.exists(known), "the fleet has begun")
        await run("send", "o", "Hello", "--wait")
        await run("send", "o", "Later", "--in-s", "3600")
        sim.inject("status=401", times=1)
        await asyncio.to_thread(
            CliRunner().invoke,
            turnline,
            ["send", "ill", "Hello", "--wait", "--redis", url, "--prefix", PREFIX],
        )
        for words in ("queue", "show o", "usage o", "trace o", "dead list", "dead list --json"):
            await run(*words.split())
        (letter,) = json.loads((await run("dead", "list", "--json")).stdout)
        await run("dead", "show", letter["id"])
        await run("dead", "replay", letter["id"])
        words = ("--conversation", "y", "--text", "Hello")
        await run("schedule", "add", "yearly", "0 0 1 1 *", *words)
        for verb in ("pause", "resume"):
            await run("schedule", verb, "yearly")
        with redis_sync.Redis.from_url(server.url) as admin:  # as if nobody had looked for years
            keys = shard_keys(0, PREFIX)
            admin.hset(keys.ticks, "yearly", 0)
            admin.delete(keys.schedules_lease)
            admin.zadd(keys.queue, {keys.schedules_id: 0})
            await wait_until(lambda: admin.hget(keys.ticks, "yearly") != b"0", "it is seen to")
        assert "y" in (await run("show", "y")).stdout
        await run("schedule", "list")
        await run("schedule", "remove", "yearly")
        for shards in "123":
            await run("reshard", shards)
        await run("forget", "o", "--yes")


@pytest.mark.parametrize("role", get_args(Role))
def test_the_rights_end_at_the_fleet(server: EmbeddedRedis, role: Role) -> None:
    """Neither another fleet's keys, nor channels, nor the server itself."""
    other = shard_keys(0, "shop2")
    with redis_sync.Redis.from_url(url_of(server, role)) as redis:
        for words in (
            ("GET", other.token),
            ("GET", shard_keys(0).token),
            ("SPUBLISH", other.wake_prefix + "w", "x"),
            ("CONFIG", "GET", "*"),
            ("FLUSHALL",),
            ("KEYS", "*"),
            ("ACL", "LIST"),
        ):
            with pytest.raises(redis_sync.exceptions.NoPermissionError):
                redis.execute_command(*words)


@pytest.mark.parametrize("role", ["producer", "operator"])
def test_no_right_is_given_that_no_code_uses(role: Role) -> None:
    """Each command is one of a script of theirs, or stands in their Python."""
    folders = ["contracts", *(["ops/cli", "ops/fleet", "ops/traces"] if role == "operator" else [])]
    paths = [it for folder in folders for it in Path(REPOSITORY, folder).rglob("*.py")]
    text = "".join(it.read_text() for it in paths)
    paths = [it for folder in folders for it in Path(REPOSITORY, folder).rglob("*.lua")]
    scripts = "".join(it.read_text() for it in paths)
    unused = {
        name
        for name in commands(role) - {"select"}  # redis-py's own
        if not re.search(rf"redis\.p?call\('{name.upper()}'", scripts)
        and not re.search(rf"\"{name.partition('|')[0]}[\" ]", text, re.IGNORECASE)
    }
    assert unused == set()
