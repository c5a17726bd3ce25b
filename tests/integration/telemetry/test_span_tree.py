"""The tree of spans that each kind of turn leaves: names, parents, links, status, attributes."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.integration.telemetry.watching import KeptSpans, WatchedHand, assert_whole, watched
from tests.support.driving import Hand, user
from turnline.contracts import (
    Configure,
    Transcription,
    TurnClient,
    TurnCompleted,
    TurnInterrupted,
    UserMessage,
    UserStartedSpeaking,
    UserStoppedSpeaking,
)
from turnline.contracts.conversation import (
    FunctionDefinition,
    SettingsChange,
    ToolDefinition,
    Totals,
)
from turnline.contracts.messages import encode
from turnline.ops.simulator import Simulator
from turnline.worker.errors import LeaseLost
from turnline.worker.telemetry import names as n
from turnline.worker.tools import tool
from turnline.worker.turn.plan import AgentsFile, Planner

PLAIN = (
    "turn",
    ("wait",),
    ("process turnline", ("rebuild_context",), ("chat grok-4.3",), ("commit",)),
)
IDS = {n.CONVERSATION_ID: "c"}


@pytest.fixture(autouse=True)
def _all_is_whole(kept: KeptSpans) -> Iterator[None]:
    """Whatever a test does: every span names its turn, and hangs below one that spans it."""
    yield
    assert_whole(kept)


def spent(kept: KeptSpans) -> tuple[int, int, int, int, float]:
    """Tokens and cost on the spans of model calls."""
    chats = [span.attributes for span in kept.spans if span.kind == "client"]
    names = (
        n.USAGE_INPUT_TOKENS,
        n.USAGE_OUTPUT_TOKENS,
        n.USAGE_REASONING_TOKENS,
        n.USAGE_CACHED_TOKENS,
    )
    sums = [sum(chat.get(name, 0) for chat in chats) for name in names]
    cost = sum(chat.get(n.USAGE_COST_AMOUNT, 0) for chat in chats)
    return (*sums, round(cost, 9))  # type: ignore[return-value]


def committed(totals: Totals) -> tuple[int, int, int, int, float]:
    """The same of the ledger: answers and abandoned attempts."""
    usage = totals.usage + totals.abandoned
    output = usage.completion_tokens + usage.reasoning_tokens
    counts = (usage.prompt_tokens, output, usage.reasoning_tokens, usage.cached_tokens)
    return (*counts, round(usage.cost_usd or 0.0, 9))


class Mortal:
    """The store of a worker that is killed when it would commit."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.dead = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.dead = self.dead or name == "commit"
            if self.dead:
                raise LeaseLost("the process is gone")
            return await method(*args, **kwargs)

        return call


async def die(hand: WatchedHand) -> None:
    """A killed worker: it tells nobody, and its lease ends."""
    victim = Hand(hand.pipelines, hand.services)
    lease = await hand.must_claim()
    await victim.driver(Mortal(hand.store)).run(lease)
    await hand.expire(lease)


async def test_a_plain_turn(hand: WatchedHand, kept: KeptSpans) -> None:
    """One trace, whose root has the ids of the receipt; every phase is there, once."""
    receipt = await hand.client.submit(user())

    await hand.run_one()

    assert kept.tree(receipt.trace_id) == [PLAIN]
    assert {span.trace_id for span in kept.spans} == {receipt.trace_id}
    kinds = {span.name: span.kind for span in kept.spans}
    assert kinds.pop("process turnline") == "consumer"
    assert kinds.pop("chat grok-4.3") == "client"
    assert set(kinds.values()) == {"internal"}
    assert [span.error for span in kept.spans] == [""] * 6
    turn = kept.one("turn")
    assert turn.parent_id == ""
    assert turn.links == ()
    assert turn.attributes[n.TURN_OUTCOME] == "completed"
    assert turn.attributes[n.SESSION_ID] == "c"
    assert all(
        span.attributes[n.CONVERSATION_ID] == "c"
        and span.attributes[n.TURN_ID] == receipt.turn_id
        and turn.start_ns <= span.start_ns <= span.end_ns <= turn.end_ns
        for span in kept.spans
    )
    process = kept.one("process turnline").attributes
    assert process[n.ATTEMPT] == 1
    assert process[n.ATTEMPT_OUTCOME] == "committed"
    assert process[n.MESSAGING_SYSTEM] == "redis"
    assert process[n.MESSAGING_MESSAGE_ID] == receipt.turn_id


async def test_a_model_call(hand: WatchedHand, kept: KeptSpans) -> None:
    """What the conventions want to know of it, and the tokens and cost that were committed."""
    change = SettingsChange(temperature=0.5, max_tokens=50, reasoning_effort="low")
    await hand.client.submit(Configure(conversation_id="c", settings=change))
    await hand.run_one()
    receipt = await hand.client.submit(user())

    await hand.run_one()

    result = await hand.client.result(receipt, timeout_s=5)
    chat = kept.one("chat grok-4.3").attributes
    assert chat[n.PROVIDER_NAME] == "x_ai"
    assert chat[n.OPERATION_NAME] == "chat"
    assert chat[n.REQUEST_MODEL] == chat[n.RESPONSE_MODEL] == "grok-4.3"
    assert chat[n.RESPONSE_FINISH_REASONS] == (result.finish_reason,)
    assert chat[n.REQUEST_TEMPERATURE] == 0.5
    assert chat[n.REQUEST_MAX_TOKENS] == 50
    assert chat[n.REQUEST_REASONING_LEVEL] == "low"
    assert chat[n.HTTP_STATUS_CODE] == 200
    assert 0 < chat[n.RESPONSE_TIME_TO_FIRST_CHUNK] <= chat[n.TIME_TO_FIRST_TEXT] < 5
    assert chat[n.USAGE_REASONING_TOKENS] > 0
    assert chat[n.USAGE_COST_CURRENCY] == "USD"
    assert spent(kept) == committed(await hand.client.usage("c"))
    turn = next(s for s in kept.named("turn") if s.attributes[n.TURN_ID] == receipt.turn_id)
    assert turn.attributes[n.TURN_INPUT_TOKENS] == chat[n.USAGE_INPUT_TOKENS]
    assert turn.attributes[n.TURN_OUTPUT_TOKENS] == chat[n.USAGE_OUTPUT_TOKENS]


async def test_a_retried_turn(hand: WatchedHand, kept: KeptSpans) -> None:
    """Attempts are siblings below one root; the failed call is an error, the attempt is not."""
    hand.sim.inject("status=503")
    receipt = await hand.client.submit(user())

    await hand.run_one()
    await hand.make_due("c")
    await hand.run_one()

    assert kept.tree(receipt.trace_id) == [
        (
            "turn",
            ("wait",),
            ("process turnline", ("rebuild_context",), ("chat grok-4.3",)),
            ("process turnline", ("rebuild_context",), ("chat grok-4.3",), ("commit",)),
        )
    ]
    first, second = kept.named("process turnline")
    assert [span.attributes[n.ATTEMPT] for span in (first, second)] == [1, 2]
    assert [span.error for span in (first, second)] == ["", ""]
    assert first.attributes[n.ATTEMPT_OUTCOME] == "retry"
    (event,) = first.events
    assert event.name == n.RETRY_EVENT
    assert event.attributes[n.RETRY_IN_S] > 0
    failed, fine = kept.named("chat grok-4.3")
    assert failed.error == failed.attributes[n.ERROR_TYPE] == event.attributes[n.ERROR_TYPE]
    assert failed.attributes[n.HTTP_STATUS_CODE] == 503
    assert failed.attributes[n.USAGE_STATE] == "unknown"
    assert not fine.error
    assert kept.one("turn").attributes[n.TURN_ATTEMPTS] == 2
    assert spent(kept) == committed(await hand.client.usage("c"))


async def test_a_killed_and_resumed_turn(hand: WatchedHand, kept: KeptSpans) -> None:
    """The attempt of the killed worker is told by the one that goes on, its open call included."""
    receipt = await hand.client.submit(user())
    await die(hand)
    assert kept.spans == []

    await hand.run_one()

    assert kept.tree(receipt.trace_id) == [
        (
            "turn",
            ("wait",),
            ("process turnline", ("chat grok-4.3",)),
            ("process turnline", ("rebuild_context",), ("chat grok-4.3",), ("commit",)),
        )
    ]
    lost, second = sorted(kept.named("process turnline"), key=lambda s: s.attributes[n.ATTEMPT])
    assert lost.error == "worker_lost"
    assert lost.attributes[n.ATTEMPT_OUTCOME] == "crashed"
    assert lost.end_ns <= second.start_ns
    open_call = next(s for s in kept.named("chat grok-4.3") if s.parent_id == lost.span_id)
    assert open_call.error == "worker_lost"
    assert open_call.attributes[n.USAGE_STATE] == "unknown"
    assert not kept.one("turn").error
    assert spent(kept) == committed(await hand.client.usage("c"))


async def test_a_dead_letter(hand: WatchedHand, kept: KeptSpans) -> None:
    """A turn that takes its workers down ends as an error, with all its attempts."""
    receipt = await hand.client.submit(user())
    for _ in range(3):
        await die(hand)

    await hand.run_one()

    (turn,) = kept.tree(receipt.trace_id)
    assert turn[0] == "turn"
    assert [below[0] for below in turn[1:]] == ["wait", *["process turnline"] * 4]
    root = kept.one("turn")
    assert root.error == root.attributes[n.ERROR_TYPE] == "crashed"
    assert root.attributes[n.TURN_OUTCOME] == "failed"
    attempts = sorted(kept.named("process turnline"), key=lambda s: s.attributes[n.ATTEMPT])
    assert [a.error for a in attempts] == ["worker_lost"] * 3 + ["crashed"]


async def test_a_refused_turn(hand: WatchedHand, kept: KeptSpans) -> None:
    """What the provider refuses is an error from the call up to the root, by its code."""
    hand.sim.inject("status=400")
    await hand.client.submit(user())

    await hand.run_one()

    assert [kept.one(name).error for name in ("turn", "process turnline", "chat grok-4.3")] == [
        "bad_request"
    ] * 3
    assert kept.one("commit").error == ""


async def test_an_interrupted_turn(hand: WatchedHand, kept: KeptSpans) -> None:
    """An interrupt is not an error; its own message has a span that leads to the turn."""
    hand.sim.inject("stall;at=tokens:5")
    running = await hand.speaking(user())
    stop = await hand.client.interrupt("c")
    await running.notified()

    assert isinstance(await hand.client.result(running.receipt, timeout_s=5), TurnInterrupted)
    assert kept.tree(running.receipt.trace_id)[0][0] == "turn"
    assert kept.named("aggregate") == [], "the interrupt is no part of the message"
    assert [span.error for span in kept.spans] == [""] * len(kept.spans)
    turn, message = sorted(kept.named("turn"), key=lambda s: s.trace_id != running.receipt.trace_id)
    assert turn.attributes[n.TURN_OUTCOME] == "interrupted"
    assert turn.attributes[n.USAGE_STATE] == "estimated"
    chat = kept.one("chat grok-4.3").attributes
    assert chat[n.CALL_OUTCOME] == "cancelled"
    assert chat[n.USAGE_OUTPUT_TOKENS] == 5
    assert message.trace_id == stop.trace_id
    assert message.links == ((turn.trace_id, turn.span_id),)
    assert spent(kept) == committed(await hand.client.usage("c"))


async def test_a_rolled_back_turn(hand: WatchedHand, kept: KeptSpans) -> None:
    """What was done for a message stands in its own trace; both traces are in order in time."""
    hand.sim.inject("stall;at=tokens:5")
    first = await hand.speaking(user())
    second = await hand.client.submit(user("Rather this", when_busy="rollback"))
    await first.notified()

    assert isinstance(await hand.client.result(second, timeout_s=5), TurnCompleted)
    chat = ("chat grok-4.3",)
    assert kept.tree(first.receipt.trace_id) == [
        ("turn", ("process turnline", ("rebuild_context",), chat)),
    ]
    assert kept.tree(second.trace_id) == [
        ("turn", ("wait",), ("process turnline", ("aggregate",), chat, ("commit",))),
    ]
    undone, done = sorted(kept.named("process turnline"), key=lambda span: span.start_ns)
    assert undone.trace_id == first.receipt.trace_id
    assert undone.attributes[n.ATTEMPT_OUTCOME] == "rolled_back"
    assert undone.end_ns <= done.start_ns
    assert [span.error for span in kept.spans] == [""] * len(kept.spans)
    accepted_ns = (await hand.client.record(second)).accepted_at_ms * 1_000_000
    said_ns = accepted_ns + hand.measured(n.M_FIRST_DELTA)[""].sum * 1e9
    assert done.start_ns < said_ns < done.end_ns, "what was undone is no answer"
    absorbed = kept.named("turn")[1]
    assert absorbed.attributes[n.TURN_INTO] == second.turn_id
    assert spent(kept) == committed(await hand.client.usage("c"))


async def test_a_handed_over_turn(hand: WatchedHand, kept: KeptSpans) -> None:
    """A drained worker tells its attempt, without an error, and the next one ends the trace."""
    hand.sim.inject("stall;at=tokens:2")
    running = await hand.speaking(user())
    running.task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running.task
    await hand.release(running.lease, None)  # type: ignore[arg-type]

    await hand.run_one()

    first, second = kept.named("process turnline")
    assert first.attributes[n.ATTEMPT_OUTCOME] == "handed_over"
    assert second.attributes[n.ATTEMPT_OUTCOME] == "committed"
    assert [span.error for span in kept.spans] == [""] * len(kept.spans)
    assert spent(kept) == committed(await hand.client.usage("c"))


@tool
async def get_weather() -> dict[str, int]:
    """Tell the weather."""
    return {"degrees": 21}


@tool
async def break_down() -> str:
    """Break down."""
    raise RuntimeError("a defect of the tool")


def calling(name: str) -> str:
    """Have the model call a function, once."""
    return f"tool;name={name}"


async def test_a_tool_turn(hand: WatchedHand, kept: KeptSpans) -> None:
    """Each function that the model calls has a span between the two calls of the model."""
    hand.use_tools(get_weather)
    hand.sim.inject(calling("get_weather"))
    receipt = await hand.client.submit(user())

    await hand.run_one()

    assert kept.tree(receipt.trace_id) == [
        (
            "turn",
            ("wait",),
            (
                "process turnline",
                ("rebuild_context",),
                ("chat grok-4.3",),
                ("execute_tool get_weather",),
                ("chat grok-4.3",),
                ("commit",),
            ),
        )
    ]
    span = kept.one("execute_tool get_weather")
    assert span.attributes[n.TOOL_NAME] == "get_weather"
    assert span.attributes[n.TOOL_CALL_ID]
    assert span.error == ""
    assert spent(kept) == committed(await hand.client.usage("c"))


async def test_an_agents_turn(hand: WatchedHand, kept: KeptSpans, tmp_path: Path) -> None:
    """What an agent does, calls and tools, hangs below its invocation."""
    agents = tmp_path / "agents.toml"
    agents.write_text("[support]\n")
    hand.sim.inject(calling("get_weather"))
    hand.use_tools(get_weather)
    hand.planner = Planner(hand.planner.toolbox, AgentsFile(agents, ["get_weather"]))
    await hand.client.submit(user(agent="support"))
    await hand.client.submit(user())

    await hand.run_one()

    invoked = kept.one("invoke_agent support")
    assert invoked.parent_id == kept.named("process turnline")[0].span_id
    below = [span for span in kept.spans if span.parent_id == invoked.span_id]
    assert [span.name for span in below] == ["chat grok-4.3"] * 2 + ["execute_tool get_weather"]
    for span in [invoked, *below]:
        assert span.attributes[n.AGENT_NAME] == "support"
        assert invoked.start_ns <= span.start_ns <= span.end_ns <= invoked.end_ns
    assert invoked.attributes[n.OPERATION_NAME] == "invoke_agent"
    assert len(kept.named("chat grok-4.3")) == 3, "the second message names no agent"
    (measured,) = hand.measured(n.M_AGENT_DURATION).items()
    assert (measured[0], measured[1].count) == ("support grok-4.3", 1)
    assert measured[1].sum * 1e9 >= invoked.end_ns - invoked.start_ns


async def test_a_tool_that_fails(hand: WatchedHand, kept: KeptSpans) -> None:
    """Its failure is an error of its own span only: the model answers all the same."""
    hand.use_tools(break_down)
    hand.sim.inject(calling("break_down"))
    await hand.client.submit(user())

    await hand.run_one()

    assert kept.one("execute_tool break_down").error
    assert {span.name for span in kept.spans if span.error} == {"execute_tool break_down"}


async def test_a_tool_that_runs_elsewhere(hand: WatchedHand, kept: KeptSpans) -> None:
    """The attempt that sends the call out and the one that gets its result are siblings."""
    refund = ToolDefinition(
        function=FunctionDefinition(name="refund", parameters={"type": "object"})
    )
    await hand.client.submit(
        Configure(conversation_id="c", settings=SettingsChange(tools=(refund,)))
    )
    await hand.run_one()
    hand.sim.inject(calling("refund"))
    receipt = await hand.client.submit(user())
    await hand.run_one()
    async with contextlib.aclosing(hand.client.tool_calls("service", "one")) as calls:
        call = await anext(calls)
    await hand.client.answer(call, {"paid": 5})

    await hand.run_one()

    result = await hand.client.result(receipt, timeout_s=5)
    assert result.trace_id == receipt.trace_id
    turn = next(t for t in kept.named("turn") if t.trace_id == receipt.trace_id)
    first, second = (s for s in kept.named("process turnline") if s.parent_id == turn.span_id)
    assert first.attributes[n.ATTEMPT_OUTCOME] == "waiting"
    assert second.attributes[n.ATTEMPT_OUTCOME] == "committed"
    sent, answered = kept.named("execute_tool refund")
    assert (sent.parent_id, answered.parent_id) == (first.span_id, second.span_id)
    assert sent.attributes[n.TOOL_STATE] == "sent_out"
    assert n.TOOL_STATE not in answered.attributes
    assert call.traceparent == f"00-{turn.trace_id}-{sent.span_id}-01"
    assert not any(span.error for span in kept.spans)
    assert spent(kept) == committed(await hand.client.usage("c"))


async def test_merged_messages(hand: WatchedHand, kept: KeptSpans) -> None:
    """The turn stands in the trace of the message that carries the reply, linked to the others."""
    await hand.client.submit(UserStartedSpeaking(conversation_id="c"))
    spoken = await hand.client.submit(Transcription(conversation_id="c", text="Hello"))
    await hand.client.submit(UserStoppedSpeaking(conversation_id="c"))

    await hand.run_one()

    process = kept.one("process turnline")
    assert process.trace_id == spoken.trace_id
    assert kept.one("aggregate").attributes[n.TURN_MESSAGES] == 3
    turns = kept.named("turn")
    owner = next(turn for turn in turns if turn.trace_id == spoken.trace_id)
    absorbed = [turn for turn in turns if turn is not owner]
    assert [turn.attributes[n.TURN_OUTCOME] for turn in absorbed] == ["absorbed"] * 2
    assert {link.span_id for link in owner.links} == {turn.span_id for turn in absorbed}
    assert {turn.attributes[n.TURN_INTO] for turn in absorbed} == {spoken.turn_id}


async def test_messages_that_come_one_after_another(hand: WatchedHand, kept: KeptSpans) -> None:
    """The attempt began before the message that carries the reply; in its trace, with it."""
    first = await hand.client.submit(user("Hello", final=False))
    lease = await hand.must_claim()
    running = asyncio.create_task(hand.driver().run(lease))
    await asyncio.sleep(0.02)  # less than the pause after which a user is taken to be done
    second = await hand.client.submit(user("there"))
    lease.notify()
    await running

    process = kept.one("process turnline")
    assert process.trace_id == second.trace_id
    assert kept.one("aggregate").attributes[n.TURN_MESSAGES] == 2
    assert {span.trace_id for span in kept.named("turn")} == {first.trace_id, second.trace_id}


async def test_a_turn_that_waited_long(redis: Redis, hand: WatchedHand, kept: KeptSpans) -> None:
    """After ten minutes it is a trace of its own; the wait stays where it began, linked."""
    receipt = await hand.client.submit(user())
    ((entry_id, fields),) = await redis.xrange("turnline:{s0}:c:c:inbox")
    await redis.delete("turnline:{s0}:c:c:inbox")
    accepted_at_ms = int(entry_id.split(b"-")[0]) - 700_000
    await redis.xadd("turnline:{s0}:c:c:inbox", fields, id=f"{accepted_at_ms}-0")

    await hand.run_one()

    result = await hand.client.result(receipt, timeout_s=5)
    assert result.trace_id != receipt.trace_id
    assert kept.tree(receipt.trace_id) == [("wait",)]
    assert kept.tree(result.trace_id) == [PLAIN[:1] + PLAIN[2:]]
    wait, turn = kept.one("wait"), kept.one("turn")
    assert wait.links == ((turn.trace_id, turn.span_id),)
    assert turn.links == ((wait.trace_id, wait.span_id),)
    assert turn.parent_id == wait.parent_id == ""
    assert wait.end_ns - wait.start_ns > 600e9


async def test_a_message_without_a_trace(redis: Redis, hand: WatchedHand, kept: KeptSpans) -> None:
    """What another program wrote into the inbox gets a trace, the same in every attempt."""
    receipt = await hand.client.submit(user())
    ((entry_id, fields),) = await redis.xrange("turnline:{s0}:c:c:inbox")
    await redis.delete("turnline:{s0}:c:c:inbox")
    fields[b"m"] = encode(UserMessage(conversation_id="c", turn_id=receipt.turn_id, text="Hi"))
    await redis.xadd("turnline:{s0}:c:c:inbox", fields, id=entry_id)
    await die(hand)

    await hand.run_one()

    result = await hand.client.result(receipt, timeout_s=5)
    assert len(result.trace_id) == 32
    assert [turn[0] for turn in kept.tree(result.trace_id)] == ["turn"]


async def test_a_producers_span_is_the_parent(hand: WatchedHand, kept: KeptSpans) -> None:
    """Turn below it, attempts linked to it; two turns of one request stay apart."""
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for _ in range(2):
        await hand.client.submit(user(traceparent=parent, tracestate="vendor=1"))

    await hand.run_one()

    one, other = kept.named("turn")
    assert one.span_id != other.span_id
    assert {one.parent_id, other.parent_id} == {"00f067aa0ba902b7"}
    assert {turn.trace_id for turn in (one, other)} == {"4bf92f3577b34da6a3ce929d0e0e4736"}
    for process in kept.named("process turnline"):
        assert process.links == (("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"),)
    states = {it.context.trace_state.to_header() for it in hand.exported.get_finished_spans()}
    assert states == {"vendor=1"}


async def test_conversations_never_mix(
    redis_url: str, sim: Simulator, client: TurnClient, kept: KeptSpans
) -> None:
    """Ten at once on one worker: each trace holds one turn of one conversation, whole."""
    async with watched(redis_url, sim, kept) as hand:
        receipts = [
            await client.submit(UserMessage(conversation_id=f"c{number}", text=f"I am {number}"))
            for number in range(10)
        ]
        leases = [await hand.must_claim() for _ in receipts]
        driver = hand.driver()
        await asyncio.gather(*(driver.run(lease) for lease in leases))

    for receipt in receipts:
        assert kept.tree(receipt.trace_id) == [PLAIN]
        spans = [span for span in kept.spans if span.trace_id == receipt.trace_id]
        assert {s.attributes[n.CONVERSATION_ID] for s in spans} == {receipt.conversation_id}
        assert {s.attributes[n.TURN_ID] for s in spans} == {receipt.turn_id}
        result = await client.result(receipt, timeout_s=5)
        (chat,) = [span for span in spans if span.kind == "client"]
        assert chat.attributes[n.USAGE_INPUT_TOKENS] == result.usage.prompt_tokens


@pytest.mark.promise("P7")
@pytest.mark.parametrize("scenario", ["eof;at=tokens:2", "rate-limit", "status=529"])
async def test_tokens_on_spans_are_those_in_the_ledger(
    hand: WatchedHand, kept: KeptSpans, scenario: str
) -> None:
    """Also where a call was cut off or refused."""
    hand.sim.inject(scenario)
    await hand.client.submit(user())

    await hand.run_one()
    await hand.make_due("c")
    await hand.run_one()

    assert spent(kept) == committed(await hand.client.usage("c"))


async def test_a_defect_of_the_recorder_does_not_reach_the_turn(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """A sink that fails costs spans, not the turn."""

    class Broken(KeptSpans):
        def take(self, turn: Any) -> None:
            raise RuntimeError("a defect")

    async with watched(redis_url, sim, Broken()) as hand:
        receipt = await client.submit(user())
        await hand.run_one()

    assert (await client.result(receipt, timeout_s=5)).attempt == 1
