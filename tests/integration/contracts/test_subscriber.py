"""Subscribers on real servers: few commands, one connection, and they find their way back."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.support.processes import REPOSITORY
from tests.support.wait import wait_until
from turnline.contracts import WrongEventLoop, subscriber_link
from turnline.contracts.opening import open_servers
from turnline.contracts.servers import Server
from turnline.contracts.subscriber import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    Subscriber,
    pause_s,
)
from turnline.ops.embedded import EmbeddedRedis, find_server


@pytest.fixture
def server() -> Iterator[EmbeddedRedis]:
    """A server of this test's own: it counts commands, and may be killed."""
    with EmbeddedRedis(port=0) as server:
        yield server


@pytest.fixture
async def redis(server: EmbeddedRedis) -> AsyncIterator[Redis]:
    """A client that looks at it."""
    async with Redis.from_url(server.url, protocol=2) as client:
        yield client


@pytest.fixture
async def subscriber(server: EmbeddedRedis) -> AsyncIterator[Subscriber]:
    """A subscriber there."""
    client = open_servers(server.url)
    subscriber = Subscriber(client.place)
    yield subscriber
    await subscriber.aclose()
    await client.aclose()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is death after half a second; what nobody needs is closed at once."""
    monkeypatch.setattr(subscriber_link, "PING_AFTER_S", 0.05)
    monkeypatch.setattr(subscriber_link, "GONE_AFTER_S", 0.5)
    monkeypatch.setattr(subscriber_link, "IDLE_S", 0.05)


async def publish(redis: Redis, channel: str, data: bytes) -> int:
    return await redis.execute_command("SPUBLISH", channel, data)


async def listening(subscriber: Subscriber, channel: str) -> list[bytes | None]:
    """Listen, wait until that is confirmed, and return what is heard."""
    heard: list[bytes | None] = []
    subscriber.listen(channel, heard.append)
    await wait_until(lambda: heard, f"{channel} is subscribed to")
    return heard


async def subscribed(redis: Redis) -> list[int]:
    """Channels of each connection that has any, as the server counts them."""
    return [int(it["ssub"]) for it in await redis.client_list() if int(it["ssub"])]


async def calls(redis: Redis, command: str) -> int:
    """How often the server ran a command, or refused to."""
    counted = (await redis.info("commandstats")).get(f"cmdstat_{command}", {})
    return counted.get("calls", 0) + counted.get("rejected_calls", 0)


async def test_a_message_reaches_all_who_listen(subscriber: Subscriber, redis: Redis) -> None:
    """Also one who came later; each is told first that what went before may be lost."""
    first = await listening(subscriber, "news:{s0}:a")
    second = await listening(subscriber, "news:{s0}:a")
    other = await listening(subscriber, "news:{s0}:b")

    assert await publish(redis, "news:{s0}:a", b"x") == 1
    await wait_until(lambda: len(first) > 1 and len(second) > 1, "both heard it")

    assert (first, second, other) == ([None, b"x"], [None, b"x"], [None])


async def test_whoever_has_left_hears_no_more(subscriber: Subscriber, redis: Redis) -> None:
    """The others go on; after the last one the server sends nothing more."""
    stays = await listening(subscriber, "{s0}:a")
    leaves: list[bytes | None] = []
    subscriber.listen("{s0}:a", leaves.append)
    subscriber.leave("{s0}:a", leaves.append)
    subscriber.leave("{s0}:a", leaves.append)  # once more than it listens
    await publish(redis, "{s0}:a", b"x")
    await wait_until(lambda: len(stays) == 2, "the other heard it")
    assert leaves == []

    subscriber.leave("{s0}:a", stays.append)

    await wait_until(lambda: _is_silent(redis, "{s0}:a"), "nothing is sent there")


async def _is_silent(redis: Redis, channel: str) -> bool:
    return await publish(redis, channel, b"y") == 0


async def test_leaving_and_coming_back_in_one_tick_keeps_the_subscription(
    subscriber: Subscriber, redis: Redis
) -> None:
    """Nothing is sent for it; who comes back is told all the same."""
    heard = await listening(subscriber, "{s0}:a")
    before = await calls(redis, "ssubscribe")
    subscriber.leave("{s0}:a", heard.append)
    again: list[bytes | None] = []
    subscriber.listen("{s0}:a", again.append)
    await listening(subscriber, "{s0}:b")
    await publish(redis, "{s0}:a", b"x")
    await wait_until(lambda: b"x" in again, "it hears")

    assert again[0] is None
    assert await calls(redis, "ssubscribe") == before + 1
    assert await calls(redis, "sunsubscribe") == 0


async def test_thousands_of_channels_take_one_connection_and_few_commands(
    subscriber: Subscriber, redis: Redis
) -> None:
    """5,000 channels: every one of them hears."""
    names = [f"turnline:{{s0}}:c:{n}:events" for n in range(5000)]
    heard: dict[str, list[bytes | None]] = {name: [] for name in names}
    for name in names:
        subscriber.listen(name, heard[name].append)
    await wait_until(lambda: all(heard.values()), "all are subscribed to")

    assert await subscribed(redis) == [5000]
    assert await calls(redis, "ssubscribe") <= 10
    async with redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.execute_command("SPUBLISH", name, name)
        await pipe.execute()
    await wait_until(lambda: all(len(it) == 2 for it in heard.values()), "all heard")
    assert heard == {name: [None, name.encode()] for name in names}

    for name in names:
        subscriber.leave(name, heard[name].append)
    await wait_until(lambda: _is_left(redis), "all are left")
    assert await calls(redis, "sunsubscribe") <= 10


async def _is_left(redis: Redis) -> bool:
    return await subscribed(redis) == []


@pytest.mark.promise("P11")
async def test_a_lost_connection_is_replaced(
    subscriber: Subscriber, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """All channels are subscribed to again, and whoever listens is told; so is the log, once."""
    caplog.set_level(logging.INFO, "turnline")
    heard = [await listening(subscriber, f"{{s0}}:user-{n}") for n in range(3)]
    for times in (2, 3):
        await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        for it in heard:
            await wait_until(lambda it=it, times=times: len(it) == times, "told again")

    await publish(redis, "{s0}:user-1", b"x")
    await wait_until(lambda: b"x" in heard[1], "heard")

    assert heard == [[None] * 3, [None] * 3 + [b"x"], [None] * 3]
    assert await subscribed(redis) == [3]
    said = [record.getMessage() for record in caplog.records]
    assert said == ["subscriber.lost", "subscriber.back"] * 2
    assert "user-" not in caplog.text


@pytest.mark.promise("P11")
async def test_a_restarted_server_is_found_again(
    subscriber: Subscriber, server: EmbeddedRedis, redis: Redis
) -> None:
    """Also one that was away for several tries."""
    heard = await listening(subscriber, "{s0}:a")
    server.kill()
    (link,) = subscriber._links.values()
    await wait_until(lambda: subscriber._failures.get(link.place.address, 0) > 3, "tried")
    await asyncio.to_thread(server.restart)

    await wait_until(lambda: len(heard) == 2, "told again")
    await publish(redis, "{s0}:a", b"x")
    await wait_until(lambda: heard == [None, None, b"x"], "heard")
    assert subscriber._failures == {}


@pytest.mark.promise("P11")
@pytest.mark.usefixtures("impatient")
async def test_a_server_that_says_nothing_is_left(
    subscriber: Subscriber, server: EmbeddedRedis, redis: Redis
) -> None:
    """It takes connections, but answers to none; when it wakes up all is well."""
    heard = await listening(subscriber, "{s0}:a")
    os.kill(server.pid, signal.SIGSTOP)
    try:
        address = f"127.0.0.1:{redis.connection_pool.connection_kwargs['port']}"
        await wait_until(lambda: subscriber._failures.get(address, 0) > 1, "given up twice")
    finally:
        os.kill(server.pid, signal.SIGCONT)

    await wait_until(lambda: len(heard) > 1, "told again")
    assert await publish(redis, "{s0}:a", b"x") >= 1
    await wait_until(lambda: b"x" in heard, "heard")


@pytest.mark.usefixtures("impatient")
async def test_silence_alone_is_no_fault(subscriber: Subscriber, redis: Redis) -> None:
    """A server that answers when asked keeps its connection."""
    heard = await listening(subscriber, "{s0}:a")
    await wait_until(lambda: _is_asked(redis, 5), "asked five times")

    assert heard == [None]


async def _is_asked(redis: Redis, times: int) -> bool:
    return await calls(redis, "ping") >= times


@pytest.mark.usefixtures("impatient")
async def test_a_connection_that_nobody_needs_is_closed(
    subscriber: Subscriber, redis: Redis
) -> None:
    """And opened again for the next one who listens."""
    heard = await listening(subscriber, "{s0}:a")
    subscriber.leave("{s0}:a", heard.append)
    await wait_until(lambda: not subscriber._tasks, "nothing is left of it")
    await wait_until(lambda: _has_clients(redis, 1), "only this client is left")

    assert await listening(subscriber, "{s0}:b") == [None]


async def _has_clients(redis: Redis, count: int) -> bool:
    return len(await redis.client_list()) == count


@pytest.mark.usefixtures("impatient")
async def test_channels_move_to_where_they_are_located(server: EmbeddedRedis, redis: Redis) -> None:
    """When the topology changes; those that stay are not disturbed."""
    with EmbeddedRedis(port=0) as second:
        clients = [open_servers(url) for url in (server.url, second.url)]
        places = [await client.place("") for client in clients]
        at = {"{a}": places[0], "{b}": places[0]}

        async def locate(channel: str) -> Any:
            return at[channel[:3]]

        subscriber = Subscriber(locate)
        moves = await listening(subscriber, "{a}:x")
        stays = await listening(subscriber, "{b}:x")
        at["{a}"] = places[1]
        subscriber.relocate()
        await wait_until(lambda: len(moves) == 2, "told again")
        async with Redis.from_url(second.url) as there:
            await publish(there, "{a}:x", b"x")
            await wait_until(lambda: b"x" in moves, "heard there")
        await wait_until(lambda: _is_silent(redis, "{a}:x"), "left here")
        await publish(redis, "{b}:x", b"y")
        await wait_until(lambda: stays == [None, b"y"], "the other heard")

        await subscriber.aclose()
        for client in clients:
            await client.aclose()


@pytest.mark.promise("P11")
async def test_a_place_that_cannot_be_told_is_asked_for_again(
    redis: Redis, server: EmbeddedRedis
) -> None:
    """For ever, with pauses that grow."""
    client = open_servers(server.url)
    asked = 0

    async def locate(_: str) -> Server:
        nonlocal asked
        asked += 1
        if asked < 5:
            raise ConnectionError("nobody knows")
        return await client.place("")

    subscriber = Subscriber(locate)
    assert await listening(subscriber, "{s0}:a") == [None]
    await subscriber.aclose()
    await client.aclose()


def test_pauses_grow_to_a_second() -> None:
    """And not all tries fall together."""
    for failures in range(1, 50):
        longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (failures - 1))
        pauses = {pause_s(failures) for _ in range(20)}
        assert len(pauses) > 1
        assert all(longest / 2 <= it <= longest for it in pauses)
    assert pause_s(0) == 0


@pytest.mark.promise("P11")
async def test_a_user_without_channels_is_served_once_it_has_them(
    server: EmbeddedRedis, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Until then the server is asked now and then, without harm to channels that may be heard."""
    await redis.execute_command(
        *("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@all", "resetchannels", "&{may}*")
    )
    client = open_servers(server.url.replace("redis://", "redis://reader:pw@"))
    subscriber = Subscriber(client.place)
    may = await listening(subscriber, "{may}:x")
    heard: list[bytes | None] = []
    subscriber.listen("{not}:x", heard.append)
    await wait_until(lambda: _is_refused(redis, 4), "refused again and again")
    assert (may, heard) == ([None], [])
    assert [(record.getMessage(), vars(record)["error"]) for record in caplog.records] == [
        ("subscriber.lost", "NoPermissionError")
    ]

    await redis.execute_command("ACL", "SETUSER", "reader", "&*")

    await wait_until(lambda: heard == [None], "told")
    assert may == [None]
    await subscriber.aclose()
    await client.aclose()


async def _is_refused(redis: Redis, times: int) -> bool:
    counted = (await redis.info("commandstats"))["cmdstat_ssubscribe"]
    return counted["rejected_calls"] >= times


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Redis]:
    """A client of a cluster of one node, which serves all slots."""
    port, bus = free_ports()
    options = f"--port {port} --cluster-port {bus} --cluster-enabled yes --bind 127.0.0.1"
    more = ["--cluster-require-full-coverage", "no", "--save", "", "--dir", str(tmp_path)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220  a process takes no time to start
            [find_server().path, *options.split(), *more], stdout=log
        )
    try:
        async with Redis(port=port, protocol=2) as client:
            await wait_until(lambda: _answers(client), "the node answers")
            await client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            await wait_until(lambda: _serves(client), "it serves its slots")
            yield client
    finally:
        process.kill()
        process.wait()


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        for it in (one, other):
            it.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def _url(node: Redis) -> str:
    return f"redis+cluster://127.0.0.1:{node.connection_pool.connection_kwargs['port']}"


async def _answers(client: Redis) -> bool:
    with contextlib.suppress(RedisError, OSError):
        return bool(await client.ping())
    return False


async def _serves(client: Redis) -> bool:
    return b"cluster_state:ok" in await client.execute_command("CLUSTER", "INFO")


@pytest.mark.promise("P11")
async def test_a_slot_that_moves_away_is_looked_for(node: Redis) -> None:
    """Its channels are subscribed to where it turns up; the others hear on, undisturbed."""
    servers = open_servers(_url(node))
    subscriber = Subscriber(servers.place)
    moves = [await listening(subscriber, f"{{a}}:{n}") for n in range(3)]
    stays = await listening(subscriber, "{b}:x")
    (link,) = subscriber._links.values()
    slot = await node.execute_command("CLUSTER", "KEYSLOT", "{a}")

    await node.execute_command("CLUSTER", "DELSLOTS", slot)
    await wait_until(lambda: subscriber._slots[b"a"].failures > 3, "refused more than once")
    await node.execute_command("CLUSTER", "ADDSLOTS", slot)
    for heard in moves:
        await wait_until(lambda heard=heard: heard == [None, None], "told again")
    for name in ("{a}:1", "{b}:x"):
        await publish(node, name, b"x")

    await wait_until(lambda: b"x" in moves[1] and b"x" in stays, "both hear")
    assert stays == [None, b"x"]
    assert list(subscriber._links.values()) == [link]
    await subscriber.aclose()
    await servers.aclose()


async def test_a_channel_may_be_left_while_its_slot_is_away(node: Redis) -> None:
    """What the server says to that is an error, and harms nobody else.

    It may be taken for the answer to another command, whose slot is then looked for again: that
    is a gap, of which its listeners are told.
    """
    servers = open_servers(_url(node))
    subscriber = Subscriber(servers.place)
    heard = await listening(subscriber, "{a}:x")
    stays = await listening(subscriber, "{b}:x")
    (link,) = subscriber._links.values()
    slot = await node.execute_command("CLUSTER", "KEYSLOT", "{a}")

    await node.execute_command("CLUSTER", "DELSLOTS", slot)
    subscriber.leave("{a}:x", heard.append)  # it may not have been told yet
    again = await listening(subscriber, "{b}:y")

    async def is_heard() -> bool:
        await node.execute_command("SPUBLISH", "{b}:x", b"x")
        return b"x" in stays

    await wait_until(is_heard, "it hears")
    assert again[0] is None
    assert list(subscriber._links.values()) == [link]
    await subscriber.aclose()
    await servers.aclose()


async def test_one_bad_listener_stops_nobody(
    subscriber: Subscriber, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names its error, without what it says: that may be a user's words."""

    def bad(_: bytes | None) -> None:
        raise ValueError("hunter2")

    subscriber.listen("{s0}:a", bad)
    good = await listening(subscriber, "{s0}:a")
    await publish(redis, "{s0}:a", b"x")

    await wait_until(lambda: b"x" in good, "the other hears")
    assert {record.getMessage() for record in caplog.records} == {"subscriber.callback_failed"}
    assert {vars(record)["error"] for record in caplog.records} == {"ValueError"}
    assert "hunter2" not in caplog.text


async def test_closing_leaves_nothing(server: EmbeddedRedis, redis: Redis) -> None:
    """No task, no connection; closing twice is nothing."""
    client = open_servers(server.url)
    tasks = asyncio.all_tasks()
    subscriber = Subscriber(client.place)
    heard = await listening(subscriber, "{s0}:a")
    subscriber.listen("{s1}:a", heard.append)  # which is not subscribed to yet

    await subscriber.aclose()
    await subscriber.aclose()

    assert asyncio.all_tasks() == tasks
    await wait_until(lambda: _has_clients(redis, 1), "only this client is left")
    subscriber.leave("{s0}:a", heard.append)
    with pytest.raises(RuntimeError, match="is closed"):
        subscriber.listen("{s0}:a", heard.append)
    await client.aclose()


async def test_another_event_loop_is_told_what_to_do(subscriber: Subscriber) -> None:
    """It would wait for ever."""
    heard = await listening(subscriber, "{s0}:a")

    async def elsewhere() -> None:
        subscriber.listen("{s0}:b", heard.append)

    with pytest.raises(WrongEventLoop, match="make one in each event loop"):
        await asyncio.to_thread(asyncio.run, elsewhere())


FORKS = """
import asyncio, os, sys
from turnline.contracts import WrongEventLoop
from turnline.contracts.opening import open_servers
from turnline.contracts.subscriber import Subscriber

async def main():
    client = open_servers(sys.argv[1])
    subscriber = Subscriber(client.place)
    stands = asyncio.Event()
    subscriber.listen("{s0}:a", lambda _: stands.set())
    await stands.wait()
    if (child := os.fork()) == 0:
        code = 1
        try:
            subscriber.listen("{s0}:b", print)
        except WrongEventLoop:
            code = 7
        os._exit(code)
    _, status = os.waitpid(child, 0)
    await subscriber.aclose()
    await client.aclose()
    sys.exit(os.waitstatus_to_exitcode(status))

asyncio.run(main())
"""


async def test_a_fork_is_told_what_to_do(server: EmbeddedRedis) -> None:
    """Its parent's connection is not its own."""
    ended = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", FORKS, server.url], cwd=REPOSITORY, check=False
    )

    assert ended.returncode == 7
