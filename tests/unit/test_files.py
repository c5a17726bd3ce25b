"""Files that operators name: marks and line ends are read, all else is refused in time."""

import datetime as dt
import os
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from turnline.contracts.conversation import ConversationSettings
from turnline.contracts.server_tools import Mcp, XSearch
from turnline.ops.cli.app import turnline
from turnline.worker.files import ANSWER_S, UnusableFile, read_json, read_text
from turnline.worker.tools.loader import load_tools
from turnline.worker.turn.plan import AgentsFile, BadAgents, Planner, read_agents

WEB = b"[[a.server_tools]]\ntype = 'web_search'\n"
MCP = b"[[a.server_tools]]\ntype = 'mcp'\nserver_label = 'orders'\n"
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
        (b"[a]\nwire = 'chat'\nreasoning_summary = true", "nothing, since wire is chat"),
        (WEB + WEB, "[a]: server_tools: each type once"),
        (
            WEB + b"allowed_domains = ['a.b']\nexcluded_domains = ['c.d']",
            "excluded_domains: nothing",
        ),
        (MCP + b"server_url = 'http://a.b'", "server_url"),
        (MCP + b"server_url = 'https://a.b'\nauthorization = \"s3cret\\n\"", "[a]: Expected `str`"),
        (MCP + b"server_url = 'https://a.b'\nauthorization = ['s3cret']", "[a]: Expected `str"),
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
    assert "s3cret" not in str(error.value)


def test_an_agent_may_have_what_the_responses_api_has(tmp_path: Path) -> None:
    """Its wire, its limit, server-side tools with their options, summaries of reasoning."""
    path = tmp_path / "agents.toml"
    path.write_text(
        "[a]\nwire = 'responses'\nmax_output_tokens = 512\nreasoning_summary = true\n"
        "[[a.server_tools]]\ntype = 'x_search'\nfrom_date = 2026-11-29\n"
        "[[a.server_tools]]\ntype = 'mcp'\nserver_label = 'orders'\nserver_url = 'https://a.b'\n"
        "headers = { X-Tenant = 's3cret' }\n"
    )

    agent = read_agents(path, [])["a"]
    settings = Planner(agents=AgentsFile(path, [])).plan(ConversationSettings(agent="a")).settings

    assert settings == ConversationSettings(
        agent="a",
        wire="responses",
        max_output_tokens=512,
        reasoning_summary=True,
        server_tools=(
            XSearch(from_date=dt.date(2026, 11, 29)),
            Mcp(server_label="orders", server_url="https://a.b", headers={"X-Tenant": "s3cret"}),
        ),
    )
    assert "s3cret" not in repr(agent)
    for options in ([], ["--json"]):
        listed = CliRunner().invoke(turnline, ["agents", "--agents", str(path), *options])
        assert (listed.exit_code, "orders" in listed.output) == (0, True)
        assert "s3cret" not in listed.output


def test_json_is_read_as_it_is(tmp_path: Path) -> None:
    """Other characters, numbers and nesting stay."""
    path = tmp_path / "x.json"
    path.write_text('{"é": [1, 2.5, null, "👋"]}')

    assert read_json(path) == {"é": [1, 2.5, None, "👋"]}
