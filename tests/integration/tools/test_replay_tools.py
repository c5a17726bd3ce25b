"""`turnline replay --tools`: recorded service calls made for real, in workers and elsewhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.recordings import REPOSITORY

FIND = {
    "type": "function",
    "service": "Shops_1",
    "function": {
        "name": "FindShop",
        "description": "Find a shop",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "kind": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def dialogue(number: int) -> str:
    """Two turns with a call, the second of which finds nothing, and one without."""

    def called(city: str, results: list[object]) -> dict[str, object]:
        call = {"service": "Shops_1", "method": "FindShop", "parameters": {"city": city}}
        return {"speaker": "system", "text": f"In {city}.", "call": call, "results": results}

    turns = [
        {"speaker": "user", "text": f"Find a shop, {number}"},
        called("Łódź", [{"name": "Tea & more", "city": "Łódź"}]),
        {"speaker": "user", "text": "And in Oslo?"},
        called("Oslo", []),
        {"speaker": "user", "text": "Thanks."},
        {"speaker": "system", "text": "Bye."},
    ]
    return json.dumps({"dialogue_id": f"d{number}", "turns": turns}) + "\n"


@pytest.mark.parametrize(
    "mode",
    [("--wire", "chat"), (), ("--elsewhere",), ("--kill-every", "7")],
    ids=["chat", "responses", "elsewhere", "kills"],
)
def test_calls_are_made_and_their_results_committed(tmp_path: Path, mode: tuple[str, ...]) -> None:
    """Contexts, totals and executions are right, also where workers are killed."""
    file, tools = tmp_path / "dialogues.jsonl", tmp_path / "tools.json"
    file.write_text("".join(map(dialogue, range(6))), encoding="utf-8")
    tools.write_text(json.dumps([FIND]))
    command = [sys.executable, "-m", "turnline.ops.cli", "replay", str(file), "--tools", str(tools)]

    ran = subprocess.run(
        [*command, "--json", *mode], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )

    assert ran.returncode in {0, 1}, ran.stderr
    report = json.loads(ran.stdout)
    assert (report["mismatches"], report["faults"]) == (0, [])
    assert (report["turns"], report["tool_calls"]) == (18, 12)
    assert report["executions"] >= 12
    if not report["kills"]:
        assert report["executions"] == 12
        assert report["usage"] == report["simulator_usage"]
