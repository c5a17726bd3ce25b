"""Workers of another revision of this repository beside those of the present one."""

import os
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from turnline.ops.chaos.fault_run import Member
from turnline.ops.cli.failures import Failure
from turnline.ops.fleet.stack import Stack

_ROOT: Final = Path(__file__).resolve().parents[2]


class OldWorkers:
    """Workers that run another revision, on the Redis and the model of a stack; for a `with`.

    The revision is checked out into a temporary worktree, which is removed in the end.
    """

    def __init__(self, revision: str, home: Stack, count: int) -> None:
        """Describe them; `with` checks out, starts them and waits until they take turns."""
        self._revision = revision
        self._home = home
        self._count = count
        self._exits = ExitStack()
        self.members: list[Member] = []

    def __enter__(self) -> Self:
        """Start them.

        Raises:
            Failure: The revision cannot be checked out, or a worker did not start.
        """
        with ExitStack() as exits:
            tree = self._check_out(exits)
            for n in range(self._count):
                name = f"old-{n + 1}"
                stack = Stack(
                    1,
                    live=True,  # not another simulator: that of the home stack
                    redis_url=self._home.redis_url,
                    environ={**os.environ, "XAI_API_KEY": "xai-simulated"},
                    worker_module=_worker_of(tree),
                    worker_env={
                        "TURNLINE_BASE_URL": self._home.base_url,
                        "TURNLINE_WORKER_NAME": name,
                        "TURNLINE_LOG_LEVEL": "warning",
                        "PYTHONPATH": os.pathsep.join(map(str, (tree, tree / "turnline"))),
                        "PYTHONSAFEPATH": "1",  # not from the working directory
                        "NO_PROXY": "127.0.0.1",
                        "no_proxy": "127.0.0.1",
                    },
                )
                self.members.append(Member(exits.enter_context(stack), 0, name))
            self._exits = exits.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End them and remove the worktree."""
        self._exits.close()

    def _check_out(self, exits: ExitStack) -> Path:
        """Unpack the revision without touching the repository."""
        folder = Path(tempfile.mkdtemp(prefix="turnline-revision-"))
        exits.callback(shutil.rmtree, folder, ignore_errors=True)
        archive = subprocess.run(
            ["git", "archive", "--format=tar", self._revision, "contracts", "worker"],
            cwd=_ROOT,
            capture_output=True,
            check=False,
        )
        if archive.returncode:
            words = archive.stderr.decode(errors="replace").strip()
            raise Failure(f"git has no revision {self._revision} here: {words}")
        packages = folder / "turnline"
        packages.mkdir()
        subprocess.run(["tar", "-xf", "-", "-C", str(packages)], input=archive.stdout, check=True)
        return folder


def _worker_of(tree: Path) -> str:
    """Return what is run there: `worker` before all was imported as `turnline`."""
    program = (tree / "turnline" / "worker" / "__main__.py").read_text()
    return "turnline.worker" if "from turnline." in program else "worker"
