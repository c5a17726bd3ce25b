"""Agents pick prompt, model, tools and limits; structured replies are asked for and checked."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from tests.integration.tools.bench import Bench, calling, tool_hand
from tests.support.driving import ended, requests, user
from turnline.contracts import Configure, SyncTurnClient, TurnClient, TurnCompleted, TurnFailed
from turnline.contracts.conversation import FunctionDefinition, SettingsChange, ToolDefinition
from turnline.ops.fleet.dead_letters import read_letters
from turnline.ops.fleet.operator_connection import connected
from turnline.ops.simulator import Simulator
from turnline.worker.tools import tool
from turnline.worker.turn.plan import AgentsFile, BadAgents

AGENTS = """
[support]
system_prompt = "You help customers."
model = "grok-4"
temperature = 0.25
tools = ["find_order"]
max_tool_rounds = 2

[sales]
system_prompt = "You sell."
tools = []
"""


@tool
async def find_order(number: int) -> str:
    """Find an order."""
    return f"order {number}"


@tool
async def refund(number: int) -> str:
    """Pay back."""
    return f"refunded {number}"


TOOLS = ["find_order", "refund"]


@pytest.fixture
def agents(tmp_path: Path) -> AgentsFile:
    """The agents of these tests."""
    path = tmp_path / "agents.toml"
    path.write_text(AGENTS)
    return AgentsFile(path, TOOLS)


async def test_a_message_or_a_conversation_picks_an_agent(bench: Bench, agents: AgentsFile) -> None:
    """The message's profile wins over the settings, these over that of the conversation's agent."""
    async with bench.hand(find_order, refund, agents=agents) as hand:
        await bench.client.submit(user("nobody in particular"))
        await bench.client.configure("c", agent="support", temperature=0.5)
        await bench.client.submit(user("help"))
        await bench.client.submit(user("sell", agent="sales"))
        await bench.client.submit(user("help again"))
        await hand.run_due()

    plain, support, sales, again = requests(bench.sim)
    assert len(plain["tools"]) == 2
    assert plain["messages"][0]["role"] == "user"
    assert support["messages"][0] == {"role": "system", "content": "You help customers."}
    assert (support["model"], support["temperature"]) == ("grok-4", 0.5)
    assert [it["function"]["name"] for it in support["tools"]] == ["find_order"]
    assert sales["messages"][0]["content"] == "You sell."
    assert (sales["temperature"], "tools" in sales) == (0.5, False)
    assert again["messages"][0]["content"] == "You help customers."


async def test_an_agents_limits_count(bench: Bench, agents: AgentsFile) -> None:
    """Its `max_tool_rounds` instead of the worker's."""
    bench.sim.inject(calling("find_order", {"number": 1}, loop="1"), times=None)
    receipt = await bench.turn(user("help", agent="support"), find_order, refund, agents=agents)

    await ended(bench.client, receipt, TurnFailed, "too_many_tool_rounds")
    assert len(requests(bench.sim)) == 2


@pytest.mark.parametrize("of", ["message", "conversation"])
async def test_an_unknown_agent_fails_the_turn_by_name(
    bench: Bench, agents: AgentsFile, of: str
) -> None:
    """And costs no call."""
    async with bench.hand(agents=agents) as hand:
        if of == "conversation":
            await bench.client.configure("c", agent="nobody")
        receipt = await bench.client.submit(user("hi", agent="nobody" if of == "message" else None))
        await hand.run_due()

    failed = await ended(bench.client, receipt, TurnFailed, "unknown_agent")
    assert "nobody" in failed.message
    assert requests(bench.sim) == []


async def test_a_changed_file_counts_from_the_next_turn_on(bench: Bench, tmp_path: Path) -> None:
    """A file that is broken meanwhile changes nothing."""
    path = tmp_path / "agents.toml"
    path.write_text(AGENTS)
    agents = AgentsFile(path, TOOLS)
    async with bench.hand(find_order, refund, agents=agents) as hand:
        for number, text in enumerate([AGENTS.replace("customers", "people"), "[broken"]):
            path.write_text(text)
            os.utime(path, ns=(number, number))
            await bench.client.submit(user("help", agent="support"))
            await hand.run_due()

    assert [body["messages"][0]["content"] for body in requests(bench.sim)] == [
        "You help people."
    ] * 2


async def test_a_changed_file_is_read_beside_the_loop(tmp_path: Path) -> None:
    """However long that takes, once for all who ask; one that is too large changes nothing."""
    path = tmp_path / "agents.toml"
    path.write_text(AGENTS)
    agents = AgentsFile(path, TOOLS)
    table = "[a{}]\nmetadata = 1\n".replace("metadata = 1", 'description = "x"')
    path.write_text(AGENTS + "".join(table.format(n) for n in range(10_000)))
    asked = [asyncio.create_task(agents.refresh()) for _ in range(20)]
    turns = 0
    while not all(task.done() for task in asked):
        turns += 1
        await asyncio.sleep(0)
    assert turns > 20
    known = agents.agents
    assert len(known) > 10_000
    path.write_text(AGENTS + "#" * 1024 * 1024)
    await agents.refresh()
    assert agents.agents is known


class Order(msgspec.Struct):
    """What a customer orders."""

    number: int
    items: list[str]
    note: str | None = None


async def test_a_reply_of_a_type(redis_url: str, sim: Simulator, client: TurnClient) -> None:
    """The schema goes to the model, the value comes back in the result."""
    reply = quote(json.dumps({"number": 7, "items": ["tea"]}))
    sim.inject(f"text;say={reply}", times=None)
    schema = msgspec.json.schema(Order)
    async with tool_hand(redis_url, sim) as hand:
        by_schema = await client.submit(user("order", response_format=schema["$defs"]["Order"]))
        await hand.run_due()

    result = await ended(client, by_schema, TurnCompleted)
    assert result.parsed_as(Order) == Order(number=7, items=["tea"])
    asked = requests(sim)[0]["response_format"]
    assert asked["type"] == "json_schema"
    assert asked["json_schema"]["schema"]["required"] == ["number", "items"]


async def test_ask_takes_a_struct(redis_url: str, sim: Simulator) -> None:
    """Both clients; with a whole worker and the simulator's own idea of a fitting value."""
    from tests.support.driving import fleet  # noqa: PLC0415

    async with fleet(redis_url, sim), TurnClient.connect(redis_url) as client:
        result = await client.ask("c", "order", response_type=Order, timeout_s=10)
        assert isinstance(result, TurnCompleted)
        assert isinstance(result.parsed_as(Order), Order)

        def ask() -> Any:
            with SyncTurnClient.connect(redis_url) as sync:
                return sync.ask("d", "order", response_type=Order, timeout_s=10)

        assert isinstance((await asyncio.to_thread(ask)).parsed_as(Order), Order)


@pytest.mark.parametrize("reply", ["Sorry, no.", '{"number":"seven","items":[]}'])
async def test_a_reply_that_does_not_fit_fails_by_name(bench: Bench, reply: str) -> None:
    """Paid once, nothing is committed, and the dead letter alone keeps the words, all of them."""
    bench.sim.inject(f"text;say={quote(reply)}", times=None)
    schema = {"type": "object", "properties": {"number": {"type": "integer"}}}
    async with bench.hand() as hand:
        await bench.client.submit(
            Configure(conversation_id="c", settings=SettingsChange(response_format=schema))
        )
        receipt = await bench.client.submit(user("order"))
        await hand.run_due()

    failed = await ended(bench.client, receipt, TurnFailed, "invalid_reply")
    assert "Sorry" not in failed.message
    assert "seven" not in failed.message
    assert (await bench.client.history("c")).messages == ()
    with connected(bench.redis_url, 1) as connection:
        (letter,) = read_letters(connection.redis, connection.shards)
    assert (letter.code, letter.reply) == ("invalid_reply", reply)
    assert len(requests(bench.sim)) == 1
    totals = await bench.client.usage("c")
    assert totals.usage.total_tokens == 0
    assert totals.abandoned.total_tokens > 0


async def test_tools_come_before_a_structured_reply(bench: Bench) -> None:
    """Only the last message has to fit."""
    bench.sim.inject(calling("find_order", {"number": 1}, say="One%20moment."), times=1)
    bench.sim.inject("text;say=%7B%7D", nth=2, times=1)
    receipt = await bench.turn(user("order", response_format={"type": "object"}), find_order)

    result = await ended(bench.client, receipt, TurnCompleted)
    assert result.parsed == {}
    assert json.loads(result.text.partition("\n\n")[2]) == {}


BAD: dict[str, Any] = {"type": "object", "required": 5}


@pytest.mark.parametrize("of", ["message", "settings", "tools"])
async def test_a_schema_that_cannot_be_used_costs_no_call(bench: Bench, of: str) -> None:
    """From a producer that has not looked: the message fails by name, settings stay as they are."""
    bench.client._make._schemas.check = lambda message: None  # type: ignore[method-assign]
    tool = ToolDefinition(function=FunctionDefinition(name="f", parameters=BAD))
    message = {
        "message": user("go", response_format=BAD),
        "settings": Configure(conversation_id="c", settings=SettingsChange(response_format=BAD)),
        "tools": Configure(conversation_id="c", settings=SettingsChange(tools=(tool,))),
    }[of]
    async with bench.hand() as hand:
        receipt = await bench.client.submit(message)
        await hand.run_due()
        failed = await ended(bench.client, receipt, TurnFailed, "invalid_message")
        assert "#/required: expected array" in failed.message
        assert requests(bench.sim) == []
        after = await bench.client.submit(user("and now?"))
        await hand.run_due()
    await ended(bench.client, after, TurnCompleted)


def test_an_agents_schema_is_read_at_the_start(tmp_path: Path) -> None:
    """What is wrong is said with the agent and the place."""
    path = tmp_path / "agents.toml"
    path.write_text("[a]\nresponse_format = {required = 5}\n")
    with pytest.raises(BadAgents, match=r"\[a\]: response_format: #/required: expected array"):
        AgentsFile(path, TOOLS)


async def test_arguments_for_a_tool_elsewhere_have_to_fit(bench: Bench) -> None:
    """The model is told where they do not, and nobody else hears of the call."""
    parameters = {"type": "object", "properties": {"from": {"type": "integer"}}}
    tool = ToolDefinition(function=FunctionDefinition(name="f", parameters=parameters))
    bench.sim.inject(calling("f", {"from": "Oslo" * 100}), times=1)
    bench.sim.inject(calling("f", {"from": 1.0}, loop="1"), nth=2, times=1)
    async with bench.hand(schemas=[tool]) as hand:
        await bench.client.submit(user("go"))
        await hand.run_due()
        async with asyncio.timeout(10):
            async for call in bench.client.tool_calls("g", "1"):
                assert msgspec.json.decode(call.arguments) == {"from": 1.0}
                break
    told = requests(bench.sim)[1]["messages"][-1]
    assert told["role"] == "tool"
    assert "#/from" in told["content"]
    assert "integer" in told["content"]
    assert "Oslo" not in told["content"]
