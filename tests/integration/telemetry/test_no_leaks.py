"""Nothing that people or models say leaves in spans, metrics or logs, unless it is asked for."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from tests.integration.telemetry.watching import KeptSpans, WatchedHand, watched
from tests.support.driving import fleet
from turnline.contracts import Configure, ContextAppend, TurnClient, UserMessage
from turnline.contracts.conversation import SettingsChange, UserEntry
from turnline.ops.simulator import Simulator
from turnline.worker.logs import JsonFormatter, WithIds
from turnline.worker.telemetry import names as n
from turnline.worker.tools import tool

MARKER = "wombat-7c1f"
ASKED = f"My secret is {MARKER}-asked"
PROMPT = f"Never tell of {MARKER}-prompt"
SAID = f"{MARKER}-said"


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Everything any logger says, at any level, as the worker writes it."""
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(WithIds())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    for name in ("turnline", "worker"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    yield lines
    root.removeHandler(handler)
    root.setLevel(level)
    for name in ("turnline", "worker"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@tool
async def look_up(word: str = "") -> dict[str, str]:
    """Look something up."""
    return {"found": f"{MARKER}-result{word}"}


async def talk(hand: WatchedHand, client: TurnClient, sim: Simulator) -> None:
    """A conversation in which everything carries the marker, also what fails."""
    hand.use_tools(look_up)
    change = SettingsChange(system_prompt=PROMPT)
    await client.submit(Configure(conversation_id="c", settings=change))
    await client.submit(
        ContextAppend(conversation_id="c", messages=(UserEntry(content=f"{MARKER}-noted"),))
    )
    await hand.run_one()
    asks = f"tool;name=look_up,arguments=%7B%22word%22%3A%22{MARKER}-argument%22%7D"
    for scenario in (f"text;value={SAID}", asks, "status=400", "status=503"):
        sim.inject(scenario)
        await client.submit(
            UserMessage(conversation_id="c", text=ASKED, metadata={"note": f"{MARKER}-label"})
        )
        await hand.run_one()
    await hand.make_due("c")
    await hand.run_one()


@pytest.mark.promise("P10")
async def test_spans_metrics_and_logs_hold_no_content(
    hand: WatchedHand, client: TurnClient, kept: KeptSpans, sim: Simulator, logged: io.StringIO
) -> None:
    """With capture off: no question, answer, prompt, argument, result or label, anywhere."""
    await talk(hand, client, sim)

    told = msgspec.json.encode(kept.turns).decode()
    assert "look_up" in told
    assert len(kept.named("turn")) >= 6
    assert MARKER not in told
    assert MARKER not in str(hand.metrics.get_metrics_data())
    assert "attempt_ended" in logged.getvalue()
    assert MARKER not in logged.getvalue()
    assert "xai-test" not in told + logged.getvalue()
    assert not any(n.CONTENT & span.attributes.keys() for span in kept.spans)


async def test_content_is_captured_where_it_is_asked_for(
    redis_url: str, client: TurnClient, kept: KeptSpans, sim: Simulator, logged: io.StringIO
) -> None:
    """In the conventions' attributes, on the spans they belong to; never in logs."""
    async with watched(redis_url, sim, kept, capture=True) as hand:
        await talk(hand, client, sim)

    chat = kept.named("chat grok-4.3")[0].attributes
    asked = json.loads(chat[n.INPUT_MESSAGES])
    assert asked[-1] == {"role": "user", "parts": [{"type": "text", "content": ASKED}]}
    (answer,) = json.loads(chat[n.OUTPUT_MESSAGES])
    assert answer["parts"][0]["content"] == SAID
    assert answer["finish_reason"] == "stop"
    asking, after = (it.attributes for it in kept.named("chat grok-4.3")[1:3])
    (called,) = json.loads(asking[n.OUTPUT_MESSAGES])[0]["parts"]
    assert (called["type"], called["name"]) == ("tool_call", "look_up")
    assert MARKER in json.loads(after[n.INPUT_MESSAGES])[-1]["parts"][0]["response"]
    assert json.loads(chat[n.SYSTEM_INSTRUCTIONS]) == [{"type": "text", "content": PROMPT}]
    tool = kept.named("execute_tool look_up")[0].attributes
    assert json.loads(tool[n.TOOL_RESULT])["found"].startswith(f"{MARKER}-result")
    turns = [span.attributes for span in kept.named("turn") if n.OUTPUT_VALUE in span.attributes]
    answered = next(turn for turn in turns if turn[n.OUTPUT_VALUE] == SAID)
    assert answered[n.INPUT_VALUE] == ASKED
    assert MARKER not in logged.getvalue()


async def test_the_redactor_sees_everything_before_it_leaves(
    redis_url: str, client: TurnClient, kept: KeptSpans, sim: Simulator
) -> None:
    """What it takes out does not reach any sink."""

    def redact(name: str, attributes: dict[str, Any]) -> dict[str, Any]:
        words = {key: str(value) for key, value in attributes.items()}
        return {key: v for key, v in attributes.items() if MARKER not in words[key]}

    async with watched(redis_url, sim, kept, capture=True, redact=redact) as hand:
        await talk(hand, client, sim)

    told = msgspec.json.encode(kept.turns).decode()
    assert n.USAGE_INPUT_TOKENS in told
    assert MARKER not in told


@pytest.mark.promise("P10")
async def test_a_redactor_that_fails_lets_nothing_out(
    redis_url: str, client: TurnClient, kept: KeptSpans, sim: Simulator, logged: io.StringIO
) -> None:
    """The spans stay, without attributes; the turn goes on; its error's text is not logged."""

    def redact(name: str, attributes: dict[str, Any]) -> dict[str, Any]:
        raise ValueError(str(attributes))

    async with watched(redis_url, sim, kept, capture=True, redact=redact) as hand:
        receipt = await client.submit(UserMessage(conversation_id="c", text=ASKED))
        await hand.run_one()

    assert (await client.result(receipt, timeout_s=5)).attempt == 1
    assert {span.name for span in kept.spans if span.attributes} == set()
    assert len(kept.spans) == 6
    assert "ValueError" in logged.getvalue()
    assert MARKER not in logged.getvalue()


@pytest.mark.parametrize("sent", [False, True])
async def test_the_provider_gets_no_trace_context_unless_asked_for(
    redis_url: str, client: TurnClient, sim: Simulator, redis: Redis, sent: bool
) -> None:
    """TURNLINE_SEND_TRACEPARENT: off by default; on, it names the span of the very call."""
    more = {"send_traceparent": "true"} if sent else {}
    async with fleet(redis_url, sim, **more):
        receipt = await client.submit(UserMessage(conversation_id="c", text="Hello"))
        await client.result(receipt, timeout_s=10)

    (call,) = [entry for entry in sim.ledger.entries() if entry.path.endswith("completions")]
    assert "tracestate" not in call.headers
    assert "baggage" not in call.headers
    if not sent:
        assert "traceparent" not in call.headers
        return
    ((_, fields),) = await redis.xrange("turnline:{s0}:traces")
    spans = msgspec.json.decode(fields[b"j"])["spans"]
    (chat,) = [span for span in spans if span["name"].startswith("chat")]
    expected = f"00-{receipt.trace_id}-{chat['span_id']}-01"
    assert call.headers["traceparent"] == expected
    assert call.headers["x-grok-conv-id"] == "c"
