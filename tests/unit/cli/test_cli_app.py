"""The command group: quick help, examples everywhere, errors in one line."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from redis.exceptions import ConnectionError as LostConnection

from tests.support.recordings import REPOSITORY
from turnline.contracts import InboxFull, InvalidMessage, TurnUnknown
from turnline.ops.cli.app import SECTIONS, turnline
from turnline.ops.cli.failures import FAILED, USAGE, Failed, Failure, told
from turnline.ops.embedded import ServerMissing

NAMES = [name for section in SECTIONS.values() for name in section]


def test_the_help_names_every_command() -> None:
    """With what each is for, and an example to begin with."""
    result = CliRunner().invoke(turnline, ["--help"])

    assert result.exit_code == 0
    assert [name for name in NAMES if f"  {name} " not in result.output] == []
    assert "turnline demo" in result.output


def test_the_help_loads_nothing_heavy() -> None:
    """It is there before anybody wonders: no Redis, no client, no rich."""
    program = (
        "import sys; from turnline.ops.cli.app import turnline; "
        "turnline(['--help'], standalone_mode=False); "
        "print([m for m in ('contracts', 'redis', 'rich', 'openai', 'worker') if m in sys.modules])"
    )

    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )

    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_every_command_can_be_asked_for_help(name: str) -> None:
    """Each place in the table leads to a command that explains itself."""
    result = CliRunner().invoke(turnline, [name, "--help"])

    assert result.exit_code == 0
    assert "Usage: turnline" in result.output


@pytest.mark.parametrize(
    "words",
    [
        *(["demo"], ["chat"], ["replay"], ["send"], ["tail"], ["show"], ["usage"], ["forget"]),
        *(["queue"], ["dead"], ["dead", "list"], ["dead", "show"], ["dead", "replay"]),
        ["dead", "drop"],
    ],
    ids=" ".join,
)
def test_the_help_of_our_commands_has_an_example(words: list[str]) -> None:
    """One that calls this very command."""
    result = CliRunner().invoke(turnline, [*words, "--help"])

    example = result.output.partition("For example:")[2]
    assert f"turnline {' '.join(words)}" in example


def test_an_unknown_command_is_answered_with_those_there_are() -> None:
    """A typo ends with 2 and a list."""
    result = CliRunner().invoke(turnline, ["serve"])

    assert result.exit_code == USAGE
    assert "demo" in result.output


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (InvalidMessage("conversation_id", "1 to 200 characters"), USAGE),
        (InboxFull("1000 messages wait", retry_after_s=5), FAILED),
        (TurnUnknown("no such turn"), FAILED),
        (LostConnection("refused"), USAGE),
        (ServerMissing("no server"), USAGE),
        (ModuleNotFoundError("No module named 'arq.worker'", name="arq.worker"), USAGE),
        (ExceptionGroup("two", [ValueError("x"), Failed("it broke")]), FAILED),
    ],
)
def test_expected_errors_are_told_without_a_traceback(error: Exception, exit_code: int) -> None:
    """One line, and an exit code that says whose fault it is."""
    failure = told(error)

    assert isinstance(failure, click.ClickException)
    assert failure.exit_code == exit_code


def test_defects_are_not_hidden() -> None:
    """What nobody expects keeps its traceback."""
    assert told(ValueError("x")) is None
    assert told(ModuleNotFoundError("No module named 'worker.gone'", name="worker.gone")) is None
    assert told(ExceptionGroup("bugs", [ValueError("x")])) is None


def test_a_failure_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts read stdout."""
    Failure("do this instead").show()

    assert capsys.readouterr() == ("", "turnline: do this instead\n")
