"""What is set up, and what it costs to set up nothing."""

from pathlib import Path

import pytest

from turnline.worker.errors import StartFailed
from turnline.worker.telemetry.attributes import CallPlace
from turnline.worker.telemetry.setup import Telemetry, TelemetrySettings

SETTINGS = TelemetrySettings(worker="w", place=CallPlace("api.x.ai", 443))


@pytest.mark.parametrize(
    "path", ["nowhere:f", "turnline.worker.logs:nothing", "turnline.worker.logs", ":", "json:"]
)
def test_a_redactor_that_cannot_be_found_is_refused(path: str) -> None:
    """In words that say how it is written: starting without it would let everything out."""
    with pytest.raises(StartFailed, match="module:function"):
        Telemetry(SETTINGS._replace(redactor=path), {}, version="0")


def test_a_redactor_whose_module_raises_is_refused_without_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever that is, also the end of the program; type and place are said."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for number, raised in enumerate(["RuntimeError('wombat')", "SystemExit('wombat')"]):
        (tmp_path / f"raising_{number}.py").write_text(f"raise {raised}")
        with pytest.raises(StartFailed, match=rf"raising_{number}.py:1") as it:
            Telemetry(SETTINGS._replace(redactor=f"raising_{number}:f"), {}, version="0")
        assert "wombat" not in str(it.value)
