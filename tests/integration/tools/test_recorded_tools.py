"""Recorded multi-tool streams run through whole turns, to the second answer."""

import json

from tests.integration.services.wire import WireServer, delta, finish, streaming, usage
from tests.integration.tools.bench import context, toolbox_of
from tests.support.driving import Hand, ended, user
from tests.support.recordings import recorded
from turnline.contracts import TurnClient, TurnCompleted
from turnline.contracts.opening import open_servers
from turnline.worker.batching import Pipelines
from turnline.worker.grok_services import GrokServices
from turnline.worker.settings import from_env
from turnline.worker.tools import tool
from turnline.worker.turn.plan import Planner


@tool
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


@tool
async def weather(location: str) -> dict[str, str]:
    """Tell the weather."""
    return {"weather": f"mild in {location}"}


SECOND = (delta(role="assistant", content="5 and 6."), finish(), usage(700, 4))


@recorded("xai/chat.*tool-streaming.*.jsonl")
async def test_recorded_streams_reach_their_second_answer(
    path, redis_url: str, client: TurnClient
) -> None:
    """Calls as recorded run as real tools, and the answer that follows them is committed.

    The second stream is the recording's own where there is one.
    """
    lines = path.read_bytes().splitlines()
    deltas = [choice["delta"] for line in lines for choice in json.loads(line)["choices"]]
    calls = [call for each in deltas for call in each.get("tool_calls", [])]
    later = path.with_name(path.name.replace(".0.jsonl", ".1.jsonl"))
    second = later.read_bytes().splitlines() if calls and later.exists() else list(SECOND)

    async with WireServer(streaming(*lines), streaming(*second)) as server:
        servers = open_servers(redis_url)
        pipelines = Pipelines(servers)
        services = GrokServices(
            from_env(
                {
                    "TURNLINE_BASE_URL": server.url,
                    "XAI_API_KEY": "xai-test",
                    "TURNLINE_WIRE": "chat",
                }
            )
        )
        hand = Hand(pipelines, services)
        hand.planner = Planner(toolbox_of(add, multiply, weather))
        receipt = await client.submit(user("2 and 3: sum and product?"))
        await hand.run_due()
        await pipelines.close()
        await servers.aclose()
        await services.clients[0].close()

    result = await ended(client, receipt, TurnCompleted)
    streams = [lines, second] if calls else [lines]
    reports = [json.loads(stream[-1])["usage"] for stream in streams]
    assert result.usage.total_tokens == sum(report["total_tokens"] for report in reports)
    said = "".join(
        choice["delta"].get("content", "")
        for line in streams[-1]
        for choice in json.loads(line)["choices"]
    )
    assert result.text.endswith(said.strip())
    expected = {"add": "5", "multiply": "6"}
    told = [text for role, text in await context(client) if role == "tool"]
    assert told == [
        expected.get(call["function"]["name"])
        or json.dumps(
            {"weather": f"mild in {json.loads(call['function']['arguments'])['location']}"}
        )
        for call in calls
    ]
