"""The promises of docs/guarantees.md: which tests hold each, read from their markers.

`python -m tests.support.promises` writes the lists of tests in the page anew.
"""

import ast
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.recordings import REPOSITORY

PAGE = REPOSITORY / "docs" / "guarantees.md"
HEADING = re.compile(r"^## (P\d+)\. ", re.MULTILINE)
CODE = re.compile(r"^- \[`([^`]+)`\]\(\.\./([^)]+)\) `([^`]+)`: ", re.MULTILINE)
BEGIN, END = "<!-- tests -->\n", "<!-- end of tests -->\n"


class Holder(NamedTuple):
    """A test that holds a promise."""

    promise: str
    file: str
    test: str
    claim: str


@functools.cache
def holders(folder: Path = REPOSITORY / "tests") -> list[Holder]:
    """Return all marked tests, sorted by file, in the order in which they stand there."""
    return [
        holder
        for path in sorted(folder.rglob("test_*.py"))
        for holder in holders_in(path.read_text(), path.relative_to(REPOSITORY).as_posix())
    ]


def holders_in(source: str, file: str) -> Iterator[Holder]:
    """Read `pytest.mark.promise(...)`: on a function, on a file, around a state machine's case."""
    module = ast.parse(source)
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for promise in _marked(*node.decorator_list):
                yield Holder(promise, file, node.name, ast.get_docstring(node) or "")
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            name = f"all of {Path(file).name}" if name == "pytestmark" else name
            for promise in _marked(node.value):
                yield Holder(promise, file, name, ast.get_docstring(module) or "")


def _marked(*nodes: ast.expr) -> Iterator[str]:
    for node in nodes:
        for call in ast.walk(node):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.promise":
                yield from (ast.literal_eval(argument) for argument in call.args)


def sections(page: str) -> dict[str, str]:
    """Return the page's sections by promise."""
    parts = HEADING.split(page)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def written(page: str, marked: list[Holder]) -> str:
    """Return the page with its lists of tests as the markers have them."""
    lists = {
        promise: "".join(
            f"- [`{name}`](../{file}): {claim.partition(chr(10))[0]}\n"
            for number, file, name, claim in marked
            if number == promise
        )
        for promise in sections(page)
    }
    parts = iter(HEADING.split(page))
    result = next(parts)
    for promise in parts:
        before, _, rest = next(parts).partition(BEGIN)
        result += f"## {promise}. {before}{BEGIN}{lists[promise]}{END}{rest.partition(END)[2]}"
    return result


def missing_code(section: str, root: Path = REPOSITORY) -> list[str]:
    """Return what a section names as the keeper of a promise and is not there."""
    missing = []
    for shown, path, name in CODE.findall(section):
        file = root / path
        if shown != path or not file.is_file() or not _defines(file, name):
            missing.append(f"{path} {name}")
    return missing


def _defines(file: Path, name: str) -> bool:
    if file.suffix == ".lua":  # an invariant of its header
        return re.search(rf"^  {re.escape(name)}  ", file.read_text(), re.MULTILINE) is not None
    body: list[ast.stmt] = ast.parse(file.read_text()).body
    for part in name.split("."):
        found = next((node for node in body if part in _names(node)), None)
        if found is None:
            return False
        body = getattr(found, "body", [])
    return True


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    return {getattr(node, "name", "")}


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(), holders()))
    sys.stdout.write(f"wrote {PAGE.relative_to(REPOSITORY)}\n")
