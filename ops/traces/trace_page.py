"""Writes turns as one self-contained HTML page: no script, no request, light and dark."""

import json
from collections.abc import Sequence
from html import escape
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
_STYLE: Final = """
:root { color-scheme: light dark; --page: #f7f7f5; --card: #fff; --ink: #1c1c1a; --soft: #6b6b66;
  --line: #e3e3de; --turn: #57606a; --attempt: #3b6fd4; --chat: #0b8f8f; --tool: #9a4bc4;
  --wait: #d99a1c; --commit: #2f8f46; --other: #9aa0a6; --error: #cf3030; }
@media (prefers-color-scheme: dark) {
  :root { --page: #161715; --card: #1f211e; --ink: #e9e9e4; --soft: #9c9d96; --line: #343631;
    --turn: #a5adb8; --attempt: #6f9bf2; --chat: #3dbdbd; --tool: #c286e6; --wait: #e6b450;
    --commit: #5cb874; --other: #7d838a; --error: #f06a6a; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 2rem 1rem 4rem; background: var(--page); color: var(--ink);
  font: 14px/1.45 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; }
h1 { font-size: 1.05rem; font-weight: 600; margin: 0 0 1.5rem; color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.25rem 1.5rem 1rem; margin-bottom: 1.5rem; }
h2 { font-size: 1.1rem; margin: 0 0 .75rem; overflow-wrap: anywhere; }
.badge { font-size: .8rem; font-weight: 600; padding: .1rem .55rem; border-radius: 99px;
  margin-left: .5rem; border: 1px solid currentColor; color: var(--commit); white-space: nowrap; }
.badge.failed { color: var(--error); }
.badge.interrupted, .badge.running, .badge.absorbed { color: var(--wait); }
dl { display: flex; flex-wrap: wrap; gap: .35rem 1.75rem; margin: 0 0 1.25rem; }
dl div { min-width: 0; }
dt { color: var(--soft); font-size: .78rem; }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.scale, summary { display: grid; grid-template-columns: minmax(9rem, 16rem) 1fr 5.5rem; gap: .75rem;
  align-items: center; }
.scale { color: var(--soft); font-size: .75rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
.scale .ticks { display: flex; justify-content: space-between; }
details { border-bottom: 1px solid var(--line); }
details:last-of-type { border-bottom: 0; }
summary { cursor: pointer; padding: .3rem 0; list-style: none; }
summary::-webkit-details-marker { display: none; }
summary:hover { background: color-mix(in srgb, var(--ink) 5%, transparent); }
summary:focus-visible { outline: 2px solid var(--attempt); outline-offset: 2px; }
.name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.took { text-align: right; font-variant-numeric: tabular-nums; color: var(--soft); }
.track { position: relative; height: 2.35rem; }
.bar { position: absolute; top: .2rem; height: .8rem; min-width: 3px; border-radius: 3px;
  background: var(--other); }
.says { position: absolute; top: 1.1rem; left: 0; right: 0; font-size: .78rem; color: var(--soft);
  overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.turn .bar { background: var(--turn); } .attempt .bar { background: var(--attempt); }
.chat .bar { background: var(--chat); } .tool .bar { background: var(--tool); }
.wait .bar { background: var(--wait); } .commit .bar { background: var(--commit); }
.error .bar { background: var(--error); } .error .name, .error .says { color: var(--error); }
table { border-collapse: collapse; margin: .25rem 0 .9rem 1rem; font-size: .82rem; width: 100%; }
td { padding: .12rem .9rem .12rem 0; vertical-align: top; overflow-wrap: anywhere; }
td:first-child { color: var(--soft); white-space: nowrap; width: 1%; }
.note { color: var(--soft); font-size: .85rem; margin: .5rem 0 0; }
@media (max-width: 40rem) { .scale, summary { grid-template-columns: 8rem 1fr 4.2rem; gap: .4rem; }
  section { padding: 1rem; } }
"""


def page(turns: Sequence[TracedTurn]) -> str:
    """Return the page of these turns."""
    title = f"Turn {turns[0].turn_id}" if len(turns) == 1 else f"{len(turns)} turns"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_safe(title)}: Turnline</title>\n<style>{_STYLE}</style>\n</head>\n"
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
