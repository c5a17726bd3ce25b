"""How rounds become rows, rows become verdicts and pictures, and bytes become text."""

import io
from typing import Literal
from xml.etree import ElementTree as ET

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.support.recordings import REPOSITORY
from turnline.ops.bench.baselines.sse import _dechunked
from turnline.ops.bench.plot import bars, curves
from turnline.ops.bench.results import (
    Burst,
    Curve,
    Report,
    Sample,
    Soak,
    point_of,
    row_of,
    slope,
)
from turnline.ops.bench.scenarios import ABOUT, ALL, is_growth, scenarios, workers_of
from turnline.ops.bench.tables import BESIDE, markdown, show
from turnline.ops.bench.verdict import budget, comparisons
from turnline.ops.chaos.figures import Figure, percentile

SVG = "{http://www.w3.org/2000/svg}"


def texts_of(drawing: str) -> list[str]:
    """All texts of an SVG file."""
    found = ET.fromstring(drawing).iter(f"{SVG}text")
    return [text for it in found if (text := "".join(it.itertext()).strip())]


def sample(**changed: object) -> Sample:
    """One round of ten turns in two seconds."""
    plain = Sample(
        turns=10,
        wrong=0,
        wall_s=2.0,
        added_first_ms=[2.0] * 10,
        worker_cpu_s=0.02,
        redis_cpu_s=0.01,
        client_cpu_s=0.03,
        model_cpu_s=0.005,
        redis_commands=900,
        redis_requests=60,
        redis_bytes=102_400,
        worker_peak_mb=70.0,
        worker_growth_mb=0.5,
        at_once=50,
    )
    return msgspec.structs.replace(plain, **changed)


def report(*samples: Sample, scenario: str = "instant-20-c10", **changed: object) -> Report:
    """A run of one scenario by Turnline."""
    plain = Report(
        command="turnline bench",
        date="2026-01-01 00:00 UTC",
        machine="2 cores",
        versions={"python": "3.11"},
        seconds=1.0,
        rest_mb={},
        rows=[row_of(scenario, "ten at once", "turnline", samples)] if samples else [],
        calls=[],
        bursts=[],
        fleets=[],
    )
    return msgspec.structs.replace(plain, **changed)


def test_a_row_is_the_median_of_its_rounds_per_turn() -> None:
    """Sums are divided by each round's own turns; the range shows the extremes."""
    rounds = [sample(), sample(wall_s=1.0), sample(turns=5, worker_cpu_s=0.01, redis_cpu_s=0.005)]
    row = row_of("s", "t", "turnline", rounds)

    assert (row.turns_per_s, row.turns_per_s_range) == (5.0, (2.5, 10.0))
    assert (row.rounds, row.turns) == (3, 25)
    assert (row.worker_cpu_ms, row.redis_cpu_ms) == (2.0, 1.0)
    assert row.own_cpu_ms_range == (3.0, 3.0)
    assert (row.redis_commands, row.redis_kb) == (90, 10.0)


def test_times_of_all_rounds_are_taken_together() -> None:
    """A slow round shows in the tail and not in the median."""
    row = row_of("s", "t", "x", [sample(), sample(), sample(added_first_ms=[50.0] * 10)])

    assert (row.added_first_p50_ms, row.added_first_p99_ms) == (2.0, 50.0)


def test_wrong_replies_are_counted() -> None:
    """Speed with wrong answers is no speed: they are summed and shown."""
    row = row_of("s", "t", "turnline", [sample(wrong=1), sample(wrong=2)])

    assert row.wrong == 3
    assert "3 WRONG" in markdown(report(sample(wrong=3)))


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_a_percentile_is_one_of_the_values(values: list[float], share: float) -> None:
    """Nothing is interpolated, and the order of the values does not matter."""
    assert percentile(values, share) in values
    assert percentile(values, share) == percentile(values[::-1], share)


def test_the_budget_tells_what_is_missed() -> None:
    """Over the limit is a NO, at the limit is not."""
    at_limit = [it.is_kept for it in budget(report(sample()))]
    above = [it.is_kept for it in budget(report(sample(worker_cpu_s=0.021)))]

    assert (at_limit, above) == ([True], [False])


def test_a_system_that_runs_turns_at_once_has_no_gap() -> None:
    """Where turns of one conversation overlap, the table says so instead of showing a number."""
    burst = Burst(
        system="floor",
        turns=10,
        gap_p50_ms=None,
        gap_p99_ms=None,
        most_at_once=7,
        kept=12,
        expected=20,
    )
    page = markdown(report(sample(), bursts=[burst]))

    assert "| floor | not in turn | 7 | 12 of 20 |" in page


def test_every_table_has_its_rows() -> None:
    """The documentation's own report has figures of each kind, and all are shown."""
    raw = (REPOSITORY / "docs/benchmarks/raw.json").read_bytes()
    made = msgspec.json.decode(raw, type=Report)
    page, printed = markdown(made), io.StringIO()
    show(made, Console(file=printed, width=200))

    for title, of, columns in BESIDE:
        assert getattr(made, of), of
        assert f"### {title[0].upper()}{title[1:]}\n\n| {' | '.join(columns)} |" in page
        assert title in printed.getvalue()
    assert "### The budget" in page


def test_the_page_states_how_it_was_made() -> None:
    """Machine, versions, date and command stand on it."""
    page = markdown(report(sample()))

    for stated in ("turnline bench", "2026-01-01 00:00 UTC", "2 cores", "python 3.11"):
        assert stated in page


def test_comparisons_name_turns_per_cpu_second() -> None:
    """Three milliseconds of CPU per turn are 333 turns per CPU-second."""
    assert any("turnline 333" in line for line in comparisons(report(sample())))


def test_bars_stand_below_their_titles_and_say_their_values() -> None:
    """The drawing is well-formed, whatever a system is called; the same twice."""
    made = report(sample())
    rows = [*made.rows, msgspec.structs.replace(made.rows[0], system="<&>", turns_per_s=12345)]
    made = msgspec.structs.replace(made, rows=rows)

    assert {"ten at once", "turnline 5", "<&> 12,345"} <= {*texts_of(bars(made))}
    assert sum(text.endswith(", logarithmic") for text in texts_of(bars(made))) == 3
    assert bars(made) == bars(made)


def test_scenarios_have_names_of_their_own_and_known_systems() -> None:
    """Both runs; and the full run leaves nothing out that the short one has."""
    short, full = scenarios(full=False), scenarios(full=True)

    for chosen in (short, full):
        assert len({it.name for it in chosen}) == len(chosen)
        assert {name for it in chosen for name in it.systems} == set(ABOUT) > set(ALL)
        assert all(it.systems[0] == "turnline" for it in chosen)
    assert {1, 10, 50} <= {it.conversations for it in short}
    assert {10, 100, 1_000, 5_000} <= {it.context for it in full}
    assert {20, 200, 10_000} <= {it.model.chunks for it in full}
    assert sum(map(is_growth, full)) == 8
    assert workers_of(full)["turnline"] == 8
    assert workers_of(full)["arq"] == 1


def curve(expected: Literal["flat", "linear"], *values: float, **changed: object) -> Curve:
    """Costs at 1, 10, 100 ..."""
    plain = Curve(
        name="c",
        title="a turn by size",
        x="size",
        y="CPU, ms",
        expected=expected,
        points=[point_of(10**n, [value]) for n, value in enumerate(values)],
    )
    return msgspec.structs.replace(plain, **changed)


@pytest.mark.parametrize(
    ("drawn", "is_kept"),
    [
        (curve("flat", 3, 2, 5, 6), True),
        (curve("flat", 3, 2, 5, 6.1), False),
        (curve("flat", 3, 3, 3, 9, judged_to=100), True),
        (curve("flat", 3, 3, 9, 9, judged_to=100), False),
        (curve("linear", 6, 15, 105, 1_005), True),
        (curve("linear", 6, 7, 17, 1_005), False),
        (curve("linear", 1, 100, 10_000, 1_000_000), False),
    ],
)
def test_a_curve_is_judged(drawn: Curve, is_kept: bool) -> None:
    """Flat is twice as much at most; linear goes on as it began; a square is neither."""
    (line,) = budget(report(curves=[drawn]))

    assert (drawn.is_as_expected, line.is_kept) == (is_kept, is_kept)


def test_growth_and_soak_are_drawn() -> None:
    """The page has a chart for each curve and for the memory, however many points there are."""
    soak = Soak(
        seconds=9,
        turns=40_000,
        wrong=0,
        rss_mb=[(n * 100, 70.0 + n) for n in range(20)],
        kb_per_1000_turns=21.0,
    )
    made = report(curves=[curve("flat", 3, 3, 3), curve("linear", 0, 1, 2)], soak=soak)
    texts = texts_of(curves(made))

    assert texts.count("A turn by size") == 2
    assert texts.count("Memory of a worker under load") == 1
    assert [line.is_kept for line in budget(made)] == [True, True, False]
    short = msgspec.structs.replace(soak, turns=2_000)
    assert list(budget(report(soak=short))) == []
    assert "growth.svg" in markdown(made)


@pytest.mark.parametrize("sizes", [(1, 4, 16, 64), (10, 100, 900), (0, 5, 700)])
def test_the_sizes_measured_stand_below_a_logarithmic_curve(sizes: tuple[int, ...]) -> None:
    """Each of them, 0 as well, and no others."""
    measured = curve("flat", points=[point_of(size, [5.0]) for size in sizes])
    texts = texts_of(curves(report(curves=[measured])))

    assert texts[: len(sizes)] == [str(size) for size in sizes]


def test_the_slope_of_noise_is_small() -> None:
    """The line closest to the points, not the one through the last."""
    assert slope([(0, 1), (1, 3), (2, 5)]) == 2
    assert slope([(0, 1), (1, 2), (2, 2), (3, 1)]) == 0
    assert slope([(1, 1), (1, 2)]) == 0


def test_a_figure_of_a_drill_has_its_bound() -> None:
    """Drills that only inform are no lines of the budget."""
    figures = [
        Figure("p50", 2.1, "s", 2.0),
        Figure("kills", 12),
    ]

    assert [(it.what, it.is_kept) for it in budget(report(drills=figures))] == [("p50", False)]


@given(st.data())
def test_the_floor_reads_chunked_bodies_however_they_are_cut(data: st.DataObject) -> None:
    """A baseline that loses text would look fast."""
    parts = data.draw(st.lists(st.binary(min_size=1, max_size=40), max_size=6))
    raw = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=5)))
    left, read, done = b"", b"", False
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        if start < end:
            left, payload, done = _dechunked(left + raw[start:end])
            read += payload

    assert (read, done) == (b"".join(parts), True)
