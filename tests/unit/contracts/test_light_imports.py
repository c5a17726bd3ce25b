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
