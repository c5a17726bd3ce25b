"""The examples of docs/tools.md do what the page says."""

import asyncio
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tests.integration.tools.bench import Bench, calling, context
from tests.support.driving import settings_for, user
from tests.support.wait import wait_until
from turnline.contracts import TurnCompleted
from turnline.contracts.conversation import FunctionDefinition, ToolDefinition
from turnline.contracts.server_tools import WebSearch
from turnline.worker.main import toolbox_of
from turnline.worker.schema_checking import Checker
from turnline.worker.tools.loader import load_tools
from turnline.worker.turn.plan import Planner, read_agents

PAGE = (Path(__file__).parents[3] / "docs/tools.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, types.ModuleType]:
    """The page's Python blocks as modules `page0`, `page1` and so on."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for number, block in enumerate(BLOCKS):
        (tmp_path / f"page{number}.py").write_text(block)
        monkeypatch.delitem(sys.modules, f"page{number}", raising=False)
    return {f"page{number}": __import__(f"page{number}") for number in range(len(BLOCKS))}


async def test_the_ten_line_tool_answers(bench: Bench, modules: Any) -> None:
    """Loaded by name, called by the model, its result in the context."""
    assert len(BLOCKS[0].splitlines()) <= 10
    settings = settings_for(bench.redis_url, bench.sim, tools="page0,page1")
    toolbox = toolbox_of(settings, Checker())
    await toolbox.start()
    bench.sim.inject(calling("find_order", {"number": 7}), nth=1)
    bench.sim.inject(calling("status", {"number": 7}, loop="1"), nth=2)
    bench.sim.inject(calling("status", {"number": 8}, loop="1"), nth=3)
    async with bench.hand() as hand:
        hand.planner = Planner(toolbox)
        await bench.client.submit(user("Where is order 7?"))
        await hand.run_due()
    await toolbox.stop()

    told = [text for role, text in await context(bench.client) if role == "tool"]
    assert told == [
        '{"number": "7", "status": "shipped"}',
        "shipped",
        '{"error": "There is no order 8."}',
    ]


async def test_a_person_approves(
    bench: Bench, modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's approval loop answers a call that waits."""
    monkeypatch.setattr("builtins.input", lambda _: "y")
    refund = ToolDefinition(function=FunctionDefinition(name="refund"))
    bench.sim.inject(calling("refund"), times=1)
    receipt = await bench.client.submit(user("my money"))
    async with bench.hand(schemas=(refund,)) as hand:
        await hand.run_due()
        desk = asyncio.create_task(modules["page2"].approve(bench.redis_url))
        await wait_until(hand.run_due, "the answer makes the turn due")
        desk.cancel()
        await asyncio.gather(desk, return_exceptions=True)

    assert isinstance(await bench.client.result(receipt, timeout_s=5), TurnCompleted)
    assert (await context(bench.client))[2] == ("tool", '{"approved": true}')


def test_the_agents_of_the_page(modules: Any, tmp_path: Path) -> None:
    """They are valid, with the page's tools."""
    (table,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "agents.toml"
    path.write_text(table)
    names = [tool.name for tool in load_tools("page0,page1").tools]

    support = read_agents(path, names)["support"]
    assert support.max_tool_rounds == 4
    assert support.server_tools == (WebSearch(allowed_domains=("example.com",)),)
