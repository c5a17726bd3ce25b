"""Runs the tests on each server and each Python that this machine has, and ends with a table.

Usage: ops/run matrix [--quick] [PYTEST_ARGUMENT...]

Servers are Debian's Redis (package redis-server) and the Valkey in the wheel; Pythons are 3.11 to
3.14, on PATH or under pyenv. --quick, which .ci/run takes: everything on the first Python with
Valkey, what depends on the server on Redis, the unit tests on the other Pythons. Only the first of
these takes the arguments for pytest: what they lengthen is run once.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
SERVERS = ("valkey", "redis")
QUICK = "tests/integration/contracts"
"""Where the tests of clients and scripts are that also run on fakeredis, without a server."""
ON_SERVERS = tuple(
    f"tests/integration/{folder}"
    for folder in ("contracts", "deployments", "embedded", "starting", "telemetry", "worker")
)
"""What speaks to a server in ways in which they differ: scripts, rights, failovers, lost ones."""
LIMIT_S = 1_800


class Row(NamedTuple):
    """One run of the tests."""

    version: str
    server: str
    tests: tuple[str, ...] = ()


class Done(NamedTuple):
    """How it ended."""

    is_green: bool
    seconds: float
    last_line: str


def main() -> None:
    """Run all rows; the exit code is 1 if one of them is not green."""
    words = sys.argv[1:]
    pythons = dict(installed())
    servers = [it for it in SERVERS if it != "redis" or shutil.which("redis-server")]
    if "redis" not in servers:
        print("no redis-server on PATH: apt install redis-server brings Redis 7.0 on Debian 12")
    if missing := [it for it in VERSIONS if it not in pythons]:
        print(f"not installed, and left out: Python {', '.join(missing)}")
    quick = "--quick" in words
    chosen = quick_rows(list(pythons), servers) if quick else all_rows(list(pythons), servers)
    given = [it for it in words if it != "--quick"]
    table = [
        (row, run(row, pythons[row.version], [] if quick and row.tests else given))
        for row in chosen
    ]
    print()
    for row, done in table:
        result = "green" if done.is_green else "RED"
        what = " ".join(row.tests).replace("tests/integration/", "") or "all tests"
        print(
            f"{result:5}  Python {row.version:4}  {row.server:6}  {what:18}  "
            f"{done.seconds:5.0f} s  {done.last_line}"
        )
    sys.exit(not all(done.is_green for _, done in table))


def all_rows(pythons: list[str], servers: list[str]) -> list[Row]:
    """Return everything on everything."""
    fake = [Row(version, "fake", (QUICK,)) for version in pythons]
    return fake + [Row(version, server) for version in pythons for server in servers]


def quick_rows(pythons: list[str], servers: list[str]) -> list[Row]:
    """Return all tests once, what talks to a server on the others, what may differ by Python."""
    first, *others = pythons
    on_servers = [Row(first, it, ON_SERVERS) for it in servers if it != SERVERS[0]]
    return [
        Row(first, "fake", (QUICK,)),
        *(Row(version, SERVERS[0], ("tests/unit",)) for version in others),
        Row(first, SERVERS[0]),
        *on_servers,
    ]


def installed() -> Iterator[tuple[str, str]]:
    """Find one interpreter of each version; TURNLINE_PYTHON's own comes first."""
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    for version in sorted(VERSIONS, key=lambda it: it != ours):
        pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
        found = [shutil.which(f"python{version}"), *pyenv.glob(f"{version}.*/bin/python")]
        own = [sys.base_prefix + "/bin/python3"] if version == ours else []
        for candidate in (*own, *filter(None, found)):
            if version_of(str(candidate)) == version:
                yield version, str(candidate)
                break


def version_of(python: str) -> str:
    """Return such as `3.11`; '' if it does not run."""
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        asked = [python, "-c", program]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def run(row: Row, python: str, words: list[str]) -> Done:
    """Run one row, with an environment of its own for each Python, and show its output."""
    start = time.monotonic()
    title = f"Python {row.version} and {row.server}: {' '.join(row.tests) or 'all tests'}"
    print(f"\n== {title}", flush=True)
    is_own = row.version == version_of(sys.executable)
    environ = os.environ | {
        "TEST_SERVER": row.server,
        "TURNLINE_PYTHON": python,
        "TURNLINE_VENV": sys.prefix if is_own else f".venv-{row.version}",
    }
    last = ""
    with subprocess.Popen(
        ["timeout", "--kill-after=30", str(LIMIT_S), "ops/run", "test", *row.tests, *words],
        cwd=ROOT,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", flush=True)
            if re.search(r"\d+ (passed|failed|error)", line):
                last = line.strip("= \n")
    return Done(running.returncode == 0, time.monotonic() - start, last)


if __name__ == "__main__":
    main()
