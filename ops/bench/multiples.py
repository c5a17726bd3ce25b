"""Draws small charts of one curve each, beside and below each other, as SVG."""

import math
from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple

_WIDTH: Final = 860
_COLUMNS: Final = 3
_CHART: Final = _WIDTH / _COLUMNS
_HEIGHT: Final = 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 46, 34
_COLOUR: Final = "#1f77b4"
_GREY: Final = "#7f7f7f"


class Chart(NamedTuple):
    """One curve; no value is negative."""

    title: str
    x: str
    y: str
    points: Sequence[tuple[float, float, float, float]]
    """(x, y, lowest y, highest y), by ascending x."""
    is_log: bool = False
    """Whether x is shown in powers of ten; y never is."""
    beside: Sequence[tuple[float, float]] = ()
    """Another curve (x, y) to compare with, drawn in grey."""


class _Axis:
    """Maps values to places: from 0 on a line, or in powers of ten."""

    def __init__(
        self, values: Sequence[float], start: float, end: float, *, is_log: bool = False
    ) -> None:
        least = min((value for value in values if value > 0), default=1.0)
        self._high = max(*values, least * 2)
        self._is_log = is_log
        self._has_zero = min(values) <= 0
        self._low = least / 10 if self._has_zero else least
        self._start = start
        self._scale = (end - start) / (math.log10(self._high / self._low) if is_log else self._high)

    def at(self, value: float) -> float:
        """Return where a value is; 0 stands at the beginning of a logarithmic axis."""
        if self._is_log:
            return self._start + math.log10(max(value, self._low) / self._low) * self._scale
        return self._start + value * self._scale

    def ticks(self) -> list[float]:
        """Return the values to be written."""
        if not self._is_log:
            return [0.0, self._high / 2, self._high]
        first, last = math.ceil(math.log10(self._low)), math.floor(math.log10(self._high))
        powers = [10.0**n for n in range(first, last + 1) if 2 * 10.0**n < self._high]
        return [*([0.0, *powers[1:]] if self._has_zero else powers), self._high]


def multiples(charts: Sequence[Chart]) -> str:
    """Return a drawing with all charts."""
    rows = math.ceil(len(charts) / _COLUMNS)
    parts = [
        line
        for n, chart in enumerate(charts)
        for line in _chart(chart, n % _COLUMNS * _CHART, n // _COLUMNS * _HEIGHT)
    ]
    height = rows * _HEIGHT
    style = "font-family:sans-serif;font-size:10px;fill:#222"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}"><rect width="100%" height="100%" fill="#fff"/>'
        f'<g style="{style}">\n' + "\n".join(parts) + "\n</g></svg>\n"
    )


def _chart(chart: Chart, left: float, top: float) -> list[str]:
    bottom = top + _HEIGHT - _BOTTOM
    right = left + _CHART - _RIGHT
    middle, low = (left + _LEFT + right) / 2, bottom + 28
    sizes = [point[0] for point in chart.points]
    xs = _Axis(sizes, left + _LEFT, right, is_log=chart.is_log)
    # Costs are shown from 0: a flat curve has to look flat.
    heights = [value for point in (*chart.points, *chart.beside) for value in point[1:]]
    ys = _Axis(heights, bottom, top + _TOP)
    marks = [(xs.at(x), ys.at(y)) for x, y, _, _ in chart.points]
    parts = [
        f'<text x="{left + 8:.1f}" y="{top + 16:.1f}" font-size="12">{escape(chart.title)}</text>',
        f'<text x="{left + 8:.1f}" y="{top + 30:.1f}" fill="#666">{escape(chart.y)}</text>',
        f'<text x="{middle:.1f}" y="{low:.1f}" text-anchor="middle">{escape(chart.x)}</text>',
        f'<path d="M{left + _LEFT:.1f} {bottom:.1f}H{right:.1f}" stroke="#999"/>',
    ]
    for value in ys.ticks():
        y = ys.at(value)
        parts.append(
            f'<path d="M{left + _LEFT:.1f} {y:.1f}H{right:.1f}" stroke="#ddd"/>'
            f'<text x="{left + _LEFT - 4:.1f}" y="{y + 3:.1f}" text-anchor="end">'
            f"{_short(value)}</text>"
        )
    parts += [
        f'<text x="{xs.at(value):.1f}" y="{bottom + 13:.1f}" text-anchor="middle">'
        f"{_short(value)}</text>"
        for value in xs.ticks()
    ]
    if chart.beside:
        other = " ".join(f"{xs.at(x):.1f},{ys.at(y):.1f}" for x, y in chart.beside)
        parts.append(f'<polyline points="{other}" fill="none" stroke="{_GREY}"/>')
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in marks)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{_COLOUR}" stroke-width="2"/>')
    if len(marks) <= 12:
        for (x, y), (_, _, least, most) in zip(marks, chart.points, strict=True):
            parts.append(
                f'<path d="M{x:.1f} {ys.at(least):.1f}V{ys.at(most):.1f}" stroke="{_COLOUR}"/>'
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{_COLOUR}"/>'
            )
    return parts


def _short(number: float) -> str:
    if number >= 1_000_000:
        return f"{number / 1_000_000:.3g}M"
    if number >= 10_000:
        return f"{number / 1_000:.3g}k"
    return f"{number:.0f}" if number >= 100 else f"{number:.2g}"
