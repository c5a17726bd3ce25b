"""The contracts import beside whatever else is installed, in part, too old or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.recordings import REPOSITORY

PROGRAM = """
import asyncio
import turnline.contracts, turnline.contracts.opening
from turnline.contracts.trace_context import current
async def connection():
    servers = turnline.contracts.opening.open_servers("redis://127.0.0.1:1/0")
    return (await servers.place("k")).pool.make_connection()
packed = b"".join(asyncio.run(connection()).pack_command("SET", "k", 1))
assert packed == b"*3\\r\\n$3\\r\\nSET\\r\\n$1\\r\\nk\\r\\n$1\\r\\n1\\r\\n", packed
assert current().traceparent.startswith("00-")
turnline.contracts.UserMessage(conversation_id="c", text="t")
"""
MISSING = "raise ModuleNotFoundError('not installed')"
BROKEN = "raise ImportError('built for another Python')"


@pytest.mark.parametrize(
    "files",
    [
        {"opentelemetry/__init__.py": "", "opentelemetry/proto/__init__.py": ""},
        {"opentelemetry/__init__.py": MISSING},
        {"opentelemetry/trace.py": BROKEN},
        {"hiredis.py": MISSING},
        {"hiredis.py": BROKEN},
        {"hiredis.py": "__version__ = '1.1.0'\nclass Reader: pass"},
        {f"{name}.py": MISSING for name in ("arq", "click", "openai", "rich", "uvloop")},
    ],
    ids=[
        "OpenTelemetry without its API",
        "no OpenTelemetry",
        "a broken OpenTelemetry",
        "no hiredis",
        "a broken hiredis",
        "a hiredis that packs no commands",
        "nothing of the worker's",
    ],
)
def test_the_contracts_import_beside(files: dict[str, str], tmp_path: Path) -> None:
    """Messages, clients and trace context work without what is missing, and pack the same bytes."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    program = f"import sys; sys.path[:0] = {[str(tmp_path), str(REPOSITORY)]}\n{PROGRAM}"

    run = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False
    )

    assert run.stderr == ""
    assert run.returncode == 0
