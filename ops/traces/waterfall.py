"""Draws a turn's spans as a waterfall: what a row says, and how it looks in a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from turnline.ops.cli import output
from turnline.ops.traces.kept_traces import TracedTurn
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.spans import Span

_BAR: Final = 36
_FULL, _THIN, _BACK = "█", "▏", "·"
_STYLES: Final = {
    "wait": "yellow",
    "chat": "cyan",
    "execute_tool": "magenta",
    "commit": "green",
    "process turnline": "blue",
    "turn": "white",
}
_SHOWN_OUTCOMES: Final = {
    "committed": "committed",
    "retry": "another attempt follows",
    "crashed": "its worker was lost",
    "handed_over": "handed over",
    "lease_lost": "lost its lease",
    "waiting": "waiting for a tool",
    "duplicate": "committed before",
    "rolled_back": "rolled back",
}


class Row(NamedTuple):
    """One span, placed."""

    span: Span
    depth: int
    offset_ms: float
    """From the beginning of the turn."""
    duration_ms: float
    details: str

    @property
    def kind(self) -> str:
        """The span's name without model or function."""
        first = self.span.name.split(" ", maxsplit=1)[0]
        return first if first in {"chat", "execute_tool"} else self.span.name


def rows(turn: TracedTurn) -> Iterator[Row]:
    """Yield the spans of a turn: each before those below it, brothers by their beginning."""
    known = {span.span_id for span in turn.spans}
    below: dict[str, list[Span]] = {}
    for span in turn.spans:
        below.setdefault(span.parent_id if span.parent_id in known else "", []).append(span)
    yield from _rows(below, "", 0, turn.began_ms * 1_000_000)


def _rows(below: Mapping[str, list[Span]], parent: str, depth: int, zero_ns: int) -> Iterator[Row]:
    for span in below.get(parent, ()):
        yield Row(
            span,
            depth,
            (span.start_ns - zero_ns) / 1e6,
            (span.end_ns - span.start_ns) / 1e6,
            ", ".join(_details(span)),
        )
        yield from _rows(below, span.span_id, depth + 1, zero_ns)


def _details(span: Span) -> Iterator[str]:
    """Yield what is worth a word in a span's row."""
    of = span.attributes
    if span.error:
        yield span.error
    if span.name == n.TURN and n.TURN_OUTCOME in of:
        yield from _turn_details(span)
    elif span.name == n.PROCESS:
        yield f"attempt {of.get(n.ATTEMPT, '?')}"
        if n.WORKER in of:
            yield f"on {of[n.WORKER]}"
        outcome = str(of.get(n.ATTEMPT_OUTCOME, ""))
        yield _SHOWN_OUTCOMES.get(outcome, outcome)
        for event in span.events:
            again = output.duration(float(event.attributes.get(n.RETRY_IN_S, 0)) * 1000)
            yield f"{event.attributes.get(n.ERROR_TYPE, '')}: again after {again}"
    elif span.name == n.REBUILD:
        count, size = of.get(n.CONTEXT_MESSAGES, 0), of.get(n.CONTEXT_BYTES, 0)
        yield f"{count} messages, {size / 1000:.1f} kB"
    elif span.name == n.AGGREGATE:
        yield f"{of.get(n.TURN_MESSAGES, 0)} messages"
    elif n.TOOL_STATE in of:
        yield str(of[n.TOOL_STATE]).replace("_", " ")
    elif span.kind == "client":
        yield from _call_details(of)


def _turn_details(span: Span) -> Iterator[str]:
    into = f" into {span.attributes[n.TURN_INTO]}" if n.TURN_INTO in span.attributes else ""
    yield f"{span.attributes[n.TURN_OUTCOME]}{into}"
    for event in span.events:
        if event.name == n.EVALUATION_EVENT:
            yield f"rates {event.attributes.get(n.TURN_ID)}: {_rating(event.attributes)}"


def _rating(of: Mapping[str, Any]) -> str:
    said = (n.EVALUATION_SCORE, n.EVALUATION_LABEL, n.EVALUATION_EXPLANATION)
    words = " ".join(str(of[name]) for name in said if name in of)
    return f"{of.get(n.EVALUATION_NAME)} {words}".strip()


def _call_details(of: Mapping[str, Any]) -> Iterator[str]:
    if n.RESPONSE_TIME_TO_FIRST_CHUNK in of:
        yield f"first chunk {output.duration(of[n.RESPONSE_TIME_TO_FIRST_CHUNK] * 1000)}"
    if of.get(n.USAGE_STATE) == "unknown":
        yield "tokens unknown"
    elif n.USAGE_OUTPUT_TOKENS in of:
        cached = of.get(n.USAGE_CACHED_TOKENS, 0)
        if n.USAGE_INPUT_TOKENS in of:
            yield f"{of[n.USAGE_INPUT_TOKENS]} in" + (f" ({cached} cached)" if cached else "")
        reasoning = of.get(n.USAGE_REASONING_TOKENS, 0)
        yield f"{of[n.USAGE_OUTPUT_TOKENS]} out" + (
            f" ({reasoning} reasoning)" if reasoning else ""
        )
        if of.get(n.USAGE_STATE) == "estimated":
            yield "estimated"
    if of.get(n.USAGE_COST_AMOUNT):
        yield f"${of[n.USAGE_COST_AMOUNT]:.6f}"
    for reason in of.get(n.RESPONSE_FINISH_REASONS, ()):
        yield str(reason)
    if of.get(n.CALL_OUTCOME) in {"cancelled", "interrupted"}:
        yield str(of[n.CALL_OUTCOME])


def headline(turn: TracedTurn) -> list[tuple[str, str]]:
    """Return what is to be said of the turn as a whole: names and words."""
    attempts = turn.attempts or next(
        (s.attributes.get(n.TURN_ATTEMPTS, 0) for s in turn.spans if s.name == n.TURN), 0
    )
    facts = [
        ("conversation", turn.conversation_id),
        ("trace", turn.trace_id),
        ("state", f"{turn.state} ({turn.code})" if turn.code else turn.state),
        ("accepted", output.at(turn.began_ms)),
        ("took", output.duration(turn.duration_ms)),
        ("attempts", str(attempts)),
    ]
    if words := ", ".join(_spent(turn)):
        facts.append(("tokens", words))
    return facts


def _spent(turn: TracedTurn) -> Iterator[str]:
    """Yield what the model calls cost, as far as it is known."""
    usage = turn.usage
    if usage.prompt_tokens or usage.completion_tokens or usage.reasoning_tokens:
        yield output.tokens(usage)
    if usage.cost_usd_ticks:
        yield output.dollars(usage)
    elif usage.unpriced_calls:
        yield "cost unknown"
    states = [span.attributes.get(n.USAGE_STATE) for span in turn.spans if span.kind == "client"]
    for state in ("estimated", "unknown"):
        if count := states.count(state):
            yield f"{state} for {count} call{'s' if count > 1 else ''}"


def bar(row: Row, whole_ms: float, width: int) -> tuple[int, int]:
    """Return a row's bar: where it begins and how long it is, in columns; 0 is a hairline."""
    scale = width / whole_ms if whole_ms > 0 else 0.0
    begin = min(width - 1, max(0, int(row.offset_ms * scale)))
    return begin, min(width - begin, round(row.duration_ms * scale))


def draw(turn: TracedTurn, to: Console) -> Group:
    """Return a turn as it is printed."""
    title = Text("turn ", style="bold")
    title.append(output.word(turn.turn_id))
    facts = Text()
    for name, words in headline(turn):
        facts.append(f"{name} ", style="dim")
        style = "red" if name == "state" and turn.state == "failed" else ""
        facts.append(output.printable(words) + "   ", style=style)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="dim", show_edge=False)
    width = max(16, min(_BAR, to.width // 4))
    table.add_column("span", no_wrap=True, overflow="ellipsis", max_width=34)
    table.add_column("", no_wrap=True, min_width=width)
    table.add_column("at", justify="right", no_wrap=True)
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    whole_ms = max(1.0, float(turn.duration_ms))
    for row in rows(turn):
        style = "red" if row.span.error else _STYLES.get(row.kind, "dim")
        begin, length = bar(row, whole_ms, width)
        drawn = Text(_BACK * begin, style="dim")
        drawn.append(_FULL * length or _THIN, style=style)
        drawn.append(_BACK * (width - begin - max(1, length)), style="dim")
        table.add_row(
            Text("  " * row.depth + output.printable(row.span.name), style=style),
            drawn,
            _ms(row.offset_ms),
            _ms(row.duration_ms),
            Text(output.printable(row.details), style="red" if row.span.error else ""),
        )
    notes = [] if turn.kept else [Text(NOT_KEPT, style="dim")]
    return Group(title, facts, Text(), table, *notes)


NOT_KEPT: Final = (
    "No trace of this turn is kept (any more): this is what its record and the ledger tell."
)


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.1f} ms" if milliseconds < 100 else output.duration(milliseconds)
