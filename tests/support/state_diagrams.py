"""The diagrams of docs/states.md, made from the tables of `turnline.worker.states`.

`python -m tests.support.state_diagrams` writes them anew.
"""

import re
import sys
from collections.abc import Mapping
from enum import StrEnum

from tests.support.recordings import REPOSITORY
from turnline.worker.states import ENTRY, LEASE, TURN

PAGE = REPOSITORY / "docs" / "states.md"
TABLES: Mapping[str, Mapping[tuple[StrEnum, StrEnum], StrEnum]] = {
    "turn": TURN,
    "entry": ENTRY,
    "lease": LEASE,
}


def diagram(table: Mapping[tuple[StrEnum, StrEnum], StrEnum]) -> str:
    """Return a table as a mermaid diagram: events between the same two states share an arrow."""
    arrows: dict[tuple[StrEnum, StrEnum], list[str]] = {}
    for (before, event), after in table.items():
        arrows.setdefault((before, after), []).append(event.value)
    (first, _), *_ = table
    states = [*type(first)]
    lines = [f'    state "{state.value}" as {state.name}' for state in states]
    lines.append(f"    [*] --> {first.name}")
    for (before, after), events in arrows.items():
        words = "<br>".join(events).replace(":", " ·")
        lines.append(f"    {before.name} --> {after.name}: {words}")
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```", ""])


def written(page: str) -> str:
    """Return the page with its diagrams as the tables have them."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        page = pattern.sub(lambda _, b=begin, t=table, e=end: b + diagram(t) + e, page)
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
    sys.stdout.write(f"wrote {PAGE.relative_to(REPOSITORY)}\n")
