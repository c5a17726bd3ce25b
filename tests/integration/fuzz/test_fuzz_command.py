"""`turnline fuzz` as a command: processes, figures, files of inputs that break something."""

import json
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from tests.support.recordings import REPOSITORY
from turnline.ops.fuzz.command import fuzz as command
from turnline.ops.fuzz.findings import row_of
from turnline.ops.fuzz.search import Found, Tally


def fuzz(*words: str) -> subprocess.CompletedProcess[str]:
    started = [sys.executable, "-m", "turnline.ops.cli", "fuzz", *words]
    return subprocess.run(started, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_a_short_run_prints_its_figures(tmp_path: Path) -> None:
    """All targets, each in a process of its own, so many runs as were asked for."""
    ran = fuzz("--runs", "2000", "--jobs", "1", "--seed", "5", "--json", "--keep", str(tmp_path))

    assert (ran.returncode, ran.stderr) == (0, "seed 5\n")
    report = json.loads(ran.stdout)
    rows = {row["target"]: row for row in report["rows"]}
    assert list(rows) == [
        *("messages", "events", "stream", "responses", "items", "entries"),
        *("schemas", "arguments", "answers", "addresses"),
    ]
    assert [row["runs"] for row in rows.values()] == [200] * 10
    assert all(row["corpus"] >= row["seeds"] > 0 for row in rows.values())
    assert all(row["edges"] > 0 and row["violations"] == 0 for row in rows.values())
    assert list(tmp_path.iterdir()) == []


def test_the_table_can_be_had_for_one_target() -> None:
    """From two processes, which end when their time is over."""
    ran = fuzz("--target", "events", "--seconds", "0.5", "--jobs", "2")

    assert ran.returncode == 0
    assert "events" in ran.stdout
    assert "messages" not in ran.stdout
    assert "turnline fuzz --runs 1000000 --seed" in ran.stdout


def test_an_input_can_be_run_again(tmp_path: Path) -> None:
    """The file's name says which target it is for."""
    tally = Tally("stream", runs=1, violations=1, found=[Found("stream", "rule", b"data: x\n\n")])
    row = row_of(tally, tmp_path)
    (path,) = tmp_path.iterdir()

    again = fuzz("--replay", str(path))
    nameless = path.rename(tmp_path / "input")
    refused = CliRunner().invoke(command, ["--replay", str(nameless)])
    named = CliRunner().invoke(command, ["--replay", str(nameless), "--target", "stream"])

    assert [(it.rule, it.file) for it in row.broken] == [("rule", str(path))]
    assert (again.returncode, again.stdout) == (0, "stream: nothing is broken\n")
    assert refused.exit_code == 2
    assert "add --target" in refused.stderr
    assert named.stdout == again.stdout
