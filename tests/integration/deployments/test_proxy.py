"""A proxy before real servers: each of its modes, as a client sees it."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import redis

from tests.support.wait import wait_until_sync
from turnline.ops.deployments import DeploymentError, Proxy
from turnline.ops.embedded import EmbeddedRedis


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[int, int]]:
    """The ports of two servers, which hold their numbers."""
    with EmbeddedRedis(port=0) as one, EmbeddedRedis(port=0) as two:
        for number, server in enumerate((one, two)):
            with redis.Redis.from_url(server.url) as client:
                client.set("number", number)
        yield urlsplit(one.url).port, urlsplit(two.url).port


@pytest.fixture
def proxy(servers: tuple[int, int]) -> Iterator[Proxy]:
    """A proxy before the first one."""
    with Proxy(servers[0]) as it:
        yield it


@pytest.fixture
def open_one(proxy: Proxy) -> Iterator[redis.Connection]:
    """A connection through it, opened before the test does anything to the proxy."""
    connection = connection_to(proxy)
    connection.connect()
    yield connection
    connection.disconnect()


def connection_to(proxy: Proxy) -> redis.Connection:
    return redis.Connection(
        port=proxy.port, protocol=2, socket_timeout=0.3, health_check_interval=0
    )


def ask(connection: redis.Connection, *words: str | bytes) -> object:
    connection.send_command(*words)
    return connection.read_response(disconnect_on_error=False)  # which would connect anew


def number_of_new(proxy: Proxy) -> object:
    """Which server a new connection reaches."""
    connection = connection_to(proxy)
    try:
        return ask(connection, "GET", "number")
    finally:
        connection.disconnect()


def test_bytes_go_both_ways(proxy: Proxy, open_one: redis.Connection) -> None:
    """Many of them too."""
    big = b"0123456789abcdef" * 200_000

    ask(open_one, "SET", "big", big)

    assert ask(open_one, "GET", "big") == big
    assert ask(open_one, "GET", "number") == b"0"
    assert proxy.connections == 1


def test_the_target_changes_for_new_connections(
    proxy: Proxy, open_one: redis.Connection, servers: tuple[int, int]
) -> None:
    """Open ones stay where they are until they are cut."""
    proxy.forward(servers[1])

    assert number_of_new(proxy) == b"1"
    assert ask(open_one, "GET", "number") == b"0"
    proxy.cut()
    assert proxy.connections == 0
    with pytest.raises(redis.ConnectionError):
        open_one.read_response()


def test_a_balancer_without_servers_takes_connections_and_closes_them(
    proxy: Proxy, open_one: redis.Connection
) -> None:
    """It is no refusal: the connection is there, and gone at the first read."""
    proxy.accept_and_close()

    with pytest.raises(redis.ConnectionError, match=r"(?i)closed|reset"):
        number_of_new(proxy)
    assert ask(open_one, "GET", "number") == b"0"
    proxy.forward()
    assert number_of_new(proxy) == b"0"


def test_half_open_connections_say_nothing(proxy: Proxy, open_one: redis.Connection) -> None:
    """Neither old nor new ones; an old one stays silent when new ones are forwarded again."""
    proxy.swallow()

    with pytest.raises(redis.TimeoutError):
        ask(open_one, "GET", "number")
    with pytest.raises(redis.TimeoutError):
        number_of_new(proxy)

    proxy.forward()
    assert number_of_new(proxy) == b"0"
    with pytest.raises(redis.TimeoutError):
        ask(open_one, "GET", "number")


def test_nobody_listens(proxy: Proxy, open_one: redis.Connection) -> None:
    """Refused, until it listens on the same port again; open connections go on."""
    proxy.refuse()

    with pytest.raises(redis.ConnectionError, match="refused"):
        number_of_new(proxy)
    assert ask(open_one, "GET", "number") == b"0"
    proxy.forward()
    assert number_of_new(proxy) == b"0"


def test_connections_end_on_both_sides(proxy: Proxy, open_one: redis.Connection) -> None:
    """Of a client that hangs up, and before a server that is not there."""
    open_one.disconnect()
    wait_until_sync(lambda: proxy.connections == 0, "the connection is closed")
    proxy.refuse()
    with Proxy(proxy.port) as before, pytest.raises(redis.ConnectionError):
        number_of_new(before)


def test_a_proxy_that_does_not_run_says_so() -> None:
    """Instead of a port that is somebody else's."""
    with pytest.raises(DeploymentError, match="not running"):
        _ = Proxy(1).url
