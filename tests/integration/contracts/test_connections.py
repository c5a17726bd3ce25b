"""Connections over TCP: one whose other side vanished is given up, by the kernel or in time."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator

import pytest
import redis as redis_sync
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import ReadOnlyError
from redis.exceptions import TimeoutError as ConnectionTimeout

from tests.support.wait import wait_until
from turnline.contracts import TurnClient, WrongEventLoop
from turnline.contracts.addresses import read_address
from turnline.contracts.connection import DEAD_AFTER_S, how_to_connect
from turnline.contracts.opening import open_async, open_servers, open_sync
from turnline.contracts.routed import RoutedRedis
from turnline.contracts.servers import SILENCE_S
from turnline.ops.embedded import EmbeddedRedis


@pytest.fixture
async def silent() -> AsyncIterator[str]:
    """The address of somebody who takes connections and never says a word."""
    taken: list[asyncio.StreamWriter] = []

    async def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(writer)

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:
        server.close()
        for writer in taken:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await server.wait_closed()


def is_watched(connected: socket.socket) -> bool:
    """Whether the kernel asks for signs of life, and gives up in time."""
    idle, every, count = (
        connected.getsockopt(socket.IPPROTO_TCP, option)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    )
    unheard_ms = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    return (
        connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        and idle + every * count == DEAD_AFTER_S
        and unheard_ms == DEAD_AFTER_S * 1000
    )


async def test_a_connection_asks_for_signs_of_life(silent: str) -> None:
    """A reader that blocks on a machine that is gone does not wait for ever."""
    servers = open_servers(silent)
    connection = (await servers.place("k")).pool.make_connection()
    await connection._connect()
    try:
        assert is_watched(connection._writer.get_extra_info("socket"))
    finally:
        await connection.disconnect()
        await servers.aclose()


async def test_a_blocking_connection_asks_for_signs_of_life(silent: str) -> None:
    """The same for the other client."""
    address = read_address(silent)
    connection_class, options = how_to_connect(redis_sync, address, *address.nodes[0])
    connected = await asyncio.to_thread(connection_class(**options)._connect)

    with connected:
        assert is_watched(connected)


async def test_a_blocking_command_may_be_given_a_time(silent: str) -> None:
    """Whoever must go on cannot wait for a server that says nothing."""
    client = open_sync(silent, timeout_s=0.05)

    with pytest.raises(ConnectionTimeout):
        await asyncio.to_thread(client.execute_command, "PING")

    client.close()


@pytest.mark.promise("P11")
async def test_a_connection_that_the_server_closed_meanwhile_is_replaced(redis_url: str) -> None:
    """Nobody hears of it, though commands are not sent again."""
    servers = open_servers(redis_url)
    client, pool = RoutedRedis(servers), (await servers.place("k")).pool
    try:
        number = await client.execute_command("CLIENT", "ID")
        other = open_async(redis_url)
        await other.execute_command("CLIENT", "KILL", "ID", number)
        await other.aclose()
        (connection,) = pool._available_connections
        await wait_until(connection._reader.at_eof, "the client sees it")

        assert await client.execute_command("CLIENT", "ID") != number
    finally:
        await client.aclose()


@pytest.mark.parametrize("read_from_the_socket", [False, True])
async def test_a_reply_that_nobody_read_is_not_taken_for_the_next_ones(
    redis_url: str, *, read_from_the_socket: bool
) -> None:
    """A connection that comes back with more to be read is replaced."""
    servers = open_servers(redis_url)
    client, pool = RoutedRedis(servers), (await servers.place("k")).pool
    try:
        connection = pool.make_connection()  # versions of redis-py get one in different ways
        pool._in_use_connections.add(connection)
        await connection.connect()
        await connection.send_packed_command(
            [b"*2\r\n$4\r\nECHO\r\n$1\r\na\r\n*2\r\n$4\r\nECHO\r\n$1\r\nb\r\n"]
        )
        if read_from_the_socket:
            assert await connection.read_response() == b"a"
        else:
            await wait_until(lambda: connection._reader._buffer, "the replies came")
        await pool.release(connection)

        assert await client.execute_command("ECHO", "c") == b"c"
    finally:
        await client.aclose()


@pytest.mark.parametrize("steps", range(8))
async def test_a_command_on_its_way_leaves_no_connection_to_a_closed_client(
    redis_url: str, steps: int
) -> None:
    """At whatever point of its connecting the client is closed."""
    servers = open_servers(redis_url)
    client, pool = RoutedRedis(servers), (await servers.place("k")).pool
    command = asyncio.ensure_future(client.execute_command("ECHO", "x"))
    for _ in range(steps):
        await asyncio.sleep(0)

    await client.aclose()
    await asyncio.gather(command, return_exceptions=True)

    assert not pool._in_use_connections
    assert [it for it in pool._available_connections if it.is_connected] == []


@pytest.mark.promise("P11")
@pytest.mark.parametrize("credentials", ["//", "//user:pw@"])
@pytest.mark.parametrize("steps", range(1, 7))
async def test_a_command_that_is_still_connecting_hears_that_its_server_was_left(
    silent: str, credentials: str, steps: int
) -> None:
    """Nobody would watch its connection: it would wait for all of its time, and in vain."""
    servers = open_servers(silent.replace("//", credentials))
    place = await servers.place("k")
    sending = asyncio.create_task(place.redis.execute_command("PING"))
    for _ in range(steps):
        await asyncio.sleep(0)

    leaving = asyncio.create_task(place.pool.leave())

    with pytest.raises(LostConnection):
        await asyncio.wait_for(sending, 2)
    await leaving
    await servers.aclose()


@pytest.mark.promise("P11")
async def test_a_server_that_says_nothing_to_a_greeting_is_silent(silent: str) -> None:
    """A connection that is being made counts: where the primary is, is asked then too."""
    servers = open_servers(silent.replace("//", "//user:pw@"))
    place = await servers.place("k")
    sending = asyncio.create_task(place.redis.execute_command("PING"))
    await wait_until(lambda: bool(place.pool._in_use_connections), "it connects")
    now_s = asyncio.get_running_loop().time()

    assert not place.pool.is_silent(now_s)
    assert place.pool.is_silent(now_s + 2 * SILENCE_S)

    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert not place.pool.is_silent(now_s + 100)
    await servers.aclose()


async def test_a_client_says_that_it_belongs_to_one_event_loop(redis_url: str) -> None:
    """Also one that has connections already: what comes over them would be another loop's."""
    async with TurnClient.connect(redis_url) as client:
        await client.usage("c")

        with pytest.raises(WrongEventLoop, match="open one in each"):
            await asyncio.to_thread(asyncio.run, client.usage("c"))

        await client.usage("c")


@pytest.mark.promise("P11")
async def test_who_cannot_be_told_of_a_move_stops_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The next ones are told, and whose command it was has the server's own answer."""
    told: list[str] = []

    def bad() -> None:
        raise ValueError("hunter2")

    with EmbeddedRedis(port=0) as server:
        servers = open_servers(server.url)
        servers.on_moved += [bad, lambda: told.append("the next")]
        place = await servers.place("k")
        await place.redis.execute_command("REPLICAOF", "127.0.0.1", 1)

        with pytest.raises(ReadOnlyError):
            await place.redis.execute_command("SET", "k", "v")

        await servers.aclose()
    assert told == ["the next"]
    (record,) = (it for it in caplog.records if it.levelno >= logging.ERROR)
    assert (record.getMessage(), vars(record)["error"]) == ("servers.callback_failed", "ValueError")
    assert "hunter2" not in caplog.text
