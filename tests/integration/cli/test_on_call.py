"""Six nights on call: the first lines of `explain` or `doctor` name what was done to the fleet."""

import json
import os
import signal
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner, Result

from tests.support.wait import wait_until_sync
from turnline.contracts import Receipt, SyncTurnClient, UserMessage
from turnline.contracts.opening import open_sync
from turnline.ops.cli.app import turnline
from turnline.ops.embedded import EmbeddedRedis
from turnline.ops.fleet.operator_connection import connected
from turnline.ops.fleet.queue_state import read_queue
from turnline.ops.fleet.stack import Stack

TOOLS = '''
from turnline.worker.tools import tool

@tool
async def weather() -> str:
    """Tell the weather."""
    raise ConnectionError("no such host")
'''
BUDGETS = """
[tenants.acme]
concurrency = 1
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two workers with a tool that fails, and a tenant of which one turn may run."""
    folder = tmp_path_factory.mktemp("settings")
    (folder / "night_tools.py").write_text(TOOLS)
    (folder / "budgets.toml").write_text(BUDGETS)
    worker_env = {
        "TURNLINE_TOOLS": "night_tools",
        "PYTHONPATH": str(folder),
        "TURNLINE_BUDGETS": str(folder / "budgets.toml"),
        "TURNLINE_LEASE_S": "1",
        "TURNLINE_HEARTBEAT_S": "0.2",
    }
    with Stack(workers=2, worker_env=worker_env) as it:
        yield it


def call(url: str, *words: str) -> Result:
    """Call `turnline` with these words, pointed at a server."""
    return CliRunner().invoke(turnline, words, env={"TURNLINE_REDIS_URL": url, "COLUMNS": "160"})


def inject(stack: Stack, scenario: str, conversation: str) -> None:
    """Let the next call of a conversation meet this scenario."""
    at = urlsplit(stack.base_url)
    connection = HTTPConnection(at.hostname or "", at.port, timeout=5)
    rule = {"scenario": scenario, "times": 1, "conversation": conversation}
    connection.request("POST", "/sim/faults", json.dumps(rule))
    assert connection.getresponse().status == 200
    connection.close()


def submit(stack: Stack, name: str, **more: Any) -> Receipt:
    """Ask something; the conversation and the turn have one name."""
    with SyncTurnClient.connect(stack.redis_url) as client:
        return client.submit(UserMessage(conversation_id=name, turn_id=name, text="Hi", **more))


def end(stack: Stack, receipt: Receipt) -> str:
    """Wait for the end of a turn, and until its trace is kept; return how it ended."""
    with SyncTurnClient.connect(stack.redis_url) as client:
        ending = client.result(receipt, timeout_s=60)

    def is_kept() -> bool:
        found = call(stack.redis_url, "trace", receipt.turn_id, "--json").stdout
        turns = json.loads(found)["turns"] if found else []
        return any(it["kept"] and it["state"] != "running" for it in turns)

    wait_until_sync(is_kept, "the trace is kept", 10)
    return type(ending).__name__


def first_lines(result: Result, count: int = 3) -> str:
    """What somebody reads who is tired."""
    assert result.exit_code in {0, 1}, result.output
    return "\n".join(result.stdout.splitlines()[:count])


def busy_worker(stack: Stack) -> int:
    """Wait for a worker that runs something; return its process id."""
    pids: list[int] = []

    def is_busy() -> bool:
        with connected(stack.redis_url) as connection:
            workers = read_queue(connection.redis, connection.shards).workers
        pids[:] = [it.pid for it in workers if it.running]
        return bool(pids)

    wait_until_sync(is_busy, "a worker is busy", 10)
    return pids[0]


def test_nothing_happened(stack: Stack) -> None:
    """Then it says so, and what it cost; as JSON, too."""
    assert end(stack, submit(stack, "calm")) == "TurnCompleted"

    said = first_lines(call(stack.redis_url, "explain", "calm"))
    assert "Turn calm was answered after" in said
    assert "Nothing went wrong, and nothing took long." in said
    assert "It took 1 model call:" in said

    told = json.loads(call(stack.redis_url, "explain", "calm", "--json").stdout)
    assert told["state"] == "completed"
    assert [it["text"] for it in told["steps"]][:1] == ["accepted"]
    assert "nothing is known of nobody" in call(stack.redis_url, "explain", "nobody").output


@pytest.mark.timeout(90)
def test_a_worker_was_killed(stack: Stack) -> None:
    """`explain` names the workers, and how long it took; `doctor` counts."""
    inject(stack, "stall;at=tokens:2,seconds=60", "killed")
    receipt = submit(stack, "killed")
    pid = busy_worker(stack)
    os.kill(pid, signal.SIGKILL)
    assert end(stack, receipt) == "TurnCompleted"

    said = first_lines(call(stack.redis_url, "explain", "killed"))
    assert "at attempt 2" in said
    assert "was lost with its worker (killed, out of memory, or cut off from Redis)" in said
    assert "1 attempt lost in the last 15 minutes" in call(stack.redis_url, "doctor").stdout

    stack.start([stack.pid(0), stack.pid(1)].index(pid))
    stack.wait_ready()


def test_the_provider_was_slow(stack: Stack) -> None:
    """The time until the first words is named, with the model."""
    inject(stack, "stall;at=before-headers,seconds=1.5", "slow")
    assert end(stack, submit(stack, "slow")) == "TurnCompleted"

    said = first_lines(call(stack.redis_url, "explain", "slow"))
    assert "The model grok-4.3 took 1.5 s until its first words." in said


def test_the_provider_failed(stack: Stack) -> None:
    """The attempt that failed is told of, with the next one."""
    inject(stack, "unavailable", "down")
    assert end(stack, submit(stack, "down")) == "TurnCompleted"

    said = first_lines(call(stack.redis_url, "explain", "down"))
    assert "failed: the provider failed (server_error); the next one began" in said


def test_a_tool_failed(stack: Stack) -> None:
    """Its name and the kind of error are named by both."""
    inject(stack, "tools", "tool")
    assert end(stack, submit(stack, "tool")) == "TurnCompleted"

    said = first_lines(call(stack.redis_url, "explain", "tool"))
    assert "The tool weather failed" in said
    assert "The tool weather failed in " in call(stack.redis_url, "doctor").stdout


def test_the_key_was_wrong(stack: Stack) -> None:
    """Both say that the provider refuses it, and where it comes from."""
    inject(stack, "status=401", "key")
    assert end(stack, submit(stack, "key")) == "TurnFailed"

    said = first_lines(call(stack.redis_url, "explain", "key"), 2)
    assert "failed after" in said
    assert "the provider refuses the key (auth)" in said
    assert "XAI_API_KEY" in said

    examined = call(stack.redis_url, "doctor")
    assert examined.exit_code == 1
    assert "the provider refuses the key (auth)" in first_lines(examined)


def test_a_tenant_floods(stack: Stack) -> None:
    """`doctor` names the tenant; a turn that waits says for how long and what for."""
    names = [f"flood-{number}" for number in range(4)]
    for name in names:
        inject(stack, "stall;at=before-headers,seconds=2", name)
    receipts = [submit(stack, name, tenant="acme") for name in names]
    busy_worker(stack)

    def is_named() -> bool:
        return "The tenant acme floods" in call(stack.redis_url, "doctor").stdout

    wait_until_sync(is_named, "doctor names the tenant", 10)
    running = call(stack.redis_url, "explain", names[-1]).stdout
    assert "No worker has begun it for" in running
    assert "its tenant ran as many turns as it may" in running
    for receipt in receipts:
        assert end(stack, receipt) == "TurnCompleted"
    said = first_lines(call(stack.redis_url, "explain", names[-1]))
    assert "It waited" in said


def test_redis_failed_over_and_no_worker_lives() -> None:
    """A replica took over, and nobody is left to work: the worst comes first."""
    with EmbeddedRedis(port=0) as before, EmbeddedRedis(port=0) as after:
        at = urlsplit(before.url)
        successor = open_sync(after.url)
        successor.execute_command("REPLICAOF", at.hostname, at.port)

        def follows() -> bool:
            return successor.execute_command("INFO", "replication")["master_link_status"] == "up"

        wait_until_sync(follows, "the replica follows", 20)
        successor.execute_command("REPLICAOF", "NO", "ONE")
        with SyncTurnClient.connect(after.url) as client:
            client.submit(UserMessage(conversation_id="c", text="Hi"))
        examined = call(after.url, "doctor")
        found = json.loads(call(after.url, "doctor", "--json").stdout)["findings"]
        successor.close()

    assert examined.exit_code == 1
    said = first_lines(examined)
    assert "error: No worker is alive, with 1 conversation waiting" in said
    assert "was a replica and took over (a failover)" in said
    assert [it["severity"] for it in found[:2]] == ["error", "warning"]


def test_every_code_is_explained() -> None:
    """Each code that docs/failures.md lists has words for whoever is on call."""
    from turnline.ops.traces.causes import CAUSES  # noqa: PLC0415  for this only

    page = (Path(__file__).parents[3] / "docs" / "failures.md").read_text()
    table = page.partition("| class |")[2].partition("\n\n")[0]
    rows = [row.split("|")[3] for row in table.splitlines()[2:]]
    codes = {word.strip("` ") for row in rows for word in row.replace(";", ",").split(",")} - {""}

    assert len(codes) > 40
    assert codes - CAUSES.keys() == set()
