"""What is kept of spans for `turnline trace`."""

import asyncio

from tests.integration.telemetry.watching import KeptSpans, WatchedHand
from tests.integration.tools.bench import calling
from tests.support.driving import user
from turnline.worker.telemetry import names as n
from turnline.worker.tools import tool


async def test_two_turns_of_one_trace_at_once(hand: WatchedHand, kept: KeptSpans) -> None:
    """Each has its own spans, and what other libraries did below; the first takes no other's."""
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    other_library = hand.provider.get_tracer("other")

    @tool
    async def fetch() -> str:
        """Fetch something."""
        with other_library.start_as_current_span("GET"):
            return "done"

    hand.use_tools(fetch)
    leases = []
    hand.sim.inject(calling("fetch"), times=2)
    for conversation in ("c", "d"):
        await hand.client.submit(user(conversation=conversation, traceparent=parent))
        leases.append(await hand.must_claim())
    driver = hand.driver()
    await asyncio.gather(*(driver.run(lease) for lease in leases))

    assert [len(turn.spans) for turn in kept.turns] == [9, 9]
    for turn in kept.turns:
        ids = {it.attributes.get(n.TURN_ID) for it in turn.spans if it.name != "GET"}
        assert ids == {turn.turn_id}
        (call,) = (it for it in turn.spans if it.name == "execute_tool fetch")
        assert [it.parent_id for it in turn.spans if it.name == "GET"] == [call.span_id]
    assert hand.ended._traces == {}
