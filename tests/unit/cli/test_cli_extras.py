"""Where packages are missing, the command line says in one sentence what to install."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.recordings import REPOSITORY
from turnline.worker.extras import DEV, WORKER

MODULES = {
    "jsonschema-rs": "jsonschema_rs",
    "prometheus-client": "prometheus_client",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
    "opentelemetry-exporter-prometheus": "opentelemetry",
    "opentelemetry-sdk": "opentelemetry",
}


def run(
    tmp_path: Path,
    names: frozenset[str],
    *words: str,
    program: str = "",
    module: str = "turnline.ops.cli",
) -> subprocess.CompletedProcess[str]:
    """Run the command line where these packages cannot be imported."""
    code = "raise ModuleNotFoundError(f'No module named {__name__!r}', name=__name__)\n"
    for name in names:
        (tmp_path / f"{name}.py").write_text(code)
    return subprocess.run(
        [sys.executable, *(["-c", program] if program else ["-m", module, *words])],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_names_are_those_of_the_extras() -> None:
    """Whoever adds a package to an extra adds its name here."""
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    found = {
        extra: {
            MODULES.get(name, name)
            for name in (re.match(r"[a-z0-9-]+", it)[0] for it in wanted)
            if name != "turnline"
        }
        for extra, wanted in extras["optional-dependencies"].items()
    }

    assert found == {"worker": WORKER, "dev": DEV}


@pytest.mark.parametrize("words", [(), ("--help",), ("worker",), ("demo",), ("nonsense",)])
def test_with_a_producers_packages(words: tuple[str, ...], tmp_path: Path) -> None:
    """One sentence, exit code 2, whatever was asked for."""
    ran = run(tmp_path, WORKER | DEV, *words)

    assert (ran.returncode, ran.stdout) == (2, "")
    assert re.fullmatch(
        r"turnline: the package \w+ is missing: pip install 'turnline\[worker\]'\n", ran.stderr
    )


@pytest.mark.parametrize("names", [WORKER | DEV, WORKER - {"click"}], ids=["none", "click"])
@pytest.mark.parametrize("words", [(), ("--check",)])
def test_a_worker_with_a_producers_packages(
    words: tuple[str, ...], names: frozenset[str], tmp_path: Path
) -> None:
    """`python -m turnline.worker` says the same, also where somebody else brought some of them."""
    ran = run(tmp_path, names, *words, module="worker")

    assert (ran.returncode, ran.stdout) == (2, "")
    assert re.fullmatch(
        r"turnline: the package \w+ is missing: pip install 'turnline\[worker\]'\n", ran.stderr
    )


def test_a_page_of_figures_needs_what_draws_before_anything_is_measured(tmp_path: Path) -> None:
    """Measuring for minutes and then saying so would lose all of it."""
    ran = run(tmp_path, DEV, "bench", "--only", "instant-20", "--page", "page.md")

    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == (
        "turnline: the package matplotlib is missing: pip install 'turnline[dev]'\n"
    )


EACH_HELP = """
import sys
from click.testing import CliRunner
from turnline.ops.cli.app import SECTIONS, turnline
for command in [name for section in SECTIONS.values() for name in section]:
    ran = CliRunner().invoke(turnline, [command, "--help"], prog_name="turnline")
    if ran.exit_code != 0:
        print(command, ran.exit_code, ran.stderr.strip(), sep=": ")
"""


def test_with_click_of_somebody_elses(tmp_path: Path) -> None:
    """A web service may have click; each command then has its help, or says what is missing."""
    ran = run(tmp_path, (WORKER | DEV) - {"click"}, program=EACH_HELP)

    told = r"\w+: 2: turnline: the package \w+ is missing: pip install 'turnline\[worker\]'"
    assert ran.stderr == ""
    assert [line for line in ran.stdout.splitlines() if not re.fullmatch(told, line)] == []
    assert "demo: 2: " in ran.stdout


def test_a_workers_packages_are_enough_for_the_help(tmp_path: Path) -> None:
    """No command needs what is for development before it is used."""
    ran = run(tmp_path, DEV, program=EACH_HELP)

    assert (ran.stdout, ran.stderr) == ("", "")
