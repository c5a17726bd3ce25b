"""What is set up, and what it costs to set up nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.recordings import REPOSITORY
from turnline.worker.errors import StartFailed
from turnline.worker.telemetry.attributes import CallPlace
from turnline.worker.telemetry.setup import Telemetry, TelemetrySettings

SETTINGS = TelemetrySettings(worker="w", place=CallPlace("api.x.ai", 443))


def test_without_a_collector_the_sdk_is_not_even_imported() -> None:
    """A worker that nobody asked to export spends neither time nor memory on it."""
    program = (
        "import sys\n"
        "from turnline.worker.telemetry.setup import Telemetry, TelemetrySettings\n"
        "Telemetry(TelemetrySettings(worker='w', place=None), {}, version='0')\n"
        "print([m for m in sys.modules if m.startswith(('opentelemetry.sdk', 'google.proto'))])"
    )

    run = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )

    assert run.stdout.strip() == "[]"


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


BASE = "OTEL_EXPORTER_OTLP_"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ENDPOINT", "collector:4318"),
        ("ENDPOINT", "grpc://collector:4317"),
        ("ENDPOINT", "http://"),
        ("ENDPOINT", "http://me:wombat@collector:port"),
        ("ENDPOINT", "http://colle ctor"),
        ("ENDPOINT", "http://[::1"),
        ("ENDPOINT", "http://collector:99999"),
        ("TRACES_ENDPOINT", "wombat"),
        ("METRICS_ENDPOINT", "http://\udcff"),
        ("HEADERS", "a=b%0d%0awombat: c"),
        ("HEADERS", "a b=wombat"),
        ("HEADERS", "a=wombat-\u20ac"),
        ("HEADERS", "=wombat"),
        ("TRACES_HEADERS", "a%00=b"),
        ("CERTIFICATE", "/none/wombat.pem"),
        ("CLIENT_CERTIFICATE", "/none.pem"),
        ("METRICS_CLIENT_KEY", "/none.key"),
    ],
)
def test_variables_with_which_nothing_would_arrive_are_refused(name: str, value: str) -> None:
    """By name, and without the value: it may hold a password."""
    environ = {f"{BASE}ENDPOINT": "http://127.0.0.1:4318", f"{BASE}{name}": value}

    with pytest.raises(StartFailed) as raised:
        Telemetry(SETTINGS, environ, version="0")

    assert str(raised.value).startswith(f"{BASE}{name}: ")
    assert "wombat" not in str(raised.value)


@pytest.mark.parametrize(
    "value", ["", " ", "x", "nan", "inf", "-1", "0", "1e400", "9" * 400, "\udcff"]
)
def test_numbers_that_are_none_are_warned_of_and_ignored(value: str) -> None:
    """As OpenTelemetry has it; an empty variable is an unset one."""
    environ = {
        f"{BASE}ENDPOINT": "http://me:pass@127.0.0.1:4318/otlp?a=b",
        f"{BASE}TIMEOUT": value,
        f"{BASE}COMPRESSION": value,
        f"{BASE}PROTOCOL": value,
        "OTEL_BSP_MAX_QUEUE_SIZE": value,
        "OTEL_BSP_SCHEDULE_DELAY": value,
        "OTEL_METRIC_EXPORT_INTERVAL": value,
        "OTEL_TRACES_SAMPLER": value,
        "OTEL_TRACES_SAMPLER_ARG": value,
        "OTEL_SERVICE_NAME": value,
        "OTEL_RESOURCE_ATTRIBUTES": f"a={value},=b,c",
    }

    Telemetry(SETTINGS, environ, version="0")
    Telemetry(SETTINGS, {**environ, "OTEL_TRACES_SAMPLER": "traceidratio"}, version="0")
