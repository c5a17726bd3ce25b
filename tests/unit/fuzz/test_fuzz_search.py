"""Fuzzing: what reads input withstands it, and the search finds what is there to be found."""

import secrets
from pathlib import Path

import pytest

from tests.support.lengths import length
from turnline.ops.fuzz.coverage import Edges
from turnline.ops.fuzz.mutation import MARK, mutate_bytes
from turnline.ops.fuzz.search import Found, Search, Tally, broken_rule, merged
from turnline.ops.fuzz.shares import NOTE_BYTES, noted, noting
from turnline.ops.fuzz.targets import Target, targets
from turnline.ops.fuzz.verdicts import Verdict, Violation, must

TARGETS = targets()
PARTS = length(5, 1)
RUNS = {  # of which a short run takes one part of so many
    "messages": 7_000,
    "events": 6_000,
    "stream": 3_000,
    "responses": 3_000,
    "items": 4_000,
    "entries": 4_000,
    "schemas": 1_000,
    "arguments": 4_000,
    "answers": 2_000,
    "addresses": 6_000,
}


@pytest.mark.parametrize("name", RUNS)
def test_what_reads_input_withstands_it(name: str) -> None:
    """Nothing is broken by many inputs, and some of them led to new code or outcomes."""
    seed = secrets.randbelow(1_000_000)
    print(f"seed {seed}")  # noqa: T201  shown where the test fails
    search = Search(TARGETS[name], seed=seed)
    runs = RUNS[name] // PARTS

    search.begin()
    begun = (len(search.tally.edges), len(search.tally.corpus))
    search.go_on(runs)

    tally = search.tally
    assert [(found.rule, found.data) for found in tally.found] == []
    assert tally.violations == 0
    assert tally.runs == len(TARGETS[name].seeds) + runs
    assert len(tally.edges) > begun[0] > 0
    assert len(tally.corpus) > begun[1] > 0
    assert sum(tally.refused.values()) > 0


def locked(data: bytes) -> Verdict:
    """Stands for a reader with a defect that no single change to the start corpus reaches."""
    if data[:1] != b"N":
        return Verdict()
    if data[1:2] != b"O":
        return Verdict()
    if data[2:3] != b"W":
        return Verdict()
    raise KeyError(data)


def target(check: object, *, files: tuple[str, ...] = (__file__,)) -> Target:
    return Target("planted", files, [b"aaaa", b"bb"], mutate_bytes, check)  # type: ignore[arg-type]


def test_a_planted_defect_is_found_and_made_small() -> None:
    """Step by step, each step being new code; without looking at the code it is not found."""
    guided, blind = (
        Search(target(locked, files=files), seed=1) for files in ((__file__,), ("other.py",))
    )
    runs = 0
    for search in (guided, blind):
        search.begin()
    while not guided.tally.found:
        guided.go_on(1_000)
        blind.go_on(1_000)
        runs += 1_000
        assert runs < 200_000

    assert guided.tally.found == [
        Found("planted", "KeyError in test_fuzz_search.py, locked", b"NOW")
    ]
    assert blind.tally.found == []
    assert broken_rule(target(locked), b"NOW") == "KeyError in test_fuzz_search.py, locked"
    assert broken_rule(target(locked), b"NO") is None


def test_the_same_seed_makes_the_same_inputs() -> None:
    """So that a finding can be repeated."""
    seen: list[list[bytes]] = []
    for _ in range(2):
        inputs: list[bytes] = []
        search = Search(TARGETS["stream"], seed="7/stream/0", note=inputs.append)
        search.begin()
        search.go_on(300)
        seen.append(inputs)

    assert len(set(seen[0])) > 200
    assert seen[0] == seen[1]


def quadratic(data: bytes) -> Verdict:
    """Stands for a reader that looks at all that came before, again and again."""
    for end in range(len(data)):
        for _ in range(end):
            pass
    return Verdict()


def ruled(data: bytes) -> Verdict:
    """Stands for a reader that breaks a rule."""
    must(len(data) < 3, "too long")
    return Verdict("Short", ["short"])


def test_too_much_work_and_broken_rules_are_violations() -> None:
    """Work is counted in lines, not in seconds, and each rule is named once."""
    work = Search(target(quadratic)._replace(seeds=[b"x" * 20, b"x" * 400]), seed=1)
    work.begin()
    rules = Search(target(ruled), seed=1)
    rules.begin()
    rules.go_on(50)

    assert [found.rule for found in work.tally.found] == ["more work than its length explains"]
    assert [(found.rule, len(found.data)) for found in rules.tally.found] == [("too long", 3)]
    assert rules.tally.violations > 1
    assert rules.tally.refused["Short"] > 0
    with pytest.raises(Violation, match="too long"):
        ruled(b"xxx")


def test_an_error_that_repeats_the_input_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark in the inputs is what is looked for."""
    monkeypatch.setattr("turnline.contracts.msgspec_sentences.TYPES", f"anything but {MARK}")

    assert broken_rule(TARGETS["messages"], b"{}") == "an error repeats what was sent"


def test_a_reader_that_depends_on_the_cuts_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any way of cutting a stream has to give the same events."""
    monkeypatch.setattr(
        "turnline.worker.pipeline.event_bytes.EventBytes._with_plain_newlines",
        lambda _, data: data.replace(b"\r\n", b"\n").replace(b"\r", b"\n"),  # forgets a CR
    )
    data = b'data: {"choices":[\r\ndata: {}]}\r\n\r\n'

    assert broken_rule(TARGETS["stream"], data) in {
        "other events if cut elsewhere",
        "other events if read byte by byte",
    }


def test_steps_are_counted_in_the_files_looked_at() -> None:
    """And nowhere else; the same path is no new edge."""
    here, elsewhere = Edges([__file__]), Edges(["other.py"])

    for edges in (here, elsewhere):
        edges.watch(quadratic, b"xxx")
    before = set(here.seen)
    steps = here.steps
    here.watch(quadratic, b"xxx")

    assert here.seen == before != set()
    assert here.steps == steps > 5
    assert (elsewhere.seen, elsewhere.steps) == (set(), 0)


def test_an_input_is_noted_before_it_is_run(tmp_path: Path) -> None:
    """It can be read when the process is gone."""
    path = tmp_path / "note"
    path.write_bytes(bytes(NOTE_BYTES))
    note = noting(str(path))

    note(b"long input")
    note(b"last")

    assert noted(path) == b"last"


def test_searches_beside_one_another_are_added_up() -> None:
    """What both found counts once."""
    one = Tally("t", runs=2, edges={1, 2}, corpus={"a"}, refused={"X": 1}, violations=1)
    two = Tally(
        "t", runs=3, edges={2, 3}, corpus={"a", "b"}, refused={"X": 1, "Y": 5}, violations=2
    )
    one.found = [Found("t", "rule", b"1")]
    two.found = [Found("t", "rule", b"2"), Found("t", "other", b"3")]
    two.slowest_ms = 5

    total = merged([one, two])

    assert (total.runs, total.violations, total.edges) == (5, 3, {1, 2, 3})
    assert (total.corpus, total.refused) == ({"a", "b"}, {"Y": 5, "X": 2})
    assert [found.rule for found in total.found] == ["rule", "other"]
    assert total.slowest_ms == 5
