"""Draws grouped bars on a logarithmic axis as SVG."""

import math
from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple

COLOURS: Final = {
    "turnline": "#1f77b4",
    "arq": "#d62728",
    "arq-tuned": "#ff9896",
    "direct": "#9467bd",
    "floor": "#7f7f7f",
}
_OTHER: Final = "#17becf"
_WIDTH: Final = 930
_LEFT: Final = 360
_RIGHT: Final = 90
_BAR: Final = 13
_GAP: Final = 12
_HEAD: Final = 30


class Bar(NamedTuple):
    """One bar; `value` is above 0."""

    system: str
    value: float


class Group(NamedTuple):
    """Bars that belong together."""

    label: str
    bars: Sequence[Bar]


class Panel(NamedTuple):
    """One chart."""

    title: str
    groups: Sequence[Group]


def svg(panels: Sequence[Panel]) -> str:
    """Return a drawing with one chart below the other."""
    parts: list[str] = []
    top = 0
    for panel in panels:
        drawn, height = _panel(panel, top)
        parts += drawn
        top += height
    style = "font-family:sans-serif;font-size:11px;fill:#222"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top}" '
        f'viewBox="0 0 {_WIDTH} {top}"><rect width="100%" height="100%" fill="#fff"/>'
        f'<g style="{style}">\n' + "\n".join(parts) + "\n</g></svg>\n"
    )


def _panel(panel: Panel, top: int) -> tuple[list[str], int]:
    values = [bar.value for group in panel.groups for bar in group.bars]
    low = 10 ** math.floor(math.log10(min(values)))
    high = max(values)
    scale = (_WIDTH - _LEFT - _RIGHT) / max(0.1, math.log10(high / low))

    def length(value: float) -> float:
        return max(1.0, math.log10(value / low) * scale)

    parts = [f'<text x="8" y="{top + 18}" font-size="14">{escape(panel.title)}, logarithmic</text>']
    y = top + _HEAD
    height = sum(len(group.bars) * _BAR + _GAP for group in panel.groups)
    tick = low
    while tick <= high:
        x = _LEFT + (math.log10(tick / low) * scale)
        parts.append(
            f'<path d="M{x:.1f} {y}v{height}" stroke="#ddd"/>'
            f'<text x="{x:.1f}" y="{y + height + 10}" text-anchor="middle">{tick:g}</text>'
        )
        tick *= 10
    for group in panel.groups:
        middle = y + len(group.bars) * _BAR / 2 + 4
        parts.append(f'<text x="8" y="{middle:.0f}">{escape(group.label)}</text>')
        for bar in group.bars:
            colour = COLOURS.get(bar.system, _OTHER)
            end = _LEFT + length(bar.value)
            parts.append(
                f'<rect x="{_LEFT}" y="{y}" width="{length(bar.value):.1f}" '
                f'height="{_BAR - 2}" fill="{colour}"/>'
                f'<text x="{end + 4:.1f}" y="{y + _BAR - 3}">{escape(bar.system)} '
                f"{_number(bar.value)}</text>"
            )
            y += _BAR
        y += _GAP
    return parts, _HEAD + height + 30


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
