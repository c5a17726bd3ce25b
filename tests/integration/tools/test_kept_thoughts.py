"""The model keeps its thoughts: through rounds of tools, crashes, turns and changes of the wire."""

import asyncio
import json
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from tests.integration.tools.bench import Bench, calling
from tests.integration.tools.test_tool_crashes import Shop, die, rounds_done, script_serial
from tests.support.driving import Hand, ended, requests, user
from tests.support.processes import worker_process
from turnline.contracts import TurnClient, TurnCompleted, TurnInterrupted
from turnline.ops.simulator import Simulator

pytestmark = pytest.mark.promise("P13")
ROUNDS = 10
LONG_PROMPT = "You take one step at a time, and say what you found. " * 400
RESPONSES = {"TURNLINE_WIRE": "responses"}
TOOLS = '''
import os, pathlib, signal
from turnline.worker.tools import tool

HERE = pathlib.Path(__file__).parent

@tool(retry_safe=True)
async def step(number: int = 0) -> str:
    """Take a step. Every second one ends its worker, the first time."""
    taken = len(list(HERE.glob("step-*")))
    mark = HERE / f"died-{taken}"
    if taken % 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (HERE / f"step-{taken}").touch()
    return f"step {taken} is done"
'''


def assert_nothing_lost(sim: Simulator) -> list[Any]:
    """What the simulator says of every request: whether it held all that came before."""
    checks = [entry.continuity for entry in sim.ledger.entries() if entry.continuity is not None]
    assert checks
    for check in checks:
        assert check.prefix_kept, check
        assert check.reply_kept, check
        assert not check.lost_reasoning, check
        assert not check.punished, check
    return checks


async def test_ten_rounds_with_a_worker_killed_in_every_second_one(
    redis_url: str, sim: Simulator, client: TurnClient, tmp_path: Path
) -> None:
    """Processes die; there is reasoning in ten of ten, and the cache serves nearly all prompts."""
    (tmp_path / "dying_tools.py").write_text(TOOLS)
    await client.configure("c", system_prompt=LONG_PROMPT)
    for number in range(1, ROUNDS + 1):
        sim.inject(calling("step", {"number": number}, loop="1"), nth=number, times=1)
    receipt = await client.submit(user("take ten steps"))
    settings = {
        "tools": "dying_tools",
        "max_tool_rounds": "20",
        "max_crashes": "20",
        "lease_s": "0.6",
        "heartbeat_s": "0.15",
        "PYTHONPATH": str(tmp_path),
    }
    for _ in range(ROUNDS // 2):
        with worker_process(redis_url, sim.base_url, **settings) as worker:
            await asyncio.to_thread(worker.gone_within, 30)
        assert worker.process.returncode == -signal.SIGKILL
    with worker_process(redis_url, sim.base_url, **settings):
        result = await client.result(receipt, timeout_s=30)

    assert isinstance(result, TurnCompleted), result
    names = await asyncio.to_thread(lambda: [path.name for path in tmp_path.iterdir()])
    assert sum(name.startswith("died-") for name in names) == ROUNDS // 2
    assert sum(name.startswith("step-") for name in names) == ROUNDS
    asked = [entry for entry in sim.ledger.entries() if entry.path.endswith("/responses")]
    assert len(asked) == ROUNDS + 1
    assert all(entry.usage.completion_tokens_details.reasoning_tokens for entry in asked)
    checks = assert_nothing_lost(sim)
    assert all(check.cached_share >= 0.95 for check in checks[1:])
    totals = await client.usage("c")
    assert totals.usage.total_tokens == sum(entry.usage.total_tokens for entry in asked)


@pytest.mark.parametrize("dies_at", range(0, 30, 2))
async def test_a_crash_anywhere_loses_no_thought(bench: Bench, redis: Redis, dies_at: int) -> None:
    """Two rounds of tools, then the answer, then a turn more; one crash anywhere."""
    shop = Shop()
    async with bench.hand(*shop.tools, environ={"wire": "responses"}) as hand:
        receipt = await bench.client.submit(user("find and ship"))
        script_serial(bench.sim)
        await die(hand, dies_at)
        script_serial(bench.sim, rounds_done=await rounds_done(redis))
        await hand.run_due()
        bench.sim.rules.clear()
        await ended(bench.client, receipt, TurnCompleted)
        more = await bench.client.submit(user("and now?"))
        await hand.run_due()
        await ended(bench.client, more, TurnCompleted)

    assert_nothing_lost(bench.sim)
    last = requests(bench.sim)[-1]["input"]
    assert sum(item.get("type") == "reasoning" for item in last) == 3


async def test_a_conversation_changes_its_wire_at_any_turn(bench: Bench, redis: Redis) -> None:
    """Nothing is lost but what chat cannot carry, and that is there again on the other wire."""
    wires = ("chat", "responses", "chat", "responses", "responses")
    for number, wire in enumerate(wires):
        async with bench.hand(*Shop().tools, environ={"wire": wire}) as hand:
            if number == 1:
                bench.sim.inject(calling("find", {"number": 1}), times=1)
            receipt = await bench.client.submit(user(f"turn {number}"))
            await hand.run_due()
            await ended(bench.client, receipt, TurnCompleted)

    asked = requests(bench.sim)
    chat = [body for body in asked if "messages" in body]
    responses = [body for body in asked if "input" in body]
    assert len(chat) == 2
    assert "reply_items" not in json.dumps(chat)
    texts = [message["content"] for message in chat[-1]["messages"] if message["role"] == "user"]
    assert texts == ["turn 0", "turn 1", "turn 2"]
    thoughts = [
        [item["encrypted_content"] for item in body["input"] if item.get("type") == "reasoning"]
        for body in responses
    ]
    assert [len(found) for found in thoughts] == [0, 1, 2, 3]
    for earlier, later in pairwise(thoughts):
        assert later[: len(earlier)] == earlier


async def test_history_shows_no_sealed_thought(bench: Bench, redis: Redis) -> None:
    """What only the model can read is for the model alone."""
    async with bench.hand(environ={"wire": "responses"}) as hand:
        receipt = await bench.client.submit(user())
        await hand.run_due()
        await ended(bench.client, receipt, TurnCompleted)

    history = await bench.client.history("c")
    assert b"encrypted_content" not in msgspec.json.encode(history)
    (stored,) = await redis.lrange("turnline:{s0}:c:c:context", 1, -1)
    assert b"encrypted_content" in stored


async def test_refused_thoughts_are_left_out_once_and_for_good(
    bench: Bench, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A provider that cannot read them says 400: one call more, then never again."""
    async with bench.hand(environ={"wire": "responses"}) as hand:
        for number in range(2):
            if number:
                bench.sim.inject("decrypt", times=None)
            receipt = await bench.client.submit(user(f"turn {number}"))
            await hand.run_due()
            await ended(bench.client, receipt, TurnCompleted)
        bench.sim.rules.clear()
        more = await bench.client.submit(user("turn 2"))
        await hand.run_due()
        result = await ended(bench.client, more, TurnCompleted)

    statuses = [entry.status for entry in bench.sim.ledger.entries()]
    assert statuses == [200, 400, 200, 200]
    assert result.usage_state == "reported"
    kept = await redis.lrange("turnline:{s0}:c:c:context", 0, -1)
    assert [b"encrypted_content" in raw for raw in kept[1::2]] == [False, True, True]
    calls = [json.loads(raw) for raw in await redis.lrange("turnline:{s0}:c:c:calls", 0, -1)]
    assert [call.get("error") for call in calls] == [None, "reasoning_refused", None, None]
    assert "grok.reasoning_refused" in caplog.text


@pytest.mark.parametrize("refused", [1, 2])
@pytest.mark.parametrize("dies_at", range(0, 34, 2))
async def test_a_crash_anywhere_forgets_no_repair(
    bench: Bench, redis: Redis, refused: int, dies_at: int
) -> None:
    """Refused in the first or second round, thoughts of before stay out; those of behind stay."""
    async with bench.hand(*Shop().tools, environ={"wire": "responses"}) as hand:
        first = await bench.client.submit(user("hello"))
        await hand.run_due()
        await ended(bench.client, first, TurnCompleted)
        receipt = await bench.client.submit(user("find and ship"))
        script_refusal(bench.sim, refused)
        await die(hand, dies_at)
        done = await rounds_done(redis)
        if 400 in statuses(bench.sim):
            script_serial(bench.sim, rounds_done=done)
        else:
            script_refusal(bench.sim, refused, rounds_done=done)
        await hand.run_due()
        bench.sim.rules.clear()
        await ended(bench.client, receipt, TurnCompleted)
        more = await bench.client.submit(user("and now?"))
        await hand.run_due()
        await ended(bench.client, more, TurnCompleted)

    refusal = statuses(bench.sim).index(400)
    assert statuses(bench.sim).count(400) == 1
    asked = [body["input"] for body in requests(bench.sim)]
    for segment in (asked[: refusal + 1], asked[refusal + 1 :]):
        for earlier, later in pairwise(segment):
            assert later[: len(earlier)] == earlier
    calls = [json.loads(raw) for raw in await redis.lrange("turnline:{s0}:c:c:calls", 0, -1)]
    was_noted = any(call.get("error") == "reasoning_refused" for call in calls)
    refused_items, kept = (
        [item for item in items if item.get("type") == "reasoning"]
        for items in (asked[refusal], asked[-1])
    )
    assert (refused_items[0] not in kept) == was_noted
    assert [item for item in kept if item not in refused_items]


def script_refusal(sim: Simulator, refused: int, *, rounds_done: int = 0) -> None:
    """Let the model find, then ship, then answer, and refuse all thoughts in one round, once."""
    sim.rules.clear()
    at = refused - rounds_done
    sim.inject("decrypt", nth=at)
    for number, name in enumerate(("find", "ship")[rounds_done:], 1):
        sim.inject(calling(name, {"number": 1}, loop="1"), nth=number + (number >= at))


def statuses(sim: Simulator) -> list[int]:
    """What each request was answered with."""
    return [entry.status for entry in sim.ledger.entries()]


@pytest.mark.promise("P6")
@pytest.mark.parametrize("stopped", [False, True])
async def test_a_turn_without_its_thoughts_says_what_it_said(bench: Bench, stopped: bool) -> None:
    """The repair changes earlier messages: they are not said again, and keep their marks."""
    async with bench.hand(environ={"wire": "responses"}) as hand:
        cut = await cut_short(bench, hand, "turn 0")
        receipt = await bench.client.submit(user("turn 1"))
        await hand.run_due()
        await ended(bench.client, receipt, TurnCompleted)
        bench.sim.inject("decrypt", times=None)
        if stopped:
            end = await cut_short(bench, hand, "turn 2", calls=2)
        else:
            receipt = await bench.client.submit(user("turn 2"))
            await hand.run_due()
            end = await ended(bench.client, receipt, TurnCompleted)

    history = await bench.client.history("c")
    assert [entry.status for entry in bench.sim.ledger.entries()] == [200, 200, 400, 200]
    assert (end.text, cut.text) == (history.messages[-1].content, history.messages[1].content)
    assert history.interrupted == ((1, 5) if stopped else (1,))


async def cut_short(bench: Bench, hand: Hand, text: str, *, calls: int = 1) -> TurnInterrupted:
    """Run a turn that is interrupted while the model speaks, in its last call."""
    stalling = "text;value=one%20two%20three|reasoning;tokens=0|stall;at=tokens:3"
    bench.sim.inject(stalling, nth=calls)
    receipt = await bench.client.submit(user(text))
    lease = await hand.must_claim()
    running = asyncio.create_task(hand.run_lease(lease))
    async with asyncio.timeout(10):
        async for shown in bench.client.text(receipt):
            if "three" in shown:
                break
    await bench.client.interrupt("c", heard="one two")
    lease.notify()
    await running
    return await ended(bench.client, receipt, TurnInterrupted)
