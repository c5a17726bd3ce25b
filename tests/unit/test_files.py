"""Files that operators name: marks and line ends are read, all else is refused in time."""

import os
import threading
import time
from pathlib import Path

import pytest

from turnline.worker.files import ANSWER_S, UnusableFile, read_json, read_text
from turnline.worker.tools.loader import load_tools
from turnline.worker.turn.plan import BadAgents, read_agents

TOOL = (
    '[{"type":"function","function":{"name":"find","description":null,"parameters":null,'
    '"strict":null},"timeout_s":null}]'
)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "a folder"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: path.symlink_to("/dev/zero"), "it is no file"),
        (lambda path: path.symlink_to("/dev/null"), "it is no file"),
        (os.mkfifo, "nothing came out of the pipe within 2 s"),
        (lambda path: path.write_bytes(b"x" * 1_001), "more than 1,000 bytes"),
        (lambda path: path.write_bytes(b"caf\xe9"), "not UTF-8 (byte 4)"),
        (lambda path: path.write_text("x", encoding="utf-16"), "it is UTF-16; save it as UTF-8"),
        (lambda path: path.write_text("x", encoding="utf-32"), "it is UTF-32; save it as UTF-8"),
    ],
)
def test_what_is_no_text_file_is_refused_in_time(tmp_path: Path, make, words: str) -> None:
    """Missing, a folder, a device, a silent pipe, too large, of another encoding."""
    path = tmp_path / "file"
    make(path)
    began = time.monotonic()

    with pytest.raises(UnusableFile) as error:
        read_text(path, most_bytes=1_000)

    assert words in str(error.value)
    assert time.monotonic() - began < ANSWER_S + 3


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    """Such as a shell's `<(command)`; one that never ends is left in time."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writing = threading.Thread(target=lambda: path.write_text("a key\n"))
    writing.start()

    assert read_text(path) == "a key\n"

    writing.join()
    holding = os.open(path, os.O_RDWR)
    os.write(holding, b"half")
    began = time.monotonic()
    with pytest.raises(UnusableFile, match="nothing came"):
        read_text(path)
    os.close(holding)
    assert time.monotonic() - began < ANSWER_S + 3


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_marks_and_line_ends_of_other_systems_are_read(tmp_path: Path, mark: str, end: str) -> None:
    """In a file of agents and in one of tools."""
    agents, tools = tmp_path / "agents.toml", tmp_path / "tools.json"
    agents.write_bytes((mark + end.join(["[support]", 'description = "x"', ""])).encode())
    tools.write_bytes((mark + TOOL.replace(",", "," + end)).encode())

    assert list(read_agents(agents, [])) == ["support"]
    loaded = load_tools("", str(tools))
    assert loaded.problems == ()
    assert [it.function.name for it in loaded.schemas] == ["find"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        (" \n", "it is empty"),
        ("{}", "no list of tools"),
        ("null", "no list of tools"),
        ('[\n{"function": {"name": "f",}}]', "(line 2, column "),
        ("[1,]", "(line 1, column "),
        ("[NaN]", "NaN is no number"),
        ('[{"function":{"name":"f","name":"g"}}]', "'name' twice"),
        ('["\\ud800"]', "half of a surrogate pair"),
        ("[" * 100_000, "nested too deeply"),
        ("[" + "9" * 5_000 + "]", "it is no JSON"),
        ("[1]", "tool 1: Expected `object`, got `int`"),
        ("[null]", "tool 1: Expected `object`, got `null`"),
        ('[{"type":"function"}]', "tool 1: Object missing required field `function`"),
        (f"[{TOOL[1:-1]},{TOOL[1:-1]}]", "several tools have this name"),
    ],
)
def test_a_file_of_tools_says_what_is_wrong_and_where(
    tmp_path: Path, text: str, words: str
) -> None:
    """One problem, one short line."""
    path = tmp_path / "tools.json"
    path.write_text(text)

    (problem,) = load_tools("", str(path)).problems

    assert words in problem
    assert len(problem) < 300 + len(str(path))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it has no agent"),
        (b"# nothing\n", "it has no agent"),
        (b"[a]\n[a]\n", "it is no TOML: Cannot declare ('a',) twice (at line 2"),
        (b"[a]\nx = [[[", "it is no TOML"),
        (b"[a]\nmodel = 'g'\nmodel = 'h'", "it is no TOML"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"[a]\nseed = " + b"9" * 5_000, "it is no TOML"),
        (b"[a]\ntool_wait_s = inf", "[a]: Expected `float` <="),
        (b"[a]\ntemperature = nan", "[a]: Expected `float`"),
        (b"\xff\xfe[\x00a\x00]\x00", "it is UTF-16"),
    ],
)
def test_a_file_of_agents_says_what_is_wrong(tmp_path: Path, data: bytes, words: str) -> None:
    """One sentence, with the place."""
    path = tmp_path / "agents.toml"
    path.write_bytes(data)

    with pytest.raises(BadAgents) as error:
        read_agents(path, [])

    assert words in str(error.value)


def test_json_is_read_as_it_is(tmp_path: Path) -> None:
    """Other characters, numbers and nesting stay."""
    path = tmp_path / "x.json"
    path.write_text('{"é": [1, 2.5, null, "👋"]}')

    assert read_json(path) == {"é": [1, 2.5, None, "👋"]}
