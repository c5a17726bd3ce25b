"""What is set up, and what it costs to set up nothing."""

import subprocess
import sys

import pytest

from tests.support.recordings import REPOSITORY
from worker.telemetry.setup import Telemetry, TelemetryError, TelemetrySettings

SETTINGS = TelemetrySettings(worker="w", address="api.x.ai", port=443)


def test_without_a_collector_the_sdk_is_not_even_imported() -> None:
    """A worker that nobody asked to export spends neither time nor memory on it."""
    program = (
        "import sys\n"
        "from worker.telemetry.setup import Telemetry, TelemetrySettings\n"
        "Telemetry(TelemetrySettings(worker='w', address='a', port=1), {}, version='0')\n"
        "print([m for m in sys.modules if m.startswith(('opentelemetry.sdk', 'google.proto'))])"
    )

    run = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )

    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("path", ["nowhere:f", "worker.logs:nothing", "worker.logs", ":", "json:"])
def test_a_redactor_that_cannot_be_found_is_refused(path: str) -> None:
    """In words that say how it is written: starting without it would let everything out."""
    with pytest.raises(TelemetryError, match="module:function"):
        Telemetry(SETTINGS._replace(redactor=path), {}, version="0")
