"""What `conversations`, `turns`, `show` and `dead list` take, and in which order they print."""

import datetime as dt

import click
import pytest

from turnline.contracts.conversation import AssistantEntry, UserEntry
from turnline.contracts.replies import History
from turnline.ops.cli import output
from turnline.ops.cli.failures import Failure
from turnline.ops.cli.listings import conversations
from turnline.ops.fleet.dead_letters import DeadLetter, in_order
from turnline.ops.fleet.turn_list import Turn, turns_of_messages


def option(name: str) -> click.Parameter:
    """An option of the command."""
    (found,) = [it for it in conversations.params if it.name == name]
    return found


def read(name: str, value: object) -> object:
    """What an option makes of words."""
    with click.Context(conversations) as context:
        return option(name).process_value(context, value)


@pytest.mark.parametrize(
    ("words", "ago"),
    [
        ("90s", dt.timedelta(seconds=90)),
        ("1.5h", dt.timedelta(minutes=90)),
        ("30m", dt.timedelta(minutes=30)),
        ("2d", dt.timedelta(days=2)),
        ("1w", dt.timedelta(weeks=1)),
    ],
)
def test_since_takes_how_long_ago(words: str, ago: dt.timedelta) -> None:
    """In one unit."""
    assert read("since", words) == ago


def test_since_takes_a_time() -> None:
    """With a zone, or on this machine's clock."""
    utc = read("since", "2026-11-30T08:15+00:00")
    here = read("since", "2026-11-30T08:15")

    assert utc == dt.datetime(2026, 11, 30, 8, 15, tzinfo=dt.UTC)
    assert here == dt.datetime(2026, 11, 30, 8, 15).astimezone()


@pytest.mark.parametrize("words", ["", "1", "h", "-1h", "1y", "yesterday", "2026-13-01"])
def test_other_words_are_refused(words: str) -> None:
    """It is said what is taken."""
    with pytest.raises(click.BadParameter, match="30m"):
        read("since", words)


def test_metadata_are_pairs() -> None:
    """The value may have an equals sign."""
    assert read("metadata", ("user=7", "q=a=b", "empty=")) == {"user": "7", "q": "a=b", "empty": ""}
    for wrong in ("user", "=7"):
        with pytest.raises(click.BadParameter, match="KEY=VALUE"):
            read("metadata", (wrong,))


def turn(turn_id: str, first: int, end: int) -> Turn:
    """A turn that ended, and its messages."""
    return Turn(
        turn_id=turn_id,
        state="completed",
        worker="w",
        attempts=1,
        accepted_at_ms=1_000,
        finished_at_ms=2_000,
        took_ms=1_000,
        trace_id="",
        outcome="completed",
        messages_from=first,
        messages_to=end,
    )


def test_messages_are_of_the_turn_that_added_them() -> None:
    """As far back as the context was only added to."""
    one, two = turn("one", 0, 2), turn("two", 2, 4)
    nothing, replaced = turn("nothing", 0, 0), turn("replaced", 0, 9)

    assert turns_of_messages([one, nothing, two], 4) == [one, one, two, two]
    assert turns_of_messages([replaced, two], 4) == [None, None, two, two]
    assert turns_of_messages([one, two, turn("later", 4, 6)], 4) == [one, one, two, two]
    assert turns_of_messages([], 2) == [None, None]


def test_a_context_names_turns_and_times(capsys: pytest.CaptureFixture[str]) -> None:
    """What the user said at its beginning, the reply at its end."""
    history = History(
        conversation_id="c",
        system_prompt="Be brief.",
        messages=(UserEntry(content="Hello"), AssistantEntry(content="Hi")),
    )
    it = turn("one", 0, 2)

    output.console().print(output.history_table(history, origins=[it, it]))

    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines() if " one " in line]
    assert [line[-1] for line in lines] == ["Hello", "Hi"]
    assert [" ".join(line[3:5]) for line in lines] == [output.at(1_000), output.at(2_000)]
    assert "Be brief." in printed


def letter(letter_id: str) -> DeadLetter:
    """A dead letter of this id."""
    return DeadLetter(
        id=letter_id,
        conversation_id="c",
        turn_id="t",
        code="crashed",
        error="",
        attempts=1,
        trace_id="",
        at_ms=0,
        message=b"",
    )


def test_dead_letters_stand_in_the_order_of_time() -> None:
    """Those of all shards; and a page goes on behind an id, also one that is gone."""
    letters = [letter(it) for it in ("0:5-0", "0:9-0", "1:5-1", "1:6-0", "1:5-0")]
    every = ["0:5-0", "1:5-0", "1:5-1", "1:6-0", "0:9-0"]

    assert [it.id for it in in_order(letters)] == every
    assert [it.id for it in in_order(letters, "1:5-0")] == every[2:]
    assert [it.id for it in in_order(letters, "0:7-0")] == every[4:]
    with pytest.raises(Failure, match="0:1700000000000-0"):
        in_order(letters, "7-0")


def test_ids_are_never_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However narrow the terminal is."""
    monkeypatch.setenv("COLUMNS", "60")
    shown = output.table("id", "error", "trace", whole=("id",))
    shown.add_row("0:1700000000000-0", "word " * 20, "0" * 32)

    output.console().print(shown)

    assert "0:1700000000000-0" in capsys.readouterr().out
