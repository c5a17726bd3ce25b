"""What is kept of spans for `turnline trace`."""

import asyncio
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from tests.integration.telemetry.watching import KeptSpans, WatchedHand, watched
from tests.integration.tools.bench import calling
from tests.support.driving import user
from tests.support.wait import wait_until
from turnline.contracts import TurnClient, TurnCompleted
from turnline.ops.simulator import Simulator
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry import recording
from turnline.worker.telemetry.spans import Attributes
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


async def test_the_redactor_sees_all_that_is_kept(
    redis_url: str, sim: Simulator, client: TurnClient, kept: KeptSpans
) -> None:
    """Also what a tool adds to its span, and what other libraries tell."""

    @tool
    async def fetch() -> str:
        """Fetch something."""
        trace.get_current_span().set_attribute("shop.secret", "wombat")
        with hand.provider.get_tracer("other").start_as_current_span("GET") as span:
            span.set_attribute("url.full", "http://wombat")
        return "done"

    def redact(_name: str, attributes: Attributes) -> Attributes:
        return {k: v for k, v in attributes.items() if "wombat" not in str(v)}

    async with watched(redis_url, sim, kept, redact=redact) as hand:
        hand.use_tools(fetch)
        sim.inject(calling("fetch"))
        await client.submit(user())
        await hand.run_one()

    assert kept.one("GET").attributes == {}
    assert "shop.secret" not in kept.one("execute_tool fetch").attributes
    assert n.TOOL_NAME in kept.one("execute_tool fetch").attributes


@pytest.mark.parametrize("given", [None, [], SystemExit])
async def test_a_redactor_that_misbehaves_lets_nothing_out(
    redis_url: str, sim: Simulator, client: TurnClient, kept: KeptSpans, given: Any
) -> None:
    """And the turn ends as ever."""

    def redact(_name: str, _attributes: Attributes) -> Attributes:
        if given is SystemExit:
            raise SystemExit
        return given  # type: ignore[no-any-return]

    async with watched(redis_url, sim, kept, redact=redact) as hand:
        receipt = await client.submit(user())
        await hand.run_one()

    assert isinstance(await client.result(receipt, timeout_s=5), TurnCompleted)
    assert [span.attributes for span in kept.spans] == [{}] * 6


async def test_a_processor_that_fails_takes_no_other_span_with_it(
    hand: WatchedHand, kept: KeptSpans
) -> None:
    """It is told of in the log."""

    class Failing(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            if span.name.startswith("chat"):
                raise ValueError

    hand.provider.add_span_processor(Failing())
    await hand.client.submit(user())
    await hand.run_one()

    assert len(kept.spans) == 6


async def test_what_a_tool_did_is_shown_while_it_runs(
    hand: WatchedHand, kept: KeptSpans, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is kept if the worker is killed then; in the end it is there once."""
    monkeypatch.setattr(recording, "SHOWN_AFTER_S", 0.05)
    is_seen = asyncio.Event()

    @tool
    async def fetch() -> str:
        """Fetch something, and think about it."""
        with hand.provider.get_tracer("other").start_as_current_span("GET"):
            pass
        await is_seen.wait()
        return "done"

    hand.use_tools(fetch)
    hand.sim.inject(calling("fetch"))
    await hand.client.submit(user())
    running = asyncio.create_task(hand.run_one())
    await wait_until(lambda: any(it.name == "GET" for it in kept.spans), "it is shown")
    is_seen.set()
    await running

    *_, whole = kept.turns
    assert [it.name for it in whole.spans].count("GET") == 1
    assert {it.span_id for it in kept.named("GET")} == {
        it.span_id for it in whole.spans if it.name == "GET"
    }
