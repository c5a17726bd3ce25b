"""Each command that README, docs and CONTRIBUTING show is one that there is, with these options."""

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from tests.support.recordings import REPOSITORY
from turnline.ops.cli.app import turnline
from turnline.ops.procfile import arguments

PAGES = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / ".github").glob("*.md")),
]
PROGRAMS = ("turnline", "ops/run", "../../ops/run", "python", "pip", "./run", ".ci/run")
PLACEHOLDERS = {"ID": "1-0", "TURN_ID": "t", "FILE": "pyproject.toml", "NAME": "blind-release"}
OTHER_PACKAGES = {"arize-phoenix", "mlflow", "trace-view"}


def shown(text: str) -> Iterator[str]:
    """The commands of a page: lines of shell blocks, and code in its prose that is one."""
    block: str | None = None
    line = ""
    for part in text.splitlines():
        if part.startswith("```"):
            block = None if block is not None else part[3:].strip()
        elif block in {"sh", "bash", "console"} or (block is None and part.startswith("    ")):
            line += part.strip()
            if line.endswith("\\"):
                line = line[:-1]
                continue
            yield from commands_of(line)
            line = ""
        elif block is None:
            for code in re.findall(r"`([^`]+)`", part):
                yield from commands_of(code)


def commands_of(line: str) -> Iterator[str]:
    """What runs one of our programs in a line of shell, without assignments before it."""
    for part in re.split(r"&&|\|(?!\|)|;", re.sub(r"(^|\s)#.*", "", line)):
        unset = re.sub(r"^([A-Z_]+=\S*\s+)+", "", part.strip().removesuffix("&"))
        command = re.split(r"\s{3,}", unset)[0]  # what stands behind it in a column is prose
        if command.partition(" ")[0] in PROGRAMS:
            yield command


def fault(command: str) -> str | None:
    """What is wrong with a command; None if it would run."""
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command) if word != "..."]
    program, rest = words[0].removeprefix("../../"), words[1:]
    try:
        match program, rest:
            case ("turnline", _):
                parse(turnline, rest)
            case ("ops/run", ["turnline" | "demo", *_]):
                parse(turnline, rest if rest[0] == "demo" else rest[1:])
            case ("ops/run", ["start", *_]):
                return None if "-c" in arguments(rest) else "no counts"
            case ("ops/run", ["python", *python]):
                return python_fault(python)
            case ("ops/run", ["test", *tests]):
                paths = [it for it in tests if "/" in it and not it.startswith("-")]
                return next((f"no {it}" for it in paths if not (REPOSITORY / it).exists()), None)
            case ("ops/run", _):
                listed = re.findall(r"^  (\w+)", (REPOSITORY / "ops/run").read_text(), re.MULTILINE)
                return None if not rest or rest[0] in listed else "ops/run does not list it"
            case ("python", _):
                return python_fault(rest)
            case ("pip", ["install", package]):
                known = package in OTHER_PACKAGES | {"turnline"} or package in extras()
                return None if known else "neither ours nor known"
            case (".ci/run", []):
                return None
            case _:
                return "no test knows such a command"
    except click.exceptions.Exit:
        return None
    except click.ClickException as error:
        return error.format_message()
    return None


def extras() -> set[str]:
    text = (REPOSITORY / "pyproject.toml").read_text()
    table = text.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    return {f"turnline[{name}]" for name in re.findall(r"^(\w+) = \[", table, re.MULTILINE)}


def python_fault(words: list[str]) -> str | None:
    match words:
        case ["-m", module, *_]:
            return None if find_spec(module) else f"there is no module {module}"
        case [path, *_]:
            return None if (REPOSITORY / path).is_file() else f"there is no file {path}"
        case _:
            return "nothing to run"


def parse(group: click.Command, words: list[str]) -> None:
    """Have click read the words, and run nothing; a command's name alone may stand for it."""
    if not words or words in (["--help"], ["--version"]):
        return
    assert isinstance(group, click.Group)
    with click.Context(group, info_name="turnline") as context:
        name, command, rest = group.resolve_command(context, words)
    assert command is not None
    if isinstance(command, click.Group):
        parse(command, rest)
    elif rest and "--help" not in rest:
        command.make_context(name, list(rest))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_each_command_is_one(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name, options and files exist; what no rule here knows is a fault."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dialogues.jsonl").write_text("")
    (tmp_path / "pyproject.toml").write_text("")

    found = {command: fault(command) for command in shown(page.read_text())}

    assert {command: wrong for command, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    "line",
    [
        "turnline nonsense",
        "turnline chaos --minuts 3",
        "turnline bench --json file.json",
        "ops/run nonsense",
        "ops/run start worker",
        "ops/run test tests/nowhere",
        "python -m nowhere_at_all",
        "pip install nothing-of-ours",
        "X=1 turnline queue --watched",
        "ops/run turnline redis --prot 6379 && true",
    ],
)
def test_a_command_that_is_none_is_found(line: str) -> None:
    """In a block or in prose."""
    for page in (f"```sh\n{line}  # words\n```", f"Some words, `{line}`, and more."):
        (command,) = shown(page)
        assert fault(command)
