"""The shape of the repository: what stands where, and what must never stand in it."""

import ast
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from tests.support.recordings import REPOSITORY

TOP_LEVEL = {
    "CHANGELOG.md",
    "LICENSE",
    "Procfile",
    "README.md",
    "contracts",
    "docs",
    "ops",
    "pyproject.toml",
    "tests",
    "worker",
}
INSTRUMENTS = {"bench", "chaos", "fuzz", "site"}
SAME_THING_OF_SEVERAL_KINDS = {
    "__init__.py",
    "__main__.py",
    "command.py",  # a command of the command line
    "errors.py",  # what can go wrong in a room
    "failures.py",  # how failures of others are told
    "llm.py",  # a service; the seed's name
}
NEVER = [
    *(r"py[p]i\.org", r"pythonhoste[d]", r"registry\.npm[j]s", r"deb\.debia[n]"),
    r"index-ur[l]",
    *(r"/wor[k]/", r"/far[m]/", r"/roo[t]/", r"/home/[a-z]"),
]


def tracked() -> list[Path]:
    """Files of the repository, relative to it: what git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        names = [Path(name) for name in listed.stdout.split("\0") if name]
    else:  # an unpacked archive
        names = [path.relative_to(REPOSITORY) for path in REPOSITORY.rglob("*")]
        names = [name for name in names if not is_made(name)]
    return [name for name in names if (REPOSITORY / name).is_file()]


def is_made(name: Path) -> bool:
    """True for what running the project leaves behind."""
    hidden = name.parts[0].startswith(".") and name.parts[0] not in {".ci", ".github", ".gitignore"}
    return hidden or any(p == "__pycache__" or p.endswith(".egg-info") for p in name.parts)


def rooms() -> list[Path]:
    """Folders with Python files that are part of the packages."""
    return sorted(
        {
            name.parent
            for name in tracked()
            if name.suffix == ".py" and name.parts[0] in {"contracts", "worker", "ops"}
        }
        - {Path("ops/site"), Path("ops/chaos/site")}
    )


def text_of(name: Path) -> str:
    try:
        return (REPOSITORY / name).read_text()
    except UnicodeDecodeError:
        return ""


def scripts() -> list[Path]:
    return [name for name in tracked() if name.suffix == ".lua"]


def header_faults(name: str, source: str) -> list[str]:
    """What the header of a Lua script says wrongly about the script below it."""
    parts = re.fullmatch(r"--\[\[\n(.+?)\n\]\]\n(.+)", source, re.DOTALL)
    if parts is None:
        return ["does not begin with a header"]
    header, body = parts[1], parts[2]
    faults = []
    if not re.match(rf"{re.escape(name)}: \S.*\.\n", header):
        faults.append(f"the header does not begin with '{name}: what it does.'")
    for table in ("KEYS", "ARGV"):
        faults += table_faults(table, header, body)
    sections = dict(
        re.findall(r"^(Returns|Invariants)\n((?:[ ]+\S.*(?:\n|$))+)", header, re.MULTILINE)
    )
    faults += [f"no section {word}" for word in ("Returns", "Invariants") if word not in sections]
    answers = re.compile(r"\{'(\w+)'")
    documented, given = (set(answers.findall(t)) for t in (sections.get("Returns", ""), body))
    if documented != given:
        faults.append(f"documents answers {sorted(documented)}, gives {sorted(given)}")
    return faults


def table_faults(table: str, header: str, body: str) -> list[str]:
    """Compare the entries of KEYS or ARGV that the header documents with those the body names."""
    entries = re.findall(rf"^{table}\[(\d+)(\.\.)?\] +(\w*)", header, re.MULTILINE)
    numbers = [int(number) for number, _, _ in entries]
    is_open = [bool(dots) for _, dots, _ in entries]
    if numbers != list(range(1, len(numbers) + 1)) or any(is_open[:-1]):
        return [f"documents {table} {numbers}: not each once, in order, the open end last"]
    documented = [name for _, dots, name in entries if not dots]
    has_rest = any(is_open)

    beginning = re.match(r"(?:local [\w,\s]+ =\s+unpack\([^()]+\)\n)*", body)
    assert beginning is not None
    rest = body[beginning.end() :]
    every = f"{table}, 1, {len(documented)}" if has_rest else table
    naming = f"local {', '.join(documented)} = unpack({every})"
    faults = []
    if documented and naming not in " ".join(beginning[0].split()):
        faults.append(f"does not begin with '{naming}'")
    faults += [
        f"documents {table} {name}, which is not read"
        for name in documented
        if not re.search(rf"\b{name}\b", rest)
    ]
    faults += [
        f"says {number} instead of a name" for number in re.findall(rf"\b{table}\[\d+\]", rest)
    ]
    counted = "|".join(re.findall(r"\bfor (\w+) = \d+, \d+ do\b", rest)) or "(?!)"
    reads_rest = re.search(
        rf"#{table}\b|unpack\({table}, (?!1,)|\b{table}\[(?!(?:\d+|{counted})\])", rest
    )
    if bool(reads_rest) != has_rest:
        faults.append(f"{table}: the header and the body differ on a variable number of entries")
    return faults


def test_the_top_level_holds_what_the_design_puts_there() -> None:
    """Nothing but the packages, the documents and dotfiles."""
    found = {name.parts[0] for name in tracked() if not name.parts[0].startswith(".")}

    assert found - TOP_LEVEL == set()


@pytest.mark.parametrize("script", scripts(), ids=str)
def test_the_header_of_a_script_tells_the_truth(script: Path) -> None:
    """Name, KEYS, ARGV, answers and sections agree with the body."""
    assert header_faults(script.stem, text_of(script)) == []


def test_functions_that_scripts_share_are_the_same() -> None:
    """A script has no way to include another: what several of them do stands in each."""
    pattern = r"^( *)(?:-- [^\n]*\n\1)*(?:local )?function (\w+)\(.*?^\1end\n"
    texts: dict[str, set[str]] = {}
    for script in scripts():
        for found in re.finditer(pattern, text_of(script), re.MULTILINE | re.DOTALL):
            told = textwrap.dedent(found[0]).replace("local function", "function", 1)
            texts.setdefault(found[2], set()).add(told)

    assert {"wake_one", "notify"} <= texts.keys()
    assert {name for name, different in texts.items() if len(different) > 1} == set()


GOOD_SCRIPT = """\
--[[
count: add to a number.

KEYS[1]    number  string
KEYS[2..]  other   string  any number of them

ARGV[1]  amount  int
ARGV[2]  limit   int

Returns
  {'counted', n}  the new number
  {'full', n}     nothing written

Invariants
  I1  the number never exceeds the limit
]]
local number = unpack(KEYS, 1, 1)
local amount, limit = unpack(ARGV)

if amount > limit then
  return {'full', 0}
end
for i = 2, #KEYS do
  redis.call('DEL', KEYS[i])
end
return {'counted', redis.call('INCRBY', number, amount)}
"""


def test_a_true_header_has_no_faults() -> None:
    """The checker accepts what is right."""
    assert header_faults("count", GOOD_SCRIPT) == []


@pytest.mark.parametrize(
    ("right", "wrong", "fault"),
    [
        ("count: add", "counts: add", "does not begin with 'count: "),
        ("--[[\n", "", "does not begin with a header"),
        ("ARGV[2]  limit   int\n", "", "begin with 'local amount = unpack(ARGV)'"),
        ("local amount, limit", "local limit, amount", "begin with 'local amount, limit ="),
        ("local number", "print()\nlocal number", "begin with 'local number = unpack"),
        ("unpack(KEYS, 1, 1)", "unpack(KEYS)", "begin with 'local number = unpack(KEYS, 1, 1)'"),
        ("> limit", "> 5", "documents ARGV limit, which is not read"),
        ("> limit", "> limit + ARGV[2]", "says ARGV[2] instead of a name"),
        ("ARGV[2]  limit", "ARGV[3]  limit", "not each once, in order"),
        ("KEYS[2..]  other", "KEYS[2]    other", "variable number of entries"),
        ("#KEYS", "9", "variable number of entries"),
        ("Returns\n", "Result\n", "no section Returns"),
        ("Invariants\n  I1  the number", "Invariants\nThe number", "no section Invariants"),
        ("return {'full', 0}", "return {'empty', 0}", "gives ['counted', 'empty']"),
        ("  {'full', n}     nothing written\n", "", "documents answers ['counted']"),
    ],
)
def test_a_false_header_is_found(right: str, wrong: str, fault: str) -> None:
    """Each way in which a header goes stale is named."""
    assert right in GOOD_SCRIPT

    assert fault in "\n".join(header_faults("count", GOOD_SCRIPT.replace(right, wrong, 1)))


@pytest.mark.parametrize("pattern", NEVER)
def test_no_file_names_an_index_or_a_machine(pattern: str) -> None:
    """Package indexes and folders of one machine belong to whoever runs the project."""
    found = re.compile(pattern)

    assert [str(name) for name in tracked() if found.search(text_of(name))] == []


def test_each_python_file_says_what_it_is_for() -> None:
    """Every module begins with a docstring whose first line is a sentence."""
    silent = []
    for name in tracked():
        if name.suffix == ".py":
            docstring = ast.get_docstring(ast.parse(text_of(name))) or ""
            if not docstring.partition("\n")[0].endswith((".", ":")):
                silent.append(str(name))

    assert silent == []


def test_no_test_is_named_by_a_number() -> None:
    """A name is a claim; a number points at a list that nobody has."""
    numbered = [
        f"{name}: {found}"
        for name in tracked()
        if name.suffix == ".py" and name.parts[0] == "tests"
        for found in re.findall(r"\bdef (test_\d\w*)", text_of(name))
    ]

    assert numbered == []


def test_the_fixtures_are_listed() -> None:
    """Each fixture of a conftest has its line in tests/README.md."""
    conftests = [text_of(name) for name in tracked() if name.name == "conftest.py"]
    found = {
        fixture
        for text in conftests
        for fixture in re.findall(
            r"^@pytest\.fixture.*\n(?:async )?def ([a-z]\w*)", text, re.MULTILINE
        )
    }

    assert {name for name in found if f"`{name}`" not in text_of(Path("tests/README.md"))} == set()


def test_workflows_may_do_little_and_run_only_pinned_actions() -> None:
    """No permission but those that a job asks for; actions by hash, with the version beside it."""
    workflows = [name for name in tracked() if name.parts[:2] == (".github", "workflows")]
    assert workflows
    for name in workflows:
        text = text_of(name)
        assert re.search(r"^permissions: \{\}$", text, re.MULTILINE), name
        used = re.findall(r"uses: (.+)", text)
        assert [it for it in used if not re.fullmatch(r"\S+@[0-9a-f]{40} # v[\d.]+", it)] == []


def test_data_files_of_the_packages_are_installed_with_them() -> None:
    """The package data of pyproject name every script and schema, so that a wheel has them."""
    pyproject = tomllib.loads(text_of(Path("pyproject.toml")))
    data = pyproject["tool"]["setuptools"]["package-data"]
    kinds = {".lua", ".json", ".md", ".typed"}

    left_out = [
        str(name)
        for name in tracked()
        if name.parts[0] in {"contracts", "worker", "ops"}
        and name.suffix in kinds
        and not any(Path(*name.parts[1:]).match(glob) for glob in data[f"turnline.{name.parts[0]}"])
    ]

    assert left_out == []


def test_the_wheel_has_each_package_but_the_instruments() -> None:
    """Setuptools takes the list as it stands; a new folder is written into it."""
    setuptools = tomllib.loads(text_of(Path("pyproject.toml")))["tool"]["setuptools"]

    assert sorted(setuptools["packages"]) == sorted(
        ".".join(("turnline", *folder.parts))
        for folder in rooms()
        if not INSTRUMENTS & {*folder.parts}
    )


def test_each_folder_says_what_lives_there() -> None:
    """A sentence for what it is, and more for what may not be there."""
    silent = []
    for folder in rooms():
        docstring = ast.get_docstring(ast.parse(text_of(folder / "__init__.py"))) or ""
        if not re.match(r"\S[^\n]*[.:]\n\n\S", docstring):
            silent.append(str(folder))

    assert silent == []


def test_a_file_name_stands_for_one_thing() -> None:
    """Files of one name in two rooms are the same thing of two kinds."""
    names = [
        name.name
        for name in tracked()
        if name.suffix == ".py" and name.parts[0] in {"contracts", "worker", "ops"}
    ]

    assert {name for name in names if names.count(name) > 1} - SAME_THING_OF_SEVERAL_KINDS == set()


def test_importing_the_contracts_stays_light() -> None:
    """A producer does not load ARQ, the OpenAI client or OpenTelemetry's SDK."""
    heavy = ["arq", "openai", "opentelemetry.sdk", "turnline.worker", "turnline.ops"]
    program = f"import sys, turnline.contracts; print([m for m in {heavy} if m in sys.modules])"

    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )

    assert loaded.stdout.strip() == "[]"


def test_the_lock_pins_everything_by_hash() -> None:
    """Each line of the lock file is a pinned version or a hash; no option, no address."""
    lines = text_of(Path("ops/requirements.lock")).splitlines()

    shape = re.compile(r"[a-z0-9-]+==[\w.]+( ; [^\\]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?")
    assert [line for line in lines if not shape.fullmatch(line)] == []


def test_the_lock_has_each_dependency() -> None:
    """Whoever adds a dependency to pyproject runs `ops/run lock`."""
    pyproject = tomllib.loads(text_of(Path("pyproject.toml")))
    extras = pyproject["project"]["optional-dependencies"]
    wanted = pyproject["project"]["dependencies"] + pyproject["dependency-groups"]["repository"]
    wanted += [name for extra in extras.values() for name in extra if name != "turnline[worker]"]
    locked = set(
        re.findall(r"^([a-z0-9-]+)==", text_of(Path("ops/requirements.lock")), re.MULTILINE)
    )

    assert {re.match(r"[a-z0-9-]+", name.lower())[0] for name in wanted} - locked == set()


def test_unit_tests_open_no_connections() -> None:
    """The rule that keeps unit tests fast and alone is enforced, not only written down."""
    import socket  # noqa: PLC0415 - what is patched is looked up here

    with socket.socket() as connection, pytest.raises(AssertionError, match="no connections"):
        connection.connect(("127.0.0.1", 9))


def test_a_producer_needs_two_packages() -> None:
    """What lives in other people's services brings nothing that they would have to give way to."""
    project = tomllib.loads(text_of(Path("pyproject.toml")))["project"]

    assert project["dependencies"] == ["msgspec>=0.20", "redis>=5.0.1,<9"]


def test_each_command_that_the_entry_lists_is_taken() -> None:
    """`ops/run help` and the list of commands that `ops/run` lets through are the same."""
    script = (REPOSITORY / "ops" / "run").read_text()
    listed = set(re.findall(r"^  ([a-z]+) (?:\.\.\.)? {2,}", script, re.MULTILINE)) | {"lock"}
    (taken,) = re.findall(r"^(demo \|.*)\) ;;$", script, re.MULTILINE)

    assert listed == {*taken.split(" | "), "lock"}


MODULE_MAX_LINES = 500
FUNCTION_MAX_LINES = 50
CLASS_MAX_METHODS = 30
CLASS_MAX_ATTRIBUTES = 25
LARGER = {
    "worker/pipeline/context.py:OpenAILLMContext": "pipecat's class has these methods",
    "worker/pipeline/processor.py:FrameProcessor": "pipecat's class has these methods",
    "worker/queue/leased_worker.py:__init__": "each of eleven parameters is explained",
    "worker/services/openai/llm.py:__init__": "each of pipecat's sixteen parameters is explained",
}
"""What is larger than the limits, and why. A line that is not needed any more fails the test."""


def larger_than_allowed(name: Path) -> dict[str, str]:
    """Return what in a file is beyond a limit, each with its size."""
    source = (REPOSITORY / name).read_text()
    found = {}
    if (lines := len(source.splitlines())) > MODULE_MAX_LINES:
        found[str(name)] = f"{lines} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            methods = sum(isinstance(it, FUNCTIONS) for it in node.body)
            attributes = len(set(own_attributes(node)))
            if methods > CLASS_MAX_METHODS or attributes > CLASS_MAX_ATTRIBUTES:
                found[f"{name}:{node.name}"] = f"{methods} methods, {attributes} attributes"
        elif isinstance(node, FUNCTIONS):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > FUNCTION_MAX_LINES:
                found[f"{name}:{node.name}"] = f"{lines} lines"
    return found


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def own_attributes(node: ast.ClassDef) -> list[str]:
    """Return what a class sets on its objects."""
    return [
        it.attr
        for it in ast.walk(node)
        if isinstance(it, ast.Attribute)
        and isinstance(it.ctx, ast.Store)
        and isinstance(it.value, ast.Name)
        and it.value.id == "self"
    ]


def test_modules_classes_and_functions_are_small() -> None:
    """What is larger than the limits is listed, with a reason."""
    found = {}
    for name in tracked():
        if name.suffix == ".py" and name.parts[0] in {"contracts", "worker", "ops"}:
            found.update(larger_than_allowed(name))

    assert {key: size for key, size in found.items() if key not in LARGER} == {}
    assert LARGER.keys() - found.keys() == set()
