"""The commands end to end: real processes behind them, output as scripts and people read it."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner, Result

from tests.support.recordings import REPOSITORY
from tests.support.wait import wait_until_sync
from turnline.contracts import SyncTurnClient, UserMessage
from turnline.contracts.keys import shard_keys
from turnline.contracts.opening import open_sync
from turnline.contracts.protocol import Requests
from turnline.ops.cli.app import turnline
from turnline.ops.fleet.stack import Stack

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """One worker and a simulator."""
    with Stack(workers=1) as it:
        yield it


@pytest.fixture
def run(stack: Stack) -> Run:
    """Call `turnline` with these words, pointed at the stack."""

    def call(*words: str, input_: str | None = None) -> Result:
        environ = {"TURNLINE_REDIS_URL": stack.redis_url, "COLUMNS": "160"}
        return CliRunner().invoke(turnline, words, input=input_, env=environ)

    return call


def fault(stack: Stack, scenario: str) -> None:
    """Let the simulator's next answer be this one."""
    from http.client import HTTPConnection  # noqa: PLC0415 - for this only

    at = urlsplit(stack.base_url)
    connection = HTTPConnection(at.hostname, at.port, timeout=5)
    connection.request("POST", "/sim/faults", json.dumps({"scenario": scenario, "times": 1}))
    assert connection.getresponse().status == 200
    connection.close()


def out(result: Result) -> Any:
    """The JSON that a command printed."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_message_is_sent_shown_counted_and_forgotten(run: Run) -> None:
    """The way of a turn through the commands, by JSON."""
    ending = out(run("send", "way", "Hello", "--turn-id", "w1", "--wait", "--json"))
    assert ending["type"] == "turn_completed"
    assert out(run("send", "way", "Hello", "--turn-id", "w1", "--json"))["status"] == "duplicate"

    shown = out(run("show", "way", "--json"))
    assert [message["role"] for message in shown["messages"]] == ["user", "assistant"]
    assert shown["messages"][1]["content"] == ending["text"]
    assert [(turn["turn_id"], turn["worker"]) for turn in shown["turns"]] == [("w1", "worker-1")]

    assert out(run("send", "way", "Later", "--in-s", "3600", "--json"))["status"] == "accepted"
    assert "delayed until" in run("show", "way").stdout
    assert out(run("queue", "--json"))["deferred"] == 1

    totals = out(run("usage", "way", "--json"))
    assert totals["usage"]["total_tokens"] == ending["usage"]["total_tokens"]

    (spent,) = [
        json.loads(it) for it in run("spend", "--by", "tenant", "--json").stdout.splitlines()
    ]
    assert spent["tenant"] == ""
    assert spent["usage"]["cost_usd_ticks"] >= totals["usage"]["cost_usd_ticks"] > 0

    assert run("forget", "way", input_="n\n").exit_code == 1
    assert run("show", "way").exit_code == 0
    assert run("forget", "way", "--yes").exit_code == 0
    gone = run("show", "way")
    assert (gone.exit_code, gone.stdout) == (1, "")
    assert "nothing is known of conversation way" in gone.stderr


def test_text_comes_from_stdin_and_the_reply_streams(run: Run) -> None:
    """What is printed is the reply, and nothing else, on stdout."""
    result = run("send", "piped", "--stream", input_="Hello from a pipe\n")

    assert result.exit_code == 0
    assert result.stdout.startswith("You said “Hello from a pipe”.")
    events = run("send", "piped", "again", "--stream", "--json").stdout.splitlines()
    kinds = [json.loads(line)["type"] for line in events]
    assert (kinds[0], kinds[-1]) == ("turn_started", "turn_completed")


def test_people_see_tables(run: Run) -> None:
    """The same facts without --json."""
    run("send", "seen", "Hello", "--wait")

    shown = run("show", "seen").stdout
    assert "assistant" in shown
    assert "completed" in shown
    assert "reported by the provider" in run("usage", "seen").stdout
    assert "grok-4.3" in run("spend").stdout
    assert "Nothing was spent" in run("spend", "--tenant", "nobody").stdout
    assert "--by" in run("spend", "--by", "week").stderr
    assert "is not 1 to" in run("spend", "--since", "2026-03-01", "--until", "2026-02-01").stderr
    queue = run("queue").stdout
    assert "oldest waiting" in queue
    assert "worker-1" in queue


def test_the_queue_tells_its_workers(run: Run, stack: Stack) -> None:
    """By JSON, with their processes and slots."""
    state = out(run("queue", "--json"))

    assert [(it["name"], it["pid"]) for it in state["workers"]] == [("worker-1", stack.pid(0))]
    assert state["workers"][0]["slots"] == 100


def test_waiting_conversations_have_an_age(redis_url: str) -> None:
    """Where no worker is, what waits is counted and grows old."""
    with SyncTurnClient.connect(redis_url) as client:
        client.submit(UserMessage(conversation_id="c", text="Hello"))

    def look() -> dict[str, Any]:
        return out(CliRunner().invoke(turnline, ["queue", "--redis", redis_url, "--json"]))

    assert look()["waiting"] == 1
    wait_until_sync(lambda: look()["oldest_waiting_ms"] > 20, "it grows old")
    told = CliRunner().invoke(turnline, ["queue", "--redis", redis_url]).stdout
    assert "No worker is running" in told


def test_running_and_deferred_conversations_are_told_apart(redis_url: str) -> None:
    """A lease makes the difference between two entries that are not due."""
    shard = shard_keys(0)
    redis = open_sync(redis_url)
    later_ms = 32_503_680_000_000
    for name in ("leased", "deferred"):
        redis.execute_command("ZADD", shard.queue, later_ms, f"{shard.tag}:{name}")
    _, keys = Requests().names("leased")
    redis.execute_command("SET", keys.in_progress, "1 somebody")
    redis.close()

    state = out(CliRunner().invoke(turnline, ["queue", "--redis", redis_url, "--json"]))

    assert (state["waiting"], state["running"], state["deferred"]) == (0, 1, 1)


def test_a_dead_letter_is_listed_shown_and_replayed(run: Run, stack: Stack) -> None:
    """A turn that failed for good is answered the second time, and its letter is gone."""
    fault(stack, "bad-key")
    failed = run("send", "ill", "Please", "--turn-id", "i", "--wait")
    assert failed.exit_code == 1
    assert "failed: auth" in failed.stderr

    (letter,) = out(run("dead", "list", "--conversation", "ill", "--json"))
    assert (letter["turn_id"], letter["code"], letter["attempts"]) == ("i", "auth", 1)
    assert "auth" in run("dead", "list").stdout
    assert (
        json.loads(out(run("dead", "show", letter["id"], "--json"))["message"])["text"] == "Please"
    )
    assert out(run("dead", "list", "--code", "crashed", "--json")) == []

    replayed = run("dead", "replay", letter["id"])
    assert (replayed.exit_code, "submitted as turn i.r1" in replayed.stdout) == (0, True)
    assert out(run("dead", "list", "--conversation", "ill", "--json")) == []
    ending = out(run("send", "ill", "Please", "--turn-id", "i.r1", "--wait", "--json"))
    assert ending["type"] == "turn_completed"
    messages = out(run("show", "ill", "--json"))["messages"]
    assert [message["content"] for message in messages if message["role"] == "user"] == ["Please"]


def test_a_broken_letter_can_only_be_dropped(run: Run, stack: Stack) -> None:
    """Bytes that are no message stay until somebody drops them."""
    shard = shard_keys(0)
    redis = open_sync(stack.redis_url)
    redis.execute_command(
        *("XADD", shard.dead, "*", "c", "broken", "t", "t", "m", b"\xff{", "code", "x", "at", 1)
    )
    redis.close()
    (letter,) = out(run("dead", "list", "--conversation", "broken", "--json"))

    refused = run("dead", "replay", "--all", "--conversation", "broken")
    assert refused.exit_code == 1
    assert "can only be dropped" in refused.stderr
    assert run("dead", "drop", letter["id"], input_="n\n").exit_code == 1
    assert "dropped: 1" in run("dead", "drop", letter["id"], "--yes").stdout
    assert run("dead", "show", letter["id"]).exit_code == 1
    assert run("dead", "replay").exit_code == 2


def test_a_conversation_is_followed_from_its_start(run: Run, stack: Stack) -> None:
    """`tail` prints what was, and then what comes."""
    run("send", "told", "First", "--wait")
    command = [sys.executable, "-m", "turnline.ops.cli", "tail", "told", "--from-start"]
    with subprocess.Popen(
        [*command, "--redis", stack.redis_url],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    ) as tail:
        assert tail.stdout is not None
        lines = [tail.stdout.readline() for _ in range(3)]
        run("send", "told", "Second", "--wait")
        lines += [tail.stdout.readline() for _ in range(3)]
        tail.terminate()

    assert "begins on worker-1" in lines[0]
    assert lines[1].startswith("You said “First”.")
    assert "completed" in lines[2]
    assert lines[4].startswith("You said “Second”.")


def test_chat_talks_over_a_pipe(run: Run) -> None:
    """Lines in, replies out; what begins with a slash is for the chat."""
    lines = "Hello\n/usage\n/history\n/what\n/quit\nnot said\n"
    result = run("chat", "--conversation", "talk", "--system", "Be brief.", input_=lines)

    assert result.exit_code == 0
    assert "Grok  You said “Hello”." in result.stdout
    assert "reported by the provider" in result.stdout
    assert "Be brief." in result.stdout
    assert "There is no /what" in result.stdout
    assert "not said" not in result.stdout


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["send", "two words", "Hello"], "conversation_id: 1 to 200 printable characters"),
        (["send", "c", ""], "the message is empty"),
        (["queue", "--redis", "redis://127.0.0.1:9/0"], "no Redis answers at 127.0.0.1:9/0"),
        (["queue", "--redis", "redis://me:secret@127.0.0.1:9/0"], "answers at 127.0.0.1:9"),
        (["queue", "--redis", "localhost"], "is not the address of a Redis"),
    ],
)
def test_mistakes_end_with_two_and_a_line(run: Run, words: list[str], complaint: str) -> None:
    """No traceback, nothing on stdout, no password in what is said."""
    result = run(*words)

    assert (result.exit_code, result.stdout) == (2, "")
    assert complaint in result.stderr
    assert "secret" not in result.output


def test_models_are_listed_with_and_without_a_key(stack: Stack) -> None:
    """The provider's list, else the table; which of them it is stands beside them."""

    def models(*words: str, **environ: str) -> Result:
        given = {"TURNLINE_BASE_URL": stack.base_url, "XAI_API_KEY": "", "COLUMNS": "200"}
        return CliRunner().invoke(turnline, ["models", *words], env=given | environ)

    served = out(models("--json", XAI_API_KEY="xai-test"))
    table = out(models("--json"))
    by_name = {model["name"]: model for model in served["models"]}

    assert served["unchecked"] == ""
    assert {model["source"] for model in served["models"]} == {"provider"}
    assert "grok-build-0.1" not in by_name
    grok = by_name["grok-4.3"]
    assert grok["usd_per_million"] == {"input": 1.25, "cached_input": 0.2, "output": 2.5}
    assert (grok["context_tokens"], grok["default_effort"]) == (1_000_000, "low")
    assert "grok-4-latest" in grok["aliases"]

    assert table["unchecked"] == "XAI_API_KEY is not set"
    assert {model["source"][:14] for model in table["models"]} == {"built-in table"}
    (ended,) = [it for it in table["models"] if it["name"] == "grok-build-0.1"]
    assert (ended["retired_on"], ended["replaced_by"]) == ("2026-11-19", "grok-4.7")

    shown = models().stdout
    assert "2026-11-19, use grok-4.7" in shown
    assert "did not tell (XAI_API_KEY is not set)" in shown
    assert f"Served by {stack.base_url}" in models(XAI_API_KEY="xai-test").stdout
    assert models(TURNLINE_MODEL="a b").exit_code == 2
