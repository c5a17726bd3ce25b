"""The README's programs run as they stand there."""

import asyncio
import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.driving import fleet
from turnline.contracts import SyncTurnClient
from turnline.ops.simulator import Simulator
from turnline.worker.tools.loader import load_tools

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
PRODUCER, TOOL = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


async def test_the_producer_runs_as_printed(redis_url: str, sim: Simulator) -> None:
    """Only the address of Redis is another one; it prints the reply, tokens and totals."""
    program = PRODUCER.replace("redis://127.0.0.1:6379/0", redis_url)
    assert redis_url in program
    printed = io.StringIO()

    def run() -> None:
        with contextlib.redirect_stdout(printed):
            exec(compile(program, "README.md", "exec"), {"__name__": "producer"})

    async with fleet(redis_url, sim):
        await asyncio.to_thread(run)

    with SyncTurnClient.connect(redis_url) as client:
        reply: Any = client.history("anna").messages[1]
    assert reply.content in printed.getvalue()
    assert "Usage(" in printed.getvalue()


def test_the_tool_is_ten_lines_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, description and schema come from the function."""
    assert len(TOOL.splitlines()) <= 10
    (tmp_path / "readme_shop.py").write_text(TOOL)
    monkeypatch.syspath_prepend(tmp_path)

    loaded = load_tools("readme_shop")

    assert loaded.problems == ()
    (found,) = loaded.tools
    definition = found.described.definition
    assert (definition.name, definition.description) == (
        "find_order",
        "Look up an order by its number.",
    )
    assert definition.parameters["properties"]["number"]["type"] == "integer"
