"""docs/guarantees.md: each promise has tests and code, and the page's lists and links are true."""

import re
from pathlib import Path

import pytest

from tests.support import promises
from tests.support.recordings import REPOSITORY

SECTIONS = promises.sections(promises.PAGE.read_text())
NUMBERS = [f"P{number}" for number in range(1, 14)]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def pages() -> list[Path]:
    found = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob(".github/*.md")]
    return sorted([*found, *(REPOSITORY / "docs").rglob("*.md"), *REPOSITORY.glob("tests/*.md")])


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_all_promises_stand_on_the_page() -> None:
    """In their order, once each."""
    assert list(SECTIONS) == NUMBERS


def test_the_lists_of_tests_are_those_of_the_markers() -> None:
    """Whoever marks, renames or removes a test runs `ops/run guarantees`."""
    page = promises.PAGE.read_text()

    assert promises.written(page, promises.holders()) == page


@pytest.mark.parametrize("promise", NUMBERS)
def test_a_promise_has_tests_and_code(promise: str) -> None:
    """A test that fails when the promise is broken, and places in the code that are there."""
    section = SECTIONS[promise]

    assert [holder for holder in promises.holders() if holder.promise == promise]
    assert promises.CODE.findall(section)
    assert promises.missing_code(section) == []


def test_no_marker_names_an_unknown_promise() -> None:
    """A misspelt marker would hold nothing."""
    assert {holder.promise for holder in promises.holders()} - set(NUMBERS) == set()


def test_code_that_is_gone_is_found(tmp_path: Path) -> None:
    """A file, a method or an invariant that was renamed leaves a dead link."""
    (tmp_path / "a.py").write_text("class A:\n    x: int = 1\n    def f(self): ...\n")
    (tmp_path / "b.lua").write_text("--[[\nInvariants\n  I1  all is well\n]]\n")
    names = ["a.py A.f", "a.py A.x", "b.lua I1", "a.py A.g", "b.lua I2", "c.py A"]
    section = "".join(f"- [`{f}`](../{f}) `{s}`: x\n" for f, s in map(str.split, names))

    assert promises.missing_code(section, tmp_path) == ["a.py A.g", "b.lua I2", "c.py A"]


def test_markers_are_read_wherever_they_stand() -> None:
    """Above a function, for a whole file, or around a state machine's test case."""
    source = (
        '"""All."""\n@other\n@pytest.mark.promise("P1", "P2")\nasync def test_a():\n    """A."""\n'
        'T = pytest.mark.promise("P3")(mark(M.TestCase))\ndef test_b(): ...\n'
        'pytestmark = [pytest.mark.promise("P4")]\n'
    )

    assert [tuple(holder) for holder in promises.holders_in(source, "f")] == [
        ("P1", "f", "test_a", "A."),
        ("P2", "f", "test_a", "A."),
        ("P3", "f", "T", "All."),
        ("P4", "f", "all of f", "All."),
    ]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link of a document names a file or folder, and a heading where it says so."""
    dead = []
    for link in LINK.findall(page.read_text()):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)

    assert dead == []
