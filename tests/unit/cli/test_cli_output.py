"""What people see: replies that grow, start over and are broken between words."""

import io
import re

import pytest
from rich.console import Console

from turnline.contracts import TextDelta, TurnCompleted, TurnFailed, TurnStarted
from turnline.contracts.conversation import Citation, Totals, Usage
from turnline.contracts.replies import (
    AnyEvent,
    ReasoningSummaryDelta,
    ServerToolFinished,
    ServerToolStarted,
)
from turnline.ops.cli import output
from turnline.ops.cli.failures import Failed

IDS = {"conversation_id": "c", "turn_id": "t"}


def shown(*events: AnyEvent, width: int = 0, prefix: str = "") -> str:
    """Print the events; with a width, as on a terminal of that many columns."""
    to = io.StringIO()
    console = Console(file=to, width=width or 160, force_terminal=width > 0, color_system=None)
    reply = output.ReplyPrinter(console, prefix)
    for event in events:
        reply.feed(event)
    reply.end()
    return to.getvalue()


def deltas(*texts: str, attempt: int = 1) -> list[AnyEvent]:
    made: list[AnyEvent] = [TurnStarted(**IDS, attempt=attempt, worker=f"w{attempt}")]
    offset = 0
    for text in texts:
        made.append(TextDelta(**IDS, attempt=attempt, text=text, offset=offset))
        offset += len(text)
    return made


def test_a_reply_is_printed_once_and_whole() -> None:
    """The deltas, and nothing again at the end."""
    events = [*deltas("Hel", "lo ", "there"), TurnCompleted(**IDS, text="Hello there")]

    assert shown(*events, prefix="Grok  ") == "Grok  Hello there\n"


def test_events_seen_again_are_not_printed_again() -> None:
    """A reader that resumes a little too early shows nothing twice."""
    first = deltas("Hel", "lo")

    assert shown(*first, *first[1:], TurnCompleted(**IDS, text="Hello")) == "Hello\n"


def test_a_new_attempt_begins_on_a_new_line_and_says_who() -> None:
    """What the first attempt showed stays readable as void."""
    events = [*deltas("Half a "), *deltas("All of it", attempt=2)]

    assert shown(*events) == "Half a \n[w2 starts over: attempt 2]\nAll of it\n"


def test_a_text_that_turns_out_otherwise_is_printed_anew() -> None:
    """What is shown last is what was committed, also after deltas that were lost."""
    events = [*deltas("One two"), TurnCompleted(**IDS, text="One and two")]

    assert shown(*events) == "One two\nOne and two\n"


def test_a_failure_is_told() -> None:
    """The code and the text of the failure stand on a line of their own."""
    failed = TurnFailed(**IDS, code="auth", message="no key")

    assert shown(*deltas("Ab"), failed) == "Ab\n[failed: auth: no key]\n"


def test_progress_stands_on_lines_of_its_own() -> None:
    """Reasoning, and tools of both sides; the reply goes on behind them and is not repeated."""
    reply = deltas("Let me ", "look. ", "It is sunny.")
    events = [
        reply[0],
        ReasoningSummaryDelta(**IDS, text="Where "),
        ReasoningSummaryDelta(**IDS, text="is it?"),
        *reply[1:3],
        ServerToolStarted(**IDS, call_id="1", name="web_search"),
        ServerToolFinished(**IDS, call_id="1", name="web_search"),
        ServerToolStarted(**IDS, call_id="2", name="x_search"),
        ServerToolFinished(**IDS, call_id="2", name="x_search", ok=False),
        reply[3],
        TurnCompleted(**IDS, text="Let me look. It is sunny."),
    ]

    assert shown(*events).splitlines() == [
        "thinks: Where is it?",
        "Let me look. ",
        "[the provider runs web_search]",
        "[the provider runs x_search]",
        "[x_search failed]",
        "It is sunny.",
    ]


def test_a_new_attempt_is_shown_whole() -> None:
    """Also where it begins as the one before it, and comes in one piece."""
    events = [*deltas("Half "), *deltas("Half and half", attempt=2)]

    assert shown(*events).splitlines() == ["Half ", "[w2 starts over: attempt 2]", "Half and half"]


def test_sources_are_listed_once() -> None:
    """Behind the reply, in the order of the text; nothing in them moves the cursor."""
    cited = (
        Citation(url="https://a.b/\x1b[2J", title="1", start=2, end=9),
        Citation(url="https://example.com"),
        Citation(url="https://a.b/\x1b[2J", title="3", start=12, end=19),
    )
    end = TurnCompleted(**IDS, text="Ab", citations=cited)

    assert shown(*deltas("Ab"), end).splitlines() == [
        "Ab",
        "[1 https://a.b/\N{REPLACEMENT CHARACTER}[2J]",
        "[https://example.com]",
    ]


def test_totals_tell_of_reasoning_and_of_server_side_tools() -> None:
    """What a context keeps of it, and how often the provider ran its tools; only where it did."""
    totals = Totals(
        turns=1,
        reasoning_bytes=12_345,
        usage=Usage(server_tool_calls=3),
        abandoned=Usage(server_tool_calls=1),
    )

    plain = str(output.totals_table(Totals(turns=1)).caption)
    assert "server-side" not in plain
    assert "reasoning" not in plain
    assert str(output.totals_table(totals).caption).endswith(
        "; calls of server-side tools: 4; reasoning in the context: 12,345 bytes"
    )


def test_lines_are_broken_between_words_on_a_terminal() -> None:
    """A word that comes in pieces is not torn."""
    text = shown(*deltas("one two thr", "ee four"), width=12)

    assert text == "one two \nthree four\n"


@pytest.mark.parametrize("code", ["\x1b", "\x07", "\x08", "\x9b", "\x00", "\x7f"])
def test_replies_cannot_steer_the_terminal(code: str) -> None:
    """Control characters of a model or user are shown as what they are: no text."""
    assert code not in shown(*deltas(f"a{code}[31mb"))
    assert "[31mb" in shown(*deltas(f"a{code}[31mb"))


def test_markup_in_a_reply_is_text() -> None:
    """Brackets are not taken for styles."""
    assert shown(*deltas("[bold]no[/bold] :smile:")) == "[bold]no[/bold] :smile:\n"


def test_costs_show_enough_digits() -> None:
    """Small sums are not rounded to nothing."""
    assert output.dollars(Usage(cost_usd_ticks=4_387_500)) == "$0.000439"
    assert output.dollars(Usage(cost_usd_ticks=123_456_789_000)) == "$12.3457"


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [(3, "3 ms"), (1500, "1.5 s"), (150_000, "2 min"), (3 * 3_600_000, "3.0 h")],
)
def test_durations_have_the_unit_that_fits(milliseconds: float, words: str) -> None:
    """From milliseconds to hours."""
    assert output.duration(milliseconds) == words


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\u202eb", "a\u200bb", "a\x9bb", "a\rb"])
def test_a_foreign_name_stays_on_its_line_and_shows(name: str) -> None:
    """A line feed in it splits no line, and nothing in it moves the cursor or hides."""
    assert re.fullmatch("a\N{REPLACEMENT CHARACTER}(\\[2J)?b", output.word(name))


def test_a_failure_moves_no_cursor() -> None:
    """It may repeat what was typed, or what others wrote."""
    told = io.StringIO()
    Failed("nothing is known of \x1b[2J\u202e\rc").show(told)

    assert "\x1b" not in told.getvalue()
    assert told.getvalue().endswith("c\n")


def test_a_text_does_not_turn_the_writing_round() -> None:
    """Marks of direction within a language stay; what overrides it does not."""
    assert output.printable("a\u202eb\u2066c\u200fd") == "a\ufffdb\ufffdc\u200fd"
