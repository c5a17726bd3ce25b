"""`turnline replay` and `turnline demo` as processes of their own, with real workers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.recordings import REPOSITORY

RUN = [sys.executable, "-m", "turnline.ops.cli"]


def dialogue(dialogue_id: str, *texts: str) -> str:
    """One line of a recording: the user begins, they take turns."""
    turns = [
        {"speaker": "system" if number % 2 else "user", "text": text}
        for number, text in enumerate(texts)
    ]
    return json.dumps({"dialogue_id": dialogue_id, "turns": turns}) + "\n"


def replay(file: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Replay a file; its exit code and report."""
    command = [*RUN, "replay", str(file), "--json", *words]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ran.returncode in {0, 1}, ran.stderr
    return ran.returncode, json.loads(ran.stdout)


@pytest.mark.promise("P2", "P7", "P13")
@pytest.mark.parametrize("wire", ["chat", "responses"])
def test_recordings_come_out_as_they_went_in(tmp_path: Path, wire: str) -> None:
    """Every turn once, every text as recorded, every token as the simulator counted it."""
    file = tmp_path / "dialogues.jsonl"
    file.write_text(
        "".join(
            dialogue(
                f"d{n}", f"Hello {n}", "Hi, “you” 😀", "And\nthen?", f"Then {n}", "Bye", "See you"
            )
            for n in range(12)
        )
    )

    code, report = replay(file, "--workers", "2", "--wire", wire)

    assert (code, report["mismatches"], report["faults"]) == (0, 0, [])
    assert (report["wire"], report["lost_reasoning"], report["prefix_breaks"]) == (wire, 0, 0)
    assert (report["dialogues"], report["turns"], report["requests"]) == (12, 36, 36)
    assert report["usage"] == report["simulator_usage"]
    assert report["usage"]["total_tokens"] > report["usage"]["reasoning_tokens"] > 0
    assert 0 < report["first_delta_p50_ms"] <= report["first_delta_p99_ms"]


def test_answers_without_words_are_no_mismatch(tmp_path: Path) -> None:
    """Empty, blank and padded answers are held against what the aggregator makes of them."""
    file = tmp_path / "dialogues.jsonl"
    file.write_text(
        dialogue("d", "Hello", "", "Again", " \n", "More", "  padded \n", " x ", "e\u0301")
    )

    code, report = replay(file, "--workers", "1")

    assert (code, report["mismatches"], report["faults"]) == (0, 0, [])


@pytest.mark.promise("P3", "P7")
def test_killed_workers_change_no_answer_and_no_total(tmp_path: Path) -> None:
    """Workers die on the way; what is committed is the recording all the same."""
    file = tmp_path / "dialogues.jsonl"
    file.write_text("".join(dialogue(f"d{n}", *["Go on", "Yes"] * 5) for n in range(8)))

    code, report = replay(file, "--workers", "2", "--kill-every", "15")

    assert (code, report["faults"]) == (0, [])
    assert (report["turns"], report["kills"]) == (40, 2)


def test_a_mismatch_ends_with_one_and_a_name(tmp_path: Path) -> None:
    """The simulator takes `x/d` for `d`, whose answer is another one: the replay finds it."""
    file = tmp_path / "dialogues.jsonl"
    file.write_text(dialogue("d", "Hello", "Right") + dialogue("x/d", "Hello", "Wrong"))

    code, report = replay(file, "--workers", "1")

    assert (code, report["mismatches"]) == (1, 1)
    (fault,) = report["faults"]
    assert fault.endswith("/x/d: message 1 (assistant) has another text")


def test_the_demo_shows_a_conversation_and_who_did_it() -> None:
    """It needs nothing, kills a worker when asked to, and ends well."""
    ran = subprocess.run(
        [*RUN, "demo", "--kill"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )

    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.count("You   ") == 4
    assert "was killed: SIGKILL" in ran.stdout
    assert "starts over: attempt 2" in ran.stdout
    assert "Context, as committed in Redis" in ran.stdout
    assert "worker-1" in ran.stdout
    assert "worker-2" in ran.stdout
    assert "Totals: 4 turns, 5 calls" in ran.stdout
