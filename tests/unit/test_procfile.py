"""`ops/run start` takes counts as README writes them, and everything that honcho takes."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.recordings import REPOSITORY
from turnline.ops.procfile import arguments


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("start worker=4", "start -c worker=4"),
        ("start -c worker=4", "start -c worker=4"),
        ("start --concurrency worker=4", "start --concurrency worker=4"),
        ("start worker=2 other=1", "start -c worker=2,other=1"),
        ("start worker", "start worker"),
        ("start", "start"),
        ("start -f Procfile worker=2", "start -f Procfile -c worker=2"),
    ],
)
def test_counts_need_no_option(words: str, expected: str) -> None:
    """They are given to honcho with its option."""
    assert arguments(words.split()) == expected.split()


@pytest.mark.parametrize("words", [["worker=2"], ["-c", "worker=2"]])
def test_the_processes_start(words: list[str], tmp_path: Path) -> None:
    """As many as asked for, out of a Procfile of ours."""
    procfile = tmp_path / "Procfile"
    # They stay: honcho ends all once one has ended, also those that have not said a word.
    procfile.write_text("worker: echo here-$((1 + 1)); exec sleep 60\n")
    command = [sys.executable, "-m", "turnline.ops.procfile", "start", "-f", str(procfile), *words]

    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as ran:
        assert ran.stdout is not None
        said = ""
        while said.count("here-2") < 2:
            line = ran.stdout.readline()
            assert line, said
            said += line
        ran.terminate()
        said += ran.stdout.read()

    assert said.count("here-2") == 2
