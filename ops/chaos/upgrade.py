"""Workers beside those of a stack: of another revision of this repository, or set otherwise."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from turnline.ops.chaos.fault_run import Worker
from turnline.ops.cli.failures import Failure
from turnline.ops.fleet.child import ROOT
from turnline.ops.fleet.stack import Stack


def old_workers(revision: str, home: Stack, count: int, exits: ExitStack) -> list[Worker]:
    """Start workers of another revision on the Redis and the model of a stack.

    They have ended, and the revision's files are gone, when `exits` is left.

    Raises:
        Failure: The revision cannot be checked out, or a worker did not start.
    """
    tree = _check_out(revision, exits)
    environ = {
        "PYTHONPATH": os.pathsep.join(map(str, (tree, tree / "turnline"))),
        "PYTHONSAFEPATH": "1",  # not from the working directory
    }
    module = _worker_of(tree)
    return [worker_beside(home, f"old-{n + 1}", exits, environ, module) for n in range(count)]


def worker_beside(
    home: Stack,
    name: str,
    exits: ExitStack,
    environ: Mapping[str, str],
    module: str = "turnline.worker",
) -> Worker:
    """Start a worker with settings of its own on the Redis and the model of a stack.

    Raises:
        Failure: It did not start.
    """
    stack = Stack(
        1,
        live=True,  # not another simulator: that of the home stack
        redis_url=home.redis_url,
        environ={**os.environ, "XAI_API_KEY": "xai-simulated"},
        worker_module=module,
        worker_env={
            "TURNLINE_BASE_URL": home.base_url,
            "TURNLINE_WORKER_NAME": name,
            "TURNLINE_LOG_LEVEL": "warning",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            **environ,
        },
    )
    return Worker(exits.enter_context(stack), 0, name)


def _check_out(revision: str, exits: ExitStack) -> Path:
    """Unpack the revision without touching the repository."""
    folder = Path(tempfile.mkdtemp(prefix="turnline-revision-"))
    exits.callback(shutil.rmtree, folder, ignore_errors=True)
    archive = subprocess.run(
        ["git", "archive", "--format=tar", revision, "contracts", "worker"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if archive.returncode:
        words = archive.stderr.decode(errors="replace").strip()
        raise Failure(f"git has no revision {revision} here: {words}")
    packages = folder / "turnline"
    packages.mkdir()
    subprocess.run(["tar", "-xf", "-", "-C", str(packages)], input=archive.stdout, check=True)
    return folder


def _worker_of(tree: Path) -> str:
    """Return what is run there: `worker` before all was imported as `turnline`."""
    program = (tree / "turnline" / "worker" / "__main__.py").read_text()
    return "turnline.worker" if "from turnline." in program else "worker"
