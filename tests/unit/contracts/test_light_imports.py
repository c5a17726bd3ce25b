"""A producer pays for redis-py and msgspec, and for nothing else."""

import subprocess
import sys

from tests.support.recordings import REPOSITORY

HEAVY = {"arq", "openai", "httpx", "httpx2", "pydantic", "aiohttp", "uvloop", "rich", "click"}


def modules_after(program: str) -> set[str]:
    program = f"import sys; {program}; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_the_contracts_load_little_beside_redis() -> None:
    """Beyond redis-py: msgspec, OpenTelemetry's API where installed, ourselves, the library."""
    base = modules_after("import redis, redis.asyncio")

    added = modules_after("import turnline.contracts") - base

    packages = {name.partition(".")[0] for name in added} - sys.stdlib_module_names
    assert packages <= {"turnline", "msgspec", "opentelemetry", "typing_extensions"}
    assert not {name for name in added if name.startswith("opentelemetry.sdk")}
    assert not packages & HEAVY
    assert not {name for name in added if name.startswith(("turnline.worker", "turnline.ops"))}
    assert len(added) < 90


def test_a_producer_who_sets_up_no_log_reads_nothing() -> None:
    """Names of events without their fields would tell nobody anything."""
    program = (
        "import logging, turnline.contracts;"
        "logging.getLogger('turnline.subscriber').warning('subscriber.lost')"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert run.stderr == ""


def test_a_worker_imports_nothing_that_only_some_use() -> None:
    """What sends spans, what OpenAI's SDK brings, and what makes the help: others do not pay."""
    added = modules_after("import turnline.worker.command, turnline.worker.main")

    packages = {name.partition(".")[0] for name in added}
    assert not packages & {"openai", "pydantic", "anyio", "google", "requests", "rich", "fakeredis"}
    assert not {name for name in added if name.startswith("turnline.ops")}
    assert "turnline.worker.settings_help" not in added
    assert "turnline.worker.supervising.supervisor" not in added
    assert len(added) < 720


def test_a_supervisor_is_small() -> None:
    """It runs no turn: neither a model's client nor telemetry is of use to it."""
    added = modules_after("import turnline.worker.command, turnline.worker.supervising.supervisor")

    packages = {name.partition(".")[0] for name in added}
    assert not packages & {"aiohttp", "httpx2", "arq", "uvloop", "google", "openai"}
    assert "opentelemetry.sdk" not in added
    assert len(added) < 420
