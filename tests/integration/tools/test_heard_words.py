"""What the user heard decides what is kept, also of what was said before a tool call."""

import asyncio

import pytest

from tests.integration.tools.bench import Bench, calling, context
from tests.support.driving import ended, user
from turnline.contracts import TurnInterrupted
from turnline.worker.tools import tool


@tool
async def weather(city: str) -> str:
    """Tell the weather."""
    return f"clear in {city}"


@pytest.mark.parametrize(
    ("heard", "before", "after"),
    [("Let me look. one", "Let me look.", "one"), ("Let me", "Let me", None), ("", None, None)],
)
async def test_a_reply_around_a_call_is_cut_to_what_was_heard(
    bench: Bench, heard: str, before: str | None, after: str | None
) -> None:
    """Context and terminal event agree; the call and its result stay."""
    bench.sim.inject("text;value=one%20two%20three%20four|stall;at=tokens:4", nth=2)
    bench.sim.inject(calling("weather", {"city": "Rome"}, say="Let%20me%20look."))
    async with bench.hand(weather) as hand:
        receipt = await bench.client.submit(user("How is the weather?"))
        lease = await hand.must_claim()
        running = asyncio.create_task(hand.run_lease(lease))
        async with asyncio.timeout(10):
            async for text in bench.client.text(receipt):
                if "four" in text:
                    break
        await bench.client.interrupt("c", heard=heard)
        lease.notify()
        await running

    end = await ended(bench.client, receipt, TurnInterrupted)
    assert end.text == "\n\n".join(text for text in (before, after) if text)
    _, call, result, *rest = (await bench.client.history("c")).messages
    assert call.content.strip() == (before or "")
    assert await context(bench.client) == [
        ("user", "How is the weather?"),
        ("assistant", ("weather",)),
        ("tool", "clear in Rome"),
        *([("assistant", after)] if after else []),
    ]
    assert result.content == "clear in Rome"
    assert [message.content for message in rest] == ([after] if after else [])
