"""Draws a report as SVG: bars by scenario, and small curves."""

# pyright: reportUnknownMemberType=false
# Matplotlib has types, but not for every argument.

import io
import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from turnline.ops.bench.results import Curve, Report, Row

_COLOURS: Final = {
    "turnline": "#1f77b4",
    "responses": "#2ca02c",
    "arq": "#d62728",
    "arq-tuned": "#ff9896",
    "direct": "#9467bd",
    "floor": "#7f7f7f",
}
_OTHER: Final = "#17becf"
_COLUMNS: Final = 3
_BARS: Final[Sequence[tuple[str, Callable[[Row], float]]]] = (
    ("Turns per second (more is better)", lambda row: row.turns_per_s),
    ("Added time to first delta, p50, ms (less is better)", lambda row: row.added_first_p50_ms),
    ("CPU of worker and Redis per turn, ms (less is better)", lambda row: row.own_cpu_ms),
)
_STYLE: Final[dict[Any, Any]] = {
    "axes.titlesize": "small",
    "axes.titlelocation": "left",
    "font.size": 8,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "turnline",  # the same report gives the same file
}


class _Line(NamedTuple):
    """One curve; no value is negative."""

    title: str
    x: str
    points: Sequence[tuple[float, float, float, float]]
    """(x, y, lowest y, highest y), by ascending x."""
    is_log: bool = False
    """Whether x is shown in powers of ten; y never is."""
    beside: Sequence[tuple[float, float]] = ()
    """Another curve (x, y) to compare with, drawn in grey."""


@mpl.rc_context(_STYLE)
def bars(report: Report) -> str:
    """Return a drawing of the scenarios: one chart for each figure."""
    names = dict.fromkeys(row.scenario for row in report.rows)
    lines = len(report.rows) + len(names)
    figure = Figure(figsize=(9.5, (lines * 0.145 + 0.7) * len(_BARS)), layout="constrained")
    axes = figure.subplots(len(_BARS), squeeze=False)
    for (title, value), ax in zip(_BARS, axes.flat, strict=True):
        groups = [[row for row in report.rows if row.scenario == name] for name in names]
        _groups(groups, value, ax)
        ax.set_title(f"{title}, logarithmic")
    return _svg(figure)


def _groups(groups: Sequence[Sequence[Row]], value: Callable[[Row], float], ax: Axes) -> None:
    ticks: dict[float, str] = {}
    line = 0
    for group in groups:
        rows = [row for row in group if value(row) > 0.02]  # nothing to see, on such an axis
        ticks[line + (len(rows) - 1) / 2] = group[0].title
        for row in rows:
            drawn = ax.barh(line, value(row), color=_COLOURS.get(row.system, _OTHER))
            ax.bar_label(drawn, [f"{row.system} {_number(value(row))}"], padding=3)
            line += 1
        line += 1
    ax.set(xscale="log", ylim=(line - 1, -1))
    ax.set_yticks(list(ticks), list(ticks.values()))
    ax.margins(x=0.2)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="x", alpha=0.4)


@mpl.rc_context(_STYLE)
def curves(report: Report) -> str:
    """Return a drawing of how costs grow, and of the memory under load."""
    lines = [*map(_growth, report.curves)]
    if report.soak is not None:
        seen = [(float(turns), mb, mb, mb) for turns, mb in report.soak.rss_mb]
        lines.append(_Line("Memory of a worker under load\nMB", "turns so far", seen))
    rows = math.ceil(len(lines) / _COLUMNS)
    figure = Figure(figsize=(9.5, 2.3 * rows), layout="constrained")
    axes = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    for line, ax in zip(lines, axes, strict=False):
        _curve(line, ax)
    for ax in axes[len(lines) :]:
        ax.set_axis_off()
    return _svg(figure)


def _growth(it: Curve) -> _Line:
    return _Line(
        f"{it.title[0].upper()}{it.title[1:]}\n{it.y}: {it.judged}",
        it.x,
        [(point.x, point.y, *point.y_range) for point in it.points],
        is_log=it.expected == "flat",  # a line would not look like one
        beside=[(point.x, point.y) for point in it.floor],
    )


def _curve(line: _Line, ax: Axes) -> None:
    xs, ys, least, most = zip(*line.points, strict=True)
    if line.is_log:
        ax.set_xscale("symlog", linthresh=min(x for x in xs if x > 0))  # 0 has a place on it
        ax.set_xticks(xs)
        ax.minorticks_off()
    if line.beside:
        ax.plot(*zip(*line.beside, strict=True), color=_COLOURS["floor"])
    spread = [[y - low for y, low in zip(ys, least, strict=True)]]
    spread.append([high - y for y, high in zip(ys, most, strict=True)])
    ax.errorbar(xs, ys, spread, color=_COLOURS["turnline"], marker="o" if len(xs) <= 12 else "")
    ax.set(title=line.title, xlabel=line.x)
    ax.set_ylim(0, max(most) * 1.1)  # a flat curve has to look flat
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.grid(alpha=0.4)


def _svg(figure: Figure) -> str:
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
