"""What Redis 7.0 and Valkey say when they refuse, and what redis-py and Turnline make of it."""

import asyncio
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from tests.support.recordings import REPOSITORY
from tests.support.wait import wait_until, wait_until_sync
from turnline.contracts import (
    StoreFull,
    StoreIncompatible,
    StoreUnavailable,
    SyncTurnClient,
    TurnClient,
    TurnlineError,
    UserMessage,
)
from turnline.contracts.refusals import is_passing, reason, told, word
from turnline.ops.deployments import Cluster, Node, Proxy
from turnline.ops.embedded.finding import find_server, program_in_wheel

WRITE = ("SET", "k", "s3cret")
READ = ("GET", "k")
SCRIPT = ("EVAL", "return redis.call('SET', KEYS[1], ARGV[1])", 1, "k", "s3cret")
READING_SCRIPT = ("EVAL", "return redis.call('GET', KEYS[1])", 1, "k")
PUBLISHING_SCRIPT = ("EVAL", "return redis.call('PUBLISH', 'c', ARGV[1])", 0, "s3cret")
UNDECLARED = ("EVAL", "return redis.call('GET', 'other')", 0)
CERTIFICATE = Path(REPOSITORY, "tests/integration/services/localhost.pem")
PROGRAMS = {"redis": find_server().path, "valkey": program_in_wheel()}
FULL = (StoreFull, False)
AWAY = (StoreUnavailable, True)
BROKEN = (StoreIncompatible, False)


@contextmanager
def running(program: str, **directives: str | int) -> Iterator[Node]:
    """Run a server that keeps nothing."""
    lines = {name.replace("_", "-"): value for name, value in directives.items()}
    node = Node("refusing", {"save": '""', **lines}, PROGRAMS[program])
    try:
        node.start()
        node.wait_ready()
        yield node
    finally:
        node.close()


@pytest.fixture(scope="module", params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> str:
    """Each of the two servers."""
    return request.param


@pytest.fixture(scope="module")
def shared_node(program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running(program, unixsocket=f'"{tmp_path_factory.mktemp("s") / "s"}"') as node:
        yield node


@pytest.fixture
def node(shared_node: Node) -> Iterator[Node]:
    """One server for all tests whose refusals it can be brought to, and out of again."""
    yield shared_node
    shared_node.command("REPLICAOF", "NO", "ONE")
    for name, value in {
        "min-replicas-to-write": 0,
        "maxmemory": 0,
        "replica-serve-stale-data": "yes",
    }.items():
        shared_node.command("CONFIG", "SET", name, value)
    shared_node.command("FLUSHALL")


async def failures(url: str, *command: Any, **options: Any) -> list[Exception]:
    """Return what redis-py raises, blocking and with asyncio."""
    return [
        await asyncio.to_thread(_blocking, url, command, options),
        await _awaiting(url, command, options),
    ]


def _blocking(url: str, command: tuple[Any, ...], options: dict[str, Any]) -> Exception:
    retry = Retry(NoBackoff(), 0)
    with (
        redis.Redis.from_url(url, protocol=2, retry=retry, **options) as client,
        pytest.raises((RedisError, OSError)) as error,
    ):
        client.execute_command(*command)
    return error.value


async def _awaiting(url: str, command: tuple[Any, ...], options: dict[str, Any]) -> Exception:
    retry = AsyncRetry(NoBackoff(), 0)
    async with redis.asyncio.Redis.from_url(url, protocol=2, retry=retry, **options) as client:
        with pytest.raises((RedisError, OSError)) as error:
            await client.execute_command(*command)
    return error.value


def judge(
    errors: list[Exception], said: str, outcome: tuple[type[TurnlineError], bool], *also: str
) -> None:
    """Check what is made of errors.

    Args:
        errors: As redis-py raises them.
        said: What the producer reads of the reason.
        outcome: What a producer is told, and whether the command is sent again before that.
        also: What may be read in place of `said`.
    """
    kind, passes = outcome
    for error in errors:
        assert reason(error) in {said, *also}, error
        assert word(error) == (said.partition(" ")[0] if said[0].isupper() else "")
        assert is_passing(error) is passes
        result = told(error)
        assert type(result) is kind
        assert "s3cret" not in str(result)
        if kind is not StoreFull:
            assert reason(error) in str(result)
        if kind is not StoreIncompatible:
            assert getattr(result, "retry_after_s") > 0  # noqa: B009  neither class is the other's


@pytest.mark.parametrize(
    ("setting_up", "command", "said", "outcome"),
    [
        (
            [("CONFIG", "SET", "min-replicas-to-write", 1)],
            command,
            "NOREPLICAS (it reaches fewer replicas than min-replicas-to-write)",
            AWAY,
        )
        for command in (WRITE, SCRIPT)
    ]
    + [
        ([("CONFIG", "SET", "maxmemory", 1)], command, "OOM (it has no memory left)", FULL)
        for command in (WRITE, SCRIPT)
    ]
    + [
        (
            [("REPLICAOF", "127.0.0.1", 1)],
            command,
            "READONLY (it is a replica, which takes no writes)",
            AWAY,
        )
        for command in (WRITE, SCRIPT)
    ]
    + [
        (
            [("REPLICAOF", "127.0.0.1", 1), ("CONFIG", "SET", "replica-serve-stale-data", "no")],
            command,
            "MASTERDOWN (it is a replica that has lost its primary)",
            AWAY,
        )
        for command in (READ, READING_SCRIPT)
    ]
    + [
        (
            [("LPUSH", "k", "s3cret")],
            READ,
            "WRONGTYPE (a key is of another type: another program writes it too)",
            BROKEN,
        ),
        ([], ("EVALSHAX", "s3cret"), "it does not know the command EVALSHAX", BROKEN),
        ([], ("EVAL", "error('s3cret')", 0), "it refuses a command (ResponseError)", BROKEN),
        (
            [],
            ("EVAL", "return redis.error_reply('S3CRET s3cret')", 0),
            "it refuses a command (ResponseError)",
            BROKEN,
        ),
    ],
)
async def test_a_server_that_does_not_take_a_command_is_quoted_by_its_word(
    node: Node,
    setting_up: list[tuple[str | int, ...]],
    command: tuple[str | int, ...],
    said: str,
    outcome: tuple[type[TurnlineError], bool],
) -> None:
    """Directly and in a script."""
    for words in setting_up:
        node.command(*words)

    judge(await failures(node.url, *command), said, outcome)


@pytest.mark.parametrize(
    ("rules", "command", "may_not"),
    [
        ("~* &* +@all -set", WRITE, ["run the command SET"]),
        ("~* &* +@all -evalsha", ("EVALSHA", "0" * 40, 0), ["run the command EVALSHA"]),
        ("~* &* +@all -config|get", ("CONFIG", "GET", "port"), ["run the command CONFIG|GET"]),
        ("~* &* +@all -set", SCRIPT, ["run the command SET", "run a command of a script"]),
        ("~x &* +@all", WRITE, ["use a key"]),
        ("~x &* +@all", SCRIPT, ["use a key"]),
        ("~x &* +@all", UNDECLARED, ["use a key"]),
        ("~* resetchannels +@all", ("PUBLISH", "c", "s3cret"), ["use a channel"]),
        ("~* resetchannels +@all", ("SUBSCRIBE", "c"), ["use a channel"]),
        ("~* resetchannels +@all", PUBLISHING_SCRIPT, ["use a channel"]),
    ],
)
async def test_a_missing_right_is_named(
    node: Node, rules: str, command: tuple[str | int, ...], may_not: list[str]
) -> None:
    """By the command, where the server says which it is; nobody tries again."""
    node.command("ACL", "SETUSER", "key", "reset", "on", ">pw", *rules.split())

    errors = await failures(node.url, *command, username="key", password="pw")

    said, *also = (f"NOPERM (its user may not {it})" for it in may_not)
    judge(errors, said, BROKEN, *also)


@pytest.mark.parametrize("command", [READ, ("EVALSHA", "0" * 40, 20, *range(30))])
async def test_a_wanted_password_is_asked_for(node: Node, command: tuple[str | int, ...]) -> None:
    """Redis 7.0 calls it an error of the protocol where a command has many arguments."""
    with redis.Redis.from_url(node.url, single_connection_client=True) as admin:
        admin.config_set("requirepass", "pw")
        try:
            errors = await failures(node.url, *command)
        finally:
            admin.config_set("requirepass", "")

    judge(errors, "NOAUTH (it wants a user and a password)", BROKEN)


@pytest.mark.parametrize("is_socket", [False, True])
async def test_a_wrong_password_is_no_lost_connection(node: Node, is_socket: bool) -> None:
    """Although redis-py makes it one while it connects to a socket; nor is a missing database."""
    node.command("ACL", "SETUSER", "off", "reset", "off", ">s3cret", "~*", "+@all")
    _, path = node.command("CONFIG", "GET", "unixsocket")
    url = f"unix://{path}?" if is_socket else f"redis://{node.address}?"
    unknown = "WRONGPASS (it does not know this user with this password)"
    without = "AUTH (it has no password for the user of this address)"
    few = "it has fewer databases than the address asks for"

    judge(await failures(url, *READ, username="u", password="s3cret"), unknown, BROKEN)
    judge(await failures(url, *READ, username="off", password="s3cret"), unknown, BROKEN)
    judge(await failures(url, *READ, password="s3cret"), without, BROKEN)
    judge(await failures(f"{url}db=99", *READ), few, BROKEN)


async def test_answers_to_the_code_that_asked_are_left_to_it(node: Node) -> None:
    """A script that must be sent, a group that is there, gone, or was never made."""
    node.command("XGROUP", "CREATE", "s", "g", "$", "MKSTREAM")
    reading = ("XREADGROUP", "GROUP", "g", "c", "BLOCK", 9_000, "STREAMS", "s", ">")

    deleted = asyncio.create_task(_awaiting(node.url, reading, {}))
    await _blocked(node)
    node.command("DEL", "s")
    errors = {
        "NOGROUP": [await deleted, *await failures(node.url, *reading)],
        "NOSCRIPT": await failures(node.url, "EVALSHA", "0" * 40, 0),
    }
    node.command("XGROUP", "CREATE", "s", "g", "$", "MKSTREAM")
    errors["BUSYGROUP"] = await failures(node.url, "XGROUP", "CREATE", "s", "g", "$")

    for answer, found in errors.items():
        assert [word(it) for it in found] == [answer] * len(found)
        assert not any(is_passing(it) for it in found)
        assert [told(it) for it in found] == found


@pytest.mark.parametrize("client", ["async", "sync"])
async def test_a_producer_is_told_in_words_of_the_contract(node: Node, client: str) -> None:
    """At once where waiting does not help; without the server's text, which may quote a message."""
    node.command("ACL", "SETUSER", "u", "reset", "on", ">pw", "~*", "&*", "+@all", "-evalsha")
    url = f"redis://u:pw@{node.address}"
    message = UserMessage(conversation_id="c", text="s3cret")
    if client == "async":
        async with TurnClient.connect(url) as producer:
            with pytest.raises(StoreIncompatible) as error:
                await producer.submit(message)
    else:
        with SyncTurnClient.connect(url) as it, pytest.raises(StoreIncompatible) as error:
            await asyncio.to_thread(it.submit, message)

    assert str(error.value) == (
        "Redis cannot be used: NOPERM (its user may not run the command EVALSHA)"
    )
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__


async def test_who_waits_hears_that_the_primary_became_a_replica(node: Node) -> None:
    """And asks elsewhere."""
    waiting = ("XREAD", "BLOCK", 9_000, "STREAMS", "s", "$")
    tasks = [
        asyncio.create_task(_awaiting(node.url, waiting, {})),
        asyncio.create_task(asyncio.to_thread(_blocking, node.url, waiting, {})),
    ]
    await _blocked(node, 2)

    node.command("REPLICAOF", "127.0.0.1", 1)

    judge(await asyncio.gather(*tasks), "UNBLOCKED (it has become a replica)", AWAY)


async def _blocked(node: Node, clients: int = 1) -> None:
    await wait_until(
        lambda: node.command("INFO", "clients")["blocked_clients"] == clients, "a client waits"
    )


async def test_a_server_that_runs_a_script_for_long_is_busy(node: Node) -> None:
    """Until somebody ends it."""
    node.command("CONFIG", "SET", "busy-reply-threshold", 1)
    with redis.Redis.from_url(node.url, single_connection_client=True) as admin:
        running = threading.Thread(
            target=lambda: _blocking(node.url, ("EVAL", "while true do end", 0), {})
        )
        running.start()
        try:
            await wait_until(lambda: _is_busy(admin), "the server is busy")
            errors = await failures(node.url, *WRITE)
        finally:
            admin.script_kill()
            await asyncio.to_thread(running.join)

    judge(errors, "BUSY (a script has been running for long)", AWAY)


def _is_busy(admin: redis.Redis) -> bool:
    with suppress(RedisError):
        return not admin.ping()
    return True


async def test_a_server_that_cannot_save_is_told_of_at_once(program: str, tmp_path: Path) -> None:
    """Its directory is gone, as after a disk that failed."""
    data = tmp_path / "data"
    data.mkdir()
    with running(program, dir=f'"{data}"', save="3600 1") as node:
        node.command("SET", "k", "v")
        shutil.rmtree(data)
        node.command("BGSAVE")
        await wait_until(
            lambda: node.command("INFO", "persistence")["rdb_last_bgsave_status"] == "err",
            "saving failed",
        )
        errors = [*await failures(node.url, *WRITE), *await failures(node.url, *SCRIPT)]

    assert not any(is_passing(it) for it in errors)
    judge(
        errors, "MISCONF (it cannot save its data, and takes no writes)", (StoreUnavailable, False)
    )


async def test_a_server_that_loads_its_data_will_answer(program: str) -> None:
    """A key in 50 ms, after a restart."""
    slowly = {"key_load_delay": 50_000, "loading_process_events_interval_bytes": 1_024}
    with running(program, rdbcompression="no", **slowly) as node:
        with redis.Redis.from_url(node.url) as client:
            for n in range(400):
                client.set(f"k{n}", "s3cret" * 400)
            client.save()
        node.kill()
        node.start()
        wait_until_sync(lambda: _connects(node.port), "it listens")

        judge(await failures(node.url, *WRITE), "LOADING (it loads its data)", AWAY)
        judge(await failures(node.url, *SCRIPT), "LOADING (it loads its data)", AWAY)


def _connects(port: int) -> bool:
    with socket.socket() as it:
        return it.connect_ex(("127.0.0.1", port)) == 0


async def test_a_server_without_a_place_for_another_client_may_have_one_soon(
    program: str,
) -> None:
    """It says so and hangs up; who writes first may only see the latter."""
    with (
        running(program, maxclients=1) as node,
        socket.create_connection(("127.0.0.1", node.port)) as only,
    ):
        only.sendall(b"PING\r\n")
        assert only.recv(9) == b"+PONG\r\n"
        errors = await failures(node.url, *READ)

    judge(errors, "it takes no more connections (maxclients)", AWAY, "it closes connections")


@pytest.fixture(scope="module")
def cluster(program: str) -> Iterator[Cluster]:
    """Two primaries are enough."""
    with Cluster(2, 0, program=PROGRAMS[program]) as cluster:
        yield cluster


async def test_a_cluster_sends_elsewhere_and_asks_to_wait(cluster: Cluster) -> None:
    """By slots that another node has, that are moved, and that nobody has."""
    foo = cluster.primary_of(12_182)
    (other,) = (it for it in cluster.nodes if it is not foo)
    elsewhere = "another node has the slot; the address of a cluster begins with redis+cluster://"
    moved = "a slot is being moved to another node"
    judge(await failures(other.url, "GET", "foo"), f"MOVED ({elsewhere})", AWAY)
    judge(
        await failures(foo.url, "MGET", "foo", "bar"),
        "CROSSSLOT (a command has keys of more than one slot)",
        BROKEN,
    )

    foo.command("SET", "{foo}1", "v")
    foo.command("CLUSTER", "SETSLOT", 12_182, "MIGRATING", other.command("CLUSTER", "MYID"))
    judge(await failures(foo.url, "GET", "foo"), f"ASK ({moved})", AWAY)
    judge(await failures(foo.url, "MGET", "{foo}1", "{foo}2"), f"TRYAGAIN ({moved})", AWAY)
    foo.command("CLUSTER", "SETSLOT", 12_182, "STABLE")

    foo.command("CLUSTER", "DELSLOTS", 12_182)
    errors = [
        *await failures(foo.url, "GET", "foo"),
        *await failures(foo.url, *SCRIPT[:3], "foo", 1),
    ]
    judge(errors, "CLUSTERDOWN (no primary serves a part of the cluster)", AWAY)


async def test_a_server_that_is_away_is_told_of_by_what_it_does(node: Node) -> None:
    """Behind a proxy: it says nothing, hangs up, refuses."""
    with Proxy(node) as proxy:
        proxy.swallow()
        silent = await failures(proxy.url, *READ, socket_timeout=0.2)
        proxy.accept_and_close()
        closing = await failures(proxy.url, *READ)
        proxy.refuse()
        refusing = await failures(proxy.url, *READ)

    judge(silent, "it does not answer", AWAY)
    judge(closing, "it closes connections", AWAY)
    judge(refusing, "it refuses connections", AWAY)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of redis-py 5.0
async def test_a_socket_that_is_gone_may_come_back(tmp_path: Path) -> None:
    """A server that restarts makes it anew."""
    path = tmp_path / "s"
    missing = await failures(f"unix://{path}", *READ)
    with socket.socket(socket.AF_UNIX) as nobody:
        nobody.bind(str(path))
    judge(missing, "there is no socket at its path", AWAY)
    judge(await failures(f"unix://{path}", *READ), "it refuses connections", AWAY)


async def test_a_client_with_all_connections_in_use_may_have_one_soon(node: Node) -> None:
    """The limit is the address's own."""
    blocking = redis.ConnectionPool.from_url(node.url, max_connections=1)
    awaiting = redis.asyncio.ConnectionPool.from_url(node.url, max_connections=1)
    errors: list[Exception] = []
    with redis.Redis(connection_pool=blocking, single_connection_client=True) as one:
        one.ping()
        with pytest.raises(RedisError) as error:
            redis.Redis(connection_pool=blocking).ping()
        errors.append(error.value)
    async with redis.asyncio.Redis(connection_pool=awaiting, single_connection_client=True) as it:
        await it.ping()
        with pytest.raises(RedisError) as error:
            await redis.asyncio.Redis(connection_pool=awaiting).ping()
        errors.append(error.value)
    await awaiting.disconnect()
    blocking.disconnect()

    judge(errors, "all connections of this client are in use", AWAY)


async def test_what_is_not_redis_is_said_to_be_none() -> None:
    """A web server, and one whose certificate nobody has signed."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)  # one that hangs up on what it did not read resets the connection
        writer.write(b"HTTP/1.1 400 s3cret\r\n\r\n")
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    async with (
        await asyncio.start_server(answer, "127.0.0.1", 0) as plain,
        await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as with_tls,
    ):
        port, tls_port = (it.sockets[0].getsockname()[1] for it in (plain, with_tls))
        errors = await failures(f"redis://127.0.0.1:{port}", *READ)
        refused = await failures(f"rediss://127.0.0.1:{tls_port}", *READ)
        without = await failures(f"rediss://127.0.0.1:{port}", *READ)

    judge(errors, "what answers is not Redis", BROKEN)
    judge(refused, "its certificate is not accepted", BROKEN)
    judge(without, "a connection with TLS fails", AWAY)
