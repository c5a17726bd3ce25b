"""`--json` means the same everywhere: a flag by which a command prints JSON on stdout."""

import json

import click
import pytest
from click.testing import CliRunner

from turnline.ops.cli.app import turnline

PRINT_NOTHING_TO_READ = {
    "chat",  # a conversation with a person
    "demo",
    "dead drop",  # say in a line what they did
    "dead replay",
    "forget",
    "schedule remove",
    "sim",  # prints its address and nothing else
}


def commands(group: click.Group, *before: str) -> dict[str, click.Command]:
    """All commands below a group, by their words."""
    found: dict[str, click.Command] = {}
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            words = (*before, name)
            if isinstance(command, click.Group):
                found |= commands(command, *words)
            elif command is not None:
                found[" ".join(words)] = command
    return found


def test_each_command_that_prints_facts_has_it() -> None:
    """Whoever adds a command gives it the option, or says here why it has nothing to print."""
    without = {
        words
        for words, command in commands(turnline).items()
        if not any("--json" in it.opts for it in command.params)
    }

    assert without == PRINT_NOTHING_TO_READ


@pytest.mark.parametrize("words", sorted(commands(turnline).keys() - PRINT_NOTHING_TO_READ))
def test_it_is_a_flag_without_an_argument(words: str) -> None:
    """Under one name in the code, and its help begins with what is printed."""
    (option,) = [it for it in commands(turnline)[words].params if "--json" in it.opts]

    assert isinstance(option, click.Option)
    assert (option.is_flag, option.name, option.opts) == (True, "as_json", ["--json"])
    assert (option.help or "").startswith("Print ")


def test_the_list_of_scenarios_is_json_too() -> None:
    """Nothing but JSON is on stdout."""
    printed = CliRunner().invoke(turnline, ["bench", "--list", "--json"])

    assert {"instant-20-c50"} <= {it["name"] for it in json.loads(printed.stdout)}
