"""Writes turns as one self-contained HTML page: no script, no request, light and dark."""

import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any, Final, cast

from turnline.ops.cli import output
from turnline.ops.traces.kept_traces import TracedTurn
from turnline.ops.traces.waterfall import NOT_KEPT, Row, headline, rows

_KINDS: Final = {
    "wait": "wait",
    "chat": "chat",
    "execute_tool": "tool",
    "commit": "commit",
    "process turnline": "attempt",
    "turn": "turn",
}


def page(turns: Sequence[TracedTurn]) -> str:
    """Return the page of these turns."""
    style = (resources.files("turnline.ops.traces") / "trace_page.css").read_text("utf-8")
    title = f"Turn {turns[0].turn_id}" if len(turns) == 1 else f"{len(turns)} turns"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_safe(title)}: Turnline</title>\n<style>\n{style}</style>\n</head>\n"
        "<body>\n<main>\n<h1>Turnline traces</h1>\n"
        + "".join(map(_section, turns))
        + "</main>\n</body>\n</html>\n"
    )


def _section(turn: TracedTurn) -> str:
    facts = "".join(
        f"<div><dt>{_safe(name)}</dt><dd>{_safe(words)}</dd></div>"
        for name, words in headline(turn)
        if name != "state"
    )
    whole_ms = max(1.0, float(turn.duration_ms))
    ticks = "".join(
        f"<span>{_safe(output.duration(whole_ms * part / 4))}</span>" for part in range(5)
    )
    state = f"{turn.state}: {turn.code}" if turn.code else turn.state
    note = "" if turn.kept else f'<p class="note">{_safe(NOT_KEPT)}</p>\n'
    return (
        f'<section>\n<h2>{_safe(turn.turn_id)} <span class="badge {_safe(turn.state)}">'
        f"{_safe(state)}</span></h2>\n<dl>{facts}</dl>\n"
        f'<div class="scale"><span></span><span class="ticks">{ticks}</span><span></span></div>\n'
        + "".join(_row(row, whole_ms) for row in rows(turn))
        + note
        + "</section>\n"
    )


def _row(row: Row, whole_ms: float) -> str:
    kinds = _KINDS.get(row.kind, "other") + (" error" if row.span.error else "")
    left = min(99.7, max(0.0, 100 * row.offset_ms / whole_ms))
    width = min(100 - left, 100 * row.duration_ms / whole_ms)
    took = (
        f"{row.duration_ms:.1f} ms" if row.duration_ms < 100 else output.duration(row.duration_ms)
    )
    values: dict[str, Any] = {"begins at": f"{row.offset_ms:.1f} ms", **row.span.attributes}
    for event in row.span.events:
        values[event.name] = json.dumps(event.attributes)
    values["span"] = row.span.span_id
    for number, link in enumerate(row.span.links, 1):
        values[f"link {number}"] = f"trace {link.trace_id}, span {link.span_id}"
    cells = "".join(
        f"<tr><td>{_safe(name)}</td><td>{_safe(_shown(value))}</td></tr>"
        for name, value in values.items()
    )
    return (
        f'<details class="{kinds}"><summary>'
        f'<span class="name" style="padding-left:{row.depth * 1.1:.1f}rem">'
        f"{_safe(row.span.name)}</span>"
        f'<span class="track"><span class="bar" style="left:{left:.2f}%;width:{width:.2f}%">'
        f'</span><span class="says">{_safe(row.details)}</span></span>'
        f'<span class="took">{_safe(took)}</span></summary>'
        f"<table>{cells}</table></details>\n"
    )


def _shown(value: Any) -> str:
    return (
        ", ".join(map(str, cast("list[object]", value))) if isinstance(value, list) else str(value)
    )


def _safe(words: str) -> str:
    return escape(output.printable(words), quote=True)
