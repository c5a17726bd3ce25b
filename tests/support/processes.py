"""Worker processes of a test: started with misbehaving tools, and gone at its end."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


class WorkerProcess:
    """A worker process; what it says goes to a file, so that a full pipe holds up nothing."""

    def __init__(
        self, redis_url: str, base_url: str, words: Sequence[str] = (), **settings: str
    ) -> None:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("TURNLINE_")}
        environ |= {
            "TURNLINE_REDIS_URL": redis_url,
            "TURNLINE_BASE_URL": base_url,
            "TURNLINE_LOG_FORMAT": "json",
            "XAI_API_KEY": "xai-test",
            **{k if k.isupper() else f"TURNLINE_{k.upper()}": v for k, v in settings.items()},
        }
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "turnline.worker", *words],
            cwd=REPOSITORY,
            env=environ,
            stdout=self._said,
            stderr=subprocess.STDOUT,
        )

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def gone_within(self, seconds: float) -> float:
        """Wait for its end and return how long that took.

        Raises:
            subprocess.TimeoutExpired: It is still there.
        """
        began_s = time.monotonic()
        self.process.wait(seconds)
        return time.monotonic() - began_s

    def says(self) -> str:
        """Return all that it wrote so far."""
        self._said.seek(0)
        return self._said.read().decode(errors="replace")

    def close(self) -> None:
        """End it, however it is."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._said.close()


@contextmanager
def worker_process(
    redis_url: str, base_url: str, words: Sequence[str] = (), **settings: str
) -> Iterator[WorkerProcess]:
    """Run a worker, with these options, for a `with` block."""
    worker = WorkerProcess(redis_url, base_url, words, **settings)
    try:
        yield worker
    finally:
        worker.close()
