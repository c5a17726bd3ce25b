"""What people see: consoles, replies that appear as they stream, numbers in words."""

import os
import re
import sys
import time
from collections.abc import Collection, Sequence
from typing import Final, Protocol

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from turnline.contracts.conversation import (
    INVISIBLE,
    Citation,
    Content,
    TextPart,
    Totals,
    Usage,
)
from turnline.contracts.protocol import TextAssembler
from turnline.contracts.replies import (
    AnyEvent,
    AnyTerminal,
    History,
    Rating,
    ReasoningSummaryDelta,
    ServerToolFinished,
    ServerToolStarted,
    ToolCallStarted,
    TurnAbsorbed,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnStarted,
)

_WIDTH_OF_FILES: Final = 160
"""Columns where there is no terminal to ask."""
_PIECES: Final = re.compile(r"\s+|\S+")
_CONTROLS: Final = {
    code: "\N{REPLACEMENT CHARACTER}"
    for code in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    if code != 10
} | {9: " ", 13: ""}
_UNSEEN: Final = re.compile(f"[{INVISIBLE}]")


class Origin(Protocol):
    """The turn that a message came with."""

    @property
    def turn_id(self) -> str:
        """Its id."""
        ...

    @property
    def accepted_at_ms(self) -> int:
        """When it was accepted."""
        ...

    @property
    def finished_at_ms(self) -> int | None:
        """When it ended."""
        ...


def console(*, stderr: bool = False) -> Console:
    """Return a console that prints texts as they are; NO_COLOR and COLUMNS are heeded."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _WIDTH_OF_FILES
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=width)


def say(to: Console, text: str | Text, style: str = "") -> None:
    """Print a paragraph, broken between words on a terminal and not at all in a file."""
    to.print(Text(text, style) if isinstance(text, str) else text, soft_wrap=not to.is_terminal)


def printable(text: str) -> str:
    """Return a text that cannot move the cursor, colour the terminal or turn the writing round."""
    return text.translate(_CONTROLS)


def word(name: str) -> str:
    """Return an id or a name on one line, with a mark for what would not show."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", name)


def table(
    *columns: str,
    title: str | None = None,
    numbers: tuple[str, ...] = (),
    whole: tuple[str, ...] = (),
) -> Table:
    """Return an empty table; columns in `numbers` are to the right, those in `whole` not broken."""
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in columns:
        made.add_column(
            column,
            justify="right" if column in numbers else "left",
            overflow="fold",
            no_wrap=column in whole,
        )
    return made


def plain(content: Content | None) -> str:
    """Return the words of a message's content; images are named, not shown."""
    if content is None or isinstance(content, str):
        return content or ""
    return " ".join(part.text if isinstance(part, TextPart) else "[image]" for part in content)


def dollars(usage: Usage) -> str:
    """Return the cost, with as many digits as it takes to see it; "unknown" if nothing is known."""
    cost = usage.cost_usd
    if cost is None:
        return "unknown"
    least = "at least " if usage.unpriced_calls else ""
    return f"{least}${cost:.6f}" if cost < 0.01 else f"{least}${cost:.4f}"


def tokens(usage: Usage) -> str:
    """Return a sentence about the tokens of a turn."""
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    read = f"{usage.prompt_tokens} in{cached}, " if usage.prompt_tokens else ""
    reasoning = f" + {usage.reasoning_tokens} reasoning" if usage.reasoning_tokens else ""
    return f"{read}{usage.completion_tokens} out{reasoning}"


def duration(milliseconds: float) -> str:
    """Return a span of time in the unit that fits."""
    seconds = milliseconds / 1000
    if seconds < 1:
        return f"{milliseconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def at(milliseconds: float) -> str:
    """Return a moment (ms since the Unix epoch) on this machine's clock."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(milliseconds / 1000))


def outcome(event: AnyTerminal) -> str:
    """Return how a turn ended, in a few words."""
    match event:
        case TurnCompleted():
            if event.finish_reason is None:
                return "done, nothing to answer"
            return f"completed, {tokens(event.usage)}, {dollars(event.usage)}"
        case TurnFailed():
            return f"failed: {event.code}: {event.message}"
        case TurnInterrupted():
            return f"interrupted, {tokens(event.usage)}, {event.usage_state}"
        case TurnAbsorbed():
            return f"absorbed into {event.into}" if event.into else "absorbed"


def rating(it: Rating) -> str:
    """Return what was said of a turn, in a few words."""
    score = None if it.score is None else f"{it.score:g}"
    return " ".join(["rated", f"{it.name}:", *filter(None, (score, it.label, it.explanation))])


def history_table(
    history: History,
    *,
    title: str | None = None,
    most: int | None = None,
    origins: Sequence[Origin | None] = (),
    only: Collection[int] | None = None,
) -> Table:
    """Lay out a context.

    Args:
        history: With the messages.
        title: Above it.
        most: Of long messages the first so many characters.
        origins: Whose turn each message was, for two more columns.
        only: Indices of the messages to show, if not all.
    """
    more = ("turn", "at") if origins else ()
    shown = table("#", "role", *more, "content", title=title)
    if history.system_prompt is not None and only is None:
        shown.add_row("", "system", *("" for _ in more), _shortened(history.system_prompt, most))
    for number, entry in enumerate(history.messages):
        if only is not None and number not in only:
            continue
        words = plain(entry.content)
        for call in getattr(entry, "tool_calls", ()):
            words += f"[calls {call.function.name}({call.function.arguments})]"
        mark = " [interrupted]" if number in history.interrupted else ""
        role = str(entry.__struct_config__.tag)
        whose = _origin(origins[number], role) if origins else ()
        shown.add_row(str(number), role, *whose, _shortened(words + mark, most))
    return shown


def _origin(turn: Origin | None, role: str) -> tuple[str, str]:
    """Return a message's turn and when it was said: replies at its end, others before it."""
    if turn is None:
        return "", ""
    said_at_ms = turn.finished_at_ms if role == "assistant" else turn.accepted_at_ms
    return word(turn.turn_id), at(said_at_ms or turn.accepted_at_ms)


def _shortened(text: str, most: int | None) -> str:
    return printable(text if most is None or len(text) <= most else text[: most - 1] + "…")


def totals_table(totals: Totals) -> Table:
    """Lay out totals: what answers took, and what was spent without one."""
    rows = [("answers", totals.usage)]
    if totals.abandoned != Usage():
        rows.append(("abandoned attempts", totals.abandoned))
    columns = ("", "input", "of it cached", "output", "reasoning", "total", "cost")
    shown = table(*columns, numbers=columns[1:])
    for name, usage in rows:
        shown.add_row(
            name,
            f"{usage.prompt_tokens:,}",
            f"{usage.cached_tokens:,}",
            f"{usage.completion_tokens:,}",
            f"{usage.reasoning_tokens:,}",
            f"{usage.total_tokens:,}",
            dollars(usage),
        )
    shown.caption = (
        f"turns: {totals.turns}, calls: {totals.calls} ({totals.reported_calls} reported by the "
        f"provider, {totals.estimated_calls} estimated, {totals.unknown_calls} unknown)"
    )
    if unpriced := totals.usage.unpriced_calls + totals.abandoned.unpriced_calls:
        shown.caption += f"; cost unknown for {unpriced}"
    if tools := totals.usage.server_tool_calls + totals.abandoned.server_tool_calls:
        shown.caption += f"; calls of server-side tools: {tools:,}"
    if totals.reasoning_bytes:
        shown.caption += f"; reasoning in the context: {totals.reasoning_bytes:,} bytes"
    shown.caption_justify = "left"
    return shown


def sources(citations: Sequence[Citation]) -> list[str]:
    """Return the sources of a reply in words, each once."""
    titles = {it.url: it.title for it in reversed(citations)}
    return [f"{titles[url]} {url}".strip() for url in dict.fromkeys(it.url for it in citations)]


def unknown(conversation_id: str) -> str:
    """Return what is said of a conversation that there is not."""
    return (
        f"nothing is known of conversation {conversation_id}: it never had a message, was "
        "forgotten, or is past its retention"
    )


class ReplyPrinter:
    """Prints one turn's reply as it comes in; a new attempt begins on a new line.

    On a terminal lines are broken between words, so a word is shown when its end is known.
    """

    def __init__(self, to: Console, prefix: str = "") -> None:
        """Print to a console; `prefix` stands before the reply."""
        self._to = to
        self._prefix = prefix
        self._reply = TextAssembler()
        self._shown = ""
        self._begun = False
        self._thinking = False
        self._column = 0
        self._word = ""
        """A word whose end has not come yet."""
        self.worker = ""
        """Name of the worker that made the last attempt."""
        self.attempts = 0

    def feed(self, event: AnyEvent) -> None:
        """Print what this event adds."""
        if isinstance(event, TurnStarted):
            if self.attempts and event.attempt > self.attempts:
                self._note(f"{event.worker} starts over: attempt {event.attempt}")
                self._shown = ""
            self.worker, self.attempts = event.worker, event.attempt
        self._progress(event)
        if self._reply.feed(event):
            self._print(self._reply.text)
        if isinstance(event, TurnCompleted | TurnInterrupted) and event.citations:
            for source in sources(event.citations):
                self._note(source)
        if isinstance(event, TurnFailed | TurnInterrupted):
            self._note(outcome(event))

    def end(self) -> None:
        """End the line."""
        if self._thinking:
            self._to.print()
            self._thinking = False
        if self._begun:
            self._put_word()
            self._to.print()
            self._begun = False

    def _print(self, text: str) -> None:
        if not text:
            return
        if self._thinking or not text.startswith(self._shown):
            self.end()
        if not text.startswith(self._shown):
            self._shown = ""
        if not self._begun:
            self._write(self._prefix, "green")
            self._begun, self._column = True, cell_len(self._prefix)
        self._flow(printable(text[len(self._shown) :]))
        self._shown = text

    def _progress(self, event: AnyEvent) -> None:
        """Print what the model does beside speaking."""
        match event:
            case ToolCallStarted():
                self._note(f"calls {event.name}")
            case ServerToolStarted():
                self._note(f"the provider runs {event.name}")
            case ServerToolFinished(ok=False):
                self._note(f"{event.name} failed")
            case ReasoningSummaryDelta():
                self._think(event.text)
            case _:
                pass

    def _think(self, text: str) -> None:
        """Print more of what the model says about its reasoning, on lines of its own."""
        if not self._thinking:
            self.end()
            self._thinking = True
            self._write("thinks: ", "dim")
        self._write(printable(text), "dim")

    def _flow(self, text: str) -> None:
        """Write text, breaking lines between words where there is a terminal."""
        if not self._to.is_terminal:
            self._write(text)
            return
        for piece in _PIECES.findall(text):
            if piece.isspace():
                self._put_word()
                self._write(piece)
                self._column = 0 if "\n" in piece else self._column + cell_len(piece)
            else:
                self._word += piece

    def _put_word(self) -> None:
        width = cell_len(self._word)
        if self._column + width > self._to.width and self._column:
            self._write("\n")
            self._column = 0
        self._write(self._word)
        self._column += width
        self._word = ""

    def _note(self, words: str) -> None:
        self.end()
        say(self._to, f"[{printable(words)}]", "dim")

    def _write(self, text: str, style: str = "") -> None:
        if text:
            self._to.print(Text(text, style), end="", soft_wrap=True)
