"""Worker processes that cannot start, or are told to stop while they do."""

import asyncio
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.integration.starting.answering import answering
from tests.support.lengths import first_of, length
from tests.support.recordings import REPOSITORY
from tests.support.wait import wait_until_sync
from turnline.ops.simulator import Simulator

KEY = "xai-s3cret"
GONE_S = 2.0
"""Within which a process is gone that was told to stop while it started."""
MOMENTS = length(5, 20)

TOOLS = """
import asyncio, contextlib, pathlib, sys, time
from turnline.worker.tools import tool

@tool
async def hello() -> str:
    "Say hello."
    return "hello"

def note(text):
    with open(pathlib.Path(__file__).with_suffix(".log"), "a") as file:
        file.write(text)
"""
STUCK = {
    "import_sleeps": 'note("there")\ntime.sleep(60)',
    "import_holds_python": 'note("there")\nsum(range(10**13))',
    "import_ignores_interrupts": """
note("there")
while True:
    try:
        time.sleep(60)
    except BaseException:
        pass
""",
    "opening_waits": """
@contextlib.asynccontextmanager
async def resources():
    note("there")
    try:
        await asyncio.sleep(60)
        yield
    finally:
        note(" closed")
""",
    "opening_holds_the_loop": """
@contextlib.asynccontextmanager
async def resources():
    note("there")
    time.sleep(60)
    yield
""",
    "opening_swallows_its_end": """
@contextlib.asynccontextmanager
async def resources():
    note("there")
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
    yield
""",
    "opened_does_not_close": """
@contextlib.asynccontextmanager
async def first():
    try:
        yield
    finally:
        await asyncio.sleep(60)

@contextlib.asynccontextmanager
async def resources():
    async with first():
        note("there")
        await asyncio.sleep(60)
        yield
""",
}


@contextmanager
def worker(folder: Path, *words: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """Run `python -m turnline.worker` in a folder; it is killed at the end."""
    kept = {
        name: it for name, it in os.environ.items() if not name.startswith(("TURNLINE_", "XAI_"))
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "turnline.worker", *words],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(REPOSITORY), "XAI_API_KEY": KEY, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


WRONG: list[tuple[dict[str, str], str]] = [
    ({"XAI_API_KEY": ""}, "XAI_API_KEY is not set"),
    ({"XAI_API_KEY_FILE": "none"}, "XAI_API_KEY and XAI_API_KEY_FILE are both set"),
    ({"TURNLINE_SLOT": "1"}, "did you mean TURNLINE_SLOTS?"),
    ({"TURNLINE_REDIS_URL": "redis://:s3cret/x@h"}, "TURNLINE_REDIS_URL: "),
    ({"TURNLINE_AGENTS": "none.toml"}, "none.toml: it cannot be read"),
    (
        {"TURNLINE_TOOLS": "broken"},
        "broken: it cannot be imported: ImportError: \\x1b[2J two lines",
    ),
    ({"SSL_CERT_FILE": "/none.pem"}, "SSL_CERT_FILE"),
    ({"HTTPS_PROXY": "http://me:s3cret@h:port"}, "HTTPS_PROXY"),
    ({"TURNLINE_TOOL_SCHEMAS": "broken.json"}, "(line 1, column "),
    ({"TURNLINE_TOOLS": "leaving"}, "leaving: it cannot be imported: SystemExit ("),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "s3cret:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT: "),
]
FORMS = ("text", "json")


@pytest.mark.parametrize(
    ("environ", "words", "form"),
    length(
        [(*wrong, FORMS[n % 2]) for n, wrong in enumerate(WRONG)],
        [(*wrong, form) for wrong in WRONG for form in FORMS],
    ),
)
def test_what_is_wrong_is_one_sentence_and_two(
    tmp_path: Path, redis_url: str, environ: dict[str, str], words: str, form: str
) -> None:
    """No traceback, no secret, no control character; the form of logs does not matter."""
    (tmp_path / "broken.py").write_text(
        'raise ImportError("\\x1b[2J two\\nlines s3cret " + "x" * 9_000)'
    )
    (tmp_path / "broken.json").write_text("[1,]")
    (tmp_path / "leaving.py").write_text('raise SystemExit("s3cret")')
    defaults = {
        "TURNLINE_REDIS_URL": redis_url,
        "TURNLINE_BASE_URL": "https://127.0.0.1:9/v1",
        "TURNLINE_LOG_FORMAT": form,
    }
    with worker(tmp_path, **{**defaults, **environ}) as process:
        out, said = process.communicate(timeout=60)

    assert process.returncode == 2
    assert out == ""
    assert said.startswith("turnline worker: ")
    assert said.endswith("\n")
    assert said[:-1].isprintable()
    assert words.replace("\\x1b", "").replace(" [", "[") in said.replace(" [", "[")
    assert len(said) < 2_100
    assert "xai-s3cret" not in said
    assert "broken" in words or "s3cret" not in said


async def test_check_says_what_was_found(tmp_path: Path, redis_url: str, sim: Simulator) -> None:
    """As a line, and as JSON; a worker was never there."""
    (tmp_path / "mine.py").write_text(TOOLS)
    environ = {
        "TURNLINE_REDIS_URL": redis_url,
        "TURNLINE_BASE_URL": sim.base_url,
        "TURNLINE_TOOLS": "mine",
    }
    said = []
    with ExitStack() as running:
        found, refusing = (
            [
                running.enter_context(worker(tmp_path, *words, **environ, TURNLINE_MODEL=model))
                for words in (["--check"], ["--check", "--json"])
            ]
            for model in ("grok-4.3", "grok-99")
        )
        for process in found:
            out, _ = await _ended(process)
            assert process.returncode == 0
            said.append(out)
        for process in refusing:
            out, err = await _ended(process)
            assert process.returncode == 2
            assert "does not serve the model grok-99" in err
            said.append(out)

    line, as_json, nothing, refused = said
    assert line.startswith("turnline worker: ready to start: Redis 7.")
    assert f"grok-4.3 at {sim.base_url}, 1 tools, 0 agents" in line
    facts = json.loads(as_json)
    assert facts["ok"] is True
    assert facts["provider"]["model"] == "grok-4.3"
    assert facts["tools"] == ["hello"]
    assert nothing == ""
    assert json.loads(refused)["ok"] is False


async def _ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    return await asyncio.to_thread(process.communicate, timeout=60)


@pytest.mark.parametrize("number", first_of([signal.SIGTERM, signal.SIGINT]))
@pytest.mark.parametrize("stuck", STUCK)
async def test_a_start_that_is_stuck_in_foreign_code_can_be_ended(
    tmp_path: Path, redis_url: str, sim: Simulator, stuck: str, number: signal.Signals
) -> None:
    """In an import or an opening that never returns, or does not want to end."""
    (tmp_path / "mine.py").write_text(TOOLS + STUCK[stuck])
    log = tmp_path / "mine.log"
    environ = {
        "TURNLINE_REDIS_URL": redis_url,
        "TURNLINE_BASE_URL": sim.base_url,
        "TURNLINE_TOOLS": "mine",
    }
    with worker(tmp_path, **environ) as process:
        await _wait_for(lambda: log.exists() and log.read_text() == "there")
        began = time.monotonic()
        process.send_signal(number)
        _, said = await _ended(process)
        took_s = time.monotonic() - began

    assert took_s < GONE_S
    assert process.returncode in {-number, 128 + number}
    assert "worker.started" not in said
    assert "Traceback" not in said
    assert log.read_text() == ("there closed" if stuck == "opening_waits" else "there")


async def _wait_for(condition: object) -> None:
    await asyncio.to_thread(wait_until_sync, condition, "the worker is there", 60)


@pytest.mark.parametrize("silent", ["redis", "provider"])
async def test_what_is_waited_for_is_said_and_can_be_ended(
    tmp_path: Path, redis_url: str, silent: str
) -> None:
    """After about a second; a server that accepts and says nothing holds nobody."""
    async with answering(b"", hold=True) as port:
        nowhere = f"redis://127.0.0.1:{port}" if silent == "redis" else redis_url
        environ = {
            "TURNLINE_REDIS_URL": nowhere,
            "TURNLINE_BASE_URL": f"http://127.0.0.1:{port}/v1",
        }
        with worker(tmp_path, **environ) as process:
            assert process.stderr is not None
            line = await asyncio.to_thread(process.stderr.readline)
            while "start.waiting" in line and f"127.0.0.1:{port}" not in line:  # an import is slow
                line = await asyncio.to_thread(process.stderr.readline)
            began = time.monotonic()
            process.terminate()
            await _ended(process)
            took_s = time.monotonic() - began

    assert "start.waiting" in line
    assert f"127.0.0.1:{port}" in line
    assert took_s < GONE_S
    assert process.returncode == -signal.SIGTERM


@pytest.mark.timeout(60 + 10 * MOMENTS)
async def test_a_worker_is_gone_whenever_in_its_start_it_is_told(
    tmp_path: Path, redis_url: str, sim: Simulator
) -> None:
    """At random moments, from its first instruction until after it began to serve."""
    seed = int(os.environ.get("SEED") or secrets.randbelow(1_000_000))
    print(f"seed {seed} (SEED=... repeats it)")  # noqa: T201  shown where the test fails
    moments = random.Random(seed)
    (tmp_path / "mine.py").write_text(TOOLS)
    environ = {
        "TURNLINE_REDIS_URL": redis_url,
        "TURNLINE_BASE_URL": sim.base_url,
        "TURNLINE_TOOLS": "mine",
    }
    with worker(tmp_path, **environ) as process:  # how long a start takes here and now
        began = time.monotonic()
        assert process.stderr is not None
        while "worker.started" not in await asyncio.to_thread(process.stderr.readline):
            assert process.poll() is None
        whole_s = time.monotonic() - began
    for _ in range(MOMENTS):
        wait_s = moments.uniform(0, 1.2 * whole_s)
        with worker(tmp_path, **environ) as process:
            began = time.monotonic()
            await _wait_for(lambda began=began, wait_s=wait_s: time.monotonic() - began > wait_s)
            began = time.monotonic()
            process.terminate()
            _, said = await _ended(process)
            took_s = time.monotonic() - began
        has_served = "worker.started" in said
        assert took_s < GONE_S, f"{took_s:.2f} s after {wait_s:.3f} of {whole_s:.3f} s"
        codes = {0} if has_served else {-signal.SIGTERM, 128 + signal.SIGTERM}
        assert process.returncode in codes, (wait_s, said)
        assert "Traceback" not in said
