"""Deployments leave nothing behind, whoever ends; they run on either server program."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import redis

from tests.support.recordings import REPOSITORY
from tests.support.wait import wait_until_sync
from turnline.ops.deployments import Cluster, Node, NotSettled
from turnline.ops.deployments.settling import wait_settled
from turnline.ops.embedded import ServerNotReady
from turnline.ops.embedded.finding import program_in_wheel

STARTER = """
import json, sys
from turnline.ops.deployments import Cluster, Proxy, Sentinels
with Cluster(1, 0) as cluster, Sentinels(1, 1) as sentinels, Proxy(cluster.nodes[0]) as proxy:
    nodes = [*cluster.nodes, *sentinels.nodes, *sentinels.sentinels]
    sentinels.nodes[1].freeze()
    pids = [proxy.pid, *(node.pid for node in nodes)]
    print(json.dumps([pids, [str(node.directory) for node in nodes]]), flush=True)
    sys.stdin.read()
"""


def is_gone(pid: int) -> bool:
    """Whether a process has ended; nobody may have collected it yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_nothing_outlives_a_killed_starter() -> None:
    """No process, frozen ones included, and no directory."""
    with subprocess.Popen(
        [sys.executable, "-c", STARTER],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as starter:
        assert starter.stdout is not None
        pids, directories = json.loads(starter.stdout.readline())
        keepers = [psutil.Process(pid).ppid() for pid in pids[1:]]
        assert not any(map(is_gone, [*pids, *keepers]))

        starter.kill()

    wait_until_sync(lambda: all(map(is_gone, [*pids, *keepers])), "all processes are gone")
    wait_until_sync(lambda: not any(map(Path.exists, map(Path, directories))), "nor directories")


def test_the_program_can_be_chosen() -> None:
    """Valkey, where the wheel brings it; what is asked for is in force, and all ends at the end."""
    program = program_in_wheel()
    assert program is not None
    with Cluster(1, 1, program=program, full_coverage=True, options={"maxmemory": "64mb"}) as it:
        replica = it.nodes[1]
        assert "valkey_version" in replica.command("INFO", "server")
        told = replica.command("CONFIG", "GET", "cluster-require-full-coverage")
        assert told == ["cluster-require-full-coverage", "yes"]
        assert replica.command("CONFIG", "GET", "maxmemory") == ["maxmemory", str(64 << 20)]
        assert replica.command("CONFIG", "GET", "appendonly") == ["appendonly", "yes"]
        assert it.replicas_of(it.nodes[0]) == [replica]
        pids = [node.pid for node in it.nodes]
        directories = [node.directory for node in it.nodes]
        replica.freeze()

    assert all(map(is_gone, pids))
    assert not any(map(Path.exists, directories))


def test_a_node_keeps_its_port_and_its_data() -> None:
    """Its port is nobody else's while it is down; SIGKILL loses nothing that was answered."""
    node = Node("node", {"appendonly": "yes"})
    try:
        node.start()
        node.wait_ready()
        node.command("SET", "key", "value")
        node.kill()

        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", node.port))
        with pytest.raises(redis.ConnectionError, match="refused"):
            node.command("PING")
        node.restart()
        assert node.command("GET", "key") == "value"
    finally:
        node.close()
    assert not node.directory.exists()


def test_a_node_that_cannot_start_says_why() -> None:
    """With its name, and the server's last words."""
    node = Node("node-7", {"no-such-directive": "yes"})
    try:
        node.start()
        with pytest.raises(ServerNotReady, match=r"(?s)node-7 ended.*no-such-directive"):
            node.wait_ready()
    finally:
        node.close()


def test_what_does_not_settle_is_named() -> None:
    """All of what was in the way at last."""
    with pytest.raises(NotSettled, match=r"Not within 0 s: peace\. one; two\."):
        wait_settled(lambda: ["one", "two"], "peace", 0)
