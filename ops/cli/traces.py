"""`turnline traces up`: a trace viewer in an environment of its own, on a loopback port."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

import click

from ops.cli import bound
from ops.cli.failures import Failed

VIEWER: Final = "mlflow"
VERSION: Final = "3.17.2"
"""Tried with what workers send; others may do as well."""
_START_S: Final = 120.0
_STOP_S: Final = 10.0
_LOOPBACK: Final = "127.0.0.1"
_QUIET: Final = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
"""It calls nobody, and starts no processes for jobs that nobody gives it."""


def default_directory(environ: Mapping[str, str]) -> Path:
    """Return where the viewer and its traces are kept from one start to the next."""
    cache = environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "turnline" / f"{VIEWER}-{VERSION}"


def program(directory: Path) -> Path:
    """Return where the viewer is, once installed."""
    return directory / "venv" / "bin" / VIEWER


def install(directory: Path) -> None:
    """Install the viewer into an environment of its own, by pip as it is configured here.

    Raises:
        Failed: It could not be installed; pip has said why.
    """
    home = directory / "venv"
    venv.create(home, with_pip=True, clear=True)
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    if subprocess.run([*pip, f"{VIEWER}=={VERSION}"], check=False).returncode:
        raise Failed(f"{VIEWER} {VERSION} could not be installed into {home}")


def settings(port: int) -> dict[str, str]:
    """Return the variables that point workers at the viewer."""
    return {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://{_LOOPBACK}:{port}/v1/traces",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "x-mlflow-experiment-id=0",
    }


class Viewer:
    """A running viewer, for a `with` block."""

    def __init__(self, directory: Path, port: int) -> None:
        """Describe it; `with` starts it and waits until it answers."""
        self._directory = directory
        self._port = port
        self._log = directory / "viewer.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its page."""
        return f"http://{_LOOPBACK}:{self._port}/"

    def __enter__(self) -> Self:
        """Start it.

        Raises:
            Failed: It ended, or did not answer in time.
        """
        starter = [sys.executable, "-I", "-S", bound.__file__, str(os.getpid())]
        server = [str(program(self._directory)), "server"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *starter,
                    *server,
                    *("--host", _LOOPBACK, "--port", str(self._port), "--workers", "1"),
                    *("--backend-store-uri", f"sqlite:///{self._directory / 'traces.db'}"),
                    *("--default-artifact-root", str(self._directory / "artifacts")),
                ],
                env={**os.environ, **_QUIET},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it, with the processes that it started."""
        self._stop()

    def wait(self) -> None:
        """Return when it ends by itself."""
        assert self._process is not None
        self._process.wait()

    def _wait(self) -> None:
        assert self._process is not None
        deadline_s = time.monotonic() + _START_S
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                raise Failed(f"the viewer ended by itself; its log: {self._log}")
            try:
                with urllib.request.urlopen(self.url + "health", timeout=2):  # noqa: S310  loopback
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        else:
            raise Failed(f"the viewer did not answer within {_START_S:g} s; its log: {self._log}")
        self._warm_up()

    def _warm_up(self) -> None:
        """Have it open its database, which takes seconds for which a worker might not wait."""
        url = self.url + "ajax-api/2.0/mlflow/experiments/get?experiment_id=0"
        with contextlib.suppress(OSError):  # then the first spans will
            urllib.request.urlopen(url, timeout=_START_S).close()  # noqa: S310  loopback

    def _stop(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@click.group()
def traces() -> None:
    """Look at traces in a viewer."""


@traces.command(
    epilog="\b\nFor example:\n"
    "  turnline traces up                 then, where workers run, the two lines it prints\n"
    "  turnline traces up --port 5001 --directory ./viewer"
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=5000,
    show_default=True,
    help="Port on 127.0.0.1; the viewer is reachable from this machine only.",
)
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where it is installed and keeps its traces.  [default: ~/.cache/turnline/...]",
)
def up(*, port: int, directory: Path | None) -> None:
    """Start MLflow as a trace viewer, until Ctrl-C.

    The first time it is installed (about 850 MB) into an environment of its own.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    where = (directory or default_directory(os.environ)).absolute()
    where.mkdir(parents=True, exist_ok=True)
    if not program(where).exists():
        click.echo(f"installing {VIEWER} {VERSION} into {where} ...", err=True)
        install(where)
    click.echo(f"starting {VIEWER} ...", err=True)
    try:
        with Viewer(where, port) as viewer:
            for name, value in settings(port).items():
                click.echo(f"export {name}={value}")
            traces_page = f"{viewer.url}#/experiments/0/traces"
            click.echo(f"{traces_page} shows what workers send. Ctrl-C stops it.")
            viewer.wait()
    except KeyboardInterrupt:
        return
    raise Failed(f"the viewer ended by itself; its log: {where / 'viewer.log'}")
