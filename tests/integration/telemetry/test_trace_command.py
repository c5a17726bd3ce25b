"""`turnline trace` on what real workers kept."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from redis.asyncio import Redis

from tests.support.driving import fleet
from tests.support.wait import wait_until
from turnline.contracts import TurnClient, UserMessage
from turnline.ops.cli.trace import trace
from turnline.ops.simulator import Simulator
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry import recording

TRACES = "turnline:{s0}:traces"


async def invoke(redis_url: str, *args: str) -> Result:
    """Run the command beside the event loop, which serves Redis' clients of this test."""
    return await asyncio.to_thread(
        CliRunner(env={"COLUMNS": "150"}).invoke, trace, [*args, "--redis", redis_url]
    )


async def shown(redis_url: str, *args: str) -> list[dict[str, Any]]:
    result = await invoke(redis_url, *args, "--json")
    assert result.exit_code == 0, result.output
    return msgspec.json.decode(result.stdout)["turns"]


@pytest.fixture
async def told(redis_url: str, redis: Redis, sim: Simulator, client: TurnClient) -> list[Any]:
    """Four turns of three conversations: plain ones, one retried, one refused."""
    async with fleet(redis_url, sim):
        receipts = [await client.submit(UserMessage(conversation_id="a", text="One"))]
        await client.result(receipts[0], timeout_s=10)
        receipts.append(await client.submit(UserMessage(conversation_id="a", text="Two")))
        await client.result(receipts[1], timeout_s=10)
        sim.inject("status=503")
        receipts.append(await client.submit(UserMessage(conversation_id="b", text="Three")))
        await client.result(receipts[2], timeout_s=20)
        sim.inject("status=400")
        receipts.append(await client.submit(UserMessage(conversation_id="d", text="Four")))
        await client.result(receipts[3], timeout_s=10)

        async def written() -> bool:
            return await redis.xlen(TRACES) >= 5

        await wait_until(written, "all traces are written")
    return receipts


async def test_a_turn_is_found_by_each_of_its_names(redis_url: str, told: list[Any]) -> None:
    """Turn id, trace id, and conversation, which shows all its turns, the oldest first."""
    for name in (told[0].turn_id, told[0].trace_id):
        (turn,) = await shown(redis_url, name)
        assert turn["turn_id"] == told[0].turn_id
        assert turn["trace_id"] == told[0].trace_id
        assert turn["state"] == "completed"
        assert turn["kept"] is True
        names = [span["name"] for span in turn["spans"]]
        assert sorted(names) == sorted(
            ["turn", "wait", "process turnline", "rebuild_context", "chat grok-4.3", "commit"]
        )
    assert [t["turn_id"] for t in await shown(redis_url, "a")] == [r.turn_id for r in told[:2]]


async def test_turns_are_chosen(redis_url: str, told: list[Any]) -> None:
    """The newest is the default; the slowest took longest; one failed."""
    assert [t["turn_id"] for t in await shown(redis_url)] == [told[3].turn_id]
    assert [t["turn_id"] for t in await shown(redis_url, "--last")] == [told[3].turn_id]
    (slow,) = await shown(redis_url, "--slow")
    turns = await shown(redis_url, "--last", "--limit", "9")
    assert slow["duration_ms"] == max(turn["duration_ms"] for turn in turns) > 0
    (failed,) = await shown(redis_url, "--failed", "--limit", "5")
    assert (failed["turn_id"], failed["code"]) == (told[3].turn_id, "bad_request")
    assert len(await shown(redis_url, "--last", "--limit", "9")) == 4


async def test_the_waterfall_tells_attempts_tokens_cost_and_errors(
    redis_url: str, told: list[Any]
) -> None:
    """One line for each span, below its parent, with what matters of it."""
    result = await invoke(redis_url, told[2].turn_id)

    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert told[2].turn_id in lines[0]
    for word in ("completed", "attempts 2", told[2].trace_id, "$0.0"):
        assert word in result.output
    first, second = (line for line in lines if line.startswith("  process turnline"))
    assert "attempt 1" in first
    wrapped = f"{first} {lines[lines.index(first) + 1]}"  # where the terminal is narrow
    assert "again after" in " ".join(wrapped.split())
    assert "attempt 2" in second
    chats = [line for line in lines if line.startswith("    chat grok-4.3")]
    assert "tokens unknown" in chats[0]
    assert "unknown for 1 call" in " ".join(result.output.split())
    assert "in" in chats[1]


async def test_the_page_is_one_file(redis_url: str, told: list[Any], tmp_path: Path) -> None:
    """All turns of a conversation, without a script or a request for anything else."""
    path = tmp_path / "a.html"

    result = await invoke(redis_url, "a", "--html", str(path))

    assert result.exit_code == 0, result.output
    html = path.read_text()
    assert told[0].turn_id in html
    assert told[1].turn_id in html
    for word in ("<script", "http://", "https://", "src=", "url("):
        assert word not in html


async def test_without_a_trace_record_and_ledger_tell(
    redis_url: str, redis: Redis, told: list[Any]
) -> None:
    """Where traces are not kept (any more), a conversation's turns can still be drawn."""
    await redis.delete(TRACES)

    (turn,) = await shown(redis_url, "b")

    assert turn["kept"] is False
    assert turn["state"] == "completed"
    assert turn["trace_id"] == told[2].trace_id
    assert [span["name"] for span in turn["spans"]] == ["turn", "chat grok-4.3", "chat grok-4.3"]
    result = await invoke(redis_url, "b")
    assert "No trace of this turn is kept" in result.output


async def test_forget_forgets_traces(
    redis_url: str, redis: Redis, client: TurnClient, told: list[Any]
) -> None:
    """Nothing of the conversation stays among the traces; the others do."""
    assert await client.forget("a")

    left = {fields[b"c"] for _, fields in await redis.xrange(TRACES)}
    assert left == {b"b", b"d"}
    result = await invoke(redis_url, "a")
    assert result.exit_code == 1
    assert "nothing is kept of a" in result.output


async def test_what_is_not_there_is_said(redis_url: str, redis: Redis) -> None:
    """In one line, with the exit code of something tried in vain; both choices are refused."""
    result = await invoke(redis_url)
    assert result.exit_code == 1
    assert "TURNLINE_TRACE_STORE" in result.output
    result = await invoke(redis_url, "x", "--slow")
    assert result.exit_code == 2


async def test_the_store_can_be_switched_off(
    redis_url: str, redis: Redis, sim: Simulator, client: TurnClient
) -> None:
    """TURNLINE_TRACE_STORE=0 keeps none."""
    async with fleet(redis_url, sim, trace_store="0"):
        receipt = await client.submit(UserMessage(conversation_id="a", text="One"))
        await client.result(receipt, timeout_s=10)

    assert await redis.exists(TRACES) == 0


async def test_the_store_is_bounded_and_expires(
    redis_url: str, redis: Redis, sim: Simulator, client: TurnClient
) -> None:
    """However many turns there were."""
    async with fleet(redis_url, sim, trace_store="1"):
        for number in range(150):
            await client.submit(UserMessage(conversation_id=f"c{number}", text="Hi", run=False))
        await wait_until(lambda: _is_idle(redis), "all is done")

    assert 1 <= await redis.xlen(TRACES) <= 110  # the server trims whole nodes of 100
    assert await redis.pttl(TRACES) > 0


async def _is_idle(redis: Redis) -> bool:
    return await redis.exists("turnline:{s0}:queue") == 0


async def test_a_turn_that_runs_can_be_seen(
    redis_url: str, sim: Simulator, client: TurnClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as it has come; afterwards as a whole, each span once."""
    monkeypatch.setattr(recording, "SHOWN_AFTER_S", 0.05)
    sim.inject("stall;at=tokens:5")

    async def names() -> list[str]:
        turns = await shown(redis_url, receipt.turn_id)
        return [span["name"] for turn in turns for span in turn["spans"]]

    async def is_seen() -> bool:
        return (await invoke(redis_url, receipt.turn_id)).exit_code == 0

    async with fleet(redis_url, sim):
        receipt = await client.submit(UserMessage(conversation_id="a", text="One"))
        await wait_until(is_seen, "it is seen", 10)
        (turn,) = await shown(redis_url, receipt.turn_id)
        assert turn["state"] == "running"
        assert "chat grok-4.3" in await names()
        await client.interrupt("a")
        await client.result(receipt, timeout_s=10)

        async def is_whole() -> bool:
            return n.TURN in await names()

        await wait_until(is_whole, "it is whole", 10)

    found = await names()
    assert len(found) == len(set(found)) == 6
