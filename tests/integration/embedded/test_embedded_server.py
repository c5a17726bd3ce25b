"""The embedded server: private, gone with its starter, its data kept where asked."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from redis import Redis

from tests.support.recordings import REPOSITORY
from tests.support.wait import wait_until_sync
from turnline.ops.embedded import (
    DirectoryInUse,
    EmbeddedRedis,
    EmbeddedRedisError,
    ServerNotReady,
    find_server,
    redis_url,
)


@contextmanager
def turnline_redis(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """`turnline redis` in a process of its own: the process, the server's URL, the server's pid."""
    program = "from turnline.ops.embedded.command import redis; redis()"
    with subprocess.Popen(
        [sys.executable, "-c", program, "--json", *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as starter:
        try:
            assert starter.stdout is not None
            told = json.loads(starter.stdout.readline())
            yield starter, told["url"], told["pid"]
        finally:
            starter.kill()


def private_directory(url: str) -> Path:
    return Path(urlsplit(url).path).parent


def assert_gone(url: str, pid: int) -> None:
    """Neither the server, nor its keeper, nor their directory is left."""
    directory = private_directory(url)
    wait_until_sync(lambda: not psutil.pid_exists(pid), "the server is gone")
    wait_until_sync(lambda: not directory.exists(), "the private directory is removed")

    def kept() -> bool:
        return any(
            str(directory) in process.info["cmdline"]
            for process in psutil.process_iter(["cmdline"])
            if process.info["cmdline"]
        )

    wait_until_sync(lambda: not kept(), "the keeper is gone")


def get(url: str, key: str) -> object:
    with Redis.from_url(url) as client:
        return client.get(key)


def put(url: str, key: str, value: str) -> None:
    with Redis.from_url(url) as client:
        client.set(key, value)


def test_the_server_is_private_and_evicts_nothing() -> None:
    """Its directory is 0700, it listens on no TCP port, and it refuses writes rather than evict."""
    with EmbeddedRedis() as server:
        assert stat.S_IMODE(private_directory(server.url).stat().st_mode) == 0o700
        with Redis.from_url(server.url) as client:
            assert client.config_get("port") == {"port": "0"}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert psutil.Process(server.pid).net_connections("tcp") == []


def test_numbered_databases_are_apart() -> None:
    """`url_of` gives as many separate databases as asked for."""
    with EmbeddedRedis(databases=1024) as server:
        put(server.url_of(1023), "key", "last")

        assert get(server.url_of(1023), "key") == b"last"
        assert get(server.url, "key") is None


def test_a_port_listens_on_loopback_only() -> None:
    """With port 0 a free port of 127.0.0.1 is taken and stands in the URL."""
    with EmbeddedRedis(port=0) as server:
        put(server.url, "key", "value")

        listening = psutil.Process(server.pid).net_connections("tcp")
        assert {c.laddr.ip for c in listening if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
        assert get(server.url, "key") == b"value"


def test_a_port_stays_the_servers_own_while_it_is_down() -> None:
    """Nobody else can take it until then."""
    with EmbeddedRedis(port=0) as server:
        port = urlsplit(server.url).port
        server.kill()

        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        server.restart()
        put(server.url, "key", "value")


def test_leaving_the_block_leaves_nothing() -> None:
    """After a normal end there is no process and no directory, without waiting."""
    with EmbeddedRedis() as server:
        url, pid = server.url, server.pid

    assert not psutil.pid_exists(pid)
    assert not private_directory(url).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_the_server_ends_with_its_starter(number: signal.Signals) -> None:
    """Whatever ends the starting process ends the server, its keeper and its directory too."""
    with turnline_redis() as (starter, url, pid):
        starter.send_signal(number)
        code = starter.wait()

        assert_gone(url, pid)
        assert code == (-number if number == signal.SIGKILL else 0)


def test_a_frozen_server_ends_with_its_starter() -> None:
    """It is not waited for: it is woken to end."""
    with turnline_redis() as (starter, url, pid):
        os.kill(pid, signal.SIGSTOP)
        starter.kill()

        assert_gone(url, pid)


def test_the_server_survives_ctrl_c_while_its_starter_drains() -> None:
    """A SIGINT to the starter's process group, as a terminal sends it, spares the server."""
    program = (
        "import signal, sys; from turnline.ops.embedded import EmbeddedRedis\n"
        "signal.signal(signal.SIGINT, lambda *_: print('draining', flush=True))\n"
        "with EmbeddedRedis() as server:\n"
        "    print(server.url, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as starter:
        assert starter.stdout is not None
        assert starter.stdin is not None
        url = starter.stdout.readline().strip()
        os.killpg(starter.pid, signal.SIGINT)
        assert starter.stdout.readline() == "draining\n"

        with Redis.from_url(url) as client:  # a server that was told to stop does so within 0.1 s
            assert client.blpop(["nothing"], timeout=0.5) is None


def test_the_server_ends_when_its_keeper_is_killed() -> None:
    """The last line of defence on Linux: the kernel ends the server with the keeper."""
    with EmbeddedRedis() as server:
        pid, directory = server.pid, private_directory(server.url)
        psutil.Process(pid).parent().kill()

        wait_until_sync(lambda: not psutil.pid_exists(pid), "the server is gone")
        with pytest.raises(EmbeddedRedisError, match="keeper was killed"):
            server.wait()
    wait_until_sync(lambda: not directory.exists(), "the private directory is removed")


def test_data_survive_a_crash_where_a_directory_is_given(tmp_path: Path) -> None:
    """SIGKILL and restart: same URL, same data, another process."""
    with EmbeddedRedis(tmp_path) as server:
        url, pid = server.url, server.pid
        put(url, "key", "value")

        server.kill()
        with pytest.raises(EmbeddedRedisError, match="not running"):
            _ = server.pid
        server.restart()

        assert server.url == url
        assert server.pid != pid
        assert get(url, "key") == b"value"


def test_a_server_that_died_by_itself_can_be_restarted(tmp_path: Path) -> None:
    """A fault drill may kill the process by its pid and then restart it."""
    with EmbeddedRedis(tmp_path) as server:
        put(server.url, "key", "value")
        os.kill(server.pid, signal.SIGKILL)
        server.restart()

        assert get(server.url, "key") == b"value"


def test_data_survive_from_one_server_to_the_next(tmp_path: Path) -> None:
    """A later server on the same directory, which is made if missing, finds the data."""
    with EmbeddedRedis(tmp_path / "new" / "data") as server:
        put(server.url, "key", "value")
    with EmbeddedRedis(tmp_path / "new" / "data") as server:
        assert get(server.url, "key") == b"value"


def test_data_end_with_the_server_otherwise() -> None:
    """Without a directory a restart begins empty."""
    with EmbeddedRedis() as server:
        put(server.url, "key", "value")
        server.restart()

        assert get(server.url, "key") is None


def test_two_servers_cannot_share_a_directory(tmp_path: Path) -> None:
    """The second is refused by name, and the first goes on."""
    with EmbeddedRedis(tmp_path) as server:
        with pytest.raises(DirectoryInUse, match=str(tmp_path)), EmbeddedRedis(tmp_path):
            pass
        put(server.url, "key", "value")


def test_a_server_that_cannot_start_says_why() -> None:
    """A taken port: the error has the server's last words, and nothing is left behind."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ServerNotReady, match=r"(?s)ended.*(?i:address already in use)"),
            EmbeddedRedis(port=port),
        ):
            pass


def test_a_long_temporary_directory_does_not_hinder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Socket paths are limited to about 100 bytes; a TMPDIR longer than that is passed over."""
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with EmbeddedRedis() as server:
        put(server.url, "key", "value")
    assert list(long.iterdir()) == []


def test_a_given_url_wins_over_starting_a_server() -> None:
    """The argument, then TURNLINE_REDIS_URL, then REDIS_URL, then an embedded server."""
    both = {"TURNLINE_REDIS_URL": "redis://one", "REDIS_URL": "redis://two"}
    with redis_url("redis://given", environ=both) as url:
        assert url == "redis://given"
    with redis_url(environ=both) as url:
        assert url == "redis://one"
    with redis_url(environ={"TURNLINE_REDIS_URL": "", "REDIS_URL": "redis://two"}) as url:
        assert url == "redis://two"
    with redis_url(environ={}) as url:
        put(url, "key", "value")
    assert not private_directory(url).exists()


def test_the_program_found_is_new_enough() -> None:
    """Whatever machine this is, the server found is 7.0 or newer and runs."""
    assert int(find_server().version.split(".")[0]) >= 7


def test_the_command_keeps_data_and_names_a_second_user_of_them(tmp_path: Path) -> None:
    """`turnline redis --directory D --port 0` serves; a second one on D is refused clearly."""
    arguments = ("--directory", str(tmp_path), "--port", "0")
    with turnline_redis(*arguments) as (_, url, _):
        put(url, "key", "value")
        second = subprocess.run(
            [
                sys.executable,
                "-c",
                "from turnline.ops.embedded.command import redis; redis()",
                *arguments,
            ],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )

    assert second.returncode == 1
    assert second.stderr.startswith("Error: Another embedded server writes into ")
    assert second.stdout == ""


def test_the_command_says_when_its_server_was_killed() -> None:
    """A server that ends by itself ends the command with an error, not in silence."""
    with turnline_redis() as (starter, _, pid):
        os.kill(pid, signal.SIGKILL)

        assert starter.wait() == 1
