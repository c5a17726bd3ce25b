"""Tools that the provider runs, and what a reply has beside its text, as readers see them."""

import pytest

from tests.support.driving import ended, requests, user
from tests.support.driving import hand as open_hand
from turnline.contracts import TurnClient, TurnCompleted, TurnFailed
from turnline.contracts.protocol import TextAssembler
from turnline.contracts.replies import (
    ReasoningSummaryDelta,
    ServerToolFinished,
    ServerToolStarted,
)
from turnline.ops.simulator import Simulator

RESPONSES = {"wire": "responses"}


async def completed(
    redis_url: str, sim: Simulator, client: TurnClient, text: str = "Search"
) -> TurnCompleted:
    """Run one turn over the Responses API."""
    async with open_hand(redis_url, sim, RESPONSES) as hand:
        receipt = await client.submit(user(text))
        await hand.run_due()
    return await ended(client, receipt, TurnCompleted)


@pytest.mark.promise("P7")
async def test_searches_are_shown_cited_and_paid(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """Each source names a part of the text; each call and its price stand in the totals."""
    await client.configure("c", server_tools=[{"type": "web_search"}])
    sim.inject("server-tool;tool=web_search,n=2")
    result = await completed(redis_url, sim, client)

    assert result.citations
    for citation in result.citations:
        assert citation.url in result.text[citation.start : citation.end]
    history = (await client.history("c")).messages[-1]
    assert getattr(history, "citations", ()) == result.citations
    (entry,) = [it for it in sim.ledger.entries() if it.path.endswith("responses")]
    totals = await client.usage("c")
    assert totals.usage.server_tool_calls == entry.server_tool_calls == 2
    assert totals.usage.cost_usd_ticks == entry.usage.cost_in_usd_ticks


async def test_readers_see_the_provider_at_work(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """Begin and end of each call, whether it worked, and the text as it is committed."""
    await client.configure("c", server_tools=[{"type": "web_search"}])
    sim.inject("server-tool;tool=web_search,n=2,fail=1")
    async with open_hand(redis_url, sim, RESPONSES) as hand:
        receipt = await client.submit(user("Search"))
        await hand.run_due()
    events = [event async for event in client.events(receipt)]

    begun = [event.call_id for event in events if isinstance(event, ServerToolStarted)]
    done = {event.call_id: event.ok for event in events if isinstance(event, ServerToolFinished)}
    assert len(begun) == 2
    assert list(done) == begun
    assert sorted(done.values()) == [False, True]
    assert not any(isinstance(event, ReasoningSummaryDelta) for event in events)
    shown = TextAssembler()
    for event in events[:-1]:
        shown.feed(event)
    assert isinstance(events[-1], TurnCompleted)
    assert shown.text == events[-1].text


async def test_what_a_model_tells_of_its_thoughts_is_for_who_asks(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """It is no part of the text, and nothing of it is committed."""
    await client.configure("c", reasoning_summary=True)
    async with open_hand(redis_url, sim, RESPONSES) as hand:
        receipt = await client.submit(user())
        await hand.run_due()
    events = [event async for event in client.events(receipt)]

    thoughts = "".join(e.text for e in events if isinstance(e, ReasoningSummaryDelta))
    assert "thinking" in thoughts
    assert isinstance(events[-1], TurnCompleted)
    assert "thinking" not in events[-1].text
    assert requests(sim)[-1]["reasoning"]["summary"]


async def test_a_host_without_the_responses_api_is_named_as_such(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """The error says what to set."""
    sim.inject("status=404", times=None)
    async with open_hand(redis_url, sim, RESPONSES) as hand:
        receipt = await client.submit(user())
        await hand.run_due()
    failed = await ended(client, receipt, TurnFailed, "not_found")
    assert "TURNLINE_WIRE=chat" in failed.message
