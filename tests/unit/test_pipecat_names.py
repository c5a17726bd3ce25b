"""The table of pipecat's names in the documentation is whole, and true."""

import ast
import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

HERE = Path(__file__).parent
ROW = re.compile(r"^\| `(\w+)` \| (?:`([\w.]+)`|-) \| (.*) \|$")


class Name(NamedTuple):
    """A class or function of the original."""

    module: str
    name: str
    fields: list[str] | None
    """Parameters of the constructor of a dataclass."""
    methods: dict[str, list[str] | None]
    """Parameters by method; None: a property."""


def parameters(text: str) -> list[str]:
    """`a, *, b=(1, 2)` as its parts."""
    return [part for part in re.split(r",\s*(?![^()\[\]]*[)\]])", text) if part]


def names() -> list[Name]:
    """What the original has."""
    found: list[Name] = []
    module = ""
    for line in (HERE / "pipecat_names.txt").read_text().splitlines():
        if line.startswith("["):
            module = line.strip("[]")
        elif member := re.fullmatch(r"  (property )?(\w+)\((.*)\)", line):
            found[-1].methods[member[2]] = None if member[1] else parameters(member[3])
        elif named := re.fullmatch(r"(\w+)(?:\((.*)\))?", line):
            fields = None if named[2] is None else parameters(named[2])
            found.append(Name(module, named[1], fields, {}))
    return found


def rows() -> dict[tuple[str, str], tuple[str | None, str]]:
    """What the documentation says: where a name is here, and the remark."""
    found: dict[tuple[str, str], tuple[str | None, str]] = {}
    module = ""
    for line in (HERE.parents[1] / "docs" / "pipecat.md").read_text().splitlines():
        if line.startswith("### "):
            module = line.removeprefix("### ")
        elif row := ROW.fullmatch(line):
            found[module, row[1]] = (row[2], row[3])
    return found


NAMES = names()
ROWS = rows()


def test_every_name_has_a_row_and_no_other_has() -> None:
    """In the original's order, once each."""
    assert list(ROWS) == [(it.module, it.name) for it in NAMES]
    assert len(NAMES) > 130


def target(path: str) -> Any:
    """The object that a path names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


MODULES = sorted({path.rpartition(".")[0] for path, _ in ROWS.values() if path})


@pytest.mark.parametrize(
    "it", [it for it in NAMES if not ROWS[it.module, it.name][0]], ids=lambda it: it.name
)
def test_what_is_not_here_is_not_here_for_a_reason(it: Name) -> None:
    """A dash has a reason, and is no leftover."""
    assert ROWS[it.module, it.name][1]
    for module in MODULES:
        assert not hasattr(importlib.import_module(module), it.name)


def default_of(text: str) -> object:
    """A default as a value, if it is a plain one."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return ...


def check_call(given: list[str], made: Any, missing: set[str]) -> None:
    """Whatever may be given there may be given here, and means the same."""
    taken = dict(inspect.signature(made).parameters)
    taken.pop("self", None)
    order = [name for name, it in taken.items() if it.kind is it.POSITIONAL_OR_KEYWORD]
    position, keywords_only = 0, False
    for part in given:
        name, _, default = part.partition("=")
        if name.startswith("**") or name == "/":
            continue
        if name.startswith("*"):
            keywords_only = True
            continue
        if name in missing:
            continue
        if any(it.kind is it.VAR_KEYWORD for it in taken.values()) and name not in taken:
            assert keywords_only or default, name
            continue
        assert name in taken or (not default and len(given) == 1), name
        if name not in taken:
            continue
        if not keywords_only and taken[name].kind is not inspect.Parameter.KEYWORD_ONLY:
            assert order[position] == name
        position += 1
        expected = default_of(default) if default else ...
        if expected is not ... and taken[name].default is not inspect.Parameter.empty:
            assert taken[name].default == expected, name
    for name, it in taken.items():
        known = [part.partition("=")[0] for part in given]
        optional = it.default is not it.empty or it.kind in {it.VAR_KEYWORD, it.VAR_POSITIONAL}
        assert optional or name in known or len(given) == 1, f"{name} is wanted here only"


@pytest.mark.parametrize(
    "it", [it for it in NAMES if ROWS[it.module, it.name][0]], ids=lambda it: it.name
)
def test_what_is_here_takes_what_it_takes_there(it: Name) -> None:
    """Every public method is there or said to be missing, with the same parameters."""
    path, remark = ROWS[it.module, it.name]
    assert path is not None
    made = target(path)
    lists = re.findall(r"[Ww]ithout ((?:`\w+`(?:, )?)+)", remark)
    missing = set(re.findall(r"\w+", " ".join(lists)))
    if it.fields is not None and (dataclasses.is_dataclass(made) or not _is_struct(made)):
        check_call(it.fields, made, missing)
    for name, given in it.methods.items():
        if name == "__init__":
            if "`__init__`" not in remark:
                check_call(given or [], made, missing)
        elif name in missing:
            assert not hasattr(made, name), name
        elif given is None:
            assert isinstance(inspect.getattr_static(made, name), property) or _is_struct(made)
        else:
            check_call(given, getattr(made, name), missing)


def _is_struct(made: Any) -> bool:
    return isinstance(made, type) and issubclass(made, msgspec.Struct)
