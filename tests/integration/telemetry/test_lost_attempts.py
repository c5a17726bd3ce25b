"""What a killed worker did is told by the one that goes on: its calls, its tools, its tokens."""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.integration.telemetry.test_trace_command import shown
from tests.integration.telemetry.watching import KeptSpans, WatchedHand, assert_whole
from tests.integration.tools.bench import calling
from tests.integration.worker.test_crash_boundaries import Killed, MortalStore
from tests.support.wait import wait_until
from turnline.contracts import TurnClient, TurnCompleted, UserMessage
from turnline.contracts.replies import Receipt
from turnline.ops.fleet.stack import Stack
from turnline.ops.simulator import Simulator
from turnline.worker.telemetry import names as n
from turnline.worker.tools import tool

TOOLS = '''
import asyncio, os, pathlib
from turnline.worker.tools import tool

SIGN = pathlib.Path(os.environ["SIGN"])

@tool(retry_safe=True)
async def slow() -> str:
    """Take long, the first time."""
    if not SIGN.exists():
        SIGN.touch()
        await asyncio.sleep(120)
    return "done"

@tool(retry_safe=True)
async def quick() -> str:
    """Take no time."""
    return "done"
'''


@contextlib.asynccontextmanager
async def real_worker(redis_url: str, sim: Simulator, folder: Path) -> AsyncIterator[Stack]:
    """A worker process with tools, of which one waits for ever when it is first called."""
    (folder / "drill_tools.py").write_text(TOOLS)
    environ = {**os.environ, "XAI_API_KEY": "xai-simulated"}
    worker_env = {
        "TURNLINE_BASE_URL": sim.base_url,
        "TURNLINE_TOOLS": "drill_tools",
        "PYTHONPATH": str(folder),
        "SIGN": str(folder / "begun"),
        "NO_PROXY": "127.0.0.1",
        "TURNLINE_LEASE_S": "1",
        "TURNLINE_HEARTBEAT_S": "0.2",
    }
    stack = Stack(1, live=True, redis_url=redis_url, environ=environ, worker_env=worker_env)
    await asyncio.to_thread(stack.__enter__)  # the model answers from this event loop
    try:
        yield stack
    finally:
        await asyncio.to_thread(stack.__exit__, None, None, None)


def below(spans: list[dict[str, Any]], above: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [
        s
        for s in spans
        if s.get("parent_id", "") == above["span_id"] and s["name"].startswith(name)
    ]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("scenarios", "requests", "lost_calls", "lost_tools"),
    [
        (["stall;at=before-headers,seconds=60"], 1, ["unknown"], {}),
        (["stall;at=tokens:3,seconds=60"], 1, ["unknown"], {}),
        ([calling("slow")], 1, ["reported"], {"slow": "unknown"}),
        (["tools"], 1, ["reported"], {"slow": "unknown", "quick": "finished"}),
        (
            [calling("quick"), "stall;at=tokens:2,seconds=60"],
            2,
            ["reported", "unknown"],
            {"quick": "finished"},
        ),
    ],
    ids=["before the reply", "in the reply", "in a tool", "in a batch", "in the second round"],
)
async def test_a_killed_worker_is_told_of_whole(
    redis_url: str,
    redis: Redis,
    client: TurnClient,
    sim: Simulator,
    tmp_path: Path,
    scenarios: list[str],
    requests: int,
    lost_calls: list[str],
    lost_tools: dict[str, str],
) -> None:
    """SIGKILL at some place: two attempts, each with its calls and tools, as many as counted."""
    for nth, scenario in enumerate(scenarios, 1):
        sim.inject(scenario, nth=nth)
    async with real_worker(redis_url, sim, tmp_path) as stack:
        receipt = await client.submit(UserMessage(conversation_id="c", text="Hello"))
        if "slow" in lost_tools:
            await wait_until((tmp_path / "begun").exists, "the tool runs", timeout_s=20)
        await wait_until(
            lambda: (
                sum(e.path.endswith("responses") for e in sim.ledger.entries()) >= requests
                and sim.ledger.entries()[-1].tokens_streamed >= 2 * ("tokens" in scenarios[-1])
            ),
            "the model is called",
            timeout_s=20,
        )
        if "quick" in lost_tools:
            await wait_until(lambda: finished(redis), "the quick tool's result is safe")
        stack.kill(0)
        await asyncio.to_thread(stack.start, 0)
        result = await client.result(receipt, timeout_s=20)

        assert isinstance(result, TurnCompleted)
        assert result.attempt == 2

        async def told() -> bool:
            return bool(await redis.xlen("turnline:{s0}:traces"))

        await wait_until(told, "the trace is kept")
    (turn,) = await shown(redis_url, receipt.turn_id)
    await assert_told(turn["spans"], client, receipt, lost_calls, lost_tools)


async def finished(redis: Redis) -> bool:
    steps = await redis.lrange("turnline:{s0}:c:c:steps", 0, -1)
    return any(step[:1] == b"r" for step in steps)


async def assert_told(
    spans: list[dict[str, Any]],
    client: TurnClient,
    receipt: Receipt,
    lost_calls: list[str],
    lost_tools: dict[str, str],
) -> None:
    attempts = [span for span in spans if span["name"] == "process turnline"]
    lost, second = sorted(attempts, key=lambda span: span["attributes"][n.ATTEMPT])
    assert (lost.get("error", ""), second.get("error", "")) == ("worker_lost", "")
    assert lost["start_ns"] < lost["end_ns"] <= second["start_ns"]
    chats = below(spans, lost, "chat")
    assert [chat["attributes"][n.USAGE_STATE] for chat in chats] == lost_calls
    assert all(
        (chat.get("error", "") == "worker_lost") == ("unknown" in lost_calls[i : i + 1])
        for i, chat in enumerate(chats)
    )
    tools = below(spans, lost, "execute_tool")
    states = {it["attributes"][n.TOOL_NAME]: it["attributes"].get(n.TOOL_STATE) for it in tools}
    assert states == {k: None if v == "finished" else v for k, v in lost_tools.items()}
    assert all(
        (it.get("error", "") == "worker_lost")
        == (states[it["attributes"][n.TOOL_NAME]] is not None)
        for it in tools
    )
    for span in [*chats, *tools]:
        assert lost["start_ns"] <= span["start_ns"] <= span["end_ns"] <= lost["end_ns"]
    totals = await client.usage("c")
    every = [span for span in spans if span["name"].startswith("chat")]
    assert len(every) == totals.calls
    tokens = sum(chat["attributes"].get(n.USAGE_INPUT_TOKENS, 0) for chat in every)
    assert tokens == totals.usage.prompt_tokens
    assert receipt.trace_id == spans[0]["trace_id"]


async def die(hand: WatchedHand, dies_at: int) -> None:
    """Let a worker die at the n-th boundary; what it would still say is heard by nobody."""
    victim = WatchedHand(hand, KeptSpans())
    victim.planner = hand.planner
    lease = await hand.must_claim()
    with contextlib.suppress(Killed, asyncio.CancelledError):
        await victim.driver(MortalStore(hand.store, dies_at)).run(lease)
    await hand.expire(lease)


BOUNDARIES = 30


@pytest.mark.parametrize("dies_at", range(BOUNDARIES))
async def test_whatever_a_worker_did_before_it_died_is_told_once(
    hand: WatchedHand, client: TurnClient, kept: KeptSpans, sim: Simulator, dies_at: int
) -> None:
    """Dead before or after any effect of a turn of two rounds: as many calls as the ledger has."""
    executed = Counter[str]()

    @tool(retry_safe=True)
    async def find() -> str:
        """Find."""
        executed["find"] += 1
        return "found"

    hand.use_tools(find)
    sim.inject(calling("find"), times=None)
    receipt = await client.submit(UserMessage(conversation_id="c", text="Hello"))
    await die(hand, dies_at)
    if (await client.record(receipt)).state != "accepted":
        return  # it died behind the commit

    await hand.run_one()

    assert_whole(kept)
    assert isinstance(await client.result(receipt, timeout_s=5), TurnCompleted)
    totals = await client.usage("c")
    attempts = kept.named("process turnline")
    assert len(attempts) in {1, 2}
    assert len(kept.named("chat grok-4.3")) == totals.calls
    assert len({it.attributes[n.TOOL_CALL_ID] for it in kept.named("execute_tool find")}) == 1
    reported = [
        it for it in kept.named("chat grok-4.3") if it.attributes[n.USAGE_STATE] == "reported"
    ]
    assert sum(it.attributes[n.USAGE_INPUT_TOKENS] for it in reported) == totals.usage.prompt_tokens


async def test_attempts_that_others_told_of_are_not_told_again(
    hand: WatchedHand, client: TurnClient, kept: KeptSpans, sim: Simulator
) -> None:
    """A death, a failure that is tried again, an answer: each attempt once."""
    receipt = await client.submit(UserMessage(conversation_id="c", text="Hello"))
    await die(hand, 3)
    sim.inject("status=503")
    await hand.run_one()
    await hand.make_due("c")
    await hand.run_one()

    assert_whole(kept)
    attempts = [it.attributes[n.ATTEMPT] for it in kept.named("process turnline")]
    assert sorted(attempts) == [1, 2, 3]
    assert isinstance(await client.result(receipt, timeout_s=5), TurnCompleted)


async def test_a_message_that_is_given_up_unread_has_its_trace(
    hand: WatchedHand, redis: Redis, client: TurnClient, kept: KeptSpans
) -> None:
    """Where even failing it took workers down, the one that sets it aside tells what it knows."""
    receipt = await client.submit(UserMessage(conversation_id="c", text="Hello"))
    await die(hand, 3)
    await redis.hset("turnline:{s0}:c:c:state", "crashes", 9)

    await hand.run_one()

    assert_whole(kept)
    assert kept.one("turn").error == "crashed"
    assert kept.one("turn").trace_id == receipt.trace_id
    attempts = kept.named("process turnline")
    assert sorted(it.error for it in attempts) == ["crashed", "worker_lost"]
