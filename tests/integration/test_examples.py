"""The programs of docs/examples run as they stand there, with a real Redis, worker and model."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest

from tests.support.recordings import REPOSITORY
from tests.support.wait import wait_until_sync
from turnline.contracts import SyncTurnClient, TurnCompleted, UserMessage
from turnline.ops.fleet.stack import Stack

EXAMPLES = REPOSITORY / "docs" / "examples"


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """One worker with the examples' tools and agents."""
    settings = {
        "PYTHONPATH": str(EXAMPLES),
        "TURNLINE_TOOLS": "order_tools",
        "TURNLINE_TOOL_SCHEMAS": str(EXAMPLES / "refund.json"),
        "TURNLINE_AGENTS": str(EXAMPLES / "agents.toml"),
    }
    with Stack(workers=1, worker_env=settings) as started:
        yield started


def environment(stack: Stack) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "TURNLINE_REDIS_URL": stack.redis_url}


def run(stack: Stack, name: str, *arguments: str) -> list[str]:
    """Run a program to its end; return the lines that it printed."""
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        env=environment(stack),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout.splitlines()


@contextlib.contextmanager
def program(stack: Stack, name: str, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for the time of the block."""
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / name)],
        env={**environment(stack), **more},
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(15)


def inject(stack: Stack, scenario: str, conversation: str) -> None:
    """Let the model do something else than answer, once."""
    rule = {"scenario": scenario, "conversation": conversation}
    url = stack.base_url.removesuffix("/v1") + "/sim/faults"
    request = urllib.request.Request(url, json.dumps(rule).encode(), method="POST")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        assert answer.status == 200


def calls(name: str, **arguments: object) -> str:
    return f"tool;name={name},arguments={quote(json.dumps(arguments))}"


def test_a_producer(stack: Stack) -> None:
    """The reply grows to its end, and the same message again is no second turn."""
    *texts, tokens, again = run(stack, "producer.py")

    assert texts
    assert all(later.startswith(text) for text, later in itertools.pairwise(texts))
    assert re.fullmatch(r"tokens: [1-9]\d*", tokens)
    assert again == "accepted again: False"


def test_a_blocking_producer(stack: Stack) -> None:
    """Each of the three has its answer."""
    lines = run(stack, "blocking_producer.py")

    assert lines == [f"{name} TurnCompleted" for name in ("berta", "carl", "dora")]


def test_barging_in(stack: Stack) -> None:
    """What was heard is kept, and no more."""
    inject(stack, "pace;itl_ms=100", "emil")

    (line,) = run(stack, "barge_in.py")

    kept = line.removeprefix("kept: ").split()
    assert line.startswith("kept: ")
    assert len(kept) >= 3
    with SyncTurnClient.connect(stack.redis_url) as client:
        assert [m.content for m in client.history("emil").messages][-1].split() == kept


def test_a_tool_of_the_worker(stack: Stack) -> None:
    """The model calls it, and answers with its result."""
    inject(stack, calls("order_status", number=7), "frida")

    lines = run(stack, "ask_about_an_order.py")

    started = lines.index("calls order_status")
    assert lines.index("has the result of order_status") > started
    assert lines[-1] == "TurnCompleted"


def test_a_tool_that_runs_elsewhere(stack: Stack) -> None:
    """Two turns wait for the desk, which grants the small one."""
    with SyncTurnClient.connect(stack.redis_url) as client:
        receipts = []
        for number in (7, 700):
            inject(stack, calls("refund", number=number), f"refund-{number}")
            message = UserMessage(conversation_id=f"refund-{number}", text="My money, please!")
            receipts.append(client.submit(message))
        with program(stack, "refund_desk.py"):
            results = [client.result(receipt, timeout_s=30) for receipt in receipts]

        told = [client.history(receipt.conversation_id).messages[2].content for receipt in receipts]
    assert [type(result) for result in results] == [TurnCompleted, TurnCompleted]
    assert json.loads(told[0]) == {"refunded": True}
    assert "The manager said no." in told[1]


def test_two_agents(stack: Stack) -> None:
    """The conversation's own, and the one that a message names."""
    assert run(stack, "two_agents.py") == ["support TurnCompleted", "poet TurnCompleted"]


def test_a_reply_stream(stack: Stack) -> None:
    """The ends of three conversations come to one consumer."""
    lines = run(stack, "reply_stream.py")

    assert sorted(lines) == [f"{name} TurnCompleted" for name in ("hanna", "igor", "judith")]


def test_a_structured_reply(stack: Stack) -> None:
    """The value has the type that was asked for."""
    (line,) = run(stack, "structured_reply.py")

    assert re.fullmatch(r"Order\(number=-?\d+, items=\[.*\]\)", line)


def test_a_web_service(stack: Stack) -> None:
    """The reply streams; a repeated request is the same turn; a bad one is refused by name."""

    async def ask(url: str) -> tuple[list[bytes], list[bytes], int]:
        async with aiohttp.ClientSession() as session:
            answers = []
            for _ in range(2):
                key = {"Idempotency-Key": "lotte-1"}
                async with session.post(url, json={"text": "Hello!"}, headers=key) as answer:
                    answers.append((await answer.read()).split(b"\n\n"))
            async with session.post(url, json={"words": "Hello!"}) as refused:
                return answers[0], answers[1], refused.status

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def listens() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    with program(stack, "web_service.py", PORT=str(port)):
        wait_until_sync(listens, "the service listens")
        url = f"http://127.0.0.1:{port}/conversations/lotte/messages"
        first, second, refused = asyncio.run(ask(url))
    with SyncTurnClient.connect(stack.redis_url) as client:
        assert len(client.history("lotte").messages) == 2

    end = b'data: {"end": "TurnCompleted", "turn_id": "lotte-1"}'
    assert (first[-2], second[-2], refused) == (end, end, 400)
    assert b'"text"' in first[0]


def test_a_web_service_without_redis_says_when_to_come_again(stack: Stack) -> None:
    """503 with Retry-After, in seconds rather than minutes."""

    async def ask(url: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.post(url, json={"text": "Hi"}) as it:
            return it.status, it.headers.get("Retry-After", "")

    with socket.socket() as nobody, socket.socket() as probe:
        nobody.bind(("127.0.0.1", 0))  # and listens to nobody
        probe.bind(("127.0.0.1", 0))
        port, away = probe.getsockname()[1], f"redis://127.0.0.1:{nobody.getsockname()[1]}"
        probe.close()

        def listens() -> bool:
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", port)) == 0

        with program(stack, "web_service.py", PORT=str(port), TURNLINE_REDIS_URL=away):
            wait_until_sync(listens, "the service listens")
            answer = asyncio.run(ask(f"http://127.0.0.1:{port}/conversations/lotte/messages"))

    assert answer == (503, "2")


def test_every_example_is_listed_and_run() -> None:
    """A file that is added without a test, or without a line in the list, is noticed here."""
    listed = (EXAMPLES / "README.md").read_text()
    tested = Path(__file__).read_text()
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix in {".py", ".json", ".toml"}}

    assert {name for name in names if f"[{name}]({name})" not in listed} == set()
    assert {name for name in names if name.removesuffix(".py") not in tested} == set()
